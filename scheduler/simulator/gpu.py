"""A simulated GPU: the loop over events, and the one place where jobs, gate and daemon meet.

Between two events nobody changes speed, so that time jumps from event to event: an arrival, a completion, the moment at
which a service wants its gate otherwise, the end of what ran on after a close, the end of a step after which a trainer
runs on other SMs, the end of a hold that is too long, and the daemon's tick.
"""

import math

from herald.config import Limits
from herald.fakes import FakeClock, MemoryTable
from herald.scheduler.daemon import Daemon, publish_limits
from herald.scheduler.policies import Policy
from herald.scheduler.simulator.closing import NEVER_NS, Work
from herald.scheduler.simulator.gate import Gate
from herald.scheduler.simulator.jobs import GpuModel, ServiceModel, TrainerModel
from herald.scheduler.simulator.outcome import Outcome, ServiceOutcome, TrainerOutcome
from herald.scheduler.simulator.rates import Rates, rates
from herald.scheduler.simulator.serving import Serving
from herald.scheduler.simulator.training import Training

TICK_NS = 50_000_000  # as the daemon's PERIOD_S


def simulate(
    gpu: GpuModel,
    policy: Policy,
    *,
    seconds: float,
    seed: int = 0,
    tick_ns: int = TICK_NS,
    limits: Limits | None = None,
) -> Outcome:
    """Run a GPU for so long under a policy; then requests that are open are served, but training counts no more.

    Equal arguments, equal outcome. Every job draws from its own generator, so that all policies see the same requests.
    """
    return _Simulation(gpu, policy, seed, tick_ns, limits or Limits()).run(round(seconds * 1e9))


class _Simulation:
    def __init__(self, gpu: GpuModel, policy: Policy, seed: int, tick_ns: int, limits: Limits) -> None:
        self._gpu = gpu
        self._table = MemoryTable()
        publish_limits(self._table, limits)
        header = self._table.header
        self._max_hold_ns = int(header.max_hold_ns)
        self._gate = Gate(self._max_hold_ns, int(header.breather_ns))
        self._services = [self._service(model, f"{seed}/service {i}") for i, model in enumerate(gpu.services)]
        self._trainers = [self._trainer(model, f"{seed}/trainer {i}") for i, model in enumerate(gpu.trainers)]
        self._daemon = Daemon(self._table, policy)
        self._clock = FakeClock()
        self._tick_ns = tick_ns
        self._next_tick_ns = self._clock()
        self._again_ns = NEVER_NS  # when some service's wish, or what it may, changes by itself
        self._known_rates: dict[tuple[object, ...], Rates] = {}
        self._idle_closed_ns = 0
        self._num_events = 0

    def _service(self, model: ServiceModel, seed: str) -> Serving:
        claimed = self._table.claim(
            name=model.name,
            priority="high",
            device=self._gpu.device,
            slo_ns=model.slo_ns,
            target=model.target,
            mps=self._gpu.mps,
        )
        return Serving(model, claimed, self._table, self._table.row(claimed), seed)

    def _trainer(self, model: TrainerModel, seed: str) -> Training:
        claimed = self._table.claim(
            name=model.name,
            priority="low",
            device=self._gpu.device,
            weight=model.weight,
            floor=model.floor,
            mps=self._gpu.mps,
        )
        row = self._table.row(claimed)
        row.longest_op_ns, row.sm_total, row.armed = model.longest_stretch_ns, model.sm_total, 1
        return Training(model, row, seed)

    # ---- time

    def run(self, length_ns: int) -> Outcome:
        start_ns = self._clock()
        end_ns = start_ns + length_ns
        for service in self._services:
            service.start(start_ns)
        self._run_until(end_ns)
        work_ns = [trainer.work_ns for trainer in self._trainers]
        while not all(service.is_finished for service in self._services):
            self._run_until(self._clock() + self._tick_ns)
        return Outcome(
            seconds=length_ns / 1e9,
            services=tuple(_service_outcome(service) for service in self._services),
            trainers=tuple(
                TrainerOutcome(t.model.name, ns, ns / (t.model.duty * length_ns))
                for t, ns in zip(self._trainers, work_ns, strict=True)
            ),
            idle_closed_ns=self._idle_closed_ns,
            forced=self._gate.forced,
            num_events=self._num_events,
        )

    def _run_until(self, end_ns: int) -> None:
        while True:
            self._happen()
            now_ns = self._clock()
            if now_ns >= end_ns:
                return
            busy = [service for service in self._services if service.is_busy]
            running = [trainer for trainer in self._trainers if trainer.runs(now_ns)]
            speeds = self._rates(busy, running)
            to_ns = max(now_ns, min(end_ns, self._next_ns(now_ns, busy, running, speeds)))
            self._advance(to_ns - now_ns, busy, running, speeds)

    def _happen(self) -> None:
        """All that is due now."""
        self._num_events += 1
        now_ns = self._clock()
        stepped = False
        for service in self._services:
            stepped = service.step(now_ns) or stepped
        if stepped and len(self._services) > 1:
            for service in self._services:
                service.reconsider()
        ticks = now_ns >= self._next_tick_ns
        if ticks:
            self._tick(now_ns)
        if ticks or stepped or now_ns >= min(self._again_ns, self._gate.overdue_ns):
            self._settle(now_ns)

    def _next_ns(self, now_ns: int, busy: list[Serving], running: list[Training], speeds: Rates) -> int:
        """When something is due, if all go on as now."""
        due_ns = [self._next_tick_ns, self._again_ns, self._gate.overdue_ns]
        due_ns += [service.next_arrival_ns for service in self._services]
        due_ns += [now_ns + math.ceil(s.left_ns / r) for s, r in zip(busy, speeds.services, strict=True)]
        due_ns += [trainer.stops_ns for trainer in running]
        for trainer, rate in zip(running, speeds.trainers, strict=True):
            if trainer.switches:
                due_ns.append(now_ns + math.ceil(trainer.step_left_ns / rate))
        return min(due_ns)

    def _advance(self, by_ns: int, busy: list[Serving], running: list[Training], speeds: Rates) -> None:
        gate_open = self._gate.is_open
        for service, rate in zip(busy, speeds.services, strict=True):
            service.advance(by_ns, rate, gate_open=gate_open)
        for trainer, rate in zip(running, speeds.trainers, strict=True):
            trainer.advance(by_ns, rate)
        if not busy and not gate_open:
            self._idle_closed_ns += by_ns
        self._clock.advance(by_ns)

    def _rates(self, busy: list[Serving], running: list[Training]) -> Rates:
        now = [trainer.running for trainer in running]
        key = (*busy, *now)
        found = self._known_rates.get(key)
        if found is None:
            found = rates(self._gpu.interference, [service.model for service in busy], now)
            self._known_rates[key] = found
        return found

    # ---- gate and daemon

    def _settle(self, now_ns: int) -> None:
        """Every service makes the gate what it wants, as far as it may."""
        was_open = self._gate.is_open
        if now_ns >= self._gate.overdue_ns:
            self._gate.force_open(now_ns)
            for service in self._services:
                service.let_go(now_ns)
        self._again_ns = NEVER_NS
        others: dict[int, Work] = {}
        if len(self._services) > 1 and not all(service.is_settled(now_ns) for service in self._services):
            others = {service.bit: service.first_due for service in self._services if service.is_busy}
        for service in self._services:
            wish = service.wish(now_ns, self._max_hold_ns, others)
            self._again_ns = min(self._again_ns, wish.again_ns)
            if wish.closed and not self._gate.may_close(now_ns):
                self._again_ns = min(self._again_ns, self._gate.breathe_until_ns)
            elif wish.closed and not service.holds:
                self._gate.close(service.bit, now_ns)
                service.hold(now_ns)
            elif not wish.closed and service.holds:
                self._gate.open(service.bit, now_ns)
                service.let_go(now_ns)
        if was_open == self._gate.is_open:
            return
        for trainer in self._trainers:
            if was_open:
                trainer.gate_closed(now_ns)
            else:
                trainer.gate_opened()

    def _tick(self, now_ns: int) -> None:
        """What the daemon does, on rows as the jobs' would be."""
        jobs: list[Serving | Training] = [*self._services, *self._trainers]
        for job in jobs:
            job.publish(now_ns)
        self._daemon.tick(now_ns)
        for job in jobs:
            job.take_plan()
        self._next_tick_ns = now_ns + self._tick_ns


def _service_outcome(service: Serving) -> ServiceOutcome:
    return ServiceOutcome(
        name=service.model.name,
        slo_ns=service.model.slo_ns,
        latencies_ns=tuple(done.latency_ns for done in service.finished),
        service_ns=tuple(done.service_ns for done in service.finished),
        alone_latencies_ns=tuple(done.alone_latency_ns for done in service.finished),
    )
