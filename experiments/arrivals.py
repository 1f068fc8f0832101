"""When requests arrive, as frozen data: the same value gives the same times, in every setting and every process.

Open loop: arrivals never wait for the service, and latency counts from the scheduled time. Times are seconds from
the start of a run. This module owns no clock.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from herald.config import did_you_mean
from herald.errors import ConfigError

_TRACES = Path(__file__).resolve().parent / "traces"


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


@dataclass(frozen=True)
class Bursty:
    """Calm and bursts in turns, each of exponential length, Poisson arrivals within (a Markov-modulated process)."""

    rate_hz: float  # mean of both
    seed: int
    burst: float = 5.0  # rate in a burst / mean rate
    burst_s: float = 1.0  # mean length of a burst
    share: float = 0.1  # of time in bursts

    def __post_init__(self) -> None:
        _check_rate(self.rate_hz)
        if not (0 < self.share < 1 and 1 < self.burst <= 1 / self.share):
            raise ConfigError(
                f"burst = {self.burst!r}, share = {self.share!r}: a share is between 0 and 1, a burst above 1 and at "
                "most 1 / share, so that calm has a rate of 0 or more"
            )
        if not self.burst_s > 0:
            raise ConfigError(f"burst_s = {self.burst_s!r}: a burst is longer than 0 s")

    def times_s(self, seconds: float) -> list[float]:
        """Ascending arrival times in [0, seconds); a longer run starts with the arrivals of a shorter one."""
        generator = np.random.default_rng(self.seed)
        return _modulated(self._pieces(generator), generator, seconds)

    def _pieces(self, generator: np.random.Generator) -> Iterator[tuple[float, float]]:
        calm_hz = self.rate_hz * (1 - self.share * self.burst) / (1 - self.share)
        calm_s = self.burst_s * (1 - self.share) / self.share
        in_burst = bool(generator.random() < self.share)
        end_s = 0.0
        while True:
            end_s += float(generator.exponential(self.burst_s if in_burst else calm_s))
            yield end_s, self.rate_hz * self.burst if in_burst else calm_hz
            in_burst = not in_burst


@dataclass(frozen=True)
class Steps:
    """Poisson arrivals at rates that change at given times: how fast something adapts."""

    steps: tuple[tuple[float, float], ...]  # (from, in s, the first 0; rate in 1/s, 0 for silence), ascending
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple((float(s), float(hz)) for s, hz in self.steps))  # JSON has lists only
        starts = [start_s for start_s, _ in self.steps]
        if not starts or starts[0] != 0 or any(earlier >= later for earlier, later in pairwise(starts)):
            raise ConfigError(f"steps = {self.steps!r}: the first begins at 0 s, and each later than the one before")
        for _, rate_hz in self.steps:
            if rate_hz:
                _check_rate(rate_hz)

    def times_s(self, seconds: float) -> list[float]:
        """Ascending arrival times in [0, seconds); a longer run starts with the arrivals of a shorter one."""
        ends_s = [*(start_s for start_s, _ in self.steps[1:]), float("inf")]
        pieces = ((end_s, rate_hz) for end_s, (_, rate_hz) in zip(ends_s, self.steps, strict=True))
        return _modulated(pieces, np.random.default_rng(self.seed), seconds)


@dataclass(frozen=True)
class Trace:
    """A bundled trace at a mean rate: arrivals are left out at random for less than its own, compressed for more.

    After its end it begins again.
    """

    name: str
    rate_hz: float
    seed: int

    def __post_init__(self) -> None:
        _check_rate(self.rate_hz)
        if self.name not in trace_names():
            raise ConfigError(
                f"trace = {self.name!r}: allowed are {', '.join(trace_names())}{did_you_mean(self.name, trace_names())}"
            )

    def times_s(self, seconds: float) -> list[float]:
        """Ascending arrival times in [0, seconds); a longer run starts with the arrivals of a shorter one."""
        listed_s, span_s = _read_trace(self.name)
        kept = min(1.0, self.rate_hz * span_s / len(listed_s))
        pace = max(1.0, self.rate_hz * span_s / len(listed_s))
        generator = np.random.default_rng(self.seed)
        times: list[float] = []
        begin_s = 0.0
        while begin_s < seconds:
            chosen = generator.random(len(listed_s)) < kept
            times += [begin_s + s / pace for s, keep in zip(listed_s, chosen, strict=True) if keep]
            begin_s += span_s / pace
        return [time for time in times if time < seconds]


Arrivals = Poisson | Periodic | Listed | Bursty | Steps | Trace
KINDS: Mapping[str, type[Arrivals]] = {
    "poisson": Poisson,
    "periodic": Periodic,
    "listed": Listed,
    "bursty": Bursty,
    "steps": Steps,
    "trace": Trace,
}


def parse(text: str, *, rate_hz: float, seed: int) -> Arrivals:
    """From a word of a command: "poisson", "periodic", "bursty" or "trace:NAME". Raises ConfigError."""
    kind, _, name = text.partition(":")
    if kind == "trace" and name:
        return Trace(name, rate_hz, seed)
    plain: Mapping[str, Arrivals] = {
        "poisson": Poisson(rate_hz, seed),
        "periodic": Periodic(rate_hz),
        "bursty": Bursty(rate_hz, seed),
    }
    if text not in plain:
        allowed = (*plain, *(f"trace:{trace}" for trace in trace_names()))
        raise ConfigError(f"arrivals = {text!r}: allowed are {', '.join(allowed)}{did_you_mean(text, allowed)}")
    return plain[text]


def trace_names() -> tuple[str, ...]:
    """The bundled traces: files NAME.csv in the folder `traces`."""
    return tuple(sorted(path.stem for path in _TRACES.glob("*.csv")))


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


@cache
def _read_trace(name: str) -> tuple[tuple[float, ...], float]:
    """Arrival times and the span of a bundled trace, in s."""
    lines = (_TRACES / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    span_s = next(float(line.partition("=")[2]) for line in lines if line.startswith("# span_s"))
    return tuple(float(line) for line in lines if line[:1].isdigit()), span_s


def _modulated(pieces: Iterator[tuple[float, float]], generator: np.random.Generator, seconds: float) -> list[float]:
    """Poisson arrivals in [0, seconds) at a rate that changes: ``pieces`` of (end in s, rate in 1/s).

    One exponential gap after the other is spent at the rate of the time that passes (time rescaling).
    """
    times: list[float] = []
    now_s, left = 0.0, float(generator.exponential())
    for end_s, rate_hz in pieces:
        while rate_hz and now_s + left / rate_hz < min(end_s, seconds):
            now_s += left / rate_hz
            times.append(now_s)
            left = float(generator.exponential())
        if end_s >= seconds:
            return times
        left -= (end_s - now_s) * rate_hz
        now_s = end_s
    return times
