"""Requests: what counts as one, when the gate closes and opens, what the books say."""

import copy
import gc
import inspect
import os
import pickle
import threading
import time

import pytest
import torch

import herald
from herald import layout
from herald.hooks.service import HighJob
from herald.layout import LEAD_NEVER, NO_QUEUE_LIMIT
from herald.table import Table


@pytest.fixture
def table(domain: str) -> Table:
    return Table.open(domain)


def is_closed(table: Table) -> bool:
    return table.gate_words()["cpu", layout.CLASS_HEAVY] != 0


def plan(table: Table, job: herald.Job, lead_ns: int, queue_limit: int) -> None:
    view = job.stats()
    table.publish_plan(view.row, view.generation, lead_ns, queue_limit)


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
            1 / 0  # noqa: B018
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


@pytest.mark.parametrize("arrival", [time.time() + 1e6, float("nan"), -1.0, "now"])
def test_an_arrival_of_another_clock_is_refused(table: Table, arrival: object) -> None:
    with (
        herald.attach(priority="high", device="cpu") as job,
        pytest.raises(herald.ConfigError, match=r"arrival.*time\.monotonic"),
    ):
        job.begin(arrival=arrival)  # type: ignore[arg-type]
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
            job.queued(wrong)  # type: ignore[arg-type]


# ---- the books


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
            request.end(tokens=tokens)  # type: ignore[arg-type]
        assert is_closed(table)
        request.end()
        assert not is_closed(table)


def test_each_outermost_forward_is_one_request(table: Table) -> None:
    inner = torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(inner, torch.nn.ReLU(), inner)
    with herald.attach(model, priority="high") as job:
        model(torch.randn(2, 4))
        model.forward(torch.randn(2, 4))
        assert job.stats().requests_done == 2
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 5))
        assert job.stats().requests_done == 3
        assert not is_closed(table)


def test_forwards_inside_an_explicit_request_are_part_of_it(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high") as job:
        with job.request():
            for _ in range(5):
                model(torch.randn(2, 4))
        assert job.stats().requests_done == 1


def test_a_model_that_calls_itself_is_one_request(table: Table) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, again: bool = True) -> torch.Tensor:
            return self(x, again=False) if again else x

    model = Twice()
    with herald.attach(model, priority="high", device="cpu") as job:
        model(torch.randn(2))
        assert job.stats().requests_done == 1


def test_a_model_is_attached_once(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high"):
        with pytest.raises(herald.AttachError, match="attached already"):
            herald.attach(model, priority="high")
        assert len(table.jobs()) == 1
    assert "forward" not in model.__dict__


def test_a_forward_that_cannot_be_replaced_is_an_error_that_leaves_nothing(table: Table) -> None:
    class Fixed(torch.nn.Module):
        forward = property(lambda self: lambda x: x)  # type: ignore[assignment]

    with pytest.raises(herald.AttachError, match="Fixed cannot be wrapped"):
        herald.attach(Fixed(), priority="high", device="cpu")
    assert table.jobs() == []


def test_a_model_without_checkpoints_to_make_is_left_as_it_was(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: HighJob, model: torch.nn.Module) -> None:
        raise ZeroDivisionError

    model = torch.nn.Linear(4, 4)
    monkeypatch.setattr(HighJob, "_make_checkpoints", fail)
    with pytest.raises(herald.AttachError):
        herald.attach(model, priority="high")
    assert "forward" not in model.__dict__
    assert table.jobs() == []


def test_an_attached_forward_keeps_its_signature(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    before = inspect.signature(model.forward)
    with herald.attach(model, priority="high"):
        assert inspect.signature(model.forward) == before


def test_a_lost_request_ends_itself(table: Table) -> None:
    """A cancelled client must neither hold the gate nor switch automatic requests off."""
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high") as job:
        job.begin()
        gc.collect()
        assert not is_closed(table)
        model(torch.randn(2, 4))
        assert job.stats().requests_done == 2


def test_detach_leaves_the_model_as_it_was(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    before = dict(model.__dict__)
    job = herald.attach(model, priority="high")
    assert "forward" in model.__dict__
    job.detach()
    assert dict(model.__dict__) == before
    job.detach()
    model(torch.randn(2, 4))
    assert job.stats().requests_done == 0


def test_detach_keeps_what_someone_else_wrapped_around_the_model(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    job = herald.attach(model, priority="high")
    ours = model.forward
    model.forward = lambda x: ours(x) + 1
    theirs = model.forward
    job.detach()
    assert model.forward is theirs
    x = torch.zeros(1, 4)
    assert torch.equal(model(x), torch.nn.functional.linear(x, model.weight, model.bias) + 1)


def test_copies_and_pickles_of_an_attached_model_are_ordinary_models(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high") as job:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with torch.no_grad():
                other.weight.zero_()
                other.bias.fill_(1)
            assert torch.equal(other(torch.randn(2, 4)), torch.ones(2, 4))
        assert job.stats().requests_begun == 0


@pytest.mark.parametrize("compile_first", [True, False])
def test_a_compiled_model_makes_requests_whichever_came_first(table: Table, compile_first: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    x = torch.randn(2, 4)
    expected = model(x)
    if compile_first:
        compiled = torch.compile(model, backend="eager")
        job = herald.attach(compiled, priority="high")
    else:
        job = herald.attach(model, priority="high")
        compiled = torch.compile(model, backend="eager")
    with job:
        for _ in range(3):
            assert torch.equal(compiled(x), expected)
        assert job.stats().requests_done == 3


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


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_after_detach_requests_go_on_untracked_and_that_is_said_once(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    job = herald.attach(priority="high", slo={"ttft": "10s"}, name="chat", device="cpu")
    step = job.step("decode")
    job.detach()
    caplog.clear()
    for _ in range(2):
        request = job.begin()
        request.first_token()
        request.end(tokens=3)
        with job.request(), job.step("prefill"), step:
            pass
        step = job.step("decode")
        job.queued(3)
    assert table.jobs() == []
    (said,) = warnings_of(caplog)
    assert "job 'chat' was detached" in said
    assert "herald.attach again" in said


def test_wrong_arguments_stay_errors_after_detach(table: Table) -> None:
    job = herald.attach(priority="high", slo="10s", device="cpu")
    job.detach()
    with pytest.raises(herald.ConfigError):
        job.begin(slo="50")
    with pytest.raises(herald.ConfigError):
        job.queued(-1)


def test_a_service_that_was_forked_after_it_attached_is_told(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    with herald.attach(priority="high", slo="10s", name="chat", device="cpu") as job:
        caplog.clear()
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            with job.request():
                pass
            os.write(writer, "\n".join(warnings_of(caplog)).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as said:
            assert "job 'chat' was attached before this process was forked" in said.read()
        assert job.stats().requests_begun == 0


@pytest.mark.parametrize("part", ["ttft", "tpot"])
def test_a_first_token_that_was_promised_and_never_told_is_warned_of_once(
    table: Table, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    with herald.attach(priority="high", slo={part: "10s"}, name="chat", device="cpu") as job:
        caplog.clear()
        for _ in range(2):
            job.begin().end(tokens=3)
        assert job.stats().slo_missed == 2
    (said,) = warnings_of(caplog)
    assert "job 'chat'" in said
    assert "first_token()" in said


def test_requests_that_were_told_lost_or_made_nothing_are_not_warned_of(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    with herald.attach(priority="high", slo={"ttft": "10s"}, device="cpu") as job:
        caplog.clear()
        with job.request() as request:
            request.first_token()
        with job.request(slo="10s"):
            pass
        job.begin().end(tokens=0)
        job.begin()  # lost
        with pytest.raises(ZeroDivisionError), job.request():
            1 / 0  # noqa: B018
        gc.collect()
        assert job.stats().requests_done == 5
    assert warnings_of(caplog) == []


def test_forwards_cannot_say_their_first_token(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo={"ttft": "10s"}):
        caplog.clear()
        model(torch.zeros(1, 4))
    assert "job.begin()" in "".join(warnings_of(caplog))
