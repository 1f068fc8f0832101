"""What a change of SM share costs: which steps count as what, on a trainer that is a fake. Without a GPU it says so."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from herald.errors import ConfigError
from herald.experiments import sm_switch
from herald.experiments.sm_switch import ALL, Options, losses_row, losses_under, run, stretch

OPTIONS = Options(device="cuda", workload="vgg16", shares=(116, 68), steps=4, rounds=3, seed=0)
STEP_MS = {ALL: 20.0, 116: 25.0, 68: 40.0}


class FakeTrainer:
    """Takes its share at the end of a step, as a real one; the first step on a share that it never had takes longer."""

    def __init__(self, *, share_changes_losses: bool = False) -> None:
        self.share_changes_losses = share_changes_losses
        self.now_s = 0.0
        self.begun: list[bool] = []
        self.wanted = self.granted = ALL
        self.had = {ALL}
        self.fresh = False
        self.switched_ns = 0
        self.steps = 0

    def begin(self, *, repeatable: bool) -> None:
        self.begun.append(repeatable)
        self.wanted = self.granted = ALL
        self.steps = 0

    def allow(self, share: int) -> None:
        self.wanted = share

    def step(self) -> str:
        self.now_s += STEP_MS[self.granted] / 1e3 + (0.1 if self.fresh else 0.0)
        self.steps += 1
        loss = 1.0 / self.steps + (1e-3 if self.share_changes_losses and self.granted != ALL else 0.0)
        self.fresh = False
        if self.wanted != self.granted:
            self.fresh = self.wanted not in self.had
            self.had.add(self.wanted)
            self.switched_ns += 900_000 if self.fresh else 200_000
            self.granted = self.wanted
        return loss.hex()

    def switch_ns(self) -> int:
        return self.switched_ns

    def reserved_bytes(self) -> int:
        return len(self.had) * 2**30

    def clock_s(self) -> float:
        return self.now_s


def rows(trainer: FakeTrainer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(sm_switch.time, "perf_counter", trainer.clock_s)
    monkeypatch.setattr(sm_switch.stretch, "__defaults__", (trainer.clock_s,))
    return list(run(trainer, OPTIONS, creation_ms=lambda share: share / 100))


def test_the_step_at_whose_end_the_switch_comes_is_of_neither_share() -> None:
    trainer = FakeTrainer()
    found = stretch(trainer, 116, 3, trainer.clock_s)
    assert found.step_ms == (125.0, 25.0, 25.0)
    assert (found.switch_ns, len(found.losses), found.reserved_bytes) == (900_000, 4, 2 * 2**30)


def test_first_use_first_step_and_steady_state_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {row["share"]: row for row in rows(FakeTrainer(), monkeypatch) if row["part"] == "times"}
    assert list(times) == [ALL, 116, 68]
    share = times[116]
    assert (share["creation_ms"], share["first_switch_ms"], share["switch_ms"]) == (1.16, 0.9, 0.2)
    assert (share["very_first_step_ms"], share["first_step_ms"], share["step_ms"]) == (125.0, 25.0, 25.0)
    assert times[ALL]["creation_ms"] is None and times[ALL]["first_switch_ms"] == 0
    assert times[ALL]["switch_ms"] == 0.2  # back home, from the second round on
    assert times[68]["reserved_bytes"] == 3 * 2**30
    assert len(times[68]["stretches"]) == OPTIONS.rounds


def test_losses_are_compared_with_a_run_on_all_sms(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FakeTrainer()
    losses = [row for row in rows(trainer, monkeypatch) if row["part"] == "losses"]
    assert [row["case"] for row in losses] == ["all again", "through all", "116 SMs", "68 SMs"]
    assert all(row["equal"] == row["steps"] == 30 and row["first_unequal"] is None for row in losses)
    assert trainer.begun == [False] + [True] * 5


def test_a_share_that_changes_losses_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FakeTrainer(share_changes_losses=True)
    losses = {row["case"]: row for row in rows(trainer, monkeypatch) if row["part"] == "losses"}
    assert losses["all again"]["equal"] == 30
    assert losses["116 SMs"]["equal"] == 1 and losses["116 SMs"]["first_unequal"] == 1
    assert 0 < losses["116 SMs"]["largest_difference"] < 0.1
    # Two rounds of three shares, five steps each; a change takes effect after the first of the next.
    assert losses["through all"]["equal"] == 5 + 1 + 4 + 1


def test_a_run_goes_through_the_shares_from_a_fresh_program() -> None:
    trainer = FakeTrainer()
    assert len(losses_under(trainer, [ALL, 116], 2)) == 6
    assert trainer.begun == [True] and trainer.granted == 116


def test_how_far_losses_are_off_is_relative() -> None:
    row = losses_row("x", [(2.0).hex(), (4.0).hex()], [(2.0).hex(), (5.0).hex()])
    assert (row["equal"], row["first_unequal"], row["largest_difference"]) == (1, 1, 0.25)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "cpu"}, "--device cuda"),
        ({"workload": "transformer"}, "no trainer"),
        ({"steps": 1}, "2 or more"),
        ({"shares": ()}, "numbers of SMs"),
        ({"shares": (0, 68)}, "numbers of SMs"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(OPTIONS, **changes)


def test_without_a_gpu_it_says_so(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="herald doctor"):
        sm_switch.record(OPTIONS, tmp_path, log_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_tables_fit_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    sm_switch.show(rows(FakeTrainer(), monkeypatch), Console(file=text, width=sm_switch.WIDTH))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["all", "-", "-", "0.20", "0.20", "20.00", "20.00", "3.00"]
