"""Time gating changes when training computes, never what: one small workload, a real trainer process, CPU."""

from pathlib import Path

import pytest

from herald.errors import ConfigError
from herald.experiments import numerics, verdicts
from herald.experiments.numerics import Losses


def test_losses_are_bit_identical_under_a_gate_that_opens_and_closes(tmp_path: Path) -> None:
    (row,) = numerics.run("cpu", names=["cpu-rnnlm"], steps=4, seed=1, log_dir=tmp_path)
    assert row["repeatable"]
    assert (row["equal"], row["identical"]) == (4, True)
    assert row["closes"] > 0
    assert row["gate_points"] > 0
    assert row["held"]
    assert row["first_loss"] != row["last_loss"]
    assert [criterion.passed for criterion in verdicts.numerics([row])] == [True]


def test_a_loss_that_differs_in_its_last_bit_counts() -> None:
    losses = Losses(plain=[(1.0).hex(), (0.5).hex()], gated=[(1.0).hex(), (0.5 + 2**-53).hex()])
    assert losses.num_equal == 1
    assert not losses.identical


def test_equal_losses_without_any_gating_are_a_failure() -> None:
    row = {"workload": "w", "device": "cpu", "equal": 3, "steps": 3, "closes": 0, "identical": True, "gated": False}
    (criterion,) = verdicts.numerics([row])
    assert not criterion.passed
    assert "nothing waited" in criterion.measured


def test_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--steps = 0"):
        next(numerics.run("cpu", names=None, steps=0, seed=0, log_dir=tmp_path))
