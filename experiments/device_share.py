"""What share of a request's time alone the device works for it: near 1 is bound by the device, less by its launches.

Kernel times come from torch's profiler, request times from before it: a profiled host is slower. CUPTI stays in a
process once it was used, so this is for a process that measures nothing afterwards. On a CPU the share is 1.
"""

import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from herald.experiments import kineto
from herald.experiments.completion import mark

if TYPE_CHECKING:
    from herald.experiments.worker import Session


def measure(session: "Session", *, requests: int) -> dict[str, object]:
    """Serve ``requests`` one after the other, twice: for their times, and for those of their kernels."""
    elapsed_s = _serve(session, requests)
    if session.device.type != "cuda":
        return {"request_s": elapsed_s / requests, "busy_share": 1.0}
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        _serve(session, requests)
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in kineto.device_work(kineto.events(profiler))]
    busy_s = union_ns(np.asarray(spans, dtype=np.int64).reshape(-1, 2)) / 1e9
    return {"request_s": elapsed_s / requests, "busy_share": min(1.0, busy_s / elapsed_s)}


def union_ns(spans: npt.NDArray[np.int64]) -> int:
    """How long at least one of the spans lasted; ``spans``: (n, 2) first and last ns, in any order."""
    if not len(spans):
        return 0
    ordered = spans[np.argsort(spans[:, 0])]
    ends = np.maximum.accumulate(ordered[:, 1])
    begins = np.maximum(ordered[1:, 0], ends[:-1])
    later = np.maximum(0, ordered[1:, 1] - begins)
    return int(ordered[0, 1] - ordered[0, 0] + later.sum())


def _serve(session: "Session", requests: int) -> float:
    begun_s = time.monotonic()
    for _ in range(requests):
        session.program.step()
        mark(session.device)()
    return time.monotonic() - begun_s
