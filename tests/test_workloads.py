"""Workloads are what they say, and follow from their seed alone."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from herald.errors import ConfigError
from herald.experiments import convnets, language_models, loading, small_networks, workloads
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


@pytest.mark.parametrize("name", [n for n in workloads.names("training", "cpu") if not n.endswith("-compiled")])
def test_training_follows_from_its_seed(name: str) -> None:
    assert losses(name, seed=1) == losses(name, seed=1)
    assert losses(name, seed=1) != losses(name, seed=2)


@pytest.mark.parametrize("name", ["cpu-vgg", "cpu-rnnlm", "cpu-resnet", "cpu-gpt", "cpu-dlrm", "small-ops"])
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


@pytest.mark.parametrize(
    ("build", "num_parameters"),
    [
        (lambda: convnets.vgg(convnets.VGG16), 138_357_544),
        (lambda: convnets.resnet(convnets.RESNET50), 25_557_032),
        (lambda: convnets.convnext(convnets.CONVNEXT_TINY), 28_589_128),
        (lambda: language_models.Gpt(language_models.GPT2_SMALL), 124_439_808),
        (lambda: language_models.BertEncoder(language_models.BERT_BASE).bert.blocks, 85_054_464),
    ],
    ids=["vgg16", "resnet50", "convnext", "gpt2", "bert"],
)
def test_a_network_is_the_one_of_its_paper(build: Callable[[], nn.Module], num_parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build().parameters()) == num_parameters


@pytest.mark.parametrize("network", [convnets.vgg(convnets.VGG16_SMALL), convnets.resnet(convnets.RESNET_SMALL)])
def test_images_become_logits(network: nn.Module) -> None:
    assert network(torch.zeros(2, 3, 32, 32)).shape[0] == 2


def test_a_gpt_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    model = language_models.Gpt(language_models.TINY)
    tokens = torch.randint(100, (1, 8))
    changed = tokens.clone()
    changed[0, 5:] = 0
    with torch.no_grad():
        assert torch.allclose(model(tokens)[0, :5], model(changed)[0, :5], atol=1e-6)


def test_a_step_of_small_ops_is_two_thousand_op_calls() -> None:
    program = workloads.get("small-ops").make("cpu", 0)
    program.step()

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counter.count += 1
            return op(*args, **(kwargs or {}))

    with Counter():
        program.step()
    assert Counter.count == pytest.approx(2000, rel=0.05)


def test_tables_of_a_recommender_get_sparse_gradients() -> None:
    model = small_networks.Dlrm(small_networks.DLRM_SMALL)
    model(torch.zeros(3, 5), torch.zeros(4, 3, 1, dtype=torch.long)).sum().backward()
    assert all(table.weight.grad is not None and table.weight.grad.is_sparse for table in model.tables)


def test_a_compiled_workload_compiles_the_forward_at_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def compile_module(module: nn.Module) -> nn.Module:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile_module)
    workloads.get("cpu-vgg-compiled").make("cpu", 0)
    workloads.get("cpu-vgg").make("cpu", 0)
    assert len(compiled) == 1


def test_a_cached_decoder_attends_to_what_it_has_written_and_nothing_later() -> None:
    torch.manual_seed(0)
    decoder = language_models.CachedDecoder(
        language_models.DecoderShape(width=16, layers=2, heads=2, vocabulary=50, context=8), batch=3
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
    decoder = language_models.CachedDecoder(language_models.DecoderShape(8, 1, 1, 10, context=4), batch=1).eval()
    decoder.rewind(3)
    with torch.no_grad():
        decoder()
    assert decoder.position.item() == 0
