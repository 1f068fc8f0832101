"""When a service wants its gate closed: the rule of HighJob::wants_closed (hooks/csrc/requests.hpp), as pure functions.

Requests of a service are served in the order of the arguments, first come first served. Times are ns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from herald.layout import LEAD_ALWAYS, LEAD_NEVER, NO_DEADLINE
from herald.scheduler.snapshot import Pace, Plan

NEVER_NS = (1 << 63) - 1


@dataclass(frozen=True)
class Wish:
    """What a service wants of its gate."""

    closed: bool
    again_ns: int = NEVER_NS  # when to ask again although no request begins or ends
    urgent: int = 0  # that many requests, from the front, must be done before it may want the gate open again


@dataclass(frozen=True, slots=True)
class Work:
    """An open request, as its service's agent knows it."""

    deadline_ns: int  # NO_DEADLINE: none
    remaining_ns: int | None = None  # alone, at the plan's quantile; None: not known
    others_ns: int = 0  # work of other services that is due before it
    spent_ns: int = 0  # of `remaining_ns`, spent alone since it was last seen: off the wait of those behind


OPEN = Wish(closed=False)


def close_at_ns(
    deadlines_ns: Sequence[int], remaining_ns: Sequence[int], margin_ns: int, inflation_ppm: int, ahead_ns: int = 0
) -> int:
    """When the gate must close for all requests to meet their deadlines, if none gets on before.

    ``remaining_ns`` of each, on top of ``ahead_ns`` of work that comes first; NEVER_NS where none has a deadline.
    """
    queue = [Work(*request, ahead_ns) for request in zip(deadlines_ns, remaining_ns, strict=True)]
    return min(_close_times_ns(Plan(margin_ns, pace=Pace(margin_ns, inflation_ppm, 0)), queue), default=NEVER_NS)


def wish(plan: Plan, queue: Sequence[Work], now_ns: int, *, busy_since_ns: int) -> Wish:
    """What a service with these open requests wants; ``busy_since_ns``: when the first of them found none open."""
    if not queue:
        return OPEN
    if plan.slice_ns:
        turn, spent_ns = divmod(now_ns - busy_since_ns, plan.slice_ns)
        return Wish(closed=turn % 2 == 0, again_ns=now_ns + plan.slice_ns - spent_ns)
    if plan.lead_ns >= LEAD_ALWAYS:
        return Wish(closed=True)
    times_ns = _close_times_ns(plan, queue) if plan.lead_ns > LEAD_NEVER else [NEVER_NS]
    urgent = max((place for place, at_ns in enumerate(times_ns, start=1) if now_ns >= at_ns), default=0)
    waits_ns = [at_ns for at_ns in times_ns if at_ns > now_ns]
    return Wish(urgent > 0 or len(queue) > plan.queue_limit, min(waits_ns, default=NEVER_NS), urgent)


def _close_times_ns(plan: Plan, queue: Sequence[Work]) -> list[int]:
    """Of each request; with a pace, for it and all before it."""
    ahead_ns = 0
    times_ns = []
    for work in queue:
        lead_ns = plan.lead_ns
        if plan.pace is not None:
            left_ns = _of_lead(plan.lead_ns, plan.pace) if work.remaining_ns is None else work.remaining_ns
            lead_ns = plan.pace.lead_ns(ahead_ns + work.others_ns + left_ns)
            ahead_ns += max(0, left_ns - work.spent_ns)
        times_ns.append(NEVER_NS if work.deadline_ns >= NO_DEADLINE else work.deadline_ns - lead_ns)
    return times_ns


def _of_lead(lead_ns: int, pace: Pace) -> int:
    """The remaining time that a lead stands for, rounded up."""
    return int(max(0, lead_ns - pace.margin_ns) / pace.inflation_ppm * 1e6) + 1
