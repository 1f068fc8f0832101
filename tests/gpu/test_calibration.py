"""On a GPU: kernels have grids, ops become CUDA graphs, and every op of the sweep can be repeated."""

import pytest
import torch

from herald.experiments.calibration import capture, probes, sweep
from herald.experiments.calibration.replay import Loop, Repeated
from herald.hooks import kernel_facts

CUDA = torch.device("cuda")
LABELS = list(sweep.operations(CUDA))


def test_the_kernels_of_an_op_are_told_with_their_grids() -> None:
    a, b = (torch.randn(512, 512, device=CUDA) for _ in range(2))
    (facts, *_) = kernel_facts.measure(lambda: torch.mm(a, b))["aten::mm(Float[512, 512], Float[512, 512])"]
    assert facts.calls == 1
    assert facts.duration_ns > 1000
    assert min(*facts.grid, *facts.block) >= 1
    assert facts.registers > 0


@pytest.mark.parametrize("label", LABELS)
def test_each_op_of_the_sweep_can_be_looped(label: str) -> None:
    work = Repeated(sweep.operations(CUDA)[label]().call, CUDA)
    work.warm_up()
    work.fit()
    loop = Loop(work)
    loop.start()
    assert loop.stop() > 0


@pytest.mark.parametrize("kind", list(probes.PROBES))
def test_a_probe_is_a_request_of_some_hundred_microseconds(kind: str) -> None:
    found = probes.Probe(kind, CUDA).measure(0.05)
    assert 50_000 < found["p50_ns"] < 2_000_000


def test_the_ops_of_a_training_step_can_be_looped() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(inplace=True)).to(CUDA)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(4, 3, 16, 16, device=CUDA)

    def step() -> None:
        optimizer.zero_grad()
        model(images).sum().backward()
        optimizer.step()

    step()
    caught = capture.ops_of("tiny", step, CUDA, most=50)
    assert any("convolution_backward" in label for label in caught)
    for operation in caught.values():
        work = Repeated(operation.call, CUDA)
        work.warm_up()
        work.fit()
