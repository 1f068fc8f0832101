"""Poisson arrivals that a short run can be judged by: of many sequences the one that is most like a long run.

A run of some seconds has too few requests for its p99 to say much: of eighty, it is the longest. By chance, the SLO
that is made from it is a third too tight or too loose, and the best setting another one. So of many sequences the one
is taken whose latencies are nearest to those of very many requests, in a queue before a service of constant time
(M/D/1): as fast as alone, and slowed down as much as settings slow it down (SPEEDS), so that neither those that protect
requests nor those that do not get arrivals that suit them. What is rarer than one request of a run does not happen in
it, to any setting: a short run says nothing of that.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from herald.experiments.arrivals import Poisson

CANDIDATES = 400
SPEEDS = (1.0, 1.3, 1.7)  # service time / alone
QUANTILES = (50, 75, 90, 95, 98, 99)  # of latencies, in percent
MOST_LOAD = 0.95  # beyond, no run is long enough to be typical
_LONG_RUN = 200_000


@cache
def typical(rate_hz: float, service_s: float, seconds: float, seed: int) -> Poisson:
    """The most typical of CANDIDATES sequences of ``seconds`` for a service of ``service_s`` alone.

    Equal arguments, equal arrivals; another seed has other candidates.
    """
    candidates = [Poisson(rate_hz, seed=seed * CANDIDATES + i) for i in range(CANDIDATES)]
    return min(candidates, key=lambda arrivals: _distance(arrivals, service_s, seconds))


def latencies_alone(times_s: NDArray[np.float64], service_s: float) -> NDArray[np.float64]:
    """Of requests that are served one after the other, each for ``service_s``. In s, shape as ``times_s``."""
    before = np.arange(len(times_s)) * service_s
    # A request begins when it arrives, or when those are done that have come since the queue was last empty.
    begin_s = np.maximum.accumulate(times_s - before) + before
    return np.asarray(begin_s + service_s - times_s)


def _distance(arrivals: Poisson, service_s: float, seconds: float) -> float:
    times_s = np.array(arrivals.times_s(seconds))
    if not len(times_s):
        return float("inf")
    expected = arrivals.rate_hz * seconds
    distance = abs(len(times_s) / expected - 1)
    for speed in SPEEDS:
        load = arrivals.rate_hz * service_s * speed
        if load > MOST_LOAD:
            break
        found = np.percentile(latencies_alone(times_s, service_s * speed), QUANTILES) / (service_s * speed)
        wanted = _quantiles_of_a_long_run(max(0.001, round(load, 3)))
        distance += float(np.abs(found / wanted - 1).sum())
    return distance


@cache
def _quantiles_of_a_long_run(load: float) -> NDArray[np.float64]:
    """In service times."""
    gaps = np.random.default_rng(0).exponential(1 / load, _LONG_RUN)
    return np.asarray(np.percentile(latencies_alone(np.cumsum(gaps), 1.0), QUANTILES), dtype=np.float64)
