"""When requests arrive, as frozen data: the same value gives the same times, in every setting and every process.

Open loop: arrivals never wait for the service, and latency counts from the scheduled time. Times are seconds from
the start of a run. This module owns no clock.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from herald.errors import ConfigError


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals at ``rate_hz``: exponential gaps from a seeded generator."""

    rate_hz: float
    seed: int

    def __post_init__(self) -> None:
        _check_rate(self.rate_hz)

    def times_s(self, seconds: float) -> list[float]:
        """Ascending arrival times in [0, seconds); a longer run starts with the arrivals of a shorter one."""
        generator = np.random.default_rng(self.seed)
        times: list[float] = []
        now = float(generator.exponential(1 / self.rate_hz))
        while now < seconds:
            times.append(now)
            now += float(generator.exponential(1 / self.rate_hz))
        return times


@dataclass(frozen=True)
class Periodic:
    """One arrival every ``1 / rate_hz`` seconds, the first at ``phase_s``."""

    rate_hz: float
    phase_s: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.rate_hz)
        if self.phase_s < 0:
            raise ConfigError(f"phase_s = {self.phase_s!r}: the first arrival comes at 0 s or later")

    def times_s(self, seconds: float) -> list[float]:
        """Ascending arrival times in [0, seconds)."""
        times: list[float] = []
        while (now := self.phase_s + len(times) / self.rate_hz) < seconds:
            times.append(now)
        return times


@dataclass(frozen=True)
class Listed:
    """Arrivals from a trace."""

    listed_s: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "listed_s", tuple(self.listed_s))  # JSON has lists only
        if any(earlier > later for earlier, later in zip(self.listed_s, self.listed_s[1:], strict=False)):
            raise ConfigError("listed_s is not in ascending order: sort the arrival times")

    def times_s(self, seconds: float) -> list[float]:
        """Ascending arrival times in [0, seconds)."""
        return [time for time in self.listed_s if 0 <= time < seconds]


Arrivals = Poisson | Periodic | Listed
KINDS: Mapping[str, type[Arrivals]] = {
    "poisson": Poisson,
    "periodic": Periodic,
    "listed": Listed,
}


def to_json(arrivals: Arrivals) -> dict[str, object]:
    """The value as plain JSON data, for a row or a worker."""
    kind = next(name for name, cls in KINDS.items() if isinstance(arrivals, cls))
    return {"kind": kind, **asdict(arrivals)}


def from_json(data: Mapping[str, object]) -> Arrivals:
    """The value that `to_json` wrote. Raises ConfigError for an unknown kind or field."""
    fields = dict(data)
    kind = str(fields.pop("kind", None))
    if kind not in KINDS:
        raise ConfigError(f"arrivals kind = {kind!r}: allowed are {', '.join(KINDS)}")
    try:
        return KINDS[kind](**fields)  # type: ignore[arg-type]  # checked by the constructor
    except TypeError as error:
        raise ConfigError(f"arrivals {kind}: {error}; give what `to_json` writes") from error


def _check_rate(rate_hz: float) -> None:
    if not 0 < rate_hz <= 100_000:
        raise ConfigError(f"rate_hz = {rate_hz!r}: a rate is above 0 and at most 100000 requests/s")
