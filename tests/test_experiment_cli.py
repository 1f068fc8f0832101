"""`herald demo` and `herald experiment`: what the words become, and what is refused before anything starts."""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from herald.cli import main
from herald.driver import NoDriverError
from herald.experiments import (
    classification,
    cli,
    coverage,
    decision_cost,
    demo,
    faults,
    hook_cost,
    numerics,
    options,
    overhead,
    prediction,
    recorder_overhead,
    rows,
    runner,
    steps,
    verdicts,
)
from herald.experiments.crew import Pair
from herald.experiments.domain import PrivateDomain
from herald.experiments.plan import Colocation
from herald.experiments.process import Launch, Worker, WorkerError
from herald.experiments.sweep_runner import Log

MEASUREMENTS = (
    decision_cost,
    hook_cost,
    recorder_overhead,
    prediction,
    classification,
    coverage,
    numerics,
    overhead,
    faults,
)
PAIR = "cpu-transformer+cpu-vgg"
COLOCATION = ["experiment", "colocation", "--pair", PAIR, "--device", "cpu"]


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_parsers(parser.add_subparsers())
    return parser.parse_args(words)


class FakeRunner:
    """Takes the place of `runner.Runner`."""

    made: dict[str, Any]

    def __init__(self, experiment: Colocation, path: Path, **options: Any) -> None:
        FakeRunner.made = {"experiment": experiment, "path": path, **options}

    def run(self) -> int:
        return 7


@pytest.fixture
def fake_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Runner", FakeRunner)


def test_a_colocation_is_what_was_said(fake_runner: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--settings", "alone,herald-strict", "--seconds", "3", "--repeats", "2", "--rate", "20", "--slo", "50ms"]
    assert main([*COLOCATION, *words, "--seed", "5", "--commit", "abc", "--out", str(tmp_path)]) == 0
    experiment = FakeRunner.made["experiment"]
    assert [str(pair) for pair in experiment.pairs] == [PAIR]
    assert [setting.name for setting in experiment.settings] == ["alone", "herald-strict"]
    assert (experiment.seconds, experiment.repeats, experiment.rate_hz) == (3.0, 2, 20.0)
    assert (experiment.slo_ms, experiment.seed, experiment.device) == (50.0, 5, "cpu")
    assert FakeRunner.made["path"] == tmp_path / "colocation.jsonl"
    assert (FakeRunner.made["commit"], FakeRunner.made["end_s"]) == ("abc", float("inf"))
    assert "7 new rows" in capsys.readouterr().out


def test_a_time_limit_has_a_unit_and_ends(fake_runner: None, tmp_path: Path) -> None:
    assert main([*COLOCATION, "--time-limit", "9min", "--out", str(tmp_path)]) == 0
    assert FakeRunner.made["end_s"] < float("inf")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--settings", "alon"], "did you mean 'alone'"),
        (["--pair", "vgg16"], "INFERENCE+TRAINING"),
        (["--mps", "on"], "MPS is for GPUs"),
        (["--seconds", "0"], "--seconds = 0"),
        (["--seconds", "nan"], "--seconds = nan"),
        (["--repeats", "0"], "--repeats = 0"),
        (["--slo", "50"], "has no unit"),
        (["--time-limit", "-1s"], "--time-limit"),
    ],
)
def test_bad_settings_are_one_clean_line(
    words: list[str], said: str, fake_runner: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = [f"{words[0]}={words[1]}"]  # a value may begin with a minus
    assert main([*COLOCATION, *joined, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_rows_are_only_added_to_on_request(
    fake_runner: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / runner.FILE_NAME).touch()
    assert main([*COLOCATION, "--out", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*COLOCATION, "--resume", "--out", str(tmp_path)]) == 0


def test_the_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(demo, "run", lambda options, **where: seen.update(options=options, **where))
    file = tmp_path / "demo.json"
    words = ["demo", "--device", "cpu", "--seconds", "5", "--seed", "3", "--slo", "20ms", "--json", str(file)]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert seen["options"] == demo.Options(device="cpu", seconds=5.0, seed=3, slo_ms=20.0)
    assert (seen["json_path"], seen["out"]) == (file, tmp_path)


@pytest.mark.parametrize(
    "kind", ["colocation", "report", *(module.KIND.name for module in MEASUREMENTS)], ids=lambda kind: kind
)
def test_every_experiment_explains_itself(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["experiment", kind, "--help"])
    assert done.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_parsing_imports_no_heavy_module(monkeypatch: pytest.MonkeyPatch) -> None:
    for heavy in ("torch", "matplotlib"):
        monkeypatch.setitem(sys.modules, heavy, None)  # an import of it fails
    assert parsed("experiment", "numerics", "--device", "cuda").steps > 0


EVERY_NEW_COMMAND = (
    ["frontier"],
    ["poster"],
    ["ablation"],
    ["steps"],
    ["crowd"],
    ["llm"],
    ["timeline", "--pair", PAIR],
    ["sm-switch"],
    ["simulate"],
    ["decision-cost"],
)


@pytest.mark.parametrize("words", EVERY_NEW_COMMAND, ids=lambda words: words[0])
def test_a_folder_that_cannot_be_written_is_found_before_anything_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["experiment", *words, "--out", str(file / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--out {file / 'out'}: {file} is not a folder" in line


WRITING = (
    ["demo", "--device", "cpu"],
    ["experiment", "colocation", "--pair", PAIR, "--device", "cpu"],
    ["experiment", "report", "rows.jsonl"],
    *(["experiment", *words] for words in EVERY_NEW_COMMAND),
    *(["experiment", module.KIND.name] for module in MEASUREMENTS),
)


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_a_file_system_that_takes_no_files_is_found_before_anything_starts(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "__init__", pytest.fail)
    monkeypatch.setattr(demo, "run", pytest.fail)
    monkeypatch.setattr(hook_cost, "run", pytest.fail)
    assert main([*words, "--out", "/proc/zz"]) == 2  # access rights do not tell
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("herald: error: --out /proc/zz: cannot be written (")
    assert line.endswith("; give another --out")


def test_a_json_file_that_cannot_be_written_is_found_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run", pytest.fail)
    out = tmp_path / "out"
    for file in (Path("/proc/x/y"), tmp_path, tmp_path / ("x" * 300) / "y"):
        assert main(["demo", "--device", "cpu", "--out", str(out), "--json", str(file)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--json {file}: cannot be written (" in line
    assert not list(tmp_path.iterdir())


def test_looking_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("kept")
    options.check_file("--json", file)
    options.check_file("--json", tmp_path / "new" / "file")
    options.check_out(tmp_path / "new" / "folder")
    assert file.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [file]


def test_steps_say_what_is_measured_before_a_process_starts(tmp_path: Path) -> None:
    def start(launch: Launch) -> Worker:
        raise WorkerError(launch.name)

    case = steps.Staircase(Pair.parse(PAIR), "cpu", seed=0)
    said = io.StringIO()
    log = Log.open(tmp_path / "rows", commit="abc", console=Console(file=said))
    with pytest.raises(WorkerError):
        steps.run(case, log, start=start, log_dir=tmp_path)
    assert said.getvalue() == (
        f"{PAIR}: how long a request takes alone; then load 0.1, 0.7, 0.1 for 12 s each: "
        "alone, train-alone, herald-strict, herald\n"
    )


@pytest.mark.parametrize("words", EVERY_NEW_COMMAND, ids=lambda words: words[0])
def test_a_broken_config_is_found_before_anything_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "herald.toml"
    file.write_text("policy = ")
    monkeypatch.setenv("HERALD_CONFIG", str(file))
    assert main(["experiment", *words, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"config {file}: is not valid TOML" in line


def test_an_experiment_without_herald_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERALD_DISABLE", "1")
    assert main(["experiment", "frontier", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "HERALD_DISABLE = '1'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [*EVERY_NEW_COMMAND[:7], ["colocation", "--pair", PAIR]], ids=lambda words: words[0])
def test_a_gpu_that_is_not_there_is_found_before_anything_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise NoDriverError("libcuda.so.1 cannot be loaded")

    monkeypatch.setattr(options, "probe", none)
    pair = ["--pair", "transformer+vgg16"] if "--pair" in words else []
    assert main(["experiment", words[0], *pair, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--device cuda: libcuda.so.1 cannot be loaded; see `herald doctor`" in line
    assert not list(tmp_path.iterdir())


def test_a_torch_without_cuda_is_found_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "probe", lambda: None)
    monkeypatch.setattr("torch.version.cuda", None)
    assert main(["experiment", "llm", "--out", str(tmp_path)]) == 2
    assert "is built without CUDA" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [*EVERY_NEW_COMMAND[:7], ["colocation", "--pair", PAIR], ["recorder"], ["numerics"]],
    ids=lambda words: words[0],
)
def test_native_libraries_that_cannot_be_built_are_found_before_anything_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERALD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.setattr(Worker, "__init__", pytest.fail)
    monkeypatch.setattr(PrivateDomain, "__init__", pytest.fail)
    out = tmp_path / "out"
    assert main(["experiment", *words, "--device", "cpu", "--commit", "abc", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no C++ compiler: CXX = '/nonexistent'" in line
    assert not out.exists()


def test_rows_of_something_else_do_not_validate_a_simulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "frontier.jsonl"
    rows.append(file, [{"kind": "llm"}])
    assert main(["experiment", "simulate", "--validate", str(file), "--out", str(tmp_path)]) == 2
    assert "no rows of `colocation` or `frontier` in there" in capsys.readouterr().err


def test_rows_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(rows.RowsError, match=r"cannot be read"):
        rows.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(rows.RowsError, match=r"cannot be written"):
        rows.append(tmp_path / "file" / "x.jsonl", [{"kind": "x"}])


def test_every_measurement_has_criteria_and_a_table() -> None:
    kinds = {m.KIND.name for m in MEASUREMENTS}
    assert kinds == set(verdicts.READERS)
