"""Clears up behind an experiment that was killed (SIGKILL): its domains' tables, its MPS, its folder of logs.

Its workers and daemons end by themselves (`lifeline`), so this waits until they are gone. It finds what is left by the
process id in the names (`domain.own_name`). An experiment that ends in order clears up itself: then all that ever ran
is a shell that waited for a line.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from herald.domains import domains
from herald.errors import TableError
from herald.experiments.domain import MPS_PREFIX
from herald.scheduler import mps
from herald.scheduler.mps import MpsError, MpsServer
from herald.table import Table

LIMIT_S = 60.0  # a trainer drains its stream before it ends; an MPS client takes its time, too
_LOOK_EVERY_S = 0.2

# Ends on a line, and becomes the clearing up on an end of input without one.
_WAIT = 'read -r ended || exec "$@"'


@contextmanager
def watching(folder: Path) -> Iterator[int]:
    """Until this is left, the end of this process is followed by `clear_up`, in the process whose id is yielded."""
    command = [sys.executable, "-m", "herald.experiments.caretaker", str(os.getpid()), str(folder)]
    with subprocess.Popen(
        ["/bin/sh", "-c", _WAIT, "herald-caretaker", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # who kills the experiment's process group does not kill this
    ) as shell:
        try:
            yield shell.pid
        finally:
            shell.communicate(b"ended\n")


def clear_up(
    pid: int,
    folder: Path,
    *,
    clock_s: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Remove what the experiment of process ``pid`` left, each as soon as nobody uses it any more."""
    give_up_s = clock_s() + LIMIT_S
    tables = [name for name in domains() if name.endswith(f"-{pid}")]
    servers = [name for name in mps.names() if name.startswith(MPS_PREFIX) and name.endswith(f"-{pid}")]
    while True:
        tables = [name for name in tables if not _is_removed(name)]
        servers = [name for name in servers if not _is_stopped(name)]
        if not (tables or servers) or clock_s() > give_up_s:
            break
        pause(_LOOK_EVERY_S)
    shutil.rmtree(folder, ignore_errors=True)


def _is_removed(domain: str) -> bool:
    try:
        Table.unlink(domain)
    except TableError:  # somebody lives in it
        return False
    return True


def _is_stopped(name: str) -> bool:
    try:
        return MpsServer(name).stop()
    except MpsError:
        return False


if __name__ == "__main__":
    clear_up(int(sys.argv[1]), Path(sys.argv[2]))
