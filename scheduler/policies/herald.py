"""herald: opens the gate to requests that have slack, as far as the SLO allows; shares SMs where that is worth more.

Of every device it chooses a mode: closed (as `strict`), open, or open with the trainers kept to a share of the SMs.
In an open mode a service closes its gate when

    some request's slack is used up         slack = deadline - margin - remaining work ahead of it and its own, alone
    or more than `limit` requests are open
    (never, where requests are in time without: then trainers need no hook either, and pay nothing for it)

The first rule is the guarantee of each request: what is open is served alone from then on and is in time. But slack
that one request spends is slack that those behind it lack, so the second keeps some for them: `limit` is the most with
which a queue of such requests, played through at the present load and inflation, is in time often enough (`queueing`),
moved by the leeway, which corrects that model by what came of it (`feedback`). The load is a long window of arrivals,
which starts anew where a short one shows a change that chance does not explain; inflation and training's rates are
learnt in each mode, of each pair of jobs (`learning`). A mode that was not tried is tried for a few requests, under the
same two rules: the open mode with one open request, a share with as many as the open mode may have, and only where its
SMs may be worth more than the best mode so far. Then the mode with the most training is chosen, by the same model, and
kept unless another is better by KEPT, or by HYSTERESIS where it takes a share.

Arguments leave parts out, for ablations: no-space (no SM shares), no-time (the gate never closes), no-laxity (it always
closes when a request begins), no-feedback (no leeway).
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from herald.config import did_you_mean
from herald.errors import ConfigError
from herald.layout import LEAD_NEVER, NO_QUEUE_LIMIT
from herald.scheduler import feedback, queueing
from herald.scheduler.prediction import RELEASE_NS, paced_plan, residual_ns
from herald.scheduler.snapshot import (
    CLOSED,
    FREE_PLAN,
    OPEN,
    STRICT_PLAN,
    Decision,
    Evidence,
    JobKey,
    Memory,
    Mode,
    Plan,
    Service,
    Snapshot,
    Trainer,
    TrainerPlan,
)

# A mode is tried once so many requests ran beside training from begin to end, and for so long; or, where hardly any
# gets that far, for long without.
ALONE_REQUESTS = 20
TRIED_REQUESTS = 12
TRIED_NS = 1_500_000_000
IN_VAIN_NS = 10_000_000_000
LONGEST_HARM = 2.0  # of a trainer's longest op, in what training as a whole costs requests per time
GUESSED_INFLATION = 2.0  # of a mode that was not tried: two jobs that share evenly
HOPED_INFLATION = 1.2  # where not even this would leave a request any slack, nothing is tried
HARSH_INFLATION = 4.0  # of one in which not even a few requests ran
A_FEW = 3
WORTH_A_SHARE = 1.1  # SM shares exist to bring inflation down: below this there is nothing to bring down
STILL_TRYING = 1.3  # a mode in use is tried for longer than is asked of one that is not: the edge is crossed once
# Of training with its SMs, as an exponent: of four trainers on an H200 it is 0.7 to 1.8 (116 of 132 SMs: 0.91 to 0.79).
HOPED_SCALING = 0.5
HYSTERESIS = 1.05  # of a mode with a share: SMs change hands, and training's memory is warm for another stream
KEPT = 1.01  # of one without
WORTH_MORE = 0.97  # of what the open mode is worth: a share that comes near it leaves hope for a larger one
UNLUCKY = -1.5  # with less leeway, nothing new is tried, and what is being tried has to wait
HOPELESS = 4.0  # misses on training's account: what had so many was tried enough
SHARES = (1 / 8, 1 / 2)  # of the SMs, kept free of trainers
SM_GROUP = 8


@dataclass(frozen=True)
class Herald:
    """Space and time by SLO."""

    space: bool = True
    time: bool = True
    laxity: bool = True
    feedback: bool = True
    quantile: float = (
        0.95  # of remaining time: of higher ones too little is known, and what they hold is mostly the host
    )
    inflation: float = 1.05  # of remaining work once the gate is closed: light ops pass it, and the memory is shared

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:  # noqa: ARG002 - all that matters is relative
        """A mode for every device with services; from it their plans and their trainers' shares."""
        modes: dict[str, Mode] = {}
        plans: dict[JobKey, Plan] = {}
        trainer_plans: dict[JobKey, TrainerPlan] = {}
        for device in sorted({service.device for service in snapshot.services}):
            view = _View.of(snapshot, device, self._may_try)
            prospects = self._prospects(view)
            mode = modes[device] = self._mode(view, prospects)
            plans |= self._plans(view, mode, prospects)
            share = TrainerPlan(sm_count=mode.sm_count)
            trainer_plans |= {trainer.key: share for trainer in view.trainers}
        return Decision(plans, trainer_plans, modes)

    def _prospects(self, view: "_View") -> "dict[Mode, _Prospect | None]":
        """Of every mode that may be taken; None of one that was not tried."""
        if not view.trainers or not view.knows_services:
            return {}
        return {
            mode: self._prospect(view, mode) if mode.closed or mode in view.tried else None
            for mode in self._candidates(view)
        }

    def _mode(self, view: "_View", prospects: "Mapping[Mode, _Prospect | None]") -> Mode:
        if not prospects:
            return CLOSED
        # An open mode in which nothing may be open is the closed one.
        known = {
            mode: prospect
            for mode, prospect in prospects.items()
            if prospect is not None and (mode.closed or any(prospect.limits) or not self.laxity)
        }
        closed = known.get(CLOSED)
        if closed is not None and closed.excess > queueing.UNAVOIDED and any(p.excess <= 0 for p in known.values()):
            del known[CLOSED]  # it protects too little: what still runs is longer than the slack
        worth = {mode: prospect.worth for mode, prospect in known.items()}
        best = max(worth, key=worth.__getitem__, default=OPEN)
        may_try = (view.may_try_open, view.may_try_shares)
        untried = [mode for mode, prospect in prospects.items() if prospect is None and may_try[mode.sm_count > 0]]
        # A trial that has begun goes on: whatever says no to it now says yes again as soon as it is over.
        if view.mode in untried:
            return view.mode
        if untried and self._is_worth_trying(view, untried[0], prospects, worth):
            return untried[0]
        if view.mode not in prospects:
            return best
        worth.setdefault(best, 0.0)
        kept = HYSTERESIS if best.sm_count not in (0, view.mode.sm_count) else KEPT
        return view.mode if worth.get(view.mode, 0.0) * kept >= worth[best] else best

    def _is_worth_trying(
        self, view: "_View", mode: Mode, prospects: "Mapping[Mode, _Prospect | None]", worth: Mapping[Mode, float]
    ) -> bool:
        open_ = prospects.get(OPEN)
        # Where a closed gate protects little and an open one may not be, a share is for the service.
        limits = open_.limits if open_ else [0] * len(view.known)
        if any(known.is_delayed and not limit for known, limit in zip(view.known, limits, strict=True)):
            return True
        if open_ and any(
            prospect.worth < WORTH_MORE * open_.worth and (any(limits) or not view.is_gentler(tried))
            for tried, prospect in prospects.items()
            if prospect and tried.sm_count
        ):
            return False  # what a small share does not bring, a larger one does not
        return view.hope(mode) >= (HYSTERESIS if mode.sm_count else KEPT) * max(worth.values(), default=0.0)

    def _may_try(self, services: Collection["_Known"]) -> tuple[bool, bool]:
        """Whether these could bear a mode that nothing is known of: (open, with a share)."""
        if not self.time:
            return True, True
        lucky = not self.feedback or all(known.leeway >= UNLUCKY for known in services)
        slack = [queueing.best_rung(known.queue(HOPED_INFLATION), known.target) > 0 for known in services]
        shares = lucky and all(has or known.is_delayed for has, known in zip(slack, services, strict=True))
        return shares and all(slack), shares

    def _candidates(self, view: "_View") -> list[Mode]:
        if not self.laxity and not self.space:
            return [CLOSED]
        closed = [CLOSED] if self.time else []
        # Larger and larger shares, as long as there is inflation to bring down.
        candidates = [*closed, OPEN]
        guess = 1.0 if view.may_try_open else GUESSED_INFLATION
        for share in view.shares() if self.space else ():
            inflation = max([view.inflation(known.key, candidates[-1], guess) for known in view.known])
            if inflation <= WORTH_A_SHARE and share not in view.tried and share != view.mode:
                break
            candidates.append(share)
        return candidates

    def _prospect(self, view: "_View", mode: Mode) -> "_Prospect":
        rate_idle, rate_beside = view.training(mode)
        relative = round(10 * rate_beside / rate_idle) / 10 if rate_idle and rate_beside else queueing.BESIDE_RATE
        idle = open_ = 1.0
        excess = -1.0
        limits = []
        for known in view.known:
            queue = known.queue(view.inflation(known.key, mode))
            limits.append(self._limit(known, mode, queue, relative))
            comes = queueing.play(queue, limits[-1])
            idle = min(idle, comes.idle)
            open_ = min(open_, comes.idle + comes.beside)
            if known.has_slo:
                excess = max(excess, comes.late - (1 - known.target))
        return _Prospect(tuple(limits), idle * rate_idle + (open_ - idle) * rate_beside, excess)

    def _limit(self, known: "_Known", mode: Mode, queue: queueing.Queue | None, beside_rate: float = 1.0) -> int:
        """How many requests may be open before the gate closes: one of `queueing.LIMITS`. ``queue``, ``beside_rate``
        (of training, see `queueing.best_rung`): of a mode that was tried.
        """
        if mode.closed or not self.laxity:
            return 0
        if not self.time:
            return queueing.FREE
        if not known.has_slo:
            return 0
        # To try a mode at all, one request has to be open in it; the slack that it spends is its own.
        if queue is None:
            return int(known.slo - known.margin(GUESSED_INFLATION) > known.spread or known.is_delayed)
        leeway = known.leeway if self.feedback else 0.0
        # With leeway to spare, as if twice as many requests might be late.
        target = 2 * known.target - 1 if leeway >= feedback.MOST else known.target
        return queueing.LIMITS[max(0, queueing.best_rung(queue, target, beside_rate) + min(0, int(leeway)))]

    def _plans(self, view: "_View", mode: Mode, prospects: "Mapping[Mode, _Prospect | None]") -> dict[JobKey, Plan]:
        if not view.knows_services:
            return {service.key: STRICT_PLAN for service in view.services}
        limits = prospect.limits if (prospect := prospects.get(mode)) else self._trial_limits(view, mode, prospects)
        return {
            known.key: self._plan(view, known, mode, limit) for known, limit in zip(view.known, limits, strict=True)
        }

    def _trial_limits(self, view: "_View", mode: Mode, prospects: "Mapping[Mode, _Prospect | None]") -> tuple[int, ...]:
        """Of a mode that was not tried: of a share those of the open mode, than which it can only be gentler."""
        limits = tuple([self._limit(known, mode, None) for known in view.known])
        if not self.time or not mode.sm_count or not (open_ := prospects.get(OPEN)):
            return limits
        return tuple([max(one, min(limit, queueing.NO_LIMIT)) for one, limit in zip(limits, open_.limits, strict=True)])

    def _plan(self, view: "_View", known: "_Known", mode: Mode, limit: int) -> Plan:
        if limit == queueing.FREE:
            # Without time as a means there is only space to choose, and hooks that rest would count nothing.
            return FREE_PLAN if self.time else Plan(LEAD_NEVER, NO_QUEUE_LIMIT - 1)
        if limit == 0:
            return STRICT_PLAN
        limit = limit if limit < queueing.NO_LIMIT else NO_QUEUE_LIMIT
        margin = known.margin(view.inflation(known.key, mode, guess=1.0 if known.is_delayed else GUESSED_INFLATION))
        margin_ns = round(margin * known.mean_ns) + RELEASE_NS
        return paced_plan(margin_ns, known.alone_ns, limit, inflation=self.inflation, quantile=self.quantile)


class _Prospect(NamedTuple):
    """What a mode comes to."""

    limits: tuple[int, ...]  # of open requests, by service
    worth: float  # training, of all that there could be: 1 is every trainer at its best all the time
    excess: float  # share of requests that are late, beyond what their target allows, of the service with most


class _Known(NamedTuple):
    """A service that is known alone, as the model has it: in mean service times alone."""

    key: JobKey
    target: float
    has_slo: bool
    mps: bool
    load: float  # arrival rate x mean time, of all services of the device
    slo: float
    residual: float  # what still runs once the gate closes
    spread: float  # a long service time
    alone_ns: float  # the same, not in means
    leeway: float  # in rungs
    mean_ns: float

    @classmethod
    def of(cls, service: Service, memory: Memory, residual_ns: int, load: float) -> "_Known":
        mean_ns = memory.alone_mean_ns[service.key]
        alone_ns = memory.alone_high_ns.get(service.key, 2 * mean_ns)  # before a long time is known, twice the mean
        return cls(
            key=service.key,
            target=service.target,
            has_slo=service.slo_ns is not None,
            mps=service.mps,
            load=load,
            slo=(service.slo_ns or 0) / mean_ns,
            residual=residual_ns / mean_ns,
            spread=alone_ns / mean_ns,
            alone_ns=alone_ns,
            leeway=memory.leeway.get(service.key, 0.0),
            mean_ns=mean_ns,
        )

    @property
    def is_delayed(self) -> bool:
        """What still runs takes longer than a request: a closed gate protects little, and SMs of its own may more."""
        return self.has_slo and self.residual > 1

    def margin(self, inflation: float) -> float:
        """What a request loses after a close: under MPS, what still runs runs beside it, as training did before."""
        if inflation <= 1:
            return 0.0 if self.mps else self.residual
        harm = LONGEST_HARM * (1 - 1 / inflation)
        return self.residual * harm if self.mps and harm < 1 else self.residual

    def queue(self, inflation: float) -> queueing.Queue:
        return queueing.on_grid(self.load, inflation, self.slo, self.margin(inflation), self.spread)


class _View(NamedTuple):
    """One device of a snapshot, and what is known of its modes."""

    services: tuple[Service, ...]
    trainers: tuple[Trainer, ...]
    mode: Mode
    known: tuple[_Known, ...]  # the services; none before all of them are known alone
    may_try_open: bool  # where it was not tried
    may_try_shares: bool
    tried: Mapping[Mode, Evidence]  # modes in which requests ran for long enough to tell what it does to them
    best_idle: Mapping[JobKey, float]  # the best rate of each trainer while no request was open, in any mode

    @classmethod
    def of(cls, snapshot: Snapshot, device: str, may_try: Callable[[Collection[_Known]], tuple[bool, bool]]) -> "_View":
        # Lists throughout, not generators, which cost twice as much: this runs at every tick.
        memory = snapshot.memory
        services = tuple([s for s in snapshot.services if s.device == device])
        trainers = tuple([t for t in snapshot.trainers if t.device == device])
        seen = {mode: evidence for (where, mode), evidence in memory.evidence.items() if where == device}
        present = memory.mode.get(device, CLOSED)
        known: tuple[_Known, ...] = ()
        if all([memory.alone_requests.get(s.key, 0) >= ALONE_REQUESTS for s in services]):
            residual = residual_ns(snapshot, device)
            # Services of a device wait for each other: to each, all requests are load.
            load = sum([memory.load.get(s.key, 0.0) for s in services])
            known = tuple([_Known.of(s, memory, residual, load) for s in services])
        tried = {mode: found for mode, found in seen.items() if mode.closed or _is_enough(found)}
        # Where nothing may be tried, what is known of the mode in use has to do: it was enough to choose it.
        is_unsure = present in tried and not present.closed and not _is_enough(tried[present], STILL_TRYING)
        may_try_open, may_try_shares = False, False
        if known and (is_unsure or len(tried) < 2 + len(SHARES)):
            may_try_open, may_try_shares = may_try(known)
        if is_unsure and may_try_open:
            del tried[present]
        best_idle = {t.key: max([0.0, *[e.rate_idle.get(t.key, 0.0) for e in seen.values()]]) for t in trainers}
        return cls(services, trainers, present, known, may_try_open, may_try_shares, tried, best_idle)

    @property
    def knows_services(self) -> bool:
        """Whether enough requests of every service ran alone."""
        return len(self.known) == len(self.services)

    def inflation(self, service: JobKey, mode: Mode, guess: float = GUESSED_INFLATION) -> float:
        """What beside training in that mode does to the service times; ``guess`` where it was not tried: a share can
        only be gentler than the open mode.
        """
        if mode.closed:
            return 1.0
        tried = self.tried.get(mode)
        if tried is None:
            return min(guess, self.inflation(service, OPEN, guess)) if mode.sm_count else guess
        return tried.inflation.get(service, HARSH_INFLATION) if tried.beside_requests >= A_FEW else HARSH_INFLATION

    def is_gentler(self, mode: Mode) -> bool:
        """Whether a mode with a share, which was tried, brings down what the open mode does to some service."""
        return any([WORTH_A_SHARE * self.inflation(k.key, mode) <= self.inflation(k.key, OPEN) for k in self.known])

    def training(self, mode: Mode) -> tuple[float, float]:
        """(idle, beside requests): what training has in that mode, by weight; 1 is all of it at its best rate."""
        # Behind a closed gate a trainer with all SMs is, while no request is open, what it is in the open mode.
        tried = self.tried.get(mode) or (self.tried.get(OPEN) if mode.closed else None)
        if tried is None:
            return 1.0, 0.0
        weights = idle = beside = 0.0
        for trainer in self.trainers:
            key, weight, best = trainer.key, trainer.weight, self.best_idle[trainer.key]
            weights += weight
            if best <= 0:
                idle += weight
                continue
            idle += weight * tried.rate_idle.get(key, best) / best
            if not mode.closed:
                beside += weight * min(1.0, tried.rate_beside.get(key, 0.0) / best)
        return idle / weights, beside / weights

    def hope(self, mode: Mode) -> float:
        """What a mode may be worth that was not tried: requests cost training nothing, and it lacks only the SMs."""
        if not mode.sm_count:
            return 1.0
        return math.pow(mode.sm_count / self.trainers[0].sm_total, HOPED_SCALING)

    def shares(self) -> tuple[Mode, ...]:
        """Open modes with a part of the SMs kept free; none where some job cannot."""
        totals = {trainer.sm_total for trainer in self.trainers}
        if len(totals) != 1 or not all(s.mps for s in self.services):
            return ()
        return _shares(totals.pop())


@cache
def _shares(total: int) -> tuple[Mode, ...]:
    asides = sorted({round(total * share / SM_GROUP) * SM_GROUP for share in SHARES})
    return tuple(Mode(closed=False, sm_count=total - aside) for aside in asides if 0 < aside < total)


def _is_enough(seen: Evidence, times: float = 1.0) -> bool:
    in_vain = seen.time_ns >= times * IN_VAIN_NS or seen.missed >= HOPELESS
    return in_vain or (seen.beside_requests >= times * TRIED_REQUESTS and seen.time_ns >= times * TRIED_NS)


def make(arguments: str) -> Herald:
    """The policy without the parts that ``arguments`` names, as in "no-space,no-feedback". Raises ConfigError."""
    parts = {"no-space": "space", "no-time": "time", "no-laxity": "laxity", "no-feedback": "feedback"}
    left_out = [word for word in arguments.split(",") if word]
    for word in left_out:
        if word not in parts:
            raise ConfigError(
                f"herald cannot do {word!r}: allowed are {', '.join(parts)}{did_you_mean(word, tuple(parts))}"
            )
    return Herald(**{parts[word]: False for word in left_out})
