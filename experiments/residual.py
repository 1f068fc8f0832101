"""How long a trainer's GPU still works after its gate has closed.

One worker trains and notes when its kernels ran (`busy_times`), another closes the gate at random times
(`gate_closer`); both tell times of the same clock.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from herald.experiments.busy_times import residuals_ns
from herald.experiments.process import Channel

TRACED_S = 4.0
STARTING_S = 1.0  # of the profiler
TIMEOUT_S = 120.0

Times = npt.NDArray[np.int64]


def warm_up(trainer: Channel, closer: Channel, *, domain: str, device: str, folder: Path) -> None:
    """Have the profiler load its library and the service create its context: from now on both start quickly."""
    closer.send("instrument", name="gate-closer", domain=domain, device=device, seconds=0.1, seed=0)
    _trace(trainer, 0.1, folder / "busy.npy")
    closer.receive(TIMEOUT_S)


def measured(trainer: Channel, closer: Channel, *, domain: str, device: str, seed: int, folder: Path) -> dict[str, Any]:
    """Close the gate of an attached trainer again and again; the summary of `summary`."""
    path = folder / "busy.npy"
    closer.send(
        "instrument", name="gate-closer", domain=domain, device=device, seconds=TRACED_S + STARTING_S, seed=seed
    )
    _trace(trainer, TRACED_S, path)
    closes = closer.receive(TIMEOUT_S)["closes"]
    return summary(np.load(path), np.asarray(closes, dtype=np.int64).reshape(-1, 2))


def summary(busy_ns: Times, closed_ns: Times) -> dict[str, Any]:
    """How many closes, and percentiles of what ran on after them, in us; None where there are none."""
    found = residuals_ns(busy_ns, closed_ns)
    if not len(found):
        return {"closes": 0, "p50_us": None, "p95_us": None, "p99_us": None, "max_us": None}
    p50, p95, p99, most = np.percentile(found, (50, 95, 99, 100)) / 1e3
    return {
        "closes": len(found),
        "p50_us": round(float(p50), 1),
        "p95_us": round(float(p95), 1),
        "p99_us": round(float(p99), 1),
        "max_us": round(float(most), 1),
    }


def _trace(trainer: Channel, seconds: float, path: Path) -> None:
    trainer.call("instrument", timeout_s=TIMEOUT_S, name="busy-times", seconds=seconds, path=str(path))
