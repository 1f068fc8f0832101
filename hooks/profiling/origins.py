"""Where in the program an op comes from: its phase and its module, told by the events around it.

Pure: a recording with the marks of `module_paths` in, one `Origin` per event out.
"""

from typing import NamedTuple

from herald.hooks.profiling.stages import ITERATION
from herald.hooks.recorder import BACKWARD, FUNCTION, MARK, USER, Recording
from herald.profiles import Phase

_ENGINE = "autograd::engine::evaluate_function"  # around each node of the backward pass
_OPTIMIZER = "Optimizer.step#"  # the range that torch puts around every optimizer's step


class Origin(NamedTuple):
    """Of one event."""

    phase: Phase
    module: str


def origins(recording: Recording) -> list[Origin]:
    """The origin of every event.

    A backward op has its forward op's module: both have the same autograd sequence number. Those without one (the
    accumulation of a gradient) have that of the node before them. Without a backward pass everything is forward; with
    one, ops outside all modules that autograd did not see (the batch's copy to the device) are "other".
    """
    return _Origins(recording).found


class _Origins:
    def __init__(self, recording: Recording) -> None:
        self._names = [signature.name for signature in recording.signatures]
        self._module_of: dict[int, str] = {}  # by sequence number
        self._last_backward: dict[int, str] = {}  # module by thread
        self._events = recording.events.tolist()
        fields = recording.events.dtype.names or ()
        self._at = {name: i for i, name in enumerate(fields)}
        self._trains = any(self._is_backward(event) for event in self._events)
        self.found: list[Origin] = []
        for event in self._events:
            self.found.append(self._origin(event))

    def _origin(self, event: tuple[int, ...]) -> Origin:
        parent = event[self._at["parent"]]
        around = self.found[parent] if parent >= 0 else Origin("other" if self._trains else "forward", "")
        if around.phase == "backward" or self._is_backward(event):
            return Origin("backward", self._backward_module(event))
        module = around.module
        if event[self._at["scope"]] == MARK and self._name(event) != ITERATION:
            module = self._name(event)
        return Origin(self._phase(event, around.phase, module), self._forward_module(event, module))

    def _phase(self, event: tuple[int, ...], around: Phase, module: str) -> Phase:
        if around == "optimizer" or (event[self._at["scope"]] == USER and self._name(event).startswith(_OPTIMIZER)):
            return "optimizer"
        seen_by_autograd = event[self._at["scope"]] == FUNCTION and event[self._at["sequence"]] >= 0
        return "forward" if module or seen_by_autograd else around

    def _forward_module(self, event: tuple[int, ...], module: str) -> str:
        sequence = event[self._at["sequence"]]
        if sequence >= 0:
            self._module_of[sequence] = module  # the last to begin before the node was made is the node's op
        return module

    def _backward_module(self, event: tuple[int, ...]) -> str:
        thread, sequence = event[self._at["thread"]], event[self._at["sequence"]]
        if event[self._at["scope"]] == BACKWARD and sequence in self._module_of:
            self._last_backward[thread] = self._module_of[sequence]
        return self._last_backward.get(thread, "")

    def _is_backward(self, event: tuple[int, ...]) -> bool:
        return event[self._at["scope"]] == BACKWARD or self._name(event).startswith(_ENGINE)

    def _name(self, event: tuple[int, ...]) -> str:
        signature = event[self._at["signature"]]
        return self._names[signature] if signature >= 0 else ""
