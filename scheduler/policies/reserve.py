"""reserve: gates never close; some SMs are kept free of training instead. reserve:SMS

The static division that MPS percentages, green contexts and SM reservation give: the service has SMS multiprocessors
for itself and shares nothing but memory, cache and launch queues. What the best one is depends on the pair and the SLO,
so that a sweep over it is the strongest form of the rival. A re-implementation of that rule with Herald's SM shares.
"""

from dataclasses import dataclass

from herald.errors import ConfigError
from herald.scheduler.snapshot import FREE_PLAN, Decision, Snapshot, Trainer, TrainerPlan

_GRAIN = 8  # SMs that a share is a multiple of (green contexts on an H100 or H200), and the least share


@dataclass(frozen=True)
class Reserve:
    """Every trainer does without ``num_sms`` SMs all the time."""

    num_sms: int

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:  # noqa: ARG002 - the protocol's argument
        """Open gates; a share for every trainer that can keep to one."""
        return Decision(
            {service.key: FREE_PLAN for service in snapshot.services},
            trainer_plans={t.key: self._plan(t) for t in snapshot.trainers if t.sm_total},
            unmet={t.key: words for t in snapshot.trainers if (words := self._unmet(t))},
        )

    def _plan(self, trainer: Trainer) -> TrainerPlan:
        rest = (trainer.sm_total - self.num_sms) // _GRAIN * _GRAIN
        return TrainerPlan(sm_count=max(_GRAIN, rest))

    def _unmet(self, trainer: Trainer) -> str:
        """Why this trainer leaves fewer SMs free than it should; "" where it does not.

        Nothing of one whose steps are not seen: nobody can tell it from one that has yet to begin.
        """
        name = trainer.name
        if trainer.device == "cpu":
            return f"reserve:{self.num_sms} has no effect on {name}: a CPU has no SMs, and this policy closes no gate"
        if trainer.sm_total and self.num_sms > trainer.sm_total - _GRAIN:
            return (
                f"reserve:{self.num_sms} leaves {name} too few of {trainer.sm_total} SMs: it is kept to {_GRAIN}, the "
                f"least share; reserve {trainer.sm_total - _GRAIN} at most"
            )
        return ""


def make(argument: str) -> Reserve:
    """The policy that reserves so many SMs. Raises ConfigError."""
    if not (argument.isascii() and argument.isdigit() and int(argument) > 0):
        raise ConfigError("say how many SMs are kept free, a whole number above 0, as in 'reserve:32'")
    return Reserve(int(argument))
