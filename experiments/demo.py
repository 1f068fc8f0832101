"""`herald demo`: one service and one training job on this machine's device, alone, shared, and shared under Herald.

Separate processes, open-loop Poisson arrivals, latency from the scheduled arrival. The three settings take turns in
rounds on the same arrivals, so that a slow minute of the machine meets all of them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from herald import build
from herald.errors import ConfigError
from herald.experiments import demo_picture, figures, measures, provenance, settings
from herald.experiments.arrivals import Poisson
from herald.experiments.crew import Crew, Pair
from herald.experiments.domain import PrivateDomain
from herald.experiments.options import logs
from herald.experiments.process import Worker
from herald.experiments.roles import Role
from herald.experiments.settings import Setting
from herald.experiments.trial import Terms, Trial, run_trial

WIDTH = 80
ROUND_S = 6.0
SLO_FACTOR = 1.5  # x the p99 of the runs alone
DISTURBED = 0.8  # of the p99 alone: no company makes a service so much faster

# What each row of the demo is measured with.
PARTS: Mapping[str, tuple[Setting, ...]] = {
    "alone": (settings.get("alone"), settings.get("train-alone")),
    "shared": (settings.get("timeslice"),),
    "herald": (settings.get("herald-strict"),),
}
SAID = {"alone": "each alone", "shared": "shared, without Herald", "herald": "shared, with Herald"}


@dataclass(frozen=True)
class Case:
    """What runs on a type of device."""

    pair: Pair
    rate_hz: float


CASES: Mapping[str, Case] = {
    "cpu": Case(Pair("cpu-transformer", "cpu-vgg-loaders"), rate_hz=20),
    "cuda": Case(Pair("transformer", "vgg16"), rate_hz=10),
}


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    device: str  # "cpu" or "cuda"
    seconds: float  # of arrivals per setting, over all rounds
    seed: int
    slo_ms: float | None  # None: derived

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= 3600:
            raise ConfigError(f"--seconds = {self.seconds:g}: give 1 to 3600 seconds per setting")

    @property
    def num_rounds(self) -> int:
        """How often the settings take turns."""
        return max(1, round(self.seconds / ROUND_S))


@dataclass
class Tally:
    """Everything measured so far of one row; grows by a trial at a time."""

    latency_ms: list[float] = field(default_factory=list)
    steps: int = 0
    training_s: float = 0.0
    busy_s: float = 0.0  # that the service worked
    serving_s: float = 0.0  # of arrivals

    def add(self, trial: Trial, seconds: float) -> None:
        """Take in a trial of ``seconds`` of arrivals."""
        if answer := trial.answers.get("inference"):
            self.latency_ms += measures.latencies_ms(answer)
            self.busy_s += measures.inference(answer, None)["busy_s"]
            self.serving_s += seconds
        if answer := trial.answers.get("training"):
            self.steps += len(answer["done_s"])
            self.training_s += answer["done_s"][-1] if answer["done_s"] else 0.0

    @property
    def steps_per_s(self) -> float:
        """Training throughput over all trials."""
        return self.steps / self.training_s if self.training_s else 0.0

    @property
    def load(self) -> float:
        """Share of the time in which the service works."""
        return self.busy_s / self.serving_s if self.serving_s else 0.0


@dataclass(frozen=True)
class Outcome:
    """What the demo measured."""

    case: Case
    slo_ms: float
    tallies: Mapping[str, Tally]
    facts: Mapping[Role, Mapping[str, Any]]

    def document(self) -> dict[str, Any]:
        """What --json writes."""
        worker = self.facts["inference"]
        software = {key: worker[key] for key in ("python", "torch", "cuda")}
        return {
            "provenance": {"date": provenance.now(), **provenance.of_command()},
            "machine": {**provenance.machine(), **software},
            "slo_ms": self.slo_ms,
            "rows": [self._row(name) for name in self.tallies],
        }

    def relative(self, name: str) -> float:
        """Training throughput of a row relative to alone."""
        alone = self.tallies["alone"].steps_per_s
        return self.tallies[name].steps_per_s / alone if alone else 0.0

    def p99_ratio(self, name: str) -> float:
        """Tail latency of a row relative to alone."""
        return float(self._p99_ms(name) / self._p99_ms("alone"))

    def _p99_ms(self, name: str) -> float:
        return float(measures.summary(self.tallies[name].latency_ms, self.slo_ms)["p99_ms"])

    def _row(self, name: str) -> dict[str, Any]:
        tally = self.tallies[name]
        return {
            "setting": name,
            "inference": measures.summary(tally.latency_ms, self.slo_ms),
            "training": {
                "steps": tally.steps,
                "steps_per_s": round(tally.steps_per_s, 4),
                "relative": round(self.relative(name), 4),
            },
        }


def run(options: Options, *, json_path: Path | None, out: Path, stdout: Console, stderr: Console) -> Outcome:
    """Measure, then write and show the result. Raises HeraldError; its processes and domain are gone then."""
    build.build_all()  # here, where its progress line is seen
    outcome = measure(options, stderr)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(outcome.document(), indent=2) + "\n", encoding="utf-8")
    show(outcome, options, stdout)
    out.mkdir(parents=True, exist_ok=True)
    try:
        drawn = draw(outcome, out / "latency.png")
    except figures.FigureError as error:
        stderr.print(f"no figure: {error}", highlight=False, markup=False)
    else:
        stdout.print(f"Figure: {drawn}", highlight=False, markup=False, soft_wrap=True)
    return outcome


def measure(options: Options, console: Console) -> Outcome:
    """Run all rounds."""
    case = CASES[options.device]
    tallies = {name: Tally() for name in PARTS}
    with ExitStack() as stack:
        log_dir = stack.enter_context(logs())
        domain = stack.enter_context(PrivateDomain("demo", log_dir))
        crew = Crew(case.pair, options.device, options.seed, lambda launch: Worker(launch, log_dir))
        stack.enter_context(crew)
        step = stack.enter_context(_progress(console, options.num_rounds * sum(map(len, PARTS.values()))))
        for number in range(options.num_rounds):
            for name, parts in PARTS.items():
                for setting in parts:
                    step(f"round {number + 1} of {options.num_rounds}: {SAID[name]}")
                    terms = Terms(
                        arrivals=Poisson(case.rate_hz, seed=options.seed * 1000 + number),
                        seconds=options.seconds / options.num_rounds,
                        slo_ms=None if setting.policy is None else slo_ms(options, tallies),
                        domain=domain.name,
                    )
                    tallies[name].add(run_trial(crew, setting, terms), terms.seconds)
        return Outcome(case, slo_ms(options, tallies), tallies, dict(crew.facts))


def slo_ms(options: Options, tallies: Mapping[str, Tally]) -> float:
    """The SLO as far as it is known: given, or from all requests alone so far."""
    if options.slo_ms is not None:
        return options.slo_ms
    p99_ms = measures.summary(tallies["alone"].latency_ms, None)["p99_ms"]
    if p99_ms is None:
        raise ConfigError(f"--seconds = {options.seconds:g}: no request arrived in the run alone; give more seconds")
    return float(round(p99_ms * SLO_FACTOR, 3))


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar that names the trial being measured; call the result before each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=total)
        begun = 0

        def step(description: str) -> None:
            nonlocal begun
            progress.update(task, completed=begun, description=description)
            if not console.is_terminal:  # which shows no bar
                console.print(f"{begun + 1} of {total}: {description}", highlight=False, markup=False)
            begun += 1

        yield step


# What the user sees ------------------------------------------------------------------------------------------------


def show(outcome: Outcome, options: Options, console: Console) -> None:
    """The table and the verdict, at 80 columns."""
    case = outcome.case
    console.print(
        f"{case.pair.inference} at {case.rate_hz:g} requests/s (Poisson) beside {case.pair.training} training, "
        f"{options.device}; SLO {outcome.slo_ms:.1f} ms",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("setting")
    for heading in ("requests", "p50 ms", "p99 ms", "p99/alone", "SLO met", "training"):
        table.add_column(heading, justify="right")
    for row in outcome.document()["rows"]:
        name, inference = row["setting"], row["inference"]
        table.add_row(
            SAID[name],
            str(inference["count"]),
            f"{inference['p50_ms']:.1f}",
            f"{inference['p99_ms']:.1f}",
            f"{outcome.p99_ratio(name):.2f}",
            f"{inference['attainment']:.1%}",
            f"{row['training']['relative']:.0%}",
        )
    console.print(table)
    console.print(verdict(outcome), highlight=False, markup=False)


def verdict(outcome: Outcome) -> str:
    """The result in one sentence; a second one where the runs alone, to which all is relative, cannot be right."""
    attained = measures.summary(outcome.tallies["herald"].latency_ms, outcome.slo_ms)["attainment"]
    disturbed = min(outcome.p99_ratio("shared"), outcome.p99_ratio("herald")) < DISTURBED
    doubt = " The runs alone were disturbed by something else on this machine: run it again." if disturbed else ""
    return (
        f"Sharing without Herald made p99 latency {outcome.p99_ratio('shared'):.1f}x that of running alone; "
        f"with Herald it was {outcome.p99_ratio('herald'):.2f}x, {attained:.1%} of requests met the SLO, "
        f"and training ran at {outcome.relative('herald'):.0%} of its speed alone.{doubt}"
    )


def draw(outcome: Outcome, path: Path) -> Path:
    """The latency distributions and the frontier."""
    return demo_picture.draw(
        {name: demo_picture.Point(tally.latency_ms, outcome.relative(name)) for name, tally in outcome.tallies.items()},
        path,
        slo_ms=outcome.slo_ms,
        load=outcome.tallies["alone"].load,
        title=f"{outcome.case.pair.inference} beside {outcome.case.pair.training} training",
    )
