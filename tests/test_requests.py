"""Requests: what counts as one, when the gate closes and opens, what the books say."""

import copy
import gc
import inspect
import pickle
import threading
import time

import pytest
import torch

import herald
from herald import layout
from herald.hooks.job import HighJob
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
