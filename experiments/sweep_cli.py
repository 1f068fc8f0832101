"""`herald experiment frontier`, `poster`, `ablation`: from words to a `Sweep` and what carries it out."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from herald.durations import parse_duration
from herald.errors import ConfigError
from herald.experiments.options import (
    add_device,
    add_gpu_index,
    add_pieces,
    add_rows_of,
    check_device,
    check_least,
    check_pair,
    check_rate,
    check_resume,
    check_share,
    end_s,
    logs,
    use_gpu,
)
from herald.experiments.sweeps import (
    CPU_PAIR,
    CPU_SERVICES,
    CPU_TRAINERS,
    CROWD_SERVICES,
    CROWD_TRAINERS,
    STEPS_PAIR,
    TEMPLATES,
    Template,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from herald.experiments.stage import Start
    from herald.experiments.sweep import Sweep
    from herald.experiments.sweep_runner import Log


def add_parsers(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """A command per template, and those of load steps and of a crowd."""
    for template in TEMPLATES.values():
        _add(kinds.add_parser(template.kind, help=template.summary), template)
    _add_steps(kinds.add_parser("steps", help="a load that goes up and down again: how soon the SLO is held"))
    _add_crowd(kinds.add_parser("crowd", help="several services and several trainers on one GPU"))


def _add(parser: argparse.ArgumentParser, template: Template) -> None:
    factors = ",".join(f"{factor:g}" for factor in template.slo_factors)
    parser.add_argument(
        "--pair",
        action="append",
        metavar="INFERENCE+TRAINING",
        help=f"may be repeated; default: {', '.join(template.pairs)}; on a CPU {CPU_PAIR}",
    )
    parser.add_argument("--settings", metavar="NAME,...", help=f"default: {', '.join(template.settings)}")
    parser.add_argument("--also", default="", metavar="NAME,...", help="settings beyond those")
    parser.add_argument("--mps", choices=("off", "on", "both"), help="MPS states to measure now (default: all)")
    parser.add_argument("--both-states", action="store_true", help="Herald in both MPS states, not only in the chosen")
    add_device(parser, default="cuda")
    add_gpu_index(parser)
    parser.add_argument("--seconds", type=float, default=template.seconds, help="of arrivals (default: %(default)g)")
    parser.add_argument("--learn", default="12s", metavar="DURATION", help="before a controller's first run, or 0")
    parser.add_argument("--repeats", type=int, default=template.repeats, help="runs per setting (default: %(default)d)")
    if template.load is not None:
        parser.add_argument("--load", type=float, default=template.load, help="default: %(default)g")
    else:
        parser.add_argument("--rate", type=float, default=template.rate_hz, help="requests/s (default: %(default)g)")
    parser.add_argument(
        "--slo-factors", default=factors, metavar="X,...", help="of the p99 alone (default: %(default)s)"
    )
    parser.add_argument("--profiles", type=Path, metavar="DIR", help="trainers attach with DIR/WORKLOAD.profile.json")
    add_pieces(parser)
    add_rows_of(parser, lambda arguments: _run(template, arguments))


def _add_steps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", metavar="INFERENCE+TRAINING", help=f"default: {STEPS_PAIR}; on a CPU {CPU_PAIR}")
    parser.add_argument("--phase", type=float, default=12.0, metavar="S", help="of each load (default: %(default)g)")
    parser.add_argument("--loads", default="0.1,0.7", metavar="LOW,HIGH", help="default: %(default)s")
    _add_live(parser, slo_factor=1.5)
    add_rows_of(parser, _steps)


def _add_crowd(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--services", metavar="NAME,...", help=f"default: {','.join(CROWD_SERVICES)}")
    parser.add_argument("--trainers", metavar="NAME,...", help=f"default: {','.join(CROWD_TRAINERS)}")
    parser.add_argument("--floor", type=float, default=0.1, help="of each trainer's progress (default: %(default)g)")
    parser.add_argument("--load", type=float, default=0.4, help="of all services together (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals (default: %(default)g)")
    _add_live(parser, slo_factor=2.0)
    add_rows_of(parser, _crowd)


def _add_live(parser: argparse.ArgumentParser, slo_factor: float) -> None:
    parser.add_argument("--slo-factor", type=float, default=slo_factor, help="of the p99 alone (default: %(default)g)")
    parser.add_argument("--policy", default="herald", help="default: %(default)s")
    parser.add_argument("--learn", default="12s", metavar="DURATION", help="before it is measured, or 0")
    parser.add_argument("--profiles", type=Path, metavar="DIR", help="trainers attach with DIR/WORKLOAD.profile.json")
    add_device(parser, default="cuda")
    add_gpu_index(parser)
    add_pieces(parser)


def _run(template: Template, arguments: argparse.Namespace) -> int:
    from herald.experiments import sweep_runner

    experiment = sweep(template, arguments)
    return _carried_out(
        template.kind,
        arguments,
        lambda log, start, log_dir: sweep_runner.SweepRunner(experiment, log, start=start, log_dir=log_dir).run(),
    )


def _steps(arguments: argparse.Namespace) -> int:
    from herald.experiments import steps
    from herald.experiments.crew import Pair

    loads = _numbers("--loads", arguments.loads, least=0.0)
    if len(loads) != 2 or not 0 < loads[0] < loads[1] < 1:
        raise ConfigError(f"--loads = {arguments.loads!r}: give two shares above 0 and below 1, as in 0.1,0.7")
    check_least("--phase", arguments.phase, 1)
    check_least("--slo-factor", arguments.slo_factor, 1)
    pair = Pair.parse(arguments.pair or (CPU_PAIR if arguments.device == "cpu" else STEPS_PAIR))
    check_pair(pair, arguments.device)
    _check_profiles(arguments, [pair.training])
    case = steps.Staircase(
        pair=pair,
        device=arguments.device,
        seed=arguments.seed,
        low=loads[0],
        high=loads[1],
        phase_s=arguments.phase,
        slo_factor=arguments.slo_factor,
        learn_s=_learn_s(arguments),
        policy=_family(arguments.policy),
        profiles=arguments.profiles,
    )
    return _carried_out(
        steps.KIND, arguments, lambda log, start, log_dir: steps.run(case, log, start=start, log_dir=log_dir)
    )


def _crowd(arguments: argparse.Namespace) -> int:
    from herald.experiments import crowd, workloads
    from herald.scheduler import policies

    policies.load(arguments.policy, setting="--policy")
    check_share("--load", arguments.load)
    check_least("--seconds", arguments.seconds, 1)
    check_least("--slo-factor", arguments.slo_factor, 1)
    if not 0 <= arguments.floor <= 0.9:  # as in a config
        raise ConfigError(f"--floor = {arguments.floor:g}: give a share from 0 to 0.9")
    on_cpu = arguments.device == "cpu"
    services = arguments.services.split(",") if arguments.services else CPU_SERVICES if on_cpu else CROWD_SERVICES
    trainers = arguments.trainers.split(",") if arguments.trainers else CPU_TRAINERS if on_cpu else CROWD_TRAINERS
    for name in services:
        workloads.check(name, "inference", arguments.device)
    for name in trainers:
        workloads.check(name, "training", arguments.device)
    _check_profiles(arguments, trainers)
    case = crowd.Crowd(
        members=crowd.members(services, trainers, arguments.floor),
        device=arguments.device,
        seed=arguments.seed,
        load=arguments.load,
        seconds=arguments.seconds,
        learn_s=_learn_s(arguments),
        slo_factor=arguments.slo_factor,
        policy=arguments.policy,
        profiles=arguments.profiles,
    )
    return _carried_out(
        crowd.KIND, arguments, lambda log, start, log_dir: crowd.run(case, log, start=start, log_dir=log_dir)
    )


def _carried_out(kind: str, arguments: argparse.Namespace, measure: "Callable[[Log, Start, Path], int]") -> int:
    """``measure``, with its rows in --out/KIND.jsonl."""
    from herald.experiments import rows
    from herald.experiments.process import Worker
    from herald.experiments.sweep_runner import Log

    use_gpu(arguments)
    path = arguments.out / f"{kind}.jsonl"
    check_resume(path, resume=arguments.resume)
    check_device(arguments)
    known = rows.read_all(arguments.known) if arguments.known else []
    log = Log.open(path, known=known, commit=arguments.commit, end_s=end_s(arguments.time_limit))
    with logs() as log_dir:
        num_rows = measure(log, lambda launch: Worker(launch, log_dir), log_dir)
    print(f"{num_rows} new rows in {path}")
    print(f"tables and figures: herald experiment report {path.parent} --out {path.parent}")
    return 0


def _check_profiles(arguments: argparse.Namespace, trainers: "Iterable[str]") -> None:
    from herald.experiments.plan import existing_profile

    for trainer in trainers if arguments.profiles else ():
        existing_profile(arguments.profiles, trainer)


def _family(name: str) -> str:
    """The family of settings that a policy's name means: of "laxity", "herald-laxity". Raises ConfigError."""
    from herald.experiments.settings import SETTINGS

    families = [s.name for s in SETTINGS.values() if s.policy and not s.mps and f"{s.name}-mps" in SETTINGS]
    for family in (name, f"herald-{name}"):
        if family in families:
            return family
    raise ConfigError(f"--policy = {name!r}: allowed are {', '.join(families)}")


def _learn_s(arguments: argparse.Namespace) -> float:
    if arguments.learn == "0":
        return 0.0
    try:
        return parse_duration(arguments.learn, setting="--learn") / 1e9
    except ConfigError as error:
        raise ConfigError(f"{error}; or 0, to learn nothing beforehand") from None


def sweep(template: Template, arguments: argparse.Namespace) -> "Sweep":
    """The sweep that the words describe. Raises ConfigError."""
    from herald.experiments import settings
    from herald.experiments.crew import Pair
    from herald.experiments.sweep import Sweep

    on_cpu = arguments.device == "cpu"
    mps = arguments.mps or ("off" if on_cpu else "both")
    if on_cpu and mps != "off":
        raise ConfigError(f"--mps {mps} with --device cpu: MPS is for GPUs; leave it out")
    names = arguments.settings.split(",") if arguments.settings else list(template.settings)
    names += [name for name in arguments.also.split(",") if name]
    load, rate_hz = getattr(arguments, "load", None), getattr(arguments, "rate", None)
    if load is not None:
        check_share("--load", load)
    check_rate(rate_hz)
    check_least("--seconds", arguments.seconds, 1)
    check_least("--repeats", arguments.repeats, 1)
    pairs = tuple(Pair.parse(text) for text in arguments.pair or ([CPU_PAIR] if on_cpu else template.pairs))
    for pair in pairs:
        check_pair(pair, arguments.device)
    return Sweep(
        kind=template.kind,
        pairs=pairs,
        settings=tuple(settings.choose(names, "off" if on_cpu else "both")),
        device=arguments.device,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
        seed=arguments.seed,
        slo_factors=_numbers("--slo-factors", arguments.slo_factors, least=1.0),
        load=load,
        rate_hz=rate_hz,
        learn_s=_learn_s(arguments),
        both_states=arguments.both_states,
        mps=mps,
        profiles=arguments.profiles,
    )


def _numbers(option: str, text: str, least: float) -> tuple[float, ...]:
    """Ascending numbers. Raises ConfigError."""
    try:
        numbers = tuple(sorted(float(word) for word in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not numbers[0] >= least:
        raise ConfigError(f"{option} = {text!r}: give numbers of {least:g} or more, as in 1.1,1.5,2")
    return numbers
