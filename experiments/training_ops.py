"""A worker trains, and says what its device ran when: every op with its class. Where a step ends, too.

On a CPU by Herald's recorder: an op runs where its host is. On a GPU by torch's profiler, which has the times of
kernels on the device. (The recorder has only how long an op took there, and a stream's waits at the gate count.) Both
make launches slower while they are on, by 0.5 to 2 us an op, so a launch-bound trainer runs slower than otherwise.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from herald.experiments import kineto, op_trace
from herald.hooks import learned, recorder
from herald.profiles import OpProfile

if TYPE_CHECKING:
    from herald.experiments.worker import Session

LEAD_S = 0.4  # a profiler takes a while to start
_CLOCK = "herald::clock"
_SHOWN = ("light", "heavy", "unknown")

_GATED = ("heavy", "unknown")

# Op, class, lane (thread; on a GPU the stream), begin and end in monotonic ns; whether at its end an op begins that may
# have waited at the gate: a host that waits inside another op is seen as that one's time.
Span = tuple[str, str, int, int, int, bool]
Shapes = tuple[tuple[int, ...], ...]


def measure(session: "Session", *, start_s: float, settle_s: float, seconds: float) -> dict[str, object]:
    """From ``start_s`` on the monotonic clock train for ``settle_s``, then for ``seconds`` with everything recorded.

    Answers with "steps_ns" (when each ended, from shortly before the recorded stretch) and "ops" (`Span`s).
    """
    record_s = start_s + settle_s
    if settle_s > LEAD_S:
        session.run(start_s, settle_s - LEAD_S, {})
    begin_s = time.monotonic()

    def train() -> dict[str, Any]:
        return session.run(begin_s, max(0.0, record_s + seconds - begin_s), {})

    if session.device.type == "cuda":
        done, spans = _kernels(train, all_heavy=not session.job.stats().mps)
    else:
        done, spans = _ops(session.device, train)
    return {
        "steps_ns": [round((begin_s + done_s) * 1e9) for done_s in done["done_s"]],
        "ops": [span for span in spans if span[4] > record_s * 1e9],
    }


def _ops(device: torch.device, train: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], list[Span]]:
    tape = recorder.Recorder(device)
    with tape:
        done = train()
    return done, recorded_spans(tape.result(), {op.key: op.kind for op in learned.known()})


def recorded_spans(recording: recorder.Recording, kinds: Mapping[int, str]) -> list[Span]:
    """The ops that have a class, in pieces: the time that each has of its own, on the host."""
    kind_of = [kinds.get(info.key, "none") for info in recording.signatures]
    shown = [
        place
        for place, event in enumerate(recording.events)
        if event["scope"] == recorder.FUNCTION and event["signature"] >= 0 and kind_of[event["signature"]] in _SHOWN
    ]
    inside = _innermost_inside(recording.events["parent"].tolist(), shown)
    spans: list[Span] = []
    for place in shown:
        event = recording.events[place]
        name, kind = recording.signatures[event["signature"]].name, kind_of[event["signature"]]
        begin_ns = int(event["begin_ns"])
        for inner in inside[place]:
            child = recording.events[inner]
            gated = kind_of[child["signature"]] in _GATED
            spans.append((name, kind, int(event["thread"]), begin_ns, int(child["begin_ns"]), gated))
            begin_ns = int(child["end_ns"])
        spans.append((name, kind, int(event["thread"]), begin_ns, int(event["end_ns"]), False))
    return spans


def _innermost_inside(parents: Sequence[int], shown: Sequence[int]) -> dict[int, list[int]]:
    """For each place shown: those shown whose innermost shown ancestor it is, in the order of their begin."""
    inside: dict[int, list[int]] = {place: [] for place in shown}
    for place in shown:
        ancestor = parents[place]
        while ancestor >= 0 and ancestor not in inside:
            ancestor = parents[ancestor]
        if ancestor >= 0:
            inside[ancestor].append(place)
    return inside


def _kernels(train: Callable[[], dict[str, Any]], *, all_heavy: bool) -> tuple[dict[str, Any], list[Span]]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        clock_ns = _read_clocks()
        done = train()
    found = kineto.events(profiler)
    on_host = kineto.host_events(found)
    offset_ns = clock_ns - [event.start_ns() for event in on_host if event.name() == _CLOCK][-1]
    classes = Classes(learned.known(), all_heavy=all_heavy)
    events = [op_trace.seen_event(event) for event in on_host]
    return done, kernel_spans(on_host, events, kineto.device_work(found), classes, offset_ns)


def _read_clocks() -> int:
    """The monotonic clock when the last range of the name _CLOCK begins, to some us: the profiler's is another one."""
    for _ in range(3):  # the first takes a while
        clock_ns = time.monotonic_ns()
        with torch.profiler.record_function(_CLOCK):
            pass
    return clock_ns


def kernel_spans(
    on_host: Sequence[Any], events: Sequence[op_trace.Event], work: Iterable[Any], classes: "Classes", offset_ns: int
) -> list[Span]:
    """Kernels, copies and fills with the op that launched each, and its class."""
    places = op_trace.innermost_seen(events)
    spans: list[Span] = []
    for kernel in work:
        place = places.get(kernel.linked_correlation_id())
        name = events[place].name if place is not None else kernel.name()
        kind = classes.of(name, _shapes(on_host[place])) if place is not None else "unknown"
        begin_ns = kernel.start_ns() + offset_ns
        spans.append((name, kind, int(kernel.device_resource_id()), begin_ns, begin_ns + kernel.duration_ns(), False))
    return spans


class Classes:
    """The class of an op that torch's profiler saw: by name and shapes, else by name alone.

    ``all_heavy``: without MPS light ops wait as heavy ones do.
    """

    def __init__(self, known: Iterable[OpProfile], *, all_heavy: bool) -> None:
        self._by_shapes: dict[tuple[str, Shapes], str] = {}
        times_ns: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for op in known:
            kind = "heavy" if all_heavy and op.kind == "light" else op.kind
            self._by_shapes[op.name, shapes_in(op.signature)] = kind
            times_ns[op.name][kind] += 1 + op.self_ns
        self._by_name = {name: max(of, key=lambda kind: of[kind]) for name, of in times_ns.items()}

    def of(self, name: str, shapes: Shapes) -> str:
        """light, heavy, none, or unknown."""
        return self._by_shapes.get((name, shapes)) or self._by_name.get(name, "unknown")


def shapes_in(signature: str) -> Shapes:
    """Of an op's tensors, those without dimensions left out: "aten::mm(Float[2, 3], Float[3, 4])"."""
    found = (tuple(int(n) for n in dims.split(",")) for dims in re.findall(r"\[(\d[\d, ]*)\]", signature))
    return tuple(found)


def _shapes(event: Any) -> Shapes:
    return tuple(tuple(dims) for dims in event.shapes() if dims)
