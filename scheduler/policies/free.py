"""free: nobody ever waits. What sharing costs without Herald's gate, with Herald's counters still running."""

from dataclasses import dataclass

from herald.scheduler.snapshot import FREE_PLAN, Decision, Snapshot


@dataclass(frozen=True)
class Free:
    """Gates never close."""

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:  # noqa: ARG002 - the protocol's argument
        """Every service gets the plan that never closes."""
        return Decision({service.key: FREE_PLAN for service in snapshot.services})


POLICY = Free()
