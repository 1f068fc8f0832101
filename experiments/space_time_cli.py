"""`herald experiment timeline`, `llm`, `sm-switch` and `decision-cost`: from words to the module that measures."""

import argparse
from pathlib import Path

from herald.durations import parse_duration
from herald.errors import ConfigError
from herald.experiments.options import (
    add_device,
    add_mps,
    add_rows_of,
    check_device,
    check_pair,
    check_rate,
    logs,
)


def add_parsers(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """All four."""
    _add_decision_cost(kinds.add_parser("decision-cost", help="what the daemon costs: a decision, a tick, of one core"))
    _add_timeline(kinds.add_parser("timeline", help="one colocated second as a trace for Perfetto and a picture"))
    _add_llm(kinds.add_parser("llm", help="a continuous-batching LLM server beside training: TTFT and TPOT"))
    _add_sm_switch(kinds.add_parser("sm-switch", help="what it costs a trainer to change its share of the SMs"))


def _add_decision_cost(parser: argparse.ArgumentParser) -> None:
    add_rows_of(parser, _decision_cost)


def _decision_cost(arguments: argparse.Namespace) -> int:
    from herald.experiments import decision_cost, measurement

    measurement.record(decision_cost.KIND, decision_cost.measure(), arguments.out, commit=arguments.commit)
    return 0


def _add_timeline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", required=True, metavar="INFERENCE+TRAINING")
    add_device(parser, default="cuda")
    add_mps(parser)
    parser.add_argument("--policy", default="herald", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, help="that are shown (default: %(default)g)")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds before (default: %(default)g)")
    parser.add_argument("--rate", type=float, help="requests/s (default: 20 on a CPU, 10 on a GPU)")
    parser.add_argument("--slo", metavar="DURATION", help="as in 50ms; default: 1.5 x p99 of a run alone")
    _add_profiles(parser)
    add_rows_of(parser, _timeline)


def _add_llm(parser: argparse.ArgumentParser) -> None:
    add_device(parser, default="cuda")
    add_mps(parser)
    parser.add_argument("--training", metavar="WORKLOAD", help="default: vgg16, on a CPU cpu-vgg")
    parser.add_argument("--settings", metavar="NAME,...", help="default: alone, train-alone, shared, strict, herald")
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals per run (default: %(default)g)")
    parser.add_argument("--repeats", type=int, default=1, help="runs per setting (default: %(default)d)")
    parser.add_argument("--rate", type=float, help="requests/s (default: the server's)")
    parser.add_argument("--ttft", metavar="DURATION", help="SLO; default: 1.5 x p99 of the run alone")
    parser.add_argument("--tpot", metavar="DURATION", help="likewise, per further token")
    _add_profiles(parser)
    add_rows_of(parser, _llm)


def _add_profiles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profiles", type=Path, metavar="DIR", help="the trainer attaches with DIR/WORKLOAD.profile.json"
    )


def _add_sm_switch(parser: argparse.ArgumentParser) -> None:
    add_device(parser, default="cuda")
    parser.add_argument("--workload", default="vgg16", metavar="NAME", help="a trainer (default: %(default)s)")
    parser.add_argument("--shares", default="116,68", metavar="SMS,...", help="besides all (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="between two switches (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=5, help="through the shares (default: %(default)d)")
    add_rows_of(parser, _sm_switch)


# Commands -------------------------------------------------------------------------------------------------------------


def _timeline(arguments: argparse.Namespace) -> int:
    from herald.experiments import chrome_trace, provenance, timeline, timeline_picture
    from herald.experiments.crew import Pair

    check_device(arguments)
    check_rate(arguments.rate)
    pair = Pair.parse(arguments.pair)
    check_pair(pair, arguments.device)
    options = timeline.Options(
        pair=pair,
        device=arguments.device,
        mps=arguments.mps == "on",
        policy=arguments.policy,
        seconds=arguments.seconds,
        settle_s=arguments.settle,
        rate_hz=arguments.rate or timeline.RATE_HZ[arguments.device],
        slo_ms=_milliseconds(arguments.slo, "--slo"),
        seed=arguments.seed,
        profiles=arguments.profiles,
    )
    with logs() as log_dir:
        found = timeline.run(options, log_dir=log_dir)
    stem = f"timeline-{options.pair.inference}-beside-{options.pair.training}"
    origin = {"date": provenance.now(), **provenance.of_command(arguments.commit)}
    trace = chrome_trace.write(found, arguments.out / f"{stem}.json", origin)
    picture = timeline_picture.draw(found, arguments.out / f"{stem}.png")
    print(f"{timeline.summary(found)}\nTrace, for https://ui.perfetto.dev: {trace}\nPicture: {picture}")
    return 0


def _llm(arguments: argparse.Namespace) -> int:
    from herald.experiments import llm_experiment

    check_device(arguments)
    check_rate(arguments.rate)
    options = llm_experiment.Options(
        device=arguments.device,
        mps=arguments.mps == "on",
        training=arguments.training or llm_experiment.TRAINING[arguments.device],
        settings=tuple(arguments.settings.split(",")) if arguments.settings else llm_experiment.DEFAULT,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
        rate_hz=arguments.rate,
        ttft_ms=_milliseconds(arguments.ttft, "--ttft"),
        tpot_ms=_milliseconds(arguments.tpot, "--tpot"),
        seed=arguments.seed,
        profiles=arguments.profiles,
    )
    with logs() as log_dir:
        llm_experiment.record(options, arguments.out, log_dir=log_dir, commit=arguments.commit)
    return 0


def _sm_switch(arguments: argparse.Namespace) -> int:
    from herald.experiments import sm_switch

    options = sm_switch.Options(
        device=arguments.device,
        workload=arguments.workload,
        shares=_shares(arguments.shares),
        steps=arguments.steps,
        rounds=arguments.rounds,
        seed=arguments.seed,
    )
    with logs() as log_dir:
        sm_switch.record(options, arguments.out, log_dir=log_dir, commit=arguments.commit)
    return 0


def _milliseconds(text: str | None, setting: str) -> float | None:
    return None if text is None else parse_duration(text, setting=setting) / 1e6


def _shares(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--shares {text}: give numbers of SMs, as in 116,68") from error
