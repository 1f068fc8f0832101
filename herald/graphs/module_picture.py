"""The picture of a graph collapsed to modules: forward down the left, backward up the right, the optimizer on top.

Every row is a module, or several (`outline`); a box is what it does in one phase: its device time, a bar of that
length coloured by class, its ops. Arrows are tensor dependencies between boxes with their number: down from row to row
in the forward column, in brackets at its side where they skip rows, across where backward uses what forward saved, up
in the backward column, and along a rail to the optimizer. Laid out by hand: it is a chain with detours, which general
graph layouts draw worse, and graphviz is not needed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

from herald.durations import format_ns
from herald.graphs import canvas
from herald.graphs.canvas import COLOURS, FAINT, MUTED, PANEL, label
from herald.graphs.flow import KINDS, total_ns
from herald.graphs.module_layout import (
    BAR_IN,
    BOX_IN,
    LANE_IN,
    MARGIN_IN,
    NOT_DRAWN,
    OPS_IN,
    PITCH_IN,
    POINTS,
    SMALL,
    TIME_IN,
    TITLE_IN,
    WIDE_IN,
    Detour,
    Layout,
    lanes_in,
    lay_out,
    row_name,
)
from herald.graphs.outline import Outline, Place, outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(graph: "nx.DiGraph[int]", path: Path) -> Path:
    """Write the PNG. Raises PictureError without matplotlib."""
    canvas.require()
    found = outline(graph)
    layout = lay_out(found)
    made = canvas.figure(layout.width, layout.height)
    axes = canvas.sheet(made)
    _draw_title(axes, graph, found, layout)
    _draw_rows(axes, found, layout)
    _draw_chain(axes, found, layout)
    for detour in layout.detours:
        if detour.lane != NOT_DRAWN:
            _draw_detour(axes, detour, layout)
    _draw_saved(axes, found, layout)
    _draw_rail(axes, found, layout)
    for place, cell in found.cells.items():
        row = found.rows[place[0]]
        said = place[1] == "forward" and row.label == ", ".join(cell.ops)
        _draw_box(axes, layout, place, cell.time_ns, () if said else cell.ops)
    return canvas.save(made, path)


# Drawing --------------------------------------------------------------------------------------------------------------


def _draw_title(axes: "Axes", graph: "nx.DiGraph[int]", found: Outline, layout: Layout) -> None:
    facts = graph.graph
    room = layout.width - 2 * MARGIN_IN
    canvas.title(axes, MARGIN_IN, 0.3, facts.get("workload") or "one iteration", room)
    about = f"{facts.get('device', '')}: {len(graph)} ops, {format_ns(total_ns(graph))} of device time, by module"
    label(axes, MARGIN_IN, 0.57, canvas.shortened(about, room, POINTS), POINTS, color=MUTED)
    arrows = "arrows: tensors from op to op, with their number"
    if any(row.within_repeats > 1 for row in found.rows):
        arrows += "; forward and upward: to the next layer"
    if missing := sum(detour.lane == NOT_DRAWN for detour in layout.detours):
        arrows += f"; {missing} of the longest left out"
    label(axes, MARGIN_IN, 0.79, canvas.shortened(arrows, room, POINTS), POINTS, color=MUTED)
    seen = [kind for kind in KINDS if any(cell.time_ns.get(kind) for cell in found.cells.values())]
    canvas.legend(axes, MARGIN_IN, 1.03, seen)
    for column in sorted({column for _, column in found.cells} - {"optimizer"}):
        label(axes, layout.box_x[column], TITLE_IN + 0.16, column, 10, weight="bold", color=MUTED)


def _draw_rows(axes: "Axes", found: Outline, layout: Layout) -> None:
    from matplotlib.patches import Rectangle

    for top, bottom, name in layout.headings:
        panel = Rectangle(
            (MARGIN_IN - 0.12, top + 0.05),
            layout.width - 2 * MARGIN_IN + 0.24,
            bottom - top - 0.05,
            facecolor=PANEL,
            edgecolor="none",
            zorder=0,
        )
        axes.add_patch(panel)
        behind = {"facecolor": PANEL, "edgecolor": "none", "pad": 1.5}
        label(axes, MARGIN_IN, top + 0.22, name, POINTS, weight="bold", zorder=4, bbox=behind)
    for i, row in enumerate(found.rows):
        shown = canvas.shortened(row_name(row), layout.label_width - 0.1, POINTS)
        style = "normal" if row.is_module else "italic"
        label(axes, MARGIN_IN + 0.1 * bool(row.within), layout.row_y[i], shown, POINTS, style=style)


def _draw_box(axes: "Axes", layout: Layout, place: Place, time_ns: Mapping[str, int], ops: Iterable[str]) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    x, y = layout.box_x[place[1]], layout.row_y[place[0]]
    box = FancyBboxPatch(
        (x, y - BOX_IN / 2),
        WIDE_IN,
        BOX_IN,
        boxstyle="round,pad=0,rounding_size=0.05",
        facecolor="white",
        edgecolor=FAINT,
        linewidth=0.9,
        zorder=3,
    )
    axes.add_patch(box)
    label(axes, x + TIME_IN - 0.06, y, format_ns(sum(time_ns.values())), POINTS, ha="right", zorder=4)
    left = x + TIME_IN
    for kind in KINDS:
        length = BAR_IN * time_ns.get(kind, 0) / layout.longest_ns
        axes.add_patch(Rectangle((left, y - 0.075), length, 0.15, facecolor=COLOURS[kind], edgecolor="none", zorder=4))
        left += length
    shown = canvas.shortened(", ".join(ops), OPS_IN, SMALL)
    label(axes, x + TIME_IN + BAR_IN + 0.12, y, shown, SMALL, color=MUTED, zorder=4)


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float], color: str = MUTED) -> None:
    how = {"arrowstyle": "-|>,head_length=0.3,head_width=0.13", "color": color, "linewidth": 0.9, "shrinkA": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=how | {"shrinkB": 0}, zorder=2)


def _draw_chain(axes: "Axes", found: Outline, layout: Layout) -> None:
    """Arrows to the next row: down in the forward column, up in the backward one."""
    for (source, target), number in found.edges.items():
        step = target[0] - source[0]
        if source[1] != target[1] or (source[1], step) not in {("forward", 1), ("backward", -1)}:
            continue
        x, y = layout.middle(source)
        end = layout.middle(target)[1]
        _arrow(axes, (x, y + step * BOX_IN / 2), (x, end - step * BOX_IN / 2))
        near = end - step * (BOX_IN / 2 + 0.085)
        label(axes, x + 0.07, near, str(number), SMALL, color=MUTED, zorder=4)


def _draw_detour(axes: "Axes", detour: Detour, layout: Layout) -> None:
    """Forward ones run left of their boxes, backward ones right of them."""
    outwards = -1 if detour.column == "forward" else 1
    edge = layout.box_x[detour.column] + (WIDE_IN if outwards > 0 else 0)
    side = edge + outwards * (0.16 + detour.lane * LANE_IN)
    down = 1 if layout.row_y[detour.target] > layout.row_y[detour.source] else -1
    start = layout.row_y[detour.source] + down * 0.06
    end = layout.row_y[detour.target] - down * 0.06
    axes.plot([edge, side, side], [start, start, end], color=MUTED, linewidth=0.9, zorder=2)
    _arrow(axes, (side, end), (edge, end))
    between_rows = layout.row_y[detour.source] + down * PITCH_IN / 2  # where no other line crosses
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    label(axes, side, between_rows, str(detour.number), SMALL, color=MUTED, ha="center", zorder=5, bbox=behind)


def _draw_saved(axes: "Axes", found: Outline, layout: Layout) -> None:
    """From forward to backward: what was saved. Lines to other rows are faint, numbers are sums at the target."""
    if "backward" not in layout.box_x:
        return
    left, right = layout.box_x["forward"] + WIDE_IN, layout.box_x["backward"]
    totals: dict[int, int] = {}
    for (source, target), number in found.edges.items():
        if (source[1], target[1]) != ("forward", "backward"):
            continue
        totals[target[0]] = totals.get(target[0], 0) + number
        ends = [layout.row_y[source[0]], layout.row_y[target[0]]]
        axes.plot([left, right - 0.1], ends, color=FAINT, linewidth=0.8, zorder=1)
    for row, number in totals.items():
        y = layout.row_y[row]
        _arrow(axes, (right - 0.1, y), (right, y))
        label(axes, right - 0.1, y + 0.09, str(number), SMALL, color=MUTED, ha="center")


def _draw_rail(axes: "Axes", found: Outline, layout: Layout) -> None:
    """From backward to the optimizer: the gradients."""
    into = {source: n for (source, target), n in found.edges.items() if target[1] == "optimizer"}
    if not into:
        return
    right = layout.box_x["optimizer"] + WIDE_IN
    rail = right + lanes_in(layout.detours, "backward") + 0.2
    top = next(layout.row_y[row] for row, column in found.cells if column == "optimizer")
    heights = [layout.row_y[row] for row, column in into if column == "backward"]
    for y in heights:
        axes.plot([right, rail], [y, y], color=FAINT, linewidth=0.8, zorder=1)
    axes.plot([rail, rail], [top, max(heights, default=top)], color=FAINT, linewidth=1.6, zorder=1)
    _arrow(axes, (rail, top), (right, top))
    label(axes, rail + 0.05, top, str(sum(into.values())), SMALL, color=MUTED)
