"""Requests: what counts as one, when the gate closes and opens, what the books say."""

import gc
import threading
import time

import pytest
import torch

import herald
from herald import layout
from herald.clock import now_ns
from herald.layout import LEAD_NEVER, NO_QUEUE_LIMIT
from herald.table import Table
from tests.gates import is_closed, plan


@pytest.fixture
def table(domain: str) -> Table:
    return Table.open(domain)


def test_the_gate_is_closed_exactly_while_a_request_is_open(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        assert not is_closed(table)
        with job.request():
            assert is_closed(table)
        assert not is_closed(table)
        assert job.stats().closes == 1


def test_under_a_plan_that_never_closes_trainers_need_not_look_out(table: Table) -> None:
    with herald.attach(priority="high", slo="10s", device="cpu") as job:

        def is_announced() -> bool:
            with job.request():  # a plan is taken up at the next request, or the agent's next beat
                pass
            return table.gate_words()["cpu", layout.CLASS_ATTACHED] != 0

        assert is_announced()
        plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
        assert not is_announced()
        plan(table, job, LEAD_NEVER, 1)
        assert is_announced()
        plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
        assert not is_announced()
    assert table.gate_words()["cpu", layout.CLASS_ATTACHED] == 0


def test_a_plan_that_no_daemon_corrects_is_given_up_until_one_is_back(table: Table) -> None:
    def heard_of_daemon(seconds_ago: int) -> None:
        table.header.daemon_heartbeat_ns = now_ns() - seconds_ago * 10**9

    with herald.attach(priority="high", slo="10s", device="cpu") as job:
        for _ in range(2):
            heard_of_daemon(0)
            plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
            with job.request():
                assert not is_closed(table)
            heard_of_daemon(11)
            with job.request():
                assert is_closed(table)
            assert job.stats().lead_ns == layout.LEAD_ALWAYS


def test_overlapping_requests_hold_the_gate_until_the_last_ends_in_any_order(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        requests = [job.begin() for _ in range(3)]
        for index in (1, 0):
            requests[index].end()
            assert is_closed(table)
        requests[2].end()
        assert not is_closed(table)
        assert job.stats().requests_done == 3


def test_ending_twice_counts_once(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        first, second = job.begin(), job.begin()
        first.end()
        first.end()
        assert is_closed(table)
        second.end()
        assert job.stats().requests_done == 2


def test_an_exception_ends_the_request_and_goes_on(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        with pytest.raises(ZeroDivisionError), job.request():
            raise ZeroDivisionError
        assert not is_closed(table)
        assert job.stats().requests_done == 1


def test_requests_from_many_threads_are_all_counted(table: Table) -> None:
    with herald.attach(priority="high", slo="10s", device="cpu") as job:

        def serve() -> None:
            for _ in range(200):
                with job.request():
                    pass

        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = job.stats()
        assert (stats.requests_done, stats.slo_met, stats.open_requests) == (800, 800, 0)
        assert stats.latency.count == 800
        assert not is_closed(table)


@pytest.mark.parametrize("arrival", [time.time() + 1e6, float("nan"), -1.0, "now"])
def test_an_arrival_of_another_clock_is_refused(table: Table, arrival: object) -> None:
    with (
        herald.attach(priority="high", device="cpu") as job,
        pytest.raises(herald.ConfigError, match=r"arrival.*time\.monotonic"),
    ):
        job.begin(arrival=arrival)
    assert not is_closed(table)


def test_a_free_plan_never_closes(table: Table) -> None:
    with herald.attach(priority="high", slo="50ms", device="cpu") as job:
        plan(table, job, LEAD_NEVER, NO_QUEUE_LIMIT)
        with job.request(arrival=time.monotonic() - 1), job.request():
            assert not is_closed(table)


def test_a_laxity_plan_closes_when_the_slack_is_used_up(table: Table) -> None:
    """By the job's own agent, without anybody calling: here the slack is gone at the start."""
    with herald.attach(priority="high", slo="10s", device="cpu") as job:
        plan(table, job, lead_ns=10**9, queue_limit=1)
        with job.request():
            assert not is_closed(table)
        with job.request(arrival=time.monotonic() - 9.5):
            assert is_closed(table)
        with job.request(arrival=time.monotonic() - 8.99):
            while not is_closed(table):  # in 10 ms the agent does it
                pass
        assert not is_closed(table)


def test_a_laxity_plan_closes_as_soon_as_a_second_request_waits(table: Table) -> None:
    with herald.attach(priority="high", slo="3600s", device="cpu") as job:
        plan(table, job, lead_ns=10**9, queue_limit=1)
        first = job.begin()
        assert not is_closed(table)
        second = job.begin()
        assert is_closed(table)
        first.end()
        assert not is_closed(table)
        second.end()


def give_pace(table: Table, job: herald.Job, lead_ns: int, margin_ns: int = 0) -> None:
    view = job.stats()
    pace = {"margin_ns": margin_ns, "inflation_ppm": 1_000_000, "quantile_ppm": 990_000}
    table.publish_plan(view.row, view.generation, lead_ns, NO_QUEUE_LIMIT, **pace)


def test_a_request_makes_room_for_those_before_it(table: Table) -> None:
    """Each is thought to take 200 s; the third of three would be done after 600 s, 100 s too late."""
    with herald.attach(priority="high", slo="500s", device="cpu") as job:
        give_pace(table, job, lead_ns=200 * 10**9)
        first, second = job.begin(), job.begin()
        assert not is_closed(table)
        with job.request():
            assert is_closed(table)
        assert not is_closed(table)
        first.end()
        with job.request():
            assert not is_closed(table)
        second.end()


def test_a_request_behind_one_without_an_slo_waits_for_it_all_the_same(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        give_pace(table, job, lead_ns=200 * 10**9)
        first = job.begin()
        assert not is_closed(table)
        with job.request(slo="300s"):
            assert is_closed(table)
        first.end()
        with job.request(slo="300s"):
            assert not is_closed(table)


def test_without_a_pace_each_request_has_the_lead_of_the_plan(table: Table) -> None:
    with herald.attach(priority="high", slo="500s", device="cpu") as job:
        plan(table, job, lead_ns=200 * 10**9, queue_limit=NO_QUEUE_LIMIT)
        requests = [job.begin() for _ in range(5)]
        assert not is_closed(table)
        del requests


@pytest.mark.parametrize(
    ("due_s", "remaining_ns", "alone_ns", "closes"),
    [
        (100, 400 * 10**9, -1, True),
        (100, -1, 400 * 10**9, True),
        (100, 10 * 10**9, 400 * 10**9, False),  # what remains counts, not all of it
        (100, -1, -1, False),
        (900, 400 * 10**9, -1, False),  # it is due later: it waits for this one
        (None, 400 * 10**9, -1, False),
    ],
)
def test_a_service_makes_room_for_the_earlier_requests_of_another(
    table: Table, due_s: int | None, remaining_ns: int, alone_ns: int, closes: bool
) -> None:
    other = table.claim(name="other", priority="high", device="cpu")
    row = table._rows[other]
    row.remaining_ns, row.alone_ns = remaining_ns, alone_ns
    row.oldest_deadline_ns = layout.NO_DEADLINE if due_s is None else time.monotonic_ns() + due_s * 10**9
    with herald.attach(priority="high", slo="500s", device="cpu") as job:
        give_pace(table, job, lead_ns=200 * 10**9)
        with job.request():
            assert is_closed(table) == closes
    table.release(other)


def test_another_services_request_that_comes_later_is_noticed(table: Table) -> None:
    """By the job's agent: nobody tells it."""
    other = table.claim(name="other", priority="high", device="cpu")
    with herald.attach(priority="high", slo="500s", device="cpu") as job:
        give_pace(table, job, lead_ns=200 * 10**9)
        with job.request():
            assert not is_closed(table)
            table._rows[other].remaining_ns = 400 * 10**9
            table._rows[other].oldest_deadline_ns = time.monotonic_ns()
            while not is_closed(table):
                pass
    table.release(other)


def test_a_sliced_plan_closes_and_opens_in_turns_and_nothing_else_counts(table: Table) -> None:
    with herald.attach(priority="high", slo="50ms", device="cpu") as job:
        view = job.stats()
        table.publish_plan(view.row, view.generation, LEAD_NEVER, NO_QUEUE_LIMIT, slice_ns=1000 * 10**9)
        with job.request():
            assert is_closed(table)
        assert not is_closed(table)
        table.publish_plan(view.row, view.generation, layout.LEAD_ALWAYS, 0, slice_ns=2_000_000)
        with job.request():
            for closed in (False, True, False, True):
                while is_closed(table) != closed:
                    pass
        assert not is_closed(table)


def test_requests_that_wait_outside_count_as_open_ones(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        plan(table, job, lead_ns=10**9, queue_limit=2)
        job.queued(5)
        assert not is_closed(table)
        job.queued(1)
        with job.request():
            assert not is_closed(table)
            job.queued(2)
            assert is_closed(table)
            job.queued(0)
            assert not is_closed(table)
    for wrong in (-1, 1.5, "2", True):
        with pytest.raises(herald.ConfigError, match="how many requests wait"):
            job.queued(wrong)


# ---- the books


def test_a_lost_request_ends_itself(table: Table) -> None:
    """A cancelled client must neither hold the gate nor switch automatic requests off."""
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high") as job:
        job.begin()
        gc.collect()
        assert not is_closed(table)
        model(torch.randn(2, 4))
        assert job.stats().requests_done == 2


def test_more_requests_than_slots_run_untracked(table: Table) -> None:
    """Inference never waits and never fails for want of a slot."""
    with herald.attach(priority="high", device="cpu") as job:
        requests = [job.begin() for _ in range(4100)]
        assert job.stats().open_requests == 4096
        for request in requests:
            request.end()
        assert (job.stats().requests_done, job.stats().open_requests) == (4096, 0)
        assert not is_closed(table)


def test_a_job_that_detaches_with_open_requests_opens_the_gate(table: Table) -> None:
    job = herald.attach(priority="high", device="cpu")
    request = job.begin()
    job.detach()
    assert not is_closed(table)
    request.end()
    assert table.jobs() == []
