"""The control law of the controller, and the account that says which misses it is charged with."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herald.scheduler import feedback
from herald.scheduler.feedback import Account

BUDGET = 0.003


def book(
    account: Account,
    *,
    met: int,
    missed: int = 0,
    anyway: int = 0,
    times: int = 1,
    closed: bool = False,
    idle_ns: int = feedback.RESTED_NS,
) -> None:
    for _ in range(times):
        account.book(closed=closed, idle_ns=idle_ns, met=met, missed=missed, anyway=anyway, target=0.99)


# ---- the law


def test_a_step_response_settles_within_50_requests_and_does_not_oscillate() -> None:
    """A plant that misses 30 % of requests while the leeway is above -2 and none below."""
    leeway, path = 0.0, []
    for request in range(400):
        missed = leeway > -2 and request % 10 < 3
        leeway = feedback.step(leeway, met=not missed, charged=missed, budget=BUDGET)
        path.append(leeway)
    assert all(value <= -2 + 0.2 for value in path[50:])
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(path[50:], path[51:], path[52:], strict=False))
    assert turns <= 2  # the way back is so slow that it may touch the edge once more


@given(st.lists(st.booleans(), max_size=200), st.floats(0.001, 0.25))
def test_the_leeway_keeps_its_bounds(outcomes: list[bool], budget: float) -> None:
    leeway = 0.0
    for met in outcomes:
        leeway = feedback.step(leeway, met=met, charged=not met, budget=budget)
        assert feedback.LEAST <= leeway <= feedback.MOST


def test_three_tenths_of_what_the_target_allows_are_in_balance() -> None:
    assert feedback.budget(0.99, anyway=0.0) == pytest.approx(BUDGET)
    assert feedback.step(0.0, met=997, charged=3, budget=BUDGET) == pytest.approx(0.0, abs=1e-9)


def test_what_would_be_late_anyway_leaves_less_for_training() -> None:
    shares = [feedback.budget(0.99, anyway) for anyway in (0.0, 0.005, 0.007, 0.008, 0.5)]
    assert shares == pytest.approx([0.003, 0.003, 0.0015, 0.001, 0.001])


def test_the_share_of_a_few_requests_is_hardly_one() -> None:
    account = Account()
    book(account, met=5, missed=5, anyway=5)
    assert account.share_late_anyway == pytest.approx(5 / feedback.FEWEST)
    book(account, met=98, missed=2, anyway=2, times=100)
    assert account.share_late_anyway == pytest.approx(0.02, rel=0.01)


# ---- the account


def test_a_miss_is_charged_and_what_is_met_heals() -> None:
    account = Account()
    book(account, met=0, missed=3)
    assert account.leeway == -3.0
    book(account, met=332)
    assert account.leeway == pytest.approx(-2.0, abs=0.01)


def test_behind_a_gate_that_closes_at_once_nothing_was_lenient() -> None:
    account = Account()
    book(account, met=0, missed=1)
    book(account, met=0, missed=5, closed=True)
    assert account.leeway == -1.0
    book(account, met=250, closed=True)
    assert account.leeway > -1.0


def test_a_miss_that_would_have_come_alone_is_not_charged() -> None:
    account = Account()
    book(account, met=0, missed=4, anyway=4)
    assert account.leeway == 0.0


def test_the_backlog_of_an_open_gate_is_charged_after_it_is_closed_until_the_service_rests() -> None:
    account = Account()
    book(account, met=10, idle_ns=0)
    book(account, met=0, missed=3, closed=True, idle_ns=0)
    assert account.leeway == pytest.approx(-3.0, abs=0.1)
    book(account, met=0, missed=2, closed=True)
    book(account, met=0, missed=2, closed=True, idle_ns=0)
    assert account.leeway == pytest.approx(-3.0, abs=0.1)


@given(st.lists(st.integers(0, 10_000_000), min_size=2, max_size=50))
def test_a_service_that_is_busy_all_the_while_never_rests_however_late_its_time_is_booked(late_ns: list[int]) -> None:
    account = Account()
    book(account, met=0)
    for before, after in itertools.pairwise(late_ns):
        book(account, met=0, missed=1, closed=True, idle_ns=after - before)
    assert account.lenient


# ---- what was charged to a gate that never closed


def freely(account: Account, *, mean_ns: int = 10, missed: int = 0) -> None:
    """100 requests with a gate that never closes."""
    book(account, met=100 - missed, missed=missed)
    account.hear(free=True, beside=(100, 100 * mean_ns), solo=(0, 0))


def late(account: Account, missed: int) -> None:
    """Requests that are late, and have not told of their times yet."""
    book(account, met=0, missed=missed)


def closed(account: Account, *, requests: int = feedback.HEARD, mean_ns: int = 10) -> None:
    book(account, met=0, closed=True)
    account.hear(free=False, beside=(0, 0), solo=(requests, requests * mean_ns))


def test_where_requests_are_no_faster_behind_the_gate_training_is_acquitted() -> None:
    account = Account()
    freely(account)
    late(account, 5)
    closed(account, requests=feedback.HEARD - 1)
    assert account.leeway < -4  # of fewer, nothing can be told
    closed(account, requests=1)
    assert account.leeway == pytest.approx(0.3, abs=0.01)


def test_where_they_are_the_charge_stands() -> None:
    account = Account()
    freely(account)
    late(account, 5)
    closed(account, mean_ns=8)
    closed(account)  # that the host is as slow later is no news of then
    assert account.leeway < -4


def test_requests_behind_the_gate_from_before_a_charge_do_not_tell() -> None:
    account = Account()
    freely(account)
    late(account, 1)
    closed(account, requests=40)
    late(account, 1)
    closed(account, requests=40)
    assert account.leeway < -1


def test_what_a_gate_that_may_close_is_charged_with_stands() -> None:
    """Long requests meet a close, so that those that do not are no fair sample."""
    account = Account()
    account.hear(free=False, beside=(100, 1000), solo=(0, 0))
    late(account, 5)
    closed(account)
    assert account.leeway == -5.0


def test_what_comes_of_it_before_the_gate_closes_for_good_is_settled_with_it() -> None:
    account = Account()
    freely(account)
    late(account, 3)
    account.hear(free=False, beside=(20, 300), solo=(10, 100))
    late(account, 2)
    closed(account)
    assert account.leeway == pytest.approx(0.3, abs=0.01)


def test_an_acquittal_gives_back_no_more_than_was_taken() -> None:
    account = Account()
    freely(account)
    late(account, 3 * round(-feedback.LEAST))
    assert account.leeway == feedback.LEAST
    closed(account)
    assert account.leeway == pytest.approx(0.3, abs=0.01)


def test_old_charges_stand() -> None:
    """Times beside training of now say nothing of the host then."""
    account = Account()
    freely(account)
    late(account, 10)
    for _ in range(40):
        freely(account)
    late(account, 2)
    before = account.leeway
    closed(account)
    assert account.leeway == pytest.approx(before + 2, abs=0.01)


def test_times_beside_training_of_long_ago_settle_nothing() -> None:
    account = Account()
    freely(account)
    for _ in range(1 + feedback.OLD // 100):
        book(account, met=100)
        account.hear(free=False, beside=(100, 1000), solo=(0, 0))
    late(account, 5)
    before = account.leeway
    closed(account)
    assert account.leeway == before


def test_nothing_is_settled_by_the_times_of_other_jobs() -> None:
    account = Account()
    freely(account)
    late(account, 5)
    before = account.leeway
    account.forget()
    closed(account)
    assert account.leeway == before


@pytest.mark.parametrize(
    ("spread", "inflation", "least", "most"),
    [(0.1, 1.0, 0.9, 1.0), (0.1, 1.1, 0.0, 0.01), (0.6, 1.1, 0.15, 0.35), (0.6, 1.2, 0.0, 0.15), (0.6, 1.4, 0.0, 0.01)],
)
def test_how_often_training_is_acquitted(spread: float, inflation: float, least: float, most: float) -> None:
    """By how much service times vary, as a share of their mean, and by how much training makes them longer."""
    numbers, sigma = random.Random(0), math.sqrt(math.log(1 + spread**2))
    acquitted = 0
    for _ in range(400):
        account = Account()
        for free, requests, factor in ((True, 300, inflation), (False, feedback.HEARD, 1.0)):
            times = sum(round(1e6 * factor * numbers.lognormvariate(-(sigma**2) / 2, sigma)) for _ in range(requests))
            account.hear(
                free=free, beside=(requests * free, times * free), solo=(requests * (not free), times * (not free))
            )
            late(account, 5 * free)
        acquitted += account.leeway > -1
    assert least <= acquitted / 400 <= most
