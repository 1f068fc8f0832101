"""`herald demo` and `herald experiment ...`: from words to the module that does it, imported only then."""

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from herald.durations import parse_duration
from herald.errors import ConfigError

if TYPE_CHECKING:
    from herald.experiments.measurement import Kind
    from herald.experiments.plan import Colocation
    from herald.experiments.rows import Row

OUT = Path("out")
DEVICES = ("cpu", "cuda")
EXIT_MISSED = 1  # measured, and a criterion is not met


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Both commands."""
    _add_demo(subparsers.add_parser("demo", help="colocate inference and training here, and show what Herald does"))
    experiment = subparsers.add_parser("experiment", help="measure colocations and report on them")
    kinds = experiment.add_subparsers(metavar="EXPERIMENT", required=True)
    _add_colocation(kinds.add_parser("colocation", help="a service beside a training job, in many settings"))
    _add_report(kinds.add_parser("report", help="tables, criteria and figures from rows"))
    _add_hook_cost(kinds.add_parser("hook-cost", help="what the op hook costs per op event on a CPU"))
    _add_overhead(kinds.add_parser("overhead", help="what Herald costs a job that is alone"))
    _add_numerics(kinds.add_parser("numerics", help="whether losses under a busy gate are bit-identical"))
    _add_faults(kinds.add_parser("faults", help="how soon the others go on after a kill -9"))


# Parsers --------------------------------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", *DEVICES), default="auto", help="default: a GPU if there is one")
    parser.add_argument("--seconds", type=float, default=36.0, help="of arrivals per setting (default: %(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON, too")
    parser.add_argument("--slo", metavar="DURATION", help="as in 50ms; default: from the run alone")
    _add_seed(parser)
    _add_out(parser)
    parser.set_defaults(run=_demo)


def _add_colocation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", action="append", required=True, metavar="INFERENCE+TRAINING", help="may be repeated")
    parser.add_argument("--settings", default="all", metavar="NAME,...", help="default: all")
    parser.add_argument("--mps", choices=("off", "on", "both"), default="off", help="MPS states (default: off)")
    _add_device(parser, default="cuda")
    parser.add_argument("--seconds", type=float, default=30.0, help="of arrivals per run (default: %(default)g)")
    parser.add_argument("--repeats", type=int, default=3, help="runs per setting (default: %(default)d)")
    parser.add_argument("--rate", type=float, default=10.0, help="requests/s (default: %(default)g)")
    parser.add_argument("--arrivals", choices=("poisson", "periodic"), default="poisson")
    parser.add_argument("--slo", metavar="DURATION", help="as in 50ms; default: --slo-factor x p99 of the run alone")
    parser.add_argument("--slo-factor", type=float, default=1.5, help="default: %(default)g")
    parser.add_argument("--time-limit", metavar="DURATION", help="as in 9min: start no run that would end later")
    parser.add_argument("--resume", action="store_true", help="add what is missing in --out to the rows that are there")
    _add_seed(parser)
    _add_out(parser)
    _add_commit(parser)
    parser.set_defaults(run=_colocation)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rows", nargs="+", type=Path, metavar="ROWS", help="files of rows, or folders with them")
    parser.add_argument("--over", choices=("slo", "alone"), default="slo", help="what the figure's p99 is relative to")
    _add_out(parser)
    parser.set_defaults(run=_report)


def _add_hook_cost(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    _add_commit(parser)
    parser.set_defaults(run=_hook_cost)


def _add_overhead(parser: argparse.ArgumentParser) -> None:
    _add_device(parser, default="cpu")
    _add_mps(parser)
    _add_workloads(parser)
    parser.add_argument(
        "--blocks", type=int, default=10, help="pairs of blocks, without and with Herald (default: %(default)d)"
    )
    _add_seed(parser)
    _add_out(parser)
    _add_commit(parser)
    parser.set_defaults(run=_overhead)


def _add_numerics(parser: argparse.ArgumentParser) -> None:
    _add_device(parser, default="cpu")
    _add_workloads(parser)
    parser.add_argument("--steps", type=int, default=40, help="training steps compared (default: %(default)d)")
    _add_seed(parser)
    _add_out(parser)
    _add_commit(parser)
    parser.set_defaults(run=_numerics)


def _add_faults(parser: argparse.ArgumentParser) -> None:
    _add_device(parser, default="cpu")
    _add_mps(parser)
    _add_seed(parser)
    _add_out(parser)
    _add_commit(parser)
    parser.set_defaults(run=_faults)


def _add_device(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--device", choices=DEVICES, default=default, help="default: %(default)s")


def _add_mps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mps", choices=("off", "on"), default="off", help="under an MPS of its own (default: off)")


def _add_workloads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", action="append", metavar="NAME", help="may be repeated; default: the device's")


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and arrivals (default: 0)")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where files go (default: %(default)s)")


def _add_commit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commit", help="written into the rows where there is no git repository")


# Commands -------------------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from herald.experiments import demo

    options = demo.Options(
        device=_resolved(arguments.device),
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
    _check_resume(path, resume=arguments.resume)
    with _logs() as log_dir:
        num_rows = runner.Runner(
            experiment,
            path,
            start=lambda launch: Worker(launch, log_dir),
            log_dir=log_dir,
            commit=arguments.commit,
            end_s=_end_s(arguments.time_limit),
        ).run()
    print(f"{num_rows} new rows in {path}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from herald.experiments import report

    report.write(arguments.rows, arguments.out, over=arguments.over)
    return 0


def _hook_cost(arguments: argparse.Namespace) -> int:
    from herald.experiments import hook_cost

    return _measure(hook_cost.KIND, hook_cost.run(), arguments)


def _overhead(arguments: argparse.Namespace) -> int:
    from herald.experiments import overhead

    _check_mps(arguments)
    with _logs() as log_dir:
        measured = overhead.run(
            arguments.device,
            mps=arguments.mps == "on",
            names=arguments.workload,
            num_pairs=arguments.blocks,
            seed=arguments.seed,
            log_dir=log_dir,
        )
        return _measure(overhead.KIND, measured, arguments)


def _numerics(arguments: argparse.Namespace) -> int:
    from herald.experiments import numerics

    with _logs() as log_dir:
        measured = numerics.run(
            arguments.device, names=arguments.workload, steps=arguments.steps, seed=arguments.seed, log_dir=log_dir
        )
        return _measure(numerics.KIND, measured, arguments)


def _faults(arguments: argparse.Namespace) -> int:
    from herald.experiments import faults

    _check_mps(arguments)
    with _logs() as log_dir:
        measured = faults.run(arguments.device, mps=arguments.mps == "on", seed=arguments.seed, log_dir=log_dir)
        return _measure(faults.KIND, measured, arguments)


def _measure(kind: "Kind", measured: "Iterable[Row]", arguments: argparse.Namespace) -> int:
    """Carry a measurement out; the exit code says whether its criteria are met."""
    from herald.experiments import measurement

    met = measurement.record(kind, measured, arguments.out, commit=arguments.commit)
    return 0 if met else EXIT_MISSED


@contextmanager
def _logs() -> Iterator[Path]:
    """A folder for what processes say, for as long as they live."""
    from herald.experiments.interruption import sigterm_interrupts

    with sigterm_interrupts(), tempfile.TemporaryDirectory(prefix="herald-experiment-") as folder:
        yield Path(folder)


# From words to values -------------------------------------------------------------------------------------------------


def _experiment(arguments: argparse.Namespace) -> "Colocation":
    """The experiment that the words describe. Raises ConfigError."""
    from herald.experiments import settings
    from herald.experiments.crew import Pair
    from herald.experiments.plan import Colocation

    _check_mps(arguments)
    _at_least("--seconds", arguments.seconds, 1)
    _at_least("--repeats", arguments.repeats, 1)
    _at_least("--slo-factor", arguments.slo_factor, 1)
    return Colocation(
        pairs=tuple(Pair.parse(text) for text in arguments.pair),
        settings=tuple(settings.choose(arguments.settings.split(","), arguments.mps)),
        device=arguments.device,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
        rate_hz=arguments.rate,
        arrivals=arguments.arrivals,
        seed=arguments.seed,
        slo_ms=_milliseconds(arguments.slo),
        slo_factor=arguments.slo_factor,
    )


def _check_mps(arguments: argparse.Namespace) -> None:
    if arguments.device == "cpu" and arguments.mps != "off":
        raise ConfigError(f"--mps {arguments.mps} with --device cpu: MPS is for GPUs; leave it out")


def _check_resume(path: Path, *, resume: bool) -> None:
    if path.exists() and not resume:
        raise ConfigError(f"{path} exists: give --resume to add what is missing there, or another --out")


def _resolved(device: str) -> str:
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


def _end_s(time_limit: str | None) -> float:
    """When to be done, on the monotonic clock."""
    if time_limit is None:
        return float("inf")
    return time.monotonic() + parse_duration(time_limit, setting="--time-limit") / 1e9


def _at_least(setting: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"{setting} = {value:g}: give {least:g} or more")
