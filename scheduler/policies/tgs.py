"""tgs: gates stay open; training's rate goes up slowly and down fast, by whether requests have become slower.

The rule of TGS (Wu et al., "Transparent GPU Sharing in Container Clouds for Deep Learning Workloads", NSDI 2023): watch
the rate at which the production job's kernels come; where it has fallen, cut the rate of the opportunistic job's in
proportion, else raise it by a step. A re-implementation of the rule, not of the system: rates here are of predicted
device time, and what is watched is the mean time of the requests of the last window against their mean time alone,
since a service's own rate changes with its arrivals. As TGS knows the production job's rate from before it shares,
requests have the device to themselves until their time alone is known.

The present rate is read from the snapshot, as the plan in force. A rate only changes where a window ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from herald.scheduler.prediction import MIN_SAMPLES
from herald.scheduler.snapshot import (
    FREE_PLAN,
    STRICT_PLAN,
    Decision,
    Memory,
    Service,
    Snapshot,
    Trainer,
    TrainerPlan,
)


@dataclass(frozen=True)
class Tgs:
    """Additive increase, multiplicative decrease of every trainer's rate."""

    tolerance: float = 0.1  # requests may become slower by this much; this and the next four are choices
    increase_ppm: int = 50_000
    decrease: float = 0.5
    least_ppm: int = 20_000  # never nothing: a trainer that stands still shows no way up
    start_ppm: int = 100_000

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:  # noqa: ARG002 - the snapshot says when
        """Open gates, once the time alone is known; every trainer's next rate."""
        return Decision(
            {s.key: FREE_PLAN if _is_known(s, snapshot.memory) else STRICT_PLAN for s in snapshot.services},
            trainer_plans={trainer.key: self._plan(snapshot, trainer) for trainer in snapshot.trainers},
        )

    def _plan(self, snapshot: Snapshot, trainer: Trainer) -> TrainerPlan:
        now_ppm = trainer.rate_ppm or self.start_ppm
        beside = [s for s in snapshot.services if s.device == trainer.device and _is_known(s, snapshot.memory)]
        if not any(s.key in snapshot.memory.recent for s in beside):
            return TrainerPlan(rate_ppm=now_ppm)
        if self._have_slowed(beside, snapshot.memory):
            return TrainerPlan(rate_ppm=max(self.least_ppm, round(now_ppm * self.decrease)))
        return TrainerPlan(rate_ppm=min(1_000_000, now_ppm + self.increase_ppm))

    def _have_slowed(self, services: Sequence[Service], memory: Memory) -> bool:
        for service in services:
            recent = memory.recent.get(service.key)
            if recent is None or not recent.done:
                continue
            if recent.busy_ns / recent.done > memory.alone_mean_ns[service.key] * (1 + self.tolerance):
                return True
        return False


def _is_known(service: Service, memory: Memory) -> bool:
    """Whether its time alone is, from enough requests."""
    return service.key in memory.alone_mean_ns and memory.alone_requests.get(service.key, 0) >= MIN_SAMPLES


POLICY = Tgs()
