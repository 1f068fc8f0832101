"""From the rows of a sweep to what they say. Pure functions; the same rows give the same numbers.

A `Standing` is one pair under one load. Everything in it is relative to alone *without* MPS, in both MPS states: a
person who chooses MPS pays for what it costs. Requests are pooled over repetitions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log

import numpy as np

from herald.experiments import criteria, shares, sweep, sweeps
from herald.experiments.analysis import Spread
from herald.experiments.rows import Row, of_kind
from herald.experiments.settings import SETTINGS
from herald.experiments.shares import Share

_CASE = ("pair", "device", "load", "rate_hz", "seed", "arrivals", "seconds")


@dataclass(frozen=True)
class Outcome:
    """What a setting gave; one that asks for the SLO has an outcome per SLO."""

    setting: str
    slo_factor: float | None
    repetitions: int
    p99_ms: float | None = None
    p99_ratio: float | None = None  # to alone without MPS
    attained: Mapping[float, Share] | None = None  # by SLO factor
    steps_per_s: float | None = None  # median over repetitions
    relative: Spread | None = None  # to training alone without MPS: median, least and most over repetitions

    @property
    def label(self) -> str:
        """For a table."""
        name = SETTINGS[self.setting].label
        return name if self.slo_factor is None else f"{name} {self.slo_factor:g}x"

    def judged_at(self, factor: float) -> bool:
        """Whether it has service and training, and stands for itself at this SLO."""
        return bool(self.attained and factor in self.attained and self.steps_per_s)


@dataclass(frozen=True)
class Standing:
    """One pair under one load."""

    pair: str
    device: str
    rate_hz: float
    load: float | None  # busy share of the service alone on these arrivals; None without such a run
    told_load: float  # rate x mean time of a request alone
    service: Row | None  # its time alone
    p99_ms: float | None  # alone without MPS: 1 x of the SLOs
    factors: tuple[float, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def title(self) -> str:
        """For a heading."""
        parts = [f"{self.pair}, {self.rate_hz:.3g} requests/s"]
        if self.load is not None:
            parts.append(f"load {self.load:.2f}")
        if self.service is not None:
            parts.append(f"device busy {self.service['busy_share']:.0%}")
        return ", ".join(parts)

    def outcome(self, setting: str, factor: float | None = None) -> Outcome | None:
        """Of a setting; of one that asks for the SLO, at that SLO."""
        asked = factor if SETTINGS[setting].uses_slo else None
        return next((o for o in self.outcomes if (o.setting, o.slo_factor) == (setting, asked)), None)

    def controller(self, factor: float) -> Outcome | None:
        """Herald's, in the MPS state that `mps_choice` says, else in the one that was measured."""
        mps = self.service is not None and sweep.chosen_mps(self.service, self.told_load, factor)
        first, second = reversed(sweeps.CONTROLLER) if mps else sweeps.CONTROLLER
        return self.outcome(first, factor) or self.outcome(second, factor)

    def attained_alone(self, factor: float) -> Share | None:
        """What share of requests meets that SLO without a trainer, without MPS."""
        alone = self.outcome(sweep.REFERENCE)
        return alone.attained.get(factor) if alone and alone.attained else None

    def holds(self, outcome: Outcome, factor: float) -> bool:
        """Whether an outcome holds that SLO."""
        share = (outcome.attained or {}).get(factor)
        return share is not None and share.holds(criteria.ATTAINMENT, self.attained_alone(factor))


@dataclass(frozen=True)
class Rival:
    """What Herald is compared with."""

    setting: str
    steps_per_s: float
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
        return f"{self.standing.pair}, SLO {self.factor:g}x"

    @property
    def attained(self) -> Share:
        """Herald's."""
        assert self.herald.attained is not None
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

    def ratio(self, rival: Rival | None) -> float | None:
        """Herald's training / the rival's."""
        if rival is None or self.herald.steps_per_s is None:
            return None
        return self.herald.steps_per_s / rival.steps_per_s


def standings(rows: Sequence[Row], kind: str) -> list[Standing]:
    """One per pair and load, in the order in which they were first measured."""
    cases: dict[tuple[object, ...], list[Row]] = {}
    for row in of_kind(rows, kind):
        cases.setdefault(tuple(row["key"].get(name) for name in _CASE), []).append(row)
    services = {(row["workload"], row["device"]): row for row in reversed(of_kind(rows, sweep.SERVICE_TIME_KIND))}
    references = reversed(of_kind(rows, sweep.SLO_KIND))
    p99_ms = {tuple(row.get(name) for name in _CASE[:-1]): float(row["p99_ms"]) for row in references}
    return [
        _standing(
            members,
            service=services.get((str(case[0]).partition("+")[0], case[1])),
            p99_ms=p99_ms.get(case[:-1]),
        )
        for case, members in cases.items()
    ]


def compare(standing: Standing) -> list[Comparison]:
    """Herald against the best static setting, at every SLO at which Herald ran."""
    found = []
    for factor in standing.factors:
        herald = standing.controller(factor)
        if herald is not None and herald.judged_at(factor):
            static, mps = (rival(standing, names, factor) for names in (sweeps.STATICS, sweeps.PLAIN_MPS))
            found.append(Comparison(standing, factor, herald, static, mps))
    return found


def rival(standing: Standing, names: Iterable[str], factor: float) -> Rival | None:
    """The most training among those that hold the SLO; where nobody does, strict (in its better MPS state).

    None where nobody of these was measured, or there is nothing to stand in for them.
    """
    members = _judged(standing, names, factor)
    if not members:
        return None
    holding = [o for o in members if standing.holds(o, factor)]
    if holding:
        best = max(holding, key=_steps_per_s)
        return Rival(best.setting, _steps_per_s(best), holds=True)
    stand_ins = _judged(standing, sweeps.STRICT, factor)
    if not stand_ins:
        return None
    best = max(stand_ins, key=lambda o: (o.attained or {})[factor].value)
    return Rival(best.setting, _steps_per_s(best), holds=False)


def closest(standing: Standing, names: Iterable[str], factor: float) -> Outcome | None:
    """The most training among those that hold the SLO, else the one that comes closest to it."""
    members = _judged(standing, names, factor)
    holding = [o for o in members if standing.holds(o, factor)]
    if holding:
        return max(holding, key=_steps_per_s)
    return max(members, key=lambda o: (o.attained or {})[factor].value, default=None)


def geometric_mean(ratios: Sequence[float]) -> float | None:
    """None of nothing."""
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else None


def _judged(standing: Standing, names: Iterable[str], factor: float) -> list[Outcome]:
    found = (standing.outcome(name, factor) for name in names)
    return [o for o in found if o is not None and o.judged_at(factor)]


def _steps_per_s(outcome: Outcome) -> float:
    return outcome.steps_per_s or 0.0


def _standing(rows: Sequence[Row], *, service: Row | None, p99_ms: float | None) -> Standing:
    runs: dict[tuple[str, float | None], dict[int, Row]] = {}
    for row in rows:
        key = row["key"]
        runs.setdefault((key["setting"], key["slo_factor"]), {})[key["repetition"]] = row
    alone, trainer = runs.get(("alone", None), {}), runs.get(("train-alone", None), {})
    if p99_ms is None and alone:
        p99_ms = _p99_ms(alone.values())
    factors = tuple(sorted({factor for row in rows for factor in row["slo_factors"]}))
    order = {name: place for place, name in enumerate(SETTINGS)}
    key = rows[0]["key"]
    rate_hz = next((row["arrivals"]["rate_hz"] for row in rows), 0.0)
    measured = [_outcome(name, factor, mine, p99_ms, factors) for (name, factor), mine in runs.items()]
    outcomes = [_relative(outcome, runs[outcome.setting, outcome.slo_factor], alone, trainer) for outcome in measured]
    return Standing(
        pair=key["pair"],
        device=key["device"],
        rate_hz=rate_hz,
        load=float(np.mean([r["inference"]["busy_s"] / key["seconds"] for r in alone.values()])) if alone else None,
        told_load=rate_hz * service["mean_s"] if service else 0.0,
        service=service,
        p99_ms=p99_ms,
        factors=factors,
        outcomes=tuple(sorted(outcomes, key=lambda o: (order[o.setting], o.slo_factor or 0))),
    )


def _outcome(
    name: str, factor: float | None, runs: Mapping[int, Row], p99_ms: float | None, factors: Sequence[float]
) -> Outcome:
    outcome = Outcome(name, factor, len(runs))
    if all("inference" in row for row in runs.values()):
        outcome = replace(outcome, p99_ms=_p99_ms(runs.values()), attained=_attained(factor, runs, p99_ms, factors))
    if all("training" in row for row in runs.values()):
        rates = [row["training"]["steps_per_s"] for row in runs.values()]
        outcome = replace(outcome, steps_per_s=float(np.median(rates)))
    return outcome


def _attained(
    factor: float | None, runs: Mapping[int, Row], p99_ms: float | None, factors: Sequence[float]
) -> Mapping[float, Share]:
    """At the SLO it was told, if it asked for one; else at every one."""
    if factor is not None:
        return {factor: shares.total(shares.within(r["inference"]["latency_ms"], r["slo_ms"]) for r in runs.values())}
    if p99_ms is None:
        return {}
    latency_ms = [ms for row in runs.values() for ms in row["inference"]["latency_ms"]]
    return {f: shares.within(latency_ms, round(f * p99_ms, 3)) for f in factors}


def _relative(
    outcome: Outcome, runs: Mapping[int, Row], alone: Mapping[int, Row], trainer: Mapping[int, Row]
) -> Outcome:
    """With what compares repetition by repetition."""
    both = [alone[r] for r in runs if r in alone]
    if outcome.p99_ms is not None and both:
        ours = _p99_ms(row for r, row in runs.items() if r in alone)
        outcome = replace(outcome, p99_ratio=ours / _p99_ms(both))
    if outcome.steps_per_s is not None:
        ratios = [
            row["training"]["steps_per_s"] / trainer[r]["training"]["steps_per_s"]
            for r, row in runs.items()
            if r in trainer
        ]
        if ratios:
            outcome = replace(outcome, relative=Spread(float(np.median(ratios)), min(ratios), max(ratios)))
    return outcome


def _p99_ms(rows: Iterable[Row]) -> float:
    return float(np.percentile([ms for row in rows for ms in row["inference"]["latency_ms"]], 99))
