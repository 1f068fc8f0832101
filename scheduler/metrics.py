"""Which metrics a job's row gives: their names, what they mean, how they are read. Serves nothing.

Names are without Prometheus's suffix `_total`, which the exporter's library adds to counters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from herald.job_view import Histogram, JobView


@dataclass(frozen=True)
class CounterOf:
    """One counter of a row. ``value`` is in units of ``scale`` (1e-9 for ns, which become seconds)."""

    name: str
    help: str
    value: Callable[[JobView], int]
    priority: str
    scale: float = 1


@dataclass(frozen=True)
class GaugeOf:
    """One gauge over the live jobs of a series; absent where it is None."""

    name: str
    help: str
    value: Callable[[Sequence[JobView]], float | None]
    priority: str


@dataclass(frozen=True)
class HistogramOf:
    """One histogram of a service's row; ``is_always_there``: also while nothing was recorded."""

    name: str
    help: str
    value: Callable[[JobView], Histogram]
    is_always_there: bool = True


COUNTERS = (
    CounterOf("herald_requests", "Requests finished.", lambda j: j.requests_done, "high"),
    CounterOf("herald_slo_violations", "Requests that missed their SLO.", lambda j: j.slo_missed, "high"),
    CounterOf("herald_requests_overdue", "Requests that lost the gate for overrunning max_hold.",
              lambda j: j.requests_overdue, "high"),
    CounterOf("herald_gate_closes", "Times that this job closed the gate.", lambda j: j.closes, "high"),
    CounterOf("herald_gate_held_seconds", "Time for which this job held the gate closed.",
              lambda j: j.held_ns, "high", 1e-9),
    CounterOf("herald_ops", "Ops looked up.", lambda j: j.ops_seen, "low"),
    CounterOf("herald_unknown_ops", "Device ops without a known time: gated, and counted as heavy.",
              lambda j: j.ops_unknown, "low"),
    CounterOf("herald_gate_points", "Waits enqueued (GPU), or times the gate was looked at (CPU).",
              lambda j: j.gate_points, "low"),
    CounterOf("herald_gate_waits", "Times that an op waited on the host (CPU).", lambda j: j.gate_waits, "low"),
    CounterOf("herald_gate_wait_seconds", "Time that ops waited on the host (CPU).",
              lambda j: j.gate_wait_ns, "low", 1e-9),
    CounterOf("herald_throttle_seconds", "Host time spent bounding how far it is ahead of the GPU.",
              lambda j: j.throttle_ns, "low", 1e-9),
    CounterOf("herald_gated_device_seconds", "Predicted device time of ops behind the gate.",
              lambda j: j.gated_ns, "low", 1e-9),
    CounterOf("herald_light_device_seconds", "Predicted device time of ops let through as light.",
              lambda j: j.light_ns, "low", 1e-9),
    CounterOf("herald_sampled_device_seconds", "Measured device time of sampled stretches.",
              lambda j: j.sampled_ns, "low", 1e-9),
    CounterOf("herald_covered_device_seconds", "Of the sampled stretches: predicted time of ops that passed the gate.",
              lambda j: j.covered_ns, "low", 1e-9),
)  # fmt: skip

HISTOGRAMS = (
    HistogramOf("herald_request_latency_seconds", "Arrival to completion on the device; the sum is exact to 1/32.",
                lambda j: j.latency),
    HistogramOf("herald_time_to_first_token_seconds", "Arrival to first token, where that is told.",
                lambda j: j.ttft, is_always_there=False),
    HistogramOf("herald_time_per_token_seconds", "Mean of a request, per token after the first, likewise.",
                lambda j: j.tpot, is_always_there=False),
)  # fmt: skip

GAUGES = (
    GaugeOf("herald_open_requests", "Requests open now.", lambda js: sum(j.open_requests for j in js), "high"),
    GaugeOf("herald_slo_seconds", "The latency that requests must not exceed.",
            lambda js: max(j.slo_ns for j in js) / 1e9 or None, "high"),
    GaugeOf("herald_slo_time_to_first_token_seconds", "The time to first token that requests must not exceed.",
            lambda js: max(j.ttft_slo_ns for j in js) / 1e9 or None, "high"),
    GaugeOf("herald_slo_time_per_token_seconds", "The time per further token that requests must not exceed.",
            lambda js: max(j.tpot_slo_ns for j in js) / 1e9 or None, "high"),
    GaugeOf("herald_slo_target_ratio", "Share of requests that must meet the SLO.",
            lambda js: max(j.target for j in js) if any(j.promises for j in js) else None, "high"),
    GaugeOf("herald_slo_infeasible", "1 while the daemon says that the SLO cannot be held.",
            lambda js: float(any(j.infeasible for j in js)), "high"),
    GaugeOf("herald_sm_granted", "SMs that the job's ops are kept to; 0: all.",
            lambda js: max(j.sm_granted for j in js), "low"),
    GaugeOf("herald_gate_coverage_ratio", "Share of device time that passed the gate, since each job attached.",
            lambda js: _ratio(sum(j.covered_ns for j in js), sum(j.sampled_ns for j in js)), "low"),
    GaugeOf("herald_longest_ungated_seconds", "Longest stretch that a closing gate cannot stop.",
            lambda js: max(j.longest_op_ns for j in js) / 1e9, "low"),
)  # fmt: skip


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
