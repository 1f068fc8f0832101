"""Figures of sweeps, from numbers that `sweep_analysis` computed."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herald.experiments import arrivals as arrivals_data
from herald.experiments import sweeps
from herald.experiments.figures import colour, pyplot, scale_x
from herald.experiments.label_places import Box, along, placed
from herald.experiments.rows import Row, of_kind
from herald.experiments.settings import SETTINGS
from herald.experiments.sweep_analysis import Outcome, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"timeslice": "s", "mps": "s", "mps-priority": "D", "mps-pct-25": "v", "mps-pct-50": "^", "mps-pct-75": ">"}
_RESERVES = {"reserve-16": "P", "reserve-32": "X"}
_HERALD = "*"
_FARTHEST = 10.0  # times the SLO or alone: what is beyond is drawn at the edge


_STAR = (0.03, 0.04)  # half of its width and of its height in a panel of the overview
_MARKER = (0.02, 0.025)
_CAP = 0.006  # of the bar of a marker, half of the width


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
    _legend(figure, axes[0], [standing])
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
        for factor in standing.factors:
            ax.axvline(factor, color="#000000", linewidth=0.8, linestyle=":")
        low = _low(0.8, [ratio for _, ratio in shown])
        _finish(ax, standing, standing.name, "inference p99 / alone (dotted: SLOs)", low)
        _join(ax, standing, shown)
    for line in axes:
        line[0].set_ylabel("training relative to alone")
    _legend(figure, panels, standings, "1.5x: Herald at that SLO")
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
        markerfacecolor=_colour(outcome) if not SETTINGS[outcome.setting].mps else "none",
        markeredgewidth=1.6,
        color=_colour(outcome),
        linestyle="none",
        capsize=2,
        zorder=3 if mine else 2,
        label=SETTINGS[outcome.setting].label,
    )
    if x > _FARTHEST:
        beside = {"textcoords": "offset points", "xytext": (-8, 0), "ha": "right", "va": "center"}
        _write(ax, f"{x:.0f} \N{RIGHTWARDS ARROW}", (_FARTHEST, relative.value), **beside)


def _join(ax: "Axes", standing: Standing, shown: Sequence[tuple[Outcome, float]]) -> None:
    """A line through Herald's outcomes and each one's SLO beside it, clear of what is shown. The limits are set."""
    mine = [o for factor in standing.factors if (o := standing.controllers.get(factor)) is not None]
    found = [(o, (min(o.p99_ratio, _FARTHEST), o.relative.value)) for o in mine if o.p99_ratio and o.relative]
    if not found:
        return
    ax.plot(*zip(*(place for _, place in found), strict=True), color=_colour(found[0][0]), linewidth=1, alpha=0.6)

    def box(place: tuple[float, float], half: tuple[float, float]) -> Box:
        x, y = (ax.transScale + ax.transLimits).transform(place)
        return Box(x, y, *half)

    stars = [(f"{o.slo_factor:g}x", box(place, _STAR)) for o, place in found]
    others = [box((min(x, _FARTHEST), o.relative.value), _MARKER) for o, x in shown if o.relative]
    thin = [bar for o, x in shown if (bar := _bar(o, min(x, _FARTHEST), box))]
    thin += [Box(box((factor, 0), (0, 0)).x, 0.5, 0, 0.5) for factor in standing.factors]
    thin += [] if standing.load is None else [Box(0.5, box((1, 1 - standing.load), (0, 0)).y, 0.5, 0)]
    thin += chain.from_iterable(along(a, b) for (_, a), (_, b) in pairwise(stars))
    for label in placed(stars, others, thin):
        leader = {"arrowstyle": "-", "color": "#555555", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        centred: dict[str, Any] = {"xycoords": "axes fraction", "ha": "center", "va": "center"}
        _write(ax, label.text, label.of, xytext=label.box[:2], arrowprops=leader, **centred)


def _bar(outcome: Outcome, x: float, box: Callable[[tuple[float, float], tuple[float, float]], Box]) -> Box | None:
    """Where the spread of a marker is drawn."""
    if outcome.relative is None:
        return None
    low, high = (box((x, y), (0, 0)).y for y in (outcome.relative.low, outcome.relative.high))
    return Box(box((x, 0), (0, 0)).x, (low + high) / 2, _CAP, (high - low) / 2)


def _write(ax: "Axes", text: str, place: tuple[float, float], **style: Any) -> None:
    """Small, with a white outline: to be read over whatever it covers."""
    from matplotlib.patheffects import withStroke

    ax.annotate(text, place, fontsize=7, zorder=4, path_effects=[withStroke(linewidth=2, foreground="white")], **style)


def _finish(ax: "Axes", standing: Standing, title: str, xlabel: str, low: float) -> None:
    if standing.load is not None:
        ax.axhline(1 - standing.load, color="#000000", linewidth=1, linestyle="--", label="1 - load")
    scale_x(ax, low, 1.15 * _FARTHEST)
    ax.set_ylim(0, max(1.1, ax.get_ylim()[1]))
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.grid(alpha=0.25)


def _legend(figure: Any, axes: Iterable["Axes"], standings: Iterable[Standing], *notes: str) -> None:
    """One for all panels, each name once; its title says what markers and labels mean."""
    named = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = twins_together(list(named))
    mps = any(SETTINGS[o.setting].mps for standing in standings for o, _ in _drawn(standing))
    title = "\n".join(["hollow: under MPS"] * mps + list(notes))
    figure.legend(
        [named[label] for label in labels],
        labels,
        title=title,
        fontsize=8,
        title_fontsize=8,
        alignment="left",
        loc="outside right center",
    )


def twins_together(labels: Sequence[str]) -> list[str]:
    """Each setting's two MPS states one after the other, where the second of them was."""
    families = [label.removesuffix("-mps") for label in labels]
    last = {family: place for place, family in enumerate(families)}
    return sorted(labels, key=lambda label: last[label.removesuffix("-mps")])


def _colour(outcome: Outcome) -> str:
    return colour(SETTINGS[outcome.setting].family)


def _saved(plt: Any, figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
