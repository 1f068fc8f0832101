"""Predictions against what came: what follows from numbers, and one real profile of a small trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from herald.errors import ConfigError
from herald.experiments import op_profile, prediction, verdicts, workloads
from herald.experiments.plan import profile_path
from herald.experiments.worker import Session
from herald.profiles import Profile

PREDICTED = {"sum_ns": 9_800_000, "kernels_ns": 9_000_000, "timeline_ns": 10_300_000, "ops": 3, "instances": 7}


class Trainer:
    """Takes 10 ms a step, 12 ms in every third block."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def call(self, do: str, *, timeout_s: float, **fields: Any) -> dict[str, Any]:
        self.asked.append(do)
        slow = self.asked.count("train") % 3 == 0
        return PREDICTED if do == "instrument" else {"elapsed_s": fields["count"] * (0.012 if slow else 0.010)}


def test_an_iteration_is_predicted_between_unprofiled_blocks() -> None:
    trainer = Trainer()
    row = prediction.iteration(trainer, Path("w.profile.json"))  # a part of a Channel
    blocks = ["train"] * prediction.NUM_BLOCKS
    assert trainer.asked == ["train", *blocks, "instrument", *blocks]
    assert row["measured_ms"] == pytest.approx(10)
    assert row["error"] == pytest.approx({"sum": -0.02, "kernels": -0.10, "timeline": 0.03})


def judged(**fields: Any) -> bool:
    (criterion,) = verdicts.prediction([{"workload": "w", **fields}])
    return criterion.passed


def test_an_iteration_is_judged_by_the_sum_over_ops() -> None:
    assert judged(part="iterations", error={"sum": -0.049, "kernels": -0.2, "timeline": 0.2})
    assert not judged(part="iterations", error={"sum": 0.051, "kernels": 0.0, "timeline": 0.0})


def test_a_request_is_judged_by_its_middle() -> None:
    counters = {"progress_scored": 20, "progress_error_ppm": 20 * 90_000}
    scored = prediction.scored(counters, num_requests=30)
    assert scored == {"requests": 30, "scored": 20, "error": 0.09}
    assert judged(part="requests", beside=None, **scored)
    assert not judged(part="requests", beside="vgg16", **scored | {"error": 0.11})
    nothing = prediction.scored({"progress_scored": 0, "progress_error_ppm": 0}, num_requests=30)
    assert not judged(part="requests", beside=None, **nothing)  # none was scored: nothing is shown


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="--part = 'request': allowed are iterations, requests"):
        prediction.Options("cpu", ["request"], None, None, 5.0, 0)


def test_a_worker_profiles_its_own_workload_and_keeps_the_file(tmp_path: Path) -> None:
    session = Session()
    session.workload = workloads.get("cpu-gpt")
    session.device = torch.device("cpu")
    session.program = session.workload.make("cpu", 0)
    path = profile_path(tmp_path / "profiles", "cpu-gpt")
    predicted = op_profile.measure(session, path=str(path), iterations=2, limit="60s")
    profile = Profile.load(path)
    assert profile.workload == "cpu-gpt"
    assert predicted == op_profile.predicted(profile)
    assert all(predicted[f"{name}_ns"] > 0 for name in prediction.PREDICTIONS)
