"""One trial: one setting, once. Attaches where Herald takes part, starts both jobs at one instant, collects what
they measured. Decides nothing about order or repetition, and writes no files.
"""

import time
from dataclasses import dataclass
from typing import Any

from herald.experiments import arrivals as arrivals_data
from herald.experiments.arrivals import Arrivals
from herald.experiments.crew import Crew
from herald.experiments.process import Channel, call_all
from herald.experiments.roles import PRIORITY, Role
from herald.experiments.settings import Setting

SETTLE_STEPS = 8  # with nobody in the way, after attaching: what Herald learns is not what is measured
START_DELAY_S = 0.3  # both jobs have their command and sleep when the start comes
ATTACH_TIMEOUT_S = 120.0
RUN_GRACE_S = 60.0  # beyond the duration, for a backlog of requests


@dataclass(frozen=True)
class Terms:
    """What a trial is measured on."""

    arrivals: Arrivals
    seconds: float
    slo_ms: float | None = None  # needed where Herald takes part
    domain: str | None = None  # likewise
    profile: str | None = None  # a file of op costs, with which the trainer attaches
    follow: bool = False  # Herald may follow the progress of requests
    observe: bool = False  # it does so of every request, whatever the policy


@dataclass(frozen=True)
class Trial:
    """What the jobs said: raw answers to `run`, and to `detach` where Herald took part."""

    answers: dict[Role, dict[str, Any]]
    herald: dict[Role, dict[str, Any]]


def run_trial(crew: Crew, setting: Setting, terms: Terms) -> Trial:
    """Measure ``setting``. Raises WorkerError; the crew is then not to be used again without `Crew.close`."""
    members = crew.members(setting)
    if setting.policy is not None:
        _attach(members, crew.device, terms)
    answers = call_all(
        members,
        "run",
        timeout_s=terms.seconds + RUN_GRACE_S,
        start_s=time.monotonic() + START_DELAY_S,
        seconds=terms.seconds,
        arrivals=arrivals_data.to_json(terms.arrivals),
    )
    left = {} if setting.policy is None else call_all(members, "detach", timeout_s=ATTACH_TIMEOUT_S)
    return Trial(answers=answers, herald=left)


def _attach(members: dict[Role, Channel], device: str, terms: Terms) -> None:
    """Training first, so that its settling steps meet open gates."""
    assert terms.slo_ms is not None and terms.domain is not None, "Herald needs an SLO and a domain"
    for role in sorted(members, reverse=True):
        members[role].call(
            "attach",
            timeout_s=ATTACH_TIMEOUT_S,
            domain=terms.domain,
            priority=PRIORITY[role],
            slo=f"{terms.slo_ms:.3f}ms" if role == "inference" else None,
            device=device,
            settle=SETTLE_STEPS,
            **({"profile": terms.profile} if role == "training" and terms.profile else {}),
            **({"follow": True} if role == "inference" and terms.follow else {}),
            **({"observe": True} if role == "inference" and terms.observe else {}),
        )
