"""Figures, from numbers that others computed. `pyplot` is the only place that imports matplotlib, when it draws."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herald.errors import HeraldError
from herald.experiments.analysis import Group, Result
from herald.experiments.settings import SETTINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One colour per way of sharing, the same in all figures; Okabe & Ito 2008, told apart by colour-blind readers too.
_COLOURS = {
    "alone": "#000000",
    "shared": "#D55E00",
    "herald": "#0072B2",
    "train-alone": "#000000",
    "reserve-16": "#8C564B",
    "reserve-32": "#C49C94",
    "tgs": "#9467BD",
    "orion": "#17BECF",
    "timeslice": "#D55E00",
    "mps": "#E69F00",
    "mps-priority": "#CC79A7",
    "mps-pct-25": "#BBBBBB",
    "mps-pct-50": "#888888",
    "mps-pct-75": "#555555",
    "herald-strict": "#56B4E9",
    "herald-laxity": "#009E73",
    "herald-free": "#999933",
    "herald-all-heavy": "#F0E442",
}
_SOURCE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HARMS = "classification.png"
_LEAST_HARM = 0.5  # percent: where a harm that is noise is drawn


class FigureError(HeraldError):
    """There is nothing to draw with."""


def frontier(groups: Sequence[Group], path: Path, *, over: str = "slo") -> Path:
    """Training against tail latency, a panel per group: x = p99 / SLO (or / alone), y = training relative to alone."""
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(groups), figsize=(5.2 * len(groups), 4.4), squeeze=False, sharey=True, layout="constrained"
    )
    tails = [x for group in groups for result in group.results if (x := _tail(result, over))]
    for ax, group in zip(axes[0], groups, strict=True):
        _draw_frontier(ax, group, over)
        scale_x(ax, 0.8 * min(0.8, *tails), 1.2 * max(2.0, *tails))
    axes[0][0].set_ylabel("training throughput relative to alone")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _draw_frontier(ax: "Axes", group: Group, over: str) -> None:
    for result in group.results:
        x = _tail(result, over)
        if x is None or result.training is None or result.training.relative is None:
            continue
        y = result.training.relative
        family = SETTINGS[result.setting].family
        ax.errorbar(
            x,
            y.value,
            yerr=[[y.value - y.low], [y.high - y.value]],
            marker="o" if SETTINGS[result.setting].policy else "s",
            markersize=9,
            color=colour(family),
            linestyle="none",
            capsize=3,
            label=result.setting,
        )
    if group.load is not None:
        share = 1 - group.load
        ax.axhline(share, color="#000000", linewidth=1, linestyle="--", label=f"1 - load = {share:.2f}")
    ax.axvline(1, color="#000000", linewidth=1, linestyle=":")
    ax.text(1, 0.02, " SLO" if over == "slo" else " alone", fontsize=8)
    ax.set_ylim(0, 1.1)
    ax.set_xlabel(f"inference p99 / {'SLO' if over == 'slo' else 'alone'}")
    ax.set_title(group.title, fontsize=10)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="best")


def _tail(result: Result, over: str) -> float | None:
    if result.inference is None:
        return None
    if over == "slo":
        return result.inference.p99_over_slo
    return result.inference.p99_ratio.value if result.inference.p99_ratio else None


def harms(found: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Predicted against measured harm of ops, a colour per model, with the bound of the light ones."""
    plt = pyplot()
    told = [row for row in found if "predicted" in row]
    figure, ax = plt.subplots(figsize=(6.4, 5.4), layout="constrained")
    sources = sorted({row["op"].partition("/")[0] for row in told})
    for source, colour in zip(sources, itertools.cycle(_SOURCE_COLOURS), strict=False):
        mine = [row for row in told if row["op"].startswith(f"{source}/")]
        _draw_harms(ax, [row for row in mine if row["class"] != "light"], marker="o", color=colour, label=source)
        _draw_harms(ax, [row for row in mine if row["class"] == "light"], marker="^", color=colour)
    ax.set_xscale("log")
    ax.set_yscale("log")
    if told:
        _draw_bound(ax, told[0]["bound"], told[0]["margin"])
    ax.set_xlabel("predicted harm, in % of a request's time alone")
    ax.set_ylabel("measured harm, in %")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _draw_harms(ax: "Axes", points: Sequence[Mapping[str, Any]], **style: Any) -> None:
    measured = [max(_LEAST_HARM, row["measured"]) for row in points]
    ax.plot([row["predicted"] for row in points], measured, linestyle="none", markersize=7, alpha=0.8, **style)


def _draw_bound(ax: "Axes", bound: float, margin: float) -> None:
    """Ops left of the upright line are called light; none of them may be above the level one."""
    ax.axvline(bound / margin, color="#000000", linewidth=1, linestyle="--")
    ax.axhline(2 * bound, color="#000000", linewidth=1, linestyle=":")
    upright, level = ax.get_xaxis_transform(), ax.get_yaxis_transform()
    ax.text(bound / margin, 0.98, f" light below {bound:g} % / {margin:g}", transform=upright, fontsize=8, va="top")
    ax.text(0.99, 2 * bound, f"2 x {bound:g} %", transform=level, fontsize=8, ha="right", va="bottom")


def scale_x(ax: "Axes", low: float, high: float) -> None:
    """A logarithmic axis from low to high with plain numbers on it."""
    ax.set_xscale("log")
    ticks = [m * 10**e for e in range(-2, 6) for m in (1, 1.5, 2, 3, 5, 7) if low <= m * 10**e <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(low, high)


def colour(family: str) -> str:
    """Of a way of sharing, the same in all figures."""
    return _COLOURS.get(family, "#333333")


def pyplot() -> Any:
    """matplotlib.pyplot for files. Raises FigureError where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise FigureError("matplotlib is not installed: pip install 'herald[experiments]' draws figures") from error
    mpl.use("Agg")  # files only: there may be no display
    import matplotlib.pyplot as plt

    return plt
