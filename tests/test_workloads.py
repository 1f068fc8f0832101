"""Workloads are what they say, and follow from their seed alone."""

from collections.abc import Iterator

import pytest
import torch

from herald.errors import ConfigError
from herald.experiments import loading, networks, workloads
from herald.experiments.completion import mark
from herald.experiments.roles import ROLES

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(name: str, seed: int, count: int = 3) -> list[float]:
    program = workloads.get(name).make(CPU, seed)
    return [program.step().item() for _ in range(count)]


@pytest.mark.parametrize("name", workloads.names("training", "cpu"))
def test_training_follows_from_its_seed(name: str) -> None:
    assert losses(name, seed=1) == losses(name, seed=1)
    assert losses(name, seed=1) != losses(name, seed=2)


@pytest.mark.parametrize("name", ["cpu-vgg", "cpu-rnnlm"])
def test_training_learns(name: str) -> None:
    program = workloads.get(name).make(CPU, 0)
    first = program.step().item()
    for _ in range(23):  # the same four batches, six times
        program.step()
    assert program.step().item() < first


@pytest.mark.parametrize("name", workloads.names("inference", "cpu"))
def test_inference_follows_from_its_seed_and_does_not_drift(name: str) -> None:
    program, again = (workloads.get(name).make(CPU, 3) for _ in range(2))
    first = program.step()
    mark(CPU)()
    assert torch.equal(first, program.step())
    assert torch.equal(first, again.step())


def test_batches_do_not_depend_on_who_prepares_them() -> None:
    images = loading.SyntheticImages(loading.Augmentation(raw_side=16, side=8), classes=10, seed=4)
    here, there = loading.batches(images, 3, num_loaders=0), loading.batches(images, 3, num_loaders=2)
    for _ in range(3):
        for mine, theirs in zip(next(here), next(there), strict=True):
            assert torch.equal(mine, theirs)


def test_an_augmented_image_has_the_size_of_the_network_and_is_normalised() -> None:
    image, target = loading.SyntheticImages(loading.Augmentation(raw_side=16, side=8), classes=10, seed=4)[3]
    assert image.shape == (3, 8, 8)
    assert abs(image.mean().item()) < 1e-6
    assert image.std().item() == pytest.approx(1)
    assert 0 <= target < 10


def test_every_role_can_be_played_on_every_device() -> None:
    for role in ROLES:
        assert workloads.names(role, "cpu")
        assert workloads.names(role, "cuda")


def test_an_unknown_workload_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'vgg61': allowed are transformer, .*vgg16"):
        workloads.get("vgg61")


def test_a_workload_for_gpus_says_what_to_take_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match="there are cpu-vgg"):
        workloads.get("vgg16").make("cpu", 0)


def test_vgg16_is_the_one_of_the_paper() -> None:
    with torch.device("meta"):
        model = networks.vgg(networks.VGG16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 138_357_544
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_a_cached_decoder_attends_to_what_it_has_written_and_nothing_later() -> None:
    torch.manual_seed(0)
    decoder = networks.CachedDecoder(
        networks.DecoderShape(width=16, layers=2, heads=2, vocabulary=50, context=8), batch=3
    ).eval()
    with torch.no_grad():
        decoder.rewind(2)
        decoder.tokens.zero_()
        first = decoder().clone()
        for block in decoder.blocks:
            block.keys[:, :, 4:] = 1e4  # later slots: nobody may look at them
        decoder.rewind(2)
        decoder.tokens.zero_()
        assert torch.equal(decoder(), first)
        assert decoder.position.item() == 3
        assert first.shape == (3,)


def test_a_cached_decoder_wraps_around_at_the_end_of_its_context() -> None:
    decoder = networks.CachedDecoder(networks.DecoderShape(8, 1, 1, 10, context=4), batch=1).eval()
    decoder.rewind(3)
    with torch.no_grad():
        decoder()
    assert decoder.position.item() == 0
