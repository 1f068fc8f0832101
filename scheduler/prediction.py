"""What the past says of the next request: pure functions, shared by policies and `herald status`."""

from herald.scheduler.snapshot import Infeasible, Service, Snapshot

# From a CPU's store into a gate word to its effect on the GPU (p99 11 us on an H200) and the watcher's turn.
RELEASE_NS = 50_000

# The longest stretch of a trainer that has not published one yet: a guess on the long side, because closing
# too early costs training a little and closing too late costs a deadline.
DEFAULT_STRETCH_NS = 5_000_000

# Below this many finished requests a p99 is the maximum of a few: no promise is built on it.
MIN_SAMPLES = 20


def residual_ns(snapshot: Snapshot, device: str) -> int:
    """What may still run on the device after its gate closes: the longest stretch of any of its trainers."""
    stretches = [t.longest_stretch_ns or DEFAULT_STRETCH_NS for t in snapshot.trainers if t.device == device]
    return max(stretches, default=DEFAULT_STRETCH_NS)


def service_ns(service: Service, quantile: float) -> int | None:
    """The given quantile of the service time (begin to done), or None while there are too few samples.

    Measured beside training, so it is at least the time alone: predictions err on the early side.
    """
    if service.service_times.count < MIN_SAMPLES:
        return None
    return service.service_times.quantile(quantile)


def infeasible(snapshot: Snapshot) -> tuple[Infeasible, ...]:
    """Services whose SLO is below service time (at their own target) + residual + release (DESIGN.md)."""
    found = []
    for service in snapshot.services:
        predicted_ns = service_ns(service, service.target)
        if predicted_ns is None or service.slo_ns is None:
            continue
        needed_ns = predicted_ns + residual_ns(snapshot, service.device) + RELEASE_NS
        if service.slo_ns < needed_ns:
            found.append(Infeasible(service.key, service.name, service.slo_ns, needed_ns))
    return tuple(found)
