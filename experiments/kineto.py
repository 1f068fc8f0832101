"""The raw events of torch's profiler: which of them are work of the GPU. Knows how kineto tells them apart, no more."""

from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # it is there


def events(profiler: torch.profiler.profile) -> list[Any]:
    """All events of a profile that has ended, as kineto gives them (`torch._C._autograd._KinetoEvent`)."""
    inner: Any = profiler.profiler
    return list(inner.kineto_results.events())


def device_work(found: list[Any]) -> list[Any]:
    """Kernels, copies and fills. Ranges that a user named have a shadow on the GPU's timeline, which is no work."""
    on_host = {event.name() for event in found if event.device_type() == DeviceType.CPU}
    return [
        event
        for event in found
        if event.device_type() != DeviceType.CPU and event.name() not in on_host and not _is_range(event)
    ]


def _is_range(event: Any) -> bool:
    return bool(
        getattr(event, "is_user_annotation", bool)()
    )  # older torch cannot say, but has the name on the host, too


def host_events(found: list[Any]) -> list[Any]:
    """Ops, ranges and other record functions, without calls of the CUDA runtime, which are linked to the op around."""
    return [event for event in found if event.device_type() == DeviceType.CPU and not event.linked_correlation_id()]
