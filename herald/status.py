"""`herald status`: one look at a domain, for people and (--json) for programs."""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table as Grid

from herald.clock import now_ns
from herald.config import choose_domain
from herald.domains import segment_name
from herald.durations import format_ns
from herald.job_view import JobView
from herald.scheduler.daemon import describe
from herald.scheduler.prediction import infeasible
from herald.scheduler.snapshot import Plan, Snapshot, key_of
from herald.table import Table

_STALE_AFTER_NS = 1_000_000_000  # twenty beats


@dataclass(frozen=True)
class DaemonStatus:
    """The daemon of a domain."""

    state: Literal["alive", "stale", "none"] = "none"  # stale: it owns the domain but has stopped beating
    pid: int | None = None
    host: str | None = None
    beat_age_ns: int | None = None
    policy: str = "strict"  # the one in force
    mps_pipe: str | None = None


@dataclass(frozen=True)
class JobStatus:
    """One job. Durations in ns; None where there is nothing to say yet, or ever for that priority."""

    name: str
    priority: str
    device: str
    pid: int
    slo_ns: int | None
    target: float
    attainment: float | None
    p50_ns: int | None
    p99_ns: int | None
    requests_done: int
    requests_open: int
    remaining_ns: int | None  # predicted, of the open request with the earliest deadline
    progress: float | None  # of that request, 0..1
    progress_error: float | None  # of the predicted remaining time at the middle of finished requests
    plan: str | None
    infeasible: str | None  # why the SLO cannot be held: alone, load, residual
    infeasible_below_ns: int | None  # set where the SLO is lower than what can be guaranteed
    gate_points: int
    gate_waits: int
    gate_wait_ns: int
    coverage: float | None
    sm_total: int | None  # None: it cannot be kept to a share
    sm_granted: int | None  # None: all
    train_steps: int


@dataclass(frozen=True)
class Status:
    """One look at a domain."""

    domain: str
    daemon: DaemonStatus = DaemonStatus()
    jobs: tuple[JobStatus, ...] = ()


def look(domain: str, now_ns: int) -> Status:
    """The status of a domain, whether or not anything started in it. Raises TableError: a broken table."""
    if not (Path("/dev/shm") / segment_name(domain)[1:]).exists():
        return Status(domain)
    table = Table.open(domain, create=False)
    table.reap(now_ns)  # as everyone who looks does: a job that died since is not shown
    return status_of(table, now_ns)


def status_of(table: Table, now_ns: int) -> Status:
    """The status that a table shows."""
    jobs = table.jobs()
    told = table.daemon_is_alive()  # it has seen more than one look shows
    seen = {} if told else {note.key: (note.reason, note.needed_ns) for note in infeasible(Snapshot.of(jobs))}
    notes = seen | {key_of(job): (job.infeasible, job.needed_ns) for job in jobs if job.infeasible}
    return Status(
        domain=table.domain,
        daemon=_daemon(table, now_ns),
        jobs=tuple(_job(job, notes.get(key_of(job))) for job in jobs),
    )


def _daemon(table: Table, now_ns: int) -> DaemonStatus:
    header = table.header
    mps_pipe = header.mps_pipe.decode(errors="replace") or None
    if not table.daemon_is_alive():
        return DaemonStatus(mps_pipe=mps_pipe)
    age_ns = max(0, now_ns - header.daemon_heartbeat_ns)
    return DaemonStatus(
        state="alive" if age_ns < _STALE_AFTER_NS else "stale",
        pid=header.daemon_pid,
        host=header.daemon_host.decode(errors="replace"),
        beat_age_ns=age_ns,
        policy=header.policy.decode(errors="replace"),
        mps_pipe=mps_pipe,
    )


def _job(job: JobView, infeasible: tuple[str, int] | None) -> JobStatus:
    return JobStatus(
        name=job.name,
        priority=job.priority,
        device=job.device,
        pid=job.pid,
        slo_ns=job.slo_ns or None,
        target=job.target,
        attainment=job.attainment,
        p50_ns=job.latency.quantile(0.5),
        p99_ns=job.latency.quantile(0.99),
        requests_done=job.requests_done,
        requests_open=job.open_requests,
        remaining_ns=job.remaining_ns if job.remaining_ns >= 0 else None,
        progress=job.progress_ppm / 1e6 if job.remaining_ns >= 0 else None,
        progress_error=job.progress_error,
        plan=describe(Plan.of(job)) if job.priority == "high" else None,
        infeasible=infeasible[0] if infeasible else None,
        infeasible_below_ns=infeasible[1] if infeasible else None,
        gate_points=job.gate_points,
        gate_waits=job.gate_waits,
        gate_wait_ns=job.gate_wait_ns,
        coverage=job.coverage,
        sm_total=job.sm_total or None,
        sm_granted=job.sm_granted or None,
        train_steps=job.train_steps,
    )


def render(status: Status, console: Console) -> None:
    """Print a status for people; reads well at 80 columns."""
    console.print(f"domain   {status.domain}", highlight=False)
    console.print(f"daemon   {_daemon_line(status.daemon)}", highlight=False)
    console.print(f"MPS      {status.daemon.mps_pipe or 'off'}", highlight=False)
    services = [job for job in status.jobs if job.priority == "high"]
    trainers = [job for job in status.jobs if job.priority == "low"]
    if services:
        console.print(_service_grid(services))
    for job in services:
        console.print(f"{job.name}: {job.plan}{_prediction(job)}{_warning(job)}", highlight=False)
    if trainers:
        console.print(_trainer_grid(trainers))
    if not status.jobs:
        console.print("no jobs", highlight=False)


def _daemon_line(daemon: DaemonStatus) -> str:
    if daemon.state == "none":
        return "none: jobs go on by the plans below"
    late = f", silent for {format_ns(daemon.beat_age_ns or 0)}" if daemon.state == "stale" else ""
    return f"{daemon.state}{late}: policy {daemon.policy}, pid {daemon.pid} on {daemon.host}"


def _prediction(job: JobStatus) -> str:
    if job.progress_error is None:
        return ""
    return f"; at the middle of a request, its remaining time was off by {job.progress_error:.0%} on average"


def _warning(job: JobStatus) -> str:
    if job.infeasible_below_ns is None:
        return ""
    why = {"alone": "it is too slow alone", "load": "its load is too high", "residual": "training runs on too long"}
    reason = f" ({why[job.infeasible]})" if job.infeasible else ""
    return f"; an SLO below {format_ns(job.infeasible_below_ns)} cannot be guaranteed{reason}"


def _service_grid(jobs: list[JobStatus]) -> Grid:
    grid = Grid("inference", "device", "SLO", "met", "p50", "p99", "done", "open", "left", box=None, pad_edge=False)
    for job in jobs:
        grid.add_row(
            job.name,
            _short(job.device),
            _duration(job.slo_ns),
            _share(job.attainment),
            _duration(job.p50_ns),
            _duration(job.p99_ns),
            str(job.requests_done),
            str(job.requests_open),
            _duration(job.remaining_ns),
        )
    return grid


def _trainer_grid(jobs: list[JobStatus]) -> Grid:
    grid = Grid("training", "device", "SMs", "gate points", "waits", "waited", "coverage", box=None, pad_edge=False)
    for job in jobs:
        grid.add_row(
            job.name,
            _short(job.device),
            f"{job.sm_granted}/{job.sm_total}" if job.sm_granted else "all",
            str(job.gate_points),
            str(job.gate_waits),
            format_ns(job.gate_wait_ns),
            _share(job.coverage),
        )
    return grid


def _duration(value_ns: int | None) -> str:
    return "-" if value_ns is None else format_ns(value_ns)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _short(device: str) -> str:
    return device[:12]  # "GPU-" and the first group of the UUID


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`herald status`."""
    parser = subparsers.add_parser("status", help="show a domain: daemon, jobs, SLO attainment")
    parser.add_argument("--domain", help="default: HERALD_DOMAIN, else 'default'")
    parser.add_argument("--json", action="store_true", help="for programs; durations in ns")
    parser.set_defaults(run=_main)


def _main(arguments: argparse.Namespace) -> int:
    status = look(choose_domain(arguments.domain), now_ns())
    if arguments.json:
        print(json.dumps(asdict(status), indent=2))
    else:
        render(status, Console())
    return 0
