"""What a mode comes to, by a queue played through: pure functions of rates, for the controller and its tests.

One service with Poisson arrivals, served one after the other, under the two rules by which the controller closes a gate
(`policies.herald`): more than `limit` requests open, or slack used up. Beside open requests training slows the service
by `inflation`; behind a closed gate it is as fast as alone. There is no formula for the late requests of such a queue,
so it is played through with fixed random numbers, once for every point of a grid that is finer than what is known of
its parameters. Times are in units of the mean service time alone.
"""

import math
import random
from bisect import bisect_right
from collections import deque
from functools import cache, lru_cache
from typing import NamedTuple

NUM_REQUESTS = 2_500
NO_LIMIT = 50  # open requests: more is no queue that an SLO allows
FREE = 51  # the gate does not close for lack of slack either, and need not be there
LIMITS = (0, 1, 2, 3, 4, 6, 9, 13, 20, NO_LIMIT, FREE)
SAFETY = 0.8  # of what the target allows to be late: the model is a model
UNAVOIDED = 0.003  # of requests, may be late beyond those that are alone: less cannot be told apart
MISSES_PRICE = 0.2  # of training's time: what it must gain where all that may be late is late
BESIDE_RATE = 0.75  # a guess of training's rate beside requests, of that while none is open
HOOK = 0.02  # of training's time: what it loses by a gate that may close
LONG_SHARE = 0.05  # of requests are long ones, where service times vary
MOST_LOAD = 0.95
MOST_KEPT = 50_000  # answers of each function: a daemon for a year plays more
_FREE_RUNG = len(LIMITS) - 1
_NO_SLACK = 1e-6  # time that is a rounding error


class Play(NamedTuple):
    """Shares: of requests that were late; of time with no request open; of time with requests and an open gate."""

    late: float
    idle: float
    beside: float


class Queue(NamedTuple):
    """One service beside training, in mean service times alone; what is asked of many of them comes `on_grid`."""

    load: float  # arrival rate x mean service time
    inflation: float  # of service times while the gate is open; below 1 where a closing gate costs more than training
    slo: float
    margin: float = 0.0  # slack at which the gate closes: what still runs then
    spread: float = 1.0  # a long service time


@lru_cache(1024)
def on_grid(load: float, inflation: float, slo: float, margin: float = 0.0, spread: float = 1.0) -> Queue:
    """Rounded: load to 0.05, inflation to 6 %, SLO to 3 %, margin to 0.1, spread to 0.25."""
    return Queue(
        load=min(MOST_LOAD, round(load * 20) / 20),
        inflation=1.06 ** round(math.log(max(0.1, inflation), 1.06)),
        slo=1.03 ** round(math.log(max(0.1, slo), 1.03)),
        margin=round(margin * 10) / 10,
        spread=max(1.0, round(spread * 4) / 4),
    )


@lru_cache(MOST_KEPT)
def best_rung(queue: Queue, target: float, beside_rate: float = BESIDE_RATE) -> int:
    """How many requests may be open before the gate closes: the index in LIMITS of the best that is good enough.

    Good enough: a share ``target`` of requests is in time, with some to spare where that can be had. An SLO that cannot
    be held with a gate that closes at once gets that. Best: training has most of it, after what late requests cost.
    ``beside_rate``: of training while requests run beside it, of its rate while none is open; in tenths, as answers are
    kept for every one that is asked for.
    """
    if queue.inflation <= 1:
        return _FREE_RUNG  # nothing is gained by closing
    allowed = max(SAFETY * (1 - target), min(1 - target, play(queue, 0).late + UNAVOIDED))
    limits = LIMITS[1:-1]  # longer and longer queues, more and more late
    num_good = bisect_right(limits, allowed, key=lambda limit: play(queue, limit).late)
    rungs: list[int] = [*range(num_good + 1)]
    if play(queue, FREE).late <= allowed:  # which pays for no closes: perhaps where a lower limit is not good enough
        rungs.append(_FREE_RUNG)
    return max(rungs, key=lambda rung: _worth(queue, rung, target, beside_rate))


def _worth(queue: Queue, rung: int, target: float, beside_rate: float) -> float:
    """What training has of a limit, less what is late by it: in time of training alone."""
    comes = play(queue, LIMITS[rung])
    hook = HOOK if rung < _FREE_RUNG else 0.0
    return comes.idle + beside_rate * comes.beside - MISSES_PRICE * comes.late / (1 - target) - hook


@cache
def alone_p99(load: float) -> float:
    """The latency alone that 99 % of requests do not exceed."""
    latency = 1.0
    while play(on_grid(load, 1.0, latency), 0).late > 0.01:
        latency *= 1.03
    return latency


@lru_cache(MOST_KEPT)
def play(queue: Queue, limit: int) -> Play:
    """What comes of a limit."""
    works, arrivals = _works(queue.spread), _arrivals(queue.load)
    inflation = queue.inflation
    most_open = math.inf if limit == FREE else limit
    loss = 1 - 1 / inflation  # of time while the gate is open
    # What still runs after a close, usually half of the most. At a request's begin, it is in the times alone.
    drain = queue.margin / 2
    now = idle = beside = 0.0
    slacks = _Slacks(closes=limit != FREE)
    is_open = False  # to a request that is open
    first = late = 0
    left = works[0]  # of the first in the queue
    work = 0.0  # of all that have come
    for taken, coming in enumerate((*arrivals, math.inf)):
        while first < taken:
            slack = slacks.least()
            if taken - first > most_open or slack <= _NO_SLACK:
                if is_open:
                    left += drain
                    slacks.lose(drain)
                    is_open = False
                if now + left > coming:
                    left -= coming - now
                    now = coming
                    break
                now += left
            else:
                is_open = True
                until = min(coming, now + left * inflation, now + slack / loss if loss > 0 else math.inf)
                spent = until - now
                beside += spent
                slacks.lose(spent * loss)
                left -= spent * (1 - loss)
                now = until
                if left > _NO_SLACK:
                    if now == coming:
                        break
                    continue
            late += now > arrivals[first] + queue.slo + _NO_SLACK
            slacks.drop(first)
            first += 1
            left = works[first] if first < len(works) else 0.0
        if taken == len(works):
            break
        if first == taken:
            idle += coming - now
            slacks.lose(coming - now)
            now = coming
            is_open = False
        work += works[taken]
        slacks.add(coming + queue.slo - queue.margin - work, taken)
    return Play(late / len(works), idle / now, beside / now)


class _Slacks:
    """The slack of open requests. Time in which no work is done is lost to all of them alike."""

    def __init__(self, *, closes: bool) -> None:
        self._closes = closes  # else nobody asks
        self._lost = 0.0
        # But for the time lost, and whose: of those with less of it than all behind them, so that the front has least.
        self._least = deque[tuple[float, int]]()

    def least(self) -> float:
        return self._least[0][0] - self._lost if self._closes else math.inf

    def lose(self, time: float) -> None:
        self._lost += time

    def add(self, slack: float, whose: int) -> None:
        """``slack``: had no time been lost since the start."""
        if not self._closes:
            return
        while self._least and self._least[-1][0] >= slack:
            self._least.pop()
        self._least.append((slack, whose))

    def drop(self, whose: int) -> None:
        if self._least and self._least[0][1] == whose:
            self._least.popleft()


@cache
def _works(spread: float) -> tuple[float, ...]:
    """Service times of mean 1, some of them ``spread`` long."""
    numbers = random.Random("service times")
    short = max(0.05, (1 - LONG_SHARE * spread) / (1 - LONG_SHARE))
    return tuple(spread if numbers.random() < LONG_SHARE else short for _ in range(NUM_REQUESTS))


@cache
def _arrivals(load: float) -> tuple[float, ...]:
    """Of a hundred such sequences the one whose latencies alone are nearest to a long one's, from p90 to p99.8."""
    numbers = random.Random("arrivals 21")
    times, now = [], 0.0
    for _ in range(NUM_REQUESTS):
        now += numbers.expovariate(max(load, 0.01))
        times.append(now)
    return tuple(times)
