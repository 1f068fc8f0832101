"""The picture of one iteration over time: what the host issues, what the device runs, by phase, class and module.

Drawn from the predicted timeline (`timeline`). Lanes are images of one column a pixel: a column is filled by the
share of its time that each class takes, so that ten thousand ops of a microsecond are as truthful as ten long ones;
ops that are wide enough are set apart and named.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from herald.durations import format_ns
from herald.graphs import canvas
from herald.graphs.build import order
from herald.graphs.canvas import COLOURS, INK, MUTED, label
from herald.graphs.flow import KINDS
from herald.graphs.outline import short_name
from herald.graphs.timeline import Prediction, iteration_of, predict
from herald.profiles import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_IN = 11.5
_LEFT_IN = 1.0
_RIGHT_IN = 0.35
_SPAN_IN = _WIDTH_IN - _LEFT_IN - _RIGHT_IN
_TOP_IN = 1.2
_STRIP_IN = 0.22
_HOST_IN = 0.35
_HOST_COLUMN_PX = 4  # what the host does is too fine for single pixels
_PAUSE_NS = 100_000  # a host that issues nothing for longer does something else
_DEVICE_IN = 1.15
_SMALL = 8.0
_MOSTLY = 0.7
_SEPARATE_PX = 5  # ops that are wider get a white edge
_TINTS = {"forward": "#E3ECF5", "backward": "#F6E7D8", "optimizer": "#E2EFDD", "other": "#ECECEC"}
_SHORT = {"forward": "fwd", "backward": "bwd", "optimizer": "opt"}
_MODULE_TINTS = ("#EDEDED", "#DFDFDF")


@dataclass(frozen=True)
class Span:
    """Something that lasts."""

    begin_ns: int
    end_ns: int
    name: str  # phase, module, or op
    kind: str = "none"


@dataclass(frozen=True)
class _Scale:
    """From time to inches."""

    whole_ns: int

    def x(self, time_ns: float) -> float:
        return _LEFT_IN + _SPAN_IN * time_ns / self.whole_ns

    def width(self, span: Span) -> float:
        return self.x(span.end_ns) - self.x(span.begin_ns)


def draw(profile: Profile, graph: "nx.DiGraph[int]", path: Path) -> Path:
    """Write the PNG. ``graph`` is the profile's. Raises PictureError without matplotlib."""
    canvas.require()
    prediction, iteration = predict(profile), iteration_of(profile)
    scale = _Scale(max(1, round(1.01 * max(prediction.timeline_ns, iteration.wall_ns))))
    has_host = not graph.graph["is_cpu"]  # on a CPU, host and device are one
    device = _device_spans(graph)
    phases = [str(graph.nodes[node]["phase"]) for node in order(graph)]
    modules = _module_strips(scale, graph, device)
    host_in = has_host * (_STRIP_IN + _HOST_IN + 0.2)
    made = canvas.figure(_WIDTH_IN, _TOP_IN + host_in + (1 + len(modules)) * _STRIP_IN + _DEVICE_IN + 0.5)
    axes = canvas.sheet(made)
    _draw_title(axes, profile, prediction, {span.kind for span in device}, has_host=has_host)
    y = _TOP_IN
    if has_host:
        host = _host_spans(profile, graph, prediction)
        _draw_strip(axes, scale, y, _joined(host, phases), _phase_tint)
        _draw_lane(axes, scale, (y + _STRIP_IN, _HOST_IN), host, _HOST_COLUMN_PX)
        label(axes, _LEFT_IN - 0.12, y + _STRIP_IN + _HOST_IN / 2, "host", 10, ha="right", weight="bold")
        y += host_in
    _draw_strip(axes, scale, y, _joined(device, phases), _phase_tint)
    y += _STRIP_IN
    _draw_lane(axes, scale, (y, _DEVICE_IN), device)
    _draw_names(axes, scale, (y, _DEVICE_IN), device)
    name = "device" if has_host else "CPU"
    label(axes, _LEFT_IN - 0.12, y + _DEVICE_IN / 2, name, 10, ha="right", weight="bold")
    y += _DEVICE_IN + 0.02
    label(axes, _LEFT_IN - 0.12, y + _STRIP_IN / 2, "module", _SMALL, ha="right", color=MUTED)
    for spans in modules:
        _draw_strip(axes, scale, y, spans, lambda _, i: _MODULE_TINTS[i % 2])
        y += _STRIP_IN
    _draw_measured(axes, scale, y, iteration.wall_ns)
    _draw_axis(axes, scale, y + 0.06)
    return canvas.save(made, path)


# What lasts when ------------------------------------------------------------------------------------------------------


def _device_spans(graph: "nx.DiGraph[int]") -> list[Span]:
    spans = []
    for node in order(graph):
        facts = graph.nodes[node]
        begin_ns = min(facts["start_ns"], facts["end_ns"] - facts["self_ns"])  # with what was carried to it
        spans.append(Span(max(0, begin_ns), facts["end_ns"], short_name(facts["op"]), facts["kind"]))
    return spans


def _host_spans(profile: Profile, graph: "nx.DiGraph[int]", prediction: Prediction) -> list[Span]:
    """From the issue of each node to that of the next: what lies between belongs to it, unless it is long."""
    issues_ns = [prediction.issue_ns[node] for node in order(graph)]
    ends_ns = [*issues_ns[1:], iteration_of(profile).host_ns]
    spans = []
    for node, begin_ns, next_ns in zip(order(graph), issues_ns, ends_ns, strict=True):
        facts = graph.nodes[node]
        end_ns = min(max(begin_ns, next_ns), begin_ns + facts["host_ns"] + _PAUSE_NS)
        spans.append(Span(begin_ns, end_ns, short_name(facts["op"]), facts["kind"]))
    return spans


def _module_strips(scale: _Scale, graph: "nx.DiGraph[int]", device: Sequence[Span]) -> list[list[Span]]:
    """One or two bands of modules: the first depth at which there are several, and the deepest that can be read."""
    paths = [str(graph.nodes[node]["module"]) for node in order(graph)]
    deepest = max((path.count(".") + 1 for path in paths if path), default=1)
    coarse = next((d for d in range(1, deepest) if len({_cut(path, d) for path in paths} - {""}) > 1), deepest)
    strips = [_joined(device, [_cut(path, coarse) for path in paths])]
    for depth in range(deepest, coarse, -1):
        spans = _below(_joined(device, [_cut(path, depth) for path in paths]), coarse)
        for shown in (spans, [replace(span, name=span.name.rpartition(".")[2]) for span in spans]):
            if _readable(scale, shown) > _MOSTLY:
                return [*strips, shown]
    return strips


def _cut(path: str, depth: int) -> str:
    return ".".join(path.split(".")[:depth])


def _below(spans: Iterable[Span], depth: int) -> list[Span]:
    """Names without what the band above says already."""
    return [replace(span, name=".".join(span.name.split(".")[depth:])) for span in spans]


def _readable(scale: _Scale, spans: Sequence[Span]) -> float:
    """The share of the time of named spans whose names fit."""
    named = [span for span in spans if span.name]
    fitting = sum(scale.width(span) for span in named if _fitting(scale, span))
    return fitting / max(1e-9, sum(map(scale.width, named)))


def _fitting(scale: _Scale, span: Span) -> str:
    """The name of a span, or what is short of it and fits; else ""."""
    width = scale.width(span) - 0.04
    return next(
        (
            name
            for name in (span.name, _SHORT.get(span.name, ""))
            if name and canvas.text_width_in(name, _SMALL) < width
        ),
        "",
    )


def _joined(spans: Sequence[Span], names: Sequence[str]) -> list[Span]:
    """Neighbours of one name as one span each."""
    found = []
    for name, members in groupby(zip(names, spans, strict=True), key=lambda pair: pair[0]):
        inside = [span for _, span in members]
        found.append(Span(inside[0].begin_ns, max(span.end_ns for span in inside), name))
    return found


def filled(spans: Iterable[Span], whole_ns: int, num_columns: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The share of each column's time that each class takes: (len(KINDS), num_columns), columns sum to 1 at most."""
    shares = np.zeros((len(KINDS), num_columns + 1))
    for span in spans:
        first, last = (time_ns * num_columns / whole_ns for time_ns in (span.begin_ns, span.end_ns))
        i, j = int(first), int(last)
        row = shares[KINDS.index(span.kind)]
        if i == j:
            row[i] += last - first
        else:
            row[i] += i + 1 - first
            row[i + 1 : j] += 1
            row[j] += last - j
    shares = shares[:, :num_columns]
    result: np.ndarray[Any, np.dtype[np.float64]] = shares / np.maximum(1.0, shares.sum(axis=0))
    return result


# Drawing --------------------------------------------------------------------------------------------------------------


def _draw_title(axes: "Axes", profile: Profile, prediction: Prediction, kinds: set[str], *, has_host: bool) -> None:
    room = _WIDTH_IN - 0.6
    canvas.title(axes, 0.3, 0.3, profile.workload or "one iteration", room)
    busy = prediction.busy_ns / prediction.timeline_ns if prediction.timeline_ns else 1.0
    share = f"the device waits for the host {1 - busy:.0%} of it" if has_host else f"ops are {busy:.0%} of it"
    facts = (
        f"{profile.device}: one iteration, measured {format_ns(iteration_of(profile).wall_ns)}, "
        f"predicted {format_ns(prediction.timeline_ns)}; {share}"
    )
    label(axes, 0.3, 0.57, canvas.shortened(facts, room, 9.5), 9.5, color=MUTED)
    canvas.legend(axes, 0.3, 0.82, [kind for kind in KINDS if kind in kinds])


def _phase_tint(span: Span, _: int) -> str:
    return _TINTS.get(span.name, _TINTS["other"])


def _draw_strip(axes: "Axes", scale: _Scale, y: float, spans: Sequence[Span], tint: Callable[[Span, int], str]) -> None:
    """Named bands, one beside the other; a name that does not fit is left out."""
    from matplotlib.patches import Rectangle

    for i, span in enumerate(spans):
        x, width = scale.x(span.begin_ns), scale.width(span)
        axes.add_patch(Rectangle((x, y), width, _STRIP_IN - 0.02, facecolor=tint(span, i), edgecolor="none"))
        if shown := _fitting(scale, span):
            label(axes, x + width / 2, y + _STRIP_IN / 2 - 0.01, shown, _SMALL, ha="center", color=INK)


def _draw_lane(
    axes: "Axes", scale: _Scale, place: tuple[float, float], spans: Sequence[Span], column_px: int = 1
) -> None:
    """``place``: top and height."""
    top, height = place
    columns, rows = round(_SPAN_IN * canvas.DPI / column_px), round(height * canvas.DPI)
    image = _image(filled(spans, scale.whole_ns, columns), rows)
    extent = (_LEFT_IN, _LEFT_IN + _SPAN_IN, top + height, top)
    axes.imshow(image, extent=extent, aspect="auto", interpolation="nearest", zorder=2)


def _image(shares: "np.ndarray[Any, np.dtype[np.float64]]", rows: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Columns filled from below, in the order of KINDS; nearly white where nothing runs."""
    image = np.full((rows, shares.shape[1], 3), 250, dtype=np.uint8)
    from_top = np.arange(rows)[:, None]
    tops = np.round(rows * (1 - np.cumsum(shares, axis=0))).astype(int)
    for kind, top in reversed(list(zip(KINDS, tops, strict=True))):  # the lowest last, over the others
        image[from_top >= top[None, :]] = [int(COLOURS[kind][i : i + 2], 16) for i in (1, 3, 5)]
    return image


def _draw_names(axes: "Axes", scale: _Scale, place: tuple[float, float], spans: Iterable[Span]) -> None:
    """Set wide ops apart and name them, along the bar or across it."""
    top, height = place
    for span in spans:
        x, width = scale.x(span.begin_ns), scale.width(span)
        if width * canvas.DPI < _SEPARATE_PX:
            continue
        axes.plot([x, x], [top, top + height], color="white", linewidth=0.6, zorder=3)
        how = {"ha": "center", "color": "white" if span.kind in ("heavy", "unknown") else INK, "zorder": 4}
        if canvas.text_width_in(span.name, 7) < width - 0.08:
            label(axes, x + width / 2, top + height / 2, span.name, 7, **how)
        elif width > 0.13 and (shown := canvas.shortened(span.name, height - 0.06, 7)):
            label(axes, x + width / 2, top + height / 2, shown, 7, rotation=90, **how)


def _draw_measured(axes: "Axes", scale: _Scale, bottom: float, wall_ns: int) -> None:
    x = scale.x(wall_ns)
    axes.plot([x, x], [_TOP_IN - 0.06, bottom], color=INK, linewidth=1, linestyle="--", zorder=5)
    side = "right" if x > _WIDTH_IN - _RIGHT_IN - 0.5 else "center"
    label(axes, x, _TOP_IN - 0.15, "measured", _SMALL, ha=side, color=INK)


def _draw_axis(axes: "Axes", scale: _Scale, y: float) -> None:
    unit_ns, unit = (1e6, "ms") if scale.whole_ns >= 3e6 else (1e3, "us")
    step = _nice(scale.whole_ns / unit_ns / 10)
    axes.plot([_LEFT_IN, _LEFT_IN + _SPAN_IN], [y, y], color=MUTED, linewidth=0.8)
    at = 0.0
    while at * unit_ns <= scale.whole_ns:
        x = scale.x(at * unit_ns)
        axes.plot([x, x], [y, y + 0.06], color=MUTED, linewidth=0.8)
        label(axes, x, y + 0.17, f"{at:g}", 9, ha="center", color=MUTED)
        at = round(at + step, 6)
    label(axes, _LEFT_IN - 0.12, y + 0.17, unit, 9, ha="right", color=MUTED)


def _nice(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below."""
    power = 10.0 ** np.floor(np.log10(max(least, 1e-9)))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= least))
