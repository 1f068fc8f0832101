"""What is remembered from tick to tick: the only state behind a pure policy, kept by whoever calls it."""

from collections.abc import Iterable

from herald.job_view import JobView
from herald.scheduler.snapshot import Decision, Snapshot


class Observer:
    """Makes snapshots with a memory. The daemon has one, and so has a simulated domain."""

    def observe(self, jobs: Iterable[JobView], now_ns: int) -> Snapshot:
        """The snapshot of the live rows now."""
        del now_ns
        return Snapshot.of(jobs)

    def decided(self, decision: Decision) -> None:
        """What was made of the last snapshot and holds from now on."""
