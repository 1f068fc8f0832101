"""`herald experiment timeline`: one second of a colocation, with all that Herald decides and brings about.

The pair runs under a policy for some seconds first, so that it has settled. Requests are the service's own account,
ops the trainer's (`training_ops`), the gate and the plans are watched from here (`gate_watch`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from herald import layout
from herald.durations import format_ns
from herald.errors import ConfigError
from herald.experiments import arrivals as arrivals_data
from herald.experiments import measures, settings
from herald.experiments.arrivals import Poisson
from herald.experiments.crew import Pair
from herald.experiments.gate_watch import Eye, State, Watched, watch
from herald.experiments.joining import joined
from herald.experiments.plan import existing_profile
from herald.experiments.process import Channel, Worker
from herald.experiments.roles import Role
from herald.experiments.settings import Setting
from herald.experiments.stage import Stage
from herald.experiments.training_ops import Span
from herald.experiments.trial import RUN_GRACE_S, START_DELAY_S, Terms
from herald.scheduler import policies

ALONE_S = 6.0  # of arrivals, from which the SLO follows
SLO_FACTOR = 1.5
AFTER_S = 0.2  # arrivals go on for a little, so that the last request shown has what the others had
WARM_UP_TIMEOUT_S = 120.0  # the first use of a profiler
RATE_HZ = {"cpu": 20.0, "cuda": 10.0}
_USE_PROGRESS = ("herald", "laxity")  # policies that reckon with how far a request is


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    pair: Pair
    device: str
    mps: bool
    policy: str
    seconds: float
    settle_s: float
    rate_hz: float
    slo_ms: float | None  # None: from a run alone
    seed: int
    profiles: Path | None = None  # folder of profiles by workload, with which the trainer attaches

    def __post_init__(self) -> None:
        policies.load(self.policy, setting="--policy")
        if self.profiles:
            existing_profile(self.profiles, self.pair.training)
        if not 0.1 <= self.seconds <= 10:
            raise ConfigError(f"--seconds = {self.seconds:g}: a timeline has 0.1 to 10 seconds")
        if not 1 <= self.settle_s <= 600:
            raise ConfigError(f"--settle = {self.settle_s:g}: give 1 to 600 seconds for the policy to settle")


@dataclass(frozen=True)
class Request:
    """One request; ns from the begin of the stretch that is shown, so that they may be negative."""

    arrived_ns: int
    begun_ns: int
    done_ns: int

    @property
    def latency_ms(self) -> float:
        """From its scheduled arrival."""
        return (self.done_ns - self.arrived_ns) / 1e6


@dataclass(frozen=True)
class Stretch:
    """Something that lasts; ns from the begin of what is shown, and inside it."""

    begin_ns: int
    end_ns: int
    name: str


@dataclass(frozen=True)
class Op:
    """One op of the trainer (on a GPU: a kernel of it), likewise."""

    begin_ns: int
    end_ns: int
    name: str
    kind: str  # light, heavy, unknown, none
    lane: int  # thread, or stream


@dataclass(frozen=True)
class Timeline:
    """What is shown."""

    options: Options
    slo_ms: float
    requests: tuple[Request, ...]
    closed: tuple[Stretch, ...]  # the gate of heavy ops
    plans: tuple[Stretch, ...]  # of the service
    trainer_plans: tuple[Stretch, ...]
    sm_share: tuple[tuple[int, float], ...]  # (ns, share of the SMs that the trainer's steps run on), at every change
    sm_total: int  # 0: the trainer cannot keep to a share
    steps: tuple[Stretch, ...]  # of the trainer
    ops: tuple[Op, ...]
    gap_ns: tuple[int, int]  # between two looks at the gate: median, longest

    @property
    def length_ns(self) -> int:
        """Of all of it."""
        return round(self.options.seconds * 1e9)

    @property
    def num_met(self) -> int:
        """Requests shown that met the SLO."""
        return sum(request.latency_ms <= self.slo_ms for request in self.requests)

    @property
    def met_told(self) -> str:
        """How many requests met the SLO, and where that is from."""
        origin = f"{SLO_FACTOR:g} x p99 alone, measured before" if self.options.slo_ms is None else "--slo"
        return f"{self.num_met} of {len(self.requests)} requests met the SLO of {self.slo_ms:.1f} ms ({origin})"

    @property
    def title(self) -> str:
        """What ran, and under what."""
        options = self.options
        mps = ", MPS" if options.mps else ""
        return f"{options.pair.inference} beside {options.pair.training}, policy {options.policy}{mps}"


def summary(timeline: Timeline) -> str:
    """For a terminal."""
    median_ns, longest_ns = timeline.gap_ns
    return (
        f"{timeline.title}\n"
        f"{timeline.met_told}\n"
        f"{len(timeline.steps)} training steps, {len(timeline.ops)} ops\n"
        f"The gate's state is sampled: every {format_ns(median_ns)} (median), longest gap {format_ns(longest_ns)};\n"
        "a close or an opening that is shorter than the gap it falls into is not shown."
    )


def run(options: Options, *, log_dir: Path) -> Timeline:
    """Measure. Raises WorkerError, DaemonFailed."""
    setting = Setting("timeline", f"Herald, policy {options.policy}", mps=options.mps, policy=options.policy)
    stage = Stage(
        options.pair,
        device=options.device,
        seed=options.seed,
        mps=options.mps,
        start=lambda launch: Worker(launch, log_dir),
        log_dir=log_dir,
    )
    with stage:
        stage.prepare([setting])
        slo_ms = options.slo_ms or _slo_ms(options, stage)
        domain = stage.domain_of(setting)
        assert domain is not None, "the setting has a policy"
        members = stage.crew.members(setting)
        profile = existing_profile(options.profiles, options.pair.training) if options.profiles else None
        follow = options.policy.partition(":")[0] in _USE_PROGRESS
        slo = f"{slo_ms:.3f}ms"
        with joined(members, domain=domain, device=options.device, slo=slo, profile=profile, follow=follow):
            return _measured(options, slo_ms, members, Eye(domain))


def _slo_ms(options: Options, stage: Stage) -> float:
    """A multiple of the p99 alone, on other arrivals."""
    terms = Terms(Poisson(options.rate_hz, seed=options.seed + 1), seconds=ALONE_S)
    answer = stage.run(settings.alone("inference", mps=options.mps), terms).answers["inference"]
    p99_ms = measures.summary(measures.latencies_ms(answer), None)["p99_ms"]
    if p99_ms is None:
        raise ConfigError(f"--rate = {options.rate_hz:g}: no request arrived in {ALONE_S:g} s; give more, or --slo")
    return float(round(SLO_FACTOR * p99_ms, 3))


def _measured(options: Options, slo_ms: float, members: dict[Role, Channel], eye: Eye) -> Timeline:
    trainer, service = members["training"], members["inference"]
    _record(trainer, start_s=time.monotonic(), settle_s=0.0, seconds=0.0)
    trainer.receive(WARM_UP_TIMEOUT_S)
    start_s = time.monotonic() + START_DELAY_S
    _record(trainer, start_s=start_s, settle_s=options.settle_s, seconds=options.seconds)
    arrivals = Poisson(options.rate_hz, seed=options.seed)
    served_s = options.settle_s + options.seconds + AFTER_S
    service.send("run", start_s=start_s, seconds=served_s, arrivals=arrivals_data.to_json(arrivals))
    begin_s = start_s + options.settle_s
    time.sleep(max(0.0, begin_s - time.monotonic()))
    watched = watch(eye, round((begin_s + options.seconds) * 1e9))
    answers = {channel: channel.receive(served_s + RUN_GRACE_S) for channel in (trainer, service)}
    begin_ns = round(begin_s * 1e9)
    return assembled(
        options,
        slo_ms,
        requests=_requests(answers[service], begin_ns - round(start_s * 1e9)),
        watched=watched,
        trained=answers[trainer],
        begin_ns=begin_ns,
        sm_total=eye.sm_total,
    )


def _record(trainer: Channel, **when_s: float) -> None:
    trainer.send("instrument", name="training-ops", **when_s)


def _requests(answer: dict[str, Sequence[float]], shift_ns: int) -> list[Request]:
    times_s = zip(answer["scheduled_s"], answer["begun_s"], answer["done_s"], strict=True)
    return [Request(*(round(s * 1e9) - shift_ns for s in each)) for each in times_s]


def assembled(
    options: Options,
    slo_ms: float,
    *,
    requests: Iterable[Request],
    watched: Watched,
    trained: dict[str, Any],
    begin_ns: int,
    sm_total: int,
) -> Timeline:
    """Everything that falls into the stretch, from its begin. Pure."""
    length_ns = round(options.seconds * 1e9)
    changes = [(max(0, at_ns - begin_ns), state) for at_ns, state in watched.changes]
    changes[0] = (0, changes[0][1])  # the first look is the begin
    steps_ns = [at_ns - begin_ns for at_ns in trained["steps_ns"]]
    closed = [s for s in _told(changes, length_ns, lambda state: "closed" if state.gate else "") if s.name]
    return Timeline(
        options,
        slo_ms,
        requests=tuple(r for r in requests if r.done_ns > 0 and r.arrived_ns < length_ns),
        closed=tuple(closed),
        plans=tuple(_told(changes, length_ns, service_plan)),
        trainer_plans=tuple(_told(changes, length_ns, trainer_plan)),
        sm_share=tuple(_sm_shares(changes, sm_total)),
        sm_total=sm_total,
        steps=tuple(
            Stretch(max(0, begin), min(length_ns, end), "step")
            for begin, end in pairwise(steps_ns)
            if begin < length_ns and end > 0
        ),
        ops=tuple(_ops(trained["ops"], begin_ns, length_ns, closed)),
        gap_ns=(watched.median_gap_ns, watched.longest_gap_ns),
    )


def _ops(spans: Sequence[Span], begin_ns: int, length_ns: int, closed: Sequence[Stretch]) -> Iterator[Op]:
    for name, kind, lane, span_begin_ns, span_end_ns, before_gated in spans:
        first_ns, last_ns = max(0, span_begin_ns - begin_ns), min(length_ns, span_end_ns - begin_ns)
        if before_gated:  # from the close on, the host may as well have waited: shown as if it had
            met = next((s for s in closed if s.begin_ns < last_ns and s.end_ns > first_ns), None)
            last_ns = max(first_ns, met.begin_ns) if met else last_ns
        if first_ns < last_ns:
            yield Op(first_ns, last_ns, name, kind, lane)


def service_plan(state: State) -> str:
    """How the service closes its gate, in a few words."""
    if state.slice_ns:
        return f"turns of {format_ns(state.slice_ns)}"
    if state.lead_ns >= layout.LEAD_ALWAYS:
        return "closed in requests"
    limit = "" if state.queue_limit >= layout.NO_QUEUE_LIMIT else f", at most {state.queue_limit} open"
    if state.lead_ns <= layout.LEAD_NEVER:
        return f"open{limit}"
    return f"by slack{limit}"  # the lead itself is adjusted all the time


def trainer_plan(state: State) -> str:
    """What the trainer may have."""
    sms = f"{state.sm_wanted} SMs" if state.sm_wanted else "all SMs"
    return f"{sms}, {state.rate_ppm / 1e4:.0f} % of the time" if state.rate_ppm else sms


def queue_lengths(requests: Sequence[Request]) -> list[tuple[int, int]]:
    """(ns, requests that have arrived and are not done) at every change."""
    changes = sorted([(r.arrived_ns, 1) for r in requests] + [(r.done_ns, -1) for r in requests])
    lengths: list[tuple[int, int]] = []
    length = 0
    for at_ns, change in changes:
        length += change
        lengths.append((at_ns, length))
    return lengths


def lanes(requests: Sequence[Request]) -> list[int]:
    """A lane for each request, in the order of arrival: the first that is free when it arrives."""
    free_ns: list[int] = []
    chosen: list[int] = []
    for request in requests:
        lane = next((i for i, until_ns in enumerate(free_ns) if until_ns <= request.arrived_ns), len(free_ns))
        free_ns[lane : lane + 1] = [request.done_ns]
        chosen.append(lane)
    return chosen


def _told(changes: Sequence[tuple[int, State]], length_ns: int, tell: Callable[[State], str]) -> list[Stretch]:
    """Stretches over which the same is told of the state."""
    told: list[Stretch] = []
    ends_ns = [*(at_ns for at_ns, _ in changes[1:]), length_ns]
    for (begin_ns, state), end_ns in zip(changes, ends_ns, strict=True):
        name = tell(state)
        if told and told[-1].name == name:
            begin_ns = told.pop().begin_ns  # noqa: PLW2901 -- one stretch with the last
        told.append(Stretch(begin_ns, min(length_ns, end_ns), name))
    return told


def _sm_shares(changes: Sequence[tuple[int, State]], sm_total: int) -> Iterator[tuple[int, float]]:
    last = None
    for at_ns, state in changes:
        share = state.sm_granted / sm_total if state.sm_granted and sm_total else 1.0
        if share != last:
            yield at_ns, share
        last = share
