"""`herald experiment recorder`: what recording every op costs, with Herald's recorder and with torch's profiler.

Two processes run the same workload: one with and without the recorder, the other with and without the profiler, whose
library stays in a process once it was used. Blocks of all four take turns; a block and the plain one next to it give
one difference: from start to results in memory ("whole"), until the tool is off ("stopped"), and the steps alone
("running").
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from herald.errors import ConfigError
from herald.experiments import settings, workloads
from herald.experiments.crew import launch_for, load
from herald.experiments.measurement import Kind
from herald.experiments.process import Channel, Worker
from herald.experiments.rows import Row

DEFAULT = {"cpu": ("cpu-vgg", "cpu-decode", "small-ops"), "cuda": ("vgg16", "eager-decode", "small-ops")}
TOOLS = ("recorder", "profiler")
SCOPES = ("whole", "stopped", "running")
BLOCK_S = 0.3  # without a tool
MOST_EVENTS = 30_000  # of a block: the profiler takes about 20 us for each to hand it over
MOST_STEPS = 50
BLOCK_TIMEOUT_S = 120.0
_BOOTSTRAPS = 2000
_BOOTSTRAP_SEED = 0

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """Extra ns per op event: the median of differences, and the 95 % interval of that median by bootstrap."""

    ns: float
    low_ns: float
    high_ns: float

    @classmethod
    def of(cls, differences_s: Sequence[float], events_per_block: float) -> "Cost":
        """From what blocks took longer than their plain neighbours."""
        per_event = np.asarray(differences_s) * 1e9 / events_per_block
        picks = np.random.default_rng(_BOOTSTRAP_SEED).integers(len(per_event), size=(_BOOTSTRAPS, len(per_event)))
        low, high = np.percentile(np.median(per_event[picks], axis=1), (2.5, 97.5))
        return cls(round(float(np.median(per_event)), 1), round(float(low), 1), round(float(high), 1))


@dataclass(frozen=True)
class Ratio:
    """How many times cheaper ours is."""

    value: float
    low: float
    high: float | None
    is_bound: bool  # ours is below the noise: the value is what it is at least

    @classmethod
    def of(cls, ours: Cost, theirs: Cost) -> "Ratio":
        """Never by less than the noise: a cost that may be nothing counts as the most that it may be."""
        most = max(ours.high_ns, ours.ns, 1e-3)
        low = theirs.low_ns / most
        if ours.low_ns <= 0:
            return cls(round(theirs.ns / most, 1), round(low, 1), None, is_bound=True)
        return cls(round(theirs.ns / ours.ns, 1), round(low, 1), round(theirs.high_ns / ours.low_ns, 1), is_bound=False)

    def __str__(self) -> str:
        return f"{'>= ' if self.is_bound else ''}{self.value:.1f}"


def run(device: str, *, names: Sequence[str] | None, repeats: int, seed: int, log_dir: Path) -> Iterator[Row]:
    """A row per workload."""
    if repeats < 1:
        raise ConfigError(f"--repeats = {repeats}: give 1 or more blocks of each kind")
    for workload in [workloads.get(name) for name in names or DEFAULT[device]]:
        launch = launch_for(workload.role, settings.alone(workload.role, mps=False), device, None)
        with ExitStack() as stack:
            workers = {tool: stack.enter_context(Worker(launch, log_dir)) for tool in TOOLS}
            facts = load(list(workers.values()), workload.name, device, seed)
            yield {
                "workload": workload.name,
                "device": device,
                "seed": seed,
                **measured(workers, repeats),
                "workers": dict(zip(TOOLS, facts, strict=True)),
            }


def measured(workers: Mapping[str, Channel], repeats: int) -> Row:
    """All blocks of one workload, and what follows from them."""
    first = {tool: block(worker, tool, 1) for tool, worker in workers.items()}  # libraries are loaded now
    steps = steps_per_block(block(workers["recorder"], "plain", 1)["running_s"], first["recorder"]["events"])
    for tool, worker in workers.items():
        block(worker, tool, steps)
    pairs: dict[str, list[tuple[Block, Block]]] = {tool: [] for tool in workers}
    for repeat in range(repeats):
        for tool in sorted(workers, reverse=repeat % 2 == 1):
            pairs[tool].append(_pair(workers[tool], tool, steps, plain_first=repeat % 4 < 2))
    return {"repeats": repeats, "steps_per_block": steps, **summary(pairs, steps)}


def steps_per_block(step_s: float, events_per_step: int) -> int:
    """As many as last long enough, as long as their events can be handed over."""
    return max(1, min(MOST_STEPS, round(BLOCK_S / step_s), MOST_EVENTS // max(1, events_per_step)))


def block(worker: Channel, mode: str, steps: int) -> Block:
    """One block; see `recording`."""
    return worker.call("instrument", timeout_s=BLOCK_TIMEOUT_S, name="record", mode=mode, steps=steps)


def summary(pairs: Mapping[str, Sequence[tuple[Block, Block]]], steps: int) -> Row:
    """From pairs of (plain block, block under a tool). Costs are per op event as the recorder counts them."""
    events = median(tool["events"] for _, tool in pairs["recorder"])
    costs = {
        tool: {
            scope: Cost.of([on[f"{scope}_s"] - off[f"{scope}_s"] for off, on in pairs[tool]], events)
            for scope in SCOPES
        }
        for tool in TOOLS
    }
    return {
        "events_per_step": round(events / steps, 1),
        "profiler_events_per_step": round(median(on["events"] for _, on in pairs["profiler"]) / steps, 1),
        "plain_ms": {tool: _step_ms([off for off, _ in pairs[tool]], steps) for tool in TOOLS},
        "tool_ms": {tool: _step_ms([on for _, on in pairs[tool]], steps) for tool in TOOLS},
        "cost": {tool: {scope: asdict(cost) for scope, cost in scopes.items()} for tool, scopes in costs.items()},
        "ratio": {scope: asdict(Ratio.of(costs["recorder"][scope], costs["profiler"][scope])) for scope in SCOPES},
    }


def _pair(worker: Channel, tool: str, steps: int, *, plain_first: bool) -> tuple[Block, Block]:
    if plain_first:
        return block(worker, "plain", steps), block(worker, tool, steps)
    on = block(worker, tool, steps)
    return block(worker, "plain", steps), on


def _step_ms(blocks: Sequence[Block], steps: int) -> float:
    return round(float(median(block["whole_s"] for block in blocks)) / steps * 1e3, 4)


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    for scope in SCOPES:
        cost = {tool: Cost(**row["cost"][tool][scope]) for tool in TOOLS}
        yield (
            row["workload"] if scope == SCOPES[0] else "",
            f"{row['events_per_step']:.0f}" if scope == SCOPES[0] else "",
            f"{row['plain_ms']['recorder']:.2f}" if scope == SCOPES[0] else "",
            scope,
            *(f"{c.ns:.0f}" for c in cost.values()),
            str(Ratio(**row["ratio"][scope])),
        )


KIND = Kind("recorder", ("workload", "ops", "step ms", "", "recorder ns/op", "profiler ns/op", "ratio"), _lines)
