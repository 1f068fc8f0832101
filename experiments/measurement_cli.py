"""`herald experiment` for the measurements that are not colocations: from words to the module that measures."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from herald.config import ClassesConfig
from herald.durations import parse_duration
from herald.errors import ConfigError
from herald.experiments import simulation_cli
from herald.experiments.options import (
    add_commit,
    add_device,
    add_mps,
    add_out,
    add_rows_of,
    add_workloads,
    check_device,
    logs,
)

if TYPE_CHECKING:
    from herald.experiments.measurement import Kind
    from herald.experiments.rows import Row

EXIT_MISSED = 1  # measured, and a criterion is not met


def add_parsers(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """All of them."""
    _add_hook_cost(kinds.add_parser("hook-cost", help="what the op hook costs per op event on a CPU"))
    _add_recorder(kinds.add_parser("recorder", help="what the op recorder costs, against torch.profiler"))
    _add_prediction(kinds.add_parser("prediction", help="whether predicted iterations and requests come true"))
    _add_classification(
        kinds.add_parser("classification", help="whether the rule predicts the harm of ops it has not seen")
    )
    _add_coverage(kinds.add_parser("coverage", help="what share of a trainer's device time passes the gate"))
    _add_overhead(kinds.add_parser("overhead", help="what Herald costs a job that is alone"))
    _add_numerics(kinds.add_parser("numerics", help="whether losses under a busy gate are bit-identical"))
    _add_faults(kinds.add_parser("faults", help="how soon the others go on after a kill -9"))
    simulation_cli.add_parser(kinds)


def _add_hook_cost(parser: argparse.ArgumentParser) -> None:
    add_out(parser, _hook_cost)
    add_commit(parser)


def _add_recorder(parser: argparse.ArgumentParser) -> None:
    add_device(parser, default="cpu")
    add_workloads(parser)
    parser.add_argument("--repeats", type=int, default=9, help="blocks of each kind (default: %(default)d)")
    add_rows_of(parser, _recorder)


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    add_device(parser, default="cpu")
    add_workloads(parser)
    parser.add_argument("--pair", action="append", metavar="INFERENCE+TRAINING", help="likewise, for requests")
    parser.add_argument("--part", default="iterations,requests", metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=12.0, help="of arrivals per run (default: %(default)g)")
    add_rows_of(parser, _prediction)


def _add_classification(parser: argparse.ArgumentParser) -> None:
    add_workloads(parser)
    parser.add_argument("--rows", type=Path, metavar="FILE", help="measure nothing: the verdict on these rows")
    parser.add_argument("--rule", type=Path, metavar="FILE", help="of `herald calibrate` (default: the device's)")
    parser.add_argument(
        "--bound",
        type=float,
        default=ClassesConfig.light_percent,
        metavar="PERCENT",
        help="by which a light op may delay a request (default: %(default)g)",
    )
    parser.add_argument("--ops", type=int, default=20, help="of each workload (default: %(default)d)")
    parser.add_argument("--limit", default="215s", metavar="DURATION", help="begin no op later (default: %(default)s)")
    add_rows_of(parser, _classification)


def _add_coverage(parser: argparse.ArgumentParser) -> None:
    add_device(parser, default="cuda")
    add_mps(parser)
    add_workloads(parser)
    parser.add_argument("--seconds", type=float, default=6.0, help="of training that is counted (default: %(default)g)")
    add_rows_of(parser, _coverage)


def _add_overhead(parser: argparse.ArgumentParser) -> None:
    add_device(parser, default="cpu")
    add_mps(parser)
    add_workloads(parser)
    parser.add_argument(
        "--blocks", type=int, default=10, help="pairs of blocks, without and with Herald (default: %(default)d)"
    )
    parser.add_argument(
        "--quantum", metavar="DURATION,...", help="as in 125us,250us,1ms: each of them, and on a GPU what runs on after"
    )
    add_rows_of(parser, _overhead)


def _add_numerics(parser: argparse.ArgumentParser) -> None:
    add_device(parser, default="cpu")
    add_workloads(parser)
    parser.add_argument("--steps", type=int, default=40, help="training steps compared (default: %(default)d)")
    add_rows_of(parser, _numerics)


def _add_faults(parser: argparse.ArgumentParser) -> None:
    add_device(parser, default="cpu")
    add_mps(parser)
    add_rows_of(parser, _faults)


# Commands -------------------------------------------------------------------------------------------------------------


def _hook_cost(arguments: argparse.Namespace) -> int:
    from herald.experiments import hook_cost

    with logs():
        return _measure(hook_cost.KIND, hook_cost.run(), arguments)


def _recorder(arguments: argparse.Namespace) -> int:
    from herald.experiments import recorder_overhead

    check_device(arguments)
    with logs() as log_dir:
        measured = recorder_overhead.run(
            arguments.device,
            names=arguments.workload,
            repeats=arguments.repeats,
            seed=arguments.seed,
            log_dir=log_dir,
        )
        return _measure(recorder_overhead.KIND, measured, arguments)


def _prediction(arguments: argparse.Namespace) -> int:
    from herald.experiments import prediction
    from herald.experiments.crew import Pair

    check_device(arguments)
    options = prediction.Options(
        device=arguments.device,
        parts=arguments.part.split(","),
        names=arguments.workload,
        pairs=[Pair.parse(text) for text in arguments.pair] if arguments.pair else None,
        seconds=arguments.seconds,
        seed=arguments.seed,
    )
    with logs() as log_dir:
        measured = prediction.run(options, profiles=arguments.out / "profiles", log_dir=log_dir)
        return _measure(prediction.KIND, measured, arguments)


def _classification(arguments: argparse.Namespace) -> int:
    from herald.experiments import classification

    terms = classification.Terms(arguments.rule, arguments.bound)
    if arguments.rows:
        met = classification.show_again([arguments.rows], terms, arguments.out)
        return 0 if met else EXIT_MISSED
    with logs() as log_dir:
        measured = classification.run(
            terms,
            names=arguments.workload,
            ops_per_workload=arguments.ops,
            seed=arguments.seed,
            log_dir=log_dir,
            limit_s=parse_duration(arguments.limit, setting="--limit") / 1e9,
        )
        return _measure(classification.KIND, measured, arguments)


def _coverage(arguments: argparse.Namespace) -> int:
    from herald.experiments import coverage

    check_device(arguments)
    with logs() as log_dir:
        measured = coverage.run(
            arguments.device,
            mps=arguments.mps == "on",
            names=arguments.workload,
            seconds=arguments.seconds,
            seed=arguments.seed,
            log_dir=log_dir,
        )
        return _measure(coverage.KIND, measured, arguments)


def _overhead(arguments: argparse.Namespace) -> int:
    from herald.experiments import overhead

    check_device(arguments)
    with logs() as log_dir:
        measured = overhead.run(
            arguments.device,
            mps=arguments.mps == "on",
            names=arguments.workload,
            num_pairs=arguments.blocks,
            seed=arguments.seed,
            log_dir=log_dir,
            quanta_ns=_quanta_ns(arguments.quantum),
        )
        return _measure(overhead.KIND, measured, arguments)


def _numerics(arguments: argparse.Namespace) -> int:
    from herald.experiments import numerics

    check_device(arguments)
    with logs() as log_dir:
        measured = numerics.run(
            arguments.device, names=arguments.workload, steps=arguments.steps, seed=arguments.seed, log_dir=log_dir
        )
        return _measure(numerics.KIND, measured, arguments)


def _faults(arguments: argparse.Namespace) -> int:
    from herald.experiments import faults

    check_device(arguments)
    with logs() as log_dir:
        measured = faults.run(arguments.device, mps=arguments.mps == "on", seed=arguments.seed, log_dir=log_dir)
        return _measure(faults.KIND, measured, arguments)


def _quanta_ns(text: str | None) -> list[int]:
    if text is None:
        return []
    quanta_ns = [parse_duration(word, setting="--quantum") for word in text.split(",")]
    for quantum_ns in quanta_ns:
        if not 10_000 <= quantum_ns <= 100_000_000:
            raise ConfigError(f"--quantum {text}: give durations from 10us to 100ms")
    return quanta_ns


def _measure(kind: "Kind", measured: "Iterable[Row]", arguments: argparse.Namespace) -> int:
    """Carry a measurement out; the exit code says whether its criteria are met."""
    from herald.experiments import measurement

    met = measurement.record(kind, measured, arguments.out, commit=arguments.commit)
    return 0 if met else EXIT_MISSED
