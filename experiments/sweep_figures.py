"""Figures of sweeps, from numbers that `sweep_analysis` computed."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herald.experiments import arrivals as arrivals_data
from herald.experiments import sweeps
from herald.experiments.figures import colour, pyplot, scale_x
from herald.experiments.rows import Row, of_kind
from herald.experiments.settings import SETTINGS
from herald.experiments.sweep_analysis import Outcome, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"timeslice": "s", "mps": "s", "mps-priority": "D", "mps-pct-25": "v", "mps-pct-50": "^", "mps-pct-75": ">"}
_RESERVES = {"reserve-16": "P", "reserve-32": "X"}
_HERALD = "*"
_FARTHEST = 10.0  # times the SLO or alone: what is beyond is drawn at the edge


def frontier(standing: Standing, path: Path) -> Path:
    """Training against p99 / SLO, a panel per SLO, a marker per setting."""
    plt = pyplot()
    factors = standing.factors
    figure, axes = plt.subplots(
        1, len(factors), figsize=(4.4 * len(factors) + 1.6, 4.4), squeeze=False, sharey=True, layout="constrained"
    )
    for ax, factor in zip(axes[0], factors, strict=True):
        shown = [(o, o.p99_over_slo[factor]) for o, _ in _drawn(standing) if o.judged_at(factor)]
        for outcome, over_slo in shown:
            _mark(ax, outcome, over_slo)
        ax.axvline(1, color="#000000", linewidth=1, linestyle=":")
        low = _low(0.4, [over_slo for _, over_slo in shown])
        _finish(ax, standing, f"SLO {factor:g} x p99 alone", "inference p99 / SLO", low)
    axes[0][0].set_ylabel("training relative to alone")
    _legend(figure, axes[0])
    figure.suptitle(standing.title, fontsize=11)
    return _saved(plt, figure, path)


def overview(standings: Sequence[Standing], path: Path) -> Path:
    """All pairs: training against p99 / alone, the SLOs as upright lines, Herald's outcomes joined."""
    plt = pyplot()
    columns = min(3, len(standings))
    num_rows = -(-len(standings) // columns)
    figure, axes = plt.subplots(
        num_rows, columns, figsize=(4.2 * columns + 1.6, 3.7 * num_rows), squeeze=False, layout="constrained"
    )
    panels = list(chain.from_iterable(axes))
    for ax in panels[len(standings) :]:
        ax.set_axis_off()
    for ax, standing in zip(panels, standings, strict=False):
        shown = _drawn(standing)
        for outcome, ratio in shown:
            _mark(ax, outcome, ratio)
        _join(ax, [o for factor in standing.factors if (o := standing.controllers.get(factor)) is not None])
        for factor in standing.factors:
            ax.axvline(factor, color="#000000", linewidth=0.8, linestyle=":")
        low = _low(0.8, [ratio for _, ratio in shown])
        _finish(ax, standing, standing.name, "inference p99 / alone (dotted: SLOs)", low)
    for line in axes:
        line[0].set_ylabel("training relative to alone")
    _legend(figure, panels)
    return _saved(plt, figure, path)


def poster(
    standing: Standing, factor: float, found: Sequence[Row], path: Path, *, tuned: Outcome, herald: Outcome
) -> Path:
    """Left: the latency of each request over time, with the SLO. Right: training time per batch."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(3, 1), layout="constrained")
    alone = standing.outcome("alone")
    for outcome in (tuned, alone, herald):
        row = _first_row(found, "poster", standing, outcome)
        if outcome is None or row is None or "inference" not in row:
            continue
        times_s = arrivals_data.from_json(row["arrivals"]).times_s(row["key"]["seconds"])
        style = {"marker": "o", "markersize": 4, "linestyle": "none", "alpha": 0.8}
        left.plot(
            times_s, row["inference"]["latency_ms"], color=_colour(outcome), label=_told(outcome, factor), **style
        )
    if (told := _first_row(found, "poster", standing, herald)) is not None:
        slo_ms = told["slo_ms"]
        left.axhline(slo_ms, color="#000000", linestyle="--", linewidth=1)
        left.annotate(f"SLO {slo_ms:.0f} ms", (0, slo_ms), textcoords="offset points", xytext=(2, 3), fontsize=9)
    left.set_ylim(bottom=0)
    left.set_xlabel("scheduled arrival, s")
    left.set_ylabel("latency, ms")
    left.grid(alpha=0.25)
    left.legend(fontsize=8, loc="upper right")
    bars = [o for o in (standing.outcome("train-alone"), tuned, herald) if o is not None and o.steps_per_s]
    drawn = right.bar(
        [o.label.partition(" ")[0] for o in bars],
        [1e3 / (o.steps_per_s or 1) for o in bars],
        color=[_colour(o) for o in bars],
    )
    right.bar_label(drawn, fmt="%.1f", fontsize=9)
    right.tick_params(axis="x", labelsize=8, labelrotation=20)
    right.set_title("training, ms per batch", fontsize=10)
    figure.suptitle(standing.title, fontsize=11)
    return _saved(plt, figure, path)


def _told(outcome: Outcome, factor: float) -> str:
    share = outcome.attained.get(factor)
    return outcome.label + (f": {share.value:.1%} in time" if share is not None else "")


def _first_row(found: Iterable[Row], kind: str, standing: Standing, outcome: Outcome | None) -> Row | None:
    wanted = None if outcome is None else (standing.pair, outcome.setting, outcome.slo_factor)
    mine = of_kind(found, kind)
    return next((r for r in mine if (r["key"]["pair"], r["key"]["setting"], r["key"]["slo_factor"]) == wanted), None)


def _drawn(standing: Standing) -> list[tuple[Outcome, float]]:
    """What has a place in a figure, and its p99 / alone."""
    return [(o, o.p99_ratio) for o in standing.outcomes if o.p99_ratio and o.relative]


def _low(usual: float, found: Sequence[float]) -> float:
    """Where an axis begins: on a host that stalls, what ran alone may have had the worst tail of all."""
    return min([usual, *(0.9 * value for value in found)])


def _mark(ax: "Axes", outcome: Outcome, x: float) -> None:
    relative = outcome.relative
    assert relative is not None
    family = SETTINGS[outcome.setting].family
    mine = outcome.setting in sweeps.CONTROLLER
    ax.errorbar(
        min(x, _FARTHEST),
        relative.value,
        yerr=[[relative.value - relative.low], [relative.high - relative.value]],
        marker=_HERALD if mine else _MARKERS.get(family, _RESERVES.get(family, "o")),
        markersize=15 if mine else 8,
        markerfacecolor=_colour(outcome) if mine or not SETTINGS[outcome.setting].mps else "none",
        markeredgewidth=1.6,
        color=_colour(outcome),
        linestyle="none",
        capsize=2,
        zorder=3 if mine else 2,
        label=SETTINGS[outcome.setting].label,
    )
    if x > _FARTHEST:
        place = (_FARTHEST, relative.value)
        ax.annotate(f"{x:.0f} \N{RIGHTWARDS ARROW}", place, textcoords="offset points", xytext=(-9, 8), fontsize=7)


def _join(ax: "Axes", outcomes: Sequence[Outcome]) -> None:
    found = [(o, o.p99_ratio, o.relative.value) for o in outcomes if o.p99_ratio and o.relative]
    if not found:
        return
    places = [(min(ratio, _FARTHEST), training) for _, ratio, training in found]
    ax.plot(*zip(*places, strict=True), color=_colour(outcomes[0]), linewidth=1, alpha=0.6)
    for (outcome, _, _), place in zip(found, places, strict=True):
        ax.annotate(f"{outcome.slo_factor:g}x", place, textcoords="offset points", xytext=(5, -13), fontsize=7)


def _finish(ax: "Axes", standing: Standing, title: str, xlabel: str, low: float) -> None:
    if standing.load is not None:
        ax.axhline(1 - standing.load, color="#000000", linewidth=1, linestyle="--", label="1 - load")
    scale_x(ax, low, 1.15 * _FARTHEST)
    ax.set_ylim(0, max(1.1, ax.get_ylim()[1]))
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.grid(alpha=0.25)


def _legend(figure: Any, axes: Iterable["Axes"]) -> None:
    """One for all panels, each name once."""
    named = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), fontsize=8, loc="outside right center")


def _colour(outcome: Outcome) -> str:
    return colour(SETTINGS[outcome.setting].family)


def _saved(plt: Any, figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
