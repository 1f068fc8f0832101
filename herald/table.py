"""The shared table of a domain, from Python: opening, membership, and copies of its rows.

A table is a POSIX shared-memory segment and a lock file beside it. Jobs and the daemon meet only here. Whoever opens
first creates; only `Table.unlink` (herald reset, or a daemon that leaves an empty domain) removes. Every atomic
operation is the native library's; Python copies rows out and never does a read-modify-write.
"""

import ctypes
import mmap
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import posix_ipc

from herald import layout, native
from herald.errors import DaemonError, TableError
from herald.settings import Settings, check_domain

_SHM = Path("/dev/shm")
_MEMBERSHIP_LIMIT_NS = 10_000_000_000
_MEMBERSHIP_NAP_S = 0.001


def now_ns() -> int:
    """CLOCK_MONOTONIC in ns: the only clock of Herald, the same in every process of a machine."""
    return time.monotonic_ns()


def default_domain() -> str:
    """The domain where none is given: HERALD_DOMAIN, else "default"."""
    return Settings.from_env().domain


def segment_name(domain: str) -> str:
    """The POSIX name of a domain's segment; one set of domains per user."""
    return f"/herald-{os.getuid()}-{domain}"


def lock_path(domain: str) -> Path:
    """The lock file of a domain; it lies beside the segment, so that containers sharing one share both."""
    return _SHM / f"{segment_name(domain)[1:]}.lock"


def domains() -> list[str]:
    """The domains of this user that have a table, in alphabetical order."""
    prefix = segment_name("")[1:]
    names = (path.name.removeprefix(prefix) for path in _SHM.glob(f"{prefix}*"))
    return sorted(name for name in names if not name.endswith(".lock"))


@dataclass(frozen=True)
class Histogram:
    """Counts of durations in buckets of 1/16 relative width."""

    counts: npt.NDArray[np.uint32] = field(repr=False)

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return int(self.counts.sum())

    def quantile(self, q: float) -> int | None:
        """The duration in ns that a share ``q`` (0..1) does not exceed, to 1/16 (upper edge); None when empty."""
        total = self.count
        if total == 0:
            return None
        index = int(np.searchsorted(np.cumsum(self.counts), max(1, np.ceil(q * total))))
        return layout.bucket_bounds_ns(index)[1]


@dataclass(frozen=True)
class JobView:
    """A copy of one job's row. Times are ns of `now_ns`, durations ns; device times are predicted ones."""

    row: int
    generation: int
    name: str
    priority: str  # "high" or "low"
    device: str  # "cpu" or a GPU's UUID
    pid: int
    mps: bool
    slo_ns: int  # 0: none
    target: float  # share of requests that must meet the SLO
    attached_ns: int
    heartbeat_ns: int
    lead_ns: int
    queue_limit: int
    inflation_ppm: int  # 0: the lead does not follow progress
    margin_ns: int
    quantile_ppm: int
    open_requests: int
    oldest_deadline_ns: int
    hold_since_ns: int
    requests_begun: int
    requests_done: int
    slo_met: int
    slo_missed: int
    closes: int
    held_ns: int
    requests_overdue: int
    remaining_ns: int  # predicted, of the open request with the earliest deadline; -1: not known
    progress_ppm: int  # done of that request, in millionths
    progress_scored: int
    progress_error_ppm: int  # sum
    ops_seen: int
    ops_unknown: int
    gate_points: int
    gate_waits: int
    gate_wait_ns: int
    gated_ns: int
    light_ns: int
    longest_op_ns: int
    throttle_ns: int
    armed: int  # low priority: 1 while the hook is on, 0 while it rests for want of services
    sampled_ns: int
    covered_ns: int
    latency: Histogram
    service: Histogram

    @classmethod
    def empty(cls, name: str, priority: str) -> Self:
        """The view of a job that has no row."""
        plain = dict.fromkeys(_PLAIN_FIELDS, 0) | {"remaining_ns": -1}
        none = Histogram(np.zeros(layout.HISTOGRAM_BUCKETS, dtype=np.uint32))
        return cls(
            row=-1, name=name, priority=priority, device="", mps=False, target=0.0, latency=none, service=none, **plain
        )

    @property
    def attainment(self) -> float | None:
        """Share of finished requests that met the SLO; None before the first or without one."""
        judged = self.slo_met + self.slo_missed
        return self.slo_met / judged if judged else None

    @property
    def progress_error(self) -> float | None:
        """How wrong the predicted remaining time was at the middle of finished requests; None before any.

        The mean of |predicted - actual| / actual. (Half of it in shares of the whole request.)
        """
        return self.progress_error_ppm / 1e6 / self.progress_scored if self.progress_scored else None

    @property
    def coverage(self) -> float | None:
        """Share of this job's device time that passed the gate, from samples; None while there are none.

        A sample is a stretch of a stream that was never idle: the predicted time of the ops that passed, over the
        measured time of the stretch. What no op event announced makes it small; a wrong prediction makes it wrong.
        """
        return min(1.0, self.covered_ns / self.sampled_ns) if self.sampled_ns else None


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

    def anyone_alive(self) -> bool:
        """Whether any other process has a job or the daemon in this domain."""
        return any(self.is_held(byte) for byte in range(layout.FIRST_JOB_BYTE, layout.DAEMON_BYTE + 1))


os.register_at_fork(after_in_child=DomainLock.forget_parents_locks)


class Table:
    """An open table. Holds the mapping for as long as it lives; see the module for who may do what."""

    _kept: ClassVar[dict[str, "Table"]] = {}

    def __init__(self, domain: str, memory: mmap.mmap, lock: DomainLock | None, inode: int = 0) -> None:
        self.domain = domain
        self._memory = memory  # keeps the mapping alive: the addresses below point into it
        self._lock = lock
        self._inode = inode
        self._lib = native.table()
        self.header = layout.Header.from_buffer(memory)
        self.address = ctypes.addressof(self.header)
        self._rows = (layout.JobRow * layout.MAX_JOBS).from_buffer(memory, self.header.rows_offset)

    # ---- opening and removing

    @classmethod
    def open(cls, domain: str | None = None, *, create: bool = True) -> Self:
        """The domain's table, created if need be. Raises TableError, never repairs a table in use."""
        domain = check_domain(domain) if domain is not None else default_domain()
        if not create and not _segment_path(domain).exists():
            raise TableError(f"domain {domain!r} has no table: no daemon and no job has started in it")
        while True:
            lock = DomainLock.of(domain)
            with lock.membership():
                if lock is not DomainLock.of(domain):  # reset between opening the file and locking it
                    continue
                kept = cls._kept.get(domain)
                if isinstance(kept, cls) and kept.is_current():
                    return kept
                memory, inode = _open_segment(domain, lock)
                return cls(domain, memory, lock, inode)

    @staticmethod
    def unlink(domain: str, *, force: bool = False) -> bool:
        """Remove a domain's segment and lock file; False if there was none. Raises TableError while anyone lives."""
        check_domain(domain)
        if not _segment_path(domain).exists() and not lock_path(domain).exists():
            return False
        lock = DomainLock.of(domain)
        with lock.membership():
            existed = _segment_path(domain).exists()
            if not force and lock.anyone_alive():
                raise TableError(
                    f"domain {domain!r} is in use (see `herald status --domain {domain}`): stop its jobs and daemon, "
                    f"or remove it all the same with `herald reset --domain {domain} --force`"
                )
            _unlink_segment(domain)
            lock.path.unlink(missing_ok=True)
        return existed

    def close(self) -> None:
        """Nothing to give back: the mapping goes with the object, the lock file stays open (see DomainLock)."""

    # ---- jobs

    @property
    def lock_fd(self) -> int:
        """Descriptor of the lock file, for native code; -1 for a table in private memory."""
        return self._lock.fd if self._lock else -1

    def claim(
        self,
        *,
        name: str,
        priority: str,
        device: str,
        slo_ns: int = 0,
        target: float = 0.99,
        mps: bool = False,
    ) -> int:
        """Take a row for a job of this process; returns its index. Raises TableError when there is none.

        Shapes of the arguments: ``device`` is "cpu" or a GPU's UUID (63 bytes at most), ``name`` is cut at 47 bytes.
        """
        spec = native.ClaimSpec(
            priority=layout.PRIORITIES[priority],
            pid=os.getpid(),
            mps=mps,
            target_ppm=round(target * 1e6),
            owner=native.process_token(),
            slo_ns=slo_ns,
            name=_clip(name, 47),
        )
        with self._membership():
            spec.device = self.device_slot(device)
            row = self._lib.herald_table_claim(self.address, self.lock_fd, ctypes.byref(spec))
        if row == -1:
            raise TableError(
                f"domain {self.domain!r} is full: {layout.MAX_JOBS} jobs are attached, {name!r} is one too many; "
                "detach one, or use another domain (HERALD_DOMAIN)"
            )
        if row == -2:
            raise TableError(
                f"device {device} already has {layout.MAX_HIGH_JOBS_PER_DEVICE} high-priority jobs in domain "
                f"{self.domain!r}; {name!r} is one too many"
            )
        return int(row)

    def device_slot(self, device: str) -> int:
        """Index of a device in the directory, entered if new. Raises TableError when the directory is full."""
        with self._membership():
            self._check_current()
            slot = int(self._lib.herald_table_device(self.address, device.encode()))
        if slot < 0:
            raise TableError(
                f"domain {self.domain!r} already knows {layout.MAX_DEVICES} devices; {device} is one too many"
            )
        return slot

    def wait_until_armed(self, row: int, limit_s: float) -> bool:
        """Until the hooks of all low-priority jobs on the device of ``row`` are on; False if one is not in time.

        Trainers' hooks rest while nobody could close their gate. From then on what they launch waits.
        """
        device = self.job(row).device
        deadline = time.monotonic() + limit_s
        while any(job.priority == "low" and job.device == device and not job.armed for job in self.jobs()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def release(self, row: int) -> None:
        """Give a row of this process back; its gate bit opens."""
        # Record locks do not keep threads apart: no claim of this process may come between freeing and unlocking.
        with self._lock.threads if self._lock else nullcontext():
            self._lib.herald_table_release(self.address, self.lock_fd, row)

    def job(self, row: int) -> JobView:
        """A copy of one row, live or not."""
        return _view(row, self._rows[row], self.header)

    def jobs(self) -> list[JobView]:
        """Copies of all live rows, by row."""
        return [self.job(i) for i in range(layout.MAX_JOBS) if self._rows[i].state == layout.ROW_LIVE]

    def gate_words(self) -> dict[tuple[str, int], int]:
        """Gate word by (device, class), for every device in the directory; 0 is open."""
        words = {}
        for slot, raw in enumerate(self.header.devices):
            if raw.value:
                for cls in range(layout.NUM_CLASSES):
                    offset = self.header.gates_offset + (slot * layout.NUM_CLASSES + cls) * layout.GATE_STRIDE_BYTES
                    words[raw.value.decode(), cls] = int(self._lib.herald_load32(self.address + offset))
        return words

    def reap(self, now_ns: int) -> list[int]:
        """Free rows of dead jobs, open the gates of wedged or overdue ones; returns the rows freed."""
        freed = self._lib.herald_table_reap(self.address, self.lock_fd, native.process_token(), now_ns)
        return [row for row in range(layout.MAX_JOBS) if freed >> row & 1]

    # ---- the daemon

    def keep_mapped(self) -> None:
        """Never unmap: native threads and the GPU use this memory until the process ends. Later opens share it."""
        if self._kept.get(self.domain) is not self:
            self._kept[self.domain] = self
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._memory))

    def claim_daemon(self, now_ns: int) -> None:
        """Own the domain. Raises DaemonError naming the owner when there is one."""
        with self._membership():
            self._check_current()
            if self._lock is not None:
                taken = self._lock.runs_daemon or not self._lib.herald_lock(self._lock.fd, layout.DAEMON_BYTE, 0)
                if taken:
                    raise DaemonError(
                        f"domain {self.domain!r} already has a daemon: pid {self.header.daemon_pid} on "
                        f"{self.header.daemon_host.decode(errors='replace')}; stop it first, or choose another domain"
                    )
                self._lock.runs_daemon = True
            self.header.daemon_host = _clip(socket.gethostname(), 67)
            self.header.daemon_started_ns = now_ns
            self.header.daemon_pid = os.getpid()
            self.beat(now_ns)

    def beat(self, now_ns: int) -> None:
        """Daemon only: say that it lives."""
        self.header.daemon_heartbeat_ns = now_ns

    def daemon_is_alive(self) -> bool:
        """Whether some process owns the domain now."""
        if self._lock is None:
            return bool(self.header.daemon_pid)
        return self._lock.runs_daemon or self._lock.is_held(layout.DAEMON_BYTE)

    def publish_plan(
        self,
        row: int,
        generation: int,
        lead_ns: int,
        queue_limit: int,
        *,
        margin_ns: int = 0,
        inflation_ppm: int = 0,
        quantile_ppm: int = 0,
    ) -> None:
        """Daemon only: how the job of that row and generation closes its gate from now on.

        With ``inflation_ppm``, a request whose progress is known has the lead ``margin_ns`` + that quantile of its
        remaining time x ``inflation_ppm`` / 10^6.
        """
        limit = min(queue_limit, layout.NO_QUEUE_LIMIT)
        self._lib.herald_table_plan(
            self.address, row, generation, lead_ns, limit, margin_ns, inflation_ppm, quantile_ppm
        )

    def publish_limits(self, *, max_hold_ns: int, breather_ns: int, quantum_ns: int) -> None:
        """Daemon only: the longest hold of a gate, the pause after it, heavy device time between two waits (ns)."""
        self.header.max_hold_ns = max_hold_ns
        self.header.breather_ns = breather_ns
        self.header.quantum_ns = quantum_ns

    def publish_policy(self, policy: str, mps_pipe: str = "") -> None:
        """Daemon only: the policy's name and the domain's CUDA_MPS_PIPE_DIRECTORY ("" without MPS)."""
        self.header.policy = _clip(policy, 31)
        self.header.mps_pipe = mps_pipe.encode()

    def release_daemon(self) -> None:
        """Daemon only: give the domain up."""
        self.header.daemon_pid = 0
        if self._lock is not None:
            self._lock.runs_daemon = False
            self._lib.herald_unlock(self._lock.fd, layout.DAEMON_BYTE)

    # ---- inside

    @contextmanager
    def _membership(self) -> Iterator[None]:
        if self._lock is None:
            yield
        else:
            with self._lock.membership():
                yield

    def is_current(self) -> bool:
        """Whether the domain's name still leads to this table: it may have been reset and made anew."""
        try:
            return self._lock is None or _segment_path(self.domain).stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _check_current(self) -> None:
        if not self.is_current():
            raise TableError(f"the table of domain {self.domain!r} was reset while this process was joining: try again")


def _segment_path(domain: str) -> Path:
    return _SHM / segment_name(domain)[1:]


def _unlink_segment(domain: str) -> None:
    with suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(segment_name(domain))


def _open_segment(domain: str, lock: DomainLock) -> tuple[mmap.mmap, int]:
    """Map the segment, creating it if there is none. Under the membership lock, so never half made by another."""
    name = segment_name(domain)
    try:
        shared = posix_ipc.SharedMemory(name)
    except posix_ipc.ExistentialError:
        return _create_segment(domain)
    except posix_ipc.PermissionsError as e:
        raise TableError(f"/dev/shm{name} belongs to someone else: use another domain (HERALD_DOMAIN)") from e
    try:
        found = os.fstat(shared.fd)
        memory = mmap.mmap(shared.fd, found.st_size) if found.st_size >= ctypes.sizeof(layout.Header) else None
    finally:
        shared.close_fd()
    if _was_abandoned(memory, found.st_size) and not lock.anyone_alive():
        _unlink_segment(domain)
        return _create_segment(domain)
    _check_header(domain, memory, found.st_size)
    assert memory is not None
    return memory, found.st_ino


def _was_abandoned(memory: mmap.mmap | None, size: int) -> bool:
    """Whether its creator died before it wrote the magic, which comes last: nobody can have joined such a table."""
    return size == 0 or (memory is not None and not any(memory[:8]))


def _check_header(domain: str, memory: mmap.mmap | None, size: int) -> None:
    path, cure = _segment_path(domain), f"stop what uses it and run `herald reset --domain {domain}`"
    if memory is None:
        raise TableError(f"{path} is truncated: {size} bytes, a header needs {ctypes.sizeof(layout.Header)}; {cure}")
    header = layout.Header.from_buffer_copy(memory)
    if header.magic != layout.MAGIC:
        raise TableError(f"{path} is not a Herald table: magic {header.magic:#x}, expected {layout.MAGIC:#x}; {cure}")
    if header.version != layout.VERSION:
        raise TableError(
            f"{path} has layout version {header.version}, this Herald speaks {layout.VERSION}: "
            f"another version of Herald made it; {cure}"
        )
    expected = _geometry(resource.getpagesize())
    found = {field: getattr(header, field) for field in expected}
    if size != expected["total_bytes"] or found != expected:
        wrong = [
            f"{field} {found[field]}, expected {expected[field]}"
            for field in expected
            if found[field] != expected[field]
        ]
        raise TableError(
            f"{path} is truncated or damaged ({'; '.join([f'{size} bytes', *wrong])}, expected "
            f"{expected['total_bytes']} bytes); {cure}"
        )


def _geometry(page_bytes: int) -> dict[str, int]:
    """What the header of a sound table says of sizes and places on a machine with such pages."""
    memory = bytearray(int(native.table().herald_table_bytes(page_bytes)))
    native.table().herald_table_initialise(ctypes.addressof(ctypes.c_char.from_buffer(memory)), page_bytes, 0)
    header = layout.Header.from_buffer_copy(memory)
    fields = ("page_bytes", "total_bytes", "num_rows", "row_bytes", "rows_offset", "gates_offset", "gates_bytes")
    return {field: getattr(header, field) for field in fields}


def _create_segment(domain: str) -> tuple[mmap.mmap, int]:
    page = resource.getpagesize()
    size = int(native.table().herald_table_bytes(page))
    try:
        shared = posix_ipc.SharedMemory(segment_name(domain), posix_ipc.O_CREX, mode=0o600, size=size)
    except (posix_ipc.Error, OSError) as e:
        raise TableError(
            f"cannot create {_segment_path(domain)} ({size} bytes): {e}; is /dev/shm writable and not full?"
        ) from e
    try:
        inode = os.fstat(shared.fd).st_ino
        os.posix_fallocate(shared.fd, 0, size)  # a full /dev/shm is an error now, not a SIGBUS later
        memory = mmap.mmap(shared.fd, size)
    except OSError as e:
        _unlink_segment(domain)
        raise TableError(f"/dev/shm has no room for {size} bytes: {e.strerror}; free some or enlarge it") from e
    finally:
        shared.close_fd()
    initialise(memory, page)
    return memory, inode


def initialise(memory: mmap.mmap, page_bytes: int) -> None:
    """Make zeroed memory a table; the magic appears last."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    native.table().herald_table_initialise(address, page_bytes, time.time_ns())


def _view(index: int, row: layout.JobRow, header: layout.Header) -> JobView:
    names = {value: name for name, value in layout.PRIORITIES.items()}
    same = {f: getattr(row, f) for f in JobView.__dataclass_fields__ if f in _PLAIN_FIELDS}
    return JobView(
        row=index,
        name=row.name.decode(errors="replace"),
        priority=names.get(row.priority, "low"),
        device=header.devices[row.device].value.decode(errors="replace"),
        mps=bool(row.mps),
        target=row.target_ppm / 1e6,
        latency=Histogram(np.ctypeslib.as_array(row.latency).copy()),
        service=Histogram(np.ctypeslib.as_array(row.service).copy()),
        **same,
    )


_DECODED = {"row", "name", "priority", "device", "mps", "target", "latency", "service"}
_PLAIN_FIELDS = {f for f in JobView.__dataclass_fields__} - _DECODED


def _clip(text: str, num_bytes: int) -> bytes:
    return text.encode()[:num_bytes].decode(errors="ignore").encode()
