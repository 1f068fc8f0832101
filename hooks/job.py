"""A job of this process: its row in the table, its requests or its gate, and the way back to nothing.

Jobs are made by `herald.attach`. `detach` leaves no trace in the model and gates nothing any more; a CUDA graph that
was captured while attached keeps the waits in it, which stay safe: the process's agent goes on clearing up for it.
"""

import atexit
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from typing_extensions import override

from herald.errors import AttachError, ConfigError
from herald.hooks.devices import JobDevice
from herald.hooks.engine import StepKind
from herald.hooks.requests import Request
from herald.job_view import JobView
from herald.slo import NO_SLO, Slo, SloSpec
from herald.table import Table


class Job(ABC):
    """One attached job. A context manager: leaving it detaches."""

    priority: str

    @property
    @abstractmethod
    def name(self) -> str:
        """The name under which `herald status` and the config know it."""

    @abstractmethod
    def stats(self) -> JobView:
        """What the table knows of this job now; after `detach`, what it knew last."""

    @abstractmethod
    def detach(self) -> None:
        """Gate nothing any more and free the row. Again, or in a forked child: nothing.

        What a service calls afterwards (`begin`, `step`, `queued`) does nothing but warn, once.
        """

    def begin(self, *, arrival: float | None = None, slo: SloSpec | None = None) -> Request:
        """Open a request; requests may overlap. Never waits.

        ``arrival``: when it arrived, in time.monotonic() seconds (default: now); latency and deadline count from it.
        ``slo``: this request's own (default: the job's): a latency as "50ms", or a map of parts that must all hold, as
        {"latency": "2s", "ttft": "200ms", "tpot": "30ms"}: to the end, to the first token (`Request.first_token`), and
        per further token (`Request.end(tokens=...)`). Raises ConfigError.
        """
        del arrival, slo
        raise self._serves_nothing()

    def request(self, *, arrival: float | None = None, slo: SloSpec | None = None) -> Request:
        """`begin`, for use in a ``with`` block: the request ends with the block, also by an exception."""
        return self.begin(arrival=arrival, slo=slo)

    def step(self, kind: StepKind, deadline: float | None = None) -> AbstractContextManager[object]:
        """One iteration of an engine that serves many requests at once, on this thread's current stream. Never waits.

        From the first on, steps and not requests hold the gate; requests (`begin` on arrival, `Request.first_token`,
        `Request.end`) are judged. ``kind``: "prefill" or "decode", whose times are learnt apart. ``deadline``: by when
        it must be done, in time.monotonic() seconds. Default: for a prefill the earliest arrival + ttft of the requests
        without a first token; for a decode step, of those with one, tpot after the decode step before it (or after the
        first token if that was later); none where neither is promised. Raises ConfigError.
        """
        del kind, deadline
        raise self._serves_nothing()

    def queued(self, count: int) -> None:
        """Say how many requests wait outside, as often as that changes.

        They count as open ones where a plan limits how many may be (`queue_limit`). Raises ConfigError.
        """
        del count
        raise self._serves_nothing()

    def _serves_nothing(self) -> ConfigError:
        return ConfigError(f"job {self.name!r} has priority 'low': only a job of priority 'high' serves requests")

    def observe_progress(self, on: bool = True) -> None:
        """Follow the progress of every request on a GPU, also where the plan has no use for it (for measurements).

        Without, it is written and looked at only under a plan that reckons with it, and what is told to remain of a
        request goes by the time it took so far. A low-priority job has none.
        """
        del on

    def save_profile(self, path: str | Path) -> None:
        """Write what was learnt of op costs, for `attach(profile=...)`. Raises ConfigError."""
        del path
        raise ConfigError(f"job {self.name!r} has priority 'high': op costs are learnt of low-priority jobs")

    def __repr__(self) -> str:
        return f"<herald job {self.name!r}, priority {self.priority}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.detach()


class AttachedJob(Job):
    """A job with a row. What it does beside that is for its kind: `service.HighJob`, `trainer.LowJob`."""

    def __init__(
        self,
        table: Table,
        device: JobDevice,
        *,
        name: str,
        slo: Slo = NO_SLO,
        target: float = 0.99,
        weight: float = 1.0,
        floor: float = 0.0,
    ) -> None:
        self._table = table
        self._device = device
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._last: JobView | None = None
        with _registry_lock:
            self._check_neighbours()
            table.keep_mapped()
            self._row = table.claim(
                name=name,
                priority=self.priority,
                device=device.name,
                slo_ns=slo.latency_ns,
                ttft_slo_ns=slo.ttft_ns,
                tpot_slo_ns=slo.tpot_ns,
                target=target,
                weight=weight,
                floor=floor,
                mps=device.mps,
            )
            try:
                self._start()
            except BaseException:
                table.release(self._row)
                raise
            _jobs.add(self)

    @property
    @override
    def name(self) -> str:
        return self.stats().name

    @override
    def stats(self) -> JobView:
        last = self._last
        return last if last is not None else self._table.job(self._row)

    @override
    def detach(self) -> None:
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._last is not None:
                return
            self._stop()
            self._last = self._table.job(self._row)
            self._table.release(self._row)
        with _registry_lock:
            _jobs.discard(self)

    def forget(self) -> None:
        """In a forked child, which has none of its parent's jobs."""
        return

    def _neighbours(self) -> "Iterable[AttachedJob]":
        """The other jobs of this process."""
        return iter(_jobs)

    def _check_neighbours(self) -> None:
        for other in self._neighbours():
            if other.priority != self.priority and (self._device.is_cuda or other._device.is_cuda):
                raise AttachError(
                    f"this process already has the {other.priority}-priority job {other.name!r}: on CUDA the two "
                    "priorities need two processes, since a launch that waits behind the gate can block the other job"
                )

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _stop(self) -> None: ...


_log = logging.getLogger("herald")
_jobs: set[AttachedJob] = set()
_registry_lock = threading.RLock()


def attached_jobs() -> list[AttachedJob]:
    """Of this process."""
    with _registry_lock:
        return list(_jobs)


def _forget_parents_jobs() -> None:
    global _registry_lock  # noqa: PLW0603 -- the parent's lock may have been held when it forked
    _registry_lock = threading.RLock()
    for job in _jobs:
        job.forget()
    _jobs.clear()


@atexit.register
def detach_all() -> None:
    """Detach every job of this process; runs at exit."""
    for job in attached_jobs():
        try:
            job.detach()
        except Exception:
            _log.exception("could not detach job %r", job)


os.register_at_fork(after_in_child=_forget_parents_jobs)
