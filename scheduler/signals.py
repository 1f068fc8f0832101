"""Waiting that SIGTERM, SIGINT and SIGHUP end, so that a daemon always leaves through its own front door.

The handlers only remember the signal. What wakes the waiter is the byte that CPython's C handler writes:
setting a `threading.Event` from a handler can deadlock on the Event's own lock.
"""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignals:
    """Whether this process was asked to stop. Made by `stop_signals`."""

    def __init__(self, wake_fd: int) -> None:
        self._wake_fd = wake_fd
        self.received: signal.Signals | None = None

    def wait(self, timeout_s: float) -> bool:
        """Up to ``timeout_s`` of rest; True at once when asked to stop, now or earlier."""
        if self.received is None:
            select.select([self._wake_fd], [], [], timeout_s)
        return self.received is not None

    def remember(self, number: int, _frame: object) -> None:
        """The Python-level handler."""
        self.received = signal.Signals(number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catch them for the block, under nohup no SIGHUP; main thread only. Handlers are as before afterwards."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stop = StopSignals(read_fd)
    before_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    # Only SIGHUP: shells have what they start in the background ignore SIGINT, which is to end it all the same.
    heard = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop.remember) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        os.close(read_fd)
        os.close(write_fd)
