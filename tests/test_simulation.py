"""Studies of many simulated GPUs, and the simulator against rows that were measured."""

import json
from pathlib import Path

import pytest

from herald.cli import main
from herald.errors import ConfigError
from herald.experiments import rows, simulation, simulation_check
from herald.experiments.simulation import Study

MEASURED = Path(__file__).resolve().parents[1] / "experiments" / "results" / "h200" / "colocation.jsonl"
SMALL = Study(policies=("strict", "free"), num_gpus=3, num_services=2, num_trainers=2, seconds=4)


def test_a_study_gives_every_policy_the_same_requests() -> None:
    found = list(simulation.run(SMALL))
    assert [(row["policy"], row["gpu"]) for row in found] == [(p, gpu) for p in ("strict", "free") for gpu in range(3)]
    asked = [[service["requests"] for service in row["services"]] for row in found]
    assert asked[:3] == asked[3:]
    assert found == list(simulation.run(SMALL))


def test_totals_say_what_sharing_costs() -> None:
    strict, free = simulation.totals(list(simulation.run(SMALL)))
    assert (strict.policy, free.policy) == ("strict", "free")
    assert strict.requests == free.requests > 200
    assert strict.attainment > free.attainment
    assert strict.training < free.training
    assert strict.excess < free.excess


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"policies": ("strct",)}, "--policies = 'strct'.*'strict'"),
        ({"load": 1.5}, "--load"),
        ({"num_gpus": 0}, "--gpus"),
        ({"arrivals": "busty"}, "'bursty'"),
    ],
)
def test_a_bad_study_says_what_is_allowed(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Study(**({"policies": ("strict",)} | wrong))


def test_the_simulator_gives_what_was_measured_on_an_h200() -> None:
    """Transformer beside VGG16: inflation and rates from the first repetition, all others predicted."""
    measured = [row for row in rows.read(MEASURED) if row["key"]["pair"] == "transformer+vgg16"]
    checked = simulation_check.check(measured)
    predicted = [run for run in checked if not run.fitted]
    assert len(checked) - len(predicted) == 5  # time slicing and four of MPS
    assert {run.setting for run in predicted} >= {"timeslice", "mps", "herald-strict", "herald-strict-mps"}
    assert all(abs(run.p99_error) < 0.05 for run in predicted)
    assert all(abs(run.training_error) < 0.02 for run in predicted)


def test_the_command_writes_rows_and_prints_a_table_of_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--gpus", "2", "--services", "1", "--trainers", "1", "--seconds", "2", "--policies", "strict,timeslice"]
    assert main(["experiment", "simulate", *words, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "timeslice" in said
    assert all(len(line) <= 80 for line in said.splitlines() if str(tmp_path) not in line)
    (first, *_) = written = [json.loads(line) for line in (tmp_path / "simulation.jsonl").read_text().splitlines()]
    assert len(written) == 4
    assert first["kind"] == "simulation"
    assert first["provenance"]["commit"]


def test_the_typical_error_is_the_median_of_magnitudes_relative_to_what_was_measured() -> None:
    def run(p99_ms: float, training: float, measured_training: float = 0.5) -> simulation_check.Checked:
        return simulation_check.Checked("a+b", False, "mps", 0, False, 100.0, p99_ms, measured_training, training)

    found = simulation_check.typical_errors([run(90.0, 0.4), run(102.0, 0.5), run(130.0, 0.8)])
    assert list(found) == ["a+b"]
    assert (found["a+b"].runs, found["a+b"].p99, found["a+b"].training) == (3, pytest.approx(0.1), pytest.approx(0.2))
    assert [run(100.0, training, 0.0).training_ratio_error for training in (0.0, 0.1)] == [0.0, float("inf")]


def test_validation_prints_the_errors_of_each_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [row for row in rows.read(MEASURED) if row["key"]["repetition"] == 0 and not row["mps"]]
    path = tmp_path / "rows.jsonl"
    rows.append(path, few)
    assert main(["experiment", "simulate", "--validate", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "transformer+vgg16" in said
    assert "graph-decode+vgg16" in said
    assert "1 fitted" in said
    (heading,) = (line for line in said.splitlines() if "medians of" in line)
    assert [line.split()[:2] for line in said.splitlines()[said.splitlines().index(heading) + 1 :][:2]] == [
        ["transformer+vgg16", "1"],
        ["graph-decode+vgg16", "1"],
    ]
    assert len((tmp_path / "out" / "simulation-check.jsonl").read_text().splitlines()) == 4
