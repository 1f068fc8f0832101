"""Experiments that measure one thing: what is kept of it, shown and judged, and how blocks take their turns."""

from pathlib import Path
from typing import Any

import pytest

from herald.cli import main
from herald.experiments import (
    decision_cost,
    faults,
    hook_cost,
    measurement,
    measurement_cli,
    overhead,
    rows,
    verdicts,
)
from herald.scheduler import policies

HOOK_CASE = {
    "case": "training step",
    "alone": True,
    "looks_up": False,
    "lookup_ns_per_event": 80.0,
    "events_per_step": 100.0,
    "off_ns_per_step": 1e5,
    "on_ns_per_step": 1.1e5,
    "ns_per_event": 100.0,
    "ns_per_event_fastest": 90.0,
}


@pytest.mark.parametrize(("cost_ns", "code"), [(100.0, 0), (151.0, measurement_cli.EXIT_MISSED)])
def test_a_measurement_is_kept_shown_and_judged(
    cost_ns: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = HOOK_CASE | {"ns_per_event": cost_ns}
    monkeypatch.setattr(hook_cost, "run", lambda: iter([{"cases": [case]}]))
    assert main(["experiment", "hook-cost", "--out", str(tmp_path), "--commit", "abc"]) == code
    (row,) = rows.read(tmp_path / "hook-cost.jsonl")
    assert (row["kind"], row["cases"]) == ("hook-cost", [case])
    assert row["provenance"]["commit"] == "abc"
    shown = capsys.readouterr().out
    assert "training step" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_rows_measured_before_a_failure_are_kept(tmp_path: Path) -> None:
    def measured() -> Any:
        yield {"cases": [HOOK_CASE]}
        raise RuntimeError("the GPU fell off")

    with pytest.raises(RuntimeError):
        measurement.record(hook_cost.KIND, measured(), tmp_path)
    assert len(rows.read(tmp_path / "hook-cost.jsonl")) == 1


@pytest.mark.parametrize("module", [overhead, faults], ids=lambda module: module.KIND.name)
def test_mps_on_a_cpu_is_refused(module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", module.KIND.name, "--mps", "on", "--out", str(tmp_path)]) == 2
    assert "MPS is for GPUs" in capsys.readouterr().err


def test_the_profiler_counts_nested_ops_and_autograd() -> None:
    assert hook_cost.events_per_step(hook_cost.view()) == 1
    assert hook_cost.events_per_step(hook_cost.add()) == 1
    assert hook_cost.events_per_step(hook_cost.small_training()) > 50


def test_the_cost_of_an_event_is_the_median_over_pairs_of_blocks() -> None:
    blocks = hook_cost.Blocks(
        off_ns=[1000.0, 900.0, 5000.0], on_ns=[1100.0, 1100.0, 1000.0], idle_ns=[1050.0, 1060.0, 990.0]
    )
    cost = blocks.cost_ns(10)
    assert (cost["ns_per_event"], cost["ns_per_event_fastest"]) == (10.0, 10.0)
    assert cost["lookup_ns_per_event"] == 4.0


def test_overhead_is_the_median_ratio_with_its_spread() -> None:
    ratios = overhead.Blocks(off_s=[1.0, 1.0, 2.0], on_s=[1.0, 1.02, 2.02]).ratios()
    assert (ratios["ratio"], ratios["ratio_min"], ratios["ratio_max"]) == (1.01, 1.0, 1.02)
    assert ratios["ratio_min"] <= ratios["ratio_low"] <= ratios["ratio"] <= ratios["ratio_high"]


class Script:
    """A worker that answers from what it is asked and remembers it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def call(self, do: str, *, timeout_s: float, **fields: Any) -> dict[str, Any]:
        self.asked.append(do)
        return {"elapsed_s": 1.0, "step_s": [0.1], "ops_seen": 10**6, "attach_s": 0.0}


def test_blocks_take_turns_and_end_detached() -> None:
    script = Script()
    job = overhead.LoneJob(script, "training", "cpu", "domain")  # a part of a Channel
    job.learn(5)
    assert script.asked == ["attach", "stats", "detach"]
    ((blocks, stats),) = overhead.measured([job], steps=5, num_pairs=3)
    turns = script.asked[3:]
    on = ["train", "attach", "train", "train", "detach", "train"]
    assert turns == [*on, "train", "attach", "train", "detach"]
    assert (len(blocks.off_s), len(blocks.on_s)) == (3, 3)
    assert stats["ops_seen"] == 10**6


def test_quanta_take_turns() -> None:
    scripts = {q: Script() for q in ("a", "b")}
    jobs = [overhead.LoneJob(script, "training", "cpu", q) for q, script in scripts.items()]
    found = overhead.measured(jobs, steps=5, num_pairs=4)
    assert [(len(blocks.off_s), len(blocks.on_s)) for blocks, _ in found] == [(4, 4), (4, 4)]


OVERHEAD_ROW = {"workload": "w", "role": "training", "ratio_low": 1.0, "ratio_high": 1.1, "blocks": 4}


def test_only_a_trainer_that_is_alone_is_judged() -> None:
    rows = [OVERHEAD_ROW | {"ratio": r, "quantum_ns": q} for r, q in ((1.02, 125_000), (1.004, 250_000), (1.001, None))]
    assert [criterion.passed for criterion in verdicts.overhead(rows)] == [True]


@pytest.mark.parametrize(("text", "said"), [("250", "has no unit"), ("1s", "from 10us to 100ms")])
def test_a_bad_quantum_is_refused(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "overhead", "--quantum", text, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_progress_is_counted_from_the_kill() -> None:
    survivor = faults.progress("training", [1.0, 1.5, 2.25], kill_s=2.0)
    assert (survivor.waited_ms, survivor.recovered_ms) == (500.0, 250.0)
    assert str(survivor) == "training after 250 ms (had waited 500 ms)"


def test_no_progress_after_the_kill_is_said() -> None:
    survivor = faults.progress("training", [1.0], kill_s=2.0)
    assert survivor.recovered_ms is None
    assert "no progress" in str(survivor)


def test_what_a_decision_costs_is_measured_in_every_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_cost, "TICKS", 8)
    found = list(decision_cost.measure())
    assert [row["policy"].partition(":")[0] for row in found] == list(policies.names())
    assert all(row["decision_us"] > 0 and row["core_share"] > 0 for row in found)
