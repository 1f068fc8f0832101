"""What a service is told of its requests, once: those that nobody tracks, what was promised and never said."""

import gc
import os

import pytest
import torch

import herald
from herald.hooks.requests import Request
from herald.table import Table


@pytest.fixture
def table(domain: str) -> Table:
    return Table.open(domain)


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


def test_tokens_that_a_promise_needs_and_nobody_told_are_warned_of_once(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    with herald.attach(priority="high", slo={"tpot": "10s"}, name="chat", device="cpu") as job:
        caplog.clear()
        for _ in range(2):
            with job.request() as request:
                request.first_token()
        assert (job.stats().slo_missed, job.stats().tpot.count) == (2, 0)
    (said,) = warnings_of(caplog)
    assert "job 'chat'" in said
    assert "request.end(tokens=...)" in said
    assert "request.step()" in said


def test_tokens_that_were_told_or_that_nothing_needs_are_not_warned_of(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    with herald.attach(priority="high", slo={"tpot": "10s"}, device="cpu") as job:
        caplog.clear()

        def begun() -> Request:
            request = job.begin()
            request.first_token()
            return request

        begun().end(tokens=3)
        begun().end(tokens=0)
        stepped = begun()
        stepped.step()
        stepped.end()
        begun()  # lost
        with pytest.raises(ZeroDivisionError), begun():
            raise ZeroDivisionError
        with job.request(slo={"ttft": "10s"}) as request:
            request.first_token()
        gc.collect()
        assert job.stats().requests_done == 6
    assert warnings_of(caplog) == []


def test_forwards_of_a_request_are_its_tokens(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo={"tpot": "10s"}) as job:
        caplog.clear()
        with job.request() as request:
            for _ in range(3):
                model(torch.zeros(1, 4))
                request.first_token()
        assert (job.stats().slo_met, job.stats().tokens) == (1, 3)
    assert warnings_of(caplog) == []


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
            raise ZeroDivisionError
        gc.collect()
        assert job.stats().requests_done == 5
    assert warnings_of(caplog) == []


def test_forwards_cannot_say_their_first_token(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo={"ttft": "10s"}):
        caplog.clear()
        model(torch.zeros(1, 4))
    assert "job.begin()" in "".join(warnings_of(caplog))
