"""Made-up rows of a sweep, whose answers are known."""

from typing import Any

from herald.experiments import sweep_analysis, sweep_comparison, sweeps
from herald.experiments.rows import Row
from herald.experiments.settings import SETTINGS
from herald.experiments.sweep_analysis import Standing
from herald.experiments.sweep_comparison import Comparison

NUM_REQUESTS = 200
SECONDS = 20.0
FACTORS = (1.1, 2.0)
PAIR = "eager-decode+resnet50"


def row(
    setting: str,
    *,
    late: int = 0,
    steps_per_s: float = 0.0,
    factor: float | None = None,
    repetition: int = 0,
    kind: str = "frontier",
    pair: str = PAIR,
    seed: int = 0,
    slowness: float = 1.0,
) -> Row:
    """A run in which requests take 20 ms (0.04 of the time in all), ``late`` of them 100 ms, on a host that slow."""
    chosen = SETTINGS[setting]
    made: dict[str, Any] = {
        "kind": kind,
        "key": {
            "pair": pair,
            "setting": setting,
            "slo_factor": factor,
            "repetition": repetition,
            "device": "cuda",
            "seconds": SECONDS,
            "load": 0.4,
            "rate_hz": None,
            "seed": seed,
        },
        "slo_factors": list(FACTORS),
        "mps": chosen.mps,
        "slo_ms": slowness * 20.0 * (factor or FACTORS[-1]),
        "arrivals": {"kind": "periodic", "rate_hz": 10.0},
    }
    if "inference" in chosen.roles:
        latency_ms = [slowness * ms for ms in [100.0] * late + [20.0] * (NUM_REQUESTS - late)]
        made["inference"] = {"latency_ms": latency_ms, "busy_s": 8.0, "attainment": 1 - late / NUM_REQUESTS}
    if "training" in chosen.roles:
        made["training"] = {"steps_per_s": steps_per_s / slowness}
    return made


def references(
    busy_share: float = 1.0, slowdown: float = 9.0, pair: str = PAIR, seed: int = 0, slowness: float = 1.0
) -> list[Row]:
    case = {"pair": pair, "device": "cuda", "load": 0.4, "rate_hz": None, "seed": seed}
    return [
        {
            "kind": "service-time",
            "workload": pair.partition("+")[0],
            "device": "cuda",
            "mean_s": 0.004,
            "busy_share": busy_share,
            "slowdown": slowdown,
            "seed": seed,
        },
        {"kind": "slo-reference", **case, "p99_ms": 20.0 * slowness, "count": NUM_REQUESTS},
    ]


def frontier(
    herald_steps: float = 8.0, *, late: int = 0, mps_late: int = 20, busy_share: float = 1.0, slowdown: float = 9.0
) -> list[Row]:
    """Load 0.4. Time slicing trains most and misses; MPS at 25 % trains least and holds, where ``mps_late`` lets it."""
    return [
        *references(busy_share, slowdown),
        row("alone"),
        row("train-alone", steps_per_s=10.0),
        row("timeslice", late=50, steps_per_s=9.0),
        row("herald-strict", steps_per_s=6.0),
        row("mps", late=60, steps_per_s=9.5),
        row("mps-pct-25", late=mps_late, steps_per_s=2.0),
        *(row(name, late=late, steps_per_s=herald_steps, factor=f) for name in sweeps.CONTROLLER for f in FACTORS),
    ]


def only(found: list[Row], kind: str = "frontier") -> Standing:
    (standing,) = sweep_analysis.standings(found, kind)
    return standing


def first(found: list[Row]) -> Comparison:
    return sweep_comparison.compare(only(found))[0]
