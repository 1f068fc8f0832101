"""`herald demo` and `herald experiment ...`: from words to the module that does it, imported only then."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from herald.durations import parse_duration
from herald.experiments import measurement_cli, space_time_cli, sweep_cli
from herald.experiments.options import (
    DEVICES,
    add_device,
    add_out,
    add_rows_of,
    add_seed,
    add_time_limit,
    check_device,
    check_file,
    check_least,
    check_pair,
    check_resume,
    end_s,
    logs,
)

if TYPE_CHECKING:
    from herald.experiments.plan import Colocation


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Both commands."""
    _add_demo(subparsers.add_parser("demo", help="colocate inference and training here, and show what Herald does"))
    experiment = subparsers.add_parser("experiment", help="measure colocations and report on them")
    kinds = experiment.add_subparsers(metavar="EXPERIMENT", required=True)
    _add_colocation(kinds.add_parser("colocation", help="a service beside a training job, in many settings"))
    _add_report(kinds.add_parser("report", help="tables, criteria and figures from rows"))
    sweep_cli.add_parsers(kinds)
    measurement_cli.add_parsers(kinds)
    space_time_cli.add_parsers(kinds)


# Parsers --------------------------------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", *DEVICES), default="auto", help="default: a GPU if there is one")
    parser.add_argument("--seconds", type=float, default=36.0, help="of arrivals per setting (default: %(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON, too")
    parser.add_argument("--slo", metavar="DURATION", help="as in 50ms; default: from the run alone")
    add_seed(parser)
    add_out(parser, _demo)


def _add_colocation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", action="append", required=True, metavar="INFERENCE+TRAINING", help="may be repeated")
    parser.add_argument("--settings", default="all", metavar="NAME,...", help="default: all")
    parser.add_argument("--mps", choices=("off", "on", "both"), default="off", help="MPS states (default: off)")
    add_device(parser, default="cuda")
    parser.add_argument("--seconds", type=float, default=30.0, help="of arrivals per run (default: %(default)g)")
    parser.add_argument("--repeats", type=int, default=3, help="runs per setting (default: %(default)d)")
    parser.add_argument("--rate", type=float, default=10.0, help="requests/s (default: %(default)g)")
    parser.add_argument("--arrivals", choices=("poisson", "periodic"), default="poisson")
    parser.add_argument("--slo", metavar="DURATION", help="as in 50ms; default: --slo-factor x p99 of the run alone")
    parser.add_argument("--slo-factor", type=float, default=1.5, help="default: %(default)g")
    parser.add_argument("--profiles", type=Path, metavar="DIR", help="trainers attach with DIR/WORKLOAD.profile.json")
    add_time_limit(parser)
    add_rows_of(parser, _colocation)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rows", nargs="+", type=Path, metavar="ROWS", help="files of rows, or folders with them")
    parser.add_argument("--over", choices=("slo", "alone"), default="slo", help="what the figure's p99 is relative to")
    add_out(parser, _report)


# Commands -------------------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from herald.experiments import demo

    if arguments.json is not None:
        check_file("--json", arguments.json)
    options = demo.Options(
        device=resolved_device(arguments.device),
        seconds=arguments.seconds,
        seed=arguments.seed,
        slo_ms=_milliseconds(arguments.slo),
    )
    stdout, stderr = Console(width=demo.WIDTH), Console(stderr=True)
    demo.run(options, json_path=arguments.json, out=arguments.out, stdout=stdout, stderr=stderr)
    return 0


def _colocation(arguments: argparse.Namespace) -> int:
    from herald.experiments import runner
    from herald.experiments.process import Worker

    experiment = _experiment(arguments)
    path = arguments.out / runner.FILE_NAME
    check_resume(path, resume=arguments.resume)
    with logs() as log_dir:
        num_rows = runner.Runner(
            experiment,
            path,
            start=lambda launch: Worker(launch, log_dir),
            log_dir=log_dir,
            commit=arguments.commit,
            end_s=end_s(arguments.time_limit),
        ).run()
    print(f"{num_rows} new rows in {path}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from herald.experiments import report

    report.write(arguments.rows, arguments.out, over=arguments.over)
    print(f"page and figures: {arguments.out / 'report.md'}")
    return 0


# From words to values -------------------------------------------------------------------------------------------------


def _experiment(arguments: argparse.Namespace) -> "Colocation":
    """The experiment that the words describe. Raises ConfigError."""
    from herald.experiments import settings
    from herald.experiments.crew import Pair
    from herald.experiments.plan import Colocation

    check_device(arguments)
    pairs = tuple(Pair.parse(text) for text in arguments.pair)
    for pair in pairs:
        check_pair(pair, arguments.device)
    check_least("--seconds", arguments.seconds, 1)
    check_least("--repeats", arguments.repeats, 1)
    check_least("--slo-factor", arguments.slo_factor, 1)
    return Colocation(
        pairs=pairs,
        settings=tuple(settings.choose(arguments.settings.split(","), arguments.mps)),
        device=arguments.device,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
        rate_hz=arguments.rate,
        arrivals=arguments.arrivals,
        seed=arguments.seed,
        slo_ms=_milliseconds(arguments.slo),
        slo_factor=arguments.slo_factor,
        profiles=arguments.profiles,
    )


def resolved_device(device: str) -> str:
    """The device type to run on; "auto" is the GPU where driver and torch have one."""
    if device != "auto":
        return device
    from herald.driver import NoDriverError, probe

    try:
        probe()
    except NoDriverError:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _milliseconds(slo: str | None) -> float | None:
    return None if slo is None else parse_duration(slo, setting="--slo") / 1e6
