"""Load steps and crowds: what their rows say, from made-up rows; who takes part, from words."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from herald.experiments import crowd, crowd_report, steps_report, workloads
from herald.experiments.arrivals import Periodic, Steps, to_json
from herald.experiments.crew import Pair
from herald.experiments.steps import Staircase
from herald.experiments.sweeps import CPU_SERVICES, CPU_TRAINERS, CROWD_SERVICES, CROWD_TRAINERS

PHASE_S = 10.0
RATE_HZ = 10.0


def steps_row(setting: str, late: set[int], **training: float) -> dict[str, Any]:
    """Ten requests a second, thirty seconds; those numbered in ``late`` take 100 ms, the others 10."""
    row: dict[str, Any] = {
        "kind": "steps",
        "key": {
            "pair": "a+b",
            "setting": setting,
            "phase_s": PHASE_S,
            "low": 0.1,
            "high": 0.7,
            "slo_factor": 2,
            "seed": 0,
        },
        "slo_ms": None if setting == "alone" else 50.0,
        "arrivals": to_json(Periodic(RATE_HZ)),
        "inference": {"latency_ms": [100.0 if i in late else 10.0 for i in range(int(3 * PHASE_S * RATE_HZ))]},
    }
    return row | ({"training": training} if training else {})


def test_requests_just_after_a_step_are_judged_apart_from_the_rest() -> None:
    found = steps_report.climb(steps_row("herald", {5, 100, 101, 160, 249}), 50.0, None)
    assert [(share.met, share.total) for share in found.after] == [(48, 50), (49, 50)]
    assert (found.settled.met, found.settled.total) == (99, 100)
    assert found.is_quick


def test_the_report_of_load_steps_judges_what_adapts(tmp_path: Path) -> None:
    trainer = steps_row("train-alone", set(), steps_per_s=10.0)
    del trainer["inference"]
    slow = steps_row("herald", {100, 101, 102}, steps_per_s=8.0)
    (section,) = steps_report.sections([steps_row("alone", set()), trainer, slow], tmp_path)
    assert [criterion.passed for criterion in section.verdict] == [False, True]
    assert section.grids[0].lines[1][0] == "herald"
    assert section.grids[0].lines[1][-1] == "0.800"
    assert section.figures[0].read_bytes().startswith(b"\x89PNG")


def test_a_staircase_goes_up_and_down() -> None:
    case = Staircase(Pair("a", "b"), "cpu", 3, low=0.1, high=0.5, phase_s=4.0)
    assert case.arrivals(0.01) == Steps(((0.0, 10.0), (4.0, 50.0), (8.0, 10.0)), seed=3)
    assert case.seconds == 12.0


def test_a_crowd_has_a_name_for_everyone() -> None:
    found = crowd.members(["s", "s"], ["t"], 0.2)
    assert [(m.name, m.role, m.floor) for m in found] == [
        ("s", "inference", 0.0),
        ("s-2", "inference", 0.0),
        ("t", "training", 0.2),
    ]
    jobs = tomllib.loads(crowd.config_text(crowd.Crowd(found, "cpu", 0)))["jobs"]
    assert jobs == {"s": {"priority": "high"}, "s-2": {"priority": "high"}, "t": {"priority": "low", "floor": 0.2}}


@pytest.mark.parametrize(
    ("services", "trainers", "device"),
    [(CROWD_SERVICES, CROWD_TRAINERS, "cuda"), (CPU_SERVICES, CPU_TRAINERS, "cpu")],
)
def test_the_crowds_are_made_of_workloads(services: tuple[str, ...], trainers: tuple[str, ...], device: str) -> None:
    assert set(services) <= set(workloads.names("inference", device))
    assert set(trainers) <= set(workloads.names("training", device))


def crowd_row(latency_ms: list[float], together_ms: list[float], steps_per_s: float) -> dict[str, Any]:
    service = {"name": "s", "rate_hz": 5.0, "slo_ms": 50.0, "together_ms": together_ms, "latency_ms": latency_ms}
    trainer = {"name": "t", "floor": 0.2, "alone_steps_per_s": 10.0, "steps_per_s": steps_per_s}
    key = {"load": 0.4, "slo_factor": 2.0}
    return {"kind": "crowd", "key": key, "policy": "herald", "services": [service], "trainers": [trainer]}


GOOD, BAD = [10.0] * 100, [10.0] * 80 + [90.0] * 20


@pytest.mark.parametrize(
    ("row", "passed"),
    [
        (crowd_row(GOOD, GOOD, 3.0), [True, True]),
        (crowd_row(BAD, GOOD, 1.0), [False, False]),
        (crowd_row(BAD, BAD, 3.0), [True]),  # the services alone do not hold it
    ],
)
def test_a_crowd_is_judged_by_feasible_slos_and_floors(row: dict[str, Any], passed: list[bool]) -> None:
    (section,) = crowd_report.sections([row])
    assert [criterion.passed for criterion in section.verdict] == passed
