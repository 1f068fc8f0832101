"""The shared table of a domain, from Python: opening, membership, and copies of its rows.

A table is a POSIX shared-memory segment and a lock file beside it. Jobs and the daemon meet only here. Whoever opens
first creates; only `Table.unlink` (herald reset, or a daemon that leaves an empty domain) removes. Every atomic
operation is the native library's; Python copies rows out and never does a read-modify-write.
"""

import ctypes
import mmap
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import ClassVar, Self

from herald import layout, native
from herald.domains import DomainLock, default_domain, lock_path, segment_path
from herald.errors import DaemonError, TableError
from herald.job_view import JobView, of_row
from herald.segment import open_segment, unlink_segment
from herald.settings import check_domain


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
        """The domain's table, created if need be; never repairs one in use.

        Raises TableError or BuildError; a table that could not be made leaves no file.
        """
        domain = check_domain(domain) if domain is not None else default_domain()
        if not create and not segment_path(domain).exists():
            raise TableError(f"domain {domain!r} has no table: no daemon and no job has started in it")
        with _entered(domain) as lock:
            kept = cls._kept.get(domain)
            if isinstance(kept, cls) and kept.is_current():
                return kept
            try:
                memory, inode = open_segment(domain, lock)
            except TableError:
                if not segment_path(domain).exists():
                    lock.path.unlink(missing_ok=True)
                raise
            return cls(domain, memory, lock, inode)

    @staticmethod
    def unlink(domain: str, *, force: bool = False) -> bool:
        """Remove a domain's segment and lock file; False if there was none.

        Raises TableError while anyone lives, BuildError where there is something to remove but nothing to lock it with.
        """
        check_domain(domain)
        if not segment_path(domain).exists() and not lock_path(domain).exists():
            return False
        with _entered(domain) as lock:
            existed = segment_path(domain).exists()
            if not force and lock.anyone_alive():
                raise TableError(
                    f"domain {domain!r} is in use (see `herald status --domain {domain}`): stop its jobs and daemon, "
                    "or the experiment that it is of, or remove it all the same with "
                    f"`herald reset --domain {domain} --force`"
                )
            unlink_segment(domain)
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
        ttft_slo_ns: int = 0,
        tpot_slo_ns: int = 0,
        target: float = 0.99,
        weight: float = 1.0,
        floor: float = 0.0,
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
            weight_ppm=round(weight * 1e6),
            floor_ppm=round(floor * 1e6),
            slo_ns=slo_ns,
            ttft_slo_ns=ttft_slo_ns,
            tpot_slo_ns=tpot_slo_ns,
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
        """Until a close reaches all low-priority jobs on the device of ``row``; False if one is not in time.

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
        return of_row(row, self._rows[row], self.header)

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
        slice_ns: int = 0,
    ) -> None:
        """Daemon only: how the job of that row and generation closes its gate from now on.

        With ``inflation_ppm``, a request whose progress is known has the lead ``margin_ns`` + that quantile of its
        remaining time x ``inflation_ppm`` / 10^6. With ``slice_ns`` the gate is closed and open in turns of that length
        while a request is open.
        """
        limit = min(queue_limit, layout.NO_QUEUE_LIMIT)
        self._lib.herald_table_plan(
            self.address, row, generation, lead_ns, limit, margin_ns, inflation_ppm, quantile_ppm, slice_ns
        )

    def publish_feasibility(self, row: int, generation: int, reason: str, needed_ns: int) -> None:
        """Daemon only: why the SLO of that job cannot be held (one of layout.REASONS, "": it can), and which could."""
        self._lib.herald_table_feasibility(self.address, row, generation, layout.REASONS.index(reason), needed_ns)

    def publish_trainer_plan(
        self, row: int, generation: int, *, sm_count: int = 0, rate_ppm: int = 0, ahead_ns: int = 0
    ) -> None:
        """Daemon only: SMs, rate and run-ahead of the low-priority job of that row and generation; 0: no limit."""
        self._lib.herald_table_trainer_plan(self.address, row, generation, sm_count, rate_ppm, ahead_ns)

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
            return self._lock is None or segment_path(self.domain).stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _check_current(self) -> None:
        if not self.is_current():
            raise TableError(f"the table of domain {self.domain!r} was reset while this process was joining: try again")


@contextmanager
def _entered(domain: str) -> Iterator[DomainLock]:
    """Alone among those who create and remove, by the lock file that is the domain's. Raises TableError, BuildError."""
    native.table()  # does the locking: without it, a lock file would be made that nobody can lock
    while True:
        lock = DomainLock.of(domain)
        with lock.membership():
            if lock is DomainLock.of(domain):  # else it was reset between opening the file and locking it
                yield lock
                return


def _clip(text: str, num_bytes: int) -> bytes:
    return text.encode()[:num_bytes].decode(errors="ignore").encode()
