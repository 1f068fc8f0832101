"""Keeps a training job to the SMs that its plan allows, from one step to the next, without a restart.

The end of an optimizer's step is where a training loop holds least: there the thread's current stream becomes one of
a green context with as many SMs (or the loop's own stream again), after an event, so that all work stays in one order.
The loop notices nothing. A loop that uses no `torch.optim` optimizer, or replays its steps as a CUDA graph, has no
such place: it is never switched, and its row says so (`sm_total` stays 0).
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from herald.hooks import green_contexts, native
from herald.hooks.green_contexts import NoShareError
from herald.layout import Header, JobRow

if TYPE_CHECKING:
    import torch

DEAD_NS = 2_000_000_000  # without a beat, as in table.hpp

_log = logging.getLogger("herald")


class SmShare:
    """The share of one low-priority job on a CUDA device. ``row``: its own; only this writes the SM fields in it.

    ``header``: the table's, which says whether there is a daemon.
    """

    def __init__(self, header: Header, row: JobRow, index: int) -> None:
        self._header = header
        self._row = row
        self._index = index
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._shares: dict[int, torch.cuda.ExternalStream] = {}  # by the SM count that was asked for
        self._home: torch.cuda.Stream | None = None  # the loop's own stream, while it is on a share
        self._thread: int | None = None  # the one that is on a share: current streams belong to threads
        self._hook: Any = None
        self._leaving = False
        self._synchronize: Callable[..., None] | None = None

    def start(self) -> None:
        """Look at the plan after every optimizer step of this process."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._hook = register_optimizer_step_post_hook(self._after_step)

    def stop(self) -> None:
        """Back to the loop's own stream and no hook; where another thread is on a share, from its next step on."""
        with self._lock:
            if self._hook is None:
                return
            self._leaving = True
            self._row.sm_granted = 0
            if self._home is None or self._thread == threading.get_ident():
                self._leave()

    def _after_step(self, *_: object) -> None:
        if os.getpid() != self._pid:
            return  # a forked child has its parent's hooks, but neither its row nor its GPU
        import torch

        if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
            return
        with self._lock:
            if not self._leaving:
                self._follow_plan()
            elif self._thread == threading.get_ident():
                self._leave()

    def _leave(self) -> None:
        if self._home is not None:
            self._go_home()
        self._hook.remove()
        self._hook = None
        self._wait_for_shares(False)

    def _follow_plan(self) -> None:
        import torch

        native.hook().herald_low_step()
        if self._row.train_steps == 1:
            self._row.sm_total = _sm_total(self._index)
        if self._row.sm_total == 0 or torch.cuda.current_device() != self._index:
            return
        if self._home is not None and torch.cuda.current_stream(self._index) != self._share(self._row.sm_granted):
            # A stream of the loop's own came in between, or another thread: this loop cannot keep to a share.
            self._home = self._thread = None
            self._row.sm_granted = self._row.sm_total = 0
            return
        wanted = self._row.sm_count if self._is_planned() else 0
        if wanted == self._row.sm_granted:
            return
        begun_ns = time.monotonic_ns()
        try:
            self._switch(wanted)
        except (NoShareError, RuntimeError) as error:  # whatever it is, it is not the loop's business
            if self._home is not None:
                self._go_home()
                self._row.sm_granted = 0
            self._row.sm_total = 0
            _log.warning("no SM shares any more: %s", error)
            return
        self._row.sm_switches += 1
        self._row.sm_switch_ns += time.monotonic_ns() - begun_ns

    def _is_planned(self) -> bool:
        """A dead daemon limits nobody."""
        beat_ns: int = self._header.daemon_heartbeat_ns
        return time.monotonic_ns() - beat_ns < DEAD_NS

    def _switch(self, wanted: int) -> None:
        if wanted == 0 or wanted >= self._row.sm_total:
            if self._home is not None:
                self._go_home()
            self._row.sm_granted = 0
            return
        import torch

        stream = self._share(wanted)
        current = torch.cuda.current_stream(self._index)
        if self._home is None:
            self._home, self._thread = current, threading.get_ident()
        self._make_room()
        stream.wait_stream(current)
        torch.cuda.set_stream(stream)
        self._wait_for_shares(True)
        self._row.sm_granted = wanted

    def _go_home(self) -> None:
        import torch

        assert self._home is not None
        self._home.wait_stream(torch.cuda.current_stream(self._index))
        torch.cuda.set_stream(self._home)
        self._home = self._thread = None

    def _share(self, sm_count: int) -> "torch.cuda.ExternalStream":
        import torch

        if sm_count not in self._shares:
            handle, _ = green_contexts.make_stream(self._index, sm_count)
            self._shares[sm_count] = torch.cuda.ExternalStream(handle, device=self._index)  # type: ignore[no-untyped-call]
        return self._shares[sm_count]

    def _make_room(self) -> None:
        """torch keeps freed memory per stream: what the loop held on the last one, it will hold once more on this."""
        import torch

        free, _ = torch.cuda.mem_get_info(self._index)
        if free < 2 * torch.cuda.memory_reserved(self._index):
            torch.cuda.synchronize(self._index)
            torch.cuda.empty_cache()

    def _wait_for_shares(self, on: bool) -> None:
        """`torch.cuda.synchronize` does not wait for streams of green contexts; while there are such, ours does."""
        import torch

        if on == (self._synchronize is not None):
            return
        if self._synchronize is not None:
            torch.cuda.synchronize = self._synchronize
            self._synchronize = None
            return
        original = self._synchronize = torch.cuda.synchronize

        def synchronize(device: Any = None) -> None:
            for stream in self._shares.values():
                stream.synchronize()
            original(device)

        torch.cuda.synchronize = synchronize


def _sm_total(index: int) -> int:
    try:
        return green_contexts.sm_total(index)
    except NoShareError as error:
        _log.info("no SM shares: %s", error)
        return 0


def of_job(address: int, row: int, index: int) -> SmShare:
    """The share of the job in that row of the table at ``address``."""
    return SmShare(Header.from_address(address), row_at(address, row), index)


def row_at(address: int, row: int) -> JobRow:
    """A row itself, not a copy, of the table at ``address``."""
    offset: int = Header.from_address(address).rows_offset
    return JobRow.from_address(address + offset + row * ctypes.sizeof(JobRow))
