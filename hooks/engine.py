"""The steps of an engine that serves many requests at once (continuous batching)."""

import threading
import time
from typing import Any, Literal, Protocol, Self

from herald.errors import ConfigError

StepKind = Literal["prefill", "decode"]

_KINDS = ("prefill", "decode")  # from 1, as WorkKind in job_progress.hpp
_MOST_FUTURE_S = 24 * 3600.0  # a deadline further off is another clock's


class Steps(Protocol):
    """What a step needs of its job."""

    def begin_step(self, kind: int, due_ns: int) -> int:
        """A step begins on this thread; returns its number."""

    def end_step(self, step: int) -> None:
        """The step's work is enqueued on the current stream (CUDA) or done (CPU)."""


class EngineStep:
    """One iteration, from ``with`` to its end, on this thread's current stream. Never waits."""

    def __init__(self, job: Steps, inside: threading.local, kind: int, due_ns: int) -> None:
        self._job = job
        self._inside = inside
        self._kind = kind
        self._due_ns = due_ns
        self._number: int | None = None

    def __enter__(self) -> Self:
        if self._number is not None:
            raise ConfigError("this step has begun already: make one with job.step() for each iteration")
        self._number = self._job.begin_step(self._kind, self._due_ns)
        self._inside.steps = is_inside(self._inside) + 1
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.steps = is_inside(self._inside) - 1
        self._end()

    def __del__(self) -> None:
        # An engine loop that was dropped in the middle of a step must not hold the gate.
        if self._number is not None:
            self._end()

    def _end(self) -> None:
        number, self._number = self._number, -1
        if number is not None and number >= 0:
            self._job.end_step(number)


def is_inside(inside: Any) -> int:
    """How many steps are open on this thread."""
    return int(getattr(inside, "steps", 0))


def kind_number(kind: object) -> int:
    """The native number of a kind of step. Raises ConfigError."""
    if kind not in _KINDS:
        raise ConfigError(f"kind = {kind!r}: a step is 'prefill' (makes first tokens) or 'decode' (further ones)")
    return _KINDS.index(kind) + 1


def deadline_ns(deadline: float | None) -> int:
    """A deadline in ns of the monotonic clock, 0 for none. Raises ConfigError for another clock's times."""
    if deadline is None:
        return 0
    now = time.monotonic()
    # NaN and infinity fail the comparison.
    if not isinstance(deadline, int | float) or not 0 < deadline < now + _MOST_FUTURE_S:
        raise ConfigError(f"deadline = {deadline!r}: give time.monotonic() seconds (now {now:.3f})")
    return max(1, round(deadline * 1e9))


def queued_count(count: object) -> int:
    """A number of waiting requests. Raises ConfigError."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(f"queued = {count!r}: give how many requests wait, a whole number from 0")
    return min(count, 1 << 30)
