"""Labels of a figure's stars: where they are written follows from the places of stars and markers."""

import itertools

from herald.experiments.sweep_figures import Box, placed


def star(x: float, y: float) -> Box:
    return Box(x, y, 0.03, 0.04)


def test_stars_apart_have_a_label_each_and_stars_that_hide_each_other_share_one() -> None:
    stars = [("1.03x", star(0.20, 0.5)), ("1.1x", star(0.22, 0.51)), ("1.5x", star(0.5, 0.5))]
    assert [text for text, _ in placed(stars, [])] == ["1.03x, 1.1x", "1.5x"]


def test_a_star_between_two_joins_their_labels() -> None:
    stars = [("1.1x", star(0.20, 0.5)), ("1.5x", star(0.24, 0.5)), ("2x", star(0.22, 0.5))]
    assert [text for text, _ in placed(stars, [])] == ["1.1x, 1.5x, 2x"]


def test_a_label_is_on_the_side_that_is_free() -> None:
    below, above, right = Box(0.5, 0.43, 0.02, 0.02), Box(0.5, 0.57, 0.02, 0.02), Box(0.56, 0.5, 0.02, 0.02)
    ((_, usual),) = placed([("2x", star(0.5, 0.5))], [])
    ((_, left),) = placed([("2x", star(0.5, 0.5))], [below, above, right])
    ((_, top),) = placed([("2x", star(0.5, 0.05))], [])
    assert usual.y < 0.5
    assert (left.x < 0.5, left.y) == (True, 0.5)
    assert top.y > 0.05  # below it the panel ends


def test_labels_of_neighbours_meet_neither_each_other_nor_a_star() -> None:
    stars = [(f"{number}x", star(0.4 + 0.065 * number, 0.5)) for number in range(4)]
    boxes = [*(box for _, box in stars), *(box for _, box in placed(stars, []))]
    assert len(boxes) == 2 * len(stars)
    assert not any(one.meets(other) for one, other in itertools.combinations(boxes, 2))
