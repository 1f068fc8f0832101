"""A domain and an MPS of an experiment's own; gone when the experiment ends."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from herald.config import Limits
from herald.domains import DomainLock
from herald.errors import ConfigError, HeraldError, TableError
from herald.experiments import lifeline
from herald.scheduler.daemon import publish_limits
from herald.scheduler.mps import BINARY, MpsServer
from herald.table import Table

MPS_PREFIX = "experiment-"  # no user's domain: an MPS of that name is nobody else's

_START_LIMIT_S = 60.0  # the daemon may have to build the native library first
_STOP_LIMIT_S = 30.0
_LOOK_EVERY_S = 0.05


class DaemonFailed(HeraldError):
    """The experiment's own daemon ended or did not come up."""


def own_name(label: str) -> str:
    """A name that says which process it belongs to: `caretaker` removes what that one left."""
    return f"{label}-{os.getpid()}"


class PrivateDomain:
    """A domain that nobody else uses. As a context manager it ends its daemon and removes its table.

    Until then it is in use, also between jobs: `herald doctor` must not offer it for removal.
    """

    def __init__(self, label: str, log_dir: Path) -> None:
        self.name = own_name(re.sub(r"[^A-Za-z0-9]+", "-", label))  # a policy has colons and dots in it
        self._log_path = log_dir / f"daemon-{self.name}.log"
        self._daemon: subprocess.Popen[bytes] | None = None

    def start_daemon(self, policy: str, config: Path | None = None) -> int:
        """Run `herald daemon` in this domain; returns its pid once it owns the domain. Raises DaemonFailed."""
        command = [sys.executable, "-m", "herald", "daemon", "--domain", self.name, "--policy", policy]
        command += ["--config", str(config)] if config else []
        with self._log_path.open("ab") as log:
            self._daemon = subprocess.Popen(
                lifeline.tied(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the experiment, which then ends its daemon
            )
        give_up_s = time.monotonic() + _START_LIMIT_S
        while not self._is_owned_by(self._daemon.pid):
            if self._daemon.poll() is not None or time.monotonic() > give_up_s:
                said = self._log_path.read_text(encoding="utf-8", errors="replace").strip()
                raise DaemonFailed(f"herald daemon does not come up in domain {self.name}; it said:\n{said}")
            time.sleep(_LOOK_EVERY_S)
        return self._daemon.pid

    def set_quantum(self, quantum_ns: int) -> None:
        """Without a daemon: the predicted heavy time between two waits, for who attaches from now on and who has."""
        publish_limits(Table.open(self.name), Limits(quantum_ns=quantum_ns))

    def seat_service(self, device: str) -> None:
        """A service that never has a request: trainers' hooks do not rest, and nobody closes their gate."""
        Table.open(self.name).claim(name="idle", priority="high", device=device)

    def kill_daemon(self) -> None:
        """End the daemon at once, as a crash would (SIGKILL)."""
        assert self._daemon is not None, "start_daemon comes first"
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None

    def close(self) -> None:
        """End the daemon, remove the table; safe to call twice, and whoever is still in the domain is ignored."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.terminate()
            try:
                daemon.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        Table.unlink(self.name, force=True)

    def __enter__(self) -> Self:
        Table.open(self.name)
        DomainLock.of(self.name).keep()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _is_owned_by(self, pid: int) -> bool:
        try:
            return bool(Table.open(self.name, create=False).header.daemon_pid == pid)
        except TableError:
            return False


@contextmanager
def private_mps(label: str) -> Iterator[MpsServer]:
    """MPS in private directories, the same for Herald's rows and for those of plain MPS. Raises HeraldError."""
    if shutil.which(BINARY) is None:
        raise ConfigError(
            f"this experiment starts an MPS of its own, but {BINARY} is not on PATH: install NVIDIA's driver "
            "utilities, or give --mps off"
        )
    server = MpsServer(MPS_PREFIX + own_name(label))
    server.start()
    try:
        yield server
    finally:
        server.stop()
