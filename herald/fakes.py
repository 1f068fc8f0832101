"""Fakes that ship with Herald, for its own tests and for users': a clock that only moves when told, a private table."""

import mmap
import resource

from herald import native, segment
from herald.layout import JobRow
from herald.table import Table


class FakeClock:
    """A monotonic clock in ns that stands still until it is advanced. Call it to read it."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        """The time now, in ns."""
        return self.now_ns

    def advance(self, by_ns: int) -> int:
        """Move forward and return the new time. Raises ValueError for a step back."""
        if by_ns < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-by_ns} ns")
        self.now_ns += by_ns
        return self.now_ns


class MemoryTable(Table):
    """A table in private memory: the same rows and native operations, no segment, no lock file, nobody ever dies."""

    def __init__(self, domain: str = "fake") -> None:
        page = resource.getpagesize()
        memory = mmap.mmap(-1, int(native.table().herald_table_bytes(page)))
        segment.initialise(memory, page)
        super().__init__(domain, memory, lock=None)

    def add_job(self, *, name: str = "job", priority: str = "high", device: str = "cpu", **fields: int) -> int:
        """Claim a row and set any plain field of it, e.g. ``slo_ns=50_000_000, open_requests=1``; returns the row."""
        row = self.claim(name=name, priority=priority, device=device)
        for field, value in fields.items():
            setattr(self._rows[row], field, value)
        return row

    def row(self, index: int) -> JobRow:
        """The row itself, not a copy: its fields may be set."""
        return self._rows[index]

    def record(self, row: int, *, latency_ns: int, service_ns: int | None = None, count: int = 1) -> None:
        """Add ``count`` finished requests to a row's histograms."""
        bucket = self._lib.herald_bucket
        self._rows[row].latency[bucket(latency_ns)] += count
        self._rows[row].service[bucket(latency_ns if service_ns is None else service_ns)] += count
        self._rows[row].requests_done += count

    def record_tokens(self, row: int, *, ttft_ns: int, tpot_ns: int, count: int = 1) -> None:
        """Add the times to first token and per further token of ``count`` requests to a row's histograms."""
        bucket = self._lib.herald_bucket
        self._rows[row].ttft[bucket(ttft_ns)] += count
        self._rows[row].tpot[bucket(tpot_ns)] += count


def memory_table() -> MemoryTable:
    """A fresh table that only this process can see."""
    return MemoryTable()
