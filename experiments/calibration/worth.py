"""What a fitted rule is worth, for people: numbers for its file, and lines of 80 columns."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from herald.experiments.calibration import fit
from herald.experiments.calibration.fit import BOUNDS, Fit, Prediction
from herald.experiments.calibration.nnls import Floats
from herald.experiments.rows import Row

_NUM_WORST = 5
_NAME_WIDTH = 56


def of(result: Fit, found: Sequence[Row]) -> dict[str, Any]:
    """Of ops whose model or kind was left out when they were predicted."""
    return {
        "ops": len(result.unseen),
        "groups": len({each.sample.group for each in result.unseen}),
        "spearman": _spearman(result.unseen),
        "log_error": _error(result.unseen),
        "one_rule_per_kind_of_request": {
            "spearman": _spearman(result.unseen_by_kind),
            "log_error": _error(result.unseen_by_kind),
        },
        "bounds": [_at(bound, result) for bound in BOUNDS],
        "worst": [
            {"op": each.sample.label, "measured": each.sample.harm, "predicted": round(each.harm, 1)}
            for each in worst(result.unseen)
        ],
        "without_mps": without_mps(found),
    }


def worst(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those most under-predicted among the ops that a bound of `BOUNDS` could be about."""
    near = [each for each in predictions if each.harm < max(BOUNDS) and each.harm < each.sample.harm]
    return sorted(near, key=lambda each: each.harm / each.sample.harm)[:_NUM_WORST]


def without_mps(found: Sequence[Row]) -> dict[str, Any] | None:
    """The least and the median harm where processes take turns: why no op is light there."""
    harms = [
        max(probe["mean"] for probe in row["probes"].values()) for row in found if not row["mps"] and row.get("probes")
    ]
    return {"ops": len(harms), "least": min(harms), "median": round(median(harms), 1)} if harms else None


def origin(found: Sequence[Row]) -> dict[str, Any]:
    """Where the rows come from."""
    dates = sorted(row["provenance"]["date"] for row in found)
    last = found[-1]["provenance"]
    return {
        "count": len(found),
        "from": dates[0],
        "to": dates[-1],
        "herald": last["herald"],
        "commit": last["commit"],
        "machine": last["machine"],
        "torch": found[-1]["device"]["torch"],
    }


def lines(result: Fit, found: Sequence[Row]) -> Iterator[str]:
    """The summary."""
    rule, told = result.rule, of(result, found)
    yield ""
    yield f"harm in % = {rule.runs:.3g} + {rule.hold:.3g} hold + {rule.drain:.3g} drain + {rule.traffic:.3g} traffic"
    yield f"(hold: SM share x time up to {rule.hold_limit_ns / 1000:g} us; drain: time until an SM has room)"
    yield f"{told['ops']} ops in {told['groups']} groups, each group predicted by the others:"
    factor = np.exp(told["log_error"])
    yield f"  rank correlation {told['spearman']:.3f}, off by x {factor:.2f}, margin {rule.margin:.2f}"
    by_kind = told["one_rule_per_kind_of_request"]
    yield (
        f"  (one rule per kind of request: {by_kind['spearman']:.3f}, x {np.exp(by_kind['log_error']):.2f}: "
        + ("better)" if by_kind["log_error"] < told["log_error"] else "no better)")
    )
    yield "  bound   called light   truly light   worst harm of a light op"
    for at in told["bounds"]:
        worst_light = "-" if at["worst_light"] is None else f"{at['worst_light']:.1f} %"
        yield f"  {at['bound']:4g} %   {at['light']:12}   {at['truly_light']:11}   {worst_light:>24}"
    yield "  most under-predicted: measured, predicted (without the margin)"
    for each in told["worst"]:
        yield f"  {each['op'][:_NAME_WIDTH]:{_NAME_WIDTH}} {each['measured']:6.1f} % {each['predicted']:6.1f} %"
    if told["without_mps"]:
        yield f"  without MPS every op harms by {told['without_mps']['least']:.0f} % or more: none is light"


def _at(bound: float, result: Fit) -> dict[str, Any]:
    light = [each.sample.harm for each in result.unseen if each.harm * result.rule.margin < bound]
    return {
        "bound": bound,
        "light": len(light),
        "truly_light": sum(each.sample.harm < bound for each in result.unseen),
        "worst_light": max(light, default=None),
    }


def _spearman(predictions: Sequence[Prediction]) -> float:
    return round(fit.spearman(*_both(predictions)), 4)


def _error(predictions: Sequence[Prediction]) -> float:
    return round(fit.error(*_both(predictions)), 4)


def _both(predictions: Sequence[Prediction]) -> tuple[Floats, Floats]:
    return np.array([each.sample.harm for each in predictions]), np.array([each.harm for each in predictions])
