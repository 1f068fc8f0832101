"""The measurement: for each op and MPS state, how long requests take alone and beside the op. One row per op and state.

Two processes as two jobs would be: one with high priority that sends requests, one with low priority that loops the
op. Alone and beside take turns, so that drift cancels. Kernel facts come first, from a process of their own: a process
that was profiled stays slower. Every wait has a limit; an op that fails is noted and the next one tried.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from herald.errors import HeraldError
from herald.experiments import workloads
from herald.experiments.domain import private_mps
from herald.experiments.process import Channel, Launch, WorkerError, call_all
from herald.experiments.rows import Row
from herald.launch import Priority, launch_env

MODULE = "herald.experiments.calibration.worker"
WORKLOADS: Mapping[str, Sequence[str]] = {
    "cuda": ("vgg16", "rnnlm", "transformer", "resnet50", "gpt2"),
    "cpu": ("cpu-vgg", "cpu-rnnlm", "cpu-transformer"),
}
OPS_PER_WORKLOAD = 14
PROBES = ("compute", "memory", "small", "small-normal")

_LOAD_LIMIT_S = 120.0
_CATCH_LIMIT_S = 60.0
_CALL_LIMIT_S = 30.0
_MOST_RESTARTS = 4
_ALONE_SHARE = 0.4  # of the time beside
_FACTS_SHARE = 0.25  # of the time limit, at most


class CalibrationError(HeraldError):
    """The calibration cannot go on."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    device: str
    mps: Sequence[bool]  # states, in this order
    workloads: Sequence[str]
    seconds_per_op: float = 0.3  # of requests beside an op, all kinds of requests together
    ops_per_workload: int = OPS_PER_WORKLOAD
    only: str = ""  # part of the labels wanted
    seed: int = 0
    end_s: float = float("inf")  # on the monotonic clock: begin no op after it


@dataclass
class Plan:
    """The ops to measure, in order, and what is known of each."""

    labels: list[str]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of_workload(self, workload: str) -> list[str]:
        """The labels that come from a workload."""
        return [label for label in self.labels if label.startswith(f"{workload}/")]


Start = Callable[[Launch], Channel]
Done = Callable[[str, bool], bool]  # whether a row of that op and MPS state is there already
Tell = Callable[[int, int], None]  # how many ops there are, and how many rows are missing


def default_workloads(device_type: str) -> list[str]:
    """The calibration's workloads that exist here. Others are left for checking the rule."""
    return [name for name in WORKLOADS[device_type] if name in workloads.WORKLOADS]


def run(options: Options, start: Start, done: Done, tell: Tell | None = None) -> Iterator[Row]:
    """A row per op and MPS state; rows with "skipped" say why there is no measurement.

    ``tell`` is called once, before anything is measured.
    """
    with _processes(start, ("facts",), options, None) as ([channel], device):
        plan = _planned(channel, options)
        missing = [label for label in plan.labels if not all(done(label, mps) for mps in options.mps)]
        if tell:
            tell(len(plan.labels), sum(not done(label, mps) for label in missing for mps in options.mps))
        facts_end_s = _split(options.end_s, _FACTS_SHARE)
        plan.facts = {label: _facts(channel, label, facts_end_s) for label in missing}
    for place, mps in enumerate(options.mps):
        end_s = _split(options.end_s, 1 / (len(options.mps) - place))
        wanted = [label for label in missing if not done(label, mps)]
        with private_mps("calibrate") if mps else nullcontext() as server:
            pipe = str(server.pipe_dir) if server else None
            for row in _Duel(options, plan, start, pipe).rows(wanted, end_s):
                yield {**row, "mps": mps, "device": device}


class _Duel:
    """Both processes in one MPS state, started again where one fails."""

    def __init__(self, options: Options, plan: Plan, start: Start, pipe: str | None) -> None:
        self.options = options
        self.plan = plan
        self.start = start
        self.pipe = pipe

    def rows(self, labels: Sequence[str], end_s: float) -> Iterator[Row]:
        """Measure the ops until the time is up."""
        waiting = list(labels)
        for _ in range(_MOST_RESTARTS):
            if not waiting:
                return
            with _processes(self.start, ("probe", "aggressor"), self.options, self.pipe) as ([probe, aggressor], _):
                _catch_again(aggressor, self.plan, self.options)
                for kind in PROBES:
                    probe.call("probe", timeout_s=_CALL_LIMIT_S, kind=kind, seconds=0.1)  # builds and warms it
                failed = False
                while waiting and not failed and time.monotonic() < end_s:
                    label = waiting.pop(0)
                    row = self._row(label, probe, aggressor)
                    failed = row.pop("ended", False)
                    yield {"op": label, **self.plan.facts[label], **row}
            if not failed:
                return

    def _row(self, label: str, probe: Channel, aggressor: Channel) -> Row:
        try:
            prepared = aggressor.call("prepare", timeout_s=_CALL_LIMIT_S, label=label)
        except WorkerError as error:
            return {"skipped": str(error).splitlines()[0], "ended": not _answers(aggressor)}
        try:
            return {**prepared, "probes": _measured(probe, aggressor, self.options.seconds_per_op)}
        except WorkerError as error:
            return {"skipped": str(error).splitlines()[0], "ended": True}


def _measured(probe: Channel, aggressor: Channel, seconds_per_op: float) -> Row:
    """Alone, beside, alone again, kind after kind; harm in percent of the time alone."""
    seconds = seconds_per_op / len(PROBES)
    found: Row = {}
    for kind in PROBES:
        before = _probe(probe, kind, seconds * _ALONE_SHARE / 2)
        aggressor.call("start", timeout_s=_CALL_LIMIT_S)
        beside = _probe(probe, kind, seconds)
        looped = aggressor.call("stop", timeout_s=_CALL_LIMIT_S)
        after = _probe(probe, kind, seconds * _ALONE_SHARE / 2)
        found[kind] = {
            "before": before,
            "beside": beside,
            "after": after,
            "call_ns": looped["call_ns"],
            **{name: _harm(before, beside, after, name) for name in ("p50", "mean", "p90")},
        }
    return found


def _harm(before: Row, beside: Row, after: Row, statistic: str) -> float:
    """Percent by which a statistic of the latency is longer beside the op. The alone time is always its median."""
    alone_ns = (before["p50_ns"] + after["p50_ns"]) / 2
    own_ns = alone_ns if statistic == "p50" else (before[f"{statistic}_ns"] + after[f"{statistic}_ns"]) / 2
    harm: float = 100 * (beside[f"{statistic}_ns"] - own_ns) / alone_ns
    return round(harm, 2)


def _probe(channel: Channel, kind: str, seconds: float) -> Row:
    return channel.call("probe", timeout_s=_CALL_LIMIT_S, kind=kind, seconds=seconds)


# Planning -------------------------------------------------------------------------------------------------------------


def _planned(channel: Channel, options: Options) -> Plan:
    """The ops in an order in which any first part is a spread over all of them."""
    labels: list[str] = channel.call("known", timeout_s=_CALL_LIMIT_S)["labels"]
    for workload in options.workloads:
        labels += channel.call("catch", timeout_s=_CATCH_LIMIT_S, workload=workload, most=options.ops_per_workload)[
            "labels"
        ]
    chosen = sorted(label for label in labels if options.only in label)
    random.Random(options.seed).shuffle(chosen)
    return Plan(chosen)


def _catch_again(channel: Channel, plan: Plan, options: Options) -> None:
    for workload in options.workloads:
        if labels := plan.of_workload(workload):
            channel.call("catch", timeout_s=_CATCH_LIMIT_S, workload=workload, most=len(labels), labels=labels)


def _split(end_s: float, share: float) -> float:
    """The time at which that share of what is left until ``end_s`` is over."""
    now_s = time.monotonic()
    return now_s + (end_s - now_s) * share


def _facts(channel: Channel, label: str, end_s: float) -> dict[str, Any]:
    if time.monotonic() > end_s:
        return {"facts_missing": "out of time"}
    try:
        return channel.call("facts", timeout_s=_CALL_LIMIT_S, label=label)
    except WorkerError as error:
        return {"facts_missing": str(error).splitlines()[0]}


# Processes ------------------------------------------------------------------------------------------------------------

_PRIORITY: Mapping[str, Priority] = {"probe": "high", "aggressor": "low", "facts": "low"}


@contextmanager
def _processes(
    start: Start, roles: Sequence[str], options: Options, pipe: str | None
) -> Iterator[tuple[list[Channel], Row]]:
    """Processes in their roles, loaded, and what the first says of its device; ended afterwards."""
    device_type = options.device.partition(":")[0]
    with ExitStack() as stack:
        channels = {}
        for role in roles:
            env = launch_env(_PRIORITY[role], device_type, pipe)
            if device_type == "cpu":
                env["OMP_NUM_THREADS"] = "1"
            channels[role] = start(Launch(role, tuple(sorted(env.items())), module=MODULE))
            stack.callback(channels[role].close)
        told = call_all(channels, "load", timeout_s=_LOAD_LIMIT_S, device=options.device, seed=options.seed)
        yield list(channels.values()), told[roles[0]]


def _answers(channel: Channel) -> bool:
    """Whether a process is still of use after an error: a broken CUDA context fails everything."""
    try:
        channel.call("check", timeout_s=_CALL_LIMIT_S)
    except WorkerError:
        return False
    return True
