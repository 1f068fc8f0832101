"""`herald experiment steps`: the load of a pair goes up and down again, and how soon Herald is back at its target.

The SLO is a multiple of the p99 alone on the same arrivals, without MPS. What Herald knows of the pair it has learnt at
the low load.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herald.experiments import sweep
from herald.experiments.arrivals import Poisson, Steps
from herald.experiments.crew import Pair
from herald.experiments.measures import summary
from herald.experiments.plan import existing_profile
from herald.experiments.probes import probing, service_times
from herald.experiments.rows import Row
from herald.experiments.settings import SETTINGS, Setting
from herald.experiments.stage import Stage, Start
from herald.experiments.sweep_runner import START_S, Log, measured
from herald.experiments.trial import Terms

KIND = "steps"
REFERENCES = (SETTINGS["alone"], SETTINGS["train-alone"])


@dataclass(frozen=True)
class Staircase:
    """Load low, high, low, for ``phase_s`` each."""

    pair: Pair
    device: str
    seed: int
    low: float = 0.1
    high: float = 0.7
    phase_s: float = 12.0
    slo_factor: float = 1.5
    learn_s: float = 12.0
    policy: str = "herald"  # a family of settings
    profiles: Path | None = None

    @property
    def mps(self) -> bool:
        """Whether Herald is measured under it: the loads change, so that there is none to choose for."""
        return self.device == "cuda"

    @property
    def seconds(self) -> float:
        """Of arrivals."""
        return 3 * self.phase_s

    @property
    def steps_s(self) -> tuple[float, float]:
        """When the load changes."""
        return self.phase_s, 2 * self.phase_s

    def arrivals(self, service_s: float) -> Steps:
        """Of a service that takes ``service_s`` alone."""
        low_hz, high_hz = (round(load / service_s, 4) for load in (self.low, self.high))
        return Steps(((0.0, low_hz), (self.steps_s[0], high_hz), (self.steps_s[1], low_hz)), seed=self.seed)

    def learning_arrivals(self, service_s: float) -> Poisson:
        """At the low load."""
        return Poisson(round(self.low / service_s, 4), seed=self.seed + sweep.LEARN_SEED)

    def under(self, *, mps: bool) -> list[Setting]:
        """Strict and the policy, in an MPS state."""
        return [SETTINGS[f"{family}-mps" if mps else family] for family in ("herald-strict", self.policy)]

    def __str__(self) -> str:
        loads = f"{self.low:g}, {self.high:g}, {self.low:g}"
        names = [setting.name for setting in (*REFERENCES, *self.under(mps=self.mps))]
        return (
            f"{self.pair}: how long a request takes alone; then load {loads} for {self.phase_s:g} s each: "
            f"{', '.join(names)}"
        )


def run(case: Staircase, log: Log, *, start: Start, log_dir: Path) -> int:
    """Measure what a row says; returns the number of rows. Raises OutOfTime or WorkerError."""
    log.check_time(2 * START_S + 4 * case.seconds + case.learn_s)
    num_before = len(log.known)

    def stage(*, mps: bool) -> Stage:
        return Stage(case.pair, device=case.device, seed=case.seed, mps=mps, start=start, log_dir=log_dir)

    log.say(str(case))
    with stage(mps=False) as without:
        with probing(case.pair.inference, case.device, case.seed, start) as probe:
            without.prepare(REFERENCES)
            service = service_times([probe])
        ascent = _Ascent(case, log, service)
        alone, _ = (ascent.measure(setting, without, None) for setting in REFERENCES)
        slo_ms = round(case.slo_factor * summary(alone["inference"]["latency_ms"], None)["p99_ms"], 3)
        if not case.mps:
            ascent.judge(without, slo_ms, mps=False)
    if case.mps:
        with stage(mps=True) as under:
            ascent.judge(under, slo_ms, mps=True)
    return len(log.known) - num_before


@dataclass(frozen=True)
class _Ascent:
    """The same arrivals again and again."""

    case: Staircase
    log: Log
    service: Row  # its time alone

    def judge(self, stage: Stage, slo_ms: float, *, mps: bool) -> None:
        """Strict and the policy; what learns does so first, at the low load."""
        settings = self.case.under(mps=mps)
        stage.prepare(settings)
        for setting in settings:
            if not stage.has_learnt(setting) and self.case.learn_s:
                arrivals = self.case.learning_arrivals(self.service["mean_s"])
                stage.run(setting, self._terms(setting, stage, slo_ms, arrivals, seconds=self.case.learn_s))
            self.measure(setting, stage, slo_ms)

    def measure(self, setting: Setting, stage: Stage, slo_ms: float | None) -> Row:
        """One row."""
        case = self.case
        terms = self._terms(setting, stage, slo_ms, case.arrivals(self.service["mean_s"]), seconds=case.seconds)
        trial = measured(setting, terms, stage.run(setting, terms))
        key: dict[str, Any] = {
            "pair": str(case.pair),
            "setting": setting.name,
            "repetition": 0,
            "device": case.device,
            "low": case.low,
            "high": case.high,
            "phase_s": case.phase_s,
            "slo_factor": case.slo_factor,
            "seed": case.seed,
        }
        return self.log.keep({"kind": KIND, "key": key, "service": dict(self.service), **trial}, stage.crew.facts)

    def _terms(
        self, setting: Setting, stage: Stage, slo_ms: float | None, arrivals: Poisson | Steps, *, seconds: float
    ) -> Terms:
        case, takes_part = self.case, setting.policy is not None
        return Terms(
            arrivals=arrivals,
            seconds=seconds,
            slo_ms=slo_ms,
            domain=stage.domain_of(setting),
            profile=existing_profile(case.profiles, case.pair.training) if case.profiles and takes_part else None,
        )
