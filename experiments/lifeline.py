"""`python -m herald.experiments.lifeline PID COMMAND...`: becomes the command, and gets SIGTERM when parent PID ends.

An experiment that is killed (SIGKILL) cannot end its daemon, and a daemon in a session of its own would go on for good.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # kept across exec; see prctl(2)


def main(parent: int, command: list[str]) -> None:
    """Replace this process, whose parent is ``parent``, by the command."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it could be watched
        raise SystemExit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
