"""`herald experiment llm`: a server with continuous batching beside training; TTFT, TPOT and what training gets.

The settings take turns within a repetition, on the same requests. SLOs that are not given follow from the server
alone: 1.5 x its p99. A request meets its SLO when both of its times do.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from herald.errors import ConfigError
from herald.experiments import arrivals as arrivals_data
from herald.experiments import measures, provenance, rows, workloads
from herald.experiments.arrivals import Poisson
from herald.experiments.crew import Pair
from herald.experiments.joining import joined
from herald.experiments.llm_server import Served
from herald.experiments.llm_worker import DEFAULT as SERVER
from herald.experiments.llm_worker import SERVERS
from herald.experiments.plan import existing_profile
from herald.experiments.process import Channel, Launch, Worker, call_all
from herald.experiments.roles import Role
from herald.experiments.rows import Row
from herald.experiments.settings import Setting
from herald.experiments.stage import Stage
from herald.experiments.trial import RUN_GRACE_S, START_DELAY_S
from herald.slo import SloSpec

KIND = "llm"
WIDTH = 80
SLO_FACTOR = 1.5
TRAINING = {"cpu": "cpu-vgg", "cuda": "vgg16"}
_WORKER = "herald.experiments.llm_worker"
SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("alone", "server alone", roles=("inference",)),
        Setting("train-alone", "training alone", roles=("training",)),
        Setting("shared", "shared, without Herald"),
        Setting("strict", "Herald, policy strict", policy="strict"),
        Setting("herald", "Herald, policy herald", policy="herald", uses_slo=True),
        Setting("free", "Herald, policy free", policy="free"),
    )
}
DEFAULT = ("alone", "train-alone", "shared", "strict", "herald")


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    device: str
    mps: bool
    training: str
    settings: tuple[str, ...]
    seconds: float
    repeats: int
    rate_hz: float | None  # None: the server's
    ttft_ms: float | None  # None: from the first run alone; so is the next
    tpot_ms: float | None
    seed: int
    profiles: Path | None = None  # folder of profiles by workload, with which the trainer attaches

    def __post_init__(self) -> None:
        unknown = [name for name in self.settings if name not in SETTINGS]
        if unknown:
            raise ConfigError(f"--settings {','.join(unknown)}: allowed are {', '.join(SETTINGS)}")
        workloads.check(self.training, "training", self.device)
        if self.profiles:
            existing_profile(self.profiles, self.training)
        if not 1 <= self.seconds <= 3600:
            raise ConfigError(f"--seconds = {self.seconds:g}: give 1 to 3600 seconds of arrivals")
        if self.repeats < 1:
            raise ConfigError(f"--repeats = {self.repeats}: give 1 or more")
        if "alone" not in self.settings and (self.ttft_ms is None or self.tpot_ms is None):
            raise ConfigError("--settings without alone: give --ttft and --tpot, which follow from it otherwise")

    @property
    def server(self) -> str:
        """The name of the server."""
        return SERVER[self.device]

    @property
    def chosen(self) -> list[Setting]:
        """Alone first: SLOs follow from it."""
        return [replace(setting, mps=self.mps) for name, setting in SETTINGS.items() if name in self.settings]

    def arrivals_of(self, repetition: int) -> Poisson:
        """The same in all settings."""
        return Poisson(self.rate_hz or SERVERS[self.server].rate_hz, seed=self.seed + repetition)


@dataclass(frozen=True)
class Promise:
    """The SLO of a request, in ms."""

    ttft_ms: float
    tpot_ms: float

    def spec(self) -> SloSpec:
        """As `herald.attach` takes it."""
        return {"ttft": f"{self.ttft_ms:.3f}ms", "tpot": f"{self.tpot_ms:.3f}ms"}

    def is_met(self, served: Served) -> bool:
        """Whether both times were kept."""
        return served.ttft_ms <= self.ttft_ms and (served.tpot_ms is None or served.tpot_ms <= self.tpot_ms)


def record(options: Options, out: Path, *, log_dir: Path, commit: str | None = None) -> None:
    """Measure, append every row as it comes, show the table. Raises WorkerError."""
    origin = provenance.of_command(commit)
    path = out / f"{KIND}.jsonl"
    found: list[Row] = []
    for row in run(options, log_dir=log_dir):
        found.append({"kind": KIND, **row, "provenance": {"date": provenance.now(), **origin}})
        rows.append(path, found[-1:])
    show(found, Console(width=WIDTH))
    print(f"Rows: {path}")


def run(options: Options, *, log_dir: Path) -> Iterator[Row]:
    """A row per setting and repetition."""

    def start(launch: Launch) -> Worker:
        return Worker(replace(launch, module=_WORKER) if launch.name == "inference" else launch, log_dir)

    pair = Pair(options.server, options.training)
    stage = Stage(pair, device=options.device, seed=options.seed, mps=options.mps, start=start, log_dir=log_dir)
    promise: Promise | None = None
    with stage:
        stage.prepare(options.chosen)
        for repetition in range(options.repeats):
            for setting in options.chosen:
                answers, counters = _trial(options, setting, stage, options.arrivals_of(repetition), promise)
                served = [Served(*each) for each in answers.get("inference", {}).get("served", ())]
                if promise is None and served:
                    promise = promised(options, served)
                yield _row(options, setting, repetition, promise, answers) | {
                    "herald": counters,
                    "workers": dict(stage.crew.facts),
                }


def _trial(
    options: Options, setting: Setting, stage: Stage, arrivals: Poisson, promise: Promise | None
) -> tuple[dict[Role, dict[str, Any]], dict[Role, dict[str, Any]]]:
    members, domain = stage.crew.members(setting), stage.domain_of(setting)
    if domain is None:
        return _run(members, options.seconds, arrivals), {}
    assert promise is not None, "the server has run alone before, or its SLO was given"
    profile = existing_profile(options.profiles, options.training) if options.profiles else None
    with joined(members, domain=domain, device=options.device, slo=promise.spec(), profile=profile) as counters:
        answers = _run(members, options.seconds, arrivals)
    return answers, counters


def _run(members: Mapping[Role, Channel], seconds: float, arrivals: Poisson) -> dict[Role, dict[str, Any]]:
    return call_all(
        members,
        "run",
        timeout_s=seconds + RUN_GRACE_S,
        start_s=time.monotonic() + START_DELAY_S,
        seconds=seconds,
        arrivals=arrivals_data.to_json(arrivals),
    )


def promised(options: Options, alone: Sequence[Served]) -> Promise:
    """As given, or from what the server did alone."""
    ttft_ms, tpot_ms = _times_ms(alone)
    return Promise(
        options.ttft_ms or round(SLO_FACTOR * float(np.percentile(ttft_ms, 99)), 3),
        options.tpot_ms or round(SLO_FACTOR * float(np.percentile(tpot_ms or [0.001], 99)), 3),
    )


def _row(
    options: Options, setting: Setting, repetition: int, promise: Promise | None, answers: Mapping[Role, dict[str, Any]]
) -> Row:
    row: Row = {
        "key": {
            "server": options.server,
            "training": options.training,
            "setting": setting.name,
            "repetition": repetition,
            "device": options.device,
            "mps": options.mps,
            "seconds": options.seconds,
            "rate_hz": options.arrivals_of(0).rate_hz,
            "seed": options.seed,
        },
        "policy": setting.policy,
        "profile": str(options.profiles) if options.profiles and setting.policy else None,
    }
    if "inference" in answers:
        assert promise is not None, "it has served"
        row["slo"] = {"ttft_ms": promise.ttft_ms, "tpot_ms": promise.tpot_ms}
        row["inference"] = summary([Served(*each) for each in answers["inference"]["served"]], promise)
    if "training" in answers:
        row["training"] = measures.training(answers["training"])
    return row


def summary(served: Sequence[Served], promise: Promise) -> dict[str, Any]:
    """Of the requests of a run: p50 and p99 of both times, attainment, tokens/s, and every request's times."""
    ttft_ms, tpot_ms = _times_ms(served)
    met = [promise.is_met(each) for each in served]
    return {
        "count": len(served),
        "tokens": sum(each.tokens for each in served),
        **{f"ttft_p{q}_ms": _percentile(ttft_ms, q) for q in (50, 99)},
        **{f"tpot_p{q}_ms": _percentile(tpot_ms, q) for q in (50, 99)},
        "attainment": round(sum(met) / len(met), 5) if met else None,
        "ttft_ms": [round(value, 3) for value in ttft_ms],
        "tpot_ms": [round(value, 3) for value in tpot_ms],
    }


def _times_ms(served: Sequence[Served]) -> tuple[list[float], list[float]]:
    return [s.ttft_ms for s in served], [s.tpot_ms for s in served if s.tpot_ms is not None]


def _percentile(values: Sequence[float], q: int) -> float | None:
    return round(float(np.percentile(values, q)), 3) if values else None


# What the user sees ---------------------------------------------------------------------------------------------------


def show(found: Sequence[Row], console: Console) -> None:
    """A line per row; training relative to the first run alone."""
    reference = next((row for row in found if row["key"]["setting"] == "train-alone"), None)
    slo = next((row["slo"] for row in found if "slo" in row), None)
    first = found[0]["key"] if found else None
    if first and slo:
        console.print(
            f"{first['server']} at {first['rate_hz']:g} requests/s beside {first['training']}, {first['device']}"
            f"{', MPS' if first['mps'] else ''};\n"
            f"SLO: first token {slo['ttft_ms']:.1f} ms, {slo['tpot_ms']:.1f} ms per further token",
            highlight=False,
        )
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("setting")
    for heading in ("requests", "TTFT p50", "p99 ms", "TPOT p50", "p99 ms", "SLO met", "training"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(row["key"]["setting"], *_served_cells(row), _training_cell(row, reference))
    console.print(table)


def _served_cells(row: Row) -> list[str]:
    if "inference" not in row or not row["inference"]["count"]:
        return [""] * 6
    done = row["inference"]
    times = [done[f"{of}_p{q}_ms"] for of in ("ttft", "tpot") for q in (50, 99)]
    return [
        str(done["count"]),
        *("" if value is None else f"{value:.1f}" for value in times),
        f"{done['attainment']:.1%}",
    ]


def _training_cell(row: Row, reference: Row | None) -> str:
    if "training" not in row:
        return ""
    steps_per_s: float = row["training"]["steps_per_s"]
    if reference is None:
        return f"{steps_per_s:.2f}/s"
    return f"{steps_per_s / reference['training']['steps_per_s']:.3f}"
