"""Where labels go in a panel, so that they hide neither markers nor each other. Pure; in shares of the panel."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

_TOUCH = 1e-9  # boxes side by side do not meet, whatever rounding makes of their places


class Box(NamedTuple):
    """A place in a panel, in shares of the panel's width and height."""

    x: float
    y: float
    half_width: float
    half_height: float

    def meets(self, other: "Box") -> bool:
        """Whether the two overlap."""
        near = abs(self.x - other.x) < self.half_width + other.half_width - _TOUCH
        return near and abs(self.y - other.y) < self.half_height + other.half_height - _TOUCH

    def covers(self, x: float, y: float) -> bool:
        """Whether the point is inside."""
        return abs(self.x - x) < self.half_width and abs(self.y - y) < self.half_height


class Label(NamedTuple):
    """What is written, of which place, and where."""

    text: str
    of: tuple[float, float]
    box: Box


_LETTER = (0.008, 0.02)  # half of the width and height of one, in a panel of the overview
_RINGS = (0.0, 0.03, 0.06, 0.09)  # how far a label may be from its star
_SIDES = ((0, -1), (0, 1), (1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1))
_EDGES = (Box(-1, 0.5, 1, 1), Box(2, 0.5, 1, 1), Box(0.5, -1, 1, 1), Box(0.5, 2, 1, 1))


def placed(stars: Sequence[tuple[str, Box]], others: Iterable[Box], thin: Sequence[Box] = ()) -> list[Label]:
    """A label for each star, one for those that hide each other.

    It is where it and its leader meet little of the rest and few of the ``thin`` lines, and near.
    """
    groups: list[list[tuple[str, Box]]] = []
    for star in stars:
        hidden = [group for group in groups if any(box.covers(*star[1][:2]) for _, box in group)]
        groups = [*(group for group in groups if group not in hidden), [*chain.from_iterable(hidden), star]]
    taken = [*_EDGES, *others, *(box for _, box in stars)]
    labels = []
    for group in groups:
        text, whole = ", ".join(name for name, _ in group), _around([box for _, box in group])
        places = _beside(whole, len(text) * _LETTER[0], _LETTER[1])
        best = min(places, key=partial(_cost, whole=whole, taken=taken, thin=thin))
        taken.append(best)
        labels.append(Label(text, (whole.x, whole.y), best))
    return labels


def _cost(label: Box, whole: Box, taken: Sequence[Box], thin: Iterable[Box]) -> float:
    """How bad a place is: first what it hides, then what its leader crosses, then lines behind it and the way."""
    leader = [place for place in along(label, whole) if not whole.covers(place.x, place.y)]
    crossed = sum(any(box.covers(place.x, place.y) for place in leader) for box in taken)
    gap = max(
        abs(label.x - whole.x) - label.half_width - whole.half_width,
        abs(label.y - whole.y) - label.half_height - whole.half_height,
    )
    return 10 * sum(map(label.meets, taken)) + 5 * crossed + sum(map(label.meets, thin)) + 20 * gap


def _around(boxes: Sequence[Box]) -> Box:
    """The box that has all of those in it."""
    left, right = min(b.x - b.half_width for b in boxes), max(b.x + b.half_width for b in boxes)
    bottom, top = min(b.y - b.half_height for b in boxes), max(b.y + b.half_height for b in boxes)
    return Box((left + right) / 2, (bottom + top) / 2, (right - left) / 2, (top - bottom) / 2)


def _beside(whole: Box, half_width: float, half_height: float) -> list[Box]:
    """Boxes of that size below, above, right and left of another and at its corners, from near to far."""
    return [
        Box(
            whole.x + x * (whole.half_width + half_width + ring),
            whole.y + y * (whole.half_height + half_height + ring),
            half_width,
            half_height,
        )
        for ring in _RINGS
        for x, y in _SIDES
    ]


def along(a: Box, b: Box) -> list[Box]:
    """Points of the line between the middles of two, without these."""
    return [Box(a.x + (b.x - a.x) * i / 10, a.y + (b.y - a.y) * i / 10, 0, 0) for i in range(1, 10)]
