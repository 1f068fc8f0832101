"""From recordings to a profile: positions, origins, traffic, FLOPs. With recordings that nobody had to record."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from herald.errors import ProfileError
from herald.hooks.profiling.assembly import Passes, Place, assemble
from herald.hooks.profiling.flops import flops
from herald.hooks.profiling.origins import origins
from herald.hooks.recorder import BACKWARD, EVENT, FUNCTION, MARK, TENSOR, USER, Recording, SignatureInfo
from herald.profiles import KernelFacts, OpInstance, Profile

MM = "aten::mm(Float[2, 2], Float[2, 2])"
MM_ARGS = json.dumps(
    {"in": [{"shape": [2, 2]}, {"shape": [2, 2]}], "out": [{"shape": [2, 2]}]},
)
PLACE = Place("cpu", None, "2.11.0", "2026-01-01T00:00:00+00:00", None, "fake")


class FakeRecording:
    """Events as they would be recorded, one after the other; each takes 100 ns on the host after those within."""

    def __init__(self) -> None:
        self.now_ns = 1000
        self.bounds_ns: list[tuple[int, int]] = []
        self._events: list[dict[str, int]] = []
        self._tensors: list[tuple[int, int, int, int, int]] = []
        self._signatures: dict[str, SignatureInfo] = {}
        self._open: list[int] = []

    @contextmanager
    def iteration(self) -> Iterator[None]:
        begin_ns = self.now_ns
        yield
        self.bounds_ns.append((begin_ns, self.now_ns))

    @contextmanager
    def event(
        self, text: str, self_ns: int = 0, *, scope: int = FUNCTION, args: str | None = None, **fields
    ) -> Iterator:
        """``reads`` and ``writes``: storages of 16 bytes; a storage in both is written in place. ``out``: views."""
        reads, writes = fields.pop("reads", ()), fields.pop("writes", ())
        inputs = [(storage, 16, 16, i, int(storage in writes)) for i, storage in enumerate(reads)]
        outputs = [(storage, 16, 16, -1, 1) for storage in (*writes, *fields.pop("out", ()))]
        event = {
            "signature": self._signature(text, args),
            "parent": self._open[-1] if self._open else -1,
            "scope": scope,
            "device": 0 if scope == FUNCTION and "(" in text else -1,
            "begin_ns": self.now_ns,
            "self_ns": self_ns,
            "sequence": -1,
            "first_tensor": len(self._tensors),
            "num_in": len(inputs),
            "num_out": len(outputs),
        } | fields
        self._tensors += inputs + outputs
        self._open.append(len(self._events))
        self._events.append(event)
        yield
        self.now_ns += 100
        event["end_ns"] = self.now_ns
        self._open.pop()

    def op(self, text: str, self_ns: int = 10, **fields) -> None:
        with self.event(text, self_ns, **fields):
            pass

    def _signature(self, text: str, args: str | None) -> int:
        known = SignatureInfo(abs(hash(text)) + 1, text.partition("(")[0], text, 8, args)
        self._signatures.setdefault(text, known)
        return list(self._signatures).index(text)

    def recording(self) -> Recording:
        events = np.zeros(len(self._events), EVENT)
        for i, event in enumerate(self._events):
            for name, value in event.items():
                events[name][i] = value
        return Recording(events, np.array(self._tensors, TENSOR), tuple(self._signatures.values()))


def profiled(timed: FakeRecording, detail: FakeRecording | None = None, **fields) -> Profile:
    detail = detail or timed
    passes = Passes(timed.recording(), timed.bounds_ns, detail.recording(), detail.bounds_ns, 900, 800, **fields)
    return assemble(passes, PLACE)


def instances(profile: Profile) -> tuple[OpInstance, ...]:
    assert profile.iteration is not None
    return profile.iteration.instances


# ---- times


def test_times_are_medians_at_a_position_and_means_over_positions() -> None:
    timed = FakeRecording()
    for first_ns, second_ns in ((10, 30), (12, 40), (99, 32)):
        with timed.iteration():
            timed.op(MM, first_ns)
            timed.op(MM, second_ns)
    profile = profiled(timed)
    assert [instance.self_ns for instance in instances(profile)] == [12, 32]
    (op,) = profile.ops
    assert (op.self_ns, op.calls, op.host_ns) == (22, 2.0, 100)
    assert profile.iteration is not None
    assert (profile.iteration.wall_ns, profile.iteration.device_ns, profile.iteration.host_ns) == (900, 44, 800)


def test_ops_that_follow_each_other_do_not_overlap_in_the_median() -> None:
    timed = FakeRecording()
    for late_ns, long_ns in ((300, 10), (300, 300), (0, 300)):  # begin and length have medians that end after the next
        with timed.iteration():
            timed.now_ns += late_ns
            with timed.event(MM, 10):
                timed.now_ns += long_ns
            timed.op(MM)
    first, second = instances(profiled(timed))
    assert first.begin_ns + first.host_ns <= second.begin_ns


def test_what_lies_outside_of_the_iterations_does_not_count() -> None:
    timed = FakeRecording()
    timed.op(MM)
    with timed.iteration():
        timed.op(MM)
    timed.op(MM)
    assert [instance.begin_ns for instance in instances(profiled(timed))] == [0]


def test_only_ops_with_a_device_are_ops() -> None:
    timed = FakeRecording()
    with timed.iteration(), timed.event("aten::linear"), timed.event("AddmmBackward0", scope=BACKWARD):
        timed.op(MM)
    assert [op.signature for op in profiled(timed).ops] == [MM]


def test_threads_may_interleave_differently() -> None:
    timed = FakeRecording()
    for order in ((0, 1), (1, 0)):
        with timed.iteration():
            for thread in order:
                timed.op(f"aten::op{thread}(Float[1])", 10 + thread, thread=thread)
    assert [instance.self_ns for instance in instances(profiled(timed))] == [10, 11]


def test_iterations_that_differ_are_told_and_taken_by_signature(caplog: pytest.LogCaptureFixture) -> None:
    timed = FakeRecording()
    for self_ns in (10, 20, 60):
        with timed.iteration():
            timed.op(MM, self_ns)
            if self_ns == 60:
                timed.op("aten::add(Float[2, 2])", 5)
    with caplog.at_level(logging.WARNING, "herald"):
        profile = profiled(timed)
    assert "iterations differ in their ops" in caplog.text
    assert [(op.self_ns, round(op.calls, 2)) for op in profile.ops] == [(20, 1.0), (5, 0.33)]
    assert [instance.self_ns for instance in instances(profile)] == [60, 5]  # the one that was recorded in detail


def test_an_op_that_was_only_seen_in_detail_is_not_free() -> None:
    timed, detail = FakeRecording(), FakeRecording()
    with timed.iteration():
        timed.op(MM, 10)
    with detail.iteration():
        detail.op("aten::add(Float[9])", 7)
    assert [(op.signature, op.self_ns, op.calls) for op in profiled(timed, detail).ops] == [
        (MM, 10, 1.0),
        ("aten::add(Float[9])", 7, 0.0),
    ]


def test_no_op_is_an_error() -> None:
    timed = FakeRecording()
    with timed.iteration():
        timed.op("nothing of a device")
    with pytest.raises(ProfileError, match="no op was seen on cpu: a step function has to run one iteration"):
        profiled(timed)


def test_launch_gaps_are_not_an_ops_but_an_iterations() -> None:
    timed = FakeRecording()
    with timed.iteration():
        timed.op(MM, 9000)
    kernel = KernelFacts("gemm", 2.0, 1500, (1, 1, 1), (1, 1, 1), 1, 1, 1.0, 0.5)
    profile = profiled(timed, kernels={MM: (kernel,)})
    assert profile.ops[0].self_ns == 3000
    assert profile.ops[0].kernels == (kernel,)
    assert [instance.self_ns for instance in instances(profile)] == [9000]
    overlapping = profiled(timed, kernels={MM: (replace(kernel, duration_ns=90_000),)})
    assert overlapping.ops[0].self_ns == 9000


def test_an_op_too_short_for_the_recorder_has_its_kernels_time() -> None:
    timed = FakeRecording()
    with timed.iteration():
        timed.op(MM, 0)
    kernel = KernelFacts("gemm", 1.0, 1500, (1, 1, 1), (1, 1, 1), 1, 1, 1.0, 0.5)
    assert profiled(timed, kernels={MM: (kernel,)}).ops[0].self_ns == 1500


def test_the_fingerprint_is_that_of_the_ops_and_parameters() -> None:
    def fingerprint(*texts: str, parameters: tuple[str, ...] = (), self_ns: int = 10) -> str:
        timed = FakeRecording()
        with timed.iteration():
            for text in texts:
                timed.op(text, self_ns)
        passes = Passes(timed.recording(), timed.bounds_ns, timed.recording(), timed.bounds_ns, 1, 1)
        return assemble(passes, PLACE, parameters).fingerprint

    mine = fingerprint("a(1)", "b(2)")
    assert mine == fingerprint("a(1)", "b(2)", self_ns=77)
    assert len({mine, fingerprint("b(2)", "a(1)"), fingerprint("a(1)"), fingerprint("a(1)", parameters=("b(2)",))}) == 4


# ---- data flow


def test_storages_get_small_numbers_and_views_write_nothing() -> None:
    timed = FakeRecording()
    with timed.iteration():
        timed.op("aten::mm(1)", reads=(700, 800), writes=(900,))
        timed.op("aten::slice(2)", reads=(900,), out=(900,))
        timed.op("aten::add_(3)", reads=(900, 800), writes=(900,))
        timed.op("aten::copy_(4)", reads=(900, 700), writes=(900,))
        timed.op("aten::sum(5)", reads=(900,))
    profile = profiled(timed)
    flow = [(instance.reads, instance.writes) for instance in instances(profile)]
    assert flow == [((0, 1), (2,)), ((2,), ()), ((2, 1), (2,)), ((2, 0), (2,)), ((2,), ())]
    assert [(op.bytes_in, op.bytes_out) for op in profile.ops] == [(32, 16), (0, 0), (32, 16), (16, 16), (16, 0)]


# ---- where ops come from


def test_phases_and_modules_of_a_training_step() -> None:
    timed = FakeRecording()
    with timed.iteration():
        timed.op("aten::to(Batch)")
        with timed.event("Net", scope=MARK):
            with timed.event("fc1", scope=MARK), timed.event("aten::linear", sequence=1):
                timed.op("aten::addmm(1)", sequence=2)
            timed.op("aten::relu(1)", sequence=3)
        timed.op("aten::loss(1)", sequence=4)
        with timed.event("autograd::engine::evaluate_function: AddmmBackward0"):
            with timed.event("AddmmBackward0", scope=BACKWARD, sequence=2):
                timed.op("aten::mm(1)")
            timed.op("aten::sum(1)")
        with timed.event("autograd::engine::evaluate_function: AccumulateGrad"):
            timed.op("aten::add_(1)")
        with timed.event("Optimizer.step#SGD.step", scope=USER):
            timed.op("aten::mul_(1)")
        timed.op("aten::item(1)")
    assert [(instance.phase, instance.module) for instance in instances(profiled(timed))] == [
        ("other", ""),
        ("forward", "fc1"),
        ("forward", "Net"),
        ("forward", ""),
        ("backward", "fc1"),
        ("backward", "fc1"),
        ("backward", "fc1"),
        ("optimizer", ""),
        ("other", ""),
    ]


def test_a_request_is_all_forward() -> None:
    timed = FakeRecording()
    with timed.iteration():
        timed.op("aten::to(Batch)")
        with timed.event("Net", scope=MARK):
            timed.op("aten::addmm(1)")
    assert {origin.phase for origin in origins(timed.recording())} == {"forward"}


# ---- FLOPs


def test_flops_are_counted_once_and_credited_to_who_works() -> None:
    timed = FakeRecording()
    with timed.iteration():
        with timed.event("aten::mm(outer)", 1, args=MM_ARGS), timed.event("aten::mm(inner)", 2, args=MM_ARGS):
            timed.op("aten::kernel(1)", 500)
        with timed.event("aten::wrapper(1)", 1):
            timed.op("aten::mm(alone)", 30, args=MM_ARGS)
            timed.op("aten::mm(again)", 0, args=MM_ARGS)
    counted = {op.signature: op.flops for op in profiled(timed).ops if op.flops}
    assert counted == {"aten::kernel(1)": 16, "aten::mm(alone)": 16, "aten::mm(again)": 16}


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("aten::mm", MM_ARGS, 16),
        ("aten::mm", None, None),
        ("aten::mm", '{"in": [null, null], "out": [null]}', None),
        ("aten::relu", MM_ARGS, None),
        ("mine::mm", MM_ARGS, None),
        ("aten::no_such_op", MM_ARGS, None),
    ],
)
def test_a_formula_that_cannot_tell_says_nothing(name: str, args: str | None, expected: int | None) -> None:
    assert flops(name, args) == expected


def described(*tensors: torch.Tensor) -> list[dict[str, list[int]]]:
    return [{"shape": list(tensor.shape)} for tensor in tensors]


@pytest.mark.parametrize("benchmark", [False, True])
def test_the_flops_of_a_cudnn_convolution_do_not_depend_on_benchmark(benchmark: bool) -> None:
    x, weight = torch.empty(2, 3, 9, 9), torch.empty(8, 3, 3, 3)
    with FlopCounterMode(display=False) as counter:
        out = torch.nn.functional.conv2d(x, weight, stride=2)
    args = {"in": [*described(x, weight), [0, 0], [2, 2], [1, 1], 1, benchmark, False, True], "out": described(out)}
    assert flops("aten::cudnn_convolution", json.dumps(args)) == counter.get_total_flops()


def test_the_flops_of_an_lstm_are_those_of_its_matrices() -> None:
    lstm = torch.nn.LSTM(4, 8)
    x = torch.empty(5, 2, 4)
    args = {"in": [described(x)[0], described(*lstm.parameters()), 4], "out": described(torch.empty(5, 2, 8))}
    assert flops("aten::_cudnn_rnn", json.dumps(args)) == 2 * 10 * (32 * 4 + 32 * 8)
    assert flops("aten::_cudnn_rnn_backward", json.dumps(args)) == 4 * 10 * (32 * 4 + 32 * 8)
