"""What the observer makes of rows: time alone, inflation and rates of each mode, load, leeway; kept by name."""

import pytest

from herald.fakes import FakeClock, MemoryTable, memory_table
from herald.scheduler.learning import Observer
from herald.scheduler.snapshot import CLOSED, OPEN, Decision, JobKey, Mode, Snapshot

MS = 1_000_000
GPU = "GPU-1"
MEAN_NS = 20 * MS
LOOK_NS = 50 * MS


class World:
    """Two jobs whose rows move as jobs with known inflation and rates would move them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.table: MemoryTable = memory_table()
        self.observer = Observer()
        self.attach()

    def attach(self) -> None:
        self.service = self.table.add_job(name="chat", priority="high", device=GPU, slo_ns=80 * MS)
        self.trainer = self.table.add_job(name="train", priority="low", device=GPU, sm_total=132, armed=1)

    def look(self) -> Snapshot:
        return self.observer.observe(self.table.jobs(), self.clock())

    def alone(self, num_looks: int = 30) -> Snapshot:
        """One request a look behind a closed gate; training runs while it is idle."""
        self.observer.decided(Decision(modes={GPU: CLOSED}))
        for _ in range(num_looks):
            self._pass(busy_ns=MEAN_NS, beside_ns=0, work_ns=LOOK_NS - MEAN_NS, solo=1)
            snapshot = self.look()
        return snapshot

    def beside(self, inflation: float, rate: float, mode: Mode = OPEN, num_looks: int = 40) -> Snapshot:
        """One request in one look, two in the next, with the gate open."""
        self.observer.decided(Decision(modes={GPU: mode}))
        self.table._rows[self.trainer].sm_granted = mode.sm_count
        self.look()
        for i in range(num_looks):
            done = 1 + i % 2
            busy_ns = round(done * MEAN_NS * inflation)
            idle_ns = 2 * LOOK_NS - busy_ns
            self.clock.advance(LOOK_NS)
            self._pass(busy_ns=busy_ns, beside_ns=busy_ns, work_ns=round(idle_ns + rate * busy_ns), done=done)
            snapshot = self.look()
        return snapshot

    def _pass(self, *, busy_ns: int, beside_ns: int, work_ns: int, done: int = 1, solo: int = 0) -> None:
        self.clock.advance(LOOK_NS)
        row = self.table._rows[self.service]
        row.busy_ns += busy_ns
        row.busy_open_ns += beside_ns
        if beside_ns:
            row.beside_requests += done
            row.beside_ns += beside_ns
        row.requests_begun += done
        self.table.record(self.service, latency_ns=busy_ns, count=done)
        row.slo_met += done
        row.solo_requests += solo
        row.solo_ns += solo * MEAN_NS
        row.alone_ns = 21 * MS
        self.table._rows[self.trainer].gated_ns += work_ns


@pytest.fixture
def world() -> World:
    world = World()
    world.look()
    return world


def key(world: World) -> JobKey:
    return next(s.key for s in world.look().services)


def test_time_alone_comes_from_requests_behind_a_closed_gate(world: World) -> None:
    memory = world.alone().memory
    assert memory.alone_mean_ns[key(world)] == pytest.approx(MEAN_NS)
    assert memory.alone_high_ns[key(world)] == 21 * MS
    assert memory.load[key(world)] == pytest.approx(MEAN_NS / LOOK_NS, rel=0.05)


@pytest.mark.parametrize(("inflation", "rate"), [(1.0, 0.9), (1.7, 0.8), (1.9, 0.3)])
def test_inflation_and_rates_are_found_again(world: World, inflation: float, rate: float) -> None:
    world.alone()
    snapshot = world.beside(inflation, rate)
    evidence = snapshot.memory.evidence[GPU, OPEN]
    assert evidence.inflation[snapshot.services[0].key] == pytest.approx(inflation, rel=0.02)
    assert evidence.rate_beside[snapshot.trainers[0].key] == pytest.approx(rate, rel=0.15)
    assert evidence.rate_idle[snapshot.trainers[0].key] == pytest.approx(1.0, rel=0.15)


def test_looks_that_are_all_alike_give_the_common_rate(world: World) -> None:
    """A service of short requests is as busy in one look as in the next: idle and beside cannot be told apart."""
    world.alone()
    world.observer.decided(Decision(modes={GPU: OPEN}))
    for _ in range(40):
        world._pass(busy_ns=MEAN_NS, beside_ns=MEAN_NS, work_ns=round(0.8 * LOOK_NS))
        snapshot = world.look()
    evidence, trainer = snapshot.memory.evidence[GPU, OPEN], snapshot.trainers[0].key
    assert evidence.rate_idle[trainer] == pytest.approx(0.8, rel=0.02)
    assert evidence.rate_beside[trainer] == pytest.approx(0.8, rel=0.02)


def test_modes_are_told_apart(world: World) -> None:
    narrow = Mode(closed=False, sm_count=116)
    world.alone()
    world.beside(1.8, 0.8)
    snapshot = world.beside(1.2, 0.6, mode=narrow)
    service = snapshot.services[0].key
    assert snapshot.memory.evidence[GPU, OPEN].inflation[service] == pytest.approx(1.8, rel=0.02)
    assert snapshot.memory.evidence[GPU, narrow].inflation[service] == pytest.approx(1.2, rel=0.02)


def test_a_share_that_is_not_granted_yet_teaches_nothing(world: World) -> None:
    narrow = Mode(closed=False, sm_count=116)
    world.alone()
    world.observer.decided(Decision(modes={GPU: narrow}))
    world._pass(busy_ns=MEAN_NS, beside_ns=MEAN_NS, work_ns=LOOK_NS)
    assert (GPU, narrow) not in world.look().memory.evidence


def test_a_pair_that_comes_back_is_known(world: World) -> None:
    world.alone()
    world.beside(1.7, 0.8)
    world.table.release(world.service)
    world.table.release(world.trainer)
    world.look()
    world.attach()
    memory = world.look().memory
    assert memory.alone_mean_ns[key(world)] == pytest.approx(MEAN_NS)
    assert memory.evidence[GPU, OPEN].inflation[key(world)] == pytest.approx(1.7, rel=0.02)


def test_another_neighbour_is_another_pair(world: World) -> None:
    world.alone()
    world.beside(1.7, 0.8)
    world.table.add_job(name="other", priority="low", device=GPU, armed=1)
    assert (GPU, OPEN) not in world.look().memory.evidence


def test_only_misses_on_account_of_training_cost_leeway(world: World) -> None:
    world.look()
    row = world.table._rows[world.service]
    row.slo_missed += 4
    row.missed_anyway += 4
    world.clock.advance(LOOK_NS)
    assert world.look().memory.leeway[key(world)] == 0
    row.slo_missed += 2
    world.clock.advance(LOOK_NS)
    assert world.look().memory.leeway[key(world)] == pytest.approx(-2.0)


def test_a_long_pause_is_about_no_mode(world: World) -> None:
    world.alone()
    before = world.look().memory.evidence[GPU, CLOSED].time_ns
    world.clock.advance(10_000 * MS)
    assert world.look().memory.evidence[GPU, CLOSED].time_ns <= before
