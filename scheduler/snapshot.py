"""What a policy sees and what it answers: frozen values, no table, no clock.

A simulator builds the same snapshots from its own state, so nothing here may reach outside.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, Self

from herald.job_view import JobView
from herald.layout import LEAD_ALWAYS, LEAD_NEVER, NO_QUEUE_LIMIT


class JobKey(NamedTuple):
    """One job for as long as it lives: a row is used again, with another generation."""

    row: int
    generation: int


class Durations(Protocol):
    """Recorded durations, such as `herald.job_view.Histogram`."""

    @property
    def count(self) -> int:
        """How many were recorded."""

    def quantile(self, q: float, /) -> int | None:
        """The duration in ns that a share ``q`` of them does not exceed; None where there is none."""


@dataclass(frozen=True)
class Service:
    """A high-priority job."""

    key: JobKey
    name: str
    device: str
    slo_ns: int | None  # of what needs the device at a stretch: a request, or a step of an engine
    target: float  # share of requests that must meet the SLO
    service_times: Durations  # begin -> done
    mps: bool = False
    alone_ns: int | None = None  # service time alone at a high quantile, as its agent learnt it
    alone_is_asked: bool = False  # at the quantile of its plan; else of the agent's choice
    solo_requests: int = 0  # requests that ran with the gate closed from begin to end
    solo_ns: int = 0  # their service times, summed
    requests_done: int = 0
    met: int = 0
    missed: int = 0
    missed_anyway: int = 0  # of the missed: would have missed alone, too
    beside_requests: int = 0  # requests that ran with the gate open from begin to end
    beside_ns: int = 0  # their service times, summed
    busy_ns: int = 0  # time with a request open
    busy_open_ns: int = 0  # of it with the gate open
    slo_part: str = "latency"  # which promise slo_ns is: latency, ttft, tpot
    work_begun: int = 0  # what needs the device: requests, or steps of an engine
    in_steps: bool = False  # it is an engine: times are those of steps, what is met and missed are requests


@dataclass(frozen=True)
class Trainer:
    """A low-priority job."""

    key: JobKey
    name: str
    device: str
    longest_stretch_ns: int  # predicted device time that a closing gate cannot stop; 0: not known yet
    mps: bool = False
    work_ns: int = 0  # predicted device time issued so far
    sm_total: int = 0  # SMs of its device, if it can keep to a share of them; 0: it cannot
    sm_granted: int = 0  # SMs that its ops run on now; 0: all
    weight: float = 1.0  # its share beside other trainers
    floor: float = 0.0  # the share of time that it is promised after a hold of max_hold
    armed: bool = True  # its hook is on, or on standby: what it issues is counted, by the op or by the step
    rate_ppm: int = 0  # its plan now: device time that it may issue, in millionths of time; 0: no limit


class Mode(NamedTuple):  # a tuple: it is looked up many times a decision, and a dataclass's hash is slow
    """How the trainers of a device run beside requests that have slack."""

    closed: bool  # they do not: the gate closes when a request begins
    sm_count: int = 0  # SMs that they are kept to, all the time; 0: all

    def __str__(self) -> str:
        share = f" on {self.sm_count} SMs" if self.sm_count else ""
        return ("closed" if self.closed else "open") + share


CLOSED = Mode(closed=True)
OPEN = Mode(closed=False)


@dataclass(frozen=True)
class Evidence:
    """What was seen of the jobs of a device in one mode. Rates are predicted device time per time: 1 is a busy GPU."""

    time_ns: int = 0  # in that mode
    beside_requests: float = 0  # the fewest of any service that ran beside training from begin to end
    inflation: Mapping[JobKey, float] = field(default_factory=lambda: MappingProxyType({}))  # of each service's work
    rate_beside: Mapping[JobKey, float] = field(default_factory=lambda: MappingProxyType({}))  # of each trainer
    rate_idle: Mapping[JobKey, float] = field(
        default_factory=lambda: MappingProxyType({})
    )  # of each trainer while no request is open
    missed: float = 0  # on training's account, by the service that missed most

    def in_words(self) -> str:
        """For a log."""
        inflation = ", ".join(f"{value:.2f}" for value in self.inflation.values()) or "?"
        beside = ", ".join(f"{value:.2f}" for value in self.rate_beside.values()) or "?"
        idle = ", ".join(f"{value:.2f}" for value in self.rate_idle.values()) or "?"
        return (
            f"requests take {inflation} x, training has {beside} of the device beside them and {idle} between them "
            f"({self.beside_requests:.0f} requests, {self.time_ns / 1e9:.1f} s)"
        )


@dataclass(frozen=True)
class Recent:
    """What a service did in the window of time that ends now."""

    elapsed_ns: int
    done: int = 0  # requests
    missed: int = 0
    busy_ns: int = 0  # time with a request open


@dataclass(frozen=True)
class Memory:
    """What an observer (`learning.Observer`) made of earlier snapshots: policies keep nothing themselves."""

    evidence: Mapping[tuple[str, Mode], Evidence] = field(default_factory=lambda: MappingProxyType({}))  # by device
    mode: Mapping[str, Mode] = field(default_factory=lambda: MappingProxyType({}))  # of each device now
    leeway: Mapping[JobKey, float] = field(default_factory=lambda: MappingProxyType({}))  # in rungs, see `feedback`
    load: Mapping[JobKey, float] = field(default_factory=lambda: MappingProxyType({}))  # arrivals x mean time alone
    alone_mean_ns: Mapping[JobKey, float] = field(default_factory=lambda: MappingProxyType({}))  # of a request
    alone_high_ns: Mapping[JobKey, int] = field(default_factory=lambda: MappingProxyType({}))  # the same, high quantile
    alone_requests: Mapping[JobKey, float] = field(default_factory=lambda: MappingProxyType({}))  # that these rest on
    recent: Mapping[JobKey, Recent] = field(default_factory=lambda: MappingProxyType({}))  # see `recent`; mostly empty


@dataclass(frozen=True)
class Snapshot:
    """The jobs of a domain at one moment, and what is remembered of earlier ones."""

    services: tuple[Service, ...] = ()
    trainers: tuple[Trainer, ...] = ()
    memory: Memory = Memory()

    @classmethod
    def of(cls, jobs: Iterable[JobView]) -> Self:
        """The snapshot of the live rows of a table."""
        jobs = tuple(jobs)
        return cls(
            services=tuple(_service(job) for job in jobs if job.priority == "high"),
            trainers=tuple(_trainer(job) for job in jobs if job.priority == "low"),
        )


class Pace(NamedTuple):
    """How the lead of a request follows its progress; the job's own agent, which sees that, works it out."""

    margin_ns: int  # what it is at least: what still runs once the gate closes
    inflation_ppm: int  # on the predicted remaining time
    quantile_ppm: int  # of which that is taken

    def lead_ns(self, remaining_ns: int) -> int:
        """The lead of a request that still takes ``remaining_ns``; as `lead_from_progress` in table.hpp."""
        return self.margin_ns - (-remaining_ns * self.inflation_ppm // 1_000_000)


class Plan(NamedTuple):
    """How one service closes its gate; its own watcher carries it out, without the daemon.

    The gate closes ``lead_ns`` before a request's deadline, or as soon as more than ``queue_limit`` requests
    are open. With a pace, a request whose remaining time is known has a lead from that instead. With a slice, the gate
    is closed and open in turns while a request is open, and the rest does not count.
    """

    lead_ns: int
    queue_limit: int = NO_QUEUE_LIMIT
    pace: Pace | None = None
    slice_ns: int = 0

    @classmethod
    def of(cls, job: JobView) -> Self:
        """The plan that a row shows."""
        pace = Pace(job.margin_ns, job.inflation_ppm, job.quantile_ppm) if job.inflation_ppm else None
        return cls(job.lead_ns, job.queue_limit, pace, job.slice_ns)


class TrainerPlan(NamedTuple):
    """What one trainer may have of its device; 0: no limit."""

    sm_count: int = 0  # SMs, from its next step on
    rate_ppm: int = 0  # predicted device time that it may issue, in millionths of time
    ahead_ns: int = 0  # predicted device time that its host may be ahead of the device

    @classmethod
    def of(cls, job: JobView) -> Self:
        """The plan that a row shows."""
        return cls(job.sm_count, job.rate_ppm, job.ahead_ns)


STRICT_PLAN = Plan(LEAD_ALWAYS)  # also what a job does that no daemon has planned for
FREE_PLAN = Plan(LEAD_NEVER)
GATED_FREE_PLAN = Plan(LEAD_NEVER, NO_QUEUE_LIMIT - 1)  # never closes either, but trainers keep their hooks: they count


Reason = Literal["alone", "load", "residual"]


@dataclass(frozen=True)
class Infeasible:
    """An SLO that cannot be guaranteed, however early the gate closes."""

    key: JobKey
    name: str
    slo_ns: int
    needed_ns: int  # the tightest SLO that can be
    reason: Reason = "residual"  # too slow even alone; too many requests; what still runs once the gate closes
    part: str = "latency"  # which promise: latency, ttft, tpot


class Decision(NamedTuple):
    """A policy's answer: one plan for every service of the snapshot, and limits for trainers that are to have some."""

    plans: Mapping[JobKey, Plan] = MappingProxyType({})
    trainer_plans: Mapping[JobKey, TrainerPlan] = MappingProxyType({})
    modes: Mapping[str, Mode] = MappingProxyType({})  # by device, where it chose one
    unmet: Mapping[JobKey, str] = MappingProxyType({})  # what of the policy a job cannot have, in words for a log


def key_of(job: JobView) -> JobKey:
    """The key of a row's present job."""
    return JobKey(job.row, job.generation)


def _service(job: JobView) -> Service:
    part, slo_ns = job.device_slo
    return Service(
        key=key_of(job),
        name=job.name,
        device=job.device,
        slo_ns=slo_ns or None,
        target=job.target,
        service_times=job.service,
        mps=job.mps,
        alone_ns=job.alone_ns if job.alone_ns >= 0 else None,
        alone_is_asked=job.quantile_ppm > 0,
        solo_requests=job.solo_requests,
        solo_ns=job.solo_ns,
        requests_done=job.requests_done,
        met=job.slo_met,
        missed=job.slo_missed,
        missed_anyway=job.missed_anyway,
        beside_requests=job.beside_requests,
        beside_ns=job.beside_ns,
        busy_ns=job.busy_ns,
        busy_open_ns=job.busy_open_ns,
        slo_part=part,
        work_begun=job.service.count if job.engine else job.requests_begun,
        in_steps=bool(job.engine),
    )


def _trainer(job: JobView) -> Trainer:
    return Trainer(
        key=key_of(job),
        name=job.name,
        device=job.device,
        longest_stretch_ns=job.longest_op_ns,
        mps=job.mps,
        work_ns=job.gated_ns + job.light_ns,
        sm_total=job.sm_total,
        sm_granted=job.sm_granted,
        weight=job.weight,
        floor=job.floor,
        armed=bool(job.armed),
        rate_ppm=job.rate_ppm,
    )
