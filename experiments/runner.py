"""`herald experiment colocation`: carries a plan out, resumes it, and appends one row per run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.console import Console

from herald.errors import ConfigError, HeraldError
from herald.experiments import arrivals as arrivals_data
from herald.experiments import measures, provenance, rows
from herald.experiments.plan import Colocation, PlannedRun, plan
from herald.experiments.process import Channel, Launch, WorkerError
from herald.experiments.rows import Row
from herald.experiments.settings import alone
from herald.experiments.stage import Stage
from herald.experiments.trial import Terms, Trial

KIND = "colocation"
FILE_NAME = "colocation.jsonl"
START_S = 15.0  # a process: imports, CUDA context, graph capture, warm-up
RUN_OVERHEAD_S = 4.0  # attach, settle, barrier, detach
END_S = 10.0  # all processes and MPS


class OutOfTime(HeraldError):
    """The time limit came before the last run; --resume goes on from there."""


class Runner:
    """Carries a plan out. Tests put fake workers behind ``start`` and a fake clock behind ``clock_s``."""

    def __init__(
        self,
        experiment: Colocation,
        path: Path,
        *,
        start: Callable[[Launch], Channel],
        log_dir: Path,
        commit: str | None = None,
        end_s: float = float("inf"),
        clock_s: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self.experiment = experiment
        self.path = path
        self.failures: list[str] = []
        self._start = start
        self._log_dir = log_dir
        self._provenance = provenance.of_command(commit)
        self._end_s = end_s
        self._clock_s = clock_s
        self._console = console or Console(stderr=True)
        self._rows = rows.of_kind(rows.read(path), KIND)

    def run(self) -> int:
        """Do what is not done yet; returns the number of new rows. Raises OutOfTime, or HeraldError naming failures."""
        todo = self._todo()
        for run in todo:
            self.experiment.profile_of(run.pair)
        self._check_slo(todo)
        num_before = len(self._rows)
        for (mps, _), group in groupby(todo, key=lambda run: (run.setting.mps, run.pair)):
            self._measure(list(group), mps=mps)
        if self.failures:
            raise HeraldError(
                f"{len(self.failures)} runs failed (the others are in {self.path}):\n" + "\n".join(self.failures)
            )
        return len(self._rows) - num_before

    def _todo(self) -> list[PlannedRun]:
        done = [row["key"] for row in self._rows]
        return [run for run in plan(self.experiment) if asdict(run.key) not in done]

    def _measure(self, runs: Sequence[PlannedRun], *, mps: bool) -> None:
        """The rows of one pair in one MPS state, its processes kept alive between them."""
        stage = Stage(
            runs[0].pair,
            device=self.experiment.device,
            seed=self.experiment.seed,
            mps=mps,
            start=self._start,
            log_dir=self._log_dir,
        )
        with stage:
            for run in runs:
                self._check_time(stage.crew.num_missing(run.setting))
                try:
                    row = self._row(run, stage)
                except WorkerError as error:  # the next run starts fresh processes
                    self.failures.append(f"{run.pair} {run.setting.name} #{run.key.repetition}: {error}")
                    self._say(f"failed: {self.failures[-1]}")
                else:
                    self._keep(row)

    def _keep(self, row: Row) -> None:
        rows.append(self.path, [row])
        self._rows.append(row)
        self._say(told(row))

    def _row(self, run: PlannedRun, stage: Stage) -> Row:
        slo_ms = self._slo_ms(run)
        terms = Terms(
            arrivals=self.experiment.arrivals_of(run.key.repetition),
            seconds=self.experiment.seconds,
            slo_ms=slo_ms,
            domain=stage.domain_of(run.setting),
            profile=self.experiment.profile_of(run.pair) if run.setting.policy else None,
        )
        trial = stage.run(run.setting, terms)
        if slo_ms is None and "inference" in trial.answers:
            slo_ms = self._derived_slo_ms(measures.latencies_ms(trial.answers["inference"]))
        origin = {"date": provenance.now(), **self._provenance, "workers": dict(stage.crew.facts)}
        return build_row(run, terms, trial, slo_ms, origin)

    def _slo_ms(self, run: PlannedRun) -> float | None:
        """Given, or from the first row alone; None for that row itself and for a trainer alone before it."""
        if self.experiment.slo_ms is not None:
            return self.experiment.slo_ms
        reference = alone("inference", mps=run.setting.mps).name
        for row in self._rows:
            key = row["key"]
            if (key["pair"], key["setting"], key["rate_hz"]) == (run.key.pair, reference, run.key.rate_hz):
                return self._derived_slo_ms(row["inference"]["latency_ms"])
        return None

    def _derived_slo_ms(self, latency_ms: Sequence[float]) -> float | None:
        p99_ms = measures.summary(latency_ms, None)["p99_ms"]
        return None if p99_ms is None else round(p99_ms * self.experiment.slo_factor, 3)

    def _check_slo(self, todo: Sequence[PlannedRun]) -> None:
        """Before anything starts: every run that has a service will know its SLO."""
        known: set[tuple[str, bool]] = set()
        for run in todo:
            reference, case = alone("inference", mps=run.setting.mps), (run.key.pair, run.setting.mps)
            if run.setting == reference or self._slo_ms(run) is not None:
                known.add(case)
            elif "inference" in run.setting.roles and case not in known:
                raise ConfigError(
                    f"setting {run.setting.name!r} has no SLO yet: add {reference.name!r} to --settings, "
                    "from which it follows, or give one, as in --slo 50ms"
                )

    def _check_time(self, num_starts: int) -> None:
        needed_s = num_starts * START_S + self.experiment.seconds + RUN_OVERHEAD_S + END_S
        if self._clock_s() + needed_s > self._end_s:
            raise OutOfTime(
                f"--time-limit: the next run needs {needed_s:.0f} s and there are fewer; the rows so far are in "
                f"{self.path}; the same command with --resume goes on"
            )

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def build_row(run: PlannedRun, terms: Terms, trial: Trial, slo_ms: float | None, origin: Row) -> Row:
    """The row of a run, from what the jobs said."""
    row: Row = {
        "kind": KIND,
        "key": asdict(run.key),
        "mps": run.setting.mps,
        "policy": run.setting.policy,
        "profile": terms.profile,
        "slo_ms": slo_ms,
        "arrivals": arrivals_data.to_json(terms.arrivals),
    }
    if "inference" in trial.answers:
        row["inference"] = measures.inference(trial.answers["inference"], slo_ms)
    if "training" in trial.answers:
        row["training"] = measures.training(trial.answers["training"])
    return {**row, "herald": trial.herald, "provenance": origin}


def told(row: Row) -> str:
    """A row in a line, for whoever watches."""
    key, said = row["key"], []
    if "inference" in row:
        said.append(f"p50 {figure(row['inference']['p50_ms'])} ms, p99 {figure(row['inference']['p99_ms'])} ms")
    if "training" in row:
        said.append(f"{figure(row['training']['steps_per_s'])} steps/s")
    return f"{key['pair']} {key['setting']} #{key['repetition']}: {', '.join(said)}"


def figure(value: float | None) -> str:
    """Three digits, or all that are whole; "-" for None. So the line of a run fits into 80 columns."""
    if value is None:
        return "-"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
