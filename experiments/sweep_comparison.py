"""Herald against the settings that nobody adjusts: at each SLO of a pair, and of one setting for everything. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log

from herald.experiments import criteria, sweeps
from herald.experiments.settings import SETTINGS
from herald.experiments.shares import Share
from herald.experiments.sweep_analysis import Outcome, Standing
from herald.scheduler.mps_choice import GPU_BOUND


@dataclass(frozen=True)
class Rival:
    """What Herald is compared with."""

    setting: str
    ratio: float  # Herald's training / its
    holds: bool  # False: nobody of the class holds the SLO, and this is strict

    def __str__(self) -> str:
        label = SETTINGS[self.setting].label
        return label if self.holds else f"({label})"


@dataclass(frozen=True)
class Comparison:
    """Herald at one SLO of one pair."""

    standing: Standing
    factor: float
    herald: Outcome
    static: Rival | None
    mps: Rival | None

    @property
    def title(self) -> str:
        """For a line."""
        return f"{self.standing.name}, SLO {self.factor:g}x"

    @property
    def attained(self) -> Share:
        """Herald's."""
        return self.herald.attained[self.factor]

    @property
    def holds(self) -> bool:
        """Whether Herald holds the SLO."""
        return self.standing.holds(self.herald, self.factor)

    @property
    def is_feasible(self) -> bool:
        """Whether the service alone holds it."""
        alone = self.standing.attained_alone(self.factor)
        return alone is None or alone.holds(criteria.ATTAINMENT)

    @property
    def gpu_bound(self) -> bool | None:
        """Whether the GPU, not the host, is what the service waits for. None where nobody measured it."""
        service = self.standing.service
        return None if service is None else service["busy_share"] >= GPU_BOUND


@dataclass(frozen=True)
class Overall:
    """One setting for everything: what comes of it at all points (a pair under a load at an SLO)."""

    label: str
    held: int  # points whose SLO it does not surely miss
    reached: int  # points at which the share of requests in time is at the target by itself
    points: int
    training: float | None  # relative to alone, the mean over the points that it holds; None where it holds none
    useful: float  # the same over all points, 0 where the SLO is missed


def compare(standing: Standing) -> list[Comparison]:
    """Herald against the best static setting, at every SLO at which Herald ran."""
    found = []
    for factor in standing.factors:
        herald = standing.controllers.get(factor)
        if herald is not None and herald.judged_at(factor):
            static, mps = (rival(standing, names, factor, herald) for names in (sweeps.STATICS, sweeps.PLAIN_MPS))
            found.append(Comparison(standing, factor, herald, static, mps))
    return found


def overall(comparisons: Sequence[Comparison], names: Iterable[str]) -> list[Overall]:
    """Of each of these settings that was measured at every point, and of Herald, which comes last."""
    found = []
    for name in names:
        outcomes = [c.standing.outcome(name, c.factor) for c in comparisons]
        if outcomes and (measured := [o for o in outcomes if o and o.relative]) and len(measured) == len(outcomes):
            found.append(_overall(SETTINGS[name].label, measured, comparisons))
    mine = [c.herald for c in comparisons if c.herald.relative]
    if found and len(mine) == len(comparisons):
        found.append(_overall("herald", mine, comparisons))
    return found


def by_kind(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """By what the service waits for; those of which nobody knows it are of no kind."""
    kinds: dict[str, list[Comparison]] = {}
    for c in comparisons:
        if c.gpu_bound is not None:
            kinds.setdefault("GPU-bound" if c.gpu_bound else "launch-bound", []).append(c)
    return kinds


def _overall(label: str, outcomes: Sequence[Outcome], comparisons: Sequence[Comparison]) -> Overall:
    held = [(o, c) for o, c in zip(outcomes, comparisons, strict=True) if c.standing.holds(o, c.factor)]
    training = [outcome.relative.value for outcome, _ in held if outcome.relative]
    reached = [c for outcome, c in held if outcome.attained[c.factor].value >= criteria.ATTAINMENT]
    mean = sum(training) / len(training) if training else None
    return Overall(label, len(held), len(reached), len(outcomes), mean, sum(training) / len(outcomes))


def rival(standing: Standing, names: Iterable[str], factor: float, herald: Outcome) -> Rival | None:
    """The one against which Herald trains least, of those that hold the SLO; where nobody does, strict (in its better
    MPS state). Each is judged over the repetitions that both have.

    None where nobody of these was measured in such a repetition, or nothing is there to stand in for them.
    """
    members = _beside(herald, _judged(standing, names, factor), factor)
    if not members:
        return None
    holding = [Rival(o.setting, ratio, holds=True) for o, ratio in members if standing.holds(o, factor)]
    if holding:
        return min(holding, key=lambda rival: rival.ratio)
    stand_ins = _beside(herald, _judged(standing, sweeps.STRICT, factor), factor)
    if not stand_ins:
        return None
    best, ratio = max(stand_ins, key=lambda found: found[0].attained[factor].value)
    return Rival(best.setting, ratio, holds=False)


def _beside(herald: Outcome, others: Iterable[Outcome], factor: float) -> list[tuple[Outcome, float]]:
    """Those that share repetitions with Herald, restricted to these, and Herald's training over theirs."""
    found = []
    for other in others:
        shared = other.within([run for run in other.met[factor] if run in herald.rates])
        if (ratio := herald.training_over(shared)) is not None:
            found.append((shared, ratio))
    return found


def closest(standing: Standing, names: Iterable[str], factor: float) -> Outcome | None:
    """The most training among those that hold the SLO, else the one that comes closest to it."""
    members = _judged(standing, names, factor)
    holding = [o for o in members if standing.holds(o, factor)]
    if holding:
        return max(holding, key=lambda outcome: outcome.steps_per_s or 0.0)
    return max(members, key=lambda o: o.attained[factor].value, default=None)


def geometric_mean(ratios: Sequence[float]) -> float | None:
    """None of nothing."""
    if not ratios or min(ratios) <= 0:
        return 0.0 if ratios else None
    return exp(sum(map(log, ratios)) / len(ratios))


def _judged(standing: Standing, names: Iterable[str], factor: float) -> list[Outcome]:
    found = (standing.outcome(name, factor) for name in names)
    return [o for o in found if o is not None and o.judged_at(factor)]
