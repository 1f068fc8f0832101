"""What a policy sees and what it answers: frozen values, no table, no clock.

A simulator builds the same snapshots from its own state, so nothing here may reach outside.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol, Self

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
    slo_ns: int | None
    target: float  # share of requests that must meet the SLO
    service_times: Durations  # begin -> done


@dataclass(frozen=True)
class Trainer:
    """A low-priority job."""

    key: JobKey
    name: str
    device: str
    longest_stretch_ns: int  # predicted device time that a closing gate cannot stop; 0: not known yet


@dataclass(frozen=True)
class Snapshot:
    """The jobs of a domain at one moment."""

    services: tuple[Service, ...] = ()
    trainers: tuple[Trainer, ...] = ()

    @classmethod
    def of(cls, jobs: Iterable[JobView]) -> Self:
        """The snapshot of the live rows of a table."""
        jobs = tuple(jobs)
        return cls(
            services=tuple(_service(job) for job in jobs if job.priority == "high"),
            trainers=tuple(_trainer(job) for job in jobs if job.priority == "low"),
        )


@dataclass(frozen=True)
class Pace:
    """How the lead of a request follows its progress; the job's own agent, which sees that, works it out."""

    margin_ns: int  # what it is at least: what still runs once the gate closes
    inflation_ppm: int  # on the predicted remaining time
    quantile_ppm: int  # of which that is taken

    def lead_ns(self, remaining_ns: int) -> int:
        """The lead of a request that still takes ``remaining_ns``; as `lead_from_progress` in table.hpp."""
        return self.margin_ns - (-remaining_ns * self.inflation_ppm // 1_000_000)


@dataclass(frozen=True)
class Plan:
    """How one service closes its gate; its own watcher carries it out, without the daemon.

    The gate closes ``lead_ns`` before a request's deadline, or as soon as more than ``queue_limit`` requests
    are open. With a pace, a request whose progress is known has a lead from that instead.
    """

    lead_ns: int
    queue_limit: int = NO_QUEUE_LIMIT
    pace: Pace | None = None

    @classmethod
    def of(cls, job: JobView) -> Self:
        """The plan that a row shows."""
        pace = Pace(job.margin_ns, job.inflation_ppm, job.quantile_ppm) if job.inflation_ppm else None
        return cls(job.lead_ns, job.queue_limit, pace)


STRICT_PLAN = Plan(LEAD_ALWAYS)  # also what a job does that no daemon has planned for
FREE_PLAN = Plan(LEAD_NEVER)


@dataclass(frozen=True)
class Infeasible:
    """An SLO that cannot be guaranteed, however early the gate closes."""

    key: JobKey
    name: str
    slo_ns: int
    needed_ns: int  # the tightest SLO that can be


@dataclass(frozen=True)
class Decision:
    """A policy's answer: one plan for every service of the snapshot."""

    plans: Mapping[JobKey, Plan] = field(default_factory=lambda: MappingProxyType({}))
    infeasible: tuple[Infeasible, ...] = ()


def key_of(job: JobView) -> JobKey:
    """The key of a row's present job."""
    return JobKey(job.row, job.generation)


def _service(job: JobView) -> Service:
    return Service(
        key=key_of(job),
        name=job.name,
        device=job.device,
        slo_ns=job.slo_ns or None,
        target=job.target,
        service_times=job.service,
    )


def _trainer(job: JobView) -> Trainer:
    return Trainer(key=key_of(job), name=job.name, device=job.device, longest_stretch_ns=job.longest_op_ns)
