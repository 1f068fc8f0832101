"""What a sweep measures, and in which order: pairs x settings x SLOs x repetitions at one load. Pure.

The rate follows from the service's time alone without MPS, and the SLOs from its p99 alone without MPS: one number per
pair for all settings and both MPS states. Settings that do not ask for the SLO run once per repetition and are judged
at all of them; the others run once per SLO. What holds for pairs and MPS states in `plan` holds here, too; the runs
alone without MPS of all repetitions come first, since everything is measured against them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herald.errors import ConfigError
from herald.experiments import settings
from herald.experiments.arrivals import Poisson
from herald.experiments.crew import Pair
from herald.experiments.plan import existing_profile, rotated
from herald.experiments.rows import Row
from herald.experiments.settings import MPS_CHOICES, Setting
from herald.experiments.typical import typical
from herald.scheduler import queueing
from herald.scheduler.mps_choice import mps_pays

REFERENCE = "alone"  # the setting whose p99 makes the SLOs
CONTROLLER = "herald"  # the family of which one MPS state is chosen per pair
LEARN_SEED = 1_000_000_000  # added to the seed: arrivals that no measured run has
SERVICE_TIME_KIND = "service-time"
SLO_KIND = "slo-reference"
ARRIVALS = "typical"  # rows of before had plain ones: another p99 alone
LEARNING_KIND = "learning"


@dataclass(frozen=True)
class Sweep:
    """What is to be measured."""

    kind: str  # of its rows
    pairs: tuple[Pair, ...]
    settings: tuple[Setting, ...]
    device: str
    seconds: float
    repeats: int
    seed: int
    slo_factors: tuple[float, ...]
    load: float | None = None  # rate x service time alone; None: the rate is given
    rate_hz: float | None = None
    learn_s: float = 12.0  # before the first measured run of a setting that learns
    both_states: bool = False  # the controller in both MPS states, not only in the one that is chosen
    mps: str = "both"  # the MPS states that are measured now
    profiles: Path | None = None  # folder of profiles by workload, with which trainers attach

    def rate_of(self, service_s: float) -> float:
        """Requests/s of a service that takes ``service_s`` alone."""
        if self.rate_hz is not None:
            return self.rate_hz
        assert self.load is not None, "a sweep has a load or a rate"
        return round(self.load / service_s, 4)

    def arrivals(self, rate_hz: float, service_s: float, repetition: int) -> Poisson:
        """The arrivals of a repetition, for a service that takes ``service_s`` alone: the same in all settings."""
        return typical(rate_hz, service_s, self.seconds, self.seed + repetition)

    def learning_arrivals(self, rate_hz: float) -> Poisson:
        """The same process with a seed that no repetition has."""
        return Poisson(rate_hz, seed=self.seed + LEARN_SEED)

    def profile_of(self, pair: Pair) -> str | None:
        """The file with which the trainer of ``pair`` attaches. Raises ConfigError where it is missing."""
        return existing_profile(self.profiles, pair.training) if self.profiles else None


@dataclass(frozen=True)
class SweepKey:
    """What makes a run that run: a row with an equal key is not measured again."""

    pair: str
    setting: str
    slo_factor: float | None  # None: does not depend on the SLO
    repetition: int
    device: str
    seconds: float
    load: float | None
    rate_hz: float | None  # where it is given instead of a load
    seed: int
    arrivals: str


@dataclass(frozen=True)
class SweepRun:
    """A run that is to be done."""

    key: SweepKey
    pair: Pair
    setting: Setting


def plan(sweep: Sweep, pair: Pair, *, mps: bool, service: Row | None) -> list[SweepRun]:
    """The runs of one pair in one MPS state, in order. ``service``: the row of its time alone, which decides where the
    controller runs; without it, in both states.
    """
    mine = [s for s in sweep.settings if s.mps == mps and mps in MPS_CHOICES[sweep.mps]]
    first = [s for s in mine if s.name == REFERENCE]
    others = [
        (s, factor)
        for s in mine
        if s not in first
        for factor in _factors(sweep, s)
        if s.family != CONTROLLER or service is None or mps in controller_states(sweep, service, factor)
    ]
    return [
        *(_run(sweep, pair, s, None, repetition) for s in first for repetition in range(sweep.repeats)),
        *(
            _run(sweep, pair, s, factor, repetition)
            for repetition in range(sweep.repeats)
            # A host is slow for a minute now and then: a setting has another part of every repetition.
            for s, factor in rotated(others, repetition * len(others) // sweep.repeats)
        ),
    ]


def controller_states(sweep: Sweep, service: Row, factor: float | None) -> set[bool]:
    """In which MPS states the controller runs at an SLO: as `mps_pays` says, else in the only one that there is."""
    states = {s.mps for s in sweep.settings if s.family == CONTROLLER}
    if sweep.both_states or len(states) == 1 or factor is None:
        return states
    return {chosen_mps(service, sweep.rate_of(service["mean_s"]) * service["mean_s"], factor)}


def chosen_mps(service: Row, load: float, factor: float) -> bool:
    """Whether Herald runs under MPS at an SLO of ``factor`` x the p99 alone."""
    slo = factor * queueing.alone_p99(load)
    return mps_pays(slo=slo, slowdown=service["slowdown"], load=load, busy=service["busy_share"])


def check(sweep: Sweep) -> None:
    """Raises ConfigError for what cannot be measured, before anything starts."""
    if settings.get(REFERENCE) not in sweep.settings:
        raise ConfigError(
            f"settings = {', '.join(s.name for s in sweep.settings)}: add {REFERENCE!r}: the SLOs need it"
        )
    for pair in sweep.pairs:
        sweep.profile_of(pair)


def middle(factors: Sequence[float]) -> float:
    """The SLO factor under which a controller learns."""
    return sorted(factors)[len(factors) // 2]


def case(sweep: Sweep, pair: Pair) -> dict[str, Any]:
    """What the rows of references are found by."""
    return {
        "pair": str(pair),
        "device": sweep.device,
        "load": sweep.load,
        "rate_hz": sweep.rate_hz,
        "seed": sweep.seed,
        "arrivals": ARRIVALS,
    }


def _factors(sweep: Sweep, setting: Setting) -> Sequence[float | None]:
    return sweep.slo_factors if setting.uses_slo else (None,)


def _run(sweep: Sweep, pair: Pair, setting: Setting, slo_factor: float | None, repetition: int) -> SweepRun:
    key = SweepKey(
        setting=setting.name, slo_factor=slo_factor, repetition=repetition, seconds=sweep.seconds, **case(sweep, pair)
    )
    return SweepRun(key, pair, setting)
