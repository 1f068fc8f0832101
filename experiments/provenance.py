"""Where a row comes from: machine, software, commit, arguments. Reads facts, changes nothing, never imports torch."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import herald


def machine() -> dict[str, Any]:
    """Host, processor and GPU of this machine."""
    return {
        "host": platform.node(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "num_cpus": os.cpu_count(),
        **_gpu(),
    }


def now() -> str:
    """The date and time of a row."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def of_command(commit: str | None = None) -> dict[str, Any]:
    """What all rows of a command share. What only a worker knows is in `Crew.facts`.

    ``commit`` stands in where the files have no git repository around them.
    """
    head, dirty = _git()
    return {
        "herald": herald.__version__,
        "commit": commit or head,
        "dirty": None if commit else dirty,  # of what was said nothing is known
        "arguments": sys.argv[1:],
        "machine": machine(),
    }


def _git() -> tuple[str | None, bool | None]:
    """The commit of these files and whether they differ from it; (None, None) outside a repository."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if head is None:
        return None, None
    changes = git("status", "--porcelain")
    return head, None if changes is None else bool(changes)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> dict[str, Any]:
    """Name, memory and driver of the first GPU; None where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {"gpu": None, "driver": None}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return {"gpu": pynvml.nvmlDeviceGetName(handle), "driver": pynvml.nvmlSystemGetDriverVersion()}
    finally:
        pynvml.nvmlShutdown()
