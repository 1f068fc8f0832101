"""From the rows of a sweep to what they say. Pure functions; the same rows give the same numbers.

A `Standing` is one pair under one load. Everything in it is relative to alone *without* MPS, in both MPS states: a
person who chooses MPS pays for what it costs. Requests are pooled over repetitions, and over runs of the experiment:
runs have different seeds. Each run is measured against what was alone in it, since hosts differ.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from herald.experiments import criteria, shares, sweep, sweeps
from herald.experiments.analysis import Spread
from herald.experiments.rows import Row, RowsError, of_kind
from herald.experiments.settings import SETTINGS
from herald.experiments.shares import Share

_CASE = ("pair", "device", "load", "rate_hz", "arrivals", "seconds")
_REFERENCE = ("pair", "device", "load", "rate_hz", "arrivals")  # without a seed, as `_CASE`

_Run = tuple[int, int]  # the seed of the experiment's run, the repetition in it


@dataclass(frozen=True)
class Outcome:
    """What a setting gave; one that asks for the SLO has an outcome per SLO."""

    setting: str
    slo_factor: float | None
    repetitions: int
    p99_ms: float | None = None
    p99_ratio: float | None = None  # to alone without MPS, each request to that of its own run
    met: Mapping[float, Mapping[_Run, Share]] = field(default_factory=dict)  # by SLO factor
    p99_over_slo: Mapping[float, float] = field(
        default_factory=dict
    )  # by SLO factor: 1 is an SLO just held at the 99th percentile
    steps_per_s: float | None = None  # median over repetitions
    rates: Mapping[_Run, float] = field(default_factory=dict)  # steps/s
    relative: Spread | None = None  # to training alone without MPS: median, least and most over repetitions
    over_idle: float | None = None  # that over 1 - load, each repetition by its own load: the median
    late_anyway: float | None = None  # share of requests late that would be behind a closed gate, too, by its agent

    @property
    def label(self) -> str:
        """For a table."""
        name = SETTINGS[self.setting].label
        return name if self.slo_factor is None else f"{name} {self.slo_factor:g}x"

    @property
    def attained(self) -> Mapping[float, Share]:
        """By SLO factor, over all repetitions."""
        return {factor: shares.total(mine.values()) for factor, mine in self.met.items()}

    def within(self, runs: Collection[_Run]) -> "Outcome":
        """Of these repetitions only: what is compared, attainment and training."""
        met = {f: kept for f, mine in self.met.items() if (kept := {r: s for r, s in mine.items() if r in runs})}
        return replace(self, met=met, rates={run: rate for run, rate in self.rates.items() if run in runs})

    def training_over(self, other: "Outcome") -> float | None:
        """Its training / the other's: the median over the repetitions that both have. None without such."""
        ratios = [rate / theirs for run, rate in self.rates.items() if (theirs := other.rates.get(run))]
        return float(np.median(ratios)) if ratios else None

    def judged_at(self, factor: float) -> bool:
        """Whether it has service and training, and stands for itself at this SLO."""
        return bool(factor in self.met and self.steps_per_s)


@dataclass(frozen=True)
class Standing:
    """One pair under one load."""

    pair: str
    device: str
    rate_hz: float  # in the first run
    num_runs: int
    load: float | None  # busy share of the service alone on these arrivals; None without such a run
    service: Row | None  # its time alone
    factors: tuple[float, ...]
    outcomes: tuple[Outcome, ...]
    controllers: Mapping[float, Outcome]  # Herald's by SLO factor, of each repetition in the MPS state that was chosen
    stolen: tuple[float, float] | None = None  # least and most of the cores' time in a row; rows of before say nothing
    one_of_several: bool = False  # standings of the same pair
    number: int = 1  # of those at the same load, as it is told

    @property
    def load_told(self) -> str:
        """In a word or two."""
        return f"{self.rate_hz:.3g} Hz" if self.load is None else f"load {self.load:.2f}"

    @property
    def name(self) -> str:
        """The pair, and what tells it apart."""
        number = f" #{self.number}" if self.number > 1 else ""
        return f"{self.pair} {self.load_told}{number}" if self.one_of_several else self.pair

    @property
    def title(self) -> str:
        """For a heading."""
        parts = [f"{self.pair}, {self.rate_hz:.3g} requests/s"]
        if self.load is not None:
            parts.append(f"load {self.load:.2f}")
        if self.service is not None:
            parts.append(f"device busy {self.service['busy_share']:.0%}")
        if self.num_runs > 1:
            parts.append(f"{self.num_runs} runs")
        return ", ".join(parts)

    def outcome(self, setting: str, factor: float | None = None) -> Outcome | None:
        """Of a setting; of one that asks for the SLO, at that SLO."""
        asked = factor if SETTINGS[setting].uses_slo else None
        return next((o for o in self.outcomes if (o.setting, o.slo_factor) == (setting, asked)), None)

    def attained_alone(self, factor: float) -> Share | None:
        """What share of requests meets that SLO without a trainer, without MPS."""
        alone = self.outcome(sweep.REFERENCE)
        return alone.attained.get(factor) if alone else None

    def holds(self, outcome: Outcome, factor: float) -> bool:
        """Whether an outcome holds that SLO."""
        share = outcome.attained.get(factor)
        return share is not None and share.holds(criteria.ATTAINMENT, self.attained_alone(factor))


def standings(rows: Sequence[Row], kind: str) -> list[Standing]:
    """One per pair and load, in the order in which they were first measured. Raises RowsError where rows contradict."""
    cases: dict[tuple[object, ...], list[Row]] = {}
    for row in of_kind(rows, kind):
        cases.setdefault(tuple(row["key"].get(name) for name in _CASE), []).append(row)
    services: dict[tuple[str, str], list[Row]] = {}
    for row in of_kind(rows, sweep.SERVICE_TIME_KIND):
        services.setdefault((row["workload"], row["device"]), []).append(row)
    references: dict[tuple[object, ...], dict[int, float]] = {}
    for row in of_kind(rows, sweep.SLO_KIND):
        found = references.setdefault(tuple(row.get(name) for name in _REFERENCE), {})
        found.setdefault(row["seed"], float(row["p99_ms"]))
    return _told_apart(
        _standing(
            members,
            services=services.get((str(case[0]).partition("+")[0], str(case[1])), []),
            told_p99_ms=references.get(case[: len(_REFERENCE)], {}),
        )
        for case, members in cases.items()
    )


def _told_apart(found: Iterable[Standing]) -> list[Standing]:
    standings = list(found)
    pairs = Counter(standing.pair for standing in standings)
    loads = Counter[tuple[str, str]]()
    told = []
    for standing in standings:
        loads[standing.pair, standing.load_told] += 1
        number = loads[standing.pair, standing.load_told]
        told.append(replace(standing, one_of_several=pairs[standing.pair] > 1, number=number))
    return told


def _standing(rows: Sequence[Row], *, services: Sequence[Row], told_p99_ms: Mapping[int, float]) -> Standing:
    runs = _runs(rows)
    service = services[0] if services else None
    alone, trainer = runs.get(("alone", None), {}), runs.get(("train-alone", None), {})
    seeds = {row["key"]["seed"] for row in rows}
    p99_ms = {seed: _p99_ms(mine) for seed in seeds if (mine := [row for run, row in alone.items() if run[0] == seed])}
    p99_ms |= {seed: told for seed, told in told_p99_ms.items() if seed in seeds}
    factors = tuple(sorted({factor for row in rows for factor in row["slo_factors"]}))
    order = {name: place for place, name in enumerate(SETTINGS)}
    key = rows[0]["key"]
    rate_hz = next((row["arrivals"]["rate_hz"] for row in rows), 0.0)

    def outcome(name: str, factor: float | None, mine: Mapping[_Run, Row]) -> Outcome:
        return _relative(_outcome(name, factor, mine, p99_ms, factors), mine, alone, trainer)

    outcomes = [outcome(name, factor, mine) for (name, factor), mine in runs.items()]
    controllers = {
        factor: outcome(chosen[0], factor, chosen[1])
        for factor in factors
        if (chosen := _controller(runs, factor, services)) is not None
    }
    stolen = [row["host"]["stolen"] for row in rows] if all("host" in row for row in rows) else []
    return Standing(
        pair=key["pair"],
        device=key["device"],
        rate_hz=rate_hz,
        num_runs=len(seeds),
        load=float(np.mean([_load(row) for row in alone.values()])) if alone else None,
        service=service,
        factors=factors,
        outcomes=tuple(sorted(outcomes, key=lambda o: (order[o.setting], o.slo_factor or 0))),
        controllers=controllers,
        stolen=(min(stolen), max(stolen)) if stolen else None,
    )


def _controller(
    runs: Mapping[tuple[str, float | None], Mapping[_Run, Row]], factor: float, services: Sequence[Row]
) -> tuple[str, dict[_Run, Row]] | None:
    """Herald's rows at an SLO, of each repetition in the MPS state that `mps_choice` says for its host, else in the one
    that it has; and the name of the state that most of them are in.
    """
    without, under = (runs.get((name, factor), {}) for name in sweeps.CONTROLLER)
    found: dict[_Run, Row] = {}
    names = []
    for run in sorted({*without, *under}):
        mps = run in under and (run not in without or _chose_mps(under[run], factor, services))
        found[run] = (under if mps else without)[run]
        names.append(sweeps.CONTROLLER[mps])
    return (max(names, key=names.count), found) if found else None


def _chose_mps(row: Row, factor: float, services: Sequence[Row]) -> bool:
    """Of the run's own probe; rows of before do not say which run a probe was of."""
    mine = [s for s in services if s.get("seed") == row["key"]["seed"]] or services
    return bool(mine) and sweep.chosen_mps(mine[0], row["arrivals"]["rate_hz"] * mine[0]["mean_s"], factor)


def _runs(rows: Sequence[Row]) -> dict[tuple[str, float | None], dict[_Run, Row]]:
    """By setting and SLO. Raises RowsError where two rows are of the same run: which of them counts, nobody said."""
    found: dict[tuple[str, float | None], dict[_Run, Row]] = {}
    for row in rows:
        key = row["key"]
        mine = found.setdefault((key["setting"], key["slo_factor"]), {})
        run = key["seed"], key["repetition"]
        if run in mine:
            raise RowsError(
                f"two rows of {key['pair']}, {key['setting']}, repetition {run[1]}, with seed {run[0]}: runs that are "
                f"reported together need seeds of their own (--seed); report these one by one"
            )
        mine[run] = row
    return found


def _outcome(
    name: str, factor: float | None, runs: Mapping[_Run, Row], p99_ms: Mapping[int, float], factors: Sequence[float]
) -> Outcome:
    outcome = Outcome(name, factor, len(runs))
    if all("inference" in row for row in runs.values()):
        met, over_slo = _at_slos(factor, runs, p99_ms, factors)
        outcome = replace(outcome, p99_ms=_p99_ms(runs.values()), met=met, p99_over_slo=over_slo)
        if factor is not None:
            outcome = replace(outcome, late_anyway=_late_anyway(runs, met[factor]))
    if all("training" in row for row in runs.values()):
        rates = {run: float(row["training"]["steps_per_s"]) for run, row in runs.items()}
        outcome = replace(outcome, steps_per_s=float(np.median(list(rates.values()))), rates=rates)
    return outcome


def _late_anyway(runs: Mapping[_Run, Row], met: Mapping[_Run, Share]) -> float | None:
    """At most: counters also hold the few requests before the first arrival. None where a row does not say."""
    services = {run: (row.get("herald") or {}).get("inference", {}) for run, row in runs.items()}
    if not all("missed_anyway" in service for service in services.values()):
        return None
    late: int = sum(min(share.total - share.met, services[run]["missed_anyway"]) for run, share in met.items())
    return late / max(1, shares.total(met.values()).total)


def _at_slos(
    factor: float | None, runs: Mapping[_Run, Row], p99_ms: Mapping[int, float], factors: Sequence[float]
) -> tuple[Mapping[float, Mapping[_Run, Share]], Mapping[float, float]]:
    """Attainment and p99 / SLO: at the SLO it was told, if it asked for one; else at every one, of runs that say it."""
    met, over_slo = {}, {}
    for asked in factors if factor is None else (factor,):
        slo_ms = {
            run: row["slo_ms"] if factor is not None else round(asked * p99_ms[run[0]], 3)
            for run, row in runs.items()
            if factor is not None or run[0] in p99_ms
        }
        if not slo_ms:
            continue
        latency_ms = {run: runs[run]["inference"]["latency_ms"] for run in slo_ms}
        met[asked] = {run: shares.within(latency_ms[run], slo_ms[run]) for run in slo_ms}
        ratios = [ms / slo_ms[run] for run in slo_ms for ms in latency_ms[run]]
        over_slo[asked] = float(np.percentile(ratios, 99))
    return met, over_slo


def _relative(
    outcome: Outcome, runs: Mapping[_Run, Row], alone: Mapping[_Run, Row], trainer: Mapping[_Run, Row]
) -> Outcome:
    """With what compares repetition by repetition."""
    both = {run: row for run, row in runs.items() if run in alone}
    if outcome.p99_ms is not None and both:
        p99_ms = {seed: _p99_ms(alone[run] for run in both if run[0] == seed) for seed, _ in both}
        ratios = [ms / p99_ms[seed] for (seed, _), row in both.items() for ms in row["inference"]["latency_ms"]]
        outcome = replace(outcome, p99_ratio=float(np.percentile(ratios, 99)))
    if outcome.steps_per_s is not None:
        relative = {
            run: row["training"]["steps_per_s"] / trainer[run]["training"]["steps_per_s"]
            for run, row in runs.items()
            if run in trainer
        }
        if relative:
            low, high = min(relative.values()), max(relative.values())
            outcome = replace(outcome, relative=Spread(float(np.median(list(relative.values()))), low, high))
        # A median over repetitions of one thing over a mean of another would compare different repetitions.
        rooms = {run: 1 - _load(row) for run, row in alone.items()}
        shares = [value / rooms[run] for run, value in relative.items() if rooms.get(run, 0) > 0]
        if shares:
            outcome = replace(outcome, over_idle=float(np.median(shares)))
    return outcome


def _load(alone: Row) -> float:
    """Busy share of a service alone."""
    return float(alone["inference"]["busy_s"] / alone["key"]["seconds"])


def _p99_ms(rows: Iterable[Row]) -> float:
    return float(np.percentile([ms for row in rows for ms in row["inference"]["latency_ms"]], 99))
