"""Carries a sweep out, resumes it, and appends one row per run: `herald experiment frontier`, `poster`, `ablation`."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from herald.errors import ConfigError, HeraldError
from herald.experiments import arrivals as arrivals_data
from herald.experiments import measures, provenance, rows, settings, sweep
from herald.experiments.arrivals import Arrivals
from herald.experiments.crew import Pair
from herald.experiments.domain import DaemonFailed, private_mps
from herald.experiments.host_load import CoreTime
from herald.experiments.probes import probing, service_times
from herald.experiments.process import Channel, WorkerError
from herald.experiments.rows import Row
from herald.experiments.runner import OutOfTime, figure
from herald.experiments.stage import Stage, Start
from herald.experiments.sweep import Sweep, SweepRun
from herald.experiments.trial import Terms, Trial

START_S = 25.0  # all processes of a pair at the same time
RUN_OVERHEAD_S = 2.0  # attach, settle, common start, detach
END_S = 10.0  # all processes and MPS
_BULKY = ("scheduled_s", "service_ms", "step_ms")  # follow from a row's arrivals, or are not asked for


@dataclass(frozen=True)
class Log:
    """Where rows go, what is known of earlier ones, and until when there is time."""

    path: Path
    known: list[Row]
    origin: Mapping[str, Any]
    end_s: float
    clock_s: Callable[[], float]
    console: Console

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        known: Iterable[Row] = (),
        commit: str | None = None,
        end_s: float = float("inf"),
        clock_s: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> "Log":
        """With the rows that are in ``path`` already, and ``known`` ones of other files."""
        origin = provenance.of_command(commit)
        return cls(path, [*rows.read(path), *known], origin, end_s, clock_s, console or Console(stderr=True))

    def keep(self, row: Row, facts: Mapping[Any, Any]) -> Row:
        """Append a row, with its origin; ``facts``: what the workers say of themselves."""
        row = {**row, "provenance": {"date": provenance.now(), **self.origin, "workers": dict(facts)}}
        rows.append(self.path, [row])
        self.known.append(row)
        self.say(told(row))
        return row

    def find(self, kind: str, wanted: Mapping[str, Any]) -> Row | None:
        """The first row of a kind with these values."""
        mine = rows.of_kind(self.known, kind)
        return next((row for row in mine if all(row.get(name) == value for name, value in wanted.items())), None)

    def check_time(self, needed_s: float) -> None:
        """Raises OutOfTime where the time limit comes before ``needed_s`` have passed."""
        if self.clock_s() + needed_s > self.end_s:
            raise OutOfTime(
                f"--time-limit: the next run needs {needed_s:.0f} s and there are fewer; the rows so far are in "
                f"{self.path}, and the same command with --resume goes on"
            )

    def say(self, line: str) -> None:
        """To whoever watches."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class SweepRunner:
    """Carries a sweep out. Tests put fake workers behind ``start`` and a fake clock into the log."""

    def __init__(self, experiment: Sweep, log: Log, *, start: Start, log_dir: Path) -> None:
        self.experiment = experiment
        self.failures: list[str] = []
        self._log = log
        self._start = start
        self._log_dir = log_dir

    def run(self) -> int:
        """Do what is not done yet; returns the number of new rows. Raises OutOfTime, or HeraldError naming failures."""
        sweep.check(self.experiment)
        num_before = len(self._log.known)
        for pair in self.experiment.pairs:
            for mps in (False, True):
                self._measure(pair, mps=mps)
        if self.failures:
            raise HeraldError(
                f"{len(self.failures)} runs failed (the others are in {self._log.path}):\n" + "\n".join(self.failures)
            )
        return len(self._log.known) - num_before

    def _measure(self, pair: Pair, *, mps: bool) -> None:
        """The rows of one pair in one MPS state, its processes kept alive between them."""
        service = self._service_time(pair)
        todo = self._todo(pair, mps=mps, service=service)
        if not todo:
            return
        if service is None and mps:
            raise ConfigError(f"pair {pair}: its time alone is not known yet; measure --mps off first, or give --known")
        self._log.check_time(START_S + self.experiment.seconds + RUN_OVERHEAD_S + END_S)
        with self._stage(pair, mps=mps) as stage:
            if service is None:
                with self._probes(pair) as probes:
                    stage.prepare(run.setting for run in todo)
                    service = self._log.keep(self._probed(pair, probes), stage.crew.facts)
                todo = self._todo(pair, mps=mps, service=service)
            else:
                stage.prepare(run.setting for run in todo)
            for run in todo:
                self._attempt(run, stage, service)

    def _attempt(self, run: SweepRun, stage: Stage, service: Row) -> None:
        learns = self.experiment.learn_s > 0 and not stage.has_learnt(run.setting)
        starts_s = START_S if stage.crew.num_missing(run.setting) else 0.0
        runs_s = self.experiment.seconds + RUN_OVERHEAD_S + (self.experiment.learn_s + RUN_OVERHEAD_S if learns else 0)
        self._log.check_time(starts_s + runs_s + END_S)
        rate_hz = self.experiment.rate_of(service["mean_s"])
        try:
            if learns:
                arrivals = self.experiment.learning_arrivals(rate_hz)
                factor = sweep.middle(self.experiment.slo_factors)
                self._run(run, stage, arrivals, self.experiment.learn_s, factor, kind=sweep.LEARNING_KIND)
            arrivals = self.experiment.arrivals(rate_hz, service["mean_s"], run.key.repetition)
            self._run(run, stage, arrivals, self.experiment.seconds, run.key.slo_factor, kind=self.experiment.kind)
        except (WorkerError, DaemonFailed) as error:
            self.failures.append(f"{run.pair} {run.setting.name} #{run.key.repetition}: {error}")
            self._log.say(f"failed: {self.failures[-1]}")

    def _run(
        self, run: SweepRun, stage: Stage, arrivals: Arrivals, seconds: float, factor: float | None, *, kind: str
    ) -> None:
        takes_part = run.setting.policy is not None
        # Whoever attaches has an SLO; what does not depend on it takes the middle one.
        factor = (factor or sweep.middle(self.experiment.slo_factors)) if takes_part else None
        slo_ms = None if factor is None else round(factor * self._reference_ms(run.pair), 3)
        terms = Terms(
            arrivals=arrivals,
            seconds=seconds,
            slo_ms=slo_ms,
            domain=stage.domain_of(run.setting),
            profile=self.experiment.profile_of(run.pair) if takes_part else None,
            follow=run.setting.uses_slo,
        )
        begun = CoreTime.read()
        trial = stage.run(run.setting, terms)
        row = {
            "kind": kind,
            "key": asdict(run.key),
            "slo_factors": self.experiment.slo_factors,
            **measured(run.setting, terms, trial),
            "host": begun.until(CoreTime.read()),
        }
        self._log.keep(row, stage.crew.facts)

    def _todo(self, pair: Pair, *, mps: bool, service: Row | None) -> list[SweepRun]:
        """What is missing; before the time alone is known, as if the controller ran in both MPS states."""
        done = [row["key"] for row in rows.of_kind(self._log.known, self.experiment.kind)]
        planned = sweep.plan(self.experiment, pair, mps=mps, service=service)
        return [run for run in planned if asdict(run.key) not in done]

    def _service_time(self, pair: Pair) -> Row | None:
        return self._log.find(sweep.SERVICE_TIME_KIND, service_case(self.experiment, pair))

    def _reference_ms(self, pair: Pair) -> float:
        """The p99 alone without MPS, over all repetitions that were there when it was first asked for."""
        case = sweep.case(self.experiment, pair)
        found = self._log.find(sweep.SLO_KIND, case)
        if found is None:
            latency_ms = reference_latencies_ms(self._log.known, self.experiment.kind, case, self.experiment.seconds)
            if not latency_ms:
                raise ConfigError(
                    f"pair {pair}: nothing was measured alone yet, so there is no SLO; --mps off is first"
                )
            p99_ms = round(float(np.percentile(latency_ms, 99)), 3)
            found = self._log.keep({"kind": sweep.SLO_KIND, **case, "p99_ms": p99_ms, "count": len(latency_ms)}, {})
        return float(found["p99_ms"])

    def _stage(self, pair: Pair, *, mps: bool) -> Stage:
        sweep_ = self.experiment
        return Stage(pair, device=sweep_.device, seed=sweep_.seed, mps=mps, start=self._start, log_dir=self._log_dir)

    @contextmanager
    def _probes(self, pair: Pair) -> Iterator[list[Channel]]:
        """Service processes that are loading, without and (where the sweep has such settings) under MPS.

        They are measured and closed before anything else is.
        """
        experiment = self.experiment
        with ExitStack() as stack:
            pipes: list[str | None] = [None]
            if any(s.mps for s in experiment.settings):
                pipes.append(str(stack.enter_context(private_mps("probe")).pipe_dir))
            yield [
                stack.enter_context(probing(pair.inference, experiment.device, experiment.seed, self._start, pipe))
                for pipe in pipes
            ]

    def _probed(self, pair: Pair, probes: Sequence[Channel]) -> Row:
        case = service_case(self.experiment, pair)
        return {"kind": sweep.SERVICE_TIME_KIND, **case, "seed": self.experiment.seed, **service_times(probes)}


def service_case(experiment: Sweep, pair: Pair) -> dict[str, Any]:
    """What the time alone of a pair's service is found by: the same for all loads."""
    return {"workload": pair.inference, "device": experiment.device}


def reference_latencies_ms(known: Sequence[Row], kind: str, case: Mapping[str, Any], seconds: float) -> list[float]:
    """Of every request alone without MPS, over the repetitions."""
    wanted = {**case, "setting": sweep.REFERENCE, "seconds": seconds}
    return [
        latency
        for row in rows.of_kind(known, kind)
        if all(row["key"].get(name) == value for name, value in wanted.items())
        for latency in row["inference"]["latency_ms"]
    ]


def measured(setting: settings.Setting, terms: Terms, trial: Trial) -> Row:
    """What a row says of a trial, without what can be recomputed from it."""
    row: Row = {
        "mps": setting.mps,
        "policy": setting.policy,
        "profile": terms.profile,
        "slo_ms": terms.slo_ms,
        "arrivals": arrivals_data.to_json(terms.arrivals),
    }
    if "inference" in trial.answers:
        row["inference"] = _slim(measures.inference(trial.answers["inference"], terms.slo_ms))
    if "training" in trial.answers:
        row["training"] = _slim(measures.training(trial.answers["training"]))
    return {**row, "herald": trial.herald}


def told(row: Row) -> str:
    """A row in a line, for whoever watches."""
    if row["kind"] == sweep.SERVICE_TIME_KIND:
        busy = f"device busy {row['busy_share']:.0%}"
        under_mps = "slowdown" in row and row["device"] != "cpu"
        slowdown = f", {row['slowdown']:.2f}x under MPS" if under_mps else ""
        return f"{row['workload']}: a request takes {row['mean_s'] * 1e3:.2f} ms alone{slowdown}, {busy}"
    if row["kind"] == sweep.SLO_KIND:
        return f"{row['pair']}: p99 alone {row['p99_ms']:.2f} ms, of {row['count']} requests"
    key = row["key"]
    if "setting" not in key:
        return f"{row['kind']}: {', '.join(key['members'])}"
    learns = row["kind"] == sweep.LEARNING_KIND  # under the middle SLO, whatever that of the run it comes before
    slo = f" {key['slo_factor']:g}x" if key.get("slo_factor") and not learns else ""
    said = []
    if "inference" in row:
        met = row["inference"]["attainment"]
        said.append(f"p99 {figure(row['inference']['p99_ms'])} ms")
        said += [] if met is None else ["100% met" if met == 1 else f"{met:.1%} met"]
    if "training" in row:
        said.append(f"{figure(row['training']['steps_per_s'])} steps/s")
    which = "learning" if learns else f"#{key['repetition']}"
    return f"{key['pair']} {key['setting']}{slo} {which}: {', '.join(said)}"


def _slim(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in _BULKY}
