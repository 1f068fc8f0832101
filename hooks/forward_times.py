"""One recorded forward: when each module of a model was done, in device time on CUDA.

Time stamps are taken by forward hooks and read later: nothing here synchronises. Loads torch.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch

Passed = tuple[torch.nn.Module, int]  # a module and when it was done, in ns since the forward began


class Clock(Protocol):
    """Time stamps that may be readable only later."""

    def stamp(self) -> None:
        """Take a time stamp now, of what this thread has asked for so far."""

    def read(self) -> list[int] | None:
        """All stamps, in ns from the first one; None while one is not known yet."""


class HostClock:
    """When the host was there."""

    def __init__(self) -> None:
        self._stamps: list[int] = []

    def stamp(self) -> None:
        """See Clock."""
        self._stamps.append(time.monotonic_ns())

    def read(self) -> list[int] | None:
        """See Clock."""
        return [at - self._stamps[0] for at in self._stamps]


class DeviceClock:
    """When the device's stream was there: events, read once they have passed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []

    def stamp(self) -> None:
        """See Clock."""
        if is_capturing():
            raise RuntimeError("the forward makes a graph of a part of itself: an event there has no time")
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)

    def read(self) -> list[int] | None:
        """See Clock."""
        if is_capturing() or not self._events[-1].query():  # type: ignore[no-untyped-call]
            return None
        return [round(1e6 * self._events[0].elapsed_time(event)) for event in self._events]


class Recording:
    """One forward: when each module was done."""

    def __init__(self, modules: Iterator[torch.nn.Module], clock: Clock) -> None:
        self._thread = threading.get_ident()
        self._clock = clock
        self._passed: list[torch.nn.Module] = []
        self._over = False
        self._failed = False
        self._handles = [module.register_forward_hook(cast("Any", Hook(self._pass, module))) for module in modules]
        clock.stamp()

    def _pass(self, module: torch.nn.Module) -> None:
        if threading.get_ident() == self._thread and not self._over:
            self._stamp()
            self._passed.append(module)

    def _stamp(self) -> None:
        try:
            self._clock.stamp()
        except Exception:  # not the forward's failure
            self._failed = True

    def stop(self) -> bool:
        """The forward is over. False for the forward of another thread, and again."""
        if self._over or threading.get_ident() != self._thread:
            return False
        self._stamp()
        self._over = True
        self.remove()
        return True

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def result(self) -> tuple[list[Passed], int] | None:
        """What was passed when, and the length of the forward in ns; None while that is not known."""
        if self._failed:
            return [], 0
        stamps = self._clock.read() if self._over else None
        if stamps is None:
            return None
        return list(zip(self._passed, stamps[1:-1], strict=True)), stamps[-1]


class Hook:
    """A forward hook: calls back with its subject, except in code that is being compiled, where it is nothing."""

    def __init__(self, call: Callable[[Any], None], subject: object) -> None:
        self.call = call
        self.subject = subject

    def __call__(self, module: torch.nn.Module, args: object, output: object) -> None:
        """The module is done."""
        del module, args, output
        if not torch.compiler.is_compiling():
            self.call(self.subject)

    # A copy or a pickle of the model is an ordinary model: its modules must not speak for this one's.
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _nothing

    def __reduce__(self) -> Any:
        return _give_nothing, ()


def _give_nothing() -> Any:
    return _nothing


def _nothing(module: torch.nn.Module, args: object, output: object) -> None:
    del module, args, output


def is_capturing() -> bool:
    """Whether this thread's stream is being captured into a graph."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return bool(started and torch.cuda.is_current_stream_capturing())
