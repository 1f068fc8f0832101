"""One simulated service: its queue, what its agent learns and wants, and its row of the table.

The row is written when someone is about to look (`publish`), with what a real job's would show at that time.
"""

from bisect import insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from herald.fakes import MemoryTable
from herald.layout import NO_DEADLINE, JobRow
from herald.scheduler.simulator.closing import NEVER_NS, OPEN, Wish, Work, wish
from herald.scheduler.simulator.jobs import ServiceModel
from herald.scheduler.snapshot import Pace, Plan

_FEWEST = 20  # as LearntTime in hooks/csrc/progress.hpp
_DEFAULT_QUANTILE_PPM = 990_000
_DONE_NS = 0.5  # less than that left is a rounding error
_MEDIAN_PPM = 500_000
_STALE = 512  # requests in a row that did not run alone: nothing is known of alone any more
_DRAIN_NS = 10_000_000  # what training may have queued, of the time behind a closed gate


@dataclass(slots=True)
class _Request:
    arrival_ns: int
    alone_ns: int
    left_ns: float  # of it
    work_began_ns: int = 0
    holds: bool = True  # False once it overran the longest hold


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that is done. Times are ns."""

    arrival_ns: int
    latency_ns: int  # from arrival
    service_ns: int  # from when its own work began
    alone_latency_ns: int  # from arrival, had the service been alone


class _Learnt:
    """The last so many durations, and their quantiles."""

    def __init__(self, most: int = 256) -> None:
        self._in_order = deque[int](maxlen=most)
        self._sorted: list[int] = []

    def add(self, ns: int) -> None:
        if len(self._in_order) == self._in_order.maxlen:
            self._sorted.remove(self._in_order[0])
        self._in_order.append(ns)
        insort(self._sorted, ns)

    @property
    def ready(self) -> bool:
        return len(self._sorted) >= _FEWEST

    def quantile_ns(self, ppm: int) -> int:
        return self._sorted[min(len(self._sorted) - 1, len(self._sorted) * ppm // 1_000_000)]


class Serving:
    """The state of a service. Who owns time calls `advance` and `step`, who owns the gate calls `hold` and `let_go`."""

    def __init__(self, model: ServiceModel, row: int, table: MemoryTable, row_view: JobRow, seed: str) -> None:
        self.model = model
        self.bit = row_view.bit
        self._table = table
        self._row = row
        self._view = row_view
        self._random = Random(seed)
        self._arrivals_ns = [round(s * 1e9) for s in model.arrivals_s]
        self._next = 0
        self._start_ns = 0
        self.next_arrival_ns = NEVER_NS  # after the last, too
        self._open = deque[_Request]()
        self._solo, self._beside = _Learnt(), _Learnt()
        self._urgent = 0
        self._wish: Wish | None = OPEN  # until its `again_ns`; None: to be worked out
        self._busy_since_ns = 0
        self._alone_done_ns = 0  # when the last request would have been done, had the service been alone
        self._told_alone_done_ns = 0  # the same, as far as its agent can tell
        self._told_alone = False  # whether it can, of the last request
        self._not_solo = 0  # requests in a row
        self._busy_ns = self._busy_open_ns = 0
        self._met_a_closed_gate = False  # the request at work
        self._held_ns = 0
        self._hold_since_ns: int | None = None
        self.finished: list[Finished] = []
        self.plan = Plan(0)
        self.take_plan()

    # ---- requests

    def start(self, now_ns: int) -> None:
        """Arrivals count from now."""
        self._start_ns = now_ns
        self._await_next()

    @property
    def is_busy(self) -> bool:
        """Whether a request is open; the first of them is at work."""
        return bool(self._open)

    @property
    def left_ns(self) -> float:
        """Of the request at work, in time alone."""
        return self._open[0].left_ns

    @property
    def is_finished(self) -> bool:
        """Whether nothing is open and nothing will come."""
        return not self._open and self._next == len(self._arrivals_ns)

    def advance(self, by_ns: int, rate: float, *, gate_open: bool) -> None:
        """Time with a request open."""
        self._busy_ns += by_ns
        self._busy_open_ns += by_ns if gate_open else 0
        self._open[0].left_ns -= by_ns * rate
        self._met_a_closed_gate = self._met_a_closed_gate or not gate_open

    def step(self, now_ns: int) -> bool:
        """Whatever is due now: requests end and begin. False if none did."""
        stepped = False
        while self._open and self._open[0].left_ns <= _DONE_NS:
            self._finish(now_ns)
            stepped = True
        while self.next_arrival_ns <= now_ns:
            self._begin(self.next_arrival_ns)
            stepped = True
        return stepped

    def _await_next(self) -> None:
        is_last = self._next == len(self._arrivals_ns)
        self.next_arrival_ns = NEVER_NS if is_last else self._start_ns + self._arrivals_ns[self._next]

    def _begin(self, now_ns: int) -> None:
        times_ns = self.model.alone_ns
        alone_ns = times_ns[self._next] if self.model.in_order else self._random.choice(times_ns)
        self._next += 1
        self._await_next()
        self._wish = None
        if not self._open:
            self._busy_since_ns = now_ns
        self._open.append(_Request(now_ns, alone_ns, alone_ns, now_ns))

    def _finish(self, now_ns: int) -> None:
        request = self._open.popleft()
        self._wish = None
        self._urgent = max(0, self._urgent - 1)
        beside, self._met_a_closed_gate = not self._met_a_closed_gate, False
        if self._open:
            self._open[0].work_began_ns = now_ns
        latency_ns, service_ns = now_ns - request.arrival_ns, now_ns - request.work_began_ns
        solo = self._hold_since_ns is not None and self._hold_since_ns <= request.work_began_ns
        self._learn(service_ns, solo=solo)
        self._alone_done_ns = max(self._alone_done_ns, request.arrival_ns) + request.alone_ns
        alone_latency_ns = self._alone_done_ns - request.arrival_ns
        self.finished.append(Finished(request.arrival_ns, latency_ns, service_ns, alone_latency_ns))
        closed_for_ns = 0 if self._hold_since_ns is None else now_ns - max(self._hold_since_ns, request.work_began_ns)
        self._tell_alone(self.finished[-1], None if solo else closed_for_ns)
        self._count(self.finished[-1], solo=solo, beside=beside)

    def _learn(self, service_ns: int, *, solo: bool) -> None:
        (self._solo if solo else self._beside).add(service_ns)
        self._not_solo = 0 if solo else self._not_solo + 1
        if self._not_solo > _STALE:
            self._solo = _Learnt()

    def _tell_alone(self, done: Finished, closed_for_ns: int | None) -> None:
        """Its agent's clock of what would have come alone, which knows of a request beside training only its end:
        ``closed_for_ns``; None of one that ran behind the closed gate all the while. See `AloneClock` in hooks/csrc.
        """
        self._told_alone = closed_for_ns is None or self._solo.ready
        if not self._told_alone:
            return
        if closed_for_ns is None:
            alone_ns = done.service_ns
        else:
            alone_ns = max(self._solo.quantile_ns(_MEDIAN_PPM), closed_for_ns - _DRAIN_NS)
        done_ns = done.arrival_ns + done.latency_ns
        self._told_alone_done_ns = min(done_ns, max(self._told_alone_done_ns, done.arrival_ns) + alone_ns)

    def _count(self, done: Finished, *, solo: bool, beside: bool) -> None:
        # A real row's service time counts from the begin, which here is the arrival.
        self._table.record(self._row, latency_ns=done.latency_ns, service_ns=done.latency_ns)
        row = self._view
        if solo:
            row.solo_requests += 1
            row.solo_ns += done.service_ns
        elif beside:
            row.beside_requests += 1
            row.beside_ns += done.service_ns
        if not self.model.slo_ns:
            return
        if done.latency_ns <= self.model.slo_ns:
            row.slo_met += 1
        else:
            row.slo_missed += 1
            row.missed_anyway += self._told_alone and self._told_alone_done_ns - done.arrival_ns > self.model.slo_ns

    # ---- the gate

    def reconsider(self) -> None:
        """The work of others has changed: what it wants may have, too."""
        if self.plan.pace is not None:
            self._wish = None

    def is_settled(self, now_ns: int) -> bool:
        """Whether it still wants what it wanted last."""
        return self._wish is not None and now_ns < self._wish.again_ns

    def wish(self, now_ns: int, max_hold_ns: int, others: Mapping[int, Work]) -> Wish:
        """What its agent wants now. As the agent, it looks again when asked to, not at every event.

        ``others``: what is due first of each busy service of the device, by its bit; its own does not count.
        """
        if self._wish is None or now_ns >= self._wish.again_ns:
            self._wish = self._work_out(now_ns, max_hold_ns, others) if self._open else OPEN
        return self._wish

    def _work_out(self, now_ns: int, max_hold_ns: int, others: Mapping[int, Work]) -> Wish:
        self._drop_overdue(now_ns, max_hold_ns)
        holders = [request for request in self._open if request.holds]
        if not holders:
            return OPEN
        queue = self._queue(holders, now_ns, others)
        found = wish(self.plan, queue, now_ns, busy_since_ns=self._busy_since_ns)
        # For good: what a request gains on its prediction once the gate is closed is no reason to spend it again.
        num_before = len(self._open) - len(holders)  # who lost its hold came first
        self._urgent = max(self._urgent, found.urgent + num_before if found.urgent else 0)
        is_urgent = self._urgent > num_before and not self.plan.slice_ns
        overdue_ns = holders[0].arrival_ns + max_hold_ns + 1
        return Wish(found.closed or is_urgent, min(found.again_ns, overdue_ns))

    @property
    def first_due(self) -> Work:
        """What others see of it: the first of its open requests, and how long it still takes alone (0: not known)."""
        deadline_ns = self._deadline_ns(self._open[0])
        learnt = self._learnt()
        return Work(deadline_ns, 0 if learnt is None else self._rest_ns(learnt))

    def _queue(self, holders: list[_Request], now_ns: int, others: Mapping[int, Work]) -> list[Work]:
        if self.plan.pace is None:
            return [Work(self._deadline_ns(request)) for request in holders]
        beside = [work for bit, work in others.items() if bit != self.bit]
        queue = []
        for request in holders:
            deadline_ns = self._deadline_ns(request)
            others_ns = sum(work.remaining_ns or 0 for work in beside if work.deadline_ns < deadline_ns)
            queue.append(Work(deadline_ns, None, others_ns))
        learnt = self._learnt()
        if holders[0] is self._open[0] and learnt is not None:
            first = self._open[0]
            known_ns = self._rest_ns(learnt) if self._passed(first) else None
            queue[0] = replace(queue[0], remaining_ns=known_ns, spent_ns=self._spent_alone_ns(first, now_ns))
        return queue

    def _learnt(self) -> int | None:
        """Service time of a whole request at the plan's quantile; None while too few are done."""
        known = self._solo if self._solo.ready else self._beside
        if not known.ready:
            return None
        return known.quantile_ns(self.plan.pace.quantile_ppm if self.plan.pace else _DEFAULT_QUANTILE_PPM)

    def _passed(self, request: _Request) -> int:
        """Checkpoints that it is known to have passed."""
        return int(self.model.checkpoints * (1 - request.left_ns / request.alone_ns) + 1e-9)

    def _rest_ns(self, whole_ns: int) -> int:
        parts = self.model.checkpoints
        return whole_ns * (parts - self._passed(self._open[0])) // parts

    def _spent_alone_ns(self, first: _Request, now_ns: int) -> int:
        """How long it has been at its work since its last checkpoint with the gate closed."""
        if self._hold_since_ns is None:
            return 0
        done_ns = first.alone_ns - first.left_ns
        since_checkpoint_ns = done_ns - self._passed(first) * first.alone_ns / self.model.checkpoints
        return int(min(since_checkpoint_ns, now_ns - max(self._hold_since_ns, first.work_began_ns)))

    def hold(self, now_ns: int) -> None:
        """It has closed the gate."""
        if self._hold_since_ns is None:
            self._hold_since_ns = now_ns
            self._view.closes += 1

    def let_go(self, now_ns: int) -> None:
        """It has opened the gate, or lost it."""
        if self._hold_since_ns is not None:
            self._held_ns += now_ns - self._hold_since_ns
            self._hold_since_ns = None

    @property
    def holds(self) -> bool:
        """Whether its bit is set."""
        return self._hold_since_ns is not None

    def _drop_overdue(self, now_ns: int, max_hold_ns: int) -> None:
        for request in self._open:
            if now_ns - request.arrival_ns <= max_hold_ns:
                return
            if request.holds:
                request.holds = False
                self._view.requests_overdue += 1

    def _deadline_ns(self, request: _Request) -> int:
        return request.arrival_ns + self.model.slo_ns if self.model.slo_ns else NO_DEADLINE

    # ---- the row

    def take_plan(self) -> None:
        """Read the plan in force."""
        row = self._view
        pace = Pace(row.margin_ns, row.inflation_ppm, row.quantile_ppm) if row.inflation_ppm else None
        plan = Plan(row.lead_ns, row.queue_limit, pace, row.slice_ns)
        if plan != self.plan:
            self.plan, self._wish = plan, None

    def publish(self, now_ns: int) -> None:
        """Bring the row up to date."""
        row = self._view
        row.heartbeat_ns = now_ns
        row.open_requests = len(self._open)
        row.requests_begun = self._next
        row.oldest_deadline_ns = min(map(self._deadline_ns, self._open), default=NO_DEADLINE)
        row.busy_ns, row.busy_open_ns = self._busy_ns, self._busy_open_ns
        row.held_ns = self._held_ns
        row.hold_since_ns = self._hold_since_ns or 0
        row.alone_ns = self._solo.quantile_ns(row.quantile_ppm or _DEFAULT_QUANTILE_PPM) if self._solo.ready else -1
