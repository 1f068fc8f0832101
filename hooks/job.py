"""A job of this process: its row in the table, its requests or its gate, and the way back to nothing.

Jobs are made by `herald.attach`. `detach` leaves no trace in the model and gates nothing any more; a CUDA graph that
was captured while attached keeps the waits in it, which stay safe: the process's agent goes on clearing up for it.
"""

import atexit
import ctypes
import logging
import os
import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from herald.errors import AttachError, ConfigError, TableError
from herald.hooks import classes, devices, launches, learned, native, sm_share
from herald.hooks.devices import JobDevice
from herald.hooks.engine import EngineStep, StepKind, deadline_ns, is_inside, kind_number, queued_count
from herald.hooks.requests import ForwardRequests, Request, arrival_ns
from herald.hooks.sm_share import SmShare
from herald.job_view import JobView
from herald.native import process_token
from herald.slo import NO_SLO, Slo, SloSpec
from herald.table import Table

if TYPE_CHECKING:
    import torch

    from herald.hooks.checkpoints import Checkpoints


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
        """Gate nothing any more and free the row. Again, or in a forked child: nothing."""

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

        Without, a request's progress is looked at only under a plan that reckons with it. A low-priority job has none.
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


class _AttachedJob(Job):
    """A job with a row."""

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

    def _check_neighbours(self) -> None:
        for other in _jobs:
            if other.priority != self.priority and (self._device.is_cuda or other._device.is_cuda):
                raise AttachError(
                    f"this process already has the {other.priority}-priority job {other.name!r}: on CUDA the two "
                    "priorities need two processes, since a launch that waits behind the gate can block the other job"
                )

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _stop(self) -> None: ...


class HighJob(_AttachedJob):
    """An inference service: its open requests (an engine's steps) close the gate, as its plan says. It never waits."""

    priority = "high"

    def __init__(
        self, table: Table, device: JobDevice, model: "torch.nn.Module | None", *, name: str, slo: Slo, target: float
    ) -> None:
        self._slo = slo
        self._explicit = 0
        self._explicit_lock = threading.Lock()
        self._inside = threading.local()  # whether this thread is in a forward, in how many steps of an engine
        self._model = model
        self._forward: ForwardRequests | None = None
        self._checkpoints: Checkpoints | None = None
        self._forward_step = _ForwardStep(self)
        self._handle = 0
        super().__init__(table, device, name=name, slo=slo, target=target)

    @override
    def begin(self, *, arrival: float | None = None, slo: SloSpec | None = None) -> Request:
        promised = self._slo if slo is None else Slo.parse(slo)
        arrived = arrival_ns(arrival)
        with self._explicit_lock:
            self._explicit += 1
        return Request(self, self._begin(arrived, promised))

    @override
    def step(self, kind: StepKind, deadline: float | None = None) -> EngineStep:
        return EngineStep(self, self._inside, kind_number(kind), deadline_ns(deadline))

    @override
    def queued(self, count: int) -> None:
        native.hook().herald_queued(self._handle, queued_count(count))

    def begin_step(self, kind: int, due_ns: int) -> int:
        """Called by `EngineStep`, on the thread that takes it."""
        return int(native.hook().herald_step_begin(self._handle, kind, due_ns))

    def end_step(self, step: int) -> None:
        """Called by `EngineStep`, once."""
        native.hook().herald_step_end(self._handle, step)

    def end_request(self, request: int, tokens: int | None) -> None:
        """Called by `Request.end`, once."""
        with self._explicit_lock:
            self._explicit -= 1
        native.hook().herald_request_end(self._handle, request, -1 if tokens is None else tokens)

    def first_token(self, request: int) -> None:
        """Called by `Request.first_token`."""
        native.hook().herald_first_token(self._handle, request)

    def step_request(self, request: int) -> None:
        """Called by `Request.step`."""
        native.hook().herald_request_step(self._handle, request)

    @override
    def observe_progress(self, on: bool = True) -> None:
        native.hook().herald_observe(self._handle, on)

    def _begin(self, arrived_ns: int, slo: Slo) -> int:
        promised = (slo.latency_ns, slo.ttft_ns, slo.tpot_ns)
        return int(native.hook().herald_request_begin(self._handle, arrived_ns, *promised))

    def _begin_forward(self) -> "Request | _ForwardStep | None":
        """What an outermost forward is: a request that nothing else accounts for, or a step of an explicit one."""
        if getattr(self._inside, "forward", False) or is_inside(self._inside):
            return None
        self._inside.forward = True
        if self._checkpoints is not None:
            self._checkpoints.before_forward()
        if self._explicit:
            native.hook().herald_forward_begin(self._handle)
            return self._forward_step
        return Request(self._forward_step, self._begin(0, self._slo))

    def _start(self) -> None:
        error = ctypes.create_string_buffer(native.ERROR_BYTES)
        index = self._device.cuda_index
        self._handle = native.hook().herald_high_attach(
            self._table.address,
            self._table.lock_fd,
            self._row,
            process_token(),
            -1 if index is None else index,
            error,
            native.ERROR_BYTES,
        )
        if not self._handle:
            raise AttachError(f"requests cannot be watched: {error.value.decode()}; see `herald doctor`")
        try:
            self._table.wait_until_armed(self._row, _ARMING_S)
            if self._model is not None:
                self._forward = ForwardRequests(self._model, self._begin_forward)
                self._checkpoints = self._make_checkpoints(self._model)
        except BaseException as e:
            self._stop()
            if isinstance(e, AttachError) or not isinstance(e, Exception):
                raise
            raise AttachError(
                f"the forward of {type(self._model).__name__} cannot be wrapped ({e}): attach without the model and "
                "say where a request begins and ends with job.request()"
            ) from e

    def _make_checkpoints(self, model: "torch.nn.Module") -> "Checkpoints":
        import torch

        from herald.hooks.checkpoints import Checkpoints

        index = self._device.cuda_index
        return Checkpoints(
            model,
            device=torch.device("cpu") if index is None else torch.device("cuda", index),
            mark=partial(native.hook().herald_checkpoint, self._handle),
            changed=partial(native.hook().herald_checkpoints_changed, self._handle),
        )

    def _stop(self) -> None:
        if self._forward is not None:
            self._forward.remove()
        if self._checkpoints is not None:
            self._checkpoints.remove()
        native.hook().herald_high_detach(self._handle)

    def forget(self) -> None:
        """In a forked child: the parent's handle means nothing here, and the inherited model makes no requests."""
        self._handle = 0


class _ForwardStep:
    """The end of an outermost forward: of a step of an explicit request, or of an automatic one."""

    def __init__(self, job: HighJob) -> None:
        self._job = job

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        native.hook().herald_forward_end(self._job._handle)
        self._forward_is_over()

    def end_request(self, request: int, tokens: int | None) -> None:
        native.hook().herald_request_end(self._job._handle, request, -1 if tokens is None else tokens)
        self._forward_is_over()

    def step_request(self, request: int) -> None:
        del request  # an automatic request is a single step

    def first_token(self, request: int) -> None:
        del request  # and nobody holds one to say so

    def _forward_is_over(self) -> None:
        self._job._inside.forward = False
        if self._job._checkpoints is not None:
            self._job._checkpoints.after_forward()


class LowJob(_AttachedJob):
    """Best-effort training: its heavy ops wait while the gate of their device is closed."""

    priority = "low"

    def __init__(
        self, table: Table, device: JobDevice, *, name: str, light_percent: float, weight: float, floor: float
    ) -> None:
        self._light_percent = light_percent
        super().__init__(table, device, name=name, weight=weight, floor=floor)

    def _check_neighbours(self) -> None:
        super()._check_neighbours()
        for other in _jobs:
            if other.priority == "low":
                raise AttachError(
                    f"this process already has the low-priority job {other.name!r}: the op hook sees the whole "
                    "process, so that one is enough; detach it first"
                )

    def _start(self) -> None:
        error = ctypes.create_string_buffer(native.ERROR_BYTES)
        slots, num_cuda = self._device_slots()
        # Without MPS the contexts of a GPU take turns, so nothing of this job runs beside a request anyway.
        all_heavy = self._light_percent == 0 or (self._device.is_cuda and not self._device.mps)
        classes.teach(self._gpu_model(), self._light_percent)
        ok = native.hook().herald_low_attach(
            self._table.address,
            self._table.lock_fd,
            self._row,
            process_token(),
            (ctypes.c_int32 * len(slots))(*slots),
            num_cuda,
            all_heavy,
            error,
            native.ERROR_BYTES,
        )
        if not ok:
            raise AttachError(f"ops cannot be gated: {error.value.decode()}; see `herald doctor`")
        try:
            launches.start(gate=str(self._table.address))
            self._share = self._make_share()
        except BaseException:
            native.hook().herald_low_detach()
            raise

    def _make_share(self) -> SmShare | None:
        if self._device.cuda_index is None:
            return None
        share = sm_share.of_job(self._table.address, self._row, self._device.cuda_index)
        share.start()
        return share

    def _stop(self) -> None:
        if self._share is not None:
            self._share.stop()
        launches.stop(gate=str(self._table.address))
        native.hook().herald_low_detach()

    @override
    def save_profile(self, path: str | Path) -> None:
        learned.save(path, learned.device_description(self._device.cuda_index))

    def _gpu_model(self) -> str | None:
        index = self._device.cuda_index
        return None if index is None else learned.device_description(index)

    def _device_slots(self) -> tuple[list[int], int]:
        """Table slots of every device that ops may run on, by CUDA index; (slots, number of CUDA devices)."""
        if not self._device.is_cuda:
            return [self._table.device_slot(self._device.name)], 0
        import torch

        count = torch.cuda.device_count()
        return [self._table.device_slot(devices.gpu_name(i)) for i in range(count)], count


class DisabledJob(Job):
    """What `attach` returns under HERALD_DISABLE=1: the same calls, no effect."""

    def __init__(self, name: str, priority: str, view: JobView) -> None:
        self.priority = priority
        self._name = name
        self._view = view

    @property
    @override
    def name(self) -> str:
        return self._name

    @override
    def stats(self) -> JobView:
        return self._view

    @override
    def detach(self) -> None:
        return

    @override
    def begin(self, *, arrival: float | None = None, slo: SloSpec | None = None) -> Request:
        del arrival, slo
        return Request(_NoJob(), 0)

    @override
    def step(self, kind: StepKind, deadline: float | None = None) -> AbstractContextManager[object]:
        del kind, deadline
        return nullcontext()

    @override
    def queued(self, count: int) -> None:
        del count

    @override
    def save_profile(self, path: str | Path) -> None:
        del path


class _NoJob:
    def end_request(self, request: int, tokens: int | None) -> None:
        del request, tokens

    def step_request(self, request: int) -> None:
        del request

    def first_token(self, request: int) -> None:
        del request


_ARMING_S = 0.2  # a trainer's agent looks every 10 ms; one that is stopped or dying is not waited for

_log = logging.getLogger("herald")
_jobs: set[_AttachedJob] = set()
_registry_lock = threading.RLock()


def _forget_parents_jobs() -> None:
    global _registry_lock  # noqa: PLW0603 -- the parent's lock may have been held when it forked
    _registry_lock = threading.RLock()
    for job in _jobs:
        if isinstance(job, HighJob):
            job.forget()
    _jobs.clear()


@atexit.register
def detach_all() -> None:
    """Detach every job of this process; runs at exit."""
    for job in list(_jobs):
        try:
            job.detach()
        except Exception:
            _log.exception("could not detach job %r", job)


os.register_at_fork(after_in_child=_forget_parents_jobs)

__all__ = ["DisabledJob", "HighJob", "Job", "LowJob", "TableError", "detach_all"]
