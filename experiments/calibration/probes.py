"""The requests that are disturbed: short, of fixed work, one kind for each way in which a neighbour can hurt.

compute: large matrix products, which want all SMs. memory: passes over more data than the L2 cache holds. small: many
short kernels in a row, as in decoding, each of which may find the SMs taken. All run on a stream of high priority;
small-normal is small on a stream of normal priority, as in a service that knows nothing of streams.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from herald.experiments.calibration.replay import Repeated

LEAST_REQUESTS = 10
NORMAL = "-normal"  # ending of a kind: on a stream of normal priority


class Probe:
    """One kind of request, captured and ready."""

    def __init__(self, kind: str, device: torch.device) -> None:
        build = PROBES[kind.removesuffix(NORMAL)]
        self.work = Repeated(build(device), device, high_priority=not kind.endswith(NORMAL))
        self.work.warm_up()
        self.work.capture(1)
        self.work.warm_up()

    def measure(self, seconds: float) -> dict[str, float]:
        """Requests one after another for ``seconds``, LEAST_REQUESTS at least: a summary of their latencies."""
        latencies_ns: list[int] = []
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s or len(latencies_ns) < LEAST_REQUESTS:
            latencies_ns.append(self.work.batch_ns())
        return summary(latencies_ns)


def summary(latencies_ns: Sequence[int]) -> dict[str, float]:
    """Count, mean and quantiles."""
    values = np.asarray(latencies_ns, dtype=float)
    statistics = zip(
        ("mean_ns", "p10_ns", "p50_ns", "p90_ns", "p99_ns"),
        (values.mean(), *np.percentile(values, (10, 50, 90, 99))),
        strict=True,
    )
    return {"n": len(values), **{name: round(float(value)) for name, value in statistics}}


# Builders -------------------------------------------------------------------------------------------------------------


def _compute(device: torch.device) -> Callable[[], object]:
    size, count = (2048, 8) if device.type == "cuda" else (64, 2)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = torch.randn(size, size, device=device, dtype=dtype) / size**0.5  # values stay of one size
    values = torch.randn(size, size, device=device, dtype=dtype)

    def request() -> Any:
        result = values
        for _ in range(count):
            result = result @ weights
        return result

    return request


def _memory(device: torch.device) -> Callable[[], object]:
    shape, count = ((8192, 2048), 4) if device.type == "cuda" else ((64, 64), 2)
    values = torch.randn(*shape, device=device)
    weight, bias = torch.ones(shape[1], device=device), torch.zeros(shape[1], device=device)

    def request() -> Any:
        result = values
        for _ in range(count):
            result = F.gelu(F.layer_norm(result, shape[1:], weight, bias))
        return result

    return request


def _small(device: torch.device) -> Callable[[], object]:
    shape, count = ((32, 1024), 40) if device.type == "cuda" else ((4, 16), 8)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = torch.randn(shape[1], shape[1], device=device, dtype=dtype) / shape[1] ** 0.5
    bias, values = torch.zeros(shape[1], device=device, dtype=dtype), torch.randn(*shape, device=device, dtype=dtype)

    def request() -> Any:
        result = values
        for _ in range(count):
            result = torch.relu(torch.addmm(bias, result, weights))
        return result

    return request


PROBES: Mapping[str, Callable[[torch.device], Callable[[], object]]] = {
    "compute": _compute,
    "memory": _memory,
    "small": _small,
}
