"""When the GPU worked for this process: a worker trains under torch's profiler, which knows when each kernel ran.

The times are written to a file, in the clock of the rest of Herald (CLOCK_MONOTONIC): CUPTI stamps kernels on the GPU
and torch's profiler gives the stamps in Unix time.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from herald.errors import ConfigError
from herald.experiments import kineto
from herald.experiments.completion import mark

if TYPE_CHECKING:
    from herald.experiments.worker import Session

RUN_AHEAD_STEPS = 2  # as in `Session.train`


def measure(session: "Session", *, seconds: float, path: str) -> dict[str, object]:
    """Train for ``seconds`` and write an array (kernels, 2) of their first and last ns to ``path``. CUDA only."""
    if session.device.type != "cuda":
        raise ConfigError(f"device = {session.device}: only a GPU says when it worked; leave --quantum out")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        offset_ns = unix_minus_monotonic_ns()
        _train(session, seconds)
    found = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in kineto.device_work(kineto.events(profiler))
    ]
    np.save(path, np.asarray(found, dtype=np.int64).reshape(-1, 2) - offset_ns)
    return {"kernels": len(found), "offset_ns": offset_ns}


def unix_minus_monotonic_ns(samples: int = 50) -> int:
    """The distance of the two clocks, from the two readings that lie closest together."""
    best_gap, best = None, 0
    for _ in range(samples):
        before = time.monotonic_ns()
        unix = time.time_ns()
        gap = time.monotonic_ns() - before
        if best_gap is None or gap < best_gap:
            best_gap, best = gap, unix - before - gap // 2
    return best


def residuals_ns(
    busy_ns: npt.NDArray[np.int64], closed_ns: npt.NDArray[np.int64], margin_ns: int = 5_000
) -> npt.NDArray[np.int64]:
    """How long the GPU still worked after each close: to the end of the last kernel that began before the gate opened.

    ``busy_ns``: (kernels, 2) first and last ns. ``closed_ns``: (closes, 2) when the gate closed, and the last moment at
    which it was closed for sure; closes outside the times of the kernels are left out, and ``margin_ns`` is what the
    two clocks may differ. A kernel that runs on past the opening makes the residual longer than the hold.
    """
    if not len(busy_ns):
        return np.zeros(0, dtype=np.int64)
    ordered = busy_ns[np.argsort(busy_ns[:, 0])]
    starts, ends = ordered[:, 0], np.maximum.accumulate(ordered[:, 1])
    inside = (closed_ns[:, 0] > starts[0]) & (closed_ns[:, 1] < starts[-1])
    closed = closed_ns[inside]
    last = np.searchsorted(starts, closed[:, 1] - margin_ns) - 1
    return np.asarray(np.maximum(0, ends[last] - closed[:, 0]))


def _train(session: "Session", seconds: float) -> None:
    in_flight = deque[Callable[[], None]]()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        session.program.step()
        in_flight.append(mark(session.device))
        if len(in_flight) > RUN_AHEAD_STEPS:
            in_flight.popleft()()
    while in_flight:
        in_flight.popleft()()
