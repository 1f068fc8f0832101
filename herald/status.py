"""`herald status`: one look at a domain, for people and (--json) for programs."""

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from herald.clock import now_ns
from herald.config import choose_domain
from herald.domains import domains, segment_path
from herald.durations import format_ns
from herald.errors import TableError
from herald.job_view import JobView
from herald.job_words import duration, overdue, share, short, why_infeasible
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
    ttft_slo_ns: int | None  # time to first token
    tpot_slo_ns: int | None  # time per further token
    target: float
    attainment: float | None
    p50_ns: int | None
    p99_ns: int | None
    ttft_p99_ns: int | None
    tpot_p99_ns: int | None
    tokens: int  # told by an engine; so is the next
    queued: int  # requests that wait outside
    requests_done: int
    requests_open: int
    requests_overdue: int  # ran longer than max_hold, and unprotected from then on
    remaining_ns: int | None  # predicted, of the open request with the earliest deadline
    progress: float | None  # of that request, 0..1
    progress_error: float | None  # of the predicted remaining time at the middle of finished requests
    plan: str | None
    infeasible: str | None  # why the SLO cannot be held: alone, load, residual
    infeasible_below_ns: int | None  # set where the SLO is lower than what can be guaranteed
    infeasible_part: str | None  # which SLO: latency, ttft, tpot
    gate_points: int
    gate_waits: int
    gate_wait_ns: int
    coverage: float | None
    mps: bool  # its process is a client of an MPS server
    sm_total: int | None  # None: it cannot be kept to a share
    sm_granted: int | None  # None: all
    train_steps: int


@dataclass(frozen=True)
class Status:
    """One look at a domain."""

    domain: str
    daemon: DaemonStatus = DaemonStatus()
    jobs: tuple[JobStatus, ...] = ()
    exists: bool = True  # False: nothing has started in it


def look(domain: str, now_ns: int) -> Status:
    """The status of a domain, whether or not anything started in it. Raises TableError: a broken table."""
    if not segment_path(domain).exists():
        return Status(domain, exists=False)
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
        ttft_slo_ns=job.ttft_slo_ns or None,
        tpot_slo_ns=job.tpot_slo_ns or None,
        target=job.target,
        attainment=job.attainment,
        p50_ns=job.latency.quantile(0.5),
        p99_ns=job.latency.quantile(0.99),
        ttft_p99_ns=job.ttft.quantile(0.99),
        tpot_p99_ns=job.tpot.quantile(0.99),
        tokens=job.tokens,
        queued=job.queued,
        requests_done=job.requests_done,
        requests_open=job.open_requests,
        requests_overdue=job.requests_overdue,
        remaining_ns=job.remaining_ns if job.remaining_ns >= 0 else None,
        progress=job.progress_ppm / 1e6 if job.remaining_ns >= 0 else None,
        progress_error=job.progress_error,
        plan=describe(Plan.of(job)) if job.priority == "high" else None,
        infeasible=infeasible[0] if infeasible else None,
        infeasible_below_ns=infeasible[1] if infeasible else None,
        infeasible_part=job.device_slo[0] if infeasible else None,
        gate_points=job.gate_points,
        gate_waits=job.gate_waits,
        gate_wait_ns=job.gate_wait_ns,
        coverage=job.coverage,
        mps=job.mps,
        sm_total=job.sm_total or None,
        sm_granted=job.sm_granted or None,
        train_steps=job.train_steps,
    )


def render(status: Status, console: Console) -> None:
    """Print a status for people; reads well at 80 columns."""

    def line(text: str) -> None:
        console.print(Text(text))  # names are the user's, brackets and colons and all

    line(f"domain   {status.domain}")
    line(f"daemon   {_daemon_line(status)}")
    line(f"MPS      {status.daemon.mps_pipe or 'off'}")
    services = [job for job in status.jobs if job.priority == "high"]
    trainers = [job for job in status.jobs if job.priority == "low"]
    if services:
        console.print(_service_grid(services))
    if engines := [job for job in services if _tells_tokens(job)]:
        console.print(_token_grid(engines))
    for job in services:
        line(f"{job.name}: {job.plan}{_prediction(job)}{_overdue(job)}{_warning(job)}")
    if trainers:
        console.print(_trainer_grid(trainers))
    for job in trainers:
        if job.sm_granted and not job.mps:
            line(f"{job.name}: its share of the SMs isolates nothing without MPS")
    if not status.jobs:
        line("no jobs" if status.exists else f"nothing has started in it; {_others()}")


def _daemon_line(status: Status) -> str:
    daemon = status.daemon
    if daemon.state == "none":
        return "none: jobs go on by the plans below" if any(job.plan for job in status.jobs) else "none"
    late = f", silent for {format_ns(daemon.beat_age_ns or 0)}" if daemon.state == "stale" else ""
    return f"{daemon.state}{late}: policy {daemon.policy}, pid {daemon.pid} on {daemon.host}"


def _prediction(job: JobStatus) -> str:
    if job.progress_error is None:
        return ""
    return f"; at the middle of a request, its remaining time was off by {job.progress_error:.0%} on average"


def _overdue(job: JobStatus) -> str:
    return f"; {overdue(job.requests_overdue)}" if job.requests_overdue else ""


def _warning(job: JobStatus) -> str:
    if job.infeasible_below_ns is None:
        return ""
    return f"; {why_infeasible(job.infeasible, job.infeasible_part or 'latency', job.infeasible_below_ns)}"


def _tells_tokens(job: JobStatus) -> bool:
    told = (job.ttft_slo_ns, job.tpot_slo_ns, job.ttft_p99_ns, job.tpot_p99_ns)
    return any(value is not None for value in told)


def _others() -> str:
    there = domains()
    return f"domains that exist: {', '.join(there)}" if there else "no domain exists yet"


def _service_grid(jobs: list[JobStatus]) -> Grid:
    grid = Grid("inference", "device", "SLO", "met", "p50", "p99", "done", "open", "left", box=None, pad_edge=False)
    for job in jobs:
        grid.add_row(
            Text(job.name),
            short(job.device),
            duration(job.slo_ns),
            share(job.attainment),
            duration(job.p50_ns),
            duration(job.p99_ns),
            str(job.requests_done),
            str(job.requests_open),
            duration(job.remaining_ns or None),  # it takes longer than predicted
        )
    return grid


def _token_grid(jobs: list[JobStatus]) -> Grid:
    grid = Grid("tokens of", "TTFT SLO", "p99", "TPOT SLO", "p99", "tokens", "waiting", box=None, pad_edge=False)
    for job in jobs:
        grid.add_row(
            Text(job.name),
            duration(job.ttft_slo_ns),
            duration(job.ttft_p99_ns),
            duration(job.tpot_slo_ns),
            duration(job.tpot_p99_ns),
            str(job.tokens),
            str(job.queued),
        )
    return grid


def _trainer_grid(jobs: list[JobStatus]) -> Grid:
    grid = Grid("training", "device", "SMs", "gate points", "waits", "waited", "coverage", box=None, pad_edge=False)
    for job in jobs:
        grid.add_row(
            Text(job.name),
            short(job.device),
            f"{job.sm_granted}/{job.sm_total}" if job.sm_granted else "all",
            str(job.gate_points),
            str(job.gate_waits),
            format_ns(job.gate_wait_ns),
            share(job.coverage),
        )
    return grid


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`herald status`."""
    parser = subparsers.add_parser("status", help="show a domain: daemon, jobs, SLO attainment")
    parser.add_argument("--domain", help="default: HERALD_DOMAIN, else 'default'")
    parser.add_argument("--json", action="store_true", help="for programs; durations in ns")
    parser.set_defaults(run=_main)


def _main(arguments: argparse.Namespace) -> int:
    status = look(choose_domain(arguments.domain), now_ns())
    if arguments.domain and not status.exists:  # a name that was typed may be mistyped
        raise TableError(f"--domain {status.domain}: no daemon and no job has started in it; {_others()}")
    if arguments.json:
        print(json.dumps(asdict(status), indent=2))
    else:
        render(status, Console())
    return 0
