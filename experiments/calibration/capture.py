"""The ops of a workload, caught with their arguments while it runs once, so that each can be repeated alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from typing_extensions import override

from herald.experiments.calibration.operations import LeafOps, Operation, moves_data, signature

# These wait for the device, or change shapes that others rely on: they cannot be repeated in a CUDA graph.
_NOT_REPLAYED = ("_local_scalar_dense", "nonzero", "item", "masked_select", "_unique", "unique", "resize", "set_")


@dataclass
class Caught:
    """A distinct leaf op of a workload."""

    operation: Operation
    times: list[Callable[[], int]] = field(default_factory=list)  # of each call, in ns, once the device is done

    @property
    def device_ns(self) -> int:
        """Device time of all calls; eager, so gaps between launches are part of it."""
        return sum(time_ns() for time_ns in self.times)


class _Capture(LeafOps):  # type: ignore[no-untyped-call]  # torch
    def __init__(self, source: str, device: torch.device) -> None:
        super().__init__()
        self.source = source
        self.device = device
        self.found: dict[str, Caught] = {}

    @override
    def leaf(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not moves_data(func) or func.overloadpacket.__name__.startswith(_NOT_REPLAYED):
            return func(*args, **kwargs)
        output, time_ns = _timed(lambda: func(*args, **kwargs), self.device)
        label = f"{self.source}/{signature(func, args)}"
        if label not in self.found:
            self.found[label] = Caught(Operation(label, lambda: func(*args, **kwargs)))
        self.found[label].times.append(time_ns)
        return output


def ops_of(
    source: str, step: Callable[[], object], device: torch.device, most: int, labels: Sequence[str] | None = None
) -> dict[str, Operation]:
    """Run ``step`` once and keep ``labels`` of its distinct ops, or where none are given at most ``most`` by `choose`.

    The tensors of the others are freed.
    """
    with _Capture(source, device) as capture:
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    times_ns = {label: caught.device_ns for label, caught in capture.found.items()}
    wanted = choose(times_ns, most) if labels is None else [label for label in labels if label in times_ns]
    return {label: capture.found[label].operation for label in wanted}


def choose(times_ns: Mapping[str, int], most: int) -> list[str]:
    """The half that takes the most time, and a spread over the rest from long to short."""
    by_time = sorted(times_ns, key=lambda label: (-times_ns[label], label))
    num_biggest = most - most // 2
    rest = by_time[num_biggest:]
    num_others = min(most // 2, len(rest))
    spread = [rest[place * len(rest) // num_others] for place in range(num_others)]
    return by_time[:num_biggest] + spread


def _timed(call: Callable[[], object], device: torch.device) -> tuple[object, Callable[[], int]]:
    if device.type != "cuda":
        begun_ns = time.perf_counter_ns()
        output = call()
        elapsed_ns = time.perf_counter_ns() - begun_ns
        return output, lambda: elapsed_ns
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch
    begin.record()
    output = call()
    end.record()
    return output, lambda: round(begin.elapsed_time(end) * 1e6)
