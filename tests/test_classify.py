"""Light and heavy: what makes an op harmful, that bounds are kept, and that a damaged rule is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herald.classify import (
    NONE_BELOW_NS,
    RULES,
    Limits,
    QuickPoint,
    Rule,
    classified,
    classify,
    load_rule,
    quick,
    read_rule,
    terms,
)
from herald.errors import ConfigError
from herald.experiments import rows
from herald.experiments.calibration import samples
from herald.profiles import KernelFacts, OpProfile

LIMITS = Limits(2048, 65536, 233472, 32, 4.8e12, 50_000_000)
RULE = Rule("a GPU", LIMITS, 1, 100, 10, 50, 10_000, 1.5, (QuickPoint(10, 2_600, 1000), QuickPoint(20, 4_000, 2000)))
H200 = load_rule("NVIDIA H200")
ROWS = Path(__file__).parents[1] / "experiments" / "results" / "h200" / "calibration.jsonl"


def kernel(duration_ns: int = 1_000, blocks_per_sm: float = 0.5, **facts: Any) -> KernelFacts:
    defaults: dict[str, Any] = {
        "name": "k",
        "calls": 1.0,
        "duration_ns": duration_ns,
        "grid": (66, 1, 1),
        "block": (128, 1, 1),
        "registers": 32,
        "shared_bytes": 0,
        "blocks_per_sm": blocks_per_sm,
        "occupancy": 0.1,
    }
    return KernelFacts(**{**defaults, **facts})


def op(*kernels: KernelFacts, **facts: Any) -> OpProfile:
    return OpProfile(**{"signature": "aten::x()", "key": 1, "self_ns": 1_000, "numel": 10, "kernels": kernels, **facts})


# Harm -----------------------------------------------------------------------------------------------------------------


def test_the_terms_of_one_kernel() -> None:
    found = terms(op(kernel(4_000, 0.5), bytes_in=10_000_000), LIMITS, hold_limit_ns=10_000)
    assert found.runs == 1
    assert found.hold == pytest.approx(0.5 * 0.4)
    assert found.drain == pytest.approx(0.5 * (4 / 16) ** 0.5)  # 16 blocks of 128 threads are on an SM
    assert found.traffic == pytest.approx(0.5 * (2.5e12 / 4.8e12 * 10 / 60) ** 2)


@pytest.mark.parametrize(
    ("facts", "resident"),
    [
        ({}, 16),  # by threads
        ({"registers": 100}, 4),  # 104 x 128 each
        ({"shared_bytes": 200_000}, 1),
        ({"block": (32, 1, 1)}, 32),  # by blocks
        ({"block": (33, 1, 1)}, 32),  # whole warps
        ({"block": (1024, 1, 1), "registers": 255, "shared_bytes": 10**9}, 1),
    ],
)
def test_the_blocks_that_an_sm_can_hold(facts: dict[str, Any], resident: int) -> None:
    assert LIMITS.resident(kernel(**facts)) == resident


@pytest.mark.parametrize(
    "worse",
    [
        op(kernel(duration_ns=3_000)),
        op(kernel(blocks_per_sm=0.9)),
        op(kernel(shared_bytes=200_000)),
        op(kernel(), bytes_in=10_000_000),
    ],
    ids=["longer", "on more SMs", "harder to get past", "more traffic"],
)
def test_asking_for_more_is_never_less_harmful(worse: OpProfile) -> None:
    assert RULE.harm(worse) > RULE.harm(op(kernel()))


def test_kernels_count_by_their_time() -> None:
    short, long = kernel(1_000, 0.1), kernel(9_000, 1.0)
    both = RULE.harm(op(short, long))
    assert both == pytest.approx(0.1 * RULE.harm(op(short)) + 0.9 * RULE.harm(op(long)))
    assert RULE.harm(op(replace(short, calls=9.0), long)) < both


def test_a_copy_of_the_driver_counts_as_on_all_sms() -> None:
    copy = kernel(1_000, 0, grid=(0, 0, 0), block=(0, 0, 0))
    assert terms(op(copy), LIMITS, 10_000).hold == 0.1


def test_an_op_without_kernels_is_taken_for_the_worst_of_its_length() -> None:
    assert RULE.harm(op(self_ns=3_000)) > RULE.harm(op(kernel(3_000, 1.0)))
    assert RULE.harm(op(self_ns=0)) == 0


# Classes --------------------------------------------------------------------------------------------------------------


def test_light_is_what_is_below_the_bound_with_the_margin_on_top() -> None:
    one = op(kernel())
    least = RULE.harm(one) * RULE.margin
    assert classify(one, RULE, least + 0.01) == "light"
    assert classify(one, RULE, least) == "heavy"


@pytest.mark.parametrize("one", [op(kernel(1, 0.001)), op(self_ns=5_000, numel=1)])
def test_nothing_is_light_at_a_bound_of_0(one: OpProfile) -> None:
    assert classify(one, RULE, 0) == "heavy"


def test_no_device_time_is_no_class() -> None:
    assert classify(op(self_ns=0), RULE, 10) == "none"
    assert classify(op(self_ns=NONE_BELOW_NS - 1), RULE, 10) == "none"
    assert classify(op(kernel(0)), RULE, 10) == "none"


@pytest.mark.parametrize(
    ("self_ns", "numel", "kind"), [(2_600, 1000, "light"), (2_601, 1000, "heavy"), (2_600, 1001, "heavy")]
)
def test_without_kernels_time_and_size_decide(self_ns: int, numel: int, kind: str) -> None:
    assert classify(op(self_ns=self_ns, numel=numel), RULE, 10) == kind


@pytest.mark.parametrize(
    ("bound", "light"), [(0, (0, 0)), (9.9, (0, 0)), (10, (2_600, 1000)), (19, (2_600, 1000)), (99, (4_000, 2000))]
)
def test_the_quick_rule_takes_the_point_that_keeps_the_bound(bound: float, light: tuple[int, int]) -> None:
    assert quick(RULE, bound) == (NONE_BELOW_NS, *light)


def test_an_op_is_told_its_kind_and_its_harm() -> None:
    told = classified(op(kernel()), RULE, 100)
    assert (told.kind, told.harm) == ("light", round(RULE.harm(told), 2))
    assert classified(op(self_ns=10**6), RULE, 100).harm is None


# The rules that are shipped -------------------------------------------------------------------------------------------


def test_the_h200_knows_a_fill_from_a_matrix_product() -> None:
    (fill,) = (s for s in measured() if s.label == "sweep/add-65536")
    (product,) = (s for s in measured() if s.label == "sweep/mm-2048x2048x2048")
    assert classify(fill.op, H200, 10) == "light"
    assert classify(product.op, H200, 10) == "heavy"
    assert H200.harm(product.op) > 100


def test_no_calibrated_op_is_light_that_harms_by_more_than_twice_the_bound() -> None:
    for bound in (5, 10, 20):
        assert all(s.harm <= 2 * bound for s in measured() if classify(s.op, H200, bound) == "light")


def test_an_unknown_device_gets_a_rule_that_calls_fewer_ops_light() -> None:
    careful = load_rule("a GPU of next year")
    assert careful == read_rule(RULES / "default.json")
    for sample in measured():
        assert careful.harm(sample.op) * careful.margin > H200.harm(sample.op) * H200.margin
    assert quick(careful, 50).light_ns == 0


def measured() -> list[samples.Sample]:
    return samples.of_rows(rows.read(ROWS))


# Files ----------------------------------------------------------------------------------------------------------------


def damaged(**changes: Any) -> bytes:
    return json.dumps({**json.loads((RULES / "h200.json").read_text()), **changes}).encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (damaged()[:200], "only the beginning"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "no rule"),
        (damaged(format="herald-profile"), "no rule"),
        (damaged(version=2), "version 2"),
        (damaged(hold=float("nan")), "hold = nan"),
        (damaged(hold=-1), "hold = -1"),
        (damaged(hold="much"), "hold = 'much'"),
        (damaged(hold=True), "hold = True"),
        (damaged(hold=10**400), "hold = 1000"),
        (damaged(hold_limit_ns=1.5), "whole number"),
        (damaged(hold_limit_ns=0), "above 0"),
        (damaged(margin=0.5), "margin 1 or more"),
        (damaged(quick={}), "quick = {}, allowed is a list"),
        (damaged(quick=[1]), "quick is 1, not an object"),
        (damaged(limits={}), "limits lacks the field"),
        (damaged(luck=1), "unknown field 'luck'"),
        (damaged(device=None), "device = None"),
    ],
)
def test_a_damaged_rule_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_rule(path)
    assert str(path) in str(error.value)
    assert "herald calibrate" in str(error.value)


def test_a_rule_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rule(tmp_path / "none.json")
