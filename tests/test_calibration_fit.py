"""From rows to a rule: weights are found again, what is held out stays out, and the margin covers what was missed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herald.classify import RULES, Limits, Rule, classify, read_rule
from herald.cli import main
from herald.experiments import rows
from herald.experiments.calibration import fit, limits, nnls, samples
from herald.experiments.calibration.samples import Sample
from herald.profiles import KernelFacts, OpProfile

LIMITS = Limits(2048, 65536, 233472, 32, 4.8e12, 50_000_000)
TRUTH = Rule("a GPU", LIMITS, 2, 80, 20, 40, 30_000, 1.0, ())
RESULTS = Path(__file__).parents[1] / "experiments" / "results" / "h200"


def op(blocks: int, duration_ns: int, bytes_in: int) -> OpProfile:
    facts = KernelFacts("k", 1.0, duration_ns, (blocks, 1, 1), (256, 1, 1), 32, 0, blocks / 132, 0.5)
    return OpProfile("aten::x()", 0, duration_ns + 300, bytes_in // 4, bytes_in=bytes_in, kernels=(facts,))


def synthetic(rule: Rule = TRUTH) -> list[Sample]:
    """Of six models, each with ops of all sizes, harmful as the rule says."""
    sizes = [(b, d, 40 * b * d) for b in (4, 40, 132, 4000) for d in (1_000, 4_000, 20_000, 200_000)]
    return [
        Sample(f"model{m}/op{place}", one, (0.1, 0.2, rule.harm(one)))
        for m in range(6)
        for place, (b, d, n) in enumerate(sizes)
        for one in [op(b + m, d + 100 * m, n)]
    ]


# Least squares --------------------------------------------------------------------------------------------------------


def test_weights_that_are_positive_are_those_of_plain_least_squares() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert nnls.solve(a, np.array([1.0, 3.0, 5.0])) == pytest.approx([1.0, 2.0])


def test_a_weight_that_would_be_negative_is_0_and_the_others_make_up_for_it() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert nnls.solve(a, np.array([5.0, 3.0, 1.0])) == pytest.approx([3.0, 0.0])
    assert nnls.solve(a, np.array([-1.0, -1.0, -1.0])) == pytest.approx([0.0, 0.0])


def test_random_problems_meet_the_conditions_of_an_optimum() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = random.normal(size=(12, 4)), random.normal(size=12)
        x = nnls.solve(a, b)
        gain = a.T @ (b - a @ x)
        assert (x >= 0).all()
        assert (gain <= 1e-8).all()
        assert abs(gain[x > 0]) == pytest.approx(0, abs=1e-8)


def test_rank_correlation_goes_by_order_and_shares_ranks() -> None:
    assert fit.spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert fit.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert fit.spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1)


# The fit --------------------------------------------------------------------------------------------------------------


def test_the_weights_of_synthetic_ops_are_found_again() -> None:
    found = fit.fit(synthetic(), "a GPU", LIMITS)
    rule = found.rule
    assert (rule.runs, rule.hold, rule.drain, rule.traffic) == pytest.approx((2, 80, 20, 40), rel=0.01)
    assert (rule.hold_limit_ns, rule.margin) == (30_000, 1.0)
    assert [each.harm for each in found.unseen] == pytest.approx([each.sample.harm for each in found.unseen], rel=0.01)


def test_what_is_predicted_is_predicted_by_others() -> None:
    odd = [replace(s, harms=(0, 0, 1000.0)) if s.group == "model0" else s for s in synthetic()]
    told = [each.harm for each in fit.fit(odd, "a GPU", LIMITS).unseen if each.sample.group == "model0"]
    assert max(told) < 500


def test_the_margin_covers_what_was_under_predicted() -> None:
    odd = [replace(s, harms=(0, 0, 3 * s.harm)) if s.group == "model0" else s for s in synthetic()]
    found = fit.fit(odd, "a GPU", LIMITS)
    assert 1.2 < found.rule.margin < 1.6
    for bound in fit.BOUNDS:
        light = [each.sample.harm for each in found.unseen if each.harm * found.rule.margin < bound]
        assert all(harm <= 2 * bound for harm in light)


def test_the_quick_rule_has_no_op_over_its_bound() -> None:
    for point in fit.quick_points(synthetic()):
        below = [s for s in synthetic() if s.op.self_ns <= point.light_ns and s.op.numel <= point.light_numel]
        assert len(below) >= 5
        assert max(s.harm for s in below) <= point.harm_percent


def test_too_few_ops_are_an_error() -> None:
    with pytest.raises(fit.FitError, match="3 ops were measured under MPS.*--limit"):
        fit.fit(synthetic()[:3], "a GPU", LIMITS)


# Rows -----------------------------------------------------------------------------------------------------------------


def row(sample: Sample, mps: bool = True, gpu: str = "a GPU") -> dict[str, Any]:
    facts = sample.op.kernels[0]
    probes = {kind: {"mean": harm, "p50": 0.0} for kind, harm in zip(samples.WORST_OF, sample.harms, strict=True)}
    return {
        "kind": "calibration",
        "op": sample.label,
        "mps": mps,
        "signatures": ["aten::x()"],
        "numel": sample.op.numel,
        "bytes_in": sample.op.bytes_in,
        "bytes_out": 0,
        "flops": 0,
        "kernels": [{**vars(facts), "grid": list(facts.grid), "block": list(facts.block)}],
        "call_ns": sample.op.self_ns,
        "probes": probes,
        "device": {"gpu": gpu, "torch": "2", "limits": vars(LIMITS)},
        "provenance": {"date": "2026-01-01", "herald": "0", "commit": None, "machine": {}},
    }


def test_a_row_says_what_its_sample_is() -> None:
    for sample in synthetic()[:5]:
        assert samples.of_rows([row(sample)]) == [replace(sample, harms=list(sample.harms))]


def test_rows_that_say_too_little_are_left_out() -> None:
    whole = row(synthetic()[0])
    incomplete = [{**whole, "mps": False}, {**whole, "probes": None}, {**whole, "kernels": []}]
    assert samples.of_rows(incomplete) == []
    assert samples.of_rows([{"op": "x", "mps": True, "skipped": "it broke"}]) == []


def test_groups_are_models_and_kinds_of_the_sweep() -> None:
    labels = ("sweep/mm-bf16-2048x2048x2048", "sweep/mm-64x64x64", "vgg16/aten::relu_(Float[32, 64-])")
    groups = [replace(synthetic()[0], label=label).group for label in labels]
    assert groups == ["sweep/mm-bf16", "sweep/mm", "vgg16"]


def test_limits_come_from_the_driver_or_from_the_shipped_rule() -> None:
    sample = synthetic()[0]
    assert limits.of_rows([row(sample)]) == LIMITS
    old = {**row(sample, gpu="NVIDIA H200"), "device": {"gpu": "NVIDIA H200"}}
    assert limits.of_rows([old]) == read_rule(RULES / "h200.json").limits
    assert limits.of_properties(object()) is None


# The command ----------------------------------------------------------------------------------------------------------


def kept(folder: Path, found: list[dict[str, Any]]) -> str:
    rows.append(folder / "rows.jsonl", found)
    return str(folder / "rows.jsonl")


def test_the_command_fits_rows_and_writes_a_rule_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [row(sample, mps) for sample in synthetic() for mps in (True, False)]
    out = tmp_path / "deeper" / "rule.json"
    assert main(["calibrate", "--fit-only", kept(tmp_path, found), "--out", str(out)]) == 0
    rule = read_rule(out)
    assert (rule.device, rule.limits) == ("a GPU", LIMITS)
    assert classify(op(1, 900, 0), rule, 10) == "light"
    document = json.loads(out.read_text())
    assert document["fit"]["spearman"] == pytest.approx(1)
    assert document["provenance"]["rows"]["count"] == len(found)
    said = capsys.readouterr().out
    assert "rank correlation 1.000" in said
    assert all(len(line) <= 80 for line in said.splitlines() if str(tmp_path) not in line)


def test_rows_of_two_devices_make_no_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [row(synthetic()[0]), row(synthetic()[0], gpu="another")]
    assert main(["calibrate", "--fit-only", kept(tmp_path, found), "--out", str(tmp_path / "r.json")]) == 2
    assert "a rule is of one" in capsys.readouterr().err


def test_the_shipped_rule_is_that_of_the_committed_rows(tmp_path: Path) -> None:
    out = tmp_path / "h200.json"
    assert main(["calibrate", "--fit-only", str(RESULTS / "calibration.jsonl"), "--out", str(out)]) == 0
    assert read_rule(out) == read_rule(RULES / "h200.json")
