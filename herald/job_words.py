"""A job's row in a few lines for people: `print(job.stats())`. Reads no table."""

import textwrap
from typing import TYPE_CHECKING

from herald.durations import format_ns
from herald.slo import OF_PART

if TYPE_CHECKING:
    from herald.job_view import JobView

# Why an SLO cannot be held (layout.REASONS).
WHY_INFEASIBLE = {
    "alone": "it is too slow alone",
    "load": "the load is too high, or the host too slow",
    "residual": "training runs on too long",
}


def summary(job: "JobView") -> str:
    """What matters of a job, in lines of 80 columns at most."""
    head = f"{job.name} (priority {job.priority}{f', {short(job.device)}' if job.device else ''})"
    return "\n".join([head, *(_service(job) if job.priority == "high" else _trainer(job))])


def short(device: str) -> str:
    """A device's name as it fits into a line."""
    return device[:12]  # "GPU-" and the first group of the UUID


def duration(value_ns: int | None) -> str:
    """A duration that may not be known."""
    return "-" if value_ns is None else format_ns(value_ns)


def share(value: float | None) -> str:
    """A share that may not be known."""
    return "-" if value is None else f"{value:.2%}"


def why_infeasible(reason: str | None, part: str, needed_ns: int) -> str:
    """Which SLO cannot be held, and why if that is known."""
    if reason == "load":  # each request could; so many cannot
        return f"too many are late behind a closed gate, too: {WHY_INFEASIBLE[reason]}"
    because = f" ({WHY_INFEASIBLE[reason]})" if reason else ""
    return f"an SLO below {format_ns(needed_ns)}{OF_PART[part]} cannot be guaranteed{because}"


def overdue(count: int) -> str:
    """That so many requests ran longer than a hold may last."""
    return f"{count} ran longer than max_hold, beside training from then on"


def _service(job: "JobView") -> list[str]:
    lines = [f"  requests: {job.requests_done} done, {job.open_requests} open"]
    if job.requests_overdue:
        lines.append(f"  overdue: {overdue(job.requests_overdue)}")
    if job.attainment is not None:
        lines.append(f"  SLO met: {share(job.attainment)} of requests, target {share(job.target)}")
    for what, slo_ns, times in (
        ("latency", job.slo_ns, job.latency),
        ("first token", job.ttft_slo_ns, job.ttft),
        ("per further token", job.tpot_slo_ns, job.tpot),
    ):
        if slo_ns or times.count:
            p50, p99 = (duration(times.quantile(q)) for q in (0.5, 0.99))
            lines.append(f"  {what}: p50 {p50}, p99 {p99}{f', SLO {format_ns(slo_ns)}' if slo_ns else ''}")
    if job.infeasible:
        said = why_infeasible(job.infeasible, job.device_slo[0], job.needed_ns)
        lines += textwrap.wrap(said, 80, initial_indent="  ", subsequent_indent="    ")
    return lines


def _trainer(job: "JobView") -> list[str]:
    steps = f"{job.train_steps} optimizer steps, " if job.train_steps else ""
    done = format_ns(job.gated_ns + job.light_ns)
    lines = [
        f"  training: {steps}{done} of predicted device time",
        f"  gate: {job.gate_points} points, {job.gate_waits} waits of {format_ns(job.gate_wait_ns)} in all, coverage "
        f"{share(job.coverage)}",
    ]
    if job.sm_granted:
        lines.append(f"  SMs: {job.sm_granted} of {job.sm_total}")
    return lines
