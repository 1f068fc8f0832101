"""The experiment on unseen ops: what a row says, when it passes, and that old rows can be judged anew."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from herald.classify import RULES
from herald.cli import main
from herald.errors import ConfigError
from herald.experiments import classification, measurement, report, rows, verdicts
from herald.experiments.calibration import collect

TERMS = classification.Terms(RULES / "h200.json", bound_percent=10)


def row(blocks: int = 4, duration_ns: int = 1_000, harm: float = 5.0, op: str = "bert/aten::x()") -> dict[str, Any]:
    return {
        "kind": "classification",
        "op": op,
        "mps": True,
        "signatures": ["aten::x()"],
        "numel": 10,
        "bytes_in": 40,
        "bytes_out": 40,
        "flops": 0,
        "kernels": [
            {
                "name": "k",
                "calls": 1.0,
                "duration_ns": duration_ns,
                "grid": [blocks, 1, 1],
                "block": [128, 1, 1],
                "registers": 32,
                "shared_bytes": 0,
                "blocks_per_sm": blocks / 132,
                "occupancy": 0.1,
            }
        ],
        "call_ns": duration_ns,
        "probes": {"compute": {"mean": 1.0}, "memory": {"mean": 0.0}, "small": {"mean": harm}},
        "device": {"gpu": "NVIDIA H200"},
    }


def predicted(*measured: dict[str, Any]) -> list[dict[str, Any]]:
    return [classification.predicted(each, TERMS) for each in measured]


LIGHT = row()
HEAVY = row(1000, 100_000, 300.0)
MIDDLE = row(132, 3_000, 40.0)


def test_a_row_has_what_was_measured_and_what_was_predicted() -> None:
    light, heavy = predicted(LIGHT, HEAVY)
    assert (light["measured"], light["class"], light["bound"]) == (5.0, "light", 10)
    assert heavy["class"] == "heavy"
    assert light["predicted"] < 10 / light["margin"] < heavy["predicted"]


def test_an_op_that_was_not_measured_is_shown_without_numbers() -> None:
    skipped = {"kind": "classification", "op": "bert/aten::y()", "mps": True, "skipped": "it broke"}
    assert predicted(skipped) == [skipped]
    assert list(classification.KIND.lines(skipped)) == [("bert/aten::y()", "-", "-", "-")]


def outcomes(*measured: dict[str, Any]) -> list[bool]:
    return [criterion.passed for criterion in verdicts.classification(predicted(*measured))]


def test_both_criteria_can_pass_and_be_missed() -> None:
    assert outcomes(LIGHT, MIDDLE, HEAVY) == [True, True]
    assert outcomes(LIGHT, row(132, 3_000, 400.0), row(1000, 100_000, 1.0)) == [False, True]
    assert outcomes(row(harm=20.1), MIDDLE, HEAVY) == [True, False]
    assert outcomes({"op": "bert/x", "mps": True, "skipped": "it broke"}) == [False]


def test_models_of_the_calibration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--workload = 'vgg16': the rule was fitted to its ops"):
        list(classification.run(TERMS, names=["vgg16"], ops_per_workload=2, seed=0, log_dir=tmp_path, limit_s=1))
    assert not set(classification.HELD_OUT) & set(collect.WORKLOADS["cuda"])


def test_the_table_fits_a_terminal() -> None:
    terminal = io.StringIO()
    long = row(op="bert/" + "aten::convolution_backward(Float[32, 64], " * 5)
    measurement.show(classification.KIND, predicted(long, HEAVY), Console(file=terminal, width=report.WIDTH))
    assert all(len(line) <= 80 for line in terminal.getvalue().splitlines())
    assert "heavy" in terminal.getvalue()


def test_old_rows_are_judged_by_another_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.append(tmp_path / "rows.jsonl", predicted(row(harm=25.0), MIDDLE, HEAVY))
    words = ["experiment", "classification", "--rows", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*words, "--bound", "10"]) == 1
    assert "MISS" in capsys.readouterr().out
    assert main([*words, "--bound", "13"]) == 0
    assert (tmp_path / "out" / "classification.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_draws_and_judges_the_rows(tmp_path: Path) -> None:
    rows.append(tmp_path / "rows" / "classification.jsonl", predicted(LIGHT, MIDDLE, HEAVY))
    terminal = Console(file=io.StringIO(), width=report.WIDTH)
    assert all(c.passed for c in report.write([tmp_path / "rows"], tmp_path / "out", console=terminal))
    assert "](classification.png)" in (tmp_path / "out" / "report.md").read_text()
