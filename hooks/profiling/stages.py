"""The passes over a workload's iterations, one after the other: what is on during which iteration.

Each measures one thing, so that none disturbs another. A stage does not know who runs the iterations: a loop over a
step function, or a script of which only the optimizer's steps are seen.
"""

import statistics
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise
from types import TracebackType
from typing import Self

import torch
from typing_extensions import override

from herald.clock import now_ns
from herald.hooks.profiling.module_paths import ModuleMarks
from herald.hooks.recorder import Recorder, Recording

ITERATION = "herald::iteration"  # the mark at each iteration's begin


class Stage:
    """Something that is on for ``num_iterations``. Entered at a border between iterations and left at another."""

    def __init__(self, num_iterations: int, device: torch.device) -> None:
        self.num_iterations = num_iterations
        self.device = device
        self._stack = ExitStack()  # what is on; all of it goes off with the stage

    def border(self) -> None:
        """One more iteration has ended, and the next begins."""

    def finish(self) -> None:
        """All its iterations have ended, and it was left: read what was measured. Not called after an error."""

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __enter__(self) -> Self:
        self.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


class WarmUp(Stage):
    """Nothing is on."""


class WallTimes(Stage):
    """From one iteration's begin to the next one's, back to back as they would run alone."""

    def __init__(self, num_iterations: int, device: torch.device) -> None:
        super().__init__(num_iterations, device)
        self._borders_ns: list[int] = []
        self._events: list[torch.cuda.Event] = []  # on CUDA, where the host runs ahead
        self.times_ns: list[float] = []

    @override
    def border(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)
        else:
            self._borders_ns.append(now_ns())

    @override
    def finish(self) -> None:
        self.wait()
        on_device = [begin.elapsed_time(end) * 1e6 for begin, end in pairwise(self._events)]
        self.times_ns = on_device or [end - begin for begin, end in pairwise(self._borders_ns)]

    @override
    def __enter__(self) -> Self:
        super().__enter__()
        self.border()
        return self

    @property
    def median_ns(self) -> int:
        """The median iteration."""
        return round(statistics.median(self.times_ns))


class HostTimes(Stage):
    """How long the host is busy with an iteration: on a GPU it waits for the device before each."""

    def __init__(self, num_iterations: int, device: torch.device) -> None:
        super().__init__(num_iterations, device)
        self.times_ns: list[float] = []
        self._begun_ns = 0

    @override
    def border(self) -> None:
        self.times_ns.append(now_ns() - self._begun_ns)
        self.wait()
        self._begun_ns = now_ns()

    @override
    def __enter__(self) -> Self:
        super().__enter__()
        self._begun_ns = now_ns()
        return self

    @property
    def median_ns(self) -> int:
        """The median iteration."""
        return round(statistics.median(self.times_ns))


class Recorded(Stage):
    """The op recorder is on; with ``modules``, in detail and with the borders of modules as marks."""

    def __init__(self, num_iterations: int, device: torch.device, modules: ModuleMarks | None = None) -> None:
        super().__init__(num_iterations, device)
        self._borders_ns: list[int] = []
        self._modules = modules
        self._recorder = Recorder(device, detail=modules is not None)
        self._recording: Recording | None = None

    @override
    def border(self) -> None:
        self._borders_ns.append(now_ns())
        self._recorder.mark_begin(ITERATION)
        self._recorder.mark_end()

    @override
    def __enter__(self) -> Self:
        super().__enter__()
        with ExitStack() as stack:
            stack.enter_context(self._recorder)
            if self._modules is not None:
                stack.enter_context(self._modules.sent_to(self._recorder))
            self.border()
            self._stack = stack.pop_all()
        return self

    @override
    def finish(self) -> None:
        self._recording = self._recorder.result()  # before another recording begins

    @property
    def recording(self) -> Recording:
        """What was recorded, once finished."""
        assert self._recording is not None
        return self._recording

    @property
    def bounds_ns(self) -> list[tuple[int, int]]:
        """Begin and end of each iteration on the host."""
        return list(pairwise(self._borders_ns))


class Schedule:
    """Stages in their order, driven by the borders between iterations. A context manager: leaving it ends all."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._waiting: list[Stage] = [stage for stage in stages if stage.num_iterations > 0]
        self._current: Stage | None = None
        self._left = 0
        self._stack = ExitStack()
        self.num_iterations = sum(stage.num_iterations for stage in self._waiting)
        self.num_done = 0

    @property
    def done(self) -> bool:
        """Whether all stages have had their iterations."""
        return self._current is None and not self._waiting

    def begin(self) -> None:
        """The first iteration begins."""
        self._next()

    def border(self) -> None:
        """An iteration has ended, and the next begins, unless `done`."""
        if self._current is None:
            return
        self.num_done += 1
        self._current.border()
        self._left -= 1
        if self._left == 0:
            self._next()

    def _next(self) -> None:
        self._stack.close()
        if self._current is not None:
            self._current.finish()
        self._current = self._waiting.pop(0) if self._waiting else None
        if self._current is not None:
            self._left = self._current.num_iterations
            self._stack.enter_context(self._current)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._waiting.clear()
        self._current = None
        self._stack.close()
