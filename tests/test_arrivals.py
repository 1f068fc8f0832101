"""Arrivals are data: the same value gives the same times everywhere."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herald.errors import ConfigError
from herald.experiments import arrivals, trace_synthesis
from herald.experiments.arrivals import Arrivals, Bursty, Listed, Periodic, Poisson, Steps, Trace

EXAMPLES: list[Arrivals] = [
    Poisson(20, seed=3),
    Periodic(8, phase_s=0.05),
    Listed((0.1, 0.5, 2.0)),
    Bursty(20, seed=3),
    Steps(((0, 5), (1.5, 40), (3, 0), (4, 5)), seed=3),
    Trace("diurnal", 3, seed=3),
    Trace("diurnal", 30, seed=3),
]


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


@pytest.mark.parametrize("value", EXAMPLES, ids=repr)
def test_a_longer_run_starts_with_the_arrivals_of_a_shorter_one(value: Arrivals) -> None:
    short, long = value.times_s(3), value.times_s(6)
    assert short
    assert long[: len(short)] == short


@pytest.mark.parametrize("value", [Bursty(5, seed=0), Trace("diurnal", 3, seed=0), Trace("diurnal", 9, seed=0)])
def test_bursts_and_traces_keep_to_their_mean_rate(value: Bursty | Trace) -> None:
    assert len(value.times_s(12_000)) == pytest.approx(value.rate_hz * 12_000, rel=0.06)


@pytest.mark.parametrize("value", [Bursty(50, seed=0), Trace("diurnal", 5, seed=0)])
def test_bursts_and_traces_are_burstier_than_poisson(value: Bursty | Trace) -> None:
    counts = [0] * 1200
    for time in value.times_s(1200):
        counts[int(time)] += 1
    mean = sum(counts) / len(counts)
    assert sum((count - mean) ** 2 for count in counts) / len(counts) > 3 * mean  # of Poisson: about the mean


def test_steps_have_the_rates_they_say() -> None:
    times = Steps(((0, 10), (100, 70), (200, 0), (300, 10)), seed=0).times_s(400)
    counts = [sum(100 * hundred <= time < 100 * (hundred + 1) for time in times) for hundred in range(4)]
    assert counts[0] == pytest.approx(1000, rel=0.1)
    assert counts[1] == pytest.approx(7000, rel=0.05)
    assert counts[2] == 0
    assert counts[3] == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize("name", trace_synthesis.TRACES)
def test_bundled_traces_are_what_their_function_makes_and_say_that_they_are_synthetic(name: str) -> None:
    text = (trace_synthesis.FOLDER / f"{name}.csv").read_text()
    assert text == trace_synthesis.text_of(name)
    assert "SYNTHETIC" in text.splitlines()[0]


def test_arrivals_are_named_by_words() -> None:
    assert arrivals.parse("bursty", rate_hz=5, seed=2) == Bursty(5, seed=2)
    assert arrivals.parse("trace:diurnal", rate_hz=5, seed=2) == Trace("diurnal", 5, seed=2)
    with pytest.raises(ConfigError, match="arrivals = 'busty': allowed are .*'bursty'"):
        arrivals.parse("busty", rate_hz=5, seed=2)


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


@pytest.mark.parametrize("value", EXAMPLES, ids=repr)
def test_arrivals_survive_json(value: Arrivals) -> None:
    assert arrivals.from_json(json.loads(json.dumps(arrivals.to_json(value)))) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "burst"}, "poisson, periodic, listed, bursty, steps, trace"),
        ({}, "kind = 'None'"),
        ({"kind": "poisson", "rate_hz": 20, "sed": 1}, "sed"),
        ({"kind": "poisson", "rate_hz": 0, "seed": 1}, "rate_hz = 0"),
        ({"kind": "periodic", "rate_hz": -1}, "rate_hz = -1"),
        ({"kind": "periodic", "rate_hz": 1, "phase_s": -1}, "phase_s = -1"),
        ({"kind": "listed", "listed_s": [2, 1]}, "ascending"),
        ({"kind": "bursty", "rate_hz": 5, "seed": 1, "burst": 20}, "burst = 20"),
        ({"kind": "steps", "steps": [[1, 5]], "seed": 1}, "the first begins at 0 s"),
        ({"kind": "trace", "name": "diurnl", "rate_hz": 5, "seed": 1}, "did you mean 'diurnal'"),
    ],
)
def test_bad_arrivals_say_what_is_allowed(data: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arrivals.from_json(data)
