"""What services did lately, window after window: for policies that react to changes instead of predicting.

An observer keeps one `Windows` and puts what it says into the snapshot's memory. A policy is asked far more often than
requests finish, so counts are gathered over a whole window and told once, in the snapshot that ends it; in between
there is nothing new, and a control law must not act twice on the same news.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from herald.scheduler.snapshot import JobKey, Recent, Service

WINDOW_NS = 1_000_000_000  # at 10 requests/s some ten of them: less says nothing, more is late

_NOTHING_NEW: Mapping[JobKey, Recent] = MappingProxyType({})


class Windows:
    """Cuts time into windows and counts what each service did in them."""

    def __init__(self, window_ns: int = WINDOW_NS) -> None:
        self._window_ns = window_ns
        self._began_ns: int | None = None
        self._before: dict[JobKey, Service] = {}

    def look(self, services: Iterable[Service], now_ns: int) -> Mapping[JobKey, Recent]:
        """Of every service that was there throughout, if a window ends with this look; else empty."""
        if self._began_ns is not None and now_ns - self._began_ns < self._window_ns:
            return _NOTHING_NEW
        present = {service.key: service for service in services}
        found = {
            key: changes(self._before[key], service, now_ns - self._began_ns)
            for key, service in present.items()
            if self._began_ns is not None and key in self._before
        }
        self._began_ns, self._before = now_ns, present
        return MappingProxyType(found)


def changes(before: Service, after: Service, elapsed_ns: int) -> Recent:
    """What a service did between two looks at it."""
    return Recent(
        elapsed_ns=elapsed_ns,
        done=after.requests_done - before.requests_done,
        missed=after.missed - before.missed,
        busy_ns=after.busy_ns - before.busy_ns,
    )
