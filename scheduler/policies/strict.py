"""strict: heavy training ops wait while a request is open. The default, and the rule without a daemon."""

from dataclasses import dataclass

from herald.scheduler.snapshot import STRICT_PLAN, Decision, Snapshot


@dataclass(frozen=True)
class Strict:
    """Gates close when a request begins."""

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:  # noqa: ARG002 - the protocol's argument
        """Every service gets the plan that closes at once."""
        return Decision({service.key: STRICT_PLAN for service in snapshot.services})


POLICY = Strict()
