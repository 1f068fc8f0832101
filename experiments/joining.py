"""Has the processes of a pair join Herald in a domain, and leave it. Measures nothing.

`trial` does the same for a plain latency; this is for SLOs of several parts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from herald.experiments.process import Channel, call_all
from herald.experiments.roles import PRIORITY, Role
from herald.experiments.trial import ATTACH_TIMEOUT_S, SETTLE_STEPS
from herald.slo import SloSpec


@contextmanager
def joined(
    members: Mapping[Role, Channel],
    *,
    domain: str,
    device: str,
    slo: SloSpec,
    profile: str | None = None,
    follow: bool = False,
) -> Iterator[dict[Role, dict[str, Any]]]:
    """Inside, all are attached; after it, what it gives holds the counters of each. Raises WorkerError.

    ``profile``: a file of op costs for the trainer. ``follow``: Herald follows the progress of the service's requests.
    Training first, so that its settling steps meet open gates. After an error the processes stay as they are: they
    are not to be used again.
    """
    left: dict[Role, dict[str, Any]] = {}
    for role in sorted(members, reverse=True):
        members[role].call(
            "attach",
            timeout_s=ATTACH_TIMEOUT_S,
            domain=domain,
            priority=PRIORITY[role],
            slo=slo if role == "inference" else None,
            device=device,
            settle=SETTLE_STEPS,
            **({"profile": profile} if role == "training" and profile else {}),
            **({"follow": True} if role == "inference" and follow else {}),
        )
    yield left
    left |= call_all(members, "detach", timeout_s=ATTACH_TIMEOUT_S)
