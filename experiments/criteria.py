"""What Herald must show, as data: every threshold once, and whether a measured value meets it."""

from dataclasses import dataclass

P99_RATIO = 1.03  # inference p99 under Herald / alone, same MPS state
TRAINING_SHARE = 0.97  # of 1 - load
TRAINER_OVERHEAD = 1.015  # a lone trainer, step time with / without Herald
INFERENCE_OVERHEAD = 1.01  # a lone service, request time with / without Herald
HOOK_NS = 150.0  # per op event, with nothing to gate
RECOVERY_S = 1.0  # after a process was killed
DEMO_P99_RATIO = 1.3  # the demo's, on a CPU


@dataclass(frozen=True)
class Criterion:
    """One line of the verdict."""

    what: str
    measured: str
    passed: bool

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'MISS'}  {self.what}: {self.measured}"


def at_most(what: str, value: float, limit: float, unit: str = "", detail: str = "") -> Criterion:
    """``value <= limit``."""
    return Criterion(f"{what} <= {limit:.4g}{unit}", f"{value:.4g}{unit}{_bracketed(detail)}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str = "", detail: str = "") -> Criterion:
    """``value >= limit``."""
    return Criterion(f"{what} >= {limit:.4g}{unit}", f"{value:.4g}{unit}{_bracketed(detail)}", value >= limit)


def _bracketed(detail: str) -> str:
    return f" ({detail})" if detail else ""
