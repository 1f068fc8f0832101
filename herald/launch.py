"""What must be set before a job's process starts, because the runtimes read it only then.

OpenMP reads its wait policy when it starts; CUDA reads MPS settings when its context is created. So these belong to
whoever launches the process: `herald run`, the demo, a service file.
"""

import os
from typing import Literal

Priority = Literal["high", "low"]


def launch_env(priority: Priority, device: str = "cpu", mps_pipe: str | None = None) -> dict[str, str]:
    """Environment variables for a job's process, to be laid over its own.

    On ``device`` "cpu", OpenMP threads sleep while they wait: threads that spin while their master is gated would eat
    the other job's cores. On "cuda" under MPS (``mps_pipe``: its CUDA_MPS_PIPE_DIRECTORY), low priority also means MPS
    client priority 1. Without MPS a GPU job needs nothing.
    """
    if device == "cpu":
        return {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    if mps_pipe is None:
        return {}
    return {
        "CUDA_MPS_PIPE_DIRECTORY": mps_pipe,
        "CUDA_MPS_CLIENT_PRIORITY": "1" if priority == "low" else "0",
    }


def use_idle_class() -> None:
    """Put the calling thread, and all that it starts, into SCHED_IDLE: the CPU's way of running beside others.

    For a low-priority job on CPU, before it starts threads: its one op that was running when a gate closed then
    yields its core at once. Needs no privilege. Raises OSError where the kernel refuses.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
