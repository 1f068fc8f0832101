"""A worker profiles its own workload with `herald.profile`, keeps the file, and says what follows of an iteration."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import herald
from herald.graphs import timeline
from herald.profiles import Profile

if TYPE_CHECKING:
    from herald.experiments.worker import Session


def measure(session: "Session", *, path: str, iterations: int, limit: str) -> dict[str, object]:
    """Profile ``iterations`` steps, write the profile to ``path``; the predictions of `predicted`."""
    program: Any = session.program
    profile = herald.profile(
        program.step,
        iterations=iterations,
        limit=limit,
        device=session.device,
        model=getattr(program, "model", None),
        workload=session.workload.name,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    profile.save(path)
    return predicted(profile)


def predicted(profile: Profile) -> dict[str, object]:
    """Three predictions of an iteration, in ns.

    "sum": over op instances, launch gaps included, as the recorder saw them. "kernels": over ops, without gaps where
    the kernels are known. "timeline": host and device replayed, for code of which the host is the slower part.
    """
    prediction = timeline.predict(profile)
    return {
        "sum_ns": prediction.device_sum_ns,
        "kernels_ns": round(sum(op.calls * op.self_ns for op in profile.ops)),
        "timeline_ns": prediction.timeline_ns,
        "instances": len(prediction.start_ns),
        "ops": len(profile.ops),
    }
