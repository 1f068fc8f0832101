"""From measured harms to the rule that predicts them, and how well it predicts ops that it has not seen.

The rule's weights are the non-negative ones with the least relative errors: what matters is to be right near the
bound, where harms are small. Seen and unseen are told apart by whole models and whole kinds of ops, never by rows. The
margin and the quick rule come from the same data; nothing here measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from herald.classify import Limits, QuickPoint, Rule, Terms, terms
from herald.errors import HeraldError
from herald.experiments.calibration import nnls
from herald.experiments.calibration.nnls import Floats
from herald.experiments.calibration.samples import WORST_OF, Sample

BOUNDS = (5.0, 7.5, 10.0, 15.0, 20.0, 25.0)  # for which the margin holds
TOLERATED = 2.0  # a light op's harm over the bound, at most
LEAST_SAMPLES = 20
_HOLD_LIMITS_NS = (5_000, 10_000, 20_000, 30_000, 50_000)
_LEAST_HARM = 3.0  # percent: less is noise, and its relative error without meaning
_QUICK_NS = (1_000, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000, 7_500, 10_000, 15_000, 20_000)
_QUICK_NUMELS = tuple(1 << exponent for exponent in range(10, 25))
_LEAST_QUICK = 5  # ops that are so short and small, for the quick rule to believe it


class FitError(HeraldError):
    """There is too little to fit a rule to."""


@dataclass(frozen=True)
class Prediction:
    """A sample, predicted by the rest of the samples."""

    sample: Sample
    harm: float


@dataclass(frozen=True)
class Fit:
    """A rule and what it is worth."""

    rule: Rule
    unseen: Sequence[Prediction]
    unseen_by_kind: Sequence[Prediction]  # of three rules, one per kind of request, the worst


def fit(samples: Sequence[Sample], device: str, limits: Limits) -> Fit:
    """Raises FitError for fewer than LEAST_SAMPLES samples."""
    if len(samples) < LEAST_SAMPLES or len({sample.group for sample in samples}) < 2:
        raise FitError(
            f"{len(samples)} ops were measured under MPS with their kernels, {LEAST_SAMPLES} of several kinds are "
            "needed: calibrate on a GPU with --mps on, without --only, and give it time with --limit"
        )
    harms = np.array([sample.harm for sample in samples])
    designs = {limit_ns: _design(samples, limits, limit_ns) for limit_ns in _HOLD_LIMITS_NS}
    unseen = {limit_ns: _unseen(design, harms, samples) for limit_ns, design in designs.items()}
    limit_ns = max(_HOLD_LIMITS_NS, key=lambda limit_ns: spearman(harms, unseen[limit_ns]))
    by_kind = [
        _unseen(designs[limit_ns], np.array([sample.harms[place] for sample in samples]), samples)
        for place in range(len(WORST_OF))
    ]
    weights = Terms(*(round(float(weight), 4) for weight in _weights(designs[limit_ns], harms)))
    rule = Rule(
        device,
        limits,
        **weights._asdict(),
        hold_limit_ns=limit_ns,
        margin=1.0,
        quick=quick_points(samples),
    )
    found = _predictions(samples, unseen[limit_ns])
    return Fit(replace(rule, margin=margin(found)), found, _predictions(samples, np.max(by_kind, axis=0)))


def error(measured: Floats, predicted: Floats) -> float:
    """Root mean square of log(measured / predicted); harms below the noise count as the noise."""
    return float(np.sqrt(np.mean(np.log(np.maximum(measured, 1) / np.maximum(predicted, 1)) ** 2)))


def spearman(one: Sequence[float] | Floats, other: Sequence[float] | Floats) -> float:
    """Rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def margin(predictions: Sequence[Prediction]) -> float:
    """The least factor, rounded up, by which no unseen op is light whose harm is over TOLERATED x a bound of BOUNDS."""
    needed = [
        bound / each.harm
        for each in predictions
        for bound in BOUNDS
        if each.sample.harm > TOLERATED * bound and each.harm > 0
    ]
    return float(np.ceil(20 * max([1.0, *needed])) / 20)


def quick_points(samples: Sequence[Sample]) -> tuple[QuickPoint, ...]:
    """For each bound, the time and size below which there are most ops, none of them over the bound."""
    times_ns, numels, harms = (
        np.array(values) for values in zip(*((s.op.self_ns, s.op.numel, s.harm) for s in samples), strict=True)
    )
    points: list[QuickPoint] = []
    for bound in (*BOUNDS, 30.0, 50.0):
        best = (_LEAST_QUICK - 1, 0, 0)
        for time_ns in _QUICK_NS:
            for numel in _QUICK_NUMELS:
                below = (times_ns <= time_ns) & (numels <= numel)
                if below.any() and harms[below].max() <= bound and below.sum() > best[0]:
                    best = (int(below.sum()), time_ns, numel)
        if best[1]:
            points.append(QuickPoint(bound, *best[1:]))
    return tuple(points)


def _design(samples: Sequence[Sample], limits: Limits, hold_limit_ns: int) -> Floats:
    return np.array([terms(sample.op, limits, hold_limit_ns) for sample in samples])


def _weights(design: Floats, harms: Floats) -> Floats:
    scale = 1 / np.maximum(harms, _LEAST_HARM)
    return nnls.solve(design * scale[:, None], harms * scale)


def _unseen(design: Floats, harms: Floats, samples: Sequence[Sample]) -> Floats:
    """Each harm as those of the other groups predict it."""
    groups = np.array([sample.group for sample in samples])
    predicted = np.zeros(len(samples))
    for group in sorted(set(groups)):
        left_out = groups == group
        predicted[left_out] = design[left_out] @ _weights(design[~left_out], harms[~left_out])
    return predicted


def _predictions(samples: Sequence[Sample], harms: Floats) -> list[Prediction]:
    return [Prediction(sample, float(harm)) for sample, harm in zip(samples, harms, strict=True)]


def _ranks(values: Sequence[float] | Floats) -> Floats:
    _, places, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[places]
    return ranks
