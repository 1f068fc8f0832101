"""Where Python launches device work that torch's dispatcher never announces, and under which name it is announced.

One `Point` per function. Names are the same from run to run, so that profiles know them: they hold a hash of the code
where it is generated. Only CUDA graphs and kernels compiled from text are numbered as they come. Knows of the native
hook only the two functions that it is handed.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from herald.hooks import native

if TYPE_CHECKING:
    import torch

Function = Callable[..., Any]
Begin = Callable[[bytes, Sequence[object]], None]  # of an event: its name, and what it works on
End = Callable[[], None]

_NAME = "_herald_name"  # on the object that launches; bytes, so that it may be pickled with it
_GRAPH = "_herald_graph"
_HASH_DIGITS = 8


@dataclass
class Announcer:
    """Whether and how events are announced now. Written by `herald.hooks.patches` only."""

    on: bool = False
    gate: str | None = None  # the gate that ops wait for; None: only a recording listens
    begin: Begin = lambda _name, _values: None
    end: End = lambda: None


@dataclass(frozen=True)
class Point:
    """One method to wrap: ``module``.``owner``.``method``."""

    what: str  # for messages
    module: str
    owner: str
    method: str
    wrap: Callable[[Function, Announcer], Function]


def _name_of(owner: Any, make: Callable[[Any], str]) -> bytes:
    """The name of what launches, made once and kept on it."""
    try:
        name: bytes = owner._herald_name
    except AttributeError:
        name = _remember(owner, _NAME, make(owner).encode())
    return name


def _remember(owner: Any, attribute: str, value: Any) -> Any:
    with suppress(AttributeError, TypeError):  # slots: it is made again at every call
        setattr(owner, attribute, value)
    return value


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


# ---- Triton kernels: of compiled code, and a user's own


def _kernel_name(kernel: Any) -> str:
    """Of an inductor autotuner or a triton.jit function: its name, and a hash of its source."""
    function = getattr(kernel, "fn", kernel)
    name = getattr(kernel, "inductor_meta", {}).get("kernel_name") or getattr(function, "__name__", "kernel")
    source = getattr(function, "src", None) or getattr(kernel, "filename", None) or ""
    return f"triton::{name}_{_short_hash(str(source))}"


def _inductor_kernel(original: Function, announcer: Announcer) -> Function:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not announcer.on:
            return original(self, *args, **kwargs)
        announcer.begin(_name_of(self, _kernel_name), args)
        try:
            return original(self, *args, **kwargs)
        finally:
            announcer.end()

    return run


def _triton_kernel(original: Function, announcer: Announcer) -> Function:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not announcer.on or kwargs.get("warmup"):  # a warm-up compiles and launches nothing
            return original(self, *args, **kwargs)
        announcer.begin(_name_of(self, _kernel_name), (*args, *kwargs.values()))
        try:
            return original(self, *args, **kwargs)
        finally:
            announcer.end()

    return run


# ---- compiled regions


_regions = itertools.count(1)


def _region_name(region: Any) -> str:
    """Of compiled code. Opaque: launched from C++, so that its kernels are announced by nobody and it is one unit."""
    key = getattr(region, "_fx_graph_cache_key", None) or getattr(region, "source_code", None)
    opaque = (getattr(region, "fx_kwargs", None) or {}).get("cpp_wrapper")
    return f"compiled::{'opaque_' if opaque else ''}region_{_short_hash(key) if key else next(_regions)}"


def _compiled_region(original: Function, announcer: Announcer) -> Function:
    def call(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not announcer.on:
            return original(self, inputs, *args, **kwargs)
        announcer.begin(_name_of(self, _region_name), inputs)
        try:
            return original(self, inputs, *args, **kwargs)
        finally:
            announcer.end()

    return call


# ---- kernels that torch.cuda compiles from text


def _jiterator_kernel(original: Function, announcer: Announcer) -> Function:
    def call(self: Any, *tensors: Any, **kwargs: Any) -> Any:
        if not announcer.on:
            return original(self, *tensors, **kwargs)
        announcer.begin(_name_of(self, lambda kernel: f"jiterator::{kernel.kernel_name}"), tensors)
        try:
            return original(self, *tensors, **kwargs)
        finally:
            announcer.end()

    return call


def _raw_kernel(original: Function, announcer: Announcer) -> Function:
    """Its ``stream`` may be another than the current one, which is where waits and times go."""
    import torch

    numbers = itertools.count(1)
    names = ("grid", "block", "args", "shared_mem", "stream")

    def call(self: Any, *given: Any, **kwargs: Any) -> Any:
        if not announcer.on:
            return original(self, *given, **kwargs)
        arguments = dict(zip(names, given, strict=False)) | kwargs
        with torch.cuda.stream(arguments.get("stream")):
            announcer.begin(_name_of(self, lambda _: f"cuda_kernel::{next(numbers)}"), arguments.get("args") or ())
            try:
                return original(self, *given, **kwargs)
            finally:
                announcer.end()

    return call


# ---- CUDA graphs


_graphs = itertools.count(1)  # numbers are not used again


@dataclass
class Graph:
    """What is known of one captured graph. ``gate``: the one whose waits it carries, from its first op to its last."""

    device: int
    number: int = field(default_factory=lambda: next(_graphs))
    gate: str | None = None

    def __post_init__(self) -> None:
        self.plain, self.gated = (f"cuda_graph::{kind}_{self.number}".encode() for kind in ("replay", "gated_replay"))
        self.values: tuple[torch.Tensor, ...] = ()

    def name(self, gate: str | None) -> bytes:
        """Of a replay while ops wait for ``gate``."""
        return self.gated if gate is not None and self.gate == gate else self.plain


def _current_device() -> int:
    import torch

    return torch.cuda.current_device()


def _device_tensor(device: int) -> "torch.Tensor":
    """A tensor without memory: an event's device is that of its first tensor."""
    import torch

    return torch.empty(0, device=torch.device("cuda", device))


def _capture_begin(original: Function, announcer: Announcer) -> Function:
    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        if announcer.on:
            _remember(self, _GRAPH, Graph(_current_device(), gate=announcer.gate))
            native.hook().herald_low_capture_begin()  # the hook may rest; a graph's waits are for those who come later
        try:
            return original(self, *args, **kwargs)
        except BaseException:
            if announcer.on:
                native.hook().herald_low_capture_end()  # nobody ends a capture that has not begun
            raise

    return capture_begin


def _capture_end(original: Function, announcer: Announcer) -> Function:
    def capture_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        graph = getattr(self, _GRAPH, None)
        if graph is not None and graph.gate != announcer.gate:
            graph.gate = None  # attached or detached half-way: not all of it waits
        if announcer.on:
            native.hook().herald_low_capture_end()
        return original(self, *args, **kwargs)

    return capture_end


def _replay(original: Function, announcer: Announcer) -> Function:
    def replay(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not announcer.on:
            return original(self, *args, **kwargs)
        try:
            graph = self._herald_graph
        except AttributeError:
            graph = _remember(self, _GRAPH, Graph(_current_device()))  # captured before
        if not graph.values:
            graph.values = (_device_tensor(graph.device),)
        announcer.begin(graph.name(announcer.gate), graph.values)
        try:
            return original(self, *args, **kwargs)
        finally:
            announcer.end()

    return replay


_INDUCTOR = "torch._inductor"
POINTS = (
    Point(
        "Triton kernels of torch.compile",
        f"{_INDUCTOR}.runtime.triton_heuristics",
        "CachingAutotuner",
        "run",
        _inductor_kernel,
    ),
    Point("Triton kernels", "triton.runtime.jit", "JITFunction", "run", _triton_kernel),
    Point("regions of torch.compile", f"{_INDUCTOR}.output_code", "CompiledFxGraph", "__call__", _compiled_region),
    Point("CUDA graphs", "torch.cuda.graphs", "CUDAGraph", "capture_begin", _capture_begin),
    Point("CUDA graphs", "torch.cuda.graphs", "CUDAGraph", "capture_end", _capture_end),
    Point("CUDA graphs", "torch.cuda.graphs", "CUDAGraph", "replay", _replay),
    Point("kernels of torch.cuda._compile_kernel", "torch.cuda._utils", "_CudaKernel", "__call__", _raw_kernel),
    Point("jiterator kernels", "torch.cuda.jiterator", "_JittedFunction", "__call__", _jiterator_kernel),
)
