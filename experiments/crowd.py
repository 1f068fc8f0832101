"""`herald experiment crowd`: several services and several trainers on one GPU under one policy.

Each is measured alone first, in the same MPS state: a service for its SLO, a trainer for what its progress is relative
to. Then the services together without trainers, which says what SLOs are feasible; then all of them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from herald.experiments import arrivals as arrivals_data
from herald.experiments import measures, settings
from herald.experiments.arrivals import Poisson
from herald.experiments.crew import LOAD_TIMEOUT_S, launch_for, send_load
from herald.experiments.domain import PrivateDomain, private_mps
from herald.experiments.plan import existing_profile
from herald.experiments.process import Channel, call_all
from herald.experiments.roles import PRIORITY, Role
from herald.experiments.rows import Row
from herald.experiments.stage import Start, check_clients
from herald.experiments.sweep import LEARN_SEED
from herald.experiments.sweep_runner import START_S, Log
from herald.experiments.trial import ATTACH_TIMEOUT_S, RUN_GRACE_S, SETTLE_STEPS, START_DELAY_S

KIND = "crowd"
PROBE_REQUESTS = 30


@dataclass(frozen=True)
class Member:
    """A job of the crowd. Its name is its workload's, with a number where that comes twice."""

    name: str
    workload: str
    role: Role
    floor: float = 0.0  # of a trainer: the progress that it is promised, relative to alone


@dataclass(frozen=True)
class Crowd:
    """Who shares the device."""

    members: tuple[Member, ...]
    device: str
    seed: int
    load: float = 0.4  # of all services together
    seconds: float = 20.0
    learn_s: float = 12.0
    alone_s: float = 6.0
    slo_factor: float = 2.0
    policy: str = "herald"
    profiles: Path | None = None

    @property
    def services(self) -> list[Member]:
        """In their order."""
        return [member for member in self.members if member.role == "inference"]

    @property
    def trainers(self) -> list[Member]:
        """In their order."""
        return [member for member in self.members if member.role == "training"]


def members(services: Sequence[str], trainers: Sequence[str], floor: float) -> tuple[Member, ...]:
    """From workloads' names."""
    seen: dict[str, int] = {}

    def name(workload: str) -> str:
        seen[workload] = seen.get(workload, 0) + 1
        return workload if seen[workload] == 1 else f"{workload}-{seen[workload]}"

    return (
        *(Member(name(workload), workload, "inference") for workload in services),
        *(Member(name(workload), workload, "training", floor) for workload in trainers),
    )


def config_text(crowd: Crowd) -> str:
    """The config of the jobs: their priorities and floors."""
    return "\n".join(
        f'[jobs.{member.name}]\npriority = "{PRIORITY[member.role]}"\n'
        + (f"floor = {member.floor:g}\n" if member.floor else "")
        for member in crowd.members
    )


def run(crowd: Crowd, log: Log, *, start: Start, log_dir: Path) -> int:
    """Measure one row. Raises OutOfTime or WorkerError."""
    alone_s = crowd.alone_s * len(crowd.members)
    log.check_time(START_S + alone_s + 2 * crowd.seconds + crowd.learn_s + 20)
    mps = crowd.device == "cuda"
    with ExitStack() as stack:
        server = stack.enter_context(private_mps("crowd")) if mps else None
        setting = settings.SETTINGS["herald-mps" if mps else "herald"]
        pipe = str(server.pipe_dir) if server else None
        channels = _started(crowd, setting, pipe, start, stack)
        facts = {name: channel.receive(LOAD_TIMEOUT_S) for name, channel in channels.items()}
        if server:
            check_clients(server, len(channels))
        domain = stack.enter_context(PrivateDomain("crowd", log_dir))
        row = _measured(crowd, channels, domain, log_dir / "crowd.toml", log.say)
    log.keep({"kind": KIND, "key": _key(crowd), "mps": mps, "policy": crowd.policy, **row}, facts)
    return 1


def _started(
    crowd: Crowd, setting: settings.Setting, pipe: str | None, start: Start, stack: ExitStack
) -> dict[str, Channel]:
    channels: dict[str, Channel] = {}
    stack.callback(_close, channels)
    for member in crowd.members:
        launch = launch_for(member.role, setting, crowd.device, pipe)
        channels[member.name] = start(replace(launch, name=member.name))
    for member in crowd.members:
        send_load(channels[member.name], member.workload, crowd.device, crowd.seed)
    return channels


def _close(channels: Mapping[str, Channel]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda channel: channel.close(), channels.values()))


def _measured(
    crowd: Crowd, channels: Mapping[str, Channel], domain: PrivateDomain, config: Path, say: Callable[[str], None]
) -> Row:
    rate_hz = {m.name: _rate_hz(crowd, channels[m.name]) for m in crowd.services}
    alone = {m.name: _run(crowd, {m.name: channels[m.name]}, rate_hz, crowd.alone_s)[m.name] for m in crowd.members}
    p99_ms = {m.name: measures.summary(measures.latencies_ms(alone[m.name]), None)["p99_ms"] for m in crowd.services}
    slo_ms = {name: round(crowd.slo_factor * value, 3) for name, value in p99_ms.items()}
    together = _run(crowd, {name: channels[name] for name in rate_hz}, rate_hz, crowd.seconds)
    say(f"SLOs {', '.join(f'{name} {ms:.1f} ms' for name, ms in slo_ms.items())}")
    config.write_text(config_text(crowd), encoding="utf-8")
    domain.start_daemon(crowd.policy, config)
    for member in (*crowd.trainers, *crowd.services):  # training first: its settling steps meet open gates
        call = _attachment(crowd, member, slo_ms.get(member.name))
        channels[member.name].call("attach", timeout_s=ATTACH_TIMEOUT_S, domain=domain.name, config=str(config), **call)
    _run(crowd, channels, rate_hz, crowd.learn_s, seed=LEARN_SEED)
    final = _run(crowd, channels, rate_hz, crowd.seconds)
    stats = call_all(channels, "detach", timeout_s=ATTACH_TIMEOUT_S)
    return {
        "services": [
            {
                "name": m.name,
                "workload": m.workload,
                "rate_hz": rate_hz[m.name],
                "slo_ms": slo_ms[m.name],
                "alone_p99_ms": p99_ms[m.name],
                "together_ms": measures.latencies_ms(together[m.name]),
                "latency_ms": measures.latencies_ms(final[m.name]),
            }
            for m in crowd.services
        ],
        "trainers": [
            {
                "name": m.name,
                "workload": m.workload,
                "floor": m.floor,
                "alone_steps_per_s": measures.training(alone[m.name])["steps_per_s"],
                "steps_per_s": measures.training(final[m.name])["steps_per_s"],
            }
            for m in crowd.trainers
        ],
        "herald": stats,
    }


def _rate_hz(crowd: Crowd, channel: Channel) -> float:
    """Each service has an equal part of the load."""
    step_s = channel.call("steps", timeout_s=ATTACH_TIMEOUT_S, count=PROBE_REQUESTS)["step_s"]
    return round(crowd.load / len(crowd.services) / fmean(step_s), 4)


def _run(
    crowd: Crowd, channels: Mapping[str, Channel], rate_hz: Mapping[str, float], seconds: float, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Everybody at once; the arrivals of each service are its own."""
    start_s = time.monotonic() + START_DELAY_S
    for place, (name, channel) in enumerate(channels.items()):
        arrivals = Poisson(rate_hz.get(name, 1.0), seed=crowd.seed + seed + place)  # a trainer ignores them
        channel.send("run", start_s=start_s, seconds=seconds, arrivals=arrivals_data.to_json(arrivals))
    return {name: channel.receive(seconds + RUN_GRACE_S) for name, channel in channels.items()}


def _attachment(crowd: Crowd, member: Member, slo_ms: float | None) -> dict[str, object]:
    trains = member.role == "training"
    return {
        "name": member.name,
        "priority": PRIORITY[member.role],
        "slo": None if slo_ms is None else f"{slo_ms:.3f}ms",
        "device": crowd.device,
        "settle": SETTLE_STEPS if trains else 0,
        "profile": existing_profile(crowd.profiles, member.workload) if trains and crowd.profiles else None,
    }


def _key(crowd: Crowd) -> dict[str, Any]:
    return {
        "members": [member.name for member in crowd.members],
        "device": crowd.device,
        "load": crowd.load,
        "seconds": crowd.seconds,
        "slo_factor": crowd.slo_factor,
        "seed": crowd.seed,
    }
