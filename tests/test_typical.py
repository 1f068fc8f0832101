"""Arrivals that a short run can be judged by are like those of a long one."""

import numpy as np
import pytest

from herald.experiments.arrivals import Poisson
from herald.experiments.typical import latencies_alone, typical

SERVICE_S = 0.03
RATE_HZ = 0.4 / SERVICE_S


def p99_alone(arrivals: Poisson, seconds: float) -> float:
    """In service times."""
    return float(np.percentile(latencies_alone(np.array(arrivals.times_s(seconds)), SERVICE_S), 99)) / SERVICE_S


def test_latencies_alone_are_those_of_a_queue() -> None:
    arrivals_s = np.array([0.0, 1.0, 1.5, 9.0])
    assert latencies_alone(arrivals_s, 2.0).tolist() == [2.0, 3.0, 4.5, 2.0]


@pytest.mark.parametrize("seed", range(3))
def test_a_short_run_has_the_p99_of_a_long_one(seed: int) -> None:
    long_run = p99_alone(Poisson(RATE_HZ, seed=12345), 20_000)
    assert p99_alone(typical(RATE_HZ, SERVICE_S, 8.0, seed), 8.0) == pytest.approx(long_run, rel=0.1)


def test_plain_sequences_of_that_length_do_not() -> None:
    """What it is for: a third of them are more than 10 % away."""
    long_run = p99_alone(Poisson(RATE_HZ, seed=12345), 20_000)
    far = [abs(p99_alone(Poisson(RATE_HZ, seed), 8.0) / long_run - 1) > 0.1 for seed in range(60)]
    assert np.mean(far) > 1 / 3


@pytest.mark.parametrize("slowdown", [1.3, 1.6])
def test_neither_protection_nor_its_lack_is_favoured(slowdown: float) -> None:
    """A slowed queue has as many late requests as in a long run, where plain sequences have anything."""
    slo_s = 1.5 * SERVICE_S * p99_alone(Poisson(RATE_HZ, seed=12345), 20_000)

    def late(arrivals: Poisson, seconds: float) -> float:
        latencies_s = latencies_alone(np.array(arrivals.times_s(seconds)), SERVICE_S * slowdown)
        return float(np.mean(latencies_s > slo_s))

    long_run = late(Poisson(RATE_HZ, seed=12345), 20_000)
    typical_runs = np.mean([late(typical(RATE_HZ, SERVICE_S, 8.0, s), 8.0) for s in range(8)])
    assert typical_runs == pytest.approx(long_run, rel=0.2, abs=0.015)


def test_equal_arguments_equal_arrivals_and_another_seed_others() -> None:
    first = typical(RATE_HZ, SERVICE_S, 5.0, 0)
    assert first == typical(RATE_HZ, SERVICE_S, 5.0, 0)
    assert first != typical(RATE_HZ, SERVICE_S, 5.0, 1)


@pytest.mark.parametrize(("rate_hz", "seconds"), [(100.0, 2.0), (1.0, 0.001), (0.001, 5.0)])
def test_overload_and_hardly_any_requests_get_some_sequence(rate_hz: float, seconds: float) -> None:
    assert typical(rate_hz, SERVICE_S, seconds, 0).rate_hz == rate_hz
