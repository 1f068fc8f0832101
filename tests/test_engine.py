"""Engines that serve many requests at once: their steps hold the gate, their requests are judged."""

import time

import pytest
import torch

import herald
from herald import layout
from herald.layout import LEAD_NEVER, NO_QUEUE_LIMIT
from herald.table import Table

FEWEST = 20  # below, nothing is learnt
S = 10**9


@pytest.fixture
def table(domain: str) -> Table:
    return Table.open(domain)


def is_closed(table: Table) -> bool:
    return table.gate_words()["cpu", layout.CLASS_HEAVY] != 0


def plan(table: Table, job: herald.Job, lead_ns: int, queue_limit: int = NO_QUEUE_LIMIT, **pace: int) -> None:
    view = job.stats()
    table.publish_plan(view.row, view.generation, lead_ns, queue_limit, **pace)


def test_steps_hold_the_gate_and_requests_do_not(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        request = job.begin()
        assert is_closed(table)  # nobody has said yet that this is an engine
        for kind in ("prefill", "decode"):
            with job.step(kind):
                assert is_closed(table)
            assert not is_closed(table)
        second = job.begin()
        assert not is_closed(table)
        assert (job.stats().engine, job.stats().open_requests) == (1, 2)
        request.end()
        second.end()
        assert (job.stats().requests_done, job.stats().open_requests) == (2, 0)


def test_steps_that_overlap_hold_it_until_the_last_ends(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        first, second = job.step("decode"), job.step("decode")
        with second:
            first.__enter__()
        assert is_closed(table)
        first.__exit__(None, None, None)
        assert not is_closed(table)


def test_an_exception_ends_the_step(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        with pytest.raises(ZeroDivisionError), job.step("decode"):
            raise ZeroDivisionError
        assert not is_closed(table)


def test_a_lost_step_ends_itself(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        job.step("decode").__enter__()
        assert not is_closed(table)


def test_more_steps_than_slots_run_untracked(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        steps = [job.step("decode") for _ in range(70)]
        for step in steps:
            step.__enter__()
        for step in steps:
            step.__exit__(None, None, None)
        assert job.stats().service.count == 64
        assert not is_closed(table)


def test_requests_never_keep_a_step_out(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        requests = [job.begin() for _ in range(4100)]
        with job.step("decode"):
            assert is_closed(table)
            for request in requests:
                request.end()
            assert is_closed(table)
        assert not is_closed(table)


def test_busy_time_and_service_times_are_those_of_steps(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        with job.step("prefill"):
            pass
        busy_ns = job.stats().busy_ns
        with job.request():
            pass
        stats = job.stats()
        assert (stats.service.count, stats.solo_requests, stats.latency.count) == (1, 1, 1)
        assert stats.busy_ns == busy_ns > 0


def test_forwards_within_a_step_are_part_of_it(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high") as job:
        with job.step("decode"), job.step("decode"):
            model(torch.zeros(1, 4))
        assert job.stats().requests_begun == 0
        model(torch.zeros(1, 4))
        assert job.stats().requests_done == 1


# ---- deadlines


def test_a_step_is_due_when_it_is_said(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        due = time.monotonic() + 500
        with job.step("decode", deadline=due):
            assert job.stats().oldest_deadline_ns == round(due * 1e9)
        assert job.stats().oldest_deadline_ns == layout.NO_DEADLINE


def test_a_prefill_is_due_when_the_first_tokens_are(table: Table) -> None:
    """Of those that wait for one: the earliest."""
    arrival = time.monotonic()
    with herald.attach(priority="high", slo={"ttft": "100s", "tpot": "7s"}, device="cpu") as job:
        early, late = job.begin(arrival=arrival), job.begin(arrival=arrival + 5)
        with job.step("prefill"):
            assert job.stats().oldest_deadline_ns == round((arrival + 100) * 1e9)
        early.first_token()
        with job.step("prefill"):
            assert job.stats().oldest_deadline_ns == round((arrival + 105) * 1e9)
        late.end()
        with job.step("prefill"):
            assert job.stats().oldest_deadline_ns == layout.NO_DEADLINE


def test_a_decode_step_is_due_one_time_per_token_after_the_one_before(table: Table) -> None:
    with herald.attach(priority="high", slo={"ttft": "100s", "tpot": "7s"}, device="cpu") as job:
        request = job.begin()
        with job.step("decode"):
            assert job.stats().oldest_deadline_ns == layout.NO_DEADLINE  # nobody has a token yet
        since = time.monotonic_ns()
        request.first_token()
        for _ in range(2):
            with job.step("decode"):
                due = job.stats().oldest_deadline_ns
                assert since + 7 * S <= due <= time.monotonic_ns() + 7 * S
                since = time.monotonic_ns()
        request.end()


def test_a_step_that_nothing_is_promised_of_has_all_the_time(table: Table) -> None:
    with herald.attach(priority="high", slo="50ms", device="cpu") as job:
        plan(table, job, lead_ns=S)
        with job.request(), job.step("decode"):
            assert job.stats().oldest_deadline_ns == layout.NO_DEADLINE
            assert not is_closed(table)


def test_times_are_learnt_apart_for_each_kind(table: Table) -> None:
    """A decode step's is known after twenty; a prefill still has the lead of the plan, which is long."""
    with herald.attach(priority="high", device="cpu") as job:
        for _ in range(FEWEST):
            with job.step("decode"):
                pass
        assert job.stats().alone_ns >= 0
        plan(table, job, 1000 * S, margin_ns=1, inflation_ppm=1_000_000, quantile_ppm=990_000)
        with job.step("decode", deadline=time.monotonic() + 500):
            assert not is_closed(table)
        with job.step("prefill", deadline=time.monotonic() + 500):
            assert is_closed(table)


def test_requests_that_wait_close_the_gate_while_a_step_is_open(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        plan(table, job, lead_ns=S, queue_limit=1)
        requests = [job.begin() for _ in range(3)]  # taken in: it is the waiting ones that count
        with job.step("decode"):
            assert not is_closed(table)
            job.queued(1)
            assert is_closed(table)
        assert not is_closed(table)
        assert job.stats().queued == 1
        del requests


# ---- the books of its requests


def test_requests_are_judged_by_their_tokens(table: Table) -> None:
    with herald.attach(priority="high", slo={"ttft": "3600s", "tpot": "3600s"}, device="cpu") as job:
        request = job.begin()
        with job.step("prefill"):
            pass
        request.first_token()
        request.step()
        for _ in range(2):
            with job.step("decode"):
                pass
            request.step()
        request.end()
        with job.request(arrival=time.monotonic() - 4000) as late:
            late.first_token()
            late.end(tokens=2)
        stats = job.stats()
        assert (stats.slo_met, stats.slo_missed, stats.tokens) == (1, 1, 5)
        assert (stats.ttft.count, stats.tpot.count) == (2, 2)


def test_a_miss_that_no_step_lost_time_for_would_have_been_one_alone(table: Table) -> None:
    with herald.attach(priority="high", slo={"latency": "1ns"}, device="cpu") as job:
        request = job.begin()
        with job.step("decode"):  # with the gate closed
            pass
        request.end()
        assert (job.stats().slo_missed, job.stats().missed_anyway) == (1, 1)


def test_a_miss_beside_steps_of_unknown_cost_is_not_said_to_be_one_alone(table: Table) -> None:
    with herald.attach(priority="high", slo={"latency": "1ns"}, device="cpu") as job:
        plan(table, job, LEAD_NEVER)
        request = job.begin()
        with job.step("decode"):
            pass
        request.end()
        assert (job.stats().slo_missed, job.stats().missed_anyway) == (1, 0)


def test_what_steps_lose_to_training_is_not_the_requests_fault(table: Table) -> None:
    """Steps take next to nothing alone; one that takes 20 ms with the gate open has lost them."""
    with herald.attach(priority="high", device="cpu") as job:
        with job.step("decode"):
            pass
        for _ in range(FEWEST):
            with job.step("decode"):
                pass
        plan(table, job, LEAD_NEVER)
        request = job.begin(slo="15ms")
        with job.step("decode"):
            begin = time.monotonic()
            while time.monotonic() - begin < 0.02:
                pass
        request.end()
        stats = job.stats()
        assert (stats.slo_missed, stats.missed_anyway) == (1, 0)


# ---- what may go wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "verify"}, r"kind = 'verify'.*'prefill'.*'decode'"),
        ({"kind": "decode", "deadline": time.time() + 1e6}, r"deadline = .*time\.monotonic"),
        ({"kind": "decode", "deadline": float("nan")}, r"deadline = nan.*time\.monotonic"),
        ({"kind": "decode", "deadline": "soon"}, r"deadline = 'soon'.*time\.monotonic"),
    ],
)
def test_a_wrong_step_is_refused(table: Table, arguments: dict[str, object], message: str) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        with pytest.raises(herald.ConfigError, match=message):
            job.step(**arguments)
        assert job.stats().engine == 0


def test_a_step_is_taken_once(table: Table) -> None:
    with herald.attach(priority="high", device="cpu") as job:
        step = job.step("decode")
        with step:
            pass
        with pytest.raises(herald.ConfigError, match="begun already"), step:
            pass


def test_a_low_priority_job_has_no_steps(domain: str) -> None:
    with herald.attach(priority="low", device="cpu") as job:
        for call in (lambda: job.step("decode"), lambda: job.queued(1)):
            with pytest.raises(herald.ConfigError, match="'low'.*'high'"):
                call()


def test_after_detach_nothing_happens(table: Table) -> None:
    job = herald.attach(priority="high", device="cpu")
    request = job.begin()
    open_step = job.step("decode")
    with open_step:
        job.detach()
        assert not is_closed(table)
    with job.step("prefill"):
        assert not is_closed(table)
    job.queued(3)
    request.first_token()
    request.end(tokens=3)
    assert (job.stats().queued, job.stats().tokens) == (0, 0)


def test_a_forked_child_has_no_part_in_it(table: Table, child) -> None:
    parent = child("""
        import os, herald
        job = herald.attach(priority="high", device="cpu")
        request = job.begin()
        with job.step("decode"):
            if os.fork() == 0:
                job.queued(5)
                request.first_token()
                with job.step("prefill"):
                    pass
                os._exit(0)
            os.wait()
        request.end(tokens=1)
        stats = job.stats()
        print("stats", stats.queued, stats.ttft.count, stats.service.count, stats.tokens)
    """)
    assert parent.expect("stats") == "0 0 1 1"
