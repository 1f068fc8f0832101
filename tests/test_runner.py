"""A colocation is planned, interleaved, resumed, and written row by row; workers are fakes that say what they did."""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from herald.errors import ConfigError, HeraldError
from herald.experiments import rows, settings
from herald.experiments.crew import Pair
from herald.experiments.plan import Colocation, plan
from herald.experiments.runner import OutOfTime, Runner, told
from herald.experiments.settings import Setting
from tests.fake_workers import Fleet
from tests.leftovers import own_domains

PAIR = Pair("cpu-transformer", "cpu-vgg")
SETTINGS = ("alone", "train-alone", "timeslice")
EXPERIMENT = Colocation(
    pairs=(PAIR,),
    settings=tuple(settings.choose(SETTINGS, "off")),
    device="cpu",
    seconds=2.0,
    repeats=2,
    rate_hz=10.0,
    arrivals="poisson",
    seed=7,
    slo_ms=None,
    slo_factor=2.0,
)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    assert not any(worker.is_open for worker in fleet.workers)  # whatever happened


def runner(fleet: Fleet, folder: Path, experiment: Colocation = EXPERIMENT, end_s: float = float("inf")) -> Runner:
    return Runner(
        experiment,
        folder / "colocation.jsonl",
        start=fleet.start,
        log_dir=folder,
        commit="abc",
        end_s=end_s,
        clock_s=lambda: fleet.now_s,
        console=Console(file=io.StringIO()),
    )


def order(found: list[rows.Row]) -> list[tuple[str, int]]:
    return [(row["key"]["setting"], row["key"]["repetition"]) for row in found]


def test_settings_take_turns_and_each_repetition_starts_at_another() -> None:
    assert [(run.setting.name, run.key.repetition) for run in plan(EXPERIMENT)] == [
        *(("alone", 0), ("train-alone", 0), ("timeslice", 0)),
        *(("train-alone", 1), ("timeslice", 1), ("alone", 1)),
    ]


def test_all_runs_of_an_mps_state_come_before_the_other() -> None:
    both = replace(EXPERIMENT, settings=tuple(settings.choose(["all"], "both")), pairs=(PAIR, Pair("a", "b")))
    states = [run.setting.mps for run in plan(both)]
    assert states == sorted(states)


def test_every_run_becomes_a_row_with_its_origin(fleet: Fleet, tmp_path: Path) -> None:
    assert runner(fleet, tmp_path).run() == 6
    found = rows.read(tmp_path / "colocation.jsonl")
    assert order(found) == [(run.setting.name, run.key.repetition) for run in plan(EXPERIMENT)]
    row = found[2]
    assert row["key"] == asdict(plan(EXPERIMENT)[2].key)
    assert row["inference"]["count"] == len(row["inference"]["latency_ms"]) > 0
    assert row["inference"]["p99_ms"] == pytest.approx(5, abs=0.01)
    assert row["training"] | {"step_ms": None} == {"steps": 20, "steps_per_s": 10.0, "step_ms": None}
    assert row["provenance"]["commit"] == "abc"
    assert row["provenance"]["workers"]["training"]["torch"] == "fake"
    assert {"date", "dirty", "arguments", "machine"} <= row["provenance"].keys()


def test_a_row_is_told_in_a_line_of_80_columns() -> None:
    row = {
        "key": {"pair": "graph-decode+vgg16", "setting": "herald-strict-mps", "repetition": 2},
        "inference": {"p50_ms": 2068.13, "p99_ms": 5289.56},
        "training": {"steps_per_s": 17.412},
    }
    line = told(row)
    assert line == "graph-decode+vgg16 herald-strict-mps #2: p50 2068 ms, p99 5290 ms, 17.4 steps/s"
    assert len(line) <= 80
    row["inference"] = {"p50_ms": None, "p99_ms": None}  # no request arrived
    assert "p99 - ms" in told(row)


def test_a_repetition_has_the_same_arrivals_in_every_setting(fleet: Fleet, tmp_path: Path) -> None:
    runner(fleet, tmp_path).run()
    scheduled: dict[int, set[str]] = {}
    for row in rows.read(tmp_path / "colocation.jsonl"):
        if "inference" in row:
            scheduled.setdefault(row["key"]["repetition"], set()).add(json.dumps(row["inference"]["scheduled_s"]))
    assert [len(kinds) for kinds in scheduled.values()] == [1, 1]
    assert scheduled[0] != scheduled[1]


def test_processes_are_started_once_and_warmed_up(fleet: Fleet, tmp_path: Path) -> None:
    runner(fleet, tmp_path).run()
    assert [worker.launch.name for worker in fleet.workers] == ["inference", "training"]
    assert all(fields["warmup"] >= 20 for fields in fleet.told("load"))


def test_both_jobs_of_a_run_start_at_one_instant(fleet: Fleet, tmp_path: Path) -> None:
    runner(fleet, tmp_path, replace(EXPERIMENT, repeats=1)).run()
    last = fleet.told("run")[-2:]
    assert last[0]["start_s"] == last[1]["start_s"]


def test_the_slo_follows_from_the_first_run_alone(fleet: Fleet, tmp_path: Path) -> None:
    runner(fleet, tmp_path).run()
    slos = [row["slo_ms"] for row in rows.read(tmp_path / "colocation.jsonl")]
    assert slos == pytest.approx([10] * 6, abs=0.01)  # slo_factor x 5 ms


def test_without_a_run_alone_the_slo_must_be_given(fleet: Fleet, tmp_path: Path) -> None:
    lonely = replace(EXPERIMENT, settings=(settings.get("timeslice"),))
    with pytest.raises(ConfigError, match=r"'timeslice' has no SLO yet: add 'alone' .* --slo 50ms"):
        runner(fleet, tmp_path, lonely).run()
    assert not fleet.log
    assert runner(fleet, tmp_path, replace(lonely, slo_ms=50.0)).run() == 2


def test_resuming_does_what_is_missing(fleet: Fleet, tmp_path: Path) -> None:
    runner(fleet, tmp_path).run()
    path = tmp_path / "colocation.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]) + '{"kind": "colocation", "key": {"cut')
    fleet.log.clear()
    assert runner(fleet, tmp_path).run() == 1
    assert order(rows.read(path))[-1] == ("timeslice", 0)
    assert runner(fleet, tmp_path).run() == 0


def test_other_seconds_are_another_run(fleet: Fleet, tmp_path: Path) -> None:
    runner(fleet, tmp_path).run()
    assert runner(fleet, tmp_path, replace(EXPERIMENT, seconds=3.0)).run() == 6


def test_the_time_limit_ends_it_between_rows(fleet: Fleet, tmp_path: Path) -> None:
    longer = replace(EXPERIMENT, seconds=10.0)
    with pytest.raises(OutOfTime, match="--resume"):
        runner(fleet, tmp_path, longer, end_s=50.0).run()
    num_done = len(rows.read(tmp_path / "colocation.jsonl"))
    assert 0 < num_done < 6
    assert fleet.now_s <= 50.0 - 10
    assert runner(fleet, tmp_path, longer).run() == 6 - num_done


def test_no_time_at_all_starts_nothing(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(OutOfTime):
        runner(fleet, tmp_path, end_s=5.0).run()
    assert not fleet.workers


def test_a_failed_run_costs_its_row_and_its_processes_only(fleet: Fleet, tmp_path: Path) -> None:
    fleet.failures = ["it fell over"]
    with pytest.raises(HeraldError, match="1 runs failed.*\n.*alone #0: it fell over"):
        runner(fleet, tmp_path, replace(EXPERIMENT, slo_ms=50.0)).run()
    found = rows.read(tmp_path / "colocation.jsonl")
    assert ("alone", 0) not in order(found)
    assert len(found) == 5
    assert len(fleet.workers) == 3  # the service that failed, then a fresh pair


def test_a_trainer_attaches_with_the_profile_of_its_workload(fleet: Fleet, tmp_path: Path) -> None:
    strict: tuple[Setting, ...] = (settings.get("herald-strict"),)
    profiled = replace(EXPERIMENT, settings=strict, repeats=1, slo_ms=50.0, profiles=tmp_path)
    with pytest.raises(ConfigError, match=r"no cpu-vgg.profile.json; make it with"):
        runner(fleet, tmp_path, profiled).run()
    assert not fleet.workers
    path = tmp_path / "cpu-vgg.profile.json"
    path.touch()
    runner(fleet, tmp_path, profiled).run()
    training, inference = fleet.told("attach")
    assert training["profile"] == str(path.resolve()) == rows.read(tmp_path / "colocation.jsonl")[0]["profile"]
    assert "profile" not in inference


def test_a_run_under_herald_attaches_with_its_slo_and_leaves(fleet: Fleet, tmp_path: Path) -> None:
    strict: tuple[Setting, ...] = (settings.get("herald-strict"),)
    before = own_domains()
    runner(fleet, tmp_path, replace(EXPERIMENT, settings=strict, repeats=1, slo_ms=50.0)).run()
    training, inference = fleet.told("attach")
    assert (training["priority"], training["slo"]) == ("low", None)
    assert (inference["priority"], inference["slo"]) == ("high", "50.000ms")
    assert training["domain"] == inference["domain"]
    assert len(fleet.told("detach")) == 2
    assert rows.read(tmp_path / "colocation.jsonl")[0]["herald"]["training"] == {"ops_seen": 5}
    assert own_domains() == before  # its own domain, with a daemon, is gone
