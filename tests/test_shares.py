"""The share of requests in time, and when it holds a target."""

import pytest

from herald.experiments.shares import Share, within


@pytest.mark.parametrize(
    ("share", "low", "high"),
    [(Share(99, 100), 0.9455, 0.9982), (Share(0, 10), 0.0, 0.2775), (Share(10, 10), 0.7225, 1.0)],
)
def test_the_interval_of_a_share_is_wilsons(share: Share, low: float, high: float) -> None:
    assert share.interval == pytest.approx((low, high), abs=1e-4)


def test_a_share_counts_requests_that_took_just_the_slo() -> None:
    assert within([1.0, 2.0, 3.0], 2.0) == Share(2, 3)


def test_an_slo_is_held_where_it_is_not_surely_missed_but_only_if_alone_holds_it_too() -> None:
    unsure, missed = Share(197, 200), Share(150, 200)
    assert unsure.holds(0.99, alone=unsure)
    assert not unsure.holds(0.99, alone=missed)
    assert not missed.holds(0.99, alone=unsure)
    assert Share(99, 100).holds(0.99, alone=missed)
