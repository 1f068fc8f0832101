"""The truth about coverage: which of a worker's kernels were launched inside an event that Herald's hook sees.

torch's profiler links each kernel to the innermost event around its launch, events that Herald announces included (they
are record functions, too). The hook can hold back what lies inside an op event, at its begin; a kernel outside of any
runs whenever it likes. Nothing here asks Herald.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from herald.experiments import kineto
from herald.experiments.completion import mark

if TYPE_CHECKING:
    from herald.experiments.worker import Session

_FUNCTION = 0  # at::RecordScope::FUNCTION
_MOST_NAMED = 3


@dataclass(frozen=True)
class Event:
    """A record function of torch, as the profiler saw it."""

    name: str
    thread: int
    begin_ns: int
    end_ns: int
    scope: int
    correlation: int

    @property
    def is_seen(self) -> bool:
        """Whether the hook may hold back what follows: ops have a namespace, autograd's nodes and user ranges none."""
        return self.scope == _FUNCTION and "::" in self.name and not self.name.startswith("autograd::")


@dataclass(frozen=True)
class Kernel:
    """Work of the GPU: a kernel, a copy, a fill."""

    name: str
    duration_ns: int
    correlation: int  # of the innermost event around its launch; 0: none


def measure(session: "Session", *, steps: int) -> dict[str, object]:
    """Trace ``steps`` steps. Without a GPU there is nothing to see: all None."""
    if session.device.type != "cuda":
        return {"kernels": 0, "covered": None, "longest_us": None, "longest": None, "uncovered": []}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        session.train(steps)
        mark(session.device)()
    found = kineto.events(profiler)
    return told([seen_event(e) for e in kineto.host_events(found)], [_kernel(e) for e in kineto.device_work(found)])


def seen_event(found: Any) -> Event:
    """What kineto says of an event of the host."""
    begin_ns = found.start_ns()
    return Event(
        found.name(),
        found.start_thread_id(),
        begin_ns,
        begin_ns + found.duration_ns(),
        found.scope(),
        found.correlation_id(),
    )


def _kernel(found: Any) -> Kernel:
    return Kernel(found.name(), found.duration_ns(), found.linked_correlation_id())


def told(events: Sequence[Event], kernels: Sequence[Kernel]) -> dict[str, object]:
    """Share of kernel time inside events that are seen; the most of it that one event let through; what is outside."""
    seen = innermost_seen(events)
    inside_ns: dict[int, int] = defaultdict(int)
    outside_ns: Counter[str] = Counter()
    for kernel in kernels:
        place = seen.get(kernel.correlation)
        if place is None:
            outside_ns[kernel.name] += kernel.duration_ns
        else:
            inside_ns[place] += kernel.duration_ns
    total_ns = sum(inside_ns.values()) + sum(outside_ns.values())
    longest = max(inside_ns, key=lambda place: inside_ns[place], default=None)
    return {
        "kernels": len(kernels),
        "covered": sum(inside_ns.values()) / total_ns if total_ns else None,
        "longest_us": None if longest is None else round(inside_ns[longest] / 1e3, 1),
        "longest": None if longest is None else events[longest].name,
        "uncovered": [[name[:100], round(ns / 1e3, 1)] for name, ns in outside_ns.most_common(_MOST_NAMED)],
    }


def innermost_seen(events: Sequence[Event]) -> dict[int, int]:
    """By correlation of every event: the place in ``events`` of the innermost seen one around it, itself included."""
    places = range(len(events))
    innermost: dict[int, int] = {}
    open_events: dict[int, list[tuple[int, int | None]]] = defaultdict(list)  # by thread: (end, innermost seen)
    for place in sorted(places, key=lambda p: (events[p].begin_ns, -events[p].end_ns)):
        event = events[place]
        stack = open_events[event.thread]
        while stack and stack[-1][0] <= event.begin_ns:
            stack.pop()
        outer = stack[-1][1] if stack else None
        here = place if event.is_seen else outer
        stack.append((event.end_ns, here))
        if here is not None:
            innermost[event.correlation] = here
    return innermost
