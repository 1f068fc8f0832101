"""The control law that corrects the policy's model by what came of it: an account per service and SLO.

The *leeway* is in rungs of the ladder `queueing.LIMITS`, of which the whole ones that are owed are taken off the number
of requests that may be open before the gate closes, as the model has it. Success adds no rung, since rungs may lie far
apart where the load is high: at MOST the model may let twice as many requests be late. The leeway is itself moved by a
weighted up-down staircase (Kaernbach 1991):

    a request that missed its SLO and would have met it alone:   leeway -= DOWN
    a request that met its SLO:                                  leeway += DOWN x b / (1 - b),   b = `budget`

The two balance where a share b of requests misses on training's account: three tenths of what the target allows, or
what those leave of it that would have missed alone, too. The model spends less of its own accord: this is for what it
does not know, as bursts. The step down is three hundred times the step up (at a target of 99 %), so there is nothing to
oscillate: after a disturbance a handful of misses reaches the strict plan, and the way back takes hundreds of requests.

Behind a gate that closes at once nothing is lenient, and a miss is not charged: but for the backlog of a gate that was
open before, until the service was idle. There is one leeway for all open modes: what the model does not know of the
service (its bursts, its stalls) is the same in all of them.

While a gate never closes, nobody sees what requests take behind a closed one: where the host has become slow, all that
is late is charged to training. So such charges are settled once the gate was closed for some requests: if those took as
long as the last ones beside training, closing is no remedy, and what was charged lately is given back. Of service times
that vary by a tenth, so few requests tell 1.1 x from 1; of times that vary by 0.6 of their mean, up to a third of what
is 1.1 x passes for harmless, and some 1.2 x (`test_how_often_training_is_acquitted`).
"""

import math
from dataclasses import dataclass, field

from herald.scheduler.fading import FadingSum

DOWN = 1.0  # rungs, per miss
MOST = 1.0  # from here on the model is taken to be too careful
LEAST = -20.0  # twice as far as from the highest rung to the lowest: most bursts are paid for in full
MOST_SHARE, LEAST_SHARE = 0.3, 0.1  # of what the target allows, for training
SAFETY = 0.85  # of what the target allows, for all
HALF_LIFE = 1_500  # requests
RESTED_NS = 20_000_000  # of idle time: agents book busy time every 10 ms, so that less may be none
FEWEST = 500  # requests: of fewer, one is no share
HEARD = 50  # requests behind the closed gate, before what was charged to a gate that never closed is settled
LATELY = 200  # requests, as a half-life: of such charges, and of the times beside training that they are settled by
OLD = 2_000  # requests after the gate began to close, by when its charges stand
HARMLESS = 1.03  # times as long beside training: as the model has it (`queueing.on_grid`), closing gains nothing then


@dataclass
class Account:
    """What came of the requests of one service under one SLO."""

    leeway: float = 0.0
    late_anyway: FadingSum = field(default_factory=FadingSum)  # requests that would have been late alone, too
    lenient: bool = False  # the gate is open to requests, or was, and they are not all done
    idle_ns: int = 0  # time without an open request since the gate began to close at once
    unsettled: float = 0.0  # rungs that were charged lately to a gate that never closed, or since
    beside: FadingSum = field(default_factory=FadingSum)  # service times of the last requests with such a gate
    since: int = 0  # requests done since then
    heard: FadingSum = field(default_factory=FadingSum)  # and behind a closed one since the last such charge

    @property
    def share_late_anyway(self) -> float:
        """0 to 1, of at least FEWEST requests."""
        return self.late_anyway.total / max(self.late_anyway.requests, FEWEST)

    def book(self, *, closed: bool, idle_ns: int, met: int, missed: int, anyway: int, target: float) -> None:
        """Requests that were done since the last look: ``anyway`` of the ``missed`` would have missed alone, too.

        ``closed``: the gate closes at once. ``idle_ns``: time without an open request; what was late to be booked in
        one look is less than nothing in the next.
        """
        self.late_anyway.add(met + missed, anyway, HALF_LIFE)
        self.idle_ns = self.idle_ns + idle_ns if closed else 0
        self.lenient = not closed or (self.lenient and self.idle_ns < RESTED_NS)
        charged = max(0, missed - anyway) if self.lenient else 0
        before = self.leeway
        self.leeway = step(before, met=met, charged=charged, budget=budget(target, self.share_late_anyway))
        self.since += met + missed
        if charged and self.beside.requests:
            self.unsettled += max(0.0, before - self.leeway)
            self.heard = FadingSum()

    def hear(self, *, free: bool, beside: tuple[int, int], solo: tuple[int, int]) -> None:
        """Requests (and their times in ns) that ran beside training and behind a closed gate, from begin to end.

        ``free``: no service closes the gate. Only then are those beside training a fair sample: else long ones meet a
        close.
        """
        if free:
            self.since = 0
            self.beside.add(*beside, LATELY)
            self.unsettled *= 0.5 ** (beside[0] / LATELY)
        elif self.unsettled < DOWN / 2 or self.since > OLD:
            self.forget()
        self.heard.add(*solo)
        if self.heard.requests < HEARD or not self.unsettled:
            return
        if (self.beside.mean or math.inf) <= HARMLESS * (self.heard.mean or 0.0):
            self.leeway = min(MOST, self.leeway + self.unsettled)
        self.forget()

    def forget(self) -> None:
        """What is unsettled stands: it is settled or old, or the jobs of the device are others now."""
        self.unsettled, self.beside, self.heard = 0.0, FadingSum(), FadingSum()


def budget(target: float, anyway: float) -> float:
    """The share of requests that may miss on training's account, where a share ``anyway`` misses alone, too."""
    allowed = 1 - target
    return min(MOST_SHARE * allowed, max(LEAST_SHARE * allowed, SAFETY * allowed - anyway))


def step(leeway: float, *, met: int, charged: int, budget: float) -> float:
    """The leeway after ``met`` requests that met their SLO and ``charged`` ones that training made miss it."""
    moved = leeway + DOWN * (met * budget / (1 - budget) - charged)
    return min(MOST, max(LEAST, moved))
