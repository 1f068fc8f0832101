"""A timeline as a picture: requests, gate, what training runs, and its share of the SMs, over one second.

Ops are an image of one column a pixel, filled by the share of its time that each class takes: see
`herald.graphs.timeline_picture`, whose lanes these are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from herald.experiments.chrome_trace import classes
from herald.experiments.timeline import Op, Stretch, Timeline, lanes
from herald.graphs import canvas
from herald.graphs.canvas import COLOURS, INK, MUTED, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_IN, _LEFT_IN, _RIGHT_IN = 10.67, 1.25, 0.3  # 1600 pixels
_SPAN_IN = _WIDTH_IN - _LEFT_IN - _RIGHT_IN
_TOP_IN, _GAP_IN = 1.05, 0.2
_REQUEST_IN, _MOST_REQUEST_ROWS_IN = 0.28, 1.1
_GATE_IN, _OPS_IN, _STEP_IN, _SM_IN = 0.4, 1.0, 0.1, 0.6
_AXIS_IN = 0.55
# Okabe & Ito 2008, beside the classes of `canvas`.
_SERVED, _WAITING, _MISSED, _CLOSED, _SM = "#0072B2", "#B9D6EA", "#CC79A7", "#3C3C3C", "#009E73"
_SHOWN = ("heavy", "light", "unknown")


@dataclass(frozen=True)
class _Lane:
    """Where a lane lies, in inches; time goes from left to right."""

    top: float
    height: float
    length_ns: int

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def x(self, at_ns: float) -> float:
        return _LEFT_IN + _SPAN_IN * min(max(at_ns, 0), self.length_ns) / self.length_ns


def draw(timeline: Timeline, path: Path) -> Path:
    """Write the PNG. Raises PictureError without matplotlib."""
    canvas.require()
    rows = 1 + max(lanes(timeline.requests), default=0)
    heights = [min(rows * _REQUEST_IN, _MOST_REQUEST_ROWS_IN), _GATE_IN, _OPS_IN]
    if timeline.sm_total:
        heights.append(_SM_IN)
    made = canvas.figure(_WIDTH_IN, _TOP_IN + sum(heights) + _GAP_IN * len(heights) + _AXIS_IN)
    axes = canvas.sheet(made)
    _draw_title(axes, timeline)
    tops = [_TOP_IN + sum(heights[:i]) + _GAP_IN * i for i in range(len(heights))]
    places = [_Lane(top, height, timeline.length_ns) for top, height in zip(tops, heights, strict=True)]
    _draw_requests(axes, places[0], timeline, rows)
    _draw_gate(axes, places[1], timeline)
    _draw_ops(axes, places[2], timeline)
    if timeline.sm_total:
        _draw_sm_share(axes, places[3], timeline)
    _draw_axis(axes, places[-1])
    return canvas.save(made, path)


def _draw_title(axes: "Axes", timeline: Timeline) -> None:
    canvas.title(axes, 0.3, 0.28, timeline.title, _WIDTH_IN - 0.6)
    said = (
        f"{timeline.met_told}; "
        f"gate closed {busy_share(timeline.closed, timeline.length_ns):.0%} of the time; "
        f"{len(timeline.steps)} training steps"
    )
    label(axes, 0.3, 0.55, said, 9.5, color=MUTED)
    swatches = [("served", _SERVED), ("waiting", _WAITING), ("missed its SLO", _MISSED), ("gate closed", _CLOSED)]
    kinds = {op.kind for op in timeline.ops}
    swatches += [(f"{kind} op", COLOURS[kind]) for kind in _SHOWN if kind in kinds]
    x = 0.3
    for name, colour in swatches:
        _box(axes, (x, 0.75), 0.16, 0.12, colour)
        label(axes, x + 0.21, 0.81, name, 9, color=MUTED)
        x += 0.21 + canvas.text_width_in(name, 9) + 0.22


def busy_share(stretches: Sequence[Stretch], length_ns: int) -> float:
    """Of the time, by stretches that do not overlap."""
    return sum(stretch.end_ns - stretch.begin_ns for stretch in stretches) / length_ns


def _draw_requests(axes: "Axes", lane: _Lane, timeline: Timeline, rows: int) -> None:
    _name(axes, lane, "requests")
    pitch = lane.height / rows
    for request, row in zip(timeline.requests, lanes(timeline.requests), strict=True):
        top, height = lane.top + row * pitch, 0.85 * pitch
        arrived, begun, done = map(lane.x, (request.arrived_ns, request.begun_ns, request.done_ns))
        _box(axes, (arrived, top), begun - arrived, height, _WAITING)
        _box(axes, (begun, top), done - begun, height, _SERVED)
        if request.latency_ms > timeline.slo_ms:
            due = lane.x(request.arrived_ns + timeline.slo_ms * 1e6)
            _box(axes, (due, top), done - due, height, _MISSED)
    axes.plot([_LEFT_IN, _LEFT_IN + _SPAN_IN], [lane.bottom] * 2, color=canvas.FAINT, linewidth=0.6)


def _draw_gate(axes: "Axes", lane: _Lane, timeline: Timeline) -> None:
    _name(axes, lane, "gate")
    _box(axes, (_LEFT_IN, lane.top), _SPAN_IN, lane.height, canvas.PANEL)
    for stretch in timeline.closed:
        x = lane.x(stretch.begin_ns)
        _box(axes, (x, lane.top), lane.x(stretch.end_ns) - x, lane.height, _CLOSED)


def _draw_ops(axes: "Axes", lane: _Lane, timeline: Timeline) -> None:
    """Ops by class; beneath, steps in turns of two greys."""
    _name(axes, lane, "training")
    height = lane.height - _STEP_IN
    image = image_of(timeline.ops, timeline.length_ns, round(_SPAN_IN * canvas.DPI), round(height * canvas.DPI))
    extent = (_LEFT_IN, _LEFT_IN + _SPAN_IN, lane.top + height, lane.top)
    axes.imshow(image, extent=extent, aspect="auto", interpolation="nearest", zorder=2)
    for number, step in enumerate(timeline.steps):
        x = lane.x(step.begin_ns)
        tint = "#8A8A8A" if number % 2 else "#D0D0D0"
        _box(axes, (x, lane.top + height), lane.x(step.end_ns) - x, _STEP_IN, tint)
    label(axes, _LEFT_IN - 0.12, lane.bottom - _STEP_IN / 2, "steps", 8, ha="right", color=MUTED)


def image_of(
    ops: Sequence[Op], length_ns: int, columns: int, rows: int
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """(rows, columns, 3): columns filled from below by the share of their time that each class takes."""
    image = np.full((rows, columns, 3), 247, dtype=np.uint8)
    filled = np.zeros(columns)
    for kind in _SHOWN:
        share = np.zeros(columns)
        for stretch in classes([op for op in ops if op.kind == kind]):
            _add(share, stretch.begin_ns * columns / length_ns, stretch.end_ns * columns / length_ns)
        share = np.minimum(share, 1 - filled)
        from_bottom = (rows - np.arange(rows))[:, None] / rows
        image[(from_bottom > filled) & (from_bottom <= filled + share + 0.5 / rows) & (share > 0)] = _rgb(COLOURS[kind])
        filled += share
    return image


def _add(share: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", first: float, last: float) -> None:
    """Add a stretch, in columns."""
    i, j = int(first), min(int(last), len(share) - 1)
    if i >= j:
        share[min(i, len(share) - 1)] += last - first
        return
    share[i] += i + 1 - first
    share[i + 1 : j] += 1
    share[j] += last - j


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _draw_sm_share(axes: "Axes", lane: _Lane, timeline: Timeline) -> None:
    _name(axes, lane, "SM share")
    label(axes, _LEFT_IN - 0.12, lane.bottom - 0.06, "of training", 8, ha="right", color=MUTED)
    _box(axes, (_LEFT_IN, lane.top), _SPAN_IN, lane.height, canvas.PANEL)
    ends_ns = [*(at_ns for at_ns, _ in timeline.sm_share[1:]), timeline.length_ns]
    written = 0.0
    for (begin_ns, share), end_ns in zip(timeline.sm_share, ends_ns, strict=True):
        x, width, height = lane.x(begin_ns), lane.x(end_ns) - lane.x(begin_ns), share * lane.height
        _box(axes, (x, lane.bottom - height), width, height, _SM)
        said = f"{round(share * timeline.sm_total)} SMs"
        if width > canvas.text_width_in(said, 8) + 0.1 and x >= written:
            label(axes, x + 0.05, lane.bottom - height / 2, said, 8, color="white")
            written = x + width


def _draw_axis(axes: "Axes", lowest: _Lane) -> None:
    y = lowest.bottom + 0.12
    axes.plot([_LEFT_IN, _LEFT_IN + _SPAN_IN], [y, y], color=MUTED, linewidth=0.8)
    for tenth in range(11):
        x = _LEFT_IN + _SPAN_IN * tenth / 10
        axes.plot([x, x], [y, y + 0.06], color=MUTED, linewidth=0.8)
        label(axes, x, y + 0.17, f"{lowest.length_ns * tenth / 1e7:g}", 9, ha="center", color=MUTED)
    label(axes, _LEFT_IN - 0.2, y + 0.17, "ms", 9, ha="right", color=MUTED)


def _name(axes: "Axes", lane: _Lane, name: str) -> None:
    label(axes, _LEFT_IN - 0.12, lane.top + min(lane.height / 2, 0.2), name, 10, ha="right", weight="bold", color=INK)


def _box(axes: "Axes", at: tuple[float, float], width: float, height: float, colour: str) -> None:
    """``at``: the top left corner."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(at, max(0.0, width), height, facecolor=colour, edgecolor="none"))
