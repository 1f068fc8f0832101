"""An MPS control daemon that belongs to one domain: started, checked and stopped, in private directories.

NVIDIA's default MPS is one per machine, and whoever quits it takes everyone's contexts along. So the
directories are the domain's own, a daemon that died leaves a server which the next one adopts, and a server
that still has clients is never quit: a scheduler that leaves must not stop a job.
"""

import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from herald.errors import DaemonError

BINARY = "nvidia-cuda-mps-control"
_OWN_PREFIX = "mps-"
_COMMAND_LIMIT_S = 20.0
_START_LIMIT_S = 60.0  # the driver may have to initialise the GPU first
_CHECK_EVERY_S = 0.1
_NUM_CHECKS = 100
_FAREWELL_S = 0.2
_NUM_FAREWELLS = 8
_MAX_SOCKET_PATH_BYTES = 107

log = logging.getLogger("herald.mps")


class MpsError(DaemonError):
    """MPS is missing, does not start, or does not answer."""


@dataclass(frozen=True)
class Answer:
    """What one run of the control binary gave."""

    status: int
    output: str


class Run(Protocol):
    """Runs the control binary once. Raises MpsError when it is missing or does not finish in time."""

    def __call__(self, arguments: tuple[str, ...], *, env: Mapping[str, str], stdin: str, timeout_s: float) -> Answer:
        """Exit status and output, stdout and stderr together."""


def run_binary(arguments: tuple[str, ...], *, env: Mapping[str, str], stdin: str, timeout_s: float) -> Answer:
    """The real `Run`. Output goes to a file: a daemon that keeps a pipe open would never end the read."""
    with tempfile.TemporaryFile("w+") as commands, tempfile.TemporaryFile("w+", errors="replace") as output:
        commands.write(stdin)
        commands.seek(0)
        try:
            done = subprocess.run(
                [BINARY, *arguments],
                env=dict(env),
                stdin=commands,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                start_new_session=True,  # a Ctrl-C in the terminal is for Herald's daemon
                check=False,
            )
        except FileNotFoundError as error:
            raise MpsError(
                f"mps.enabled = true, but {BINARY} is not on PATH: install NVIDIA's driver utilities, "
                "or set mps.enabled = false"
            ) from error
        except subprocess.TimeoutExpired as error:
            what = " ".join((BINARY, *arguments, stdin.strip())).strip()
            raise MpsError(f"`{what}` took over {timeout_s:g} s: is the GPU or its driver stuck?") from error
        output.seek(0)
        return Answer(done.returncode, output.read().strip())


class MpsServer:
    """The MPS of one domain. `start` and `stop` may each be called once; the rest in between."""

    def __init__(
        self,
        domain: str,
        *,
        home: Path | None = None,
        run: Run = run_binary,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._home = home or _home_of_user()
        self._own = self._home / f"{_OWN_PREFIX}{domain}"
        self.pipe_dir = self._own / "pipe"
        self.log_dir = self._own / "log"
        self._run = run
        self._pause = pause

    def start(self) -> None:
        """Start the control daemon and a server, or adopt those of a daemon that died. Raises MpsError."""
        _check_socket_path(self.pipe_dir / "control_privileged")
        was_used = self.pipe_dir.exists()
        for directory in (self._home, self._own, self.pipe_dir, self.log_dir):
            _make_private(directory)
        if was_used and self._answers():
            log.info("mps: adopted the server left in %s", self._own)
            return
        try:
            self._launch()
        except MpsError:
            self._abandon()
            raise
        log.info("mps: started in %s", self._own)

    def clients(self) -> tuple[int, ...]:
        """Process ids that are attached now. Raises MpsError when MPS no longer answers."""
        return tuple(pid for server in self._pids("get_server_list") for pid in self._client_pids(server))

    def stop(self) -> bool:
        """Quit MPS and remove its directories; False where it still has clients and therefore goes on."""
        if self._answers():
            clients = self._remaining_clients()
            if clients:
                log.warning("mps: goes on for its clients (pids %s)", ", ".join(map(str, clients)))
                return False
            self._quit()
        self._remove()
        log.info("mps: stopped")
        return True

    def _remaining_clients(self) -> tuple[int, ...]:
        """The clients that are not just leaving: a process that ended stays listed for a moment."""
        for _ in range(_NUM_FAREWELLS):
            if not self.clients():
                return ()
            self._pause(_FAREWELL_S)
        return self.clients()

    def _launch(self) -> None:
        started = self._run(("-d",), env=self._env(), stdin="", timeout_s=_START_LIMIT_S)
        if started.status != 0:
            raise self._failure(f"`{BINARY} -d` failed: {started.output or f'exit status {started.status}'}")
        self._wait_for(self._answers, "its control daemon does not answer")
        # Clients would start a server, too, but then a GPU that cannot run one is found out by the first job.
        self._ask(f"start_server -uid {os.getuid()}")
        self._wait_for(lambda: bool(self._pids("get_server_list")), "no server came up")

    def _quit(self) -> None:
        self._ask("quit")
        self._wait_for(lambda: not self._answers(), "it does not quit")

    def _abandon(self) -> None:
        """After a failed start: leave neither process nor directory. The first error is the one to tell."""
        try:
            if self._answers():
                self._quit()
        except MpsError as error:
            log.debug("mps: cleaning up after a failed start: %s", error)
        self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._own, ignore_errors=True)
        with suppress(OSError):  # another domain's directory may be in it
            self._home.rmdir()

    def _answers(self) -> bool:
        return self._command("get_server_list").status == 0

    def _client_pids(self, server: int) -> tuple[int, ...]:
        return self._pids(f"get_client_list {server}")

    def _pids(self, command: str) -> tuple[int, ...]:
        return tuple(int(word) for word in self._ask(command).split() if word.isdigit())

    def _ask(self, command: str) -> str:
        answer = self._command(command)
        if answer.status != 0:
            raise self._failure(f"`{command}` failed: {answer.output or f'exit status {answer.status}'}")
        return answer.output

    def _command(self, command: str) -> Answer:
        return self._run((), env=self._env(), stdin=f"{command}\n", timeout_s=_COMMAND_LIMIT_S)

    def _env(self) -> dict[str, str]:
        # Client settings in the daemon's own environment would become defaults of the server.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_MPS_")}
        return inherited | {
            "CUDA_MPS_PIPE_DIRECTORY": str(self.pipe_dir),
            "CUDA_MPS_LOG_DIRECTORY": str(self.log_dir),
        }

    def _wait_for(self, is_true: Callable[[], bool], otherwise: str) -> None:
        for _ in range(_NUM_CHECKS):
            if is_true():
                return
            self._pause(_CHECK_EVERY_S)
        raise self._failure(f"{otherwise} after {_NUM_CHECKS * _CHECK_EVERY_S:g} s")

    def _failure(self, what: str) -> MpsError:
        remedy = "see `herald doctor`, or set mps.enabled = false"
        return MpsError(f"MPS in {self._own}: {what}{self._last_log_line()}; {remedy}")

    def _last_log_line(self) -> str:
        lines = [
            line
            for path in sorted(self.log_dir.glob("*.log"))
            for line in path.read_text("utf-8", "replace").splitlines()
        ]
        return f" (log: {lines[-1].strip()})" if lines else ""


def names() -> list[str]:
    """What this user's MPS are called (their domains) that have directories, whether or not they run."""
    return sorted(path.name.removeprefix(_OWN_PREFIX) for path in _home_of_user().glob(f"{_OWN_PREFIX}*"))


def _home_of_user() -> Path:
    # /tmp, not $TMPDIR or $XDG_RUNTIME_DIR: a Unix socket's path has 107 bytes at most, and a job in
    # another session of the same user must find it.
    return Path(f"/tmp/herald-{os.getuid()}")


def _make_private(directory: Path) -> None:
    """A directory that only this user can enter; one that someone else laid there is refused."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not directory.is_dir() or directory.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise MpsError(f"{directory} is not a private directory of this user (mode 0700): remove it and try again")


def _check_socket_path(path: Path) -> None:
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise MpsError(f"{path} exceeds the {_MAX_SOCKET_PATH_BYTES} bytes of a Unix socket: use a shorter domain")
