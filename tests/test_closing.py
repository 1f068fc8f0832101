"""The arithmetic of the closing rule, in native code: what a queue of requests leaves of its deadlines."""

import ctypes
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herald import layout
from herald.hooks import native
from herald.scheduler.simulator import closing
from herald.scheduler.snapshot import Pace

MS = 1_000_000

times_ns = st.integers(0, 10**12)
queues = st.lists(st.tuples(st.one_of(st.just(layout.NO_DEADLINE), times_ns), times_ns), max_size=12)
paces = st.builds(Pace, st.integers(0, 10**9), st.integers(1_000_000, 4_000_000), st.just(990_000))


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    native.hook()  # a build is no part of a test's time


def close_at(queue: Sequence[tuple[int, int]], pace: Pace, ahead_ns: int = 0) -> int:
    """Of requests (deadline, remaining time), in their order."""
    deadlines = (ctypes.c_int64 * len(queue))(*(deadline for deadline, _ in queue))
    remaining = (ctypes.c_int64 * len(queue))(*(left for _, left in queue))
    native_close_at = native.hook().herald_close_at
    return int(native_close_at(len(queue), deadlines, remaining, pace.margin_ns, pace.inflation_ppm, ahead_ns))


def test_a_request_alone_closes_its_lead_before_its_deadline() -> None:
    assert close_at([(100 * MS, 10 * MS)], Pace(MS, 1_500_000, 0)) == (100 - 1 - 15) * MS


def test_the_last_of_a_queue_may_be_the_first_to_need_it() -> None:
    queue = [(100 * MS, 10 * MS), (102 * MS, 10 * MS), (104 * MS, 10 * MS)]
    assert close_at(queue, Pace(0, 1_000_000, 0)) == 74 * MS
    assert close_at(queue, Pace(0, 1_000_000, 0), ahead_ns=5 * MS) == 69 * MS


def test_without_a_deadline_nothing_closes() -> None:
    assert close_at([], Pace(0, 1_000_000, 0)) == layout.NO_DEADLINE
    assert close_at([(layout.NO_DEADLINE, 10 * MS)], Pace(0, 1_000_000, 0)) == layout.NO_DEADLINE


@given(queues, paces, times_ns)
def test_it_is_the_earliest_deadline_less_the_lead_of_all_work_up_to_it(
    queue: list[tuple[int, int]], pace: Pace, ahead_ns: int
) -> None:
    expected = layout.NO_DEADLINE
    work_ns = ahead_ns
    for deadline, remaining in queue:
        work_ns += remaining
        if deadline != layout.NO_DEADLINE:
            expected = min(expected, deadline - pace.lead_ns(work_ns))
    assert close_at(queue, pace, ahead_ns) == expected


@given(queues, paces, times_ns)
def test_a_gate_that_closes_then_lets_every_deadline_be_met(
    queue: list[tuple[int, int]], pace: Pace, ahead_ns: int
) -> None:
    """Where the margin passes first, and all work runs slower than predicted by the inflation."""
    now_ns = close_at(queue, pace, ahead_ns) + pace.margin_ns
    work_ns = ahead_ns
    for deadline, remaining in queue:
        work_ns += remaining
        if deadline != layout.NO_DEADLINE:
            assert now_ns + work_ns * pace.inflation_ppm // 1_000_000 <= deadline


@given(queues, paces, times_ns, st.data())
def test_one_request_less_never_closes_it_earlier(
    queue: list[tuple[int, int]], pace: Pace, ahead_ns: int, data: st.DataObject
) -> None:
    if queue:
        gone = data.draw(st.integers(0, len(queue) - 1))
        assert close_at(queue[:gone] + queue[gone + 1 :], pace, ahead_ns) >= close_at(queue, pace, ahead_ns)


@given(queues, paces, times_ns)
def test_the_simulator_has_the_same_rule(queue: list[tuple[int, int]], pace: Pace, ahead_ns: int) -> None:
    deadlines, remaining = [d for d, _ in queue], [r for _, r in queue]
    twin_ns = closing.close_at_ns(deadlines, remaining, pace.margin_ns, pace.inflation_ppm, ahead_ns)
    assert close_at(queue, pace, ahead_ns) == twin_ns
