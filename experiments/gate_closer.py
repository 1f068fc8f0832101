"""A worker, as a service, closes the gate at random times, holds it closed for a while, and says when that was."""

import random
import time
from typing import TYPE_CHECKING

import herald

if TYPE_CHECKING:
    from herald.experiments.worker import Session

HOLD_S = 0.02  # longer than anything of a trainer runs on
SHORTEST_OPEN_S, LONGEST_OPEN_S = 0.01, 0.03


def measure(session: "Session", *, domain: str, device: str, seconds: float, seed: int) -> dict[str, object]:
    """For ``seconds``; each close as two times in ns: before it, and the last at which it was closed for sure."""
    del session  # needs no workload
    moments = random.Random(seed)
    closes: list[tuple[int, int]] = []
    with herald.attach(priority="high", slo="50ms", name="closer", domain=domain, device=device) as service:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            time.sleep(moments.uniform(SHORTEST_OPEN_S, LONGEST_OPEN_S))
            before_ns = time.monotonic_ns()
            request = service.begin()
            time.sleep(HOLD_S)
            closes.append((before_ns, time.monotonic_ns()))
            request.end()
    return {"closes": closes}
