"""What is remembered from look to look: the only state behind a pure policy, kept by whoever calls it.

Everything is kept by the jobs' *names*, so that a job that comes back finds what was learnt of it beside the others.

    time alone     of the requests that ran with the gate closed all the while, which the jobs' agents count
    inflation      of a service in a mode: the mean time of requests that ran with the gate open all the while, over
                   that alone
    load           arrivals, by windows of three lengths: a longer one starts anew from a shorter one where chance does
                   not explain the two
    rates          of a trainer in a mode: what it issued = rate idle x idle time + rate beside x time beside requests,
                   by least squares over looks, held near their common mean where looks do not tell the two apart

Windows forget: what is old counts half after HALF_LIFE_NS of the mode in question. The first moments of a mode teach
nothing: what began in the one before is still under way.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from herald.job_view import JobView
from herald.scheduler.fading import FadingSum
from herald.scheduler.feedback import Account
from herald.scheduler.recent import Windows
from herald.scheduler.snapshot import (
    CLOSED,
    FREE_PLAN,
    Decision,
    Evidence,
    JobKey,
    Memory,
    Mode,
    Service,
    Snapshot,
    Trainer,
)

HALF_LIFE_NS = 60e9
FORGET_NS = 300_000_000_000  # a mode that was not in use for so long is tried again: jobs have phases
FORGET_NAME_NS = 24 * 3_600_000_000_000  # a service that does not come back for so long is another one
SETTLING_NS = 250_000_000
JOINING_NS = 1_000_000_000  # what jobs do first is not what they do
HELD = 0.01  # weight of the common mean in the least squares
LOAD_HALF_LIVES_NS = (0.25e9, 1e9, 20e9)  # of arrivals: the shortest is for hundreds a second
SURPRISE = 4.0  # standard deviations of a count of arrivals that are not put down to chance
LONGEST_LOOK_NS = 2_000_000_000  # a look after a longer pause is about no mode in particular


@dataclass
class _TimeAlone:
    times_ns: FadingSum = field(default_factory=FadingSum)
    high_ns: int | None = None  # the agent's high quantile
    high_is_asked: bool = False  # it is of the quantile that a plan asked for, not of the agent's own choice

    def add(self, requests: int, total_ns: int, seen: Service) -> None:
        self.times_ns.add(requests, total_ns, half_life=500)  # services change, too
        # Plans without a pace ask for no quantile. Were the agent's own taken then, a policy that goes from one kind of
        # plan to the other by what it knows would know something else after it, and go back, tick by tick.
        if seen.alone_ns is not None and (seen.alone_is_asked or not self.high_is_asked):
            self.high_ns, self.high_is_asked = seen.alone_ns, seen.alone_is_asked


@dataclass
class _Window:
    """Exponentially weighted counts."""

    half_life_ns: float
    count: float = 0
    time_ns: float = 0

    def add(self, count: int, elapsed_ns: int) -> None:
        keep = 0.5 ** (elapsed_ns / self.half_life_ns)
        self.count = self.count * keep + count
        self.time_ns = self.time_ns * keep + elapsed_ns


@dataclass
class _Rate:
    """Arrivals per time: a long window, which starts anew from a short one once chance does not explain the two.

    A long window alone is late by its length after the load has changed, a short one alone is mostly chance.
    """

    windows: tuple[_Window, ...] = field(default_factory=lambda: tuple(map(_Window, LOAD_HALF_LIVES_NS)))
    per_ns: float = 0.0  # told: the same while chance explains the difference, so that plans stay

    def add(self, count: int, elapsed_ns: int) -> None:
        for window in self.windows:
            window.add(count, elapsed_ns)
        for short, long in pairwise(self.windows):
            expected = long.count / long.time_ns * short.time_ns
            if abs(short.count - expected) > SURPRISE * _deviation(expected):
                long.count, long.time_ns = short.count, short.time_ns
        if abs(long.count - self.per_ns * long.time_ns) > _deviation(long.count):
            self.per_ns = long.count / long.time_ns


def _deviation(count: float) -> float:
    """Of a Poisson count in an exponential window, whose old half counts for little."""
    return math.sqrt((count + 1) / 2)


@dataclass
class _ServiceWindow:
    """Of one service in one mode."""

    requests: float = 0
    total_ns: float = 0
    missed: float = 0  # on training's account

    def add(self, was: Service, now: Service, keep: float) -> None:
        missed = (now.missed - now.missed_anyway) - (was.missed - was.missed_anyway)
        self.requests = self.requests * keep + now.beside_requests - was.beside_requests
        self.total_ns = self.total_ns * keep + now.beside_ns - was.beside_ns
        self.missed = self.missed * keep + max(0, missed)

    def inflation(self, alone_ns: float) -> float | None:
        return self.total_ns / self.requests / alone_ns if self.requests >= 1 else None


@dataclass
class _TrainerWindow:
    """Of one trainer in one mode: the sums of least squares for work = idle x rate + beside x rate."""

    idle_idle: float = 0
    idle_beside: float = 0
    beside_beside: float = 0
    idle_work: float = 0
    beside_work: float = 0

    def add(self, idle_ns: float, beside_ns: float, work_ns: float, keep: float) -> None:
        self.idle_idle = self.idle_idle * keep + idle_ns * idle_ns
        self.idle_beside = self.idle_beside * keep + idle_ns * beside_ns
        self.beside_beside = self.beside_beside * keep + beside_ns * beside_ns
        self.idle_work = self.idle_work * keep + idle_ns * work_ns
        self.beside_work = self.beside_work * keep + beside_ns * work_ns

    def rates(self) -> tuple[float, float]:
        """(idle, beside). Looks that do not tell the two apart leave them near their common mean."""
        total = self.idle_idle + 2 * self.idle_beside + self.beside_beside
        if total <= 0:
            return 0.0, 0.0
        mean, held = (self.idle_work + self.beside_work) / total, HELD * total
        idle_idle, beside_beside = self.idle_idle + held, self.beside_beside + held
        idle_work, beside_work = self.idle_work + held * mean, self.beside_work + held * mean
        determinant = idle_idle * beside_beside - self.idle_beside**2
        idle = (idle_work * beside_beside - beside_work * self.idle_beside) / determinant
        beside = (beside_work * idle_idle - idle_work * self.idle_beside) / determinant
        return max(0.0, idle), max(0.0, beside)


@dataclass
class _ModeWindow:
    time_ns: float = 0
    seen_ns: int = 0
    services: dict[str, _ServiceWindow] = field(default_factory=dict)
    trainers: dict[str, _TrainerWindow] = field(default_factory=dict)


_Promise = tuple[str, int | None]  # a service's name and its SLO: another SLO is another account
_Group = tuple[str, tuple[str, ...], tuple[str, ...]]  # device, services, trainers


class Observer:
    """Makes snapshots with a memory. The daemon has one, and so has a simulated domain."""

    def __init__(self) -> None:
        self._alone: dict[str, _TimeAlone] = {}
        self._windows: dict[tuple[_Group, Mode], _ModeWindow] = {}
        self._accounts: dict[_Promise, Account] = {}
        self._rates: dict[str, _Rate] = {}
        self._modes: dict[str, Mode] = {}  # by device
        self._mode_since_ns: dict[str, int] = {}
        self._free: set[str] = set()  # devices of which no service closes the gate
        self._joined_ns: dict[str, int] = {}  # when a job last joined or left, by device
        self._seen_ns: dict[str, int] = {}  # when a service of that name was last there
        self._last: Snapshot | None = None
        self._last_ns = 0
        self._recent = Windows()

    def observe(self, jobs: Iterable[JobView], now_ns: int) -> Snapshot:
        """The snapshot of the live rows now."""
        snapshot = Snapshot.of(jobs)
        if self._last is not None and 0 < now_ns - self._last_ns <= LONGEST_LOOK_NS:
            self._learn(self._last, snapshot, now_ns)
        self._last, self._last_ns = snapshot, now_ns
        self._seen_ns |= {service.name: now_ns for service in snapshot.services}
        memory = replace(self._memory(snapshot), recent=self._recent.look(snapshot.services, now_ns))
        return replace(snapshot, memory=memory)

    def decided(self, decision: Decision) -> None:
        """What was made of the last snapshot and holds from now on."""
        for device, mode in decision.modes.items():
            if mode != self._modes.get(device):
                self._mode_since_ns[device] = self._last_ns
        self._modes = dict(decision.modes)
        services = self._last.services if self._last else ()
        closing = {s.device for s in services if decision.plans.get(s.key) != FREE_PLAN}
        self._free = {s.device for s in services} - closing

    # ---- learning

    def _learn(self, before: Snapshot, after: Snapshot, now_ns: int) -> None:
        elapsed_ns = now_ns - self._last_ns
        services = {service.key: service for service in before.services}
        trainers = {trainer.key: trainer for trainer in before.trainers}
        for now in after.services:
            if (was := services.get(now.key)) is not None:
                self._learn_service(was, now, elapsed_ns)
        for device in {service.device for service in after.services}:
            group = _group(after, device)
            if _keys(after, device) != _keys(before, device):
                self._joined_ns[device] = now_ns
                for service in after.services:
                    if service.device == device and (account := self._accounts.get(_promise(service))):
                        account.forget()
            settled = self._last_ns - self._mode_since_ns.get(device, 0) >= SETTLING_NS
            if settled and self._last_ns - self._joined_ns.get(device, 0) >= JOINING_NS:
                pairs = [(services[s.key], s) for s in after.services if s.device == device and s.key in services]
                beside = [(trainers[t.key], t) for t in after.trainers if t.device == device and t.key in trainers]
                self._learn_mode(group, pairs, beside, elapsed_ns)

        self._windows = {at: window for at, window in self._windows.items() if now_ns - window.seen_ns < FORGET_NS}
        for name in [name for name, seen_ns in self._seen_ns.items() if now_ns - seen_ns > FORGET_NAME_NS]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        del self._seen_ns[name]
        self._alone.pop(name, None)
        self._rates.pop(name, None)
        self._accounts = {promise: account for promise, account in self._accounts.items() if promise[0] != name}

    def _learn_service(self, was: Service, now: Service, elapsed_ns: int) -> None:
        alone = self._alone.setdefault(now.name, _TimeAlone())
        alone.add(now.solo_requests - was.solo_requests, now.solo_ns - was.solo_ns, now)
        account = self._accounts.setdefault(_promise(now), Account())
        account.book(
            closed=self._modes.get(now.device, CLOSED).closed,
            idle_ns=elapsed_ns - (now.busy_ns - was.busy_ns),
            met=now.met - was.met,
            missed=now.missed - was.missed,
            anyway=now.missed_anyway - was.missed_anyway,
            target=now.target,
        )
        account.hear(
            free=now.device in self._free and not now.in_steps,
            beside=(now.beside_requests - was.beside_requests, now.beside_ns - was.beside_ns),
            solo=(now.solo_requests - was.solo_requests, now.solo_ns - was.solo_ns),
        )
        # A service's first step makes it an engine, whose work are its steps: another count, which begins lower.
        if now.in_steps == was.in_steps:
            self._rates.setdefault(now.name, _Rate()).add(now.work_begun - was.work_begun, elapsed_ns)

    def _learn_mode(
        self,
        group: _Group,
        services: list[tuple[Service, Service]],
        trainers: list[tuple[Trainer, Trainer]],
        elapsed_ns: int,
    ) -> None:
        mode = self._modes.get(group[0], CLOSED)
        if not trainers or any(now.sm_granted != mode.sm_count for _, now in trainers):
            return  # a share holds from a trainer's next step on
        issued = [(now.work_ns - was.work_ns, was.armed and now.armed) for was, now in trainers]
        was_open = any(now.busy_open_ns > was.busy_open_ns for was, now in services)
        if was_open and all(armed and work_ns == 0 for work_ns, armed in issued):
            return  # they issue nothing though they could: nobody is beside the requests
        window = self._windows.setdefault((group, mode), _ModeWindow())
        window.seen_ns = self._last_ns
        keep = 0.5 ** (elapsed_ns / HALF_LIFE_NS)
        window.time_ns = window.time_ns * keep + elapsed_ns
        for was, now in services:
            window.services.setdefault(now.name, _ServiceWindow()).add(was, now, keep)
        busy_ns = min(elapsed_ns, max(now.busy_ns - was.busy_ns for was, now in services))
        beside_ns = min(elapsed_ns, max(now.busy_open_ns - was.busy_open_ns for was, now in services))
        for trained, training in trainers:
            work_ns = training.work_ns - trained.work_ns
            if not (trained.armed and training.armed) or (work_ns == 0 and beside_ns + elapsed_ns > busy_ns):
                continue  # nobody counts what it issues, or it issues nothing though it could
            trainer = window.trainers.setdefault(training.name, _TrainerWindow())
            trainer.add(elapsed_ns - busy_ns, beside_ns, work_ns, keep)

    # ---- what is told

    def _memory(self, snapshot: Snapshot) -> Memory:
        alone = {s.key: self._alone[s.name] for s in snapshot.services if s.name in self._alone}
        mean_ns = {key: mean for key, known in alone.items() if (mean := known.times_ns.mean) is not None}
        return Memory(
            evidence=self._evidence(snapshot, mean_ns),
            mode=dict(self._modes),
            leeway={s.key: account.leeway for s in snapshot.services if (account := self._accounts.get(_promise(s)))},
            load={
                s.key: self._rates[s.name].per_ns * mean_ns[s.key]
                for s in snapshot.services
                if s.name in self._rates and s.key in mean_ns
            },
            alone_mean_ns=mean_ns,
            alone_high_ns={key: known.high_ns for key, known in alone.items() if known.high_ns is not None},
            alone_requests={key: known.times_ns.requests for key, known in alone.items()},
        )

    def _evidence(self, snapshot: Snapshot, mean_ns: Mapping[JobKey, float]) -> dict[tuple[str, Mode], Evidence]:
        found = {}
        groups = {_group(snapshot, device) for device in {service.device for service in snapshot.services}}
        for (group, mode), window in self._windows.items():
            if group not in groups:
                continue
            rates = {
                t.key: window.trainers[t.name].rates()
                for t in snapshot.trainers
                if t.device == group[0] and t.name in window.trainers
            }
            services = [s for s in snapshot.services if s.device == group[0] and s.name in window.services]
            inflation = {s.key: window.services[s.name].inflation(mean_ns[s.key]) for s in services if s.key in mean_ns}
            found[group[0], mode] = Evidence(
                time_ns=round(window.time_ns),
                beside_requests=min((window.services[s.name].requests for s in services), default=0.0),
                inflation={key: value for key, value in inflation.items() if value is not None},
                rate_beside={key: beside for key, (_, beside) in rates.items()},
                rate_idle={key: idle for key, (idle, _) in rates.items()},
                missed=max((window.services[s.name].missed for s in services), default=0.0),
            )
        return found


def _promise(service: Service) -> _Promise:
    return service.name, service.slo_ns


def _keys(snapshot: Snapshot, device: str) -> set[JobKey]:
    services = {service.key for service in snapshot.services if service.device == device}
    return services | {trainer.key for trainer in snapshot.trainers if trainer.device == device}


def _group(snapshot: Snapshot, device: str) -> _Group:
    return (
        device,
        tuple(sorted(s.name for s in snapshot.services if s.device == device)),
        tuple(sorted(t.name for t in snapshot.trainers if t.device == device)),
    )
