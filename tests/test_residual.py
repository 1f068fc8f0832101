"""What runs on after a gate has closed, from the times of kernels and of closes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herald.errors import ConfigError
from herald.experiments import busy_times, gate_closer, instruments, residual
from herald.experiments.worker import Session
from herald.table import Table

US = 1_000


def busy(*spans_us: tuple[int, int]) -> residual.Times:
    return np.asarray(spans_us, dtype=np.int64) * US


KERNELS = busy((0, 100), (100, 300), (300, 450), (2000, 2100), (2100, 9000))  # silent from 450 to 2000


@pytest.mark.parametrize(
    ("close", "expected_us"),
    [
        ((200, 1900), 250),  # the kernel that ran and the one behind it, then silence
        ((500, 1900), 0),  # it was silent already
        ((50, 250), 250),  # not silent before the gate opened: longer than the hold
    ],
)
def test_the_last_kernel_that_began_while_closed_counts(close: tuple[int, int], expected_us: int) -> None:
    assert busy_times.residuals_ns(KERNELS, busy(close)).tolist() == [expected_us * US]


def test_the_order_of_kernels_does_not_matter() -> None:
    assert busy_times.residuals_ns(KERNELS[::-1], busy((200, 1900))).tolist() == [250 * US]


def test_closes_before_the_first_and_after_the_last_kernel_are_left_out() -> None:
    assert not len(busy_times.residuals_ns(KERNELS, busy((-100, 50), (2050, 8000))))
    assert not len(busy_times.residuals_ns(KERNELS[:0], busy((200, 1900))))


def test_a_summary_has_percentiles_or_nothing() -> None:
    found = residual.summary(KERNELS, busy((200, 1900), (500, 1900)))
    assert (found["closes"], found["p50_us"], found["max_us"]) == (2, 125.0, 250.0)
    assert residual.summary(KERNELS[:0], busy())["max_us"] is None


class Worker:
    """A trainer that was busy as in KERNELS, and a service that closed the gate meanwhile."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def call(self, do: str, *, timeout_s: float, **fields: Any) -> dict[str, Any]:
        self.send(do, **fields)
        np.save(fields["path"], KERNELS)
        return {}

    def send(self, do: str, **fields: Any) -> None:
        self.asked.append(fields)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        return {"closes": [[200 * US, 1900 * US]]}


def test_one_process_trains_and_another_closes_all_the_while(tmp_path: Path) -> None:
    trainer, closer = Worker(), Worker()
    workers: Any = (trainer, closer)  # each a part of a Channel
    residual.warm_up(*workers, domain="d", device="cuda", folder=tmp_path)
    found = residual.measured(*workers, domain="d", device="cuda", seed=0, folder=tmp_path)
    assert (found["closes"], found["max_us"]) == (1, 250.0)
    assert closer.asked[-1]["seconds"] > trainer.asked[-1]["seconds"]


def test_a_closer_says_when_its_gate_was_closed(request: pytest.FixtureRequest) -> None:
    domain = f"closer-{os.getpid()}"
    request.addfinalizer(lambda: Table.unlink(domain, force=True))
    told = instruments.get("gate-closer")(Session(), domain=domain, device="cpu", seconds=0.1, seed=1)
    closes = told["closes"]
    assert closes
    assert all(still - closed >= gate_closer.HOLD_S * 1e9 for closed, still in closes)


def test_the_clocks_differ_by_a_constant() -> None:
    first, second = busy_times.unix_minus_monotonic_ns(), busy_times.unix_minus_monotonic_ns()
    assert abs(first - second) < 1_000_000


def test_a_cpu_cannot_say_when_it_was_busy() -> None:
    session = Session()
    session.device = torch.device("cpu")
    with pytest.raises(ConfigError, match="only a GPU"):
        instruments.get("busy-times")(session, seconds=1.0, path="")
