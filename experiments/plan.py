"""Which runs a colocation experiment has, and in which order. Pure: same experiment, same plan.

One MPS state after the other (an idle context outside MPS would disturb), one pair after the other, and within them
every setting once per repetition, each repetition starting at another setting. The arrivals of a repetition are the
same in all settings, so that requests can be compared one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from herald.errors import ConfigError
from herald.experiments.arrivals import Periodic, Poisson
from herald.experiments.crew import Pair
from herald.experiments.settings import Setting

_T = TypeVar("_T")


@dataclass(frozen=True)
class Colocation:
    """What is to be measured."""

    pairs: tuple[Pair, ...]
    settings: tuple[Setting, ...]
    device: str
    seconds: float
    repeats: int
    rate_hz: float
    arrivals: str  # "poisson" or "periodic"
    seed: int
    slo_ms: float | None  # None: slo_factor x the p99 of the first run alone in the same MPS state
    slo_factor: float
    profiles: Path | None = None  # folder of profiles by workload, with which trainers attach

    def profile_of(self, pair: Pair) -> str | None:
        """The file with which the trainer of ``pair`` attaches. Raises ConfigError where it is missing."""
        return existing_profile(self.profiles, pair.training) if self.profiles else None

    def arrivals_of(self, repetition: int) -> Poisson | Periodic:
        """The arrivals of a repetition."""
        if self.arrivals == "periodic":
            return Periodic(self.rate_hz)
        return Poisson(self.rate_hz, seed=self.seed + repetition)


@dataclass(frozen=True)
class RunKey:
    """What makes a run that run: a row with an equal key is not measured again."""

    pair: str
    setting: str
    repetition: int
    device: str
    seconds: float
    rate_hz: float
    arrivals: str
    seed: int


@dataclass(frozen=True)
class PlannedRun:
    """A run that is to be done."""

    key: RunKey
    pair: Pair
    setting: Setting


def profile_path(folder: Path, workload: str) -> Path:
    """Where the profile of a workload is kept, and looked for."""
    return folder / f"{workload}.profile.json"


def existing_profile(folder: Path, workload: str) -> str:
    """The absolute path of a workload's profile. Raises ConfigError where it is missing."""
    path = profile_path(folder, workload)
    if not path.exists():
        raise ConfigError(
            f"--profiles {folder}: there is no {path.name}; make it with "
            f"`herald experiment prediction --part iterations --workload {workload}`"
        )
    return str(path.resolve())


def rotated(items: Sequence[_T], by: int) -> list[_T]:
    """The same in a circle, beginning ``by`` places later."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]


def plan(experiment: Colocation) -> list[PlannedRun]:
    """All runs in the order of the module's docstring."""
    return [
        PlannedRun(_key(experiment, pair, setting, repetition), pair, setting)
        for mps in (False, True)
        for pair in experiment.pairs
        for repetition in range(experiment.repeats)
        for setting in rotated([s for s in experiment.settings if s.mps == mps], repetition)
    ]


def _key(experiment: Colocation, pair: Pair, setting: Setting, repetition: int) -> RunKey:
    return RunKey(
        pair=str(pair),
        setting=setting.name,
        repetition=repetition,
        device=experiment.device,
        seconds=experiment.seconds,
        rate_hz=experiment.rate_hz,
        arrivals=experiment.arrivals,
        seed=experiment.seed,
    )
