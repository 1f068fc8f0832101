"""A timeline as Chrome's trace format, which https://ui.perfetto.dev and chrome://tracing open.

Source: "Trace Event Format" (Google, 2016): complete events "X", counters "C", metadata "M"; times in us. What lies
inside another event of its thread is shown beneath it.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from herald.durations import format_ns
from herald.experiments.timeline import Op, Stretch, Timeline, lanes, queue_lengths

Event = dict[str, Any]

_REQUESTS, _GATE, _TRAINING, _PLANS = 1, 2, 3, 4
_STEPS, _CLASSES, _FIRST_OPS = 1, 2, 3  # threads of training
_JOINED_NS = 20_000  # ops of a class that lie closer are one stretch of it


def write(timeline: Timeline, path: Path, origin: dict[str, Any]) -> Path:
    """Write the file; ``origin`` says where it comes from."""
    document = {"traceEvents": list(events(timeline)), "displayTimeUnit": "ms", "otherData": origin}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    return path


def events(timeline: Timeline) -> Iterator[Event]:
    """All of them."""
    yield from _requests(timeline)
    yield from _gate(timeline)
    yield from _training(timeline)
    yield from _plans(timeline)


def _requests(timeline: Timeline) -> Iterator[Event]:
    yield _process(_REQUESTS, f"requests: {timeline.options.pair.inference}")
    chosen = lanes(timeline.requests)
    for lane in sorted(set(chosen)):
        yield _thread(_REQUESTS, lane + 1, f"lane {lane + 1}")
    for number, (request, lane) in enumerate(zip(timeline.requests, chosen, strict=True), start=1):
        facts = {
            "latency_ms": round(request.latency_ms, 3),
            "slo_ms": timeline.slo_ms,
            "met": request.latency_ms <= timeline.slo_ms,
        }
        missed = "" if facts["met"] else " missed its SLO"
        whole = Stretch(request.arrived_ns, request.done_ns, f"request {number}{missed}")
        served = Stretch(request.begun_ns, request.done_ns, "served")
        yield from (_lasting(each, (_REQUESTS, lane + 1), "request", timeline, facts) for each in (whole, served))
    for at_ns, length in queue_lengths(timeline.requests):
        if 0 <= at_ns <= timeline.length_ns:
            yield _counter(_REQUESTS, "queue length", at_ns, length)


def _gate(timeline: Timeline) -> Iterator[Event]:
    yield _process(_GATE, "gate of heavy ops")
    median_ns, longest_ns = timeline.gap_ns
    yield _thread(_GATE, 1, f"closed (sampled every {format_ns(median_ns)}, longest gap {format_ns(longest_ns)})")
    yield from (_lasting(stretch, (_GATE, 1), "gate", timeline) for stretch in timeline.closed)


def _training(timeline: Timeline) -> Iterator[Event]:
    yield _process(_TRAINING, f"training: {timeline.options.pair.training}")
    yield _thread(_TRAINING, _STEPS, "steps")
    yield from (_lasting(step, (_TRAINING, _STEPS), "step", timeline) for step in timeline.steps)
    yield _thread(_TRAINING, _CLASSES, "classes")
    yield from (_lasting(stretch, (_TRAINING, _CLASSES), "class", timeline) for stretch in classes(timeline.ops))
    of = "stream" if timeline.options.device == "cuda" else "thread"
    for place, lane in enumerate(sorted({op.lane for op in timeline.ops}), start=_FIRST_OPS):
        yield _thread(_TRAINING, place, f"ops, {of} {lane}")
        for op in timeline.ops:
            if op.lane == lane:
                stretch = Stretch(op.begin_ns, op.end_ns, op.name)
                yield _lasting(stretch, (_TRAINING, place), op.kind, timeline, {"class": op.kind})


def classes(ops: Sequence[Op]) -> list[Stretch]:
    """Stretches in which ops of one class follow each other, over all lanes."""
    found: list[Stretch] = []
    for op in sorted(ops, key=lambda op: op.begin_ns):
        last = found[-1] if found else None
        if last and last.name == op.kind and op.begin_ns - last.end_ns < _JOINED_NS:
            found[-1] = Stretch(last.begin_ns, max(last.end_ns, op.end_ns), op.kind)
        elif last is None or op.end_ns > last.end_ns:  # what runs inside another has that one's class here
            found.append(Stretch(max(op.begin_ns, last.end_ns if last else 0), op.end_ns, op.kind))
    return found


def _plans(timeline: Timeline) -> Iterator[Event]:
    yield _process(_PLANS, f"plans: policy {timeline.options.policy}")
    for thread, name, plans in ((1, "service", timeline.plans), (2, "trainer", timeline.trainer_plans)):
        yield _thread(_PLANS, thread, name)
        yield from (_lasting(plan, (_PLANS, thread), "plan", timeline) for plan in plans)
    if timeline.sm_total:
        for at_ns, share in timeline.sm_share:
            yield _counter(_PLANS, "SMs that training runs on", at_ns, round(share * timeline.sm_total))


def _lasting(
    stretch: Stretch, place: tuple[int, int], category: str, timeline: Timeline, facts: dict[str, Any] | None = None
) -> Event:
    """Cut to what is shown. ``place``: process and thread."""
    begin_ns, end_ns = max(0, stretch.begin_ns), min(timeline.length_ns, stretch.end_ns)
    return {
        "ph": "X",
        "name": stretch.name,
        "cat": category,
        "pid": place[0],
        "tid": place[1],
        "ts": begin_ns / 1e3,
        "dur": max(0, end_ns - begin_ns) / 1e3,
        **({"args": facts} if facts else {}),
    }


def _counter(process: int, name: str, at_ns: int, value: int) -> Event:
    return {"ph": "C", "name": name, "pid": process, "tid": 0, "ts": at_ns / 1e3, "args": {"value": value}}


def _process(process: int, name: str) -> Event:
    return {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}


def _thread(process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": name}}
