"""Watches a pair from outside while it runs: the gate of its device, and the plans in the rows of its jobs.

It only reads shared memory, so that nobody waits for it. What changes back between two looks is not seen: `Watched`
says how far apart looks were.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from herald import layout, native
from herald.errors import TableError
from herald.hooks.sm_share import row_at
from herald.job_view import JobView
from herald.table import Table

PAUSE_S = 50e-6  # between two looks; the kernel makes it some 100 us


class State(NamedTuple):
    """What one look sees."""

    gate: int  # bits of the services that hold the gate of heavy ops; 0: open
    lead_ns: int  # the service's plan
    queue_limit: int
    slice_ns: int
    sm_wanted: int  # the trainer's plan; 0: all
    sm_granted: int  # what its steps run on; 0: all
    rate_ppm: int


@dataclass(frozen=True)
class Watched:
    """What was seen: the first state and every other one, with the time at which it was first seen."""

    changes: tuple[tuple[int, State], ...]  # (ns of the monotonic clock, state), ascending
    looks: int
    median_gap_ns: int
    longest_gap_ns: int


def watch(
    look: Callable[[], State],
    until_ns: int,
    *,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    pause: Callable[[float], None] = time.sleep,
) -> Watched:
    """Look until ``until_ns`` on the monotonic clock, at least once."""
    changes: list[tuple[int, State]] = []
    looks_ns: list[int] = []
    while True:
        now_ns, state = clock_ns(), look()
        looks_ns.append(now_ns)
        if not changes or state != changes[-1][1]:
            changes.append((now_ns, state))
        if now_ns >= until_ns:
            gaps_ns = [later - earlier for earlier, later in pairwise(looks_ns)] or [0]
            return Watched(tuple(changes), len(looks_ns), round(statistics.median(gaps_ns)), max(gaps_ns))
        pause(PAUSE_S)


class Eye:
    """Looks at the service and the trainer of a domain; both are attached. Raises TableError where one is not."""

    def __init__(self, domain: str) -> None:
        self._table = Table.open(domain, create=False)  # kept: the addresses below point into it
        jobs = self._table.jobs()
        service, trainer = _only(jobs, "high", domain), _only(jobs, "low", domain)
        self._service = row_at(self._table.address, service.row)
        self._trainer = row_at(self._table.address, trainer.row)
        slot = self._table.device_slot(trainer.device)
        self._gate = (
            self._table.address
            + self._table.header.gates_offset
            + (slot * layout.NUM_CLASSES + layout.CLASS_HEAVY) * layout.GATE_STRIDE_BYTES
        )
        self._load = native.table().herald_load32

    @property
    def sm_total(self) -> int:
        """SMs that the trainer may be given; 0 where it cannot keep to a share of them."""
        return int(self._trainer.sm_total)

    def __call__(self) -> State:
        """One look."""
        service, trainer = self._service, self._trainer
        return State(
            int(self._load(self._gate)),
            service.lead_ns,
            service.queue_limit,
            service.slice_ns,
            trainer.sm_count,
            trainer.sm_granted,
            trainer.rate_ppm,
        )


def _only(jobs: list[JobView], priority: str, domain: str) -> JobView:
    found = [job for job in jobs if job.priority == priority]
    if len(found) != 1:
        raise TableError(f"domain {domain!r} has {len(found)} jobs of priority {priority!r}: one is watched")
    return found[0]
