"""What is known of one device: its services, the modes that were tried, what requests and training have in each.

A view of a snapshot as the controller needs it (`policies.herald`), in mean service times alone; it decides nothing.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import NamedTuple

from herald.scheduler import queueing
from herald.scheduler.prediction import residual_ns
from herald.scheduler.snapshot import CLOSED, OPEN, Evidence, JobKey, Memory, Mode, Service, Snapshot, Trainer

# A mode is tried once so many requests ran beside training from begin to end, and for so long; or, where hardly any
# gets that far, for long without.
ALONE_REQUESTS = 20
TRIED_REQUESTS = 12
TRIED_NS = 1_500_000_000
IN_VAIN_NS = 10_000_000_000
HOPELESS = 4.0  # misses on training's account: what had so many was tried enough
STILL_TRYING = 1.3  # a mode in use is tried for longer than is asked of one that is not: the edge is crossed once
LONGEST_HARM = 2.0  # of a trainer's longest op, in what training as a whole costs requests per time
GUESSED_INFLATION = 2.0  # of a mode that was not tried: two jobs that share evenly
HARSH_INFLATION = 4.0  # of one in which not even a few requests ran
A_FEW = 3
WORTH_A_SHARE = 1.1  # SM shares exist to bring inflation down: below this there is nothing to bring down
# Of training with its SMs, as an exponent: of four trainers on an H200 it is 0.7 to 1.8 (116 of 132 SMs: 0.91 to 0.79).
HOPED_SCALING = 0.5
SHARES = (1 / 8, 1 / 2)  # of the SMs, kept free of trainers
SM_GROUP = 8


class KnownService(NamedTuple):
    """A service that is known alone, as the model has it: in mean service times alone."""

    key: JobKey
    target: float
    has_slo: bool
    mps: bool
    load: float  # arrival rate x mean time, of all services of the device
    slo: float
    residual: float  # what still runs once the gate closes
    spread: float  # a long service time
    alone_ns: float  # the same, not in means
    leeway: float  # in rungs
    mean_ns: float

    @classmethod
    def of(cls, service: Service, memory: Memory, residual_ns: int, load: float) -> "KnownService":
        """``memory`` has its times alone; ``load``: of all services of its device."""
        mean_ns = memory.alone_mean_ns[service.key]
        alone_ns = memory.alone_high_ns.get(service.key, 2 * mean_ns)  # before a long time is known, twice the mean
        return cls(
            key=service.key,
            target=service.target,
            has_slo=service.slo_ns is not None,
            mps=service.mps,
            load=load,
            slo=(service.slo_ns or 0) / mean_ns,
            residual=residual_ns / mean_ns,
            spread=alone_ns / mean_ns,
            alone_ns=alone_ns,
            leeway=memory.leeway.get(service.key, 0.0),
            mean_ns=mean_ns,
        )

    @property
    def is_delayed(self) -> bool:
        """What still runs takes longer than a request: a closed gate protects little, and SMs of its own may more."""
        return self.has_slo and self.residual > 1

    def margin(self, inflation: float) -> float:
        """What a request loses after a close: under MPS, what still runs runs beside it, as training did before."""
        if inflation <= 1:
            return 0.0 if self.mps else self.residual
        harm = LONGEST_HARM * (1 - 1 / inflation)
        return self.residual * harm if self.mps and harm < 1 else self.residual

    def queue(self, inflation: float) -> queueing.Queue:
        """Its requests where training slows them down that much."""
        return queueing.on_grid(self.load, inflation, self.slo, self.margin(inflation), self.spread)


MayTry = Callable[[Collection[KnownService]], tuple[bool, bool]]  # whether these bear the open mode, a share, untried


class DeviceView(NamedTuple):
    """One device of a snapshot, and what is known of its modes."""

    services: tuple[Service, ...]
    trainers: tuple[Trainer, ...]
    mode: Mode
    known: tuple[KnownService, ...]  # the services; none before all of them are known alone
    may_try_open: bool  # where it was not tried
    may_try_shares: bool
    tried: Mapping[Mode, Evidence]  # modes in which requests ran for long enough to tell what it does to them
    best_idle: Mapping[JobKey, float]  # the best rate of each trainer while no request was open, in any mode

    @classmethod
    def of(cls, snapshot: Snapshot, device: str, may_try: MayTry) -> "DeviceView":
        """``may_try`` is asked only where something is left to try."""
        # Lists throughout, not generators, which cost twice as much: this runs at every tick.
        memory = snapshot.memory
        services = tuple([s for s in snapshot.services if s.device == device])
        trainers = tuple([t for t in snapshot.trainers if t.device == device])
        seen = {mode: evidence for (where, mode), evidence in memory.evidence.items() if where == device}
        present = memory.mode.get(device, CLOSED)
        known: tuple[KnownService, ...] = ()
        if all([memory.alone_requests.get(s.key, 0) >= ALONE_REQUESTS for s in services]):
            residual = residual_ns(snapshot, device)
            # Services of a device wait for each other: to each, all requests are load.
            load = sum([memory.load.get(s.key, 0.0) for s in services])
            known = tuple([KnownService.of(s, memory, residual, load) for s in services])
        tried = {mode: found for mode, found in seen.items() if mode.closed or _is_enough(found)}
        # Where nothing may be tried, what is known of the mode in use has to do: it was enough to choose it.
        is_unsure = present in tried and not present.closed and not _is_enough(tried[present], STILL_TRYING)
        may_try_open, may_try_shares = False, False
        if known and (is_unsure or len(tried) < 2 + len(SHARES)):
            may_try_open, may_try_shares = may_try(known)
        if is_unsure and may_try_open:
            del tried[present]
        best_idle = {t.key: max([0.0, *[e.rate_idle.get(t.key, 0.0) for e in seen.values()]]) for t in trainers}
        return cls(services, trainers, present, known, may_try_open, may_try_shares, tried, best_idle)

    @property
    def knows_services(self) -> bool:
        """Whether enough requests of every service ran alone."""
        return len(self.known) == len(self.services)

    def inflation(self, service: JobKey, mode: Mode, guess: float = GUESSED_INFLATION) -> float:
        """What beside training in that mode does to the service times; ``guess`` where it was not tried: a share can
        only be gentler than the open mode.
        """
        if mode.closed:
            return 1.0
        tried = self.tried.get(mode)
        if tried is None:
            return min(guess, self.inflation(service, OPEN, guess)) if mode.sm_count else guess
        return tried.inflation.get(service, HARSH_INFLATION) if tried.beside_requests >= A_FEW else HARSH_INFLATION

    def is_gentler(self, mode: Mode) -> bool:
        """Whether a mode with a share, which was tried, brings down what the open mode does to some service."""
        return any([WORTH_A_SHARE * self.inflation(k.key, mode) <= self.inflation(k.key, OPEN) for k in self.known])

    def training(self, mode: Mode) -> tuple[float, float]:
        """(idle, beside requests): what training has in that mode, by weight; 1 is all of it at its best rate."""
        # Behind a closed gate a trainer with all SMs is, while no request is open, what it is in the open mode.
        tried = self.tried.get(mode) or (self.tried.get(OPEN) if mode.closed else None)
        if tried is None:
            return 1.0, 0.0
        weights = idle = beside = 0.0
        for trainer in self.trainers:
            key, weight, best = trainer.key, trainer.weight, self.best_idle[trainer.key]
            weights += weight
            if best <= 0:
                idle += weight
                continue
            idle += weight * tried.rate_idle.get(key, best) / best
            if not mode.closed:
                beside += weight * min(1.0, tried.rate_beside.get(key, 0.0) / best)
        return idle / weights, beside / weights

    def hope(self, mode: Mode) -> float:
        """What a mode may be worth that was not tried: requests cost training nothing, and it lacks only the SMs."""
        if not mode.sm_count:
            return 1.0
        return math.pow(mode.sm_count / self.trainers[0].sm_total, HOPED_SCALING)

    def shares(self) -> tuple[Mode, ...]:
        """Open modes with a part of the SMs kept free; none where some job cannot."""
        totals = {trainer.sm_total for trainer in self.trainers}
        if len(totals) != 1 or not all(s.mps for s in self.services):
            return ()
        return _shares(totals.pop())


@cache
def _shares(total: int) -> tuple[Mode, ...]:
    asides = sorted({round(total * share / SM_GROUP) * SM_GROUP for share in SHARES})
    return tuple(Mode(closed=False, sm_count=total - aside) for aside in asides if 0 < aside < total)


def _is_enough(seen: Evidence, times: float = 1.0) -> bool:
    in_vain = seen.time_ns >= times * IN_VAIN_NS or seen.missed >= HOPELESS
    return in_vain or (seen.beside_requests >= times * TRIED_REQUESTS and seen.time_ns >= times * TRIED_NS)
