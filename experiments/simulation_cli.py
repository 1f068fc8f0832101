"""`herald experiment simulate`: a study of many GPUs, or (--validate) the simulator against rows that were measured."""

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from herald.errors import ConfigError
from herald.experiments.options import add_rows_of

if TYPE_CHECKING:
    from herald.experiments.rows import Row
    from herald.experiments.simulation_check import Checked

_POLICIES = "strict,laxity,free,timeslice,reserve:66,tgs,orion,herald"
_WIDTH = 80


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = kinds.add_parser("simulate", help="many simulated GPUs under several policies; or check the simulator")
    parser.add_argument("--policies", default=_POLICIES, metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--gpus", type=int, default=100, help="default: %(default)d")
    parser.add_argument("--services", type=int, default=3, help="on each GPU (default: %(default)d)")
    parser.add_argument("--trainers", type=int, default=7, help="on each GPU (default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=20.0, help="that are simulated (default: %(default)g)")
    parser.add_argument("--rate", type=float, default=10.0, help="requests/s of a service (default: %(default)g)")
    parser.add_argument("--arrivals", default="poisson", help="poisson, periodic, bursty or trace:NAME")
    parser.add_argument("--load", type=float, default=0.4, help="of a GPU by its services (default: %(default)g)")
    parser.add_argument("--slo-factor", type=float, default=5.0, help="SLO / mean time alone (default: %(default)g)")
    parser.add_argument("--tick", type=float, default=500.0, metavar="MS", help="of the daemons (default: %(default)g)")
    parser.add_argument(
        "--validate",
        nargs="+",
        type=Path,
        metavar="ROWS",
        help="instead: simulate these rows of `colocation` or `frontier` again",
    )
    add_rows_of(parser, _simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    with _quiet_daemons():
        return _validate(arguments) if arguments.validate else _study(arguments)


@contextmanager
def _quiet_daemons() -> Iterator[None]:
    """What a daemon says to its user, a hundred of them would say to nobody."""
    log = logging.getLogger("herald.daemon")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _study(arguments: argparse.Namespace) -> int:
    from herald.experiments import simulation

    study = simulation.Study(
        policies=tuple(arguments.policies.split(",")),
        num_gpus=arguments.gpus,
        num_services=arguments.services,
        num_trainers=arguments.trainers,
        seconds=arguments.seconds,
        rate_hz=arguments.rate,
        arrivals=arguments.arrivals,
        load=arguments.load,
        slo_factor=arguments.slo_factor,
        seed=arguments.seed,
        tick_ms=arguments.tick,
    )
    began_s = time.perf_counter()
    found = list(simulation.run(study))
    took_s = time.perf_counter() - began_s
    path = _keep(simulation.KIND, found, arguments)
    num_jobs = study.num_gpus * (study.num_services + study.num_trainers)
    lines = [
        (
            total.policy,
            f"{total.requests}",
            f"{100 * total.attainment:.2f}%",
            f"{total.excess}",
            f"{100 * total.held:.0f}%",
            f"{total.p99_ratio:.2f}",
            f"{total.training:.3f}",
        )
        for total in simulation.totals(found)
    ]
    _show(("policy", "requests", "in SLO", "excess", "held", "p99/alone", "training"), lines)
    print(
        f"{num_jobs} jobs on {study.num_gpus} GPUs, {study.seconds:g} s of {study.arrivals}, load {study.load:g}, "
        f"seed {study.seed};\nsimulated in {took_s:.1f} s, {took_s / len(study.policies):.1f} s per policy. "
        "excess: missed, and would not\nhave been alone; held: services that met their target; training: GPUs' worth,\n"
        f"per GPU. All jobs are synthetic. Rows: {path}"
    )
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from herald.experiments import rows, simulation_check

    found = rows.read_all(arguments.validate)
    measured = [row for kind in ("colocation", "frontier") for row in rows.of_kind(found, kind)]
    if not measured:
        files = ", ".join(map(str, arguments.validate))
        raise ConfigError(f"--validate {files}: no rows of `colocation` or `frontier` in there")
    checked = simulation_check.check(measured, seed=arguments.seed)
    path = _keep("simulation-check", [_row(run) for run in checked], arguments)
    for pair in dict.fromkeys(run.pair for run in checked):
        print(pair)
        _show(("setting", "runs", "p99 off by, %", "training, points"), _lines([r for r in checked if r.pair == pair]))
    predicted = [run for run in checked if not run.fitted]
    lines = [
        (pair, f"{e.runs}", f"{100 * e.p99:.1f}", f"{100 * e.training:.1f}")
        for pair, e in simulation_check.typical_errors(predicted).items()
    ]
    if lines:
        _show(("predicted runs: medians of", "runs", "p99 off by, %", "training, %"), lines)
    within = sum(abs(run.p99_error) <= 0.05 for run in predicted)
    close = sum(abs(run.training_error) <= 0.02 for run in predicted)
    print(
        f"Of {len(predicted)} predicted runs {within} have a p99 within 5 % of the measured one,\n"
        f"{close} training within 2 points of that alone. Rows: {path}"
    )
    return 0


def _lines(checked: "list[Checked]") -> list[tuple[str, ...]]:
    """One per setting, its fitted and its predicted runs apart."""
    groups: dict[tuple[str, bool], list[Checked]] = {}
    for run in checked:
        groups.setdefault((run.setting, run.fitted), []).append(run)
    return [
        (
            setting,
            f"{len(runs)} {'fitted' if fitted else 'predicted'}",
            " ".join(f"{100 * run.p99_error:+.1f}" for run in runs),
            " ".join(f"{100 * run.training_error:+.1f}" for run in runs),
        )
        for (setting, fitted), runs in groups.items()
    ]


def _row(run: "Checked") -> "Row":
    return {
        "pair": run.pair,
        "mps": run.mps,
        "setting": run.setting,
        "repetition": run.repetition,
        "fitted": run.fitted,
        "p99_ms": {"measured": round(run.measured_p99_ms, 3), "simulated": round(run.simulated_p99_ms, 3)},
        "training": {"measured": round(run.measured_training, 5), "simulated": round(run.simulated_training, 5)},
    }


def _keep(kind: str, found: "list[Row]", arguments: argparse.Namespace) -> Path:
    """Append the rows with their provenance; where they are."""
    from herald.experiments import provenance, rows

    path: Path = arguments.out / f"{kind}.jsonl"
    origin = {"date": provenance.now(), **provenance.of_command(arguments.commit)}
    rows.append(path, [{"kind": kind, **row, "provenance": origin} for row in found])
    return path


def _show(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right")
    for line in lines:
        table.add_row(*line)
    Console(width=_WIDTH).print(table)
