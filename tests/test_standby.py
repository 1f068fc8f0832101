"""Standby: a trainer's hook rests while its gate is open, and is there when it closes."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

import herald
from herald.hooks import native
from herald.table import Table

WAIT_S = 30  # for what must happen; never for what must not


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(600, 600)


@pytest.fixture
def trainer(domain: str, matrix: torch.Tensor) -> Iterator[herald.Job]:
    """A job whose ops are known, with a service beside it that could close the gate."""
    with herald.attach(priority="low", name="train", device="cpu") as low:
        for _ in range(4):
            matrix @ matrix
        yield low


def stand_by(job: herald.Job, matrix: torch.Tensor) -> None:
    """Run known ops until they no longer pass the gate, although a service could close it."""
    native.hook().herald_low_standby(1)
    one = torch.ones(1)
    deadline = time.monotonic() + WAIT_S
    while passes_gate(job, matrix):
        for _ in range(5000):
            one.add_(1)
        assert time.monotonic() < deadline


def passes_gate(job: herald.Job, matrix: torch.Tensor) -> bool:
    """Whether a heavy op meets the gate."""
    points = job.stats().gate_points
    matrix @ matrix
    return job.stats().gate_points > points


def until_gated(job: herald.Job, points: int) -> None:
    """Until one more op has come to the gate: it is then inside the wait, or about to be."""
    deadline = time.monotonic() + WAIT_S
    while job.stats().gate_points <= points:
        assert time.monotonic() < deadline


def test_a_trainer_on_standby_passes_no_gate_until_a_request_closes_it(
    trainer: herald.Job, matrix: torch.Tensor
) -> None:
    with herald.attach(priority="high", name="serve", device="cpu") as high:
        stand_by(trainer, matrix)
        assert trainer.stats().armed  # a close has its effect
        running = threading.Event()
        stop = threading.Event()

        def train() -> None:
            while not stop.is_set():
                matrix @ matrix
                running.set()

        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        for _ in range(3):
            points = trainer.stats().gate_points
            with high.request():
                until_gated(trainer, points)
            running.clear()
            assert running.wait(WAIT_S)  # the gate is open again
        stop.set()
        thread.join(WAIT_S)
        stand_by(trainer, matrix)  # and the hook at rest again


def test_a_request_of_another_process_wakes_a_trainer_on_standby(
    trainer: herald.Job, matrix: torch.Tensor, child
) -> None:
    server = child("""
        import herald, sys
        with herald.attach(priority="high", name="serve", device="cpu") as job:
            print("attached", flush=True)
            sys.stdin.readline()
            with job.request():
                print("open", flush=True)
                sys.stdin.readline()
    """)
    server.expect("attached")
    stand_by(trainer, matrix)
    points = trainer.stats().gate_points
    server.say("")
    server.expect("open")
    done = threading.Event()

    def train() -> None:
        while trainer.stats().gate_points <= points:  # its first ops may come before the hook is back
            matrix @ matrix
        done.set()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    until_gated(trainer, points)
    assert not done.is_set()
    server.say("")
    assert done.wait(WAIT_S)
    thread.join(WAIT_S)


def test_a_limit_on_the_rate_ends_standby(trainer: herald.Job, matrix: torch.Tensor, domain: str) -> None:
    with herald.attach(priority="high", name="serve", device="cpu"):
        stand_by(trainer, matrix)
        table = Table.open(domain)
        row = trainer.stats().row
        table.publish_trainer_plan(row, table.job(row).generation, rate_ppm=900_000)
        deadline = time.monotonic() + WAIT_S
        gated = False
        while not gated:
            table.beat(herald.clock.now_ns())  # a limit goes with its daemon
            gated = passes_gate(trainer, matrix)
            assert time.monotonic() < deadline


def test_what_a_trainer_issues_at_rest_is_known_by_the_step(trainer: herald.Job, matrix: torch.Tensor) -> None:
    def step() -> None:
        for _ in range(70):  # counts reach the row in batches
            matrix @ matrix
        native.hook().herald_low_step()

    with herald.attach(priority="high", name="serve", device="cpu"):
        step()  # what came before it is not a step
        for _ in range(8):
            step()
        before = trainer.stats()
        step()
        counted = trainer.stats().gated_ns - before.gated_ns
        stand_by(trainer, matrix)
        step()
        rested = trainer.stats()
        step()
        assert trainer.stats().gated_ns - rested.gated_ns == pytest.approx(counted, rel=0.05)
        assert trainer.stats().gate_points == rested.gate_points
        assert trainer.stats().train_steps == rested.train_steps + 1
