"""The process that `herald profile` measures in: how it is asked, watched, and ended by a limit.

It is `herald.hooks.profiling.child`, which tells by a pipe how far it is: "started", then "N of M" for each iteration
of a program, then "written"; or "failed", once it has printed why. Here nothing is measured and no torch is loaded.
"""

import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Self

from herald.clock import now_ns
from herald.durations import format_ns
from herald.errors import ConfigError, ProfileError

_CHILD = "herald.hooks.profiling.child"
_GRACE_NS = 5_000_000_000  # for the process to end by itself, with a better message


@dataclass(frozen=True)
class Order:
    """What the other process is asked for."""

    output: str
    function: str | None  # "train.py:make_step"; None: the target words are a program
    warmup: int
    iterations: int
    limit_ns: int
    device: str | None
    workload: str
    stop: bool  # end the program once the profile is written
    pipe: int = -1  # file descriptor to tell by

    def to_word(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def of_word(cls, word: str) -> Self:
        """From the command line."""
        return cls(**json.loads(word))


class ProfileProcess:
    """The process that measures, and what it told so far. A context manager: leaving it ends the process."""

    def __init__(self, order: Order, interpreter: Sequence[str], target: Sequence[str]) -> None:
        self._order = order
        self._python = interpreter[0]
        self._pipe, pipe = os.pipe()
        command = [*interpreter, "-m", _CHILD, replace(order, pipe=pipe).to_word(), *target]
        environment = os.environ | {"HERALD_DISABLE": "1"}  # nobody gates what is measured
        try:
            self._process = subprocess.Popen(command, pass_fds=(pipe,), env=environment)
        except OSError as error:
            os.close(self._pipe)
            raise ConfigError(f"herald profile: cannot start {interpreter[0]!r}: {error.strerror}") from error
        finally:
            os.close(pipe)
        self._ended = os.pidfd_open(self._process.pid)
        self._told = ""
        self._until_ns: int | None = None

    def wait_for_profile(self) -> bool:
        """Wait until the profile is written; False where the process failed and has said why.

        Raises ProfileError: the limit is over, or the process ended without a profile.
        """
        self._listen()
        if self._has_told("written"):
            return True
        code = self.wait()
        if self._has_told("failed"):
            return False
        raise ProfileError(f"no profile was written: {self._why_nothing(code)}")

    def wait(self) -> int:
        """Wait for the process's end, however long that takes; its exit code, as a shell says it."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def _listen(self) -> None:
        """Until the profile is written or the process has ended. Raises ProfileError at the limit."""
        sources = [self._pipe, self._ended]
        while not self._has_told("written"):
            ready = select.select(sources, [], [], self._left_s())[0]
            if self._pipe in ready and not self._hear():
                sources = [self._ended]  # it has closed its end
            elif self._ended in ready:
                return

    def _hear(self) -> bool:
        told = os.read(self._pipe, 1 << 16).decode()
        self._told += told
        return bool(told)

    def _left_s(self) -> float | None:
        """Until the limit, which counts from when the process has loaded torch. Raises ProfileError."""
        if self._until_ns is None:
            if not self._has_told("started"):
                return None
            grace_ns = _GRACE_NS if self._order.function else 0
            self._until_ns = now_ns() + self._order.limit_ns + grace_ns
        left_ns = self._until_ns - now_ns()
        if left_ns <= 0:
            self._process.kill() if self._order.function else self._process.terminate()
            raise ProfileError(self._over())
        return left_ns / 1e9

    def _has_told(self, line: str) -> bool:
        return f"{line}\n" in self._told

    def _over(self) -> str:
        said = f"--limit = {format_ns(self._order.limit_ns)} is over"
        if self._order.function:
            return f"{said}, and {self._order.function} is stuck in a call into C or on the device: it was ended"
        return f"{said} with {self._seen()}: the program was ended; give a longer --limit or fewer --iterations"

    def _why_nothing(self, code: int) -> str:
        if not self._has_told("started"):
            return f"{self._python} ended (exit code {code}) before it began: is Herald installed for that Python?"
        if self._order.function:
            return f"{self._order.function} ended the process (exit code {code}): a step function has to return"
        if code:
            return f"the program failed (exit code {code}; see what it said above) with {self._seen()}"
        return (
            f"the program ended (exit code {code}) with {self._seen()}; an iteration is from one step of a torch.optim "
            "optimizer to the next: let it run longer, or profile FILE.py:FUNCTION"
        )

    def _seen(self) -> str:
        counts = [line for line in self._told.splitlines() if " of " in line]
        return f"{counts[-1]} iterations seen" if counts else "no iteration seen"

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_GRACE_NS / 1e9)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._ended)
        os.close(self._pipe)


def _leave(number: int, frame: FrameType | None) -> None:
    """Told to end: end the other process, too."""
    del frame
    raise SystemExit(128 + number)
