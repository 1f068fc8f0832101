"""What a person or a policy sees of a job: a frozen copy of its row in the table. Reads no table."""

from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from herald import job_words, layout


@dataclass(frozen=True)
class Histogram:
    """Counts of durations in buckets of 1/16 relative width."""

    counts: npt.NDArray[np.uint32] = field(repr=False)

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return int(self.counts.sum())

    def quantile(self, q: float) -> int | None:
        """The duration in ns that a share ``q`` (0..1) does not exceed, to 1/16 (upper edge); None when empty."""
        total = self.count
        if total == 0:
            return None
        index = int(np.searchsorted(np.cumsum(self.counts), max(1, np.ceil(q * total))))
        return layout.bucket_bounds_ns(index)[1]


@dataclass(frozen=True)
class JobView:
    """A copy of one job's row. Times are ns of `now_ns`, durations ns; device times are predicted ones."""

    row: int
    generation: int
    name: str
    priority: str  # "high" or "low"
    device: str  # "cpu" or a GPU's UUID
    pid: int
    mps: bool
    slo_ns: int  # 0: none; so for the next two
    ttft_slo_ns: int  # time to first token
    tpot_slo_ns: int  # time per further token
    weight: float  # low priority: its share beside others
    floor: float  # low priority: the share of time that it is promised after a hold of max_hold
    target: float  # share of requests that must meet the SLO
    attached_ns: int
    heartbeat_ns: int
    lead_ns: int
    queue_limit: int
    inflation_ppm: int  # 0: the lead does not follow progress
    margin_ns: int
    quantile_ppm: int
    infeasible: str  # high priority, by the daemon: why the SLO cannot be held: alone, load, residual; "": it can
    needed_ns: int  # the tightest SLO that could be
    slice_ns: int  # turns of a closed and an open gate while a request is open; 0: no
    sm_count: int  # low priority: SMs that it may run on from its next step; 0: all
    rate_ppm: int  # low priority: predicted device time that it may issue, in millionths of time; 0: no limit
    ahead_ns: int  # low priority: how far its host may run ahead; 0: the default
    open_requests: int
    oldest_deadline_ns: int
    hold_since_ns: int
    requests_begun: int
    requests_done: int
    slo_met: int
    slo_missed: int
    closes: int
    held_ns: int
    requests_overdue: int
    remaining_ns: int  # predicted, of the open request with the earliest deadline; -1: not known
    progress_ppm: int  # done of that request, in millionths
    progress_scored: int
    progress_error_ppm: int  # sum
    busy_ns: int  # time with a request open (of an engine: a step)
    busy_open_ns: int  # of it with the gate open
    solo_requests: int  # requests (steps) with the gate closed from begin to end
    solo_ns: int  # their service time
    beside_requests: int  # requests (steps) with the gate open from begin to end
    beside_ns: int  # their service time
    alone_ns: int  # service time alone, 95th percentile, as the job's agent learnt it; -1: not known
    missed_anyway: int  # of slo_missed: would have missed alone, too
    tokens: int  # told by an engine; so is the next
    queued: int  # requests that wait outside
    engine: int  # 1: its steps, not its requests, need the device
    ops_seen: int
    ops_unknown: int
    gate_points: int
    gate_waits: int
    gate_wait_ns: int
    gated_ns: int
    light_ns: int
    longest_op_ns: int
    throttle_ns: int
    armed: int  # low priority: 1 while a close has its effect (hook on, or on standby), 0 while no service is there
    sampled_ns: int
    covered_ns: int
    sm_total: int  # low priority: SMs of its device if it can keep to a share of them, else 0
    sm_granted: int  # SMs that its ops run on now; 0: all
    sm_switches: int
    sm_switch_ns: int  # host time that switches took
    train_steps: int  # optimizer steps
    latency: Histogram
    service: Histogram
    ttft: Histogram
    tpot: Histogram

    def __str__(self) -> str:
        """A few lines for people; the repr has every field."""
        return job_words.summary(self)

    @classmethod
    def empty(cls, name: str, priority: str) -> Self:
        """The view of a job that has no row."""
        plain = dict.fromkeys(_PLAIN_FIELDS, 0) | {"remaining_ns": -1, "alone_ns": -1}
        none = Histogram(np.zeros(layout.HISTOGRAM_BUCKETS, dtype=np.uint32))
        rest: dict[str, Any] = plain | dict.fromkeys(_HISTOGRAMS, none)
        return cls(
            row=-1,
            name=name,
            priority=priority,
            device="",
            mps=False,
            target=0.0,
            weight=0.0,
            floor=0.0,
            infeasible="",
            **rest,
        )

    @property
    def attainment(self) -> float | None:
        """Share of finished requests that met the SLO; None before the first or without one."""
        judged = self.slo_met + self.slo_missed
        return self.slo_met / judged if judged else None

    @property
    def promises(self) -> bool:
        """Whether its requests have an SLO of any kind."""
        return bool(self.slo_ns or self.ttft_slo_ns or self.tpot_slo_ns)

    @property
    def device_slo(self) -> tuple[str, int]:
        """(part, ns) of the SLO that the device must keep: the tightest of "latency", "ttft" and "tpot"; 0 ns: none.

        Of whole requests, or of an engine's steps, each of which is a token for every request.
        """
        own = ("tpot", self.tpot_slo_ns) if self.engine else ("latency", self.slo_ns)
        promised = [(part, slo_ns) for part, slo_ns in (("ttft", self.ttft_slo_ns), own) if slo_ns]
        return min(promised, key=itemgetter(1), default=("latency", 0))

    @property
    def progress_error(self) -> float | None:
        """How wrong the predicted remaining time was at the middle of finished requests; None before any.

        The mean of |predicted - actual| / actual. (Half of it in shares of the whole request.)
        """
        return self.progress_error_ppm / 1e6 / self.progress_scored if self.progress_scored else None

    @property
    def coverage(self) -> float | None:
        """Share of this job's device time that passed the gate, from samples; None while there are none.

        A sample is a stretch of a stream that was never idle: the predicted time of the ops that passed, over the
        measured time of the stretch. What no op event announced makes it small; a wrong prediction makes it wrong.
        """
        return min(1.0, self.covered_ns / self.sampled_ns) if self.sampled_ns else None


def of_row(index: int, row: layout.JobRow, header: layout.Header) -> JobView:
    """A copy of row ``index``."""
    names = {value: name for name, value in layout.PRIORITIES.items()}
    same: dict[str, Any] = {f: getattr(row, f) for f in JobView.__dataclass_fields__ if f in _PLAIN_FIELDS}
    same |= {name: Histogram(np.ctypeslib.as_array(getattr(row, name)).copy()) for name in _HISTOGRAMS}
    return JobView(
        row=index,
        name=row.name.decode(errors="replace"),
        priority=names.get(row.priority, "low"),
        device=header.devices[row.device].value.decode(errors="replace"),
        mps=bool(row.mps),
        target=row.target_ppm / 1e6,
        weight=row.weight_ppm / 1e6,
        floor=row.floor_ppm / 1e6,
        infeasible=layout.REASONS[row.infeasible],
        **same,
    )


_HISTOGRAMS = ("latency", "service", "ttft", "tpot")
_DECODED = {"row", "name", "priority", "device", "mps", "target", "weight", "floor", "infeasible", *_HISTOGRAMS}
_PLAIN_FIELDS = {f for f in JobView.__dataclass_fields__} - _DECODED
