"""Herald against the other settings: at each SLO, and one setting for all."""

import pytest

from herald.experiments import sweep_analysis, sweep_comparison, sweeps
from herald.experiments.shares import Share
from tests.sweep_rows import NUM_REQUESTS, first, frontier, only, references, row


@pytest.mark.parametrize("turned", [False, True])
def test_each_run_is_judged_in_the_mps_state_that_was_chosen_on_its_host(turned: bool) -> None:
    """And against rivals of the same repetitions, whichever file comes first."""
    one = [row("alone"), row("herald", factor=1.1, steps_per_s=9.0), row("timeslice", steps_per_s=9.0)]
    other = [
        row("alone", seed=1),
        row("herald-mps", factor=1.1, steps_per_s=6.0, seed=1),
        row("timeslice", steps_per_s=6.0, seed=1),
        row("mps", steps_per_s=5.0, seed=1),
    ]
    comparison = first([*other, *one] if turned else [*one, *other])
    assert comparison.herald.repetitions == 2
    assert comparison.static is not None and (comparison.static.setting, comparison.static.ratio) == ("timeslice", 1.0)
    assert comparison.mps is not None and comparison.mps.ratio == pytest.approx(1.2)


@pytest.mark.parametrize("turned", [False, True])
def test_where_both_states_were_measured_each_host_says_which_counts(turned: bool) -> None:
    runs = []
    for seed, busy_share, chosen in ((0, 1.0, "herald"), (1, 0.5, "herald-mps")):
        both = [
            row(name, late=0 if name == chosen else 50, factor=1.1, steps_per_s=5.0, seed=seed)
            for name in sweeps.CONTROLLER
        ]
        runs.append([*references(busy_share, seed=seed), row("alone", seed=seed), *both])
    found = [*runs[1], *runs[0]] if turned else [*runs[0], *runs[1]]
    assert first(found).attained == Share(2 * NUM_REQUESTS, 2 * NUM_REQUESTS)


def test_a_rival_is_judged_over_the_repetitions_that_herald_has() -> None:
    found = [
        *references(),
        row("alone"),
        row("herald", factor=1.1, steps_per_s=5.0),
        row("timeslice", steps_per_s=9.0),
        row("herald-strict", steps_per_s=4.0),
        *references(seed=1),
        row("alone", seed=1),
        row("timeslice", late=60, steps_per_s=9.0, seed=1),
    ]
    rival = first(found).static
    assert rival is not None and (rival.setting, rival.ratio) == ("timeslice", pytest.approx(5 / 9))


def test_no_training_at_all_is_a_mean_of_nothing_not_a_crash() -> None:
    assert sweep_comparison.geometric_mean([0.0, 1.0]) == 0.0
    assert sweep_comparison.geometric_mean([]) is None


def test_one_setting_for_all_counts_what_it_holds_and_what_it_trains_there() -> None:
    other = [{**r, **({"pair": "b+c"} if "pair" in r else {})} for r in frontier(mps_late=0)]
    other = [{**r, "key": {**r["key"], "pair": "b+c"}} if "key" in r else r for r in other]
    found = [*frontier(), *other]
    comparisons = [
        c for standing in sweep_analysis.standings(found, "frontier") for c in sweep_comparison.compare(standing)
    ]
    told = {o.label: o for o in sweep_comparison.overall(comparisons, sweeps.STATICS)}
    assert [(o.held, o.points) for o in told.values()] == [(0, 4), (0, 4), (2, 4), (4, 4), (4, 4)]
    assert list(told) == ["timeslice", "mps", "mps-pct-25", "strict", "herald"]
    assert (told["timeslice"].training, told["timeslice"].useful) == (None, 0.0)
    assert (told["mps-pct-25"].training, told["mps-pct-25"].useful) == pytest.approx((0.2, 0.1))
    assert told["herald"].useful == pytest.approx(0.8)


def test_what_is_not_surely_missed_is_told_from_what_is_reached() -> None:
    comparisons = sweep_comparison.compare(only(frontier(late=3)))
    told = {o.label: o for o in sweep_comparison.overall(comparisons, sweeps.STATICS)}
    assert (told["herald"].held, told["herald"].reached, told["strict"].reached) == (2, 0, 2)  # 98.5 % of 200


def test_a_setting_that_some_pair_lacks_is_not_compared_over_all() -> None:
    without = [r for r in frontier() if r.get("key", {}).get("setting") != "mps"]
    comparisons = sweep_comparison.compare(only(without))
    assert "mps" not in [o.label for o in sweep_comparison.overall(comparisons, sweeps.STATICS)]


def test_the_rival_trains_most_among_those_that_hold() -> None:
    comparison = first(frontier(mps_late=0))
    assert comparison.static is not None and comparison.static.setting == "herald-strict"
    assert comparison.mps is not None and (comparison.mps.setting, comparison.mps.holds) == ("mps-pct-25", True)
    assert comparison.mps.ratio == pytest.approx(4.0)


def test_where_no_setting_of_a_class_holds_strict_stands_in_and_it_is_said() -> None:
    comparison = first(frontier(mps_late=20))
    assert str(comparison.mps) == "(strict)"
    assert comparison.mps is not None and comparison.mps.ratio == pytest.approx(8 / 6)


def test_without_anything_to_compare_with_there_is_no_ratio() -> None:
    lonely = [*references(), row("alone"), row("herald", factor=1.1, steps_per_s=5.0)]
    comparison = first(lonely)
    assert comparison.static is None


def test_tuned_mps_is_the_closest_where_none_holds() -> None:
    found = [*frontier(), row("mps-pct-50", late=15, steps_per_s=4.0)]
    closest = sweep_comparison.closest(only(found), sweeps.MPS_SWEEP, 1.1)
    assert closest is not None and closest.setting == "mps-pct-50"
