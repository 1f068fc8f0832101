"""Kernel facts come out of the profiler's trace, joined to the op that launched them; odd traces do no harm."""

import json
from typing import Any

import pytest

from herald.hooks import kernel_facts
from herald.hooks.kernel_facts import TraceError, joinable, of_trace

ADDMM = {
    "External id": 7,
    "Input type": ["float", "float", "float", "Scalar", "Scalar"],
    "Input Dims": [[128], [32, 784], [784, 128], [], []],
    "Input Strides": [[1], [784, 1], [128, 1], [], []],
}
ADDMM_TEXT = "aten::addmm(Float[128], Float[32, 784], Float[784, 128])"


def op(name: str, args: dict[str, Any], **event: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": 1.0, "dur": 9.0, "args": args, **event}


def kernel(name: str = "sgemm", dur: Any = 10.0, cat: str = "kernel", **args: Any) -> dict[str, Any]:
    given = {
        "External id": 7,
        "correlation": 40,
        "registers per thread": 90,
        "shared memory": 1024,
        "blocks per SM": 0.5,
        "grid": [66, 1, 1],
        "block": [256, 1, 1],
        "est. achieved occupancy %": 25,
    }
    return {"ph": "X", "cat": cat, "name": name, "ts": 5.0, "dur": dur, "args": given | args}


def trace(*events: Any) -> dict[str, Any]:
    return {"schemaVersion": 1, "traceEvents": list(events)}


def test_a_kernel_is_told_with_the_op_that_launched_it() -> None:
    (facts,) = of_trace(trace(op("aten::addmm", ADDMM), kernel()))[ADDMM_TEXT]
    assert (facts.name, facts.calls, facts.duration_ns) == ("sgemm", 1.0, 10_000)
    assert (facts.grid, facts.block) == ((66, 1, 1), (256, 1, 1))
    assert (facts.registers, facts.shared_bytes) == (90, 1024)
    assert (facts.blocks_per_sm, facts.occupancy) == (0.5, 0.25)


def test_calls_count_per_call_of_the_op_and_durations_are_means() -> None:
    document = trace(
        op("aten::addmm", ADDMM),
        op("aten::addmm", ADDMM | {"External id": 8}),
        *(kernel("part", dur, **{"External id": 7 + place // 2}) for place, dur in enumerate((1.0, 2.0, 3.0, 4.0))),
    )
    (facts,) = of_trace(document)[ADDMM_TEXT]
    assert (facts.calls, facts.duration_ns) == (2.0, 2500)


def test_the_same_kernel_on_another_grid_is_another_one() -> None:
    found = of_trace(trace(op("aten::addmm", ADDMM), kernel(), kernel(grid=[1, 1, 1])))
    assert {facts.grid for facts in found[ADDMM_TEXT]} == {(66, 1, 1), (1, 1, 1)}


def test_a_kernel_without_the_ops_id_is_joined_through_its_launch() -> None:
    launch = {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "args": {"correlation": 40, "External id": 7}}
    event = kernel()
    del event["args"]["External id"]
    assert ADDMM_TEXT in of_trace(trace(op("aten::addmm", ADDMM), launch, event))


def test_a_copy_has_no_grid() -> None:
    args = {"External id": 7, "correlation": 40, "bytes": 4096}
    event = {"cat": "gpu_memcpy", "name": "Memcpy DtoD", "ts": 1, "dur": 2.0, "args": args}
    (facts,) = of_trace(trace(op("aten::addmm", ADDMM), event))[ADDMM_TEXT]
    assert (facts.grid, facts.registers) == ((0, 0, 0), 0)


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        (
            "aten::conv2d",
            {
                "Input type": ["float", "c10::BFloat16", "", "ScalarList"],
                "Input Dims": [[4, 3, 8, 8], [2, 3, 3, 3], [], []],
                "Input Strides": [[192, 1, 24, 3], [27, 9, 3, 1], [], []],
            },
            "aten::conv2d(Float[4, 3, 8, 8; channels_last], BFloat16[2, 3, 3, 3])",
        ),
        (
            "aten::cat",
            {"Input type": ["TensorList", "Scalar"], "Input Dims": [[[4, 3], [2, 3]], []]},
            "aten::cat(?[4, 3] x2)",
        ),
        (
            "aten::layer_norm_backward",
            {
                "Input type": ["nullptr (uninitialized)", "long int"],
                "Input Dims": [[], [3]],
                "Input Strides": [[], [1]],
            },
            "aten::layer_norm_backward(None, Long[3])",
        ),
        ("aten::zeros", {}, "aten::zeros()"),
    ],
)
def test_signatures_read_as_the_hook_writes_them(name: str, args: dict[str, Any], text: str) -> None:
    assert list(of_trace(trace(op(name, args | {"External id": 7}), kernel()))) == [text]


def test_the_dtype_of_a_list_is_left_out_to_join() -> None:
    full = "aten::_foreach_add_(BFloat16[4, 3] x20, Float[3])"
    assert joinable(full) == "aten::_foreach_add_(?[4, 3] x20, Float[3])"
    assert joinable(joinable(full)) == joinable(full)


@pytest.mark.parametrize(
    "event",
    [
        kernel(dur=None),
        kernel(dur=float("nan")),
        kernel(dur=-1),
        kernel(grid=[1, 2]),
        kernel(grid=None),
        kernel(**{"registers per thread": "many"}),
        kernel(**{"External id": 99}),  # no such op
        {"cat": "kernel", "name": "no args", "dur": 1.0},
        {"cat": "kernel", "args": {"External id": 7}, "dur": 1.0},  # no name
        "not an event",
        None,
    ],
)
def test_damaged_and_foreign_events_are_left_out(event: Any) -> None:
    found = of_trace(trace(op("aten::addmm", ADDMM), event, kernel("good")))
    assert [facts.name for facts in found[ADDMM_TEXT]] == ["good"]


@pytest.mark.parametrize("document", [{}, {"traceEvents": None}, {"traceEvents": "cut off"}])
def test_what_is_no_trace_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(TraceError, match="traceEvents"):
        of_trace(document)


def test_a_trace_of_this_torch_has_the_ops_that_ran() -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        torch.addmm(torch.ones(4), torch.ones(2, 3), torch.ones(3, 4))
    document = json.loads(_exported(profiler))
    ids = {e["name"]: e["args"]["External id"] for e in document["traceEvents"] if e.get("cat") == "cpu_op"}
    document["traceEvents"].append(kernel(**{"External id": ids["aten::addmm"]}))
    assert list(of_trace(document)) == ["aten::addmm(Float[4], Float[2, 3], Float[3, 4])"]


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_facts.measure(lambda: pytest.fail("it ran")) == {}


def _exported(profiler: Any) -> str:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return path.read_text()
