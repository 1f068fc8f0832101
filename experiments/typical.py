"""Poisson arrivals that a short run can be judged by: of many sequences the one that is most like a long run.

A run of some seconds has too few requests for its p99 to say much: of eighty, it is the longest. By chance, the SLO
that is made from it is a third too tight or too loose, and the best setting another one. So of many sequences the one
is taken whose latencies, served alone by a service of constant time (M/D/1), are nearest to those of very many
requests: stratified sampling, blind to what the settings that are compared make of it.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from herald.experiments.arrivals import Poisson

CANDIDATES = 400
QUANTILES = (50, 75, 90, 95, 98, 99)  # of latencies, in percent
MOST_LOAD = 0.95  # beyond, no run is long enough to be typical
_LONG_RUN = 200_000


def typical(rate_hz: float, service_s: float, seconds: float, seed: int) -> Poisson:
    """The most typical of CANDIDATES sequences of ``seconds`` for a service of ``service_s`` alone.

    Equal arguments, equal arrivals; another seed has other candidates.
    """
    load = min(MOST_LOAD, rate_hz * service_s)
    wanted = _quantiles_of_a_long_run(round(load, 3))
    candidates = [Poisson(rate_hz, seed=seed * CANDIDATES + i) for i in range(CANDIDATES)]
    return min(candidates, key=lambda arrivals: _distance(arrivals, load / rate_hz, seconds, wanted))


def latencies_alone(times_s: NDArray[np.float64], service_s: float) -> NDArray[np.float64]:
    """Of requests that are served one after the other, each for ``service_s``. In s, shape as ``times_s``."""
    before = np.arange(len(times_s)) * service_s
    # A request begins when it arrives, or when those are done that have come since the queue was last empty.
    begin_s = np.maximum.accumulate(times_s - before) + before
    return np.asarray(begin_s + service_s - times_s)


def _distance(arrivals: Poisson, service_s: float, seconds: float, wanted: NDArray[np.float64]) -> float:
    times_s = np.array(arrivals.times_s(seconds))
    if not len(times_s):
        return float("inf")
    found = np.percentile(latencies_alone(times_s, service_s), QUANTILES) / service_s
    expected = arrivals.rate_hz * seconds
    return float(np.abs(found / wanted - 1).sum() + abs(len(times_s) / expected - 1))


@cache
def _quantiles_of_a_long_run(load: float) -> NDArray[np.float64]:
    """In service times."""
    gaps = np.random.default_rng(0).exponential(1 / load, _LONG_RUN)
    return np.asarray(np.percentile(latencies_alone(np.cumsum(gaps), 1.0), QUANTILES), dtype=np.float64)
