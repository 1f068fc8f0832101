"""Who runs how fast at one moment: a pure function of who is there and of the interference model.

Delays add up: a request takes as long as alone, plus once that time for every other service at work, plus what each
trainer alone adds to it. Of jobs that take turns this is exact; of jobs that share in space it is a guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from herald.scheduler.simulator.interference import Interference
from herald.scheduler.simulator.jobs import ServiceModel, TrainerModel


@dataclass(frozen=True, eq=False)  # known by identity: hashing the models is what would take most time
class Running:
    """A trainer whose ops run now, and what it is limited to."""

    model: TrainerModel
    sm_count: int = 0  # 0: all
    rate_ppm: int = 0  # of predicted device time per time; 0: no limit


@dataclass(frozen=True)
class Rates:
    """In the order in which the jobs were given."""

    services: tuple[float, ...]  # service time alone done per time: 1 is as fast as alone
    trainers: tuple[float, ...]  # device time done per time: 1 is a busy device


def rates(interference: Interference, services: Sequence[ServiceModel], trainers: Sequence[Running]) -> Rates:
    """The rates of services with a request at work and of trainers that run, beside each other."""
    delays = [0.0] * len(services)  # of each service, by all trainers
    speeds = []
    for trainer in trainers:
        model = trainer.model
        sms = (trainer.sm_count, model.sm_total)
        kind = model.kind or model.name
        beside = [interference.of(s.kind or s.name, kind, *sms, model.duty) for s in services]
        idle = interference.idle_rate(kind, *sms)
        slowdown = 1 / idle + sum(1 / b.rate - 1 / idle for b in beside) + len(trainers) - 1
        wanted = model.duty / slowdown
        speed = min(wanted, trainer.rate_ppm / 1e6) if trainer.rate_ppm else wanted
        speeds.append(speed)
        for i, b in enumerate(beside):
            delays[i] += (b.inflation - 1) * speed / wanted
    return Rates(tuple(1 / (len(services) + delay) for delay in delays), tuple(speeds))
