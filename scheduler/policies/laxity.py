"""laxity: heavy training ops wait once a request's slack is used up, or as soon as a second request waits.

    lead = residual + release + remaining time at a high quantile x inflation

closes the gate just early enough that a request which gets nowhere from now on while the gate is open still meets
its deadline. What remains is the whole service time until the request's progress is known (its checkpoints, its
steps); then its own agent puts in what it has learnt of requests from there on. The queue rule is not a refinement:
spending the first request's slack delays the second, and without it plain laxity missed 16.7 % of the deadlines of a
simulation in which it missed 0.10 % with it (`tests/test_simulated_policies.py`).
"""

from dataclasses import dataclass

from herald.scheduler.prediction import MIN_SAMPLES, RELEASE_NS, paced_plan, residual_ns
from herald.scheduler.snapshot import STRICT_PLAN, Decision, Plan, Service, Snapshot


@dataclass(frozen=True)
class Laxity:
    """Gates close when the slack of a request has been spent on training."""

    quantile: float = 0.99  # of the remaining time
    # A margin for light ops, which pass a closed gate (a choice, not a measurement). How much an *open* gate
    # slows a request does not enter: the lead counts on no progress but what has been seen.
    inflation: float = 1.1
    queue_limit: int = 1

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:  # noqa: ARG002 - a lead is relative to deadlines
        """A lead for every service with an SLO and enough samples; strict for the others."""
        plans = {service.key: self._plan(snapshot, service) for service in snapshot.services}
        return Decision(plans)

    def _plan(self, snapshot: Snapshot, service: Service) -> Plan:
        # Begin to done, measured beside training: at least the time alone, so that predictions err on the early side.
        times = service.service_times
        predicted_ns = times.quantile(self.quantile) if times.count >= MIN_SAMPLES else None
        if predicted_ns is None or service.slo_ns is None:
            return STRICT_PLAN
        margin_ns = residual_ns(snapshot, service.device) + RELEASE_NS
        return paced_plan(margin_ns, predicted_ns, self.queue_limit, inflation=self.inflation, quantile=self.quantile)


POLICY = Laxity()
