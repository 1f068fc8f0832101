"""Coverage: which kernels lie behind an event that the hook sees, and what a row of it is judged by."""

from typing import Any

import pytest
import torch

from herald.experiments import coverage, kineto, op_trace, overhead, verdicts
from herald.experiments.op_trace import Event, Kernel
from herald.experiments.worker import Session

FUNCTION, BACKWARD, USER = 0, 1, 7


def event(name: str, begin: int, end: int, correlation: int, *, thread: int = 1, scope: int = FUNCTION) -> Event:
    return Event(name, thread, begin, end, scope, correlation)


def test_a_kernel_belongs_to_the_innermost_seen_event_around_its_launch() -> None:
    events = [
        event("aten::conv2d", 0, 100, 1),
        event("aten::cudnn_convolution", 10, 90, 2),
        event("AddBackward0", 200, 300, 3),
        event("aten::add", 210, 290, 4),
    ]
    told = op_trace.told(events, [Kernel("conv", 7000, 2), Kernel("add", 1000, 4), Kernel("conv", 2000, 1)])
    assert told["covered"] == 1.0
    assert (told["longest"], told["longest_us"]) == ("aten::cudnn_convolution", 7.0)


@pytest.mark.parametrize(
    "around",
    [
        event("autograd::engine::evaluate_function: MmBackward0", 0, 9, 1),
        event("MyFunctionBackward", 0, 9, 1),
        event("my::function", 0, 9, 1, scope=BACKWARD),
        event("Optimizer.step#SGD.step", 0, 9, 1, scope=USER),
    ],
    ids=lambda e: e.name,
)
def test_what_is_launched_in_a_node_or_a_range_alone_is_outside(around: Event) -> None:
    told = op_trace.told([around], [Kernel("mystery", 3000, 1)])
    assert told["covered"] == 0.0
    assert told["uncovered"] == [["mystery", 3.0]]


def test_an_announced_kernel_within_a_compiled_region_is_a_stretch_of_its_own() -> None:
    events = [
        event("compiled::region_ab", 0, 100, 1),
        event("triton::fused_0_cd", 10, 20, 2),
        event("triton::fused_1_ef", 30, 40, 3),
    ]
    told = op_trace.told(events, [Kernel("fused_0", 5000, 2), Kernel("fused_1", 4000, 3)])
    assert (told["covered"], told["longest_us"]) == (1.0, 5.0)


def test_threads_are_kept_apart_and_a_launch_outside_of_everything_is_outside() -> None:
    events = [event("aten::mm", 0, 100, 1, thread=1), event("Node", 10, 20, 2, thread=2, scope=BACKWARD)]
    told = op_trace.told(events, [Kernel("mm", 9000, 1), Kernel("a", 500, 2), Kernel("b", 500, 0)])
    assert told["covered"] == pytest.approx(0.9)


def test_nothing_traced_is_no_coverage() -> None:
    assert op_trace.told([], [])["covered"] is None


class Found:
    """An event as kineto gives it."""

    def __init__(self, name: str, *, on_gpu: bool = False, linked: int = 0, user: bool = False) -> None:
        self._name, self._on_gpu, self._linked, self._user = name, on_gpu, linked, user

    def name(self) -> str:
        return self._name

    def device_type(self) -> Any:
        return kineto.DeviceType.CUDA if self._on_gpu else kineto.DeviceType.CPU

    def linked_correlation_id(self) -> int:
        return self._linked

    def is_user_annotation(self) -> bool:
        return self._user


def test_shadows_of_ranges_are_no_work_and_runtime_calls_no_ops() -> None:
    found = [
        Found("aten::mm"),
        Found("cudaLaunchKernel", linked=1),
        Found("gemm", on_gpu=True, linked=1),
        Found("epoch"),
        Found("epoch", on_gpu=True),
        Found("step", on_gpu=True, user=True),
    ]
    assert [e.name() for e in kineto.device_work(found)] == ["gemm"]
    assert [e.name() for e in kineto.host_events(found)] == ["aten::mm", "epoch"]


def test_the_profiler_of_this_torch_has_what_is_read() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(4).add(1)
    found = kineto.host_events(kineto.events(profiler))
    added = next(e for e in map(op_trace.seen_event, found) if e.name == "aten::add")
    assert added.is_seen
    assert added.begin_ns < added.end_ns
    assert kineto.device_work(kineto.events(profiler)) == []


def test_a_cpu_has_no_trace() -> None:
    session = Session()
    session.device = torch.device("cpu")
    assert op_trace.measure(session, steps=1)["covered"] is None


class Worker:
    """A trainer that has learnt its ops."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def call(self, do: str, *, timeout_s: float, **fields: Any) -> dict[str, Any]:
        self.asked.append(do)
        counters = {"ops_seen": 10**6, "sampled_ns": 10**9, "covered_ns": 995 * 10**6, "longest_op_ns": 300_000}
        return {
            "train": {"elapsed_s": fields.get("count", 0) * 0.1},
            "stats": counters,
            "detach": counters,
            "instrument": {"covered": 0.999, "longest_us": 310.0, "longest": "aten::mm", "kernels": 9, "uncovered": []},
        }.get(do, {})


def row(**changes: Any) -> dict[str, Any]:
    job = overhead.LoneJob(Worker(), "training", "cuda", "domain")  # a part of a Channel
    return {"workload": "w", "mps": False, "compiled": False, **coverage.measured(job, 2.0), **changes}


def test_a_row_has_the_jobs_own_count_and_the_truth() -> None:
    found = row()
    assert (found["counted"], found["truth"]["covered"], found["longest_predicted_us"]) == (0.995, 0.999, 300.0)
    assert list(coverage._lines(found))


def test_eager_code_is_judged_by_its_share_and_compiled_code_by_its_longest_stretch() -> None:
    assert [c.passed for c in verdicts.coverage([row(), row(truth=row()["truth"] | {"covered": 0.98})])] == [
        True,
        False,
    ]
    compiled = [row(compiled=True), row(compiled=True, longest_predicted_us=2100.0)]
    assert [c.passed for c in verdicts.coverage(compiled)] == [True, False]
    assert not verdicts.coverage([row(truth={"covered": None})])  # a CPU
