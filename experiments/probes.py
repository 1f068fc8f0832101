"""How long a request takes alone, and under MPS: service processes of their own, measured before anything else is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean, median

from herald.experiments import settings
from herald.experiments.crew import LOAD_TIMEOUT_S, launch_for, send_load
from herald.experiments.process import Channel
from herald.experiments.rows import Row
from herald.experiments.stage import Start

TURNS = 5
TURN_S = 0.5  # of requests back to back
TIMEOUT_S = 120.0
FIRST_REQUESTS = 10


@contextmanager
def probing(workload: str, device: str, seed: int, start: Start, mps_pipe: str | None = None) -> Iterator[Channel]:
    """A service process, loading; `service_times` awaits it."""
    launch = launch_for("inference", settings.alone("inference", mps=mps_pipe is not None), device, mps_pipe)
    probe = start(replace(launch, name="probe-mps" if mps_pipe else "probe"))
    try:
        send_load(probe, workload, device, seed)
        yield probe
    finally:
        probe.close()


def service_times(probes: Sequence[Channel]) -> Row:
    """Of requests back to back, the first probe's: mean_s, p50_s, count, busy_share (of a request, in which the device
    works for it); and slowdown: the second probe's median time, which is under MPS, over that of the first.

    The probes take turns, so that a host that is busy for a while slows both of them down.
    """
    num_requests = [_requests_per_turn(probe) for probe in probes]
    turns = [
        [_request_s(probe, count) for probe, count in zip(probes, num_requests, strict=True)] for _ in range(TURNS)
    ]
    step_s = [time for first, *_ in turns for time in first]
    slowdown = [median(times) / median(first) for first, *others in turns for times in others]
    share = probes[0].call("instrument", timeout_s=TIMEOUT_S, name="device-share", requests=FIRST_REQUESTS)
    return {
        "mean_s": round(fmean(step_s), 6),
        "p50_s": round(median(step_s), 6),
        "count": len(step_s),
        "busy_share": round(float(share["busy_share"]), 4),
        "slowdown": round(median(slowdown), 4) if slowdown else 1.0,
    }


def _requests_per_turn(probe: Channel) -> int:
    probe.receive(LOAD_TIMEOUT_S)
    return int(min(500, max(FIRST_REQUESTS, TURN_S / fmean(_request_s(probe, FIRST_REQUESTS)))))


def _request_s(probe: Channel, count: int) -> list[float]:
    return [float(s) for s in probe.call("steps", timeout_s=TIMEOUT_S, count=count)["step_s"]]
