"""orion: heavy ops of training wait while a request is open, and little of it is ever under way.

The rule of Orion (Strati et al., "Orion: Interference-aware, Fine-grained GPU Sharing for ML Applications", EuroSys
2024): a best-effort kernel is submitted while no high-priority one runs, or if it is of the other kind (compute or
memory bound) and small; and what best-effort kernels are outstanding is bounded to DUR_THRESHOLD, 2.5 % of a
high-priority request's time alone. A re-implementation of the rule, not of the system: Herald's classes say which ops
may pass a closed gate (by the harm they do, not by kind), and the bound is on what the host enqueues ahead.
"""

from dataclasses import dataclass

from herald.scheduler.snapshot import STRICT_PLAN, Decision, Snapshot, Trainer, TrainerPlan


@dataclass(frozen=True)
class Orion:
    """Strict gates, and a short queue of training on the device."""

    outstanding: float = 0.025  # of the shortest mean request alone (what is remembered is means, not medians)
    least_ahead_ns: int = 50_000  # less and a trainer waits for its host

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:  # noqa: ARG002 - the protocol's argument
        """Strict plans; a bound for every trainer beside a service whose time alone is known."""
        return Decision(
            {service.key: STRICT_PLAN for service in snapshot.services},
            {trainer.key: self._plan(snapshot, trainer) for trainer in snapshot.trainers},
        )

    def _plan(self, snapshot: Snapshot, trainer: Trainer) -> TrainerPlan:
        means_ns = snapshot.memory.alone_mean_ns
        alone_ns = [means_ns[s.key] for s in snapshot.services if s.device == trainer.device and s.key in means_ns]
        if not alone_ns:
            return TrainerPlan()
        return TrainerPlan(ahead_ns=max(self.least_ahead_ns, round(self.outstanding * min(alone_ns))))


POLICY = Orion()
