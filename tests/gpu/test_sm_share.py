"""SM shares on a real GPU: switched between steps, in order, without the loop noticing."""

import pytest

import herald
from herald.clock import now_ns
from herald.hooks import green_contexts
from herald.table import Table

torch = pytest.importorskip("torch")

STEPS = 12


class Loop:
    """A small training loop as users write it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512), torch.nn.LayerNorm(512)
        ).cuda()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.batch = torch.randn(256, 512, device="cuda")

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = (self.model(self.batch) - self.batch).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()


@pytest.fixture
def job(domain: str):
    with herald.attach(priority="low", name="trainer", domain=domain, device="cuda") as job:
        yield job


def allow(domain: str, job: herald.Job, sm_count: int) -> None:
    """Plan a share, as the daemon does."""
    view = job.stats()
    table = Table.open(domain)
    table.beat(now_ns())
    table.publish_trainer_plan(view.row, view.generation, sm_count=sm_count)


def test_a_green_stream_has_the_share_that_was_asked_for() -> None:
    total = green_contexts.sm_total(0)
    stream, got = green_contexts.make_stream(0, total - 16)
    assert stream and got == total - 16
    assert green_contexts.make_stream(0, total - 16)[0] == stream


@pytest.mark.parametrize("wanted", [0, -8, 10_000])
def test_what_is_no_share_is_refused(wanted: int) -> None:
    with pytest.raises(green_contexts.NoShareError, match="not a share"):
        green_contexts.make_stream(0, wanted)


def test_a_plan_takes_effect_between_two_steps_and_ends_with_the_job(domain: str, job: herald.Job) -> None:
    loop, home = Loop(), torch.cuda.current_stream()
    loop.step()
    total = job.stats().sm_total
    assert total == green_contexts.sm_total(0)
    allow(domain, job, total - 16)
    assert torch.cuda.current_stream() == home
    loop.step()
    assert job.stats().sm_granted == total - 16
    assert torch.cuda.current_stream() != home
    allow(domain, job, 0)
    loop.step()
    assert (job.stats().sm_granted, job.stats().sm_switches, job.stats().train_steps) == (0, 2, 3)
    assert torch.cuda.current_stream() == home
    allow(domain, job, total - 64)
    loop.step()
    job.detach()
    assert torch.cuda.current_stream() == home
    assert job.stats().sm_granted == 0


def test_no_step_is_lost_or_out_of_order(domain: str) -> None:
    """Switched after every step or never: the same losses, since all work stays in one order."""
    plain = Loop()
    expected = [plain.step() for _ in range(STEPS)]
    with herald.attach(priority="low", name="trainer", domain=domain, device="cuda") as job:
        loop = Loop()
        found = []
        for i in range(STEPS):
            total = green_contexts.sm_total(0)
            allow(domain, job, (0, total - 16, total - 64)[i % 3])
            found.append(loop.step())
        assert job.stats().sm_switches >= STEPS - 2
    assert found == pytest.approx(expected, rel=1e-5)


def test_synchronize_waits_for_a_share(domain: str, job: herald.Job) -> None:
    original = torch.cuda.synchronize
    loop = Loop()
    loop.step()
    allow(domain, job, job.stats().sm_total - 16)
    loop.step()
    a = torch.randn(8192, 8192, device="cuda")
    for _ in range(8):
        a @ a
    done = torch.cuda.Event()
    done.record()
    torch.cuda.synchronize()
    assert done.query()
    job.detach()
    assert torch.cuda.synchronize is original


def test_ops_on_a_share_wait_at_the_gate(domain: str, job: herald.Job) -> None:
    loop = Loop()
    for _ in range(6):
        loop.step()
    allow(domain, job, job.stats().sm_total - 16)
    loop.step()
    table = Table.open(domain)
    row = table.claim(name="holder", priority="high", device=job.stats().device)
    try:
        table.wait_until_armed(row, 1.0)
        before = job.stats().gate_points
        for _ in range(3):
            loop.step()
        assert job.stats().gate_points > before
    finally:
        table.release(row)


def test_a_step_inside_a_graph_switches_nothing(domain: str, job: herald.Job) -> None:
    loop = Loop()
    loop.step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            loop.optimizer.zero_grad()
            (loop.model(loop.batch) - loop.batch).square().mean().backward()
            loop.optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    steps = job.stats().train_steps
    allow(domain, job, job.stats().sm_total - 16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (loop.model(loop.batch) - loop.batch).square().mean().backward()
        loop.optimizer.step()
    graph.replay()
    torch.cuda.synchronize()
    assert (job.stats().sm_granted, job.stats().train_steps) == (0, steps)
