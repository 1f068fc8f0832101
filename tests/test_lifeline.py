"""What an experiment started does not outlive it, however it ends, and nothing of it is left."""

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herald.domains import segment_path
from herald.experiments import caretaker
from herald.experiments.domain import MPS_PREFIX
from herald.scheduler import mps
from herald.scheduler.mps import MpsServer
from herald.table import Table
from tests.test_mps import FAKE

# With a worker that is at work: it does not see that its input has ended.
EXPERIMENT = """
    import os, pathlib, sys, tempfile
    from herald.experiments import caretaker
    from herald.experiments.domain import PrivateDomain, private_mps
    from herald.experiments.process import Launch, Worker
    with (
        tempfile.TemporaryDirectory() as folder,
        caretaker.watching(pathlib.Path(folder)) as caretaker_pid,
        private_mps("lifeline") as server,
        PrivateDomain("lifeline", pathlib.Path(folder)) as domain,
    ):
        daemon_pid = domain.start_daemon("strict")
        env = (("HERALD_DOMAIN", domain.name), ("PYTHONPATH", os.environ["BUSY"]))
        with Worker(Launch("busy", env, module="busy"), pathlib.Path(folder)) as worker:
            worker.receive(60)
            print("started", caretaker_pid, daemon_pid, worker.pid, domain.name, server.pipe_dir, folder)
            sys.stdin.readline()
            worker.kill()
    print("ended")
"""
BUSY = """
import signal
from herald.table import Table
Table.open().claim(name="busy", priority="high", device="cpu")
print('{"ok": {}}', flush=True)
while True:
    signal.pause()
"""
HOLDER = """
    from herald.table import Table
    Table.open().claim(name="chat", priority="high", device="cpu")
    print("attached")
    input()
"""
LONGEST_S = 60


@pytest.fixture
def experiment(child: Callable[..., Any], tmp_path: Path) -> Any:
    """A running experiment, under a stand-in for NVIDIA's control binary."""
    binary = tmp_path / "bin" / mps.BINARY
    binary.parent.mkdir()
    binary.write_text(FAKE)
    binary.chmod(0o755)
    (tmp_path / "busy.py").write_text(BUSY)
    return child(EXPERIMENT, PATH=f"{binary.parent}:{os.environ['PATH']}", BUSY=str(tmp_path))


def await_ends(processes: list[int]) -> None:
    for process in processes:
        ended, _, _ = select.select([process], [], [], LONGEST_S)
        os.close(process)
        assert ended


def started(experiment: Any) -> tuple[list[int], list[Path]]:
    """Descriptors of its processes, and the files that it made."""
    *pids, domain, pipe_dir, folder = experiment.expect("started").split()
    files = [segment_path(domain), Path(pipe_dir).parent, Path(folder)]
    assert all(file.exists() for file in files)
    return [os.pidfd_open(int(pid)) for pid in pids], files


def test_a_killed_experiment_takes_all_that_it_started_along(experiment: Any) -> None:
    processes, files = started(experiment)
    experiment.kill()
    await_ends(processes)
    assert [file for file in files if file.exists()] == []


def test_an_experiment_that_ends_clears_up_itself(experiment: Any) -> None:
    processes, files = started(experiment)
    experiment.say("end")
    experiment.expect("ended")
    assert [file for file in files if file.exists()] == []
    await_ends(processes)


def test_what_is_in_use_is_left_until_it_is_not(child: Callable[..., Any], domain: str, tmp_path: Path) -> None:
    name = f"{domain[:30]}-7"
    jobs = [child(HOLDER, HERALD_DOMAIN=name), child(HOLDER, HERALD_DOMAIN=domain)]
    for job in jobs:
        job.expect("attached")
    folder = tmp_path / "logs"
    folder.mkdir()

    def pause(_seconds: float) -> None:
        assert segment_path(name).exists()
        jobs[0].kill()

    caretaker.clear_up(7, folder, pause=pause)
    assert not segment_path(name).exists()
    assert not folder.exists()
    assert segment_path(domain).exists()  # another's


def test_it_gives_up_on_what_stays_in_use(child: Callable[..., Any], domain: str, tmp_path: Path) -> None:
    name = f"{domain[:30]}-8"
    child(HOLDER, HERALD_DOMAIN=name).expect("attached")
    times = iter([0.0, 1.0, caretaker.LIMIT_S + 1])
    try:
        caretaker.clear_up(8, tmp_path / "logs", clock_s=lambda: next(times), pause=lambda _seconds: None)
        assert segment_path(name).exists()
    finally:
        Table.unlink(name, force=True)


def test_only_the_mps_of_an_experiment_is_stopped(domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert domain
    monkeypatch.setattr(mps, "_home_of_user", lambda: tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(MpsServer, "stop", lambda server: asked.append(server.pipe_dir.parent.name) or True)
    for name in (f"mps-{MPS_PREFIX}crowd-9", f"mps-{MPS_PREFIX}crowd-19", "mps-prod-9"):
        (tmp_path / name).mkdir()
    caretaker.clear_up(9, tmp_path / "logs")
    assert asked == [f"mps-{MPS_PREFIX}crowd-9"]
