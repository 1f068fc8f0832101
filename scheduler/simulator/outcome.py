"""What came of a simulated run: frozen values per job."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceOutcome:
    """A service; of each finished request in order of arrival."""

    name: str
    slo_ns: int  # 0: none
    latencies_ns: tuple[int, ...]  # from arrival
    service_ns: tuple[int, ...]  # from when its own work began
    alone_latencies_ns: tuple[int, ...]  # from arrival, had the service been alone

    @property
    def missed(self) -> int:
        """Requests over the SLO."""
        return sum(latency > self.slo_ns for latency in self.latencies_ns) if self.slo_ns else 0

    @property
    def missed_anyway(self) -> int:
        """Requests that would have been over the SLO with the service alone, too."""
        return sum(latency > self.slo_ns for latency in self.alone_latencies_ns) if self.slo_ns else 0

    @property
    def attainment(self) -> float:
        """Share of requests that met the SLO; 1 where there were none."""
        return 1 - self.missed / len(self.latencies_ns) if self.latencies_ns else 1.0

    def quantile_ns(self, q: float) -> int:
        """The least latency that a share ``q`` of the requests does not exceed; 0 without requests."""
        return _quantile(self.latencies_ns, q)

    def alone_quantile_ns(self, q: float) -> int:
        """Likewise, had the service been alone."""
        return _quantile(self.alone_latencies_ns, q)


@dataclass(frozen=True)
class TrainerOutcome:
    """A trainer."""

    name: str
    work_ns: float  # device time, in the time that was simulated
    relative: float  # of what it does alone in that time


@dataclass(frozen=True)
class Outcome:
    """One GPU."""

    seconds: float
    services: tuple[ServiceOutcome, ...]
    trainers: tuple[TrainerOutcome, ...]
    idle_closed_ns: int  # time with the gate closed and no request open
    forced: int  # times that training got a breather against the services' will
    num_events: int

    @property
    def training(self) -> float:
        """All trainers' work, in GPUs that are kept busy by trainers alone."""
        return sum(trainer.relative for trainer in self.trainers)


def _quantile(values_ns: tuple[int, ...], q: float) -> int:
    if not values_ns:
        return 0
    return sorted(values_ns)[max(0, math.ceil(q * len(values_ns)) - 1)]
