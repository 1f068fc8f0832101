"""Domains: their names, the files behind them, and the lock that says who is alive. Maps no table."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from herald import layout, native
from herald.clock import now_ns
from herald.errors import TableError
from herald.settings import Settings

_SHM = Path("/dev/shm")
_MEMBERSHIP_LIMIT_NS = 10_000_000_000
_MEMBERSHIP_NAP_S = 0.001


def default_domain() -> str:
    """The domain where none is given: HERALD_DOMAIN, else "default"."""
    return Settings.from_env().domain


def segment_name(domain: str) -> str:
    """The POSIX name of a domain's segment; one set of domains per user."""
    return f"/herald-{os.getuid()}-{domain}"


def segment_path(domain: str) -> Path:
    """Where the segment lies as a file."""
    return _SHM / segment_name(domain)[1:]


def lock_path(domain: str) -> Path:
    """The lock file of a domain; it lies beside the segment, so that containers sharing one share both."""
    return _SHM / f"{segment_name(domain)[1:]}.lock"


def domains() -> list[str]:
    """The domains of this user that have a table, in alphabetical order."""
    prefix = segment_name("")[1:]
    names = (path.name.removeprefix(prefix) for path in _SHM.glob(f"{prefix}*"))
    return sorted(name for name in names if not name.endswith(".lock"))


class DomainLock:
    """The lock file of a domain: membership, liveness of jobs, ownership by a daemon.

    POSIX record locks belong to the process and vanish when it closes *any* descriptor of the file, so each process
    opens it once and never closes it. Threads of one process are kept apart by an ordinary lock.
    """

    _opened: ClassVar[dict[str, "DomainLock"]] = {}
    _guard = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise TableError(f"cannot open {path}: {e.strerror}; Herald needs a writable /dev/shm") from e
        self.inode = os.fstat(self.fd).st_ino
        self.threads = threading.RLock()  # record locks do not keep threads of one process apart
        self._depth = 0
        self.runs_daemon = False

    @classmethod
    def of(cls, domain: str) -> "DomainLock":
        """The one lock object of this process for the domain, reopened if the file was reset."""
        path = lock_path(domain)
        with cls._guard:
            known = cls._opened.get(domain)
            if known is None or not known._is_current():
                known = cls._opened[domain] = cls(path)
            return known

    def _is_current(self) -> bool:
        try:
            return self.path.stat().st_ino == self.inode
        except FileNotFoundError:
            return False

    @classmethod
    def forget_parents_locks(cls) -> None:
        """In a forked child: threads that held a lock here do not exist, and record locks were not inherited."""
        cls._guard = threading.Lock()
        for lock in cls._opened.values():
            lock.threads = threading.RLock()
            lock._depth = 0
            lock.runs_daemon = False

    @contextmanager
    def membership(self) -> Iterator[None]:
        """Alone among everybody who creates, claims or resets. Raises TableError when someone never lets go."""
        with self.threads:
            if self._depth == 0:
                self._acquire()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    native.table().herald_unlock(self.fd, layout.MEMBERSHIP_BYTE)

    def _acquire(self) -> None:
        give_up = now_ns() + _MEMBERSHIP_LIMIT_NS
        while not native.table().herald_lock(self.fd, layout.MEMBERSHIP_BYTE, 0):
            if now_ns() > give_up:
                raise TableError(
                    f"{self.path} stays locked by a process that is joining or leaving (stopped in a debugger?): "
                    "end it and try again"
                )
            time.sleep(_MEMBERSHIP_NAP_S)

    def is_held(self, byte: int) -> bool:
        """Whether another process holds the byte (a process cannot see its own locks this way)."""
        return bool(native.table().herald_lock_held(self.fd, byte))

    def keep(self) -> None:
        """From now until this process ends, the domain is in use even while there is neither job nor daemon.

        Raises TableError where another process keeps it.
        """
        if not native.table().herald_lock(self.fd, layout.KEEPER_BYTE, 0):
            raise TableError(f"{self.path}: another process keeps this domain")

    def anyone_alive(self) -> bool:
        """Whether any other process has a job or the daemon in this domain, or keeps it."""
        return any(self.is_held(byte) for byte in range(layout.FIRST_JOB_BYTE, layout.KEEPER_BYTE + 1))


os.register_at_fork(after_in_child=DomainLock.forget_parents_locks)
