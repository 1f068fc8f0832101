"""`herald.attach`: from what a person says to an attached job."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from herald import config as config_file
from herald.config import Config, JobConfig, did_you_mean
from herald.durations import format_ns
from herald.errors import AttachError, ConfigError
from herald.hooks import devices, disabled, learned
from herald.hooks.job import Job
from herald.hooks.service import HighJob
from herald.hooks.trainer import LowJob, relieved_stand_in
from herald.settings import NAME_BYTES, Settings, check_domain, check_name
from herald.slo import NO_SLO, Slo, SloSpec
from herald.table import Table

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("herald")
_told: set[str] = set()


def attach(
    model: "torch.nn.Module | None" = None,
    *,
    priority: Literal["high", "low"] | None = None,
    slo: SloSpec | None = None,
    name: str | None = None,
    domain: str | None = None,
    device: "str | torch.device | None" = None,
    config: str | Path | None = None,
    profile: str | Path | None = None,
) -> Job:
    """Let Herald schedule this process's ops (priority "low") or protect its requests ("high").

    ``model``: with "high", each outermost forward becomes one request; otherwise it only tells the device. May be left
    out: the op hook sees the whole process. ``slo``: a latency with a unit, "50ms", from arrival to completion on the
    device, or a map of parts that must all hold, {"latency": "2s", "ttft": "200ms", "tpot": "30ms"}, see `Job.begin`.
    ``name``: the job's key in the config's [jobs]; default: the model's class. ``domain``: which jobs meet; default:
    the config's, HERALD_DOMAIN, "default". ``config``: a TOML file; default: HERALD_CONFIG. What is given here wins
    over the config. ``profile``: a file of op costs (`Job.save_profile`); without one they are learnt.

    Raises ConfigError (a wrong setting), AttachError (this process cannot be scheduled), TableError (the domain is
    full or damaged), BuildError (no compiler). Nothing is left behind then.
    """
    devices.check_model(model)
    settings = Settings.from_env()
    chosen = settings.config if config is None else _path("config", config)
    file = config_file.load(chosen) if chosen else Config()
    name = check_name(_default_name(model) if name is None else name)
    job = file.job(name)
    urgency = _priority(priority, job)
    promised = _slo(slo, job, urgency)
    domain = check_domain(domain if domain is not None else file.domain or settings.domain)
    known = None if profile is None else _path("profile", profile)
    if settings.disabled:
        disabled.check(device, known)
        return disabled.DisabledJob(name, urgency)
    _refuse_several_ranks(urgency)
    if file.jobs and name not in file.jobs:
        near = did_you_mean(name, tuple(file.jobs))
        _log.warning("job %r has no [jobs.%s] in %s%s: nothing said there holds for it", name, name, chosen, near)
    _tell_overruled(file, job, urgency, promised)
    where = devices.resolve(device, model)
    if known is not None:
        learned.load(known, where.cuda_index, file.classes.light_percent)
    table = Table.open(domain)
    _tell_without_daemon(table)
    if urgency == "high":
        if not promised:
            _log.warning("job %r has no SLO: its requests are protected, but none is judged (give slo='50ms')", name)
        return HighJob(table, where, model, name=name, slo=promised, target=job.target)
    light_percent = file.classes.light_percent
    with relieved_stand_in(name, domain):
        return LowJob(table, where, name=name, light_percent=light_percent, weight=job.weight, floor=job.floor)


def _default_name(model: "torch.nn.Module | None") -> str:
    return type(model).__name__[:NAME_BYTES] if model is not None else "job"


def _path(setting: str, given: object) -> Path:
    if not isinstance(given, str | bytes | os.PathLike):
        raise ConfigError(f"{setting} = {given!r} is not a path: give the path of a file")
    return Path(os.fsdecode(given))


def _priority(given: str | None, job: JobConfig) -> Literal["high", "low"]:
    value = given if given is not None else job.priority
    if value not in ("high", "low"):
        said = f"priority = {value!r}" if value is not None else f"job {job.name!r} has no priority"
        raise ConfigError(f"{said}: give 'high' (inference with an SLO) or 'low' (best-effort training)")
    return value  # type: ignore[return-value]


def _slo(given: SloSpec | None, job: JobConfig, priority: str) -> Slo:
    if given is None:
        return job.slo or NO_SLO if priority == "high" else NO_SLO
    slo = Slo.parse(given)
    if priority == "low":
        raise ConfigError(f"slo = {given!r}: a job of priority 'low' has no SLO; leave it out, or give priority='high'")
    return slo


def _tell_overruled(file: Config, job: JobConfig, urgency: str, promised: Slo) -> None:
    """Say where the call and the file contradict each other."""
    told = "job %r: attach says %s = %s, [jobs.%s] in %s says %s: the call wins; correct one of them"
    if job.priority not in (None, urgency):
        _log.warning(told, job.name, "priority", repr(urgency), job.name, file.source, repr(job.priority))
    if job.slo and job.slo != promised:
        said = _slo_in_words(promised) if promised else f"none (priority {urgency!r})"
        _log.warning(told, job.name, "slo", said, job.name, file.source, _slo_in_words(job.slo))


def _slo_in_words(slo: Slo) -> str:
    if not (slo.ttft_ns or slo.tpot_ns):
        return format_ns(slo.latency_ns)
    parts = (("latency", slo.latency_ns), ("ttft", slo.ttft_ns), ("tpot", slo.tpot_ns))
    return f"{{{', '.join(f'{part}: {format_ns(ns)}' for part, ns in parts if ns)}}}"


def _refuse_several_ranks(priority: str) -> None:
    import torch.distributed as dist

    if priority == "low" and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise AttachError(
            f"this is one of {dist.get_world_size()} ranks: holding one rank back would stall the others' collectives, "
            "so Herald does not schedule multi-rank training yet"
        )


def _tell_without_daemon(table: Table) -> None:
    if table.domain not in _told and not table.daemon_is_alive():
        _told.add(table.domain)
        _log.warning(
            "no daemon in domain %r: jobs use the strict policy (start `herald daemon` for others)", table.domain
        )
