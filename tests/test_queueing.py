"""The queue that is played through: a textbook one, late requests with a price, and whether MPS pays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herald.scheduler import queueing
from herald.scheduler.mps_choice import mps_pays
from herald.scheduler.queueing import Queue


@settings(max_examples=15, deadline=None)
@given(load=st.floats(0, 0.95), inflation=st.floats(1, 4), slo=st.floats(1, 10), limit=st.sampled_from(queueing.LIMITS))
def test_shares_of_time_are_shares(load: float, inflation: float, slo: float, limit: int) -> None:
    comes = queueing.play(Queue(load, inflation, slo), limit)
    assert 0 <= comes.late <= 1
    assert comes.idle >= 0
    assert comes.beside >= 0
    assert comes.idle + comes.beside <= 1 + 1e-9


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_a_queue_behind_a_closed_gate_is_the_textbook_one(load: float) -> None:
    comes = queueing.play(Queue(load, 3.0, 1e6), 0)
    assert comes.idle == pytest.approx(1 - load, abs=0.03)
    assert comes.beside == 0


def test_demand_alone_protects_what_is_open_but_not_what_comes() -> None:
    """Without a limit, slack is spent that later requests lack."""
    late = [queueing.play(Queue(0.45, 2.0, 5.0), limit).late for limit in (0, 1, queueing.NO_LIMIT)]
    assert late[0] <= late[1] < 0.01 < late[2]


def test_the_rung_lets_enough_be_in_time() -> None:
    for inflation in (1.2, 2.0, 3.5):
        rung = queueing.best_rung(Queue(0.4, inflation, 5.5), 0.99)
        assert queueing.play(Queue(0.4, inflation, 5.5), queueing.LIMITS[rung]).late <= 0.01
    assert queueing.best_rung(Queue(0.4, 1.0, 20.0), 0.99) == len(queueing.LIMITS) - 1
    assert queueing.best_rung(Queue(0.9, 3.0, 1.5), 0.99) == 0


def test_late_requests_have_a_price() -> None:
    """A limit of 4 is good enough, too, but gives training next to nothing for four times as many late requests."""
    queue = Queue(0.45, 1.75, 5.7)
    chosen, allowed = (queueing.play(queue, limit) for limit in (2, 4))
    assert queueing.LIMITS[queueing.best_rung(queue, 0.99)] == 2
    assert 4 * chosen.late < allowed.late < 0.008
    gained = allowed.idle - chosen.idle + queueing.BESIDE_RATE * (allowed.beside - chosen.beside)
    assert gained < 0.02


def test_nothing_is_gained_by_closing_where_requests_are_as_fast_beside_training() -> None:
    for inflation in (0.6, 1.0):
        assert queueing.best_rung(Queue(0.9, inflation, 1.5), 0.99) == len(queueing.LIMITS) - 1
    slower, same, faster = (queueing.play(Queue(0.6, f, 3.0), queueing.FREE).late for f in (1.3, 1.0, 0.7))
    assert slower > same > faster


def test_a_close_at_the_begin_of_a_request_costs_what_it_costs_alone() -> None:
    """Where no slack is left for more, every limit closes as the closed gate does."""
    tight = Queue(0.1, 1.06, 1.97, margin=2.0)
    assert queueing.play(tight, 1).late == pytest.approx(queueing.play(tight, 0).late, abs=0.01)


def test_mps_where_what_it_brings_is_more_than_what_it_costs_alone() -> None:
    assert mps_pays(slo=4.2, slowdown=1.0, load=0.4)
    assert not mps_pays(slo=3.3, slowdown=1.10, load=0.4)  # late with it alone
    assert not mps_pays(slo=4.2, slowdown=1.10, load=0.4)  # in time, but with no slack to share
    assert mps_pays(slo=7.0, slowdown=1.10, load=0.4)
    assert not mps_pays(slo=1e6, slowdown=2.0, load=0.6)  # more than there is time for


@pytest.mark.parametrize("slowdown", [0.98, 1.0, 1.02])
def test_with_nothing_to_share_a_service_that_keeps_the_gpu_busy_goes_without_mps(slowdown: float) -> None:
    """Whatever the noise of the probe."""
    assert not mps_pays(slo=3.55, slowdown=slowdown, load=0.4)


@given(slo=st.floats(1, 20), slowdown=st.floats(0.5, 1.5), load=st.floats(0.05, 0.9), busy=st.floats(0, 0.89))
def test_a_service_that_waits_for_its_host_gets_mps_whatever_its_probe_says(
    slo: float, slowdown: float, load: float, busy: float
) -> None:
    assert mps_pays(slo=slo, slowdown=slowdown, load=load, busy=busy)


def test_the_p99_alone_grows_with_the_load() -> None:
    assert queueing.alone_p99(0.1) < queueing.alone_p99(0.4) < queueing.alone_p99(0.8)
    assert queueing.alone_p99(0.4) == pytest.approx(3.58, rel=0.1)  # M/D/1
