"""Which kernels an op launches, and what each of them asks of the device: a few iterations under torch's profiler.

The profiler's trace says it all (grid, block, registers, shared memory, occupancy), joined to the innermost op that
made the launch. On a CPU there are no kernels, and nothing is measured. Decides nothing; slow: for the offline
profiler and the calibration, never for a job that runs.
"""

import json
import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from herald.errors import HeraldError
from herald.profiles import KernelFacts

if TYPE_CHECKING:
    import torch

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")

# As the profiler names dtypes -> as `describe` in hooks/csrc/signature.hpp does.
_DTYPES = {
    "float": "Float",
    "double": "Double",
    "c10::Half": "Half",
    "c10::BFloat16": "BFloat16",
    "long int": "Long",
    "long": "Long",
    "int": "Int",
    "short": "Short",
    "short int": "Short",
    "signed char": "Char",
    "unsigned char": "Byte",
    "bool": "Bool",
    "c10::complex<float>": "ComplexFloat",
    "c10::complex<double>": "ComplexDouble",
    "c10::Float8_e4m3fn": "Float8_e4m3fn",
    "c10::Float8_e5m2": "Float8_e5m2",
}
_UNDEFINED = "nullptr (uninitialized)"
_LIST = re.compile(r"\w+(\[[^\]]*\] x\d+)")


class TraceError(HeraldError):
    """The profiler's trace is not what this module can read."""


class _Kernel(NamedTuple):
    """What makes two launches launches of the same kernel."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: int
    shared_bytes: int


def measure(step: Callable[[], object], iterations: int = 3) -> dict[str, tuple[KernelFacts, ...]]:
    """Run ``step`` once to warm up and ``iterations`` times profiled; the kernels of each op signature.

    Keys are `joinable` signatures. Of a kernel, ``calls`` is launches per call of its op and ``duration_ns`` the mean
    of one launch. Empty where torch has no GPU. Raises TraceError where the profiler's trace cannot be read.
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    return of_trace(_trace(step, iterations))


def joinable(signature: str) -> str:
    """A signature as far as a trace can tell it: the profiler does not say the dtype of a list of tensors."""
    return _LIST.sub(r"?\1", signature)


def of_trace(document: Mapping[str, Any]) -> dict[str, tuple[KernelFacts, ...]]:
    """The kernels of each op signature, from a trace in Chrome's format. Raises TraceError.

    Launches that no op made are left out, as are events with fields that are missing or no numbers.
    """
    events = document.get("traceEvents")
    if not isinstance(events, Sequence) or isinstance(events, str):
        raise TraceError("the profiler's trace has no list 'traceEvents': is it a trace of torch.profiler?")
    complete = [event for event in events if isinstance(event, dict) and isinstance(event.get("args"), dict)]
    signatures, calls = _ops(complete)
    launched_by = _launches(complete)
    durations: dict[tuple[str, _Kernel], list[float]] = defaultdict(list)
    occupancies: dict[_Kernel, tuple[float, float]] = {}
    for event in complete:
        signature = signatures.get(_op_id(event, launched_by))
        kernel = _kernel(event)
        duration_us = _number(event.get("dur"))
        if signature is None or kernel is None or duration_us is None:
            continue
        durations[signature, kernel].append(duration_us)
        occupancies[kernel] = _occupancy(event["args"])
    found: dict[str, list[KernelFacts]] = defaultdict(list)
    for (signature, kernel), times_us in durations.items():
        found[signature].append(_facts(kernel, times_us, calls[signature], occupancies[kernel]))
    return {signature: tuple(kernels) for signature, kernels in found.items()}


# Reading a trace ------------------------------------------------------------------------------------------------------


def _trace(step: Callable[[], object], iterations: int) -> dict[str, Any]:
    import torch

    step()
    torch.cuda.synchronize()
    with tracer() as profiler:
        for _ in range(iterations):
            step()
        torch.cuda.synchronize()
    return document_of(profiler)


def tracer() -> "torch.profiler.profile":
    """A profiler, to be entered and left, whose `document_of` is what `of_trace` reads."""
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True)


def document_of(profiler: "torch.profiler.profile") -> dict[str, Any]:
    """The trace in Chrome's format of a profiler that was left. Raises TraceError."""
    with tempfile.TemporaryDirectory(prefix="herald-trace-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8", errors="replace"), strict=False)
        except ValueError as error:
            raise TraceError(f"the profiler's trace is not whole JSON ({error}): profile again") from error
    return document


def _ops(events: Sequence[Mapping[str, Any]]) -> tuple[dict[object, str], Counter[str]]:
    """The signature of each op call by its id, and how often each signature was called."""
    signatures = {
        event["args"]["External id"]: _signature(str(event.get("name")), event["args"])
        for event in events
        if event.get("cat") == "cpu_op" and "External id" in event["args"]
    }
    return signatures, Counter(signatures.values())


def _launches(events: Sequence[Mapping[str, Any]]) -> dict[object, object]:
    """From the number that ties a launch to its kernel to the op that made it."""
    return {
        event["args"]["correlation"]: event["args"]["External id"]
        for event in events
        if event.get("cat") in _LAUNCHES and {"correlation", "External id"} <= event["args"].keys()
    }


def _op_id(event: Mapping[str, Any], launched_by: Mapping[object, object]) -> object:
    args = event["args"]
    return args["External id"] if "External id" in args else launched_by.get(args.get("correlation"))


def _kernel(event: Mapping[str, Any]) -> _Kernel | None:
    """None: not work on a device, or damaged. A copy or a fill of the driver's has no grid."""
    args = event["args"]
    if event.get("cat") not in _ON_DEVICE:
        return None
    try:
        return _Kernel(
            str(event["name"]),
            _triple(args.get("grid", (0, 0, 0))),
            _triple(args.get("block", (0, 0, 0))),
            int(args.get("registers per thread", 0)),
            int(args.get("shared memory", 0)),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _triple(values: Sequence[Any]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _occupancy(args: Mapping[str, Any]) -> tuple[float, float]:
    """Blocks per SM, and the estimated achieved occupancy as a share of 1."""
    return _number(args.get("blocks per SM")) or 0.0, (_number(args.get("est. achieved occupancy %")) or 0.0) / 100


def _number(value: object) -> float | None:
    """None: missing, no number, or none that can be."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else None


def _facts(kernel: _Kernel, times_us: Sequence[float], op_calls: int, occupancy: tuple[float, float]) -> KernelFacts:
    return KernelFacts(
        name=kernel.name,
        calls=len(times_us) / op_calls,
        duration_ns=round(sum(times_us) / len(times_us) * 1000),
        grid=kernel.grid,
        block=kernel.block,
        registers=kernel.registers,
        shared_bytes=kernel.shared_bytes,
        blocks_per_sm=occupancy[0],
        occupancy=occupancy[1],
    )


# Signatures -----------------------------------------------------------------------------------------------------------


def _signature(name: str, args: Mapping[str, Any]) -> str:
    """As `describe` in hooks/csrc/signature.hpp, made joinable."""
    columns = (args.get(column) for column in ("Input type", "Input Dims", "Input Strides"))
    types, dims, strides = (column if isinstance(column, list) else [] for column in columns)
    return f"{name}({', '.join(_operands(types, dims, strides))})"


def _operands(types: Sequence[str], dims: Sequence[Any], strides: Sequence[Any]) -> Iterator[str]:
    for place, dtype in enumerate(types):
        sizes = dims[place] if place < len(dims) else []
        steps = strides[place] if place < len(strides) else []
        if dtype == _UNDEFINED:
            yield "None"
        elif dtype == "TensorList" and sizes:
            first_steps = steps[0] if steps else []
            yield f"?{_shape(sizes[0], first_steps)} x{len(sizes)}"
        elif dtype in _DTYPES:
            yield _DTYPES[dtype] + _shape(sizes, steps)


def _shape(sizes: Sequence[int], strides: Sequence[int]) -> str:
    channels_last = len(sizes) >= 4 and len(strides) == len(sizes) and strides[1] == 1
    return f"[{', '.join(map(str, sizes))}{'; channels_last' if channels_last else ''}]"
