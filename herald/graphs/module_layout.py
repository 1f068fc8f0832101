"""Where the rows, boxes and detours of a module picture go, in inches. Knows no matplotlib but the width of a text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from herald.graphs import canvas
from herald.graphs.outline import Column, Outline, Place, Row

TITLE_IN = 1.15
PITCH_IN = 0.46
BOX_IN = 0.29
HEADING_IN = 0.36  # over the rows of an opened module
MARGIN_IN = 0.25
LEAST_WIDTH_IN = 7.2  # for the title
MOST_LABEL_IN = 2.2
LANE_IN = 0.2
MOST_LANES = 6
NOT_DRAWN = -1
TIME_IN = 0.68
BAR_IN = 1.3
OPS_IN = 2.15
WIDE_IN = TIME_IN + BAR_IN + OPS_IN + 0.2
BETWEEN_IN = 0.75
RAIL_IN = 0.35
POINTS = 9.0
SMALL = 7.5


@dataclass(frozen=True)
class Detour:
    """An edge within a column that skips rows or leads back."""

    column: Column
    source: int
    target: int
    number: int
    lane: int  # NOT_DRAWN: there are too many side by side


@dataclass(frozen=True)
class Layout:
    """Where things are, in inches from the top left corner."""

    width: float
    height: float
    row_y: Mapping[int, float]  # centre of each row
    headings: tuple[tuple[float, float, str], ...]  # top and bottom of an opened module, its name
    label_width: float
    box_x: Mapping[Column, float]  # left edge of each column
    longest_ns: int  # the time of a full bar
    detours: tuple[Detour, ...]

    def middle(self, place: Place) -> tuple[float, float]:
        """Where the arrows of a column run through a box, and its height."""
        return self.box_x[place[1]] + TIME_IN / 2, self.row_y[place[0]]


def lay_out(found: Outline) -> Layout:
    """The layout of an outline: as wide as its labels and detours need."""
    columns = {column for _, column in found.cells}
    detours = [*_detours(found, "forward", step=1), *_detours(found, "backward", step=-1)]
    labels_in = max(canvas.text_width_in(row_name(row), POINTS) for row in found.rows) + 0.15
    labels_in = min(MOST_LABEL_IN, max(0.8, labels_in))
    forward_x = MARGIN_IN + labels_in + lanes_in(detours, "forward") + 0.15
    box_x: dict[Column, float] = {"forward": forward_x}
    width = forward_x + WIDE_IN
    if columns & {"backward", "optimizer"}:
        box_x["backward"] = box_x["optimizer"] = width + BETWEEN_IN
        width += BETWEEN_IN + WIDE_IN + lanes_in(detours, "backward") + RAIL_IN
    row_y, headings, bottom = _rows_down(found)
    return Layout(
        width=max(LEAST_WIDTH_IN, width + MARGIN_IN),
        height=bottom + 0.2,
        row_y=row_y,
        headings=tuple(headings),
        label_width=labels_in,
        box_x=box_x,
        longest_ns=max(1, *(cell.total_ns for cell in found.cells.values())),
        detours=tuple(detours),
    )


def lanes_in(detours: Iterable[Detour], column: Column) -> float:
    """What the detours of a column take beside it."""
    return LANE_IN * (1 + max((detour.lane for detour in detours if detour.column == column), default=-1))


def _rows_down(found: Outline) -> tuple[dict[int, float], list[tuple[float, float, str]], float]:
    row_y: dict[int, float] = {}
    headings = []
    y = TITLE_IN + 0.3
    optimizer = [i for i, row in enumerate(found.rows) if (i, "optimizer") in found.cells]
    for i in optimizer:  # on top, where backward ends
        row_y[i] = y + PITCH_IN / 2
        y += PITCH_IN
    rows = [(i, row) for i, row in enumerate(found.rows) if i not in optimizer]
    for (within, repeats), members in groupby(rows, key=lambda item: (item[1].within, item[1].within_repeats)):
        top = y
        y += HEADING_IN if within else 0
        for i, _ in members:
            row_y[i] = y + PITCH_IN / 2
            y += PITCH_IN
        if within:
            headings.append((top, y, within if repeats == 1 else f"{within}  \u00d7{repeats}, sums"))
    return row_y, headings, y


def _detours(found: Outline, column: Column, step: int) -> list[Detour]:
    """Edges that do not lead to the next row, each in the innermost lane where it meets no other."""
    edges = [
        (source[0], target[0], number)
        for (source, target), number in found.edges.items()
        if source[1] == target[1] == column and target[0] != source[0] + step
    ]
    taken: list[list[tuple[int, int]]] = []
    detours = []
    for source, target, number in sorted(edges, key=lambda e: (abs(e[0] - e[1]), e)):
        low, high = sorted((source, target))
        free = [i for i, lane in enumerate(taken) if all(high <= a or low >= b for a, b in lane)]
        lane = free[0] if free else len(taken)
        if lane >= MOST_LANES:
            lane = NOT_DRAWN
        elif lane == len(taken):
            taken.append([])
        if lane != NOT_DRAWN:
            taken[lane].append((low, high))
        detours.append(Detour(column, source, target, number, lane))
    return detours


def row_name(row: Row) -> str:
    """What stands beside a row."""
    return row.label if row.repeats == 1 else f"{row.label} \u00d7{row.repeats}"
