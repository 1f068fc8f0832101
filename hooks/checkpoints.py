"""Checkpoints: the modules of a model at whose end a request says how far it is.

They are chosen evenly by time from one recorded forward, device time on CUDA, and carry a forward hook that makes one
native call. Nothing here synchronises, and nothing is hooked that torch.compile owns: compiled code and captured graphs
have no checkpoints. torch is imported with this module, which only a job with a model loads.
"""

import logging
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch.utils.hooks import RemovableHandle

from herald.hooks.forward_times import Clock, DeviceClock, Hook, HostClock, Passed, Recording, is_capturing

MOST = 7
NS_PER_CHECKPOINT = 800_000  # one costs some 4 us of host time: half a percent
# Forwards (from 1) that are recorded: past lazy initialisation, and again in case the first ones were a warm-up with
# other shapes.
RECORDED_FORWARDS = (4, 64)

FUSED = (torch.nn.TransformerEncoderLayer, torch.nn.MultiheadAttention)

_log = logging.getLogger("herald")


class Checkpoints:
    """The checkpoints of one model. `before_forward` and `after_forward` enclose each outermost forward, on its thread.

    ``mark(number)`` says that a checkpoint (from 1) is passed, ``changed()`` that numbers mean other modules now.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        device: torch.device,
        mark: Callable[[int], None],
        changed: Callable[[], None],
        clock: Callable[[], Clock] | None = None,
    ) -> None:
        self._model = model
        self._mark = mark
        self._changed = changed
        self._clock = clock or (lambda: DeviceClock(device) if device.type == "cuda" else HostClock())
        self._forwards = 0
        self._recording: Recording | None = None
        self._lock = threading.Lock()
        self._chosen: tuple[torch.nn.Module, ...] = ()
        self._handles: list[RemovableHandle] = []
        self._removed = False

    @property
    def chosen(self) -> tuple[torch.nn.Module, ...]:
        """The modules that are checkpoints, in order of execution."""
        return self._chosen

    def before_forward(self) -> None:
        """Begin to record if this is a forward to learn from; take up what an earlier one gave."""
        self._forwards += 1
        if self._recording is not None:
            self._quietly(self._take_up)
        elif self._forwards in RECORDED_FORWARDS:
            self._quietly(self._record)

    def after_forward(self) -> None:
        """End the recording that this thread began."""
        recording = self._recording
        if recording is not None and recording.stop():
            self._quietly(self._take_up)

    def remove(self) -> None:
        """Take all hooks off, for good."""
        with self._lock:
            self._give_up()

    def _quietly(self, step: Callable[[], None]) -> None:
        """Inference neither waits nor fails for want of checkpoints."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            step()
        except Exception:
            _log.exception(
                "cannot follow a forward of %s: its requests have no checkpoints", type(self._model).__name__
            )
            self._give_up()
        finally:
            self._lock.release()

    def _record(self) -> None:
        # Another thread may have begun one since `before_forward` looked.
        if self._recording is None and not (self._removed or is_compiling() or is_capturing()):
            self._recording = Recording(hookable(self._model), self._clock())

    def _give_up(self) -> None:
        self._removed = True
        if self._recording is not None:
            self._recording.remove()
            self._recording = None
        self._hook(())

    def _take_up(self) -> None:
        result = self._recording.result() if self._recording is not None else None
        if result is None:
            return
        self._recording = None
        passed, total_ns = result
        best = choose(passed, total_ns)
        still = [p for p in passed if p[0] in self._chosen]
        affordable = 0 < len(still) == len(self._chosen) <= total_ns // NS_PER_CHECKPOINT
        if affordable and longest_gap_ns(still, total_ns) <= 1.5 * longest_gap_ns(best, total_ns):
            return  # what was learnt of them is worth more than a slightly better choice
        modules = tuple(module for module, _ in best)
        if modules != self._chosen:
            self._hook(modules)
            self._changed()

    def _hook(self, modules: tuple[torch.nn.Module, ...]) -> None:
        for handle in self._handles:
            handle.remove()
        self._chosen = modules
        self._handles = [
            module.register_forward_hook(cast("Any", Hook(self._mark, number)))
            for number, module in enumerate(modules, start=1)
        ]


def choose(passed: Sequence[Passed], total_ns: int, most: int = MOST) -> list[Passed]:
    """Of what ran once, what splits a forward of ``total_ns`` most evenly; fewer, or nothing, of a short forward."""
    ran = Counter(id(module) for module, _ in passed)
    once = sorted((p for p in passed if ran[id(p[0])] == 1), key=lambda p: p[1])
    times = [at_ns for _, at_ns in once]
    count = min(most, total_ns // NS_PER_CHECKPOINT)
    found: list[int] = []
    for number in range(1, count + 1):
        wanted_ns = total_ns * number // (count + 1)
        after = bisect_left(times, wanted_ns)
        near = [i for i in (after - 1, after) if 0 <= i < len(times) and (not found or i > found[-1])]
        best = min(near, key=lambda i: abs(times[i] - wanted_ns), default=None)
        # Two targets with nothing between them share a module; a module further off than that splits nothing evenly.
        if best is not None and abs(times[best] - wanted_ns) * 2 * (count + 1) <= total_ns:
            found.append(best)
    return [once[i] for i in found]


def longest_gap_ns(checkpoints: Sequence[Passed], total_ns: int) -> int:
    """The longest stretch of a forward of ``total_ns`` without news."""
    times = [0, *sorted(at_ns for _, at_ns in checkpoints), total_ns]
    return max(later - earlier for earlier, later in pairwise(times))


def hookable(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules within the model, itself excluded, that run as plain Python; nothing within a compiled one.

    Nor what torch fuses in inference: a hook on an encoder layer, or within one, makes it run op by op (torch.nn's
    `why_not_sparsity_fast_path`), and a service must compute what it did.
    """
    seen: set[int] = {id(model)}
    if is_compiled(model):
        return
    stack = list(model.children())
    while stack:
        module = stack.pop()
        if id(module) in seen or is_compiled(module) or isinstance(module, FUSED):
            continue
        seen.add(id(module))
        stack.extend(module.children())
        yield module


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether torch.compile or TorchScript owns what the module's call runs."""
    return (
        isinstance(module, torch.jit.ScriptModule)
        or hasattr(module, "_orig_mod")  # OptimizedModule, without the import of all of dynamo
        or getattr(module, "_compiled_call_impl", None) is not None
    )


def is_compiling() -> bool:
    """Whether code that runs now is compiled first, so that hooks on it would be traced."""
    active = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", None)
    return bool(torch.compiler.is_compiling() or (active is not None and active() not in (None, False)))
