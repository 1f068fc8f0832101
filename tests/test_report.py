"""What a report says follows from rows alone: synthetic rows whose answers are known."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from herald.experiments import analysis, report, rows
from herald.experiments.rows import Row, RowsError

NUM_REQUESTS = 300
SECONDS = 30.0


def row(
    setting: str, repetition: int = 0, *, latency_ms: float = 0.0, steps_per_s: float = 0.0, mps: bool = False
) -> Row:
    """A run in which request i takes ``latency_ms`` and i % 10 ms more, of which 10 ms are service."""
    made: dict[str, Any] = {
        "kind": "colocation",
        "key": {
            "pair": "service+trainer",
            "setting": setting,
            "repetition": repetition,
            "device": "cuda",
            "seconds": SECONDS,
            "rate_hz": 10.0,
            "arrivals": "poisson",
            "seed": 0,
        },
        "mps": mps,
        "slo_ms": 40.0,
    }
    if latency_ms:
        values = [latency_ms + i % 10 for i in range(NUM_REQUESTS)]
        made["inference"] = {"latency_ms": values, "busy_s": NUM_REQUESTS * 0.01}
    if steps_per_s:
        made["training"] = {"steps_per_s": steps_per_s}
    return made


def colocation(herald_ms: float = 20.2, herald_steps: float = 9.0) -> list[Row]:
    """Load 0.1. Time slicing triples the latency; MPS at 25 % holds it at a quarter of the training."""
    return [
        made
        for r in range(3)
        for made in (
            row("alone", r, latency_ms=20),
            row("train-alone", r, steps_per_s=10),
            row("timeslice", r, latency_ms=60, steps_per_s=9.5),
            row("herald-strict", r, latency_ms=herald_ms, steps_per_s=herald_steps + r / 10),
            row("alone-mps", r, latency_ms=20, mps=True),
            row("train-alone-mps", r, steps_per_s=10, mps=True),
            row("mps", r, latency_ms=50, steps_per_s=9.8, mps=True),
            row("mps-pct-25", r, latency_ms=20.5, steps_per_s=2.5, mps=True),
        )
    ]


def outcomes(found: list[Row]) -> dict[str, bool]:
    """Short names of criteria and whether they are met."""
    verdict = analysis.verdict(analysis.groups(found))
    return {re.sub(r".*(p99 / alone|training / alone|every MPS setting).*", r"\1", c.what): c.passed for c in verdict}


@pytest.mark.parametrize(("steps_per_s", "passed"), [(9.2, True), (9.0, False), (8.8, False)])
def test_classes_are_to_train_more_than_where_every_op_is_heavy(steps_per_s: float, passed: bool) -> None:
    found = [
        row("alone-mps", latency_ms=20, mps=True),
        row("train-alone-mps", steps_per_s=10, mps=True),
        row("herald-strict-mps", latency_ms=20.2, steps_per_s=steps_per_s, mps=True),
        row("herald-all-heavy-mps", latency_ms=20.1, steps_per_s=9.0, mps=True),
    ]
    (criterion,) = [c for c in analysis.verdict(analysis.groups(found)) if "every op heavy" in c.what]
    assert criterion.passed is passed


def test_load_is_the_busy_fraction_of_the_service_alone() -> None:
    without, under = analysis.groups(colocation())
    assert (without.mps, under.mps) == (False, True)
    assert without.load == pytest.approx(NUM_REQUESTS * 0.01 / SECONDS)


def test_latency_is_pooled_and_compared_request_by_request() -> None:
    herald = analysis.groups(colocation())[0].result("herald-strict")
    assert herald is not None and herald.inference is not None and herald.inference.p99_ratio is not None
    assert herald.inference.count == 3 * NUM_REQUESTS
    assert herald.inference.p99_ratio.value == pytest.approx(29.2 / 29)
    assert herald.inference.difference_p99_ms == pytest.approx(0.2)
    assert herald.inference.p99_ratio.low <= herald.inference.p99_ratio.value <= herald.inference.p99_ratio.high
    assert herald.inference.p99_over_slo == pytest.approx(29.2 / 40)
    assert herald.inference.attainment == 1.0


def test_only_repetitions_that_were_also_run_alone_are_compared() -> None:
    found = [*colocation(), row("herald-strict", 3, latency_ms=500, steps_per_s=9)]
    herald = analysis.groups(found)[0].result("herald-strict")
    assert herald is not None and herald.inference is not None and herald.inference.p99_ratio is not None
    assert herald.inference.p99_ratio.value == pytest.approx(29.2 / 29)
    assert herald.inference.p99_ms > 500


def test_training_is_relative_to_the_trainer_alone_in_the_same_mps_state() -> None:
    herald = analysis.groups(colocation())[0].result("herald-strict")
    assert herald is not None and herald.training is not None and herald.training.relative is not None
    relative = herald.training.relative
    assert (relative.low, relative.value, relative.high) == pytest.approx((0.90, 0.91, 0.92))


def test_a_setting_without_its_reference_has_no_ratio() -> None:
    (group,) = analysis.groups([row("timeslice", latency_ms=60, steps_per_s=9.5)])
    (result,) = group.results
    assert group.load is None
    assert result.inference is not None and result.inference.p99_ratio is None
    assert result.training is not None and result.training.relative is None


def test_every_criterion_can_pass_and_be_missed() -> None:
    assert outcomes(colocation()) == {"p99 / alone": True, "training / alone": True, "every MPS setting": True}
    assert outcomes(colocation(herald_ms=21))["p99 / alone"] is False
    assert outcomes(colocation(herald_steps=8.0))["training / alone"] is False
    assert outcomes(colocation(herald_steps=2.0))["every MPS setting"] is False


def test_the_same_rows_give_the_same_numbers() -> None:
    assert analysis.groups(colocation()) == analysis.groups(colocation())


def test_the_report_is_a_page_a_figure_and_a_terminal_of_80_columns(tmp_path: Path) -> None:
    rows.append(tmp_path / "rows" / "colocation.jsonl", colocation())
    terminal = io.StringIO()
    verdict = report.write([tmp_path / "rows"], tmp_path / "out", console=Console(file=terminal, width=report.WIDTH))
    assert all(criterion.passed for criterion in verdict)
    page = (tmp_path / "out" / "report.md").read_text()
    figure = "frontier-service-beside-trainer-10hz.png"
    assert f"]({figure})" in page
    assert (tmp_path / "out" / figure).read_bytes().startswith(b"\x89PNG")
    assert "| herald-strict | 3 | 24.7 | 29.2 |" in page
    assert max(map(len, terminal.getvalue().splitlines())) <= 80
    assert "…" not in terminal.getvalue()


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="nowhere"):
        rows.read_all([tmp_path / "nowhere.jsonl"])
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text('{"kind": "colocation"}\n[1, 2]\n')
    with pytest.raises(RowsError, match=r"foreign.jsonl, line 2"):
        rows.read(foreign)


def test_a_line_cut_off_while_writing_is_dropped_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows.append(path, [{"kind": "a"}])
    with path.open("a") as file:
        file.write('{"kind": "b", "cut')
    assert rows.read(path) == [{"kind": "a"}]
    rows.append(path, [{"kind": "c"}])
    assert rows.read(path) == [{"kind": "a"}, {"kind": "c"}]
