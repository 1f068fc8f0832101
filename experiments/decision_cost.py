"""`herald experiment decision-cost`: what the daemon costs: a decision of each policy, a whole tick, of one core.

A pair of jobs on one device, in a private table, whose rows move as jobs would move them; the controller has learnt all
its modes. Medians over ticks, each with a snapshot of its own, so that nothing is decided twice; on this thread's own
CPU clock: other processes may take the core, but not add to the time.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median

from herald.experiments.measurement import Kind
from herald.experiments.rows import Row
from herald.fakes import FakeClock, MemoryTable, memory_table
from herald.scheduler import policies
from herald.scheduler.daemon import PERIOD_S, Daemon
from herald.scheduler.learning import Observer
from herald.scheduler.snapshot import Snapshot

DEVICE = "GPU-of-this-benchmark"
MEAN_NS = 20_000_000
LOOK_NS = 50_000_000
LEARNING_LOOKS = 600
TICKS = 1_000


def measure() -> Iterator[Row]:
    """A row per policy: decision_us, tick_us, core_share."""
    log = logging.getLogger("herald.daemon")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        for name in policies.names():
            yield _row("reserve:16" if name == "reserve" else name)
    finally:
        log.setLevel(before)


def _row(policy: str) -> Row:
    world = _World(policy)
    decide = policies.load(policy).decide
    decision_us = _median_us(partial(decide, world.look(), 0) for _ in range(TICKS))
    tick_us = _median_us(world.tick for _ in range(TICKS))
    return {
        "policy": policy,
        "decision_us": round(decision_us, 1),
        "tick_us": round(tick_us, 1),
        "core_share": round(tick_us / 1e6 / PERIOD_S, 5),
    }


class _World:
    def __init__(self, policy: str) -> None:
        self.clock = FakeClock()
        self.table: MemoryTable = memory_table()
        self.service = self.table.add_job(name="service", priority="high", device=DEVICE, slo_ns=6 * MEAN_NS, mps=1)
        self.trainer = self.table.add_job(
            name="trainer", priority="low", device=DEVICE, sm_total=132, mps=1, armed=1, longest_op_ns=500_000
        )
        self.daemon = Daemon(self.table, policies.load(policy))
        self.observer = Observer()
        for _ in range(LEARNING_LOOKS):
            self.look()

    def look(self) -> Snapshot:
        """What the daemon is about to decide from, after a tick."""
        self.tick()
        self.observer.decided(self.daemon.decision)
        return self.observer.observe(self.table.jobs(), self.clock())

    def tick(self) -> None:
        """Time goes on, the jobs with it, and the daemon looks."""
        self.clock.advance(LOOK_NS)
        service, trainer = self.table.row(self.service), self.table.row(self.trainer)
        mode = self.daemon.decision.modes.get(DEVICE)
        closed = mode is None or mode.closed
        busy_ns = MEAN_NS if closed else round(1.6 * MEAN_NS)
        service.busy_ns += busy_ns
        service.busy_open_ns += 0 if closed else busy_ns
        service.solo_requests += closed
        service.solo_ns += MEAN_NS * closed
        service.beside_requests += not closed
        service.beside_ns += busy_ns * (not closed)
        service.alone_ns = MEAN_NS
        service.requests_begun += 1
        service.slo_met += 1
        self.table.record(self.service, latency_ns=busy_ns)
        trainer.gated_ns += LOOK_NS - busy_ns + (0 if closed else busy_ns // 2)
        trainer.sm_granted = trainer.sm_count
        self.daemon.tick(self.clock())


def _median_us(functions: Iterable[Callable[[], object]]) -> float:
    times = []
    for function in functions:
        begun_ns = time.thread_time_ns()
        function()
        times.append(time.thread_time_ns() - begun_ns)
    return median(times) / 1e3


KIND = Kind(
    "decision-cost",
    ("policy", "decision us", "tick us", "of a core"),
    lambda row: [
        (row["policy"], f"{row['decision_us']:.1f}", f"{row['tick_us']:.1f}", f"{row['core_share']:.2%}"),
    ],
)
