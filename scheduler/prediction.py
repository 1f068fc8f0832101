"""What the past says of the next request: pure functions, shared by policies and `herald status`."""

from dataclasses import replace

from herald.scheduler.snapshot import Infeasible, Pace, Plan, Service, Snapshot

# From a CPU's store into a gate word to its effect on the GPU (p99 11 us on an H200) and the watcher's turn.
RELEASE_NS = 50_000

# The longest stretch of a trainer that has not published one yet: a guess on the long side, because closing
# too early costs training a little and closing too late costs a deadline.
DEFAULT_STRETCH_NS = 5_000_000

# Below this many finished requests a p99 is the maximum of a few: no promise is built on it.
MIN_SAMPLES = 20

# Requests before their misses say anything of the load, and how far beyond what the target allows is too far.
MIN_JUDGED = 100
OVERLOADED = 2.0

_GRAIN_NS = 100_000


def residual_ns(snapshot: Snapshot, device: str) -> int:
    """What may still run on the device after its gate closes: the longest stretch of any of its trainers, if any."""
    stretches = [t.longest_stretch_ns or DEFAULT_STRETCH_NS for t in snapshot.trainers if t.device == device]
    return max(stretches, default=0)


def paced_plan(margin_ns: int, alone_ns: float, queue_limit: int, *, inflation: float, quantile: float) -> Plan:
    """The plan that closes the gate ``margin_ns`` + what remains x ``inflation`` before a deadline.

    ``alone_ns``: what remains of a request of which nothing is known. Leads are rounded up, so that a jittering
    prediction is not a new plan every tick.
    """
    margin_ns = _round_up(margin_ns)
    pace = Pace(margin_ns, round(inflation * 1e6), round(quantile * 1e6))
    return Plan(_round_up(margin_ns + round(alone_ns * inflation)), queue_limit, pace)


def _round_up(ns: int) -> int:
    return -(-ns // _GRAIN_NS) * _GRAIN_NS


def infeasible(snapshot: Snapshot) -> tuple[Infeasible, ...]:
    """Services whose SLO cannot be held whatever training does, and why."""
    found = (_infeasible(snapshot, service) for service in snapshot.services)
    return tuple(note for note in found if note is not None)


def _infeasible(snapshot: Snapshot, service: Service) -> Infeasible | None:
    # What requests take beside training says nothing of alone: until that is known, there is nothing to say.
    predicted_ns = snapshot.memory.alone_high_ns.get(service.key, service.alone_ns)
    if predicted_ns is None or service.slo_ns is None:
        return None
    needed_ns = predicted_ns + residual_ns(snapshot, service.device) + RELEASE_NS
    note = Infeasible(service.key, service.name, service.slo_ns, needed_ns, part=service.slo_part)
    if service.slo_ns < predicted_ns:
        return replace(note, reason="alone")
    if service.slo_ns < needed_ns:
        return note
    judged = service.met + service.missed
    if judged >= MIN_JUDGED and service.missed_anyway > OVERLOADED * (1 - service.target) * judged:
        return replace(note, reason="load")
    return None
