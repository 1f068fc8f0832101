"""A limit on how long the profiler may take."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from herald.clock import now_ns
from herald.durations import format_ns
from herald.errors import ProfileError

_AGAIN_S = 5.0  # a step that swallowed the first interruption gets another


class _Interrupted(BaseException):
    """Not an Exception: a step's own `except Exception` must not swallow it."""


class TimeLimit:
    """Checked between iterations and, where this thread gets signals, enforced within one."""

    def __init__(self, limit_ns: int) -> None:
        self.limit_ns = limit_ns
        self._until_ns = now_ns() + limit_ns

    def check(self) -> None:
        """Raises ProfileError once the time is over."""
        if now_ns() > self._until_ns:
            raise self._error()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Interrupt what runs inside when the time is over: raises ProfileError.

        By SIGALRM, in the main thread only; Python code is interrupted at once, a call into C when it returns. The
        handler and the timer that were there before are put back.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        interrupts = True

        def interrupt(number: int, frame: FrameType | None) -> None:
            del number, frame
            if interrupts:
                raise _Interrupted

        handler = signal.signal(signal.SIGALRM, interrupt)
        begun_ns = now_ns()
        timer = signal.setitimer(signal.ITIMER_REAL, _at_once_or((self._until_ns - begun_ns) / 1e9), _AGAIN_S)
        try:
            yield
        except _Interrupted:
            raise self._error() from None
        finally:
            interrupts = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            if timer[0]:
                signal.setitimer(signal.ITIMER_REAL, _at_once_or(timer[0] - (now_ns() - begun_ns) / 1e9), timer[1])

    def _error(self) -> ProfileError:
        return ProfileError(
            f"limit = {format_ns(self.limit_ns)} is over before the iterations were: give a longer limit, fewer "
            "iterations, or a step function that does one iteration and returns"
        )


def _at_once_or(seconds: float) -> float:
    return max(1e-6, seconds)  # zero would switch the timer off
