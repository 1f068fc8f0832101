"""What rows of a sweep say of each setting, over repetitions, runs and hosts."""

import pytest

from herald.experiments import rows
from herald.experiments.shares import Share
from tests.sweep_rows import FACTORS, NUM_REQUESTS, frontier, only, references, row


def test_a_setting_that_does_not_ask_for_the_slo_is_judged_at_all_of_them() -> None:
    standing = only(frontier())
    strict, herald = standing.outcome("herald-strict", 1.1), standing.outcome("herald", 1.1)
    assert strict is not None and herald is not None
    assert set(strict.attained or {}) == set(FACTORS)
    assert set(herald.attained or {}) == {1.1}


def test_training_is_relative_to_alone_without_mps() -> None:
    herald = only(frontier()).outcome("herald-mps", 2.0)
    assert herald is not None and herald.relative is not None
    assert herald.relative.value == pytest.approx(0.8)


def test_repetitions_are_pooled_and_their_spread_is_kept() -> None:
    more = [
        row("herald", factor=1.1, steps_per_s=7.0, repetition=1),
        row("train-alone", steps_per_s=10.0, repetition=1),
    ]
    herald = only([*frontier(), *more]).outcome("herald", 1.1)
    assert herald is not None and herald.relative is not None
    assert (herald.repetitions, herald.attained[1.1].total) == (2, 2 * NUM_REQUESTS)
    assert (herald.relative.low, herald.relative.value, herald.relative.high) == pytest.approx((0.7, 0.75, 0.8))


def test_runs_on_several_hosts_are_pooled_each_against_what_was_alone_in_it() -> None:
    slow = {"seed": 1, "slowness": 3.0}
    second = [
        *references(**slow),
        row("alone", **slow),
        row("train-alone", steps_per_s=10.0, **slow),
        row("mps-pct-25", steps_per_s=4.0, **slow),
        row("herald", late=1, steps_per_s=9.0, factor=1.1, **slow),
    ]
    standing = only([*frontier(mps_late=2), *second])
    herald, mps = standing.outcome("herald", 1.1), standing.outcome("mps-pct-25")
    assert herald is not None and mps is not None
    assert (herald.attained[1.1], mps.attained[1.1]) == (Share(399, 400), Share(398, 400))
    assert herald.relative is not None and mps.relative is not None
    assert (herald.relative.value, mps.relative.value) == pytest.approx((0.85, 0.3))
    assert herald.p99_ratio == pytest.approx(1.0)
    assert "2 runs" in standing.title


def test_a_run_without_a_reference_leaves_the_others_of_its_setting_standing() -> None:
    found = [*frontier(mps_late=0), row("mps-pct-25", late=100, steps_per_s=2.0, seed=1)]
    mps = only(found).outcome("mps-pct-25")
    assert mps is not None
    assert mps.attained[1.1] == Share(NUM_REQUESTS, NUM_REQUESTS)


def test_two_rows_of_one_run_are_refused() -> None:
    with pytest.raises(rows.RowsError, match=r"alone, repetition 0, with seed 0: .*--seed"):
        only([*frontier(), row("alone")])


@pytest.mark.parametrize(
    ("slowdown", "busy_share", "chosen"), [(1.5, 0.5, "herald-mps"), (1.0, 0.5, "herald-mps"), (1.0, 1.0, "herald")]
)
def test_heralds_state_is_the_one_that_the_probe_says(slowdown: float, busy_share: float, chosen: str) -> None:
    herald = only(frontier(slowdown=slowdown, busy_share=busy_share)).controllers[1.1]
    assert herald.setting == chosen
