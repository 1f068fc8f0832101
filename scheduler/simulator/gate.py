"""The gate of a simulated device: who holds it, and the breather that nobody can deny training.

The rule of TableView in herald/csrc/table.hpp (close_gate, force_if_overdue, owed_ns), which keeps its times by the
real clock and can therefore not be used here.
"""

from herald.scheduler.simulator.closing import NEVER_NS


class Gate:
    """One gate word and its DeviceHold. Times are ns."""

    def __init__(self, max_hold_ns: int, breather_ns: int) -> None:
        self._max_hold_ns = max_hold_ns
        self._breather_ns = breather_ns
        self._word = 0
        self._closed_since_ns = 0
        self._opened_ns: int | None = None
        self.breathe_until_ns = 0
        self.forced = 0  # times it was opened against the services' will

    @property
    def is_open(self) -> bool:
        """Whether heavy ops run."""
        return self._word == 0

    @property
    def overdue_ns(self) -> int:
        """When it is opened by force; NEVER_NS while it is open."""
        return NEVER_NS if self.is_open else self._closed_since_ns + self._max_hold_ns + 1

    def may_close(self, now_ns: int) -> bool:
        """Whether training has had its breather."""
        return now_ns >= self.breathe_until_ns

    def close(self, bit: int, now_ns: int) -> None:
        """One service's bit."""
        if self.is_open:
            self._closed_since_ns = now_ns - self._owed_ns(now_ns)
        self._word |= 1 << bit

    def open(self, bit: int, now_ns: int) -> None:
        """One service's bit."""
        self._clear(1 << bit, now_ns)

    def force_open(self, now_ns: int) -> None:
        """All bits, for a breather."""
        self.breathe_until_ns = now_ns + self._breather_ns
        self.forced += 1
        self._clear(self._word, now_ns)

    def _clear(self, bits: int, now_ns: int) -> None:
        if self._word and not self._word & ~bits:
            self._opened_ns = now_ns
        self._word &= ~bits

    def _owed_ns(self, now_ns: int) -> int:
        """Closed time that an opening has not made up for."""
        if self._opened_ns is None or self._breather_ns <= 0:
            return 0
        closed_ns = self._opened_ns - self._closed_since_ns
        paid_ns = (now_ns - self._opened_ns) * self._max_hold_ns / self._breather_ns
        return max(0, int(closed_ns - paid_ns))
