"""From rows of colocations to what they say. Pure functions; the same rows give the same numbers.

A `Group` is one pair in one MPS state under one load. Requests are pooled over the repetitions that a setting shares
with the run alone; since both saw the same arrivals, each request is compared with itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from herald.experiments import criteria, settings
from herald.experiments.criteria import Criterion
from herald.experiments.rows import Row

_BOOTSTRAPS = 2000
_BOOTSTRAP_SEED = 0
_CASE_FIELDS = ("pair", "device", "seconds", "rate_hz", "arrivals", "seed")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A value and the range it was seen in, or is believed in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Inference:
    """A service under a setting, pooled over repetitions."""

    count: int
    p50_ms: float
    p99_ms: float
    p99_ratio: Spread | None  # to the run alone on the same arrivals; 95 % interval of a paired bootstrap
    p99_ratio_range: tuple[float, float] | None  # over single repetitions
    difference_p50_ms: float | None  # request by request, against the run alone
    difference_p99_ms: float | None
    slo_ms: float | None
    attainment: float | None

    @property
    def p99_over_slo(self) -> float | None:
        """1 is an SLO just held at the 99th percentile."""
        return None if self.slo_ms is None else self.p99_ms / self.slo_ms


@dataclass(frozen=True)
class Training:
    """A trainer under a setting."""

    steps_per_s: float  # median over repetitions
    relative: Spread | None  # to the trainer alone: median, least and most over repetitions


@dataclass(frozen=True)
class Result:
    """What a setting gave."""

    setting: str
    repetitions: int
    inference: Inference | None
    training: Training | None


@dataclass(frozen=True)
class Group:
    """One pair in one MPS state under one load."""

    pair: str
    device: str
    rate_hz: float
    mps: bool
    load: float | None  # busy fraction of the service alone on these arrivals; None without such a run
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """For a heading."""
        state = f", {'under' if self.mps else 'without'} MPS" if self.device != "cpu" else ""
        return f"{self.pair}, {self.rate_hz:g} requests/s{state}"

    def result(self, setting: str) -> Result | None:
        """Of one setting."""
        return next((r for r in self.results if r.setting == setting), None)


def groups(rows: Iterable[Row]) -> list[Group]:
    """Groups in the order in which they were first measured."""
    cases: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        case = (*(row["key"][field] for field in _CASE_FIELDS), row["mps"])
        cases.setdefault(case, []).append(row)
    return [_group(members) for members in cases.values()]


def _group(rows: Sequence[Row]) -> Group:
    by_setting: dict[str, dict[int, Row]] = {name: {} for name in settings.SETTINGS}
    for row in rows:
        by_setting[row["key"]["setting"]][row["key"]["repetition"]] = row
    mps = bool(rows[0]["mps"])
    service = by_setting[settings.alone("inference", mps=mps).name]
    trainer = by_setting[settings.alone("training", mps=mps).name]
    key = rows[0]["key"]
    return Group(
        pair=key["pair"],
        device=key["device"],
        rate_hz=key["rate_hz"],
        mps=mps,
        load=_mean([row["inference"]["busy_s"] / key["seconds"] for row in service.values()]),
        results=tuple(
            Result(name, len(runs), _inference(runs, service), _training(runs, trainer))
            for name, runs in by_setting.items()
            if runs
        ),
    )


def _inference(runs: Mapping[int, Row], alone: Mapping[int, Row]) -> Inference | None:
    if any("inference" not in row for row in runs.values()):
        return None
    latency = _pooled(runs, runs)
    slos = [row["slo_ms"] for row in runs.values()]
    both = [repetition for repetition in runs if repetition in alone]
    ours, reference = _pooled(runs, both), _pooled(alone, both)
    difference = ours - reference
    known = all(slo is not None for slo in slos)
    return Inference(
        count=len(latency),
        p50_ms=_percentile(latency, 50),
        p99_ms=_percentile(latency, 99),
        p99_ratio=_ratio_of_p99(ours, reference) if both else None,
        p99_ratio_range=_range(
            [_percentile(_pooled(runs, [r]), 99) / _percentile(_pooled(alone, [r]), 99) for r in both]
        ),
        difference_p50_ms=_percentile(difference, 50) if both else None,
        difference_p99_ms=_percentile(difference, 99) if both else None,
        slo_ms=slos[0] if known else None,
        attainment=float(np.mean(_attained(runs))) if known else None,
    )


def _training(runs: Mapping[int, Row], alone: Mapping[int, Row]) -> Training | None:
    if any("training" not in row for row in runs.values()):
        return None
    rates = {repetition: row["training"]["steps_per_s"] for repetition, row in runs.items()}
    relative = [rate / alone[r]["training"]["steps_per_s"] for r, rate in rates.items() if r in alone]
    spread = Spread(float(np.median(relative)), min(relative), max(relative)) if relative else None
    return Training(float(np.median(list(rates.values()))), spread)


def _ratio_of_p99(ours: Array, reference: Array) -> Spread:
    """Pooled p99 against pooled p99; requests are resampled in pairs, since they saw the same arrivals."""
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    picks = generator.integers(len(ours), size=(_BOOTSTRAPS, len(ours)))
    ratios = np.percentile(ours[picks], 99, axis=1) / np.percentile(reference[picks], 99, axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Spread(_percentile(ours, 99) / _percentile(reference, 99), float(low), float(high))


def _attained(runs: Mapping[int, Row]) -> Array:
    return np.concatenate([np.asarray(r["inference"]["latency_ms"]) <= r["slo_ms"] for r in runs.values()])


def _pooled(runs: Mapping[int, Row], repetitions: Iterable[int]) -> Array:
    parts = [np.asarray(runs[r]["inference"]["latency_ms"], dtype=np.float64) for r in sorted(repetitions)]
    return np.concatenate(parts) if parts else np.empty(0)


def _percentile(values: Array, q: float) -> float:
    return float(np.percentile(values, q))


def _range(values: Sequence[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# The verdict --------------------------------------------------------------------------------------------------------


def verdict(all_groups: Sequence[Group]) -> list[Criterion]:
    """The criteria for policy strict, for every group that has what they need."""
    return [criterion for group in all_groups for criterion in _group_verdict(group, all_groups)]


def _group_verdict(group: Group, all_groups: Sequence[Group]) -> list[Criterion]:
    herald = group.result("herald-strict-mps" if group.mps else "herald-strict")
    if herald is None or herald.inference is None or herald.training is None:
        return []
    lines: list[Criterion] = []
    ratio = herald.inference.p99_ratio
    if ratio is not None:
        detail = f"95 % {ratio.low:.3f} to {ratio.high:.3f}, {herald.inference.count} requests"
        lines.append(criteria.at_most(f"{group.title}: p99 / alone", ratio.value, criteria.P99_RATIO, detail=detail))
    relative = herald.training.relative
    if relative is not None and group.load is not None:
        least = criteria.TRAINING_SHARE * (1 - group.load)
        detail = f"{relative.low:.3f} to {relative.high:.3f}, 1 - load = {1 - group.load:.3f}"
        lines.append(criteria.at_least(f"{group.title}: training / alone", relative.value, least, detail=detail))
    lines += _against_mps(group, herald.training, all_groups)
    return lines + _against_all_heavy(group, herald)


def _against_all_heavy(group: Group, herald: Result) -> list[Criterion]:
    """More training than where every op is heavy, at the same p99."""
    heavy = group.result("herald-all-heavy-mps")
    if heavy is None or not (heavy.training and heavy.inference and herald.training and herald.inference):
        return []
    gain = herald.training.steps_per_s / heavy.training.steps_per_s
    p99 = f"p99 {herald.inference.p99_ms:.2f} and {heavy.inference.p99_ms:.2f} ms"
    return [
        Criterion(
            what=f"{group.title}: training with classes / with every op heavy > 1, p99 <= {criteria.P99_RATIO} x alone",
            measured=f"{gain:.4f}, {p99}",
            passed=gain > 1 and _holds(herald),
        )
    ]


def _against_mps(group: Group, herald: Training, all_groups: Sequence[Group]) -> list[Criterion]:
    """Better than every setting of plain MPS that holds the same p99: the poster's rival in its strongest form."""
    rivals = [
        result
        for other in all_groups
        if other.mps and (other.pair, other.rate_hz, other.device) == (group.pair, group.rate_hz, group.device)
        for result in other.results
        if settings.SETTINGS[result.setting].policy is None and result.inference and result.training
    ]
    if not rivals:
        return []
    holding = [(r.training.steps_per_s, r.setting) for r in rivals if r.training and _holds(r)]
    best = max(holding, default=None)
    against = f"best {best[0]:.2f} ({best[1]})" if best else f"none of {len(rivals)} holds it"
    return [
        Criterion(
            what=f"{group.title}: more training than every MPS setting with p99 <= {criteria.P99_RATIO} x alone",
            measured=f"{herald.steps_per_s:.2f} steps/s, {against}",
            passed=best is None or herald.steps_per_s > best[0],
        )
    ]


def _holds(result: Result) -> bool:
    ratio = result.inference.p99_ratio if result.inference else None
    return ratio is not None and ratio.value <= criteria.P99_RATIO
