"""The recorder against torch's profiler: what follows from blocks, and that each kind of block runs."""

from typing import Any

import pytest
import torch

from herald.errors import ConfigError
from herald.experiments import instruments, recorder_overhead, recording, verdicts, workloads
from herald.experiments.recorder_overhead import Cost, Ratio
from herald.experiments.worker import Session

STEPS, EVENTS = 10, 1000  # of a block
COST_NS = {"plain": 0.0, "recorder": 200.0, "profiler": 9000.0}  # per event, from start to results


class Clockwork:
    """A worker whose blocks take a tenth of a second and what the tool costs."""

    def __init__(self, jitter_s: float = 0.0) -> None:
        self.asked: list[str] = []
        self._jitter_s = jitter_s

    def call(self, do: str, *, timeout_s: float, name: str, mode: str, steps: int) -> dict[str, Any]:
        self.asked.append(mode)
        whole_s = steps / STEPS * (0.1 + EVENTS * COST_NS[mode] / 1e9) + self._jitter_s * (len(self.asked) % 5 - 2)
        events = 0 if mode == "plain" else EVENTS * steps // STEPS
        return {"whole_s": whole_s, "stopped_s": whole_s * 0.9, "running_s": whole_s / 2, "events": events}


def measured(repeats: int, jitter_s: float = 0.0) -> tuple[dict[str, Any], dict[str, Clockwork]]:
    workers = {tool: Clockwork(jitter_s) for tool in recorder_overhead.TOOLS}
    row = recorder_overhead.measured(workers, repeats)  # a part of a Channel
    return {"workload": "w", "device": "cpu", **row}, workers


def test_costs_are_per_event_and_compared() -> None:
    row, _ = measured(repeats=4)
    assert row["cost"]["recorder"]["whole"]["ns"] == pytest.approx(200)
    assert row["cost"]["profiler"]["whole"]["ns"] == pytest.approx(9000)
    assert row["ratio"]["whole"]["value"] == pytest.approx(45)
    assert row["events_per_step"] == EVENTS / STEPS
    (criterion,) = verdicts.recorder([row])
    assert criterion.passed


def test_blocks_with_and_without_a_tool_take_turns_in_separate_processes() -> None:
    _, workers = measured(repeats=4)
    turns = workers["recorder"].asked[3:]  # after warming up
    assert turns == ["plain", "recorder", "plain", "recorder", "recorder", "plain", "recorder", "plain"]
    assert "recorder" not in workers["profiler"].asked


def test_a_cost_below_the_noise_gives_a_bound_and_no_more() -> None:
    ratio = Ratio.of(Cost(5.0, -40.0, 50.0), Cost(2000.0, 1900.0, 2100.0))
    assert (ratio.value, ratio.is_bound, str(ratio)) == (40.0, True, ">= 40.0")
    ratio = Ratio.of(Cost(-5.0, -40.0, -1.0), Cost(2000.0, 1900.0, 2100.0))  # noise may even say that it helps
    assert ratio.is_bound


def test_a_clear_cost_gives_a_ratio_with_its_range() -> None:
    ratio = Ratio.of(Cost(100.0, 80.0, 125.0), Cost(2000.0, 1900.0, 2400.0))
    assert (ratio.value, ratio.low, ratio.high, ratio.is_bound) == (20.0, 15.2, 30.0, False)


def test_the_spread_of_a_cost_contains_it() -> None:
    cost = Cost.of([1e-3, 2e-3, 4e-3], events_per_block=1000)
    assert cost.low_ns <= cost.ns == 2000 <= cost.high_ns


@pytest.mark.parametrize(("step_s", "events", "steps"), [(0.03, 900, 10), (0.001, 100, 50), (0.01, 6000, 5), (9, 1, 1)])
def test_a_block_is_long_enough_and_no_longer_than_its_events_can_be_read(
    step_s: float, events: int, steps: int
) -> None:
    assert recorder_overhead.steps_per_block(step_s, events) == steps


@pytest.fixture
def session() -> Session:
    session = Session()
    session.workload = workloads.get("cpu-decode")
    session.device = torch.device("cpu")
    session.program = session.workload.make("cpu", 0)
    session.program.step()
    return session


def test_both_tools_see_the_same_ops(session: Session) -> None:
    counts = {mode: session.instrument("record", mode=mode, steps=2) for mode in recording.TOOLS}
    assert counts["plain"]["events"] == 0
    assert counts["recorder"]["events"] == pytest.approx(counts["profiler"]["events"], rel=0.02)
    for block in counts.values():
        assert 0 < block["running_s"] <= block["stopped_s"] <= block["whole_s"]


def test_an_unknown_instrument_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'recrod': allowed are .*record"):
        instruments.get("recrod")
