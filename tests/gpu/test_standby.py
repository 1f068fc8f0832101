"""Standby on a real GPU: who is launch-bound goes on it by itself, and who is not does not."""

import time
from collections.abc import Callable

import pytest

import herald
from herald import native
from herald.table import Table

torch = pytest.importorskip("torch")

WAIT_S = 30
NAP_MS = 20  # a pause after which a stream that was not gated would have finished


class Loop:
    """A training loop of a perceptron, with as much work in flight as a loop has that reads its loss now and then."""

    def __init__(self, width: int) -> None:
        layers = [torch.nn.Linear(width, width) for _ in range(12)]
        self.model = torch.nn.Sequential(*layers).to("cuda")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6, foreach=False)
        self.inputs = torch.randn(width, width, device="cuda")
        self.last = torch.cuda.Event()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.inputs).square().mean().backward()
        self.optimizer.step()
        self.last.synchronize()
        self.last = torch.cuda.Event()
        self.last.record()


@pytest.fixture
def service(domain: str):
    """A service of another process, as far as anybody sees, that closes and opens the gate by hand."""
    table = Table.open(domain)
    gpu = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    row = table.claim(name="service", priority="high", device=gpu)
    yield table, table.device_slot(gpu)
    native.table().herald_gate_open(table.address, table.device_slot(gpu), 0)
    table.release(row)


def close(service: tuple[Table, int]) -> None:
    table, slot = service
    native.table().herald_gate_close(table.address, slot, 0, herald.clock.now_ns())


def rests(job: herald.Job, step: Callable[[], None]) -> bool:
    """Whether steps no longer meet the gate, within a time."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        points = job.stats().gate_points
        for _ in range(20):
            step()
        if job.stats().gate_points == points:
            return True
    return False


def test_a_launch_bound_trainer_goes_on_standby_and_waits_for_a_close_all_the_same(domain: str, service) -> None:
    with herald.attach(priority="low", name="train", domain=domain, device="cuda") as job:
        loop = Loop(64)
        assert rests(job, loop.step)
        assert job.stats().armed
        for _ in range(3):
            table, slot = service
            points = job.stats().gate_points
            close(service)
            deadline = time.monotonic() + WAIT_S
            while job.stats().gate_points == points:  # the hook is back within moments
                loop.model(loop.inputs)
                assert time.monotonic() < deadline
            done = torch.cuda.Event()
            done.record()
            time.sleep(NAP_MS / 1000)
            assert not done.query()
            native.table().herald_gate_open(table.address, slot, 0)
            done.synchronize()
            assert rests(job, loop.step)
        before = job.stats()
        for _ in range(10):
            loop.step()
        assert job.stats().train_steps == before.train_steps + 10
        assert job.stats().gated_ns + job.stats().light_ns > before.gated_ns + before.light_ns  # at rest, yet counted


def test_a_gpu_bound_trainer_does_not_go_on_standby(domain: str, service) -> None:
    with herald.attach(priority="low", name="train", domain=domain, device="cuda") as job:
        loop = Loop(3072)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            loop.step()
        points = job.stats().gate_points
        loop.step()
        assert job.stats().gate_points > points
