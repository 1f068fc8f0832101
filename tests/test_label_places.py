"""Labels of a figure's stars: where they are written follows from the places of stars and markers."""

import itertools

from herald.experiments.label_places import Box, placed
from herald.experiments.sweep_figures import twins_together


def star(x: float, y: float) -> Box:
    return Box(x, y, 0.03, 0.04)


def test_stars_apart_have_a_label_each_and_stars_that_hide_each_other_share_one() -> None:
    stars = [("1.03x", star(0.20, 0.5)), ("1.1x", star(0.22, 0.51)), ("1.5x", star(0.5, 0.5))]
    assert [text for text, _, _ in placed(stars, [])] == ["1.03x, 1.1x", "1.5x"]


def test_a_star_between_two_joins_their_labels() -> None:
    stars = [("1.1x", star(0.20, 0.5)), ("1.5x", star(0.24, 0.5)), ("2x", star(0.22, 0.5))]
    assert [text for text, _, _ in placed(stars, [])] == ["1.1x, 1.5x, 2x"]


def test_a_label_is_on_the_side_that_is_free() -> None:
    below, above, right = Box(0.5, 0.43, 0.02, 0.02), Box(0.5, 0.57, 0.02, 0.02), Box(0.56, 0.5, 0.02, 0.02)
    ((_, _, usual),) = placed([("2x", star(0.5, 0.5))], [])
    ((_, _, left),) = placed([("2x", star(0.5, 0.5))], [below, above, right])
    ((_, _, top),) = placed([("2x", star(0.5, 0.05))], [])
    assert usual.y < 0.5
    assert (left.x < 0.5, left.y) == (True, 0.5)
    assert top.y > 0.05  # below it the panel ends


def test_labels_of_neighbours_meet_neither_each_other_nor_a_star() -> None:
    stars = [(f"{number}x", star(0.4 + 0.065 * number, 0.5)) for number in range(4)]
    boxes = [*(box for _, box in stars), *(box for _, _, box in placed(stars, []))]
    assert len(boxes) == 2 * len(stars)
    assert not any(one.meets(other) for one, other in itertools.combinations(boxes, 2))


def test_where_all_near_sides_are_taken_a_label_is_farther_off_and_meets_nothing() -> None:
    ring = [Box(0.5 + 0.06 * x, 0.5 + 0.07 * y, 0.02, 0.02) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) != (0, 0)]
    ((_, middle, label),) = placed([("2x", star(0.5, 0.5))], ring)
    assert middle == (0.5, 0.5)
    assert not any(label.meets(box) for box in [*ring, star(0.5, 0.5)])


def test_a_label_keeps_clear_of_lines_where_it_can() -> None:
    upright = Box(0.5, 0.5, 0, 0.5)
    ((_, _, label),) = placed([("2x", star(0.5, 0.5))], [], [upright])
    assert not label.meets(upright)


def test_the_way_from_a_star_to_its_label_does_not_lead_over_another_star() -> None:
    stars = [("1.1x", star(0.4, 0.5)), ("1.5x", star(0.465, 0.5))]
    below = [Box(x, 0.42, 0.03, 0.03) for x in (0.30, 0.36, 0.42, 0.48)]
    above = [Box(x, 0.58, 0.03, 0.03) for x in (0.30, 0.36, 0.42, 0.48)]
    (_, _, label), _ = placed(stars, [*below, *above])
    assert label.x < 0.4


def test_in_the_legend_the_two_mps_states_of_a_setting_follow_each_other() -> None:
    labels = ["1 - load", "timeslice", "strict", "herald", "mps", "mps-priority", "strict-mps", "herald-mps"]
    together = ["1 - load", "timeslice", "mps", "mps-priority", "strict", "strict-mps", "herald", "herald-mps"]
    assert twins_together(labels) == together
