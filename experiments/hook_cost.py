"""`herald experiment hook-cost`: what the op hook costs per op event on a CPU, in ns.

The same step runs in many short blocks with and without a job attached, in turns (off on, on off, ...), on one thread,
timed on that thread's own CPU clock: other processes may take the core away, but not add to the time. Blocks with a
callback that does nothing tell torch's own cost of any callback from the look-up: signature, class, predicted time.
The hook rests where nobody could close the gate; so all cases but one have a service beside them that is idle.
An event is one that the hook's callback is called for: every op, nested ones, views and autograd's nodes included. The
profiler, which listens in the same way, counts them.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

import herald
from herald.experiments.domain import PrivateDomain
from herald.experiments.measurement import Kind
from herald.experiments.rows import Row
from herald.hooks import native

NUM_PAIRS = 40  # of blocks
NUM_CHUNKS = 5  # a block's time is that of its fastest chunk: what an interrupt hits is not the hook
CHUNK_S = 0.003
WARM_STEPS = 10
SETTLING_OPS = 25_000  # learning ends 20,000 ops after the last one of unknown cost
PROFILED_STEPS = 10
_SCOPE_FUNCTION = 0  # at::RecordScope::FUNCTION: ops and autograd's nodes

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A step to run, and the job that is attached meanwhile."""

    name: str
    priority: Literal["high", "low"]
    make: Callable[[], Step]
    alone: bool = False  # no service is attached


@dataclass
class Blocks:
    """Times of as many steps without and with a job, and with an idle callback, in the order of the pairs."""

    off_ns: list[float] = field(default_factory=list)  # per step
    on_ns: list[float] = field(default_factory=list)
    idle_ns: list[float] = field(default_factory=list)

    def cost_ns(self, events_per_step: float) -> dict[str, float]:
        """Per event: the median over pairs of blocks, which is the result, and the difference of the fastest blocks."""
        differences = [on - off for off, on in zip(self.off_ns, self.on_ns, strict=True)]
        look_ups = [on - idle for idle, on in zip(self.idle_ns, self.on_ns, strict=True)]
        return {
            "lookup_ns_per_event": round(median(look_ups) / events_per_step, 1),
            "ns_per_event": round(median(differences) / events_per_step, 1),
            "ns_per_event_fastest": round((min(self.on_ns) - min(self.off_ns)) / events_per_step, 1),
            "off_ns_per_step": round(median(self.off_ns), 1),
            "on_ns_per_step": round(median(self.on_ns), 1),
        }


def run() -> Iterator[Row]:
    """One row with all cases. The process is left with one intra-op thread."""
    torch.set_num_threads(1)
    with (
        PrivateDomain("hook-cost-alone", Path()) as alone,
        PrivateDomain("hook-cost", Path()) as served,
        _no_collections(),
    ):
        served.seat_service("cpu")
        yield {
            "device": "cpu",
            "torch": torch.__version__,
            "pairs": NUM_PAIRS,
            "cases": [measured(case, (alone if case.alone else served).name) for case in CASES],
        }


def measured(case: Case, domain: str, num_pairs: int = NUM_PAIRS) -> Row:
    """What one event of a case costs."""
    step = case.make()
    steps_of(step, WARM_STEPS)
    events = events_per_step(step)
    per_chunk = _steps_per_chunk(step)
    blocks = Blocks()
    job: herald.Job | None = None
    gate_points = 0
    for pair in range(num_pairs):
        for attached in (False, True) if pair % 2 == 0 else (True, False):  # two attached blocks share their settling
            if attached and job is None:
                job = _settled(case, domain, step)
            elif not attached and job is not None:
                job.detach()
                job = None
            if not attached:
                blocks.idle_ns.append(_with_idle_callback(step, per_chunk))
            before = job.stats().gate_points if job else 0
            (blocks.on_ns if attached else blocks.off_ns).append(block_ns(step, per_chunk))
            gate_points += job.stats().gate_points - before if job else 0
    if job is not None:
        job.detach()
    return {
        "case": case.name,
        "alone": case.alone,
        "looks_up": case.priority == "low" and not case.alone,
        "events_per_step": events,
        **blocks.cost_ns(events),
        "gate_points_per_step": round(gate_points / (num_pairs * NUM_CHUNKS * per_chunk), 2),
    }


def events_per_step(step: Step) -> float:
    """How many events a step has, as the profiler counts them."""
    with torch.autograd.profiler.profile() as profile:
        steps_of(step, PROFILED_STEPS)
    num_events = sum(event.scope == _SCOPE_FUNCTION for event in profile.function_events or ())
    return float(num_events / PROFILED_STEPS)


def block_ns(step: Step, steps_per_chunk: int) -> float:
    """The time of a step in the fastest of a few chunks."""
    return min(_timed_ns(step, steps_per_chunk) for _ in range(NUM_CHUNKS)) / steps_per_chunk


def _with_idle_callback(step: Step, steps_per_chunk: int) -> float:
    native.hook().herald_listen_idly(1)
    try:
        step()
        return block_ns(step, steps_per_chunk)
    finally:
        native.hook().herald_listen_idly(0)
        step()


def steps_of(step: Step, count: int) -> None:
    """``count`` steps back to back."""
    for _ in range(count):
        step()


def _timed_ns(step: Step, count: int) -> int:
    begun_ns = time.thread_time_ns()
    steps_of(step, count)
    return time.thread_time_ns() - begun_ns


def _steps_per_chunk(step: Step) -> int:
    return max(1, round(CHUNK_S * 1e9 * 100 / _timed_ns(step, 100)))


def _settled(case: Case, domain: str, step: Step) -> herald.Job:
    """A job that has learnt the step's ops and listens to nothing but their beginnings any more."""
    slo = "50ms" if case.priority == "high" else None
    job = herald.attach(priority=case.priority, slo=slo, domain=domain, device="cpu", name="hook-cost")
    steps_of(step, WARM_STEPS)
    if case.priority == "low":
        one = torch.ones(1)
        steps_of(one.neg, SETTLING_OPS)
        while case.alone and job.stats().armed:
            steps_of(one.neg, 1000)
    steps_of(step, WARM_STEPS)
    return job


@contextmanager
def _no_collections() -> Iterator[None]:
    """Python's cycles are not collected meanwhile: a collection in one block would be a cost in none other."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# Cases ----------------------------------------------------------------------------------------------------------------


def small_training() -> Step:
    """Forward, backward and SGD of a perceptron so small that none of its ops is heavy."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(4, 16)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    return step


def small_forward() -> Step:
    """Its forward pass alone: no autograd, whose nodes cost torch a name each as soon as anybody listens."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).requires_grad_(False)
    inputs = torch.randn(4, 16)
    return lambda: model(inputs)


def heavy_op() -> Step:
    """Heavy by the size of its input, yet short, so that the cost of an event shows: 128 of 1024 rows."""
    table, rows = torch.randn(1024, 512), torch.arange(128)
    return lambda: table.index_select(0, rows)


def add() -> Step:
    """The shortest op that computes."""
    one = torch.ones(4)
    return lambda: one + one


def view() -> Step:
    """An op that computes nothing."""
    tensor: Tensor = torch.ones(4)
    return lambda: tensor.view(2, 2)


CASES = (
    Case("training step, high-priority job", "high", small_training),
    Case("training step, trainer alone", "low", small_training, alone=True),
    Case("training step", "low", small_training),
    Case("forward pass", "low", small_forward),
    Case("heavy op, open gate", "low", heavy_op),
    Case("add", "low", add),
    Case("view", "low", view),
)


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    for case in row["cases"]:
        yield (
            case["case"],
            f"{case['events_per_step']:g}",
            f"{case['off_ns_per_step'] / 1e3:.2f}",
            f"{case['on_ns_per_step'] / 1e3:.2f}",
            f"{case['ns_per_event']:.0f}",
            f"{case['lookup_ns_per_event']:.0f}" if case["looks_up"] else "",
        )


KIND = Kind("hook-cost", ("case", "events/step", "off us", "on us", "ns/event", "look-up"), _lines)
