"""Numbers of one run: from what the jobs said to what a row and a table hold. Pure functions of plain data.

Latency counts from the scheduled arrival; percentiles are numpy's, linearly interpolated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PERCENTILES = (50, 95, 99)


def latencies_ms(answer: Mapping[str, Sequence[float]]) -> list[float]:
    """Of each request, from its scheduled arrival to its completion on the device."""
    return _differences_ms(answer["done_s"], answer["scheduled_s"])


def inference(answer: Mapping[str, Sequence[float]], slo_ms: float | None) -> dict[str, Any]:
    """A row's "inference": the summary of `summary`, and every request."""
    latency_ms = latencies_ms(answer)
    service_ms = _differences_ms(answer["done_s"], answer["begun_s"])
    return {
        **summary(latency_ms, slo_ms),
        "busy_s": round(sum(service_ms) / 1e3, 6),
        "scheduled_s": list(answer["scheduled_s"]),
        "latency_ms": latency_ms,
        "service_ms": service_ms,
    }


def summary(latency_ms: Sequence[float], slo_ms: float | None) -> dict[str, Any]:
    """count, p50_ms, p95_ms, p99_ms, max_ms and attainment (share within the SLO; None without an SLO)."""
    if not latency_ms:
        return {"count": 0, **{f"p{q}_ms": None for q in PERCENTILES}, "max_ms": None, "attainment": None}
    values = np.percentile(latency_ms, PERCENTILES)
    met = None if slo_ms is None else float(np.mean(np.asarray(latency_ms) <= slo_ms))
    return {
        "count": len(latency_ms),
        **{f"p{q}_ms": round(float(value), 3) for q, value in zip(PERCENTILES, values, strict=True)},
        "max_ms": round(max(latency_ms), 3),
        "attainment": met if met is None else round(met, 5),
    }


def training(answer: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """A row's "training": steps, steps_per_s until the last one ended, and the time of each step."""
    done_s = list(answer["done_s"])
    return {
        "steps": len(done_s),
        "steps_per_s": round(len(done_s) / done_s[-1], 4) if done_s else 0.0,
        "step_ms": _differences_ms(done_s, [0.0, *done_s[:-1]]),
    }


def _differences_ms(later_s: Sequence[float], earlier_s: Sequence[float]) -> list[float]:
    return [round((later - earlier) * 1e3, 3) for later, earlier in zip(later_s, earlier_s, strict=True)]
