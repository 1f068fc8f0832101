"""The daemon as a real process, beside others that are stopped and killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from herald.domains import DomainLock
from herald.errors import TableError
from herald.job_view import JobView
from herald.layout import LEAD_NEVER
from herald.scheduler.daemon import has_successor
from herald.scheduler.snapshot import STRICT_PLAN, JobKey, Plan, key_of
from herald.table import Table


class Process:
    """A Herald command in a process of its own, known by the lines it prints."""

    def __init__(self, *command: str, domain: str) -> None:
        self._running = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"HERALD_DOMAIN": domain, "HERALD_LOG": "info"},
        )
        self.pid = self._running.pid

    def wait_for(self, part: str) -> str:
        """The next line with ``part`` in it; fails if the process ends first (the test's timeout bounds it)."""
        assert self._running.stdout
        seen = []
        for line in self._running.stdout:
            seen.append(line)
            if part in line:
                return line
        raise AssertionError(f"{part!r} was never printed, but: {''.join(seen)}")

    def end(self, number: signal.Signals) -> int:
        self._running.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        for pipe in (self._running.stdin, self._running.stdout):
            if pipe:
                pipe.close()
        return self._running.wait()

    def abandon(self) -> None:
        with suppress(ProcessLookupError):
            self._running.kill()
        self.finish()


JOB = """
from herald.table import Table
table = Table.open()
row = table.claim(name="chat", priority="high", device="cpu", slo_ns=50_000_000)
print("attached")
input()
"""


@pytest.fixture
def start(domain: str) -> Iterator[Callable[..., Process]]:
    with ExitStack() as stack:

        def started(*command: str) -> Process:
            process = Process(*command, domain=domain)
            stack.callback(process.abandon)
            return process

        yield started


@pytest.fixture
def start_daemon(start: Callable[..., Process]) -> Callable[..., Process]:
    def started(*options: str) -> Process:
        daemon = start("-m", "herald", "daemon", *options)
        daemon.wait_for("running: domain")
        return daemon

    return started


def traces(domain: str) -> list[str]:
    return [path.name for path in Path("/dev/shm").iterdir() if domain in path.name]


def only_job(domain: str) -> JobView:
    (job,) = Table.open(domain, create=False).jobs()
    return job


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_daemon_that_is_asked_to_stop_leaves_nothing(
    start_daemon: Callable[..., Process], domain: str, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # the daemon has what this process has: it may be ignored here
    daemon = start_daemon()
    signal.signal(number, before)
    assert traces(domain)
    assert daemon.end(number) == 0
    assert traces(domain) == []


def test_a_second_daemon_refuses_and_names_the_first(
    start: Callable[..., Process], start_daemon: Callable[..., Process]
) -> None:
    first = start_daemon()
    second = start("-m", "herald", "daemon")
    said = second.wait_for("herald: error:")
    assert f"already has a daemon: pid {first.pid} on {os.uname().nodename}" in said
    assert second.finish() == 2
    assert first.end(signal.SIGTERM) == 0


def test_a_daemon_whose_domain_was_reset_says_so_and_ends(start_daemon: Callable[..., Process], domain: str) -> None:
    daemon = start_daemon()
    assert Table.unlink(domain, force=True)
    assert "was reset beneath its daemon" in daemon.wait_for("herald: error:")
    assert daemon.finish() == 2
    assert traces(domain) == []


def test_a_daemon_whose_domain_was_reset_leaves_the_new_table_alone(
    start_daemon: Callable[..., Process], domain: str
) -> None:
    daemon = start_daemon()
    with DomainLock.of(domain).membership():  # until there is another, the daemon cannot look
        assert Table.unlink(domain, force=True)
        table = Table.open(domain)
    daemon.wait_for("was reset beneath its daemon")
    assert daemon.finish() == 2
    assert table.is_current()


def test_what_goes_by_the_name_of_a_domain_that_was_reset_is_its_next_daemons(
    child: Callable[..., Any], start_daemon: Callable[..., Process], domain: str
) -> None:
    table = Table.open(domain)
    assert not has_successor(table)
    assert Table.unlink(domain, force=True)
    assert not has_successor(table)
    job = child(JOB)  # nor is a job one
    assert not has_successor(table)
    start_daemon()
    assert has_successor(table)
    job.kill()


def test_after_kill_9_a_new_daemon_takes_over_at_once(start_daemon: Callable[..., Process], domain: str) -> None:
    start_daemon().end(signal.SIGKILL)
    assert traces(domain)
    assert start_daemon().end(signal.SIGTERM) == 0
    assert traces(domain) == []


def test_a_dead_job_is_reaped(child: Callable[..., Any], start_daemon: Callable[..., Process]) -> None:
    daemon = start_daemon()
    job = child(JOB)
    daemon.wait_for("joined: chat (high, cpu, SLO 50 ms")
    job.kill()
    assert f"pid {job.process.pid}" in daemon.wait_for("reaped: chat")


def test_a_domain_with_jobs_outlives_its_daemon_on_the_strict_plan(
    child: Callable[..., Any], start_daemon: Callable[..., Process], domain: str
) -> None:
    daemon = start_daemon("--policy", "free")
    child(JOB).expect("attached")
    daemon.wait_for("plan: chat never closes the gate")
    assert only_job(domain).lead_ns == LEAD_NEVER
    assert daemon.end(signal.SIGTERM) == 0
    table = Table.open(domain, create=False)
    assert not table.daemon_is_alive()
    assert table.header.policy == b""
    assert Plan.of(only_job(domain)) == STRICT_PLAN


def test_a_new_daemon_plans_for_jobs_that_were_there_before(
    child: Callable[..., Any], start_daemon: Callable[..., Process], domain: str
) -> None:
    child(JOB).expect("attached")
    first = start_daemon("--policy", "laxity")
    first.wait_for("joined: chat")
    first.end(signal.SIGKILL)
    second = start_daemon("--policy", "free")
    second.wait_for("plan: chat never closes the gate")
    assert key_of(only_job(domain)) == JobKey(0, 1)
    assert second.end(signal.SIGTERM) == 0


def test_a_daemon_without_its_mps_does_not_run(
    start: Callable[..., Process], domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "herald.toml"
    file.write_text("[mps]\nenabled = true\n")
    daemon = start("-m", "herald", "daemon", "--config", str(file))
    daemon.wait_for("herald: error: mps.enabled = true, but nvidia-cuda-mps-control is not on PATH")
    assert daemon.finish() == 2
    assert traces(domain) == []
    assert not Path(f"/tmp/herald-{os.getuid()}/mps-{domain}").exists()


def test_a_daemon_says_who_reads_what_its_config_says_of_jobs(
    start: Callable[..., Process], start_daemon: Callable[..., Process], tmp_path: Path
) -> None:
    file = tmp_path / "herald.toml"
    file.write_text('[jobs.chat]\npriority = "high"\nslo = "50ms"\n')
    daemon = start_daemon("--config", str(file))
    said = daemon.wait_for("[jobs]")
    assert "read by the jobs themselves" in said
    assert f"HERALD_CONFIG={file}" in said
    assert daemon.end(signal.SIGTERM) == 0


def test_a_table_that_is_none_stops_the_daemon(start: Callable[..., Process], domain: str) -> None:
    Table.open(domain)
    (segment,) = [path for path in Path("/dev/shm").iterdir() if path.name.endswith(domain)]
    segment.write_bytes(b"not a table" * 10_000)
    with pytest.raises(TableError):
        Table.open(domain)
    daemon = start("-m", "herald", "daemon")
    assert "not a Herald table" in daemon.wait_for("herald: error:")
    assert daemon.finish() == 2
