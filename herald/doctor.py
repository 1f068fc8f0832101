"""`herald doctor`: what this machine can do, and what to do about each no.

Every check looks for itself and returns one `Check`; none changes anything but a scratch file. Exit code 0
means that Herald can run here on at least one kind of device.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from herald import build
from herald.domains import DomainLock, segment_name
from herald.driver import Driver, NoDriverError, probe
from herald.errors import HeraldError

Device = Literal["cpu", "cuda"]
_EVERY: tuple[Device, ...] = ("cpu", "cuda")
_SHM = Path("/dev/shm")
_SHM_NEEDED_BYTES = 1 << 20  # a table is under half of that
_COMMAND_LIMIT_S = 30


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    state: Literal["ok", "warn", "no"]
    detail: str
    remedy: str = ""
    blocks: tuple[Device, ...] = ()  # kinds of device that Herald cannot use because of it


def check_compiler() -> Check:
    """A C++ compiler, or libraries that were built before."""
    try:
        path = build.compiler()
    except HeraldError as error:
        if _is_built():
            return Check("compiler", "warn", "none, but the native libraries are built", "keep the cache")
        return Check("compiler", "no", "none on PATH", str(error), _EVERY)
    lines = _output([path, "--version"]).splitlines()
    return Check("compiler", "ok", f"{path}: {lines[0] if lines else 'version unknown'}")


def check_libraries() -> Check:
    """The native libraries."""
    if _is_built():
        return Check("native libraries", "ok", f"built in {build.table_library().path.parent}")
    cache = build.table_library().path.parent
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        remedy = "set HERALD_CACHE_DIR to a folder you own"
        return Check("native libraries", "no", f"not built, and {cache} cannot be written", remedy, _EVERY)
    return Check("native libraries", "warn", "not built yet", "the first job builds them; `herald build` does it now")


def check_torch() -> Check:
    """Torch, and what it was built for."""
    try:
        import torch
    except Exception as error:  # a broken torch raises anything
        return Check("torch", "no", f"cannot be imported: {error}", "pip install torch", _EVERY)
    cuda = torch.version.cuda
    if cuda is None:
        remedy = "for GPUs install a CUDA build of torch"
        return Check("torch", "warn", f"{torch.__version__}, built without CUDA", remedy, ("cuda",))
    return Check("torch", "ok", f"{torch.__version__}, built for CUDA {cuda}")


def check_driver(ask: Callable[[], Driver] = probe) -> Check:
    """The CUDA driver and its GPUs."""
    try:
        driver = ask()
    except NoDriverError as error:
        remedy = "for GPUs install NVIDIA's driver, or give this container one (--gpus all)"
        return Check("CUDA driver", "no", str(error), remedy, ("cuda",))
    gpus = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in driver.gpus)
    return Check("CUDA driver", "ok", f"supports CUDA {driver.version}; {gpus}")


def check_stream_memory_operations(ask: Callable[[], Driver] = probe) -> Check:
    """What the gate on a GPU is made of: streams that wait for a word of registered host memory."""
    name = "stream memory operations"
    try:
        driver = ask()
    except NoDriverError:
        return Check(name, "no", "no driver to ask", "see CUDA driver", ("cuda",))
    without = [gpu.name for gpu in driver.gpus if not gpu.can_register_host_memory]
    if not driver.has_stream_wait or without:
        what = f"{', '.join(without)} cannot register host memory" if without else "cuStreamWaitValue32 is missing"
        return Check(name, "no", what, "use a GPU and driver of CUDA 12 or later", ("cuda",))
    return Check(name, "ok", "cuStreamWaitValue32 on registered host memory")


def check_mps() -> Check:
    """The control binary of MPS."""
    path = shutil.which("nvidia-cuda-mps-control")
    if path:
        return Check("MPS", "ok", path)
    remedy = "only needed for mps.enabled = true: install NVIDIA's driver utilities"
    return Check("MPS", "warn", "nvidia-cuda-mps-control is not on PATH", remedy)


def check_shared_memory(directory: Path = _SHM) -> Check:
    """Permission and room for the shared table and its lock file."""
    remedy = "mount a writable tmpfs on /dev/shm (docker: --shm-size=64m)"
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return Check("shared memory", "no", f"{directory} is not writable", remedy, _EVERY)
    free_bytes = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
    if free_bytes < _SHM_NEEDED_BYTES:
        return Check("shared memory", "no", f"{directory} has {free_bytes} bytes left", remedy, _EVERY)
    return Check("shared memory", "ok", f"{directory} is writable, {free_bytes / 2**20:.0f} MiB free")


def check_record_locks(directory: Path = _SHM) -> Check:
    """POSIX record locks, by which the living know the dead: a second process must be kept out."""
    remedy = "use a kernel and file system with POSIX locks; some sandboxes lack them"
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix="herald-doctor-") as scratch:
            fcntl.lockf(scratch, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_kept_out(scratch.name):
                return Check("record locks", "no", f"do not hold in {directory}", remedy, _EVERY)
    except OSError as error:
        return Check("record locks", "no", f"fail in {directory}: {error.strerror}", remedy, _EVERY)
    return Check("record locks", "ok", f"hold between processes in {directory}")


def check_domains(directory: Path = _SHM) -> Check:
    """Tables of this user: those in use, and those that somebody left."""
    prefix = segment_name("")[1:]
    domains = sorted(path.name[len(prefix) :] for path in directory.glob(f"{prefix}*") if path.suffix != ".lock")
    lives = {domain: _is_in_use(domain) for domain in domains}
    used, left = ([domain for domain in domains if lives[domain] is alive] for alive in (True, False))
    if unknown := [domain for domain in domains if lives[domain] is None]:
        return Check("domains", "warn", f"it cannot be told who lives in: {', '.join(unknown)}", "see the lines above")
    in_use = f"in use: {', '.join(used)}"
    if left:
        remedy = "harmless; remove with " + ", ".join(f"`herald reset --domain {domain}`" for domain in left)
        detail = f"nobody lives in: {', '.join(left)}"
        return Check("domains", "warn", f"{detail}; {in_use}" if used else detail, remedy)
    return Check("domains", "ok", in_use if used else "none")


CHECKS: tuple[Callable[[], Check], ...] = (
    check_compiler,
    check_libraries,
    check_torch,
    check_driver,
    check_stream_memory_operations,
    check_mps,
    check_shared_memory,
    check_record_locks,
    check_domains,
)


def usable_devices(checks: Sequence[Check]) -> tuple[Device, ...]:
    """The kinds of device that no check blocks."""
    return tuple(device for device in _EVERY if not any(device in check.blocks for check in checks))


def render(checks: Sequence[Check], console: Console) -> None:
    """Print the checks for people; reads well at 80 columns."""
    marks = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "no": "[red]no  [/]"}
    for check in checks:
        console.print(f"{marks[check.state]} [bold]{check.name}[/]: {escape(check.detail)}", highlight=False)
        if check.remedy:
            console.print(f"     {escape(check.remedy)}", highlight=False)
    devices = usable_devices(checks)
    console.print(f"Herald can run here on: {', '.join(devices) or 'nothing yet; see each no above'}", highlight=False)


def _is_built() -> bool:
    try:
        return build.table_library().path.exists() and build.hook_library().path.exists()
    except Exception:  # the hook's key needs torch, which has its own check
        return False


def _is_kept_out(path: str) -> bool:
    attempt = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run(
        [sys.executable, "-c", attempt, path], capture_output=True, timeout=_COMMAND_LIMIT_S, check=False
    )
    return done.returncode != 0


def _is_in_use(domain: str) -> bool | None:
    try:
        return DomainLock.of(domain).anyone_alive()
    except HeraldError:  # no native library to look with, or a lock file that is not ours
        return None


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`herald doctor`."""
    parser = subparsers.add_parser("doctor", help="check what this machine can do, and say what to do about each no")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_main)


def _main(arguments: argparse.Namespace) -> int:
    checks = [check() for check in CHECKS]
    devices = usable_devices(checks)
    if arguments.json:
        print(json.dumps({"devices": devices, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        render(checks, Console())
    return 0 if devices else 1
