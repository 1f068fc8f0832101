"""`herald.profile` on a GPU: device times, kernels, and that an iteration is the sum of its ops."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import herald
from herald.profiles import Profile


def training(width: int) -> tuple[Callable[[], None], nn.Module]:
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(width, width, device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()

    return step, model


@pytest.fixture(scope="module")
def profile() -> Profile:
    step, model = training(4096)
    return herald.profile(step, model=model)


def test_it_says_where_it_was_made(profile: Profile) -> None:
    assert profile.device == torch.cuda.get_device_name(0)
    assert profile.num_sms == torch.cuda.get_device_properties(0).multi_processor_count
    assert profile.driver


def test_the_sum_over_ops_is_the_iteration(profile: Profile) -> None:
    assert profile.iteration is not None
    assert profile.iteration.device_ns == pytest.approx(profile.iteration.wall_ns, rel=0.05)


def test_every_op_that_takes_time_has_its_kernels(profile: Profile) -> None:
    long = [op for op in profile.ops if op.self_ns > 10_000]
    assert {op.name for op in long} >= {"aten::addmm", "aten::mm"}
    assert all(op.kernels for op in long)
    for op in long:
        kernels_ns = sum(kernel.calls * kernel.duration_ns for kernel in op.kernels)
        assert op.self_ns == pytest.approx(kernels_ns, rel=0.1)


def test_flops_and_bytes_of_a_product(profile: Profile) -> None:
    product = next(op for op in profile.ops if op.name == "aten::mm")
    assert product.flops == 2 * 4096**3
    assert product.bytes_out == 4 * 4096**2
    assert product.bytes_in <= 2 * 4 * 4096**2  # less where a gradient is one number, expanded


def test_backward_ops_have_modules_though_another_thread_runs_them(profile: Profile) -> None:
    assert profile.iteration is not None
    found = {(i.phase, i.module) for i in profile.iteration.instances if profile.ops[i.op].name == "aten::mm"}
    assert found == {("backward", "0"), ("backward", "2")}


def test_launch_gaps_are_the_iterations_but_not_the_ops() -> None:
    step, _ = training(16)
    small = herald.profile(step)
    assert small.iteration is not None
    assert sum(op.calls * op.self_ns for op in small.ops) < small.iteration.device_ns
