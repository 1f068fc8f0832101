"""A sweep is planned, measured against one reference per pair, learnt before, resumed; workers are fakes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from herald.errors import ConfigError, HeraldError
from herald.experiments import device_share, rows, settings, stage, sweep, sweep_runner, sweeps
from herald.experiments.arrivals import from_json
from herald.experiments.crew import Pair
from herald.experiments.runner import OutOfTime
from herald.experiments.sweep import Sweep
from herald.experiments.sweep_runner import Log, SweepRunner
from tests.fake_workers import SERVICE_S, Fleet

PAIR = Pair("cpu-transformer", "cpu-vgg")
SWEEP = Sweep(
    kind="frontier",
    pairs=(PAIR,),
    settings=tuple(settings.choose(["alone", "train-alone", "timeslice", "mps", "alone-mps"], "both")),
    device="cpu",
    seconds=2.0,
    repeats=2,
    seed=7,
    slo_factors=(1.5, 2.0),
    load=0.4,
)


class FakeMps:
    pipe_dir = Path("/pipe")

    def clients(self) -> tuple[int, ...]:
        return tuple(range(100))


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    @contextmanager
    def fake_mps(_label: str) -> Iterator[FakeMps]:
        yield FakeMps()

    monkeypatch.setattr(stage, "private_mps", fake_mps)
    monkeypatch.setattr(sweep_runner, "private_mps", fake_mps)
    fleet = Fleet()
    yield fleet
    assert not any(worker.is_open for worker in fleet.workers)  # whatever happened


def run(
    fleet: Fleet,
    folder: Path,
    experiment: Sweep = SWEEP,
    *,
    end_s: float = float("inf"),
    known: list[rows.Row] | None = None,
    name: str = "frontier",
) -> int:
    log = Log.open(
        folder / f"{name}.jsonl",
        known=known or [],
        commit="abc",
        end_s=end_s,
        clock_s=lambda: fleet.now_s,
        console=Console(file=io.StringIO()),
    )
    return SweepRunner(experiment, log, start=fleet.start, log_dir=folder).run()


def written(folder: Path, kind: str = "frontier") -> list[rows.Row]:
    return rows.of_kind(rows.read(folder / "frontier.jsonl"), kind)


def with_settings(*names: str, **rest: Any) -> Sweep:
    return replace(SWEEP, settings=tuple(settings.choose(names, "both")), **rest)


def order(experiment: Sweep, *, mps: bool, slowdown: float = 1.0) -> list[tuple[str, float | None, int]]:
    runs = sweep.plan(experiment, PAIR, mps=mps, service={"mean_s": SERVICE_S, "slowdown": slowdown, "busy_share": 1.0})
    return [(run.setting.name, run.key.slo_factor, run.key.repetition) for run in runs]


def test_alone_comes_first_in_all_repetitions_and_the_others_rotate() -> None:
    assert order(SWEEP, mps=False) == [
        *(("alone", None, 0), ("alone", None, 1)),
        *(("train-alone", None, 0), ("timeslice", None, 0)),
        *(("timeslice", None, 1), ("train-alone", None, 1)),
    ]


def test_a_setting_has_another_part_of_every_repetition() -> None:
    names = ("alone", "train-alone", "timeslice", "herald-strict", "herald")
    runs = order(with_settings(*names, repeats=3), mps=False)[3:]
    turns = [[(name, factor) for name, factor, repetition in runs if repetition == turn] for turn in range(3)]
    assert [turn.index(("train-alone", None)) for turn in turns] == [0, 4, 2]
    assert [turn.index(("herald", 2.0)) for turn in turns] == [4, 3, 1]


def test_only_a_setting_that_asks_for_the_slo_runs_once_for_each() -> None:
    mine = order(with_settings("alone", "herald-strict", "herald", repeats=1), mps=False)
    assert mine[1:] == [("herald-strict", None, 0), ("herald", 1.5, 0), ("herald", 2.0, 0)]


@pytest.mark.parametrize(("slowdown", "under_mps"), [(1.0, [1.5, 2.0]), (1.25, [2.0]), (1.8, [])])
def test_the_controller_runs_in_the_state_that_pays(slowdown: float, under_mps: list[float]) -> None:
    both = with_settings("alone", "herald", "herald-mps", repeats=1)
    told = {mps: [f for name, f, _ in order(both, mps=mps, slowdown=slowdown) if f] for mps in (False, True)}
    assert told[True] == under_mps
    assert sorted(told[False] + told[True]) == [1.5, 2.0]
    everywhere = replace(both, both_states=True)
    assert all(any("herald" in name for name, _, _ in order(everywhere, mps=mps)) for mps in (False, True))


def test_the_controller_runs_in_the_only_state_there_is() -> None:
    assert order(with_settings("alone", "herald-mps", repeats=1), mps=True, slowdown=9.0) == [
        ("herald-mps", 1.5, 0),
        ("herald-mps", 2.0, 0),
    ]


def test_a_piece_is_one_mps_state() -> None:
    assert order(replace(SWEEP, mps="on"), mps=False) == []
    assert order(replace(SWEEP, mps="on"), mps=True) == order(SWEEP, mps=True)


def test_the_rate_follows_from_the_time_of_a_request_alone_in_both_states(fleet: Fleet, tmp_path: Path) -> None:
    run(fleet, tmp_path)
    (service,) = written(tmp_path, "service-time")
    assert (service["workload"], service["mean_s"], service["busy_share"]) == ("cpu-transformer", SERVICE_S, 1.0)
    assert {row["arrivals"]["rate_hz"] for row in written(tmp_path)} == {0.4 / SERVICE_S}


def test_the_process_that_was_profiled_measures_nothing_else(fleet: Fleet, tmp_path: Path) -> None:
    run(fleet, tmp_path)
    assert {name for name, do, _ in fleet.log if do == "instrument"} == {"probe"}
    assert "probe" not in {name for name, do, _ in fleet.log if do == "run"}


def test_the_slo_is_that_of_alone_without_mps_in_both_states(fleet: Fleet, tmp_path: Path) -> None:
    run(fleet, tmp_path, with_settings("alone", "alone-mps", "herald-laxity", "herald-laxity-mps", repeats=1))
    (reference,) = written(tmp_path, "slo-reference")
    assert reference["p99_ms"] == pytest.approx(5, abs=0.01)
    slos = {(r["key"]["setting"], r["key"]["slo_factor"]): r["slo_ms"] for r in written(tmp_path) if r["policy"]}
    assert slos == {
        (f"herald-laxity{state}", factor): pytest.approx(5 * factor, abs=0.02)
        for state in ("", "-mps")
        for factor in (1.5, 2.0)
    }


def test_a_policy_that_learns_does_so_once_before_its_first_row(fleet: Fleet, tmp_path: Path) -> None:
    run(fleet, tmp_path, with_settings("alone", "herald-laxity", repeats=1, learn_s=1.0))
    kinds = [row["kind"] for row in rows.read(tmp_path / "frontier.jsonl")]
    assert kinds == ["service-time", "frontier", "slo-reference", "learning", "frontier", "frontier"]
    (learning,) = written(tmp_path, "learning")
    assert learning["arrivals"]["seed"] not in {row["arrivals"]["seed"] for row in written(tmp_path)}
    assert len({fields["domain"] for fields in fleet.told("attach")}) == 1  # one daemon for all SLOs
    assert run(fleet, tmp_path, with_settings("alone", "herald-laxity", repeats=1, learn_s=1.0)) == 0


def test_all_processes_of_a_state_start_together(fleet: Fleet, tmp_path: Path) -> None:
    run(fleet, tmp_path)
    dos = [do for _, do, _ in fleet.log]
    assert dos[:4] == ["load"] * 4  # two probes, service, trainer
    assert [worker.launch.name for worker in fleet.workers] == ["probe", "probe-mps", *["inference", "training"] * 2]


def test_rows_leave_out_what_can_be_computed_again(fleet: Fleet, tmp_path: Path) -> None:
    run(fleet, tmp_path)
    row = next(row for row in written(tmp_path) if row["key"]["setting"] == "timeslice")
    assert len(from_json(row["arrivals"]).times_s(SWEEP.seconds)) == len(row["inference"]["latency_ms"])
    assert row["inference"].keys().isdisjoint({"scheduled_s", "service_ms"})


def test_resuming_does_what_is_missing_and_keeps_the_references(fleet: Fleet, tmp_path: Path) -> None:
    first = run(fleet, tmp_path, replace(SWEEP, mps="off"))
    assert (first, len(written(tmp_path))) == (7, 6)  # and the service's time
    fleet.log.clear()
    assert run(fleet, tmp_path) == 4
    assert not fleet.told("instrument")
    assert run(fleet, tmp_path) == 0


def test_a_piece_may_know_the_references_from_another_file(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--mps off first, or give --known"):
        run(fleet, tmp_path, replace(SWEEP, mps="on"), name="piece")
    run(fleet, tmp_path, replace(SWEEP, mps="off"))
    known = rows.read(tmp_path / "frontier.jsonl")
    assert run(fleet, tmp_path, replace(SWEEP, mps="on"), known=known, name="piece") == 4


def test_the_time_limit_ends_it_between_rows(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(OutOfTime, match="--resume"):
        run(fleet, tmp_path, replace(SWEEP, seconds=10.0), end_s=60.0)
    assert 0 < len(written(tmp_path)) < 10
    assert fleet.now_s <= 60.0


def test_a_failed_run_costs_its_row_only(fleet: Fleet, tmp_path: Path) -> None:
    run(fleet, tmp_path, replace(SWEEP, mps="off", repeats=1))
    fleet.failures = ["it fell over"]
    with pytest.raises(HeraldError, match="1 runs failed"):
        run(fleet, tmp_path, replace(SWEEP, repeats=1))
    assert len(written(tmp_path)) == 4


def test_a_sweep_without_the_reference_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add 'alone'"):
        run(fleet, tmp_path, with_settings("timeslice"))
    assert not fleet.workers


def a_row(setting: str, *, kind: str = "frontier", pair: str = "bert+dlrm", **key: object) -> rows.Row:
    return {
        "kind": kind,
        "key": {"pair": pair, "setting": setting, "slo_factor": None, "repetition": 2} | key,
        "inference": {"p99_ms": 381.514, "attainment": 0.97014},
        "training": {"steps_per_s": 128.3701},
    }


def test_a_row_is_told_in_a_line() -> None:
    assert sweep_runner.told(a_row("herald", slo_factor=1.5)) == (
        "bert+dlrm herald 1.5x #2: p99 382 ms, 97.0% met, 128 steps/s"
    )
    alone = a_row("alone") | {"inference": {"p99_ms": 9.876, "attainment": None}}
    del alone["training"]
    assert sweep_runner.told(alone) == "bert+dlrm alone #2: p99 9.88 ms"
    nothing = a_row("timeslice") | {"inference": {"p99_ms": None, "attainment": None}}
    assert sweep_runner.told(nothing) == "bert+dlrm timeslice #2: p99 - ms, 128 steps/s"


def test_only_a_run_in_which_all_requests_are_in_time_has_all() -> None:
    row = a_row("free")
    for attainment, said in ((1.0, "100% met"), (0.99996, "100.0% met")):
        row["inference"]["attainment"] = attainment
        assert said in sweep_runner.told(row)


def test_a_learning_run_is_not_told_as_one_of_the_slo_that_follows() -> None:
    """It is under the middle SLO, whatever that of the run before which it is."""
    row = a_row("herald", kind=sweep.LEARNING_KIND, slo_factor=1.1)
    assert sweep_runner.told(row) == "bert+dlrm herald learning: p99 382 ms, 97.0% met, 128 steps/s"


@pytest.mark.parametrize("name", ["frontier", "poster"])
def test_progress_fits_into_80_columns(name: str) -> None:
    template = sweeps.TEMPLATES[name]
    runs = [a_row(s, pair=pair) for pair in template.pairs for s in template.settings]
    asking = [s for s in template.settings if settings.get(s).uses_slo]
    assert asking
    runs += [a_row(s, pair=pair, slo_factor=1.5) for pair in template.pairs for s in asking]
    runs += [a_row(s, pair=pair, kind=sweep.LEARNING_KIND) for pair in template.pairs for s in asking]
    assert max(len(sweep_runner.told(row)) for row in runs) <= 80


@pytest.mark.parametrize("template", sweeps.TEMPLATES.values(), ids=lambda template: template.kind)
def test_a_template_names_settings_and_pairs_that_exist(template: sweeps.Template) -> None:
    from herald.experiments import workloads

    assert len(settings.choose(template.settings, "both")) == len(template.settings)
    for pair in map(Pair.parse, template.pairs):
        assert workloads.get(pair.inference).role == "inference"
        assert workloads.get(pair.training).role == "training"


def test_overlapping_spans_count_once() -> None:
    spans = np.array([[10, 20], [0, 5], [12, 14], [18, 30]], dtype=np.int64)
    assert device_share.union_ns(spans) == 25
    assert device_share.union_ns(spans[:0]) == 0
