"""A worker process as its parent sees it: started, spoken to with a time limit on every answer, and ended by pid."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from herald.errors import HeraldError
from herald.experiments import lifeline
from herald.experiments.worker import IDLE_FLAG

_LOG_TAIL_LINES = 15
_QUIT_TIMEOUT_S = 10.0
_BUSY_TIMEOUT_S = 0.5  # of one amid a command, which it would finish before it sees the end of its input
_TERM_TIMEOUT_S = 5.0

_Key = TypeVar("_Key")


class WorkerError(HeraldError):
    """A worker process failed, ended or did not answer in time."""


class NoAnswer(WorkerError):
    """It did not answer in time; its answer may still come."""


@dataclass(frozen=True)
class Launch:
    """How a worker process is started: what cannot change while it lives."""

    name: str
    env: tuple[tuple[str, str], ...] = ()  # on top of this process's environment
    idle_class: bool = False  # SCHED_IDLE
    module: str = "herald.experiments.worker"  # what runs in it: a main() that serves commands


class Channel(Protocol):
    """What experiments need of a worker; tests put a fake behind it."""

    def send(self, do: str, **fields: object) -> None:
        """Send a command."""
        ...

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The answer to the oldest unanswered command. Raises WorkerError."""
        ...

    def call(self, do: str, *, timeout_s: float, **fields: object) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises WorkerError."""
        ...

    def close(self) -> None:
        """End the process; safe to call twice."""
        ...


class Worker:
    """A running process that serves commands as `herald.experiments.worker` does."""

    def __init__(self, launch: Launch, log_dir: Path) -> None:
        self.launch = launch
        self._log_path = log_dir / f"{launch.name}-{os.urandom(3).hex()}.log"
        with self._log_path.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                lifeline.tied([sys.executable, "-m", launch.module, *([IDLE_FLAG] if launch.idle_class else [])]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **dict(launch.env)},
                text=True,
                # Ctrl-C is for the parent, which then ends its workers. A group, not a session: Linux shares the CPU
                # between sessions first (autogroup), and SCHED_IDLE has no meaning beyond its own.
                process_group=0,
            )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._unanswered = 0  # commands
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, do: str, **fields: object) -> None:
        """Send a command. Raises WorkerError where the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._error(f"cannot be told to {do}: {error}") from error
        self._unanswered += 1

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The answer to the oldest unanswered command. Raises WorkerError."""
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise NoAnswer(self._described(f"gave no answer within {timeout_s:g} s")) from None
        if line is None:
            raise self._error(f"ended with exit status {self._process.wait(_TERM_TIMEOUT_S)}")
        self._unanswered -= 1
        answer = json.loads(line)
        if "error" in answer:
            raise self._error(f"failed with {answer['kind']}: {answer['error']}")
        ok: dict[str, Any] = answer["ok"]
        return ok

    def call(self, do: str, *, timeout_s: float, **fields: object) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises WorkerError."""
        self.send(do, **fields)
        return self.receive(timeout_s)

    def kill(self) -> None:
        """End the process at once, as a crash would (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process: end of input, then SIGTERM, then SIGKILL."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended already
            self._process.stdin.close()
        quit_s = _BUSY_TIMEOUT_S if self._unanswered > 0 else _QUIT_TIMEOUT_S
        for timeout_s, harder in ((quit_s, self._process.terminate), (_TERM_TIMEOUT_S, self._process.kill)):
            try:
                self._process.wait(timeout_s)
                return
            except subprocess.TimeoutExpired:
                harder()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _error(self, what: str) -> WorkerError:
        return WorkerError(self._described(what))

    def _described(self, what: str) -> str:
        tail = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        said = "; its last words:\n  " + "\n  ".join(tail) if tail else ""
        return f"worker {self.launch.name!r} (pid {self.pid}) {what}{said}"


def call_all(
    channels: Mapping[_Key, Channel], do: str, *, timeout_s: float, **fields: object
) -> dict[_Key, dict[str, Any]]:
    """Send one command to every worker, then collect the answers: they work at the same time."""
    for channel in channels.values():
        channel.send(do, **fields)
    return {key: channel.receive(timeout_s) for key, channel in channels.items()}
