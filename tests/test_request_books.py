"""What is written down of requests: who had the device, whether they met what was promised, and whose miss it was."""

import ctypes
import threading
import time

import pytest

import herald
from herald import layout
from herald.layout import LEAD_NEVER, NO_QUEUE_LIMIT
from herald.table import Table
from tests.gates import is_closed, plan


@pytest.fixture
def table(domain: str) -> Table:
    return Table.open(domain)


def gate_word(table: Table) -> ctypes.c_uint32:
    """Of heavy ops on the first device."""
    offset = layout.CLASS_HEAVY * layout.GATE_STRIDE_BYTES
    return ctypes.c_uint32.from_address(table.address + table.header.gates_offset + offset)


def test_requests_are_told_apart_by_who_had_the_device(table: Table) -> None:
    with herald.attach(priority="high", slo="10s", device="cpu") as job:
        for _ in range(3):
            with job.request():
                pass
        plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
        for _ in range(5):
            with job.request():
                pass
        assert (job.stats().solo_requests, job.stats().beside_requests) == (3, 5)
        assert 0 < job.stats().beside_ns <= job.stats().busy_open_ns


def test_latency_counts_from_the_arrival_and_decides_the_slo(table: Table) -> None:
    with herald.attach(priority="high", slo="50ms", device="cpu") as job:
        with job.request(arrival=time.monotonic() - 0.2):
            pass
        with job.request(arrival=time.monotonic() - 0.2, slo="10s"):
            pass
        stats = job.stats()
        assert (stats.slo_met, stats.slo_missed) == (1, 1)
        assert stats.attainment == 0.5
        assert stats.latency.quantile(0.5) > 200_000_000 > stats.service.quantile(1.0)


def test_busy_time_is_that_with_a_request_open_and_of_it_the_gate(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        assert job.stats().busy_ns == 0
        begin = time.monotonic_ns()
        with job.request():
            while job.stats().busy_ns == 0:  # the agent books it while the request is open
                pass
        stats = job.stats()
        assert 0 < stats.busy_ns <= time.monotonic_ns() - begin
        assert stats.busy_open_ns == 0
        plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
        assert job.stats().busy_ns == stats.busy_ns
        with job.request():
            pass
        later = job.stats()
        assert later.busy_ns - stats.busy_ns == later.busy_open_ns > 0


def test_a_gate_that_another_service_closes_is_not_open(table: Table) -> None:
    with (
        herald.attach(priority="high", name="one", device="cpu") as one,
        herald.attach(priority="high", name="two", device="cpu") as two,
    ):
        plan(table, one, LEAD_NEVER, NO_QUEUE_LIMIT)
        with two.request(), one.request():
            pass
        assert one.stats().busy_ns > one.stats().busy_open_ns == 0


def test_a_request_ran_alone_when_its_own_job_held_the_gate_all_the_while(table: Table) -> None:
    with herald.attach(priority="high", slo="500s", device="cpu") as job:
        for _ in range(20):
            assert job.stats().alone_ns == -1
            with job.request():
                pass
        stats = job.stats()
        assert stats.solo_requests == 20
        assert 0 < stats.solo_ns <= stats.busy_ns
        assert 0 <= stats.alone_ns <= stats.busy_ns
        plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
        with job.request():
            pass
        assert job.stats().solo_requests == 20


def test_a_request_whose_hold_was_taken_for_a_while_did_not_run_alone(table: Table) -> None:
    with herald.attach(priority="high", slo="10s", device="cpu") as job:
        disturbed = job.begin()
        word = gate_word(table)
        word.value = 0  # as whoever takes the bit of a process that is stopped
        undisturbed = job.begin()  # it looks again
        assert word.value != 0
        disturbed.end()
        undisturbed.end()
        stats = job.stats()
        assert (stats.requests_done, stats.solo_requests, stats.closes) == (2, 1, 2)
        assert 0 < stats.held_ns <= stats.busy_ns


def test_a_thread_s_second_request_counts_from_the_end_of_its_first_in_any_number_of_threads(table: Table) -> None:
    num_threads = 40
    steps = [threading.Barrier(num_threads) for _ in range(2)]
    most_ns: list[int] = []

    def serve(job: herald.Job) -> None:
        begun_ns = time.monotonic_ns()
        first, second = job.begin(), job.begin()
        steps[0].wait()
        first_ends_ns = time.monotonic_ns()
        first.end()
        first_ended_ns = time.monotonic_ns()
        steps[1].wait()
        second.end()
        most_ns.append(first_ended_ns - begun_ns + time.monotonic_ns() - first_ends_ns)

    with herald.attach(priority="high", slo="10s", device="cpu") as job, job.request():  # held all the while
        threads = [threading.Thread(target=serve, args=(job,)) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = job.stats()
    assert stats.solo_requests == 2 * num_threads
    assert stats.solo_ns <= sum(most_ns)


def test_what_requests_take_beside_training_is_no_time_alone(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
        for _ in range(30):
            with job.request():
                pass
        assert job.stats().alone_ns == -1


def test_a_miss_that_training_has_no_part_in_is_told_apart(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        with job.request(slo="50ms", arrival=time.monotonic() - 0.2):  # it waited for nothing of its own job
            pass
        assert (job.stats().slo_missed, job.stats().missed_anyway) == (1, 0)
        with job.request(slo="1ns"):  # alone, and too slow
            pass
        assert (job.stats().slo_missed, job.stats().missed_anyway) == (2, 1)
        plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
        with job.request(slo="1ns"):  # nothing is learnt: who knows
            pass
        assert (job.stats().slo_missed, job.stats().missed_anyway) == (3, 1)


@pytest.mark.parametrize(("closed_after_s", "anyway"), [(0.002, 1), (0.03, 0)])
def test_what_takes_too_long_behind_the_closed_gate_takes_too_long_alone(
    table: Table, closed_after_s: float, anyway: int
) -> None:
    """Training is charged with a miss only where it ran for most of the request."""
    slo_s = 0.03
    with herald.attach(priority="high", device="cpu") as job:
        for _ in range(30):  # what they take alone: nothing
            job.begin().end()
        plan(table, job, round((slo_s - closed_after_s) * 1e9), NO_QUEUE_LIMIT)
        request = job.begin(slo="30ms")
        begun = time.monotonic()
        while not is_closed(table):
            assert time.monotonic() - begun < 30
        while time.monotonic() - begun < closed_after_s + slo_s * (1.5 if anyway else 0.1):
            pass
        request.end()
        assert (job.stats().slo_missed, job.stats().missed_anyway) == (1, anyway)


def test_requests_that_wait_for_each_other_would_have_waited_alone(table: Table) -> None:
    """Arrived together, served one after the other: the later ones miss by the time of the earlier ones."""
    with herald.attach(priority="high", device="cpu") as job:
        arrival = time.monotonic()
        first = job.begin(arrival=arrival)
        while time.monotonic() - arrival < 0.005:
            pass
        first.end()
        with job.request(arrival=arrival, slo="4ms"):
            pass
        assert (job.stats().slo_missed, job.stats().missed_anyway) == (1, 1)


def test_a_request_meets_its_slo_when_every_part_of_it_holds(table: Table) -> None:
    with herald.attach(priority="high", slo={"latency": "3600s", "ttft": "1800s"}, device="cpu") as job:
        with job.request() as request:
            request.first_token()
        assert (job.stats().slo_met, job.stats().slo_missed) == (1, 0)
        with job.request(arrival=time.monotonic() - 2000) as request:
            request.first_token()
        assert (job.stats().slo_met, job.stats().slo_missed) == (1, 1)
        with job.request():
            pass  # its first token was never told
        assert (job.stats().slo_met, job.stats().slo_missed) == (1, 2)
        assert job.stats().ttft.count == 2


@pytest.mark.parametrize(
    ("promised", "tokens", "steps", "met"),
    [
        ("3600s", 3, 0, True),
        ("1ns", 3, 0, False),
        ("1ns", 1, 0, True),  # there is no further token
        ("3600s", None, 0, False),  # not told
        ("3600s", None, 3, True),
        ("3600s", 0, 3, False),  # what is told at the end wins
    ],
)
def test_time_per_token_is_judged_by_the_tokens_that_were_told(
    table: Table, promised: str, tokens: int | None, steps: int, met: bool
) -> None:
    with herald.attach(priority="high", slo={"tpot": promised}, device="cpu") as job:
        request = job.begin()
        request.first_token()
        for _ in range(steps):
            request.step()
        request.end(tokens=tokens)
        stats = job.stats()
        assert (stats.slo_met, stats.slo_missed) == (met, not met)
        assert stats.tokens == (steps if tokens is None else tokens)
        assert stats.tpot.count == (stats.tokens > 1)


def test_slack_for_the_first_token_is_spent_with_it(table: Table) -> None:
    with herald.attach(priority="high", slo={"latency": "3600s", "ttft": "1s"}, device="cpu") as job:
        plan(table, job, lead_ns=100 * 10**9, queue_limit=NO_QUEUE_LIMIT)
        with job.request() as request:
            assert is_closed(table)
            request.first_token()
            assert not is_closed(table)


@pytest.mark.parametrize("tokens", [-1, 1.5, "3", True])
def test_a_wrong_number_of_tokens_is_refused_and_the_request_goes_on(table: Table, tokens: object) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        request = job.begin()
        with pytest.raises(herald.ConfigError, match=r"tokens = .*a whole number from 0"):
            request.end(tokens=tokens)
        assert is_closed(table)
        request.end()
        assert not is_closed(table)
