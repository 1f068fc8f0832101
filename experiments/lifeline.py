"""`python lifeline.py PID COMMAND...`: becomes the command, and gets SIGTERM when parent PID ends.

An experiment that is killed (SIGKILL) cannot end its daemon and its workers, and those would go on for good: a daemon
in a session of its own, a worker until it has done what it was told last. Imports nothing of Herald's: it is run as a
file, so that a process starts no later for it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # kept across exec; see prctl(2)


def tied(command: Sequence[str]) -> list[str]:
    """The command that runs ``command`` for as long as this process lives.

    To be started by the main thread: to the kernel, the parent is the thread that started it.
    """
    return [sys.executable, "-I", str(Path(__file__).resolve()), str(os.getpid()), *command]


def main(parent: int, command: list[str]) -> None:
    """Replace this process, whose parent is ``parent``, by the command."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it could be watched
        raise SystemExit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
