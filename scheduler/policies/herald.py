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

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from herald.config import did_you_mean
from herald.errors import ConfigError
from herald.layout import NO_QUEUE_LIMIT
from herald.scheduler import feedback, queueing
from herald.scheduler.device_view import GUESSED_INFLATION, WORTH_A_SHARE, DeviceView, KnownService
from herald.scheduler.prediction import RELEASE_NS, paced_plan
from herald.scheduler.snapshot import (
    CLOSED,
    FREE_PLAN,
    GATED_FREE_PLAN,
    OPEN,
    STRICT_PLAN,
    Decision,
    JobKey,
    Mode,
    Plan,
    Snapshot,
    TrainerPlan,
)

HOPED_INFLATION = 1.2  # where not even this would leave a request any slack, nothing is tried (`_has_slack`)
HYSTERESIS = 1.05  # of a mode with a share: SMs change hands, and training's memory is warm for another stream
KEPT = 1.01  # of one without
WORTH_MORE = 0.97  # of what the open mode is worth: a share that comes near it leaves hope for a larger one
UNLUCKY = -1.5  # with less leeway, nothing new is tried, and what is being tried has to wait


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
            view = DeviceView.of(snapshot, device, self._may_try)
            prospects = self._prospects(view)
            mode = modes[device] = self._mode(view, prospects)
            plans |= self._plans(view, mode, prospects)
            share = TrainerPlan(sm_count=mode.sm_count)
            trainer_plans |= {trainer.key: share for trainer in view.trainers}
        return Decision(plans, trainer_plans, modes)

    def _prospects(self, view: DeviceView) -> "dict[Mode, _Prospect | None]":
        """Of every mode that may be taken; None of one that was not tried."""
        if not view.trainers or not view.knows_services:
            return {}
        return {
            mode: self._prospect(view, mode) if mode.closed or mode in view.tried else None
            for mode in self._candidates(view)
        }

    def _mode(self, view: DeviceView, prospects: "Mapping[Mode, _Prospect | None]") -> Mode:
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
        self, view: DeviceView, mode: Mode, prospects: "Mapping[Mode, _Prospect | None]", worth: Mapping[Mode, float]
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

    def _may_try(self, services: Collection[KnownService]) -> tuple[bool, bool]:
        """Whether these could bear a mode that nothing is known of: (open, with a share)."""
        if not self.time:
            return True, True
        lucky = not self.feedback or all(known.leeway >= UNLUCKY for known in services)
        slack = [self._has_slack(known) for known in services]
        shares = lucky and all(has or known.is_delayed for has, known in zip(slack, services, strict=True))
        return shares and all(slack), shares

    @staticmethod
    def _has_slack(known: KnownService) -> bool:
        """For a trial; or nothing to lose by one, where even a closed gate is late with more than the target allows."""
        if queueing.best_rung(known.queue(HOPED_INFLATION), known.target) > 0:
            return True
        # Without MPS contexts take turns, and a trial would leave a queue behind.
        return known.mps and known.has_slo and queueing.play(known.queue(1.0), 0).late > 1 - known.target

    def _candidates(self, view: DeviceView) -> list[Mode]:
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

    def _prospect(self, view: DeviceView, mode: Mode) -> "_Prospect":
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

    def _limit(self, known: KnownService, mode: Mode, queue: queueing.Queue | None, beside_rate: float = 1.0) -> int:
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

    def _plans(self, view: DeviceView, mode: Mode, prospects: "Mapping[Mode, _Prospect | None]") -> dict[JobKey, Plan]:
        if not view.knows_services:
            return {service.key: STRICT_PLAN for service in view.services}
        limits = prospect.limits if (prospect := prospects.get(mode)) else self._trial_limits(view, mode, prospects)
        return {
            known.key: self._plan(view, known, mode, limit) for known, limit in zip(view.known, limits, strict=True)
        }

    def _trial_limits(
        self, view: DeviceView, mode: Mode, prospects: "Mapping[Mode, _Prospect | None]"
    ) -> tuple[int, ...]:
        """Of a mode that was not tried: of a share those of the open mode, than which it can only be gentler."""
        limits = tuple([self._limit(known, mode, None) for known in view.known])
        if not self.time or not mode.sm_count or not (open_ := prospects.get(OPEN)):
            return limits
        return tuple([max(one, min(limit, queueing.NO_LIMIT)) for one, limit in zip(limits, open_.limits, strict=True)])

    def _plan(self, view: DeviceView, known: KnownService, mode: Mode, limit: int) -> Plan:
        if limit == queueing.FREE:
            return FREE_PLAN if self.time else GATED_FREE_PLAN  # which SMs are worth it is told by what hooks count
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
