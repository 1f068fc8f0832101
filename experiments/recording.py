"""One block of steps inside a worker: plain, under Herald's recorder, or under torch's profiler. Judges nothing.

"whole" begins before the tool is made and ends when what it recorded is in memory, summed up by op and shapes;
"stopped" ends when the tool is off; "running" is the steps alone, to their completion on the device, while it is on.
"""

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # it is there

from herald.experiments.completion import mark
from herald.hooks import recorder

if TYPE_CHECKING:
    from herald.experiments.worker import Session

OP_SCOPES = (0, 1)  # at::RecordScope: FUNCTION, BACKWARD_FUNCTION; the same numbers in a recording


class Tool(Protocol):
    """What records a block."""

    def running(self) -> AbstractContextManager[object]:
        """On inside, off after."""
        ...

    def summed_up(self) -> int:
        """Everything recorded in memory and summed up; the number of op events."""
        ...


def measure(session: "Session", *, mode: str, steps: int) -> dict[str, object]:
    """Seconds of a block of ``steps``, and how many op events the tool saw."""
    gc.collect()
    mark(session.device)()
    begun_s = time.monotonic()
    tool = TOOLS[mode](session.device)
    with tool.running():
        running_s = session.train(steps)["elapsed_s"]
    stopped_s = time.monotonic() - begun_s
    events = tool.summed_up()
    return {"whole_s": time.monotonic() - begun_s, "stopped_s": stopped_s, "running_s": running_s, "events": events}


class Nothing:
    """No tool."""

    def __init__(self, device: torch.device) -> None:
        del device

    def running(self) -> AbstractContextManager[object]:
        """Nothing is on."""
        return nullcontext()

    def summed_up(self) -> int:
        """Nothing was seen."""
        return 0


class HeraldRecorder:
    """Herald's: the array of events, then calls, host and device time by signature."""

    def __init__(self, device: torch.device) -> None:
        self._recorder = recorder.Recorder(device)

    def running(self) -> AbstractContextManager[object]:
        """The recorder."""
        return self._recorder

    def summed_up(self) -> int:
        """Of the recording."""
        recording = self._recorder.result()
        events = recording.events
        by_signature(events, len(recording.signatures))
        return int(np.isin(events["scope"], OP_SCOPES).sum())


def by_signature(events: "np.ndarray[Any, np.dtype[np.void]]", num_signatures: int) -> Mapping[str, Any]:
    """Calls, host time and own device time of every signature: what the profiler's averages by shape say."""
    known = events[events["signature"] >= 0]
    sums = {
        "host_ns": np.bincount(known["signature"], known["end_ns"] - known["begin_ns"], num_signatures),
        "self_ns": np.bincount(known["signature"], known["self_ns"], num_signatures),
    }
    return {"calls": np.bincount(known["signature"], minlength=num_signatures), **sums}


class TorchProfiler:
    """torch.profiler with its usual settings and shapes: its list of events, then its averages by op and shapes."""

    def __init__(self, device: torch.device) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)

    def running(self) -> AbstractContextManager[object]:
        """The profiler."""
        return self._profiler

    def summed_up(self) -> int:
        """Of the profile."""
        events = self._profiler.events() or ()  # type: ignore[no-untyped-call]  # torch
        self._profiler.key_averages(group_by_input_shape=True)
        return sum(event.device_type == DeviceType.CPU and event.scope in OP_SCOPES for event in events)


TOOLS: Mapping[str, Callable[[torch.device], Tool]] = {
    "plain": Nothing,
    "recorder": HeraldRecorder,
    "profiler": TorchProfiler,
}
