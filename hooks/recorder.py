"""The op recorder: every op event of this process while it is on, with host and device times.

What it records and how is in csrc/recorder.hpp; this gives it to Python as arrays. It decides nothing.
"""

import ctypes
import os
import threading
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from herald.errors import ConfigError
from herald.hooks import launches, native

OVERWRITTEN = 2  # TENSOR's "written": given as `out=`, what it held is not looked at
FUNCTION, BACKWARD, USER, MARK = range(4)  # scopes of events; BACKWARD: an autograd node, USER: `record_function`

# One event: csrc/recorder.hpp, RecordedEvent.
EVENT = np.dtype(
    [
        ("signature", "i4"),  # index into Recording.signatures; -1: beyond the most that are kept
        ("parent", "i4"),  # index of the enclosing event of the same thread; -1: none
        ("thread", "u4"),  # numbered in the order of first sight
        ("scope", "u1"),
        ("device", "i1"),  # of its first tensor on the recorder's kind of device; -1: none, or no device op
        ("timed", "u2"),  # CUDA: 1 where self_ns was measured, which nothing is that goes into a graph
        ("begin_ns", "i8"),  # host, CLOCK_MONOTONIC
        ("end_ns", "i8"),
        ("self_ns", "i8"),  # device time of its own; CPU: wall time without the events inside
        ("sequence", "i8"),  # autograd's: an op and its backward node have the same; -1: none
        ("first_tensor", "u4"),  # in detail: inputs, then outputs, in Recording.tensors
        ("num_in", "u2"),
        ("num_out", "u2"),
    ]
)
# One tensor of an event: csrc/recorder.hpp, RecordedTensor.
TENSOR = np.dtype(
    [
        ("storage", "u8"),  # identity of the memory, unique within a recording
        ("bytes", "u8"),  # of the view
        ("storage_bytes", "u8"),
        ("argument", "i4"),  # place among the op's inputs; -1: an output
        ("written", "u4"),  # 1: an output, or an input that the op's schema says is written; 2: OVERWRITTEN
    ]
)


@dataclass(frozen=True)
class SignatureInfo:
    """What an event's signature says."""

    key: int
    name: str  # "aten::mm"
    text: str  # "aten::mm(Float[2, 3], Float[3, 4])"; the name alone for what has no device time of its own
    numel: int  # elements of all tensor inputs
    args: str | None = None  # in detail: JSON of {"in": [...], "out": [...]}, see csrc/tensors.hpp


@dataclass(frozen=True)
class Recording:
    """What was recorded: events of all threads in the order in which they began."""

    events: np.ndarray[Any, np.dtype[np.void]]  # of EVENT
    tensors: np.ndarray[Any, np.dtype[np.void]] = field(default_factory=lambda: np.zeros(0, TENSOR))
    signatures: tuple[SignatureInfo, ...] = ()


class Recorder:
    """Records while it is entered; one at a time in a process.

    ``device``: CUDA ops get device times of that GPU, by events on their streams; on CPU self time is wall time.
    ``detail``: tensors and arguments of every event, too, at several times the cost.

    Entering raises ConfigError where another recording runs or the driver lacks something.
    """

    def __init__(self, device: torch.device, *, detail: bool = False) -> None:
        self._device = device
        self._detail = detail
        self._number = 0  # of the recording, to the native hook
        self._result: Recording | None = None

    def mark_begin(self, text: str) -> None:
        """Begin a range of this thread: an event of scope MARK."""
        native.hook().herald_record_mark_begin(text.encode())

    def mark_end(self) -> None:
        """End the innermost range that `mark_begin` began on this thread."""
        native.hook().herald_record_mark_end()

    def result(self) -> Recording:
        """What was recorded, once the recorder was left. Waits for the device. Valid also after later recordings.

        Raises ConfigError where it is asked for too early, or for the first time after a later recording has begun.
        """
        if self._result is None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            with _turn:
                if not native.hook().herald_record_finish(self._number):
                    raise ConfigError(
                        "there is nothing to read of this recording: it runs still, or another one has begun since, "
                        "and the hook keeps only the last; call result() between the two"
                    )
                self._result = _read(self._detail)
        return self._result

    def __enter__(self) -> Self:
        error = ctypes.create_string_buffer(native.ERROR_BYTES)
        index = -1
        if self._device.type == "cuda":
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
        with _turn:
            number = native.hook().herald_record_start(index, self._detail, error, native.ERROR_BYTES)
        if not number:
            raise ConfigError(f"ops cannot be recorded: {error.value.decode()}")
        self._number, self._result = number, None
        try:
            launches.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        launches.stop()
        self._stop()

    @staticmethod
    def _stop() -> None:
        with _turn:
            native.hook().herald_record_stop()


_turn = threading.Lock()  # the hook keeps one recording: whoever starts, stops or reads one is alone


def _new_turn() -> None:
    global _turn  # noqa: PLW0603 -- a thread of the parent's may have held it when it forked
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_new_turn)


def _read(detail: bool) -> Recording:
    events, tensors = _merged([_tape(i) for i in range(native.hook().herald_record_tapes())])
    signatures = tuple(_signatures(detail))
    if detail:
        _mark_written(events, tensors, signatures)
    return Recording(events, tensors, signatures)


def _tape(index: int) -> tuple[Any, Any]:
    """Copies of one thread's events and tensors."""
    first_event, first_tensor = ctypes.c_void_p(), ctypes.c_void_p()
    num_events, num_tensors = ctypes.c_uint64(), ctypes.c_uint64()
    native.hook().herald_record_tape(index, first_event, num_events, first_tensor, num_tensors)
    return _copied(first_event, num_events.value, EVENT), _copied(first_tensor, num_tensors.value, TENSOR)


def _copied(address: ctypes.c_void_p, count: int, of: np.dtype[Any]) -> Any:
    if not count or address.value is None:
        return np.zeros(0, of)
    memory = bytearray(ctypes.string_at(address.value, count * of.itemsize))  # writable, and ours
    return np.frombuffer(memory, of)


def _merged(tapes: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """All threads' events in one order; parents and tensors keep pointing at what they pointed at."""
    event_base = tensor_base = 0
    for events, tensors in tapes:
        events["parent"] = np.where(events["parent"] < 0, -1, events["parent"] + event_base)
        events["first_tensor"] += tensor_base
        event_base += len(events)
        tensor_base += len(tensors)
    if not tapes:
        return np.zeros(0, EVENT), np.zeros(0, TENSOR)
    events = np.concatenate([events for events, _ in tapes])
    order = np.argsort(events["begin_ns"], kind="stable")
    place = np.empty(len(order), "i4")
    place[order] = np.arange(len(order), dtype="i4")
    events = events[order]
    events["parent"] = np.where(events["parent"] < 0, -1, place[events["parent"]])
    return events, np.concatenate([tensors for _, tensors in tapes])


def _signatures(detail: bool) -> list[SignatureInfo]:
    hook = native.hook()
    key, numel = ctypes.c_uint64(), ctypes.c_uint64()
    text = ctypes.create_string_buffer(native.TEXT_BYTES)
    found: list[SignatureInfo] = []
    while hook.herald_record_signature(len(found), key, numel, text, native.TEXT_BYTES):
        readable = text.value.decode(errors="replace")
        args = hook.herald_record_args(key.value) if detail else None
        name = readable.split("(", 1)[0]
        found.append(SignatureInfo(key.value, name, readable, numel.value, args.decode() if args else None))
    return found


def _mark_written(events: Any, tensors: Any, signatures: tuple[SignatureInfo, ...]) -> None:
    """An input is written where the op's schema says so, an output unless it is a view of what was only read."""
    writers = [_written_arguments(info.name) for info in signatures]
    for event in events[(events["num_in"] + events["num_out"] > 0) & (events["signature"] >= 0)]:
        first, middle = int(event["first_tensor"]), int(event["first_tensor"]) + int(event["num_in"])
        inputs, outputs = tensors[first:middle], tensors[middle : middle + int(event["num_out"])]
        in_place, out = writers[event["signature"]]
        given_back = np.isin(inputs["storage"], outputs["storage"])
        inputs["written"] = np.isin(inputs["argument"], in_place)
        inputs["written"][given_back & np.isin(inputs["argument"], out)] = OVERWRITTEN
        read_only = inputs["storage"][inputs["written"] == 0]
        outputs["written"] = ~np.isin(outputs["storage"], read_only)


@cache
def _written_arguments(name: str) -> tuple[list[int], list[int]]:
    """Places of the arguments that an op writes, by the schemas of its overloads: in place, and those of `out=`.

    Which overload ran is not recorded; but only one with an `out` gives back what it was given at that place.
    """
    in_place: set[int] = set()
    out: set[int] = set()
    try:
        schemas = torch._C._jit_get_schemas_for_operator(name)
    except RuntimeError:
        schemas = []
    for schema in schemas:
        for place, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                (out if argument.is_out else in_place).add(place)
    return sorted(in_place), sorted(out)
