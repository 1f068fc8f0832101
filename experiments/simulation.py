"""Many simulated GPUs under several policies: what a cluster of Herald's domains would do. Everything is made up here.

Every GPU gets its own services, trainers and interference from a seeded generator, the same for every policy. Numbers
are in the range of those measured on an H200 (experiments/results/h200), but no pair of them was measured.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from random import Random
from statistics import fmean, median

from herald.errors import ConfigError
from herald.experiments import arrivals
from herald.experiments.rows import Row
from herald.scheduler import policies
from herald.scheduler.simulator.gpu import simulate
from herald.scheduler.simulator.interference import Beside, Interference
from herald.scheduler.simulator.jobs import GpuModel, ServiceModel, TrainerModel
from herald.scheduler.simulator.outcome import Outcome

KIND = "simulation"
_DAEMON_LOG = "herald.daemon"
_GPUS_AT_A_TIME = 5
_SMS = 132
_STEPS_MS = (3.8, 6.0, 26.0, 81.0)  # DLRM, RNNLM, VGG16, GPT-2 on an H200
_STRETCHES_MS = (0.4, 2.2, 2.6, 6.2)  # and their longest stretches
_SPREAD = (0.8, 0.9, 0.95, 1.0, 1.0, 1.05, 1.1, 1.2)  # of service times around their mean


@dataclass(frozen=True)
class Study:
    """What is simulated."""

    policies: tuple[str, ...]
    num_gpus: int = 100
    num_services: int = 3  # per GPU
    num_trainers: int = 7  # likewise
    seconds: float = 20.0
    rate_hz: float = 10.0  # of each service
    arrivals: str = "poisson"  # as `arrivals.parse` takes it
    load: float = 0.4  # of each GPU, all services together
    slo_factor: float = 5.0  # SLO / mean service time alone of a service
    seed: int = 0
    tick_ms: float = 500.0  # a daemon's own is 50: ten times as many looks cost more than all else

    def __post_init__(self) -> None:
        for policy in self.policies:
            policies.load(policy, setting="--policies")
        if min(self.num_gpus, self.num_services, self.num_trainers) < 1:
            raise ConfigError("--gpus, --services and --trainers: give 1 or more of each")
        if not (0 < self.load < 1 and self.slo_factor >= 1 and self.seconds > 0 and self.tick_ms > 0):
            raise ConfigError("--load is between 0 and 1, --slo-factor 1 or more, --seconds and --tick above 0")
        arrivals.parse(self.arrivals, rate_hz=self.rate_hz, seed=self.seed)


def run(study: Study) -> Iterator[Row]:
    """A row per policy and GPU, without provenance: GPUs know nothing of each other, so every core takes some."""
    level = logging.getLogger(_DAEMON_LOG).level
    with ProcessPoolExecutor(initializer=_hush, initargs=(level,)) as pool:
        for policy in study.policies:
            yield from pool.map(partial(_run_gpu, study, policy), range(study.num_gpus), chunksize=_GPUS_AT_A_TIME)


def _run_gpu(study: Study, policy: str, index: int) -> Row:
    outcome = simulate(
        _gpu(study, index),
        policies.load(policy),
        seconds=study.seconds,
        seed=study.seed + index,
        tick_ns=round(study.tick_ms * 1e6),
    )
    return _row(study, policy, index, outcome)


def _hush(level: int) -> None:
    """What a process is started with depends on how it is started."""
    logging.getLogger(_DAEMON_LOG).setLevel(level)


@dataclass(frozen=True)
class Total:
    """One policy, over all GPUs."""

    policy: str
    requests: int
    attainment: float
    excess: int  # requests missed that would not have been missed with each service alone on its GPU
    held: float  # share of services that met their target
    p99_ratio: float  # median over services, to each alone on its GPU
    training: float  # mean per GPU; 1 is a GPU that trainers keep busy


def totals(found: Sequence[Row]) -> list[Total]:
    """By policy, in the order of the rows."""
    return [_total(policy, [row for row in found if row["policy"] == policy]) for policy in _policies_of(found)]


def _total(policy: str, found: Sequence[Row]) -> Total:
    services = [service for row in found for service in row["services"] if service["requests"]]
    num_requests = sum(service["requests"] for service in services)
    missed = sum(service["missed"] for service in services)
    return Total(
        policy=policy,
        requests=num_requests,
        attainment=1 - missed / max(1, num_requests),
        excess=missed - sum(service["missed_anyway"] for service in services),
        held=fmean(service["missed"] <= (1 - service["target"]) * service["requests"] for service in services),
        p99_ratio=median(service["p99_ms"] / service["alone_p99_ms"] for service in services),
        training=fmean(sum(trainer["relative"] for trainer in row["trainers"]) for row in found),
    )


def _policies_of(found: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["policy"] for row in found))


def _gpu(study: Study, index: int) -> GpuModel:
    """Equal studies, equal GPUs, whatever the policies."""
    generator = Random(f"{study.seed}/gpu {index}")
    services = tuple(_service(study, number, generator) for number in range(study.num_services))
    trainers = tuple(_trainer(number, generator) for number in range(study.num_trainers))
    beside = {(s.name, t.name): _beside(generator) for s in services for t in trainers}
    return GpuModel(services, trainers, Interference(beside, {t.name: _idle(generator) for t in trainers}), mps=True)


def _service(study: Study, number: int, generator: Random) -> ServiceModel:
    mean_ns = study.load / study.num_services / study.rate_hz * generator.uniform(0.7, 1.3) * 1e9
    seed = generator.randrange(2**31)
    return ServiceModel(
        name=f"service{number}",
        arrivals_s=tuple(arrivals.parse(study.arrivals, rate_hz=study.rate_hz, seed=seed).times_s(study.seconds)),
        alone_ns=tuple(round(mean_ns * part) for part in _SPREAD),
        slo_ns=round(mean_ns * study.slo_factor),
    )


def _trainer(number: int, generator: Random) -> TrainerModel:
    kind = generator.randrange(len(_STEPS_MS))
    return TrainerModel(
        name=f"trainer{number}",
        step_ns=round(_STEPS_MS[kind] * 1e6),
        longest_stretch_ns=round(_STRETCHES_MS[kind] * 1e6),
        sm_total=_SMS,
    )


def _beside(generator: Random) -> dict[int, Beside]:
    """A pair that runs badly or well beside each other; with fewer SMs the trainer is slower and does less harm."""
    harm = generator.uniform(0.15, 1.1)
    rate = generator.uniform(0.45, 0.85)
    return {
        sms or 0: Beside(1 + harm * (share**0.7), rate * share**0.8) for sms, share in ((0, 1.0), (66, 0.5), (32, 0.25))
    }


def _idle(generator: Random) -> dict[int, float]:
    """Speed on some of the SMs with nobody else there: a little better than in proportion."""
    bend = generator.uniform(0.6, 1.0)
    return {0: 1.0, 66: 0.5**bend, 32: 0.25**bend}


def _row(study: Study, policy: str, index: int, outcome: Outcome) -> Row:
    shared = {key: value for key, value in asdict(study).items() if key != "policies"}
    return {
        "policy": policy,
        "gpu": index,
        "study": shared,
        "services": [
            {
                "name": service.name,
                "slo_ms": round(service.slo_ns / 1e6, 3),
                "target": 0.99,
                "requests": len(service.latencies_ns),
                "missed": service.missed,
                "missed_anyway": service.missed_anyway,
                "p50_ms": _ms(service.quantile_ns(0.5)),
                "p99_ms": _ms(service.quantile_ns(0.99)),
                "alone_p99_ms": _ms(service.alone_quantile_ns(0.99)),
            }
            for service in outcome.services
        ],
        "trainers": [{"name": trainer.name, "relative": round(trainer.relative, 5)} for trainer in outcome.trainers],
        "forced": outcome.forced,
        "events": outcome.num_events,
    }


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)
