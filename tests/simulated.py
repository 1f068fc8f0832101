"""Jobs and policies for simulations in tests."""

import random
from dataclasses import dataclass, field

from herald.config import Limits
from herald.scheduler.simulator.gpu import simulate
from herald.scheduler.simulator.interference import Beside, Interference
from herald.scheduler.simulator.jobs import GpuModel, ServiceModel, TrainerModel
from herald.scheduler.simulator.outcome import Outcome
from herald.scheduler.snapshot import Decision, Plan, Snapshot, TrainerPlan

MS = 1_000_000
SECOND = 1_000 * MS
VGG = TrainerModel("vgg", step_ns=26 * MS, longest_stretch_ns=2 * MS, sm_total=132)
GAIN = Interference({("chat", "vgg"): {0: Beside(1.3, 0.6)}})  # sharing in space pays
ROOMY = 100 * MS


def poisson(rate_hz: float, seconds: float, seed: int = 0) -> tuple[float, ...]:
    generator = random.Random(seed)
    times, now = [], generator.expovariate(rate_hz)
    while now < seconds:
        times.append(now)
        now += generator.expovariate(rate_hz)
    return tuple(times)


def chat(arrivals_s: tuple[float, ...], *, alone_ms: float = 20, slo_ns: int = ROOMY) -> ServiceModel:
    return ServiceModel("chat", arrivals_s, (round(alone_ms * MS),), slo_ns=slo_ns)


@dataclass(frozen=True)
class Fixed:
    """A policy of one plan for every service, and perhaps one for every trainer."""

    plan: Plan
    trainer_plan: TrainerPlan = field(default_factory=TrainerPlan)

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:
        return Decision(
            {service.key: self.plan for service in snapshot.services},
            trainer_plans={trainer.key: self.trainer_plan for trainer in snapshot.trainers},
        )


def run(gpu: GpuModel, plan: Plan, *, seconds: float, limits: Limits | None = None, **trainer_plan: int) -> Outcome:
    policy = Fixed(plan, TrainerPlan(**trainer_plan))
    return simulate(gpu, policy, seconds=seconds, tick_ns=SECOND // 4, limits=limits)
