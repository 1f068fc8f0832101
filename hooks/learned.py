"""Moves op costs between the native hook and `herald.profiles`."""

import ctypes
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from herald.hooks import classes, native
from herald.profiles import OpKind, OpProfile, Profile

_KINDS: tuple[OpKind, ...] = ("unknown", "none", "light", "heavy")


def device_description(cuda_index: int | None) -> str:
    """The device that costs hold for: a GPU's model, or the CPU's with its number of threads."""
    import torch

    if cuda_index is not None:
        return torch.cuda.get_device_name(cuda_index)
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def load(path: str | Path, cuda_index: int | None, light_percent: float) -> None:
    """Teach the hook the costs of a file. Raises ConfigError; nothing is taught from a bad file."""
    import torch

    profile = Profile.load(path, device=device_description(cuda_index), torch=torch.__version__)
    for op in classes.told_apart(profile.ops, None if cuda_index is None else profile.device, light_percent):
        native.hook().herald_costs_set(op.key, op.self_ns, op.numel, _KINDS.index(op.kind), op.signature.encode())


def save(path: str | Path, device: str) -> None:
    """Write the costs of all ops whose time is known. Raises ConfigError."""
    import torch

    timed = tuple(op for op in known() if op.kind != "unknown")
    Profile(device, None, torch.__version__, timed, created=now()).save(path)


def known() -> Iterator[OpProfile]:
    """All signatures seen so far in this process, in the order of first sight."""
    key, numel = ctypes.c_uint64(), ctypes.c_uint64()
    self_ns, samples, kind = ctypes.c_uint32(), ctypes.c_uint32(), ctypes.c_uint32()
    text = ctypes.create_string_buffer(native.TEXT_BYTES)
    index = 0
    while native.hook().herald_costs_at(index, key, self_ns, samples, kind, numel, text, native.TEXT_BYTES):
        signature = text.value.decode(errors="replace")
        yield OpProfile(signature, key.value, self_ns.value, numel.value, kind=_KINDS[kind.value])
        index += 1


def now() -> str:
    """When a profile is made: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
