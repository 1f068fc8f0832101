"""A high-priority job: an inference service, its requests and its engine's steps."""

import ctypes
import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from herald.errors import AttachError
from herald.hooks import native
from herald.hooks.devices import JobDevice
from herald.hooks.engine import EngineStep, StepKind, deadline_ns, is_inside, kind_number, queued_count
from herald.hooks.job import AttachedJob
from herald.hooks.requests import Ends, ForwardRequests, Request, arrival_ns
from herald.native import process_token
from herald.slo import Slo, SloSpec
from herald.table import Table

if TYPE_CHECKING:
    import torch

    from herald.hooks.checkpoints import Checkpoints

_log = logging.getLogger("herald")

_ARMING_S = 0.2  # a trainer's agent looks every 10 ms; one that is stopped or dying is not waited for


class HighJob(AttachedJob):
    """An inference service: its open requests (an engine's steps) close the gate, as its plan says. It never waits."""

    priority = "high"

    def __init__(
        self, table: Table, device: JobDevice, model: "torch.nn.Module | None", *, name: str, slo: Slo, target: float
    ) -> None:
        self._slo = slo
        self._explicit = 0
        self._explicit_lock = threading.Lock()
        self._forwards_are_steps = False  # of explicit requests, and so their tokens: it was seen
        self._inside = threading.local()  # whether this thread is in a forward, in how many steps of an engine
        self._model = model
        self._forward: ForwardRequests | None = None
        self._checkpoints: Checkpoints | None = None
        self._forward_step = _ForwardStep(self)
        self._handle = 0  # of the native job; 0: there is none (any more, or in this process)
        self._told: set[str] = set()  # warnings that were given: each once
        super().__init__(table, device, name=name, slo=slo, target=target)

    @override
    def begin(self, *, arrival: float | None = None, slo: SloSpec | None = None) -> Request:
        promised = self._slo if slo is None else Slo.parse(slo)
        arrived = arrival_ns(arrival)
        with self._explicit_lock:
            self._explicit += 1
        return self._request(self, arrived, promised)

    @override
    def step(self, kind: StepKind, deadline: float | None = None) -> EngineStep:
        return EngineStep(self, self._inside, kind_number(kind), deadline_ns(deadline))

    @override
    def queued(self, count: int) -> None:
        waiting = queued_count(count)
        self._tell_untracked()
        native.hook().herald_queued(self._handle, waiting)

    def begin_step(self, kind: int, due_ns: int) -> int:
        """Called by `EngineStep`, on the thread that takes it."""
        self._tell_untracked()
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

    def lacks_first_token(self) -> None:
        """Called by `Request.end`."""
        self._warn_once(
            'job %r promises "ttft" or "tpot", but a request ended without request.first_token(): it counts as missed. '
            "Call first_token() on what job.begin() returned as soon as the first token is there",
        )

    def lacks_tokens(self) -> None:
        """Called by `Request.end`."""
        if not self._forwards_are_steps:
            self._warn_once(
                'job %r promises "tpot", but a request ended without a number of tokens: it counts as missed. Give it '
                "as request.end(tokens=...), or call request.step() for each token"
            )

    def step_request(self, request: int) -> None:
        """Called by `Request.step`."""
        native.hook().herald_request_step(self._handle, request)

    @override
    def observe_progress(self, on: bool = True) -> None:
        native.hook().herald_observe(self._handle, on)

    def _request(self, ends: Ends, arrived_ns: int, slo: Slo) -> Request:
        self._tell_untracked()
        promised = (slo.latency_ns, slo.ttft_ns, slo.tpot_ns)
        number = int(native.hook().herald_request_begin(self._handle, arrived_ns, *promised))
        return Request(
            ends,
            number,
            awaits_token=number >= 0 and bool(slo.ttft_ns or slo.tpot_ns),
            lacks_tokens=self.lacks_tokens if number >= 0 and slo.tpot_ns else None,
        )

    def _tell_untracked(self) -> None:
        """A running service must not fail because its job was detached; but whoever runs it has to know."""
        if self._handle:
            return
        why = "was detached" if self._pid == os.getpid() else "was attached before this process was forked"
        self._warn_once(
            f"job %r {why}: requests go on as without Herald, neither protected nor counted (herald.attach again, in "
            "the process that serves)"
        )

    def _warn_once(self, message: str) -> None:
        """``message`` with one place for the job's name."""
        if message not in self._told:
            self._told.add(message)
            _log.warning(message, self.name)

    def _begin_forward(self) -> "Request | _ForwardStep | None":
        """What an outermost forward is: a request that nothing else accounts for, or a step of an explicit one."""
        if getattr(self._inside, "forward", False) or is_inside(self._inside):
            return None
        self._inside.forward = True
        if self._checkpoints is not None:
            self._checkpoints.before_forward()
        if self._explicit:
            self._forwards_are_steps = True
            native.hook().herald_forward_begin(self._handle)
            return self._forward_step
        return self._request(self._forward_step, 0, self._slo)

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
        self._handle = 0

    @override
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

    def lacks_first_token(self) -> None:
        self._job.lacks_first_token()

    def _forward_is_over(self) -> None:
        self._job._inside.forward = False
        if self._job._checkpoints is not None:
            self._job._checkpoints.after_forward()
