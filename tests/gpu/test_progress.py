"""Progress on a real GPU: streams write it, the agent reads it, and predictions hold."""

from itertools import pairwise

import pytest

import herald
from herald import layout
from herald.hooks import checkpoints
from herald.hooks.checkpoints import RECORDED_FORWARDS
from herald.table import Table

torch = pytest.importorskip("torch")

FEWEST = 20
MS = 1_000_000


class Block(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(size, size, device="cuda")

    def forward(self, x):
        return torch.relu(self.linear(x))


@pytest.fixture
def deep():
    """A forward of some 60 ms, much longer on the GPU than on the host."""
    model = torch.nn.Sequential(*(Block(4096) for _ in range(24)))
    with torch.inference_mode():
        yield model, torch.randn(4096, 4096, device="cuda")


def serve(model, x, count: int) -> None:
    for _ in range(count):
        model(x)
        torch.cuda.synchronize()


def settle(job: herald.Job) -> None:
    """Wait until the agent has booked every request."""
    while job.stats().open_requests:
        pass


def test_checkpoints_are_chosen_by_device_time(domain: str, deep) -> None:
    model, x = deep
    with herald.attach(model, priority="high", slo="1s", domain=domain) as job:
        serve(model, x, RECORDED_FORWARDS[0] + 1)
        places = [list(model.modules()).index(m) for m in job._checkpoints.chosen]
    assert len(places) == checkpoints.MOST
    # Evenly by device time: of 24 like blocks of 3 modules, every third block or so.
    gaps = [later - earlier for earlier, later in pairwise(places)]
    assert max(gaps) <= 2 * min(gaps)


def test_the_remaining_time_of_a_forward_is_predicted(domain: str, deep) -> None:
    model, x = deep
    with herald.attach(model, priority="high", slo="1s", domain=domain) as job:
        job.observe_progress()
        serve(model, x, RECORDED_FORWARDS[1] + 2 * FEWEST)
        settle(job)
        warm = job.stats()
        serve(model, x, 50)
        settle(job)
        stats = job.stats()
    scored = stats.progress_scored - warm.progress_scored
    error = (stats.progress_error_ppm - warm.progress_error_ppm) / 1e6 / scored
    print(f"error at the middle, of the remaining time: {error:.1%} of {scored} requests")
    assert scored == 50
    assert error < 0.10


def test_the_remaining_time_of_a_decode_loop_is_predicted(domain: str) -> None:
    model = torch.nn.Sequential(*(Block(4096) for _ in range(8)))
    x = torch.randn(512, 4096, device="cuda")  # longer on the GPU than on the host, whose hiccups nobody predicts
    with herald.attach(model, priority="high", slo="10s", domain=domain) as job, torch.inference_mode():
        job.observe_progress()
        for _ in range(100):
            with job.request():
                for _ in range(32):
                    model(x)
            torch.cuda.synchronize()
        settle(job)
        stats = job.stats()
    print(f"error at the middle, of the remaining time: {stats.progress_error:.1%}")
    assert stats.progress_scored >= 50
    assert stats.progress_error < 0.15


def test_progress_is_that_of_the_gpu_and_not_of_the_host(domain: str, deep) -> None:
    """Everything is enqueued and nothing done: the request is nowhere near its last checkpoint."""
    model, x = deep
    with herald.attach(model, priority="high", slo="1s", domain=domain) as job:
        job.observe_progress()
        serve(model, x, RECORDED_FORWARDS[1] + 2 * FEWEST)
        settle(job)
        service_ns = job.stats().service.quantile(0.5)
        torch.cuda._sleep(2_000_000_000)  # about a second
        model(x)
        while (stats := job.stats()).remaining_ns < 0:
            pass
        assert stats.requests_done < stats.requests_begun
        assert stats.remaining_ns > service_ns / 2
        torch.cuda.synchronize()
        settle(job)


def test_a_captured_forward_writes_no_marks_and_replays(domain: str, deep) -> None:
    model, x = deep
    with herald.attach(model, priority="high", slo="1s", domain=domain) as job:
        job.observe_progress()
        serve(model, x, RECORDED_FORWARDS[0] + 2)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = model(x)
        for _ in range(3):
            with job.request() as request:
                graph.replay()
                request.step()
            torch.cuda.synchronize()
        settle(job)
        assert torch.isfinite(y).all()
        assert job.stats().requests_done == job.stats().requests_begun


def test_marks_on_another_stream_never_undo_a_completion(domain: str) -> None:
    """A step that lands after the request is over, even after the slot's next request began, is nobody's."""
    with herald.attach(priority="high", slo="10s", domain=domain, device="cuda") as job:
        job.observe_progress()
        table, side = Table.open(domain), torch.cuda.Stream()
        for _ in range(50):
            request = job.begin()
            with torch.cuda.stream(side):
                torch.cuda._sleep(1_000_000)
                request.step()
            request.end()
        torch.cuda.synchronize()
        settle(job)
        assert job.stats().requests_done == 50
        assert table.gate_words()[job.stats().device, layout.CLASS_HEAVY] == 0


def test_the_gate_closes_later_for_a_request_that_got_on(domain: str, deep) -> None:
    """Under a lead longer than the SLO the gate closes at once, unless it is known that little remains."""
    model, x = deep
    with herald.attach(model, priority="high", slo="500s", domain=domain) as job:
        job.observe_progress()
        serve(model, x, RECORDED_FORWARDS[1] + 2 * FEWEST)
        settle(job)
        table, view = Table.open(domain), job.stats()
        closed: list[int] = []

        def look() -> None:
            closed.append(table.gate_words()[view.device, layout.CLASS_HEAVY])

        with job.request():
            half = model[:12](x)
            torch.cuda.synchronize()
            look()
            pace = {"margin_ns": MS, "inflation_ppm": 1_100_000, "quantile_ppm": 990_000}
            table.publish_plan(view.row, view.generation, 1000 * 10**9, 1, **pace)
            while table.gate_words()[view.device, layout.CLASS_HEAVY]:
                pass  # the agent's next beat takes the plan up
            model[12:](half)
        torch.cuda.synchronize()
        settle(job)
        assert closed == [1]


def test_streams_write_how_far_a_request_is_only_where_a_plan_asks(domain: str) -> None:
    """Of a request that takes longer than any before it nothing seems to remain, unless its steps were told."""
    with herald.attach(priority="high", slo="500s", domain=domain, device="cuda") as job:
        for _ in range(FEWEST + 4):
            with job.request() as request:
                for _ in range(3):
                    take_a_step(request)
            torch.cuda.synchronize()
        settle(job)
        assert not is_told_to_remain(job)
        view = job.stats()
        pace = {"margin_ns": MS, "inflation_ppm": 1_100_000, "quantile_ppm": 990_000}
        Table.open(domain).publish_plan(view.row, view.generation, 10 * MS, 50, **pace)
        assert is_told_to_remain(job)


def take_a_step(request: herald.Request) -> None:
    torch.cuda._sleep(60_000_000)  # some 30 ms
    request.step()


def is_told_to_remain(job: herald.Job) -> bool:
    """Whether anything is, of a late request two steps before its end."""
    with job.request() as request:
        torch.cuda._sleep(600_000_000)  # longer than any request so far
        take_a_step(request)
        torch.cuda.synchronize()
        found = any(job.stats().remaining_ns > 0 for _ in range(5_000))  # beyond one beat of the agent
        for _ in range(2):
            take_a_step(request)
    torch.cuda.synchronize()
    settle(job)
    return found
