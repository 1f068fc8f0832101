"""On a GPU: the experiments' traces tell kernels from ranges, link them to ops, and stamp them in Herald's clock."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from herald.experiments import busy_times, instruments, kineto, op_trace, workloads
from herald.experiments.worker import Session


@pytest.fixture
def session() -> Session:
    session = Session()
    session.workload = workloads.get("cpu-gpt")
    session.device = torch.device("cuda")
    session.program = session.workload.make("cuda", 0)
    session.steps(3)
    return session


def test_eager_training_is_covered_and_a_launch_in_a_bare_range_is_work_once(session: Session) -> None:
    told = op_trace.measure(session, steps=2)
    assert told["kernels"] > 50
    assert told["covered"] == pytest.approx(1.0, abs=0.01)
    assert "::" in str(told["longest"])


def test_the_shadow_of_a_range_is_not_a_kernel() -> None:
    x = torch.ones(1 << 20, device="cuda")
    with torch.profiler.profile() as profiler, torch.profiler.record_function("range"):
        (x + 1).sum()
        torch.cuda.synchronize()
    assert not any(event.name() == "range" for event in kineto.device_work(kineto.events(profiler)))


def test_kernels_ran_while_the_worker_trained(session: Session, tmp_path: Path) -> None:
    before_ns = time.monotonic_ns()
    busy_times.measure(session, seconds=0.2, path=str(tmp_path / "busy.npy"))
    busy = np.load(tmp_path / "busy.npy")
    assert len(busy) > 100
    assert before_ns < busy.min() < busy.max() < time.monotonic_ns()
    assert busy.max() - busy.min() > 150_000_000


@pytest.mark.parametrize("mode", ["plain", "recorder", "profiler"])
def test_every_tool_records_on_a_gpu(session: Session, mode: str) -> None:
    block = instruments.get("record")(session, mode=mode, steps=2)
    assert (block["events"] == 0) == (mode == "plain")
