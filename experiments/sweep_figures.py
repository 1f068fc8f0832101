"""Figures of sweeps, from numbers that `sweep_analysis` computed."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Box(NamedTuple):
    """A place in a panel, in shares of the panel's width and height."""

    x: float
    y: float
    half_width: float
    half_height: float

    def meets(self, other: "Box") -> bool:
        """Whether the two overlap."""
        near = abs(self.x - other.x) < self.half_width + other.half_width
        return near and abs(self.y - other.y) < self.half_height + other.half_height

    def covers(self, x: float, y: float) -> bool:
        """Whether the point is inside."""
        return abs(self.x - x) < self.half_width and abs(self.y - y) < self.half_height


_STAR = (0.03, 0.04)  # half of its width and of its height in a panel of the overview
_MARKER = (0.02, 0.025)
_LETTER = (0.008, 0.02)  # of a label's text
_EDGES = (Box(-1, 0.5, 1, 1), Box(2, 0.5, 1, 1), Box(0.5, -1, 1, 1), Box(0.5, 2, 1, 1))


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
        for factor in standing.factors:
            ax.axvline(factor, color="#000000", linewidth=0.8, linestyle=":")
        low = _low(0.8, [ratio for _, ratio in shown])
        _finish(ax, standing, standing.name, "inference p99 / alone (dotted: SLOs)", low)
        mine = [o for factor in standing.factors if (o := standing.controllers.get(factor)) is not None]
        _join(ax, mine, shown)
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


def _join(ax: "Axes", outcomes: Sequence[Outcome], shown: Sequence[tuple[Outcome, float]]) -> None:
    """A line through the outcomes and each one's SLO beside it, clear of what is shown. The axes' limits are set."""
    found = [(o, (min(o.p99_ratio, _FARTHEST), o.relative.value)) for o in outcomes if o.p99_ratio and o.relative]
    if not found:
        return
    ax.plot(*zip(*(place for _, place in found), strict=True), color=_colour(outcomes[0]), linewidth=1, alpha=0.6)

    def box(place: tuple[float, float], half: tuple[float, float]) -> Box:
        x, y = (ax.transScale + ax.transLimits).transform(place)
        return Box(x, y, *half)

    stars = [(f"{o.slo_factor:g}x", box(place, _STAR)) for o, place in found]
    others = [box((min(x, _FARTHEST), o.relative.value), _MARKER) for o, x in shown if o.relative]
    for text, label in placed(stars, others):
        _write(ax, text, (label.x, label.y), xycoords="axes fraction", ha="center", va="center")


def placed(stars: Sequence[tuple[str, Box]], others: Iterable[Box]) -> list[tuple[str, Box]]:
    """A label for each star, one for those that hide each other, on the side where it meets the fewest of the rest."""
    groups: list[list[tuple[str, Box]]] = []
    for star in stars:
        hidden = [group for group in groups if any(box.covers(*star[1][:2]) for _, box in group)]
        groups = [*(group for group in groups if group not in hidden), [*chain.from_iterable(hidden), star]]
    taken = [*_EDGES, *others, *(box for _, box in stars)]
    labels = []
    for group in groups:
        text = ", ".join(name for name, _ in group)
        sides = _beside([box for _, box in group], len(text) * _LETTER[0], _LETTER[1])
        label = min(sides, key=lambda side: sum(map(side.meets, taken)))
        taken.append(label)
        labels.append((text, label))
    return labels


def _beside(boxes: Sequence[Box], half_width: float, half_height: float) -> list[Box]:
    """Boxes of that size below, above, right and left of all those."""
    left, right = min(b.x - b.half_width for b in boxes), max(b.x + b.half_width for b in boxes)
    bottom, top = min(b.y - b.half_height for b in boxes), max(b.y + b.half_height for b in boxes)
    x, y = (left + right) / 2, (bottom + top) / 2
    places = ((x, bottom - half_height), (x, top + half_height), (right + half_width, y), (left - half_width, y))
    return [Box(*place, half_width, half_height) for place in places]


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
