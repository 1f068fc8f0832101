"""Arrivals are data: the same value gives the same times everywhere."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herald.errors import ConfigError
from herald.experiments import arrivals
from herald.experiments.arrivals import Arrivals, Listed, Periodic, Poisson

EXAMPLES: list[Arrivals] = [Poisson(20, seed=3), Periodic(8, phase_s=0.05), Listed((0.1, 0.5, 2.0))]


def test_equal_poisson_arrivals_have_equal_times() -> None:
    assert Poisson(20, seed=3).times_s(5) == Poisson(20, seed=3).times_s(5)
    assert Poisson(20, seed=3).times_s(5) != Poisson(20, seed=4).times_s(5)


def test_poisson_arrives_at_its_rate() -> None:
    times = Poisson(50, seed=0).times_s(200)
    assert len(times) == pytest.approx(50 * 200, rel=0.03)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.1)  # of an exponential distribution


def test_a_longer_run_starts_with_the_arrivals_of_a_shorter_one() -> None:
    short, long = Poisson(20, seed=1).times_s(3), Poisson(20, seed=1).times_s(6)
    assert long[: len(short)] == short


def test_periodic_arrivals_are_evenly_spaced_and_end_before_the_run() -> None:
    assert Periodic(4).times_s(1) == [0, 0.25, 0.5, 0.75]
    assert Periodic(2, phase_s=0.4).times_s(1) == [0.4, 0.9]


def test_listed_arrivals_are_cut_at_the_end_of_the_run() -> None:
    assert Listed((0.1, 0.5, 2.0)).times_s(1) == [0.1, 0.5]


@given(st.sampled_from(EXAMPLES), st.floats(0.1, 20))
def test_times_ascend_within_the_run(value: Arrivals, seconds: float) -> None:
    times = value.times_s(seconds)
    assert times == sorted(times)
    assert all(0 <= time < seconds for time in times)


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_arrivals_survive_json(value: Arrivals) -> None:
    assert arrivals.from_json(json.loads(json.dumps(arrivals.to_json(value)))) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "bursty"}, "poisson, periodic, listed"),
        ({}, "kind = 'None'"),
        ({"kind": "poisson", "rate_hz": 20, "sed": 1}, "sed"),
        ({"kind": "poisson", "rate_hz": 0, "seed": 1}, "rate_hz = 0"),
        ({"kind": "periodic", "rate_hz": -1}, "rate_hz = -1"),
        ({"kind": "periodic", "rate_hz": 1, "phase_s": -1}, "phase_s = -1"),
        ({"kind": "listed", "listed_s": [2, 1]}, "ascending"),
    ],
)
def test_bad_arrivals_say_what_is_allowed(data: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arrivals.from_json(data)
