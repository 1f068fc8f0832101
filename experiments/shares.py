"""The share of requests that met an SLO, and how sure that is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

_Z = 1.959964  # 95 %


@dataclass(frozen=True)
class Share:
    """``met`` of ``total`` requests."""

    met: int
    total: int

    @property
    def value(self) -> float:
        """Between 0 and 1; 1 of nothing."""
        return self.met / self.total if self.total else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval, 95 % (Wilson 1927): sound near 1, where the normal one is not."""
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.value
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def holds(self, target: float, alone: "Share | None" = None) -> bool:
        """At ``target``, or not surely below it where the service alone is not surely below it either."""
        if self.value >= target:
            return True
        return self.interval[1] >= target and (alone is None or alone.interval[1] >= target)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{percent(self.value)} {percent(low)}-{percent(high)}"


def within(latency_ms: Sequence[float], slo_ms: float) -> Share:
    """Of these requests."""
    return Share(sum(latency <= slo_ms for latency in latency_ms), len(latency_ms))


def percent(share: float) -> str:
    """In %, one digit behind the point, none of 0 and 100."""
    text = f"{share * 100:.1f}"
    return text.removesuffix(".0") if text in ("0.0", "100.0") else text


def total(shares: Iterable[Share]) -> Share:
    """Of all of them together."""
    parts = list(shares)
    return Share(sum(part.met for part in parts), sum(part.total for part in parts))
