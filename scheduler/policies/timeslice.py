"""timeslice: while a request is open, training and requests take turns of a fixed length. timeslice[:QUANTUM]

What a GPU does with two processes when nothing else is said, as a rule under Herald's gate, where the length of a turn
is known and can be chosen (default 5 ms). A re-implementation of that rule, not of a driver's time slicing.
"""

from dataclasses import dataclass

from herald.durations import parse_duration
from herald.errors import ConfigError
from herald.layout import LEAD_ALWAYS
from herald.scheduler.snapshot import Decision, Plan, Snapshot

_SHORTEST_NS, _LONGEST_NS = 100_000, 1_000_000_000  # a turn is not shorter than what runs on after a close anyway


@dataclass(frozen=True)
class Timeslice:
    """Gates close and open in turns, whatever the deadlines."""

    quantum_ns: int = 5_000_000

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:  # noqa: ARG002 - the protocol's argument
        """The same turns for every service."""
        plan = Plan(LEAD_ALWAYS, slice_ns=self.quantum_ns)
        return Decision({service.key: plan for service in snapshot.services})


def make(argument: str) -> Timeslice:
    """The policy with turns of a length such as "5ms". Raises ConfigError."""
    if not argument:
        return Timeslice()
    quantum_ns = parse_duration(argument, setting="turn")
    if not _SHORTEST_NS <= quantum_ns <= _LONGEST_NS:
        raise ConfigError(f"turn = {argument!r}: from 100us to 1s")
    return Timeslice(quantum_ns)
