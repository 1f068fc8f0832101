"""What jobs do to each other, as measured or made up: frozen data and look-ups, in shares of the speed alone."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from herald.errors import ConfigError


@dataclass(frozen=True)
class Beside:
    """A service and a trainer at the same time, with the gate open."""

    inflation: float  # time of a request / alone
    rate: float  # of the trainer / alone with all SMs

    def __post_init__(self) -> None:
        if not (self.inflation >= 1 and 0 < self.rate <= 1):
            raise ConfigError(f"{self}: an inflation is 1 or more, a rate above 0 and at most 1")


@dataclass(frozen=True)
class Interference:
    """By kinds of jobs and by the SMs that the trainer is kept to (0: all of them).

    Between two measured numbers of SMs lies a straight line; beyond them the nearest holds. A pair that was not
    measured takes turns: a trainer that keeps the device busy halves both.
    """

    beside: Mapping[tuple[str, str], Mapping[int, Beside]] = field(default_factory=lambda: MappingProxyType({}))
    idle: Mapping[str, Mapping[int, float]] = field(default_factory=lambda: MappingProxyType({}))  # no request open

    def idle_rate(self, trainer: str, sm_count: int, sm_total: int) -> float:
        """Speed of a trainer on ``sm_count`` SMs with no request open. Not measured: in proportion to them."""
        measured = self.idle.get(trainer)
        if measured:
            return _between(measured, sm_count, sm_total)
        return sm_count / sm_total if sm_count and sm_total else 1.0

    def of(self, service: str, trainer: str, sm_count: int, sm_total: int, duty: float) -> Beside:
        """Both at the same time; ``duty`` is the share of the device that the trainer uses alone."""
        measured = self.beside.get((service, trainer))
        if not measured:
            idle = self.idle_rate(trainer, sm_count, sm_total)
            return Beside(1 + duty, idle / 2)
        return Beside(
            _between({k: b.inflation for k, b in measured.items()}, sm_count, sm_total),
            _between({k: b.rate for k, b in measured.items()}, sm_count, sm_total),
        )


NO_MEASUREMENTS = Interference()


def _between(measured: Mapping[int, float], sm_count: int, sm_total: int) -> float:
    """The value at a number of SMs, by straight lines between measured ones; 0 SMs stands for all."""
    points = sorted((count or sm_total, value) for count, value in measured.items())
    counts = [count for count, _ in points]
    at = sm_count or sm_total
    right = bisect_left(counts, at)
    if right == len(points):
        return points[-1][1]
    if counts[right] == at or right == 0:
        return points[right][1]
    (low, low_value), (high, high_value) = points[right - 1], points[right]
    return low_value + (high_value - low_value) * (at - low) / (high - low)
