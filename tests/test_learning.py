"""What the observer makes of rows: time alone, inflation and rates of each mode, load, leeway; kept by name."""

import pytest

from herald.fakes import FakeClock, MemoryTable, memory_table
from herald.scheduler.learning import Observer
from herald.scheduler.snapshot import CLOSED, FREE_PLAN, OPEN, STRICT_PLAN, Decision, JobKey, Mode, Plan, Snapshot

MS = 1_000_000
GPU = "GPU-1"
MEAN_NS = 20 * MS
LOOK_NS = 50 * MS
HOUR_NS = 3_600_000 * MS


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


def missed(world: World, count: int, *, anyway: int = 0, met: int = 0) -> float:
    """The leeway after so many more requests."""
    row = world.table._rows[world.service]
    row.slo_missed += count
    row.missed_anyway += anyway
    row.slo_met += met
    world.clock.advance(LOOK_NS)
    return world.look().memory.leeway[key(world)]


def test_only_misses_on_account_of_training_cost_leeway(world: World) -> None:
    world.observer.decided(Decision(modes={GPU: OPEN}))
    world.look()
    assert missed(world, 4, anyway=4) == 0
    assert missed(world, 2) == pytest.approx(-2.0)


def test_misses_are_booked_under_the_mode_and_the_slo_of_then(world: World) -> None:
    world.look()
    assert missed(world, 3) == 0, "behind a gate that closes at once nothing was lenient"
    world.observer.decided(Decision(modes={GPU: OPEN}))
    assert missed(world, 3) == pytest.approx(-3.0, abs=0.05)
    world.table._rows[world.service].slo_ns = 100 * MS
    world.clock.advance(LOOK_NS)
    assert world.look().memory.leeway[key(world)] == 0


def settled(world: World, *, plans: dict[JobKey, Plan] | None = None) -> float:
    """The leeway after an open mode in which requests took what they take alone, five misses, and a closed gate."""
    world.observer.decided(Decision(plans={key(world): FREE_PLAN} if plans is None else plans, modes={GPU: OPEN}))
    for _ in range(20):
        world._pass(busy_ns=MEAN_NS, beside_ns=MEAN_NS, work_ns=LOOK_NS)
        world.look()
    missed(world, 5)
    world.alone(60)
    return world.look().memory.leeway[key(world)]


def test_what_is_charged_while_no_gate_closes_is_settled_behind_a_closed_one(world: World) -> None:
    assert settled(world) > 0


def test_it_is_not_where_another_service_of_the_device_closes_the_gate(world: World) -> None:
    """Then only short requests meet no close."""
    self_ = key(world)
    other = world.table.add_job(name="other", priority="high", device=GPU, slo_ns=80 * MS)
    world.look()
    closing = JobKey(other, world.table._rows[other].generation)
    assert settled(world, plans={self_: FREE_PLAN, closing: STRICT_PLAN}) < -4


def test_it_is_not_for_an_engine(world: World) -> None:
    """Whose times are those of steps, and whose misses are those of requests."""
    world.table._rows[world.service].engine = 1
    assert settled(world) < -4


def test_a_service_that_becomes_an_engine_has_another_count_of_work(world: World) -> None:
    """Requests were told before the first step: what has begun seems to be less than before."""
    world.alone()
    row = world.table._rows[world.service]
    row.requests_begun += 1000
    world.look()
    row.engine = 1
    for _ in range(100):
        world._pass(busy_ns=MEAN_NS, beside_ns=0, work_ns=0)
        memory = world.look().memory
    assert memory.load[key(world)] == pytest.approx(MEAN_NS / LOOK_NS, rel=0.1)


@pytest.mark.parametrize(("away_ns", "is_known"), [(23 * HOUR_NS, True), (25 * HOUR_NS, False)])
def test_what_was_learnt_of_a_service_is_forgotten_when_it_stays_away_for_a_day(
    world: World, away_ns: int, is_known: bool
) -> None:
    world.alone()
    for elapsed_ns in (away_ns, LOOK_NS):
        world.clock.advance(elapsed_ns)
        world.observer.observe((), world.clock())
    world.clock.advance(LOOK_NS)
    memory = world.look().memory
    assert (key(world) in memory.alone_mean_ns) == (key(world) in memory.load) == is_known


def test_a_mode_in_which_requests_are_faster_is_told_as_such(world: World) -> None:
    """Where ops that run on after a close take longer than a request, an open gate may be the better one."""
    world.alone()
    snapshot = world.beside(0.7, 0.8)
    assert snapshot.memory.evidence[GPU, OPEN].inflation[key(world)] == pytest.approx(0.7, rel=0.02)


def test_a_long_pause_is_about_no_mode(world: World) -> None:
    world.alone()
    before = world.look().memory.evidence[GPU, CLOSED].time_ns
    world.clock.advance(10_000 * MS)
    assert world.look().memory.evidence[GPU, CLOSED].time_ns <= before


def told(world: World, begun: int, num_looks: int) -> float:
    """The load, after so many looks with so many new requests each."""
    for _ in range(num_looks):
        world.clock.advance(LOOK_NS)
        world.table._rows[world.service].requests_begun += begun
        snapshot = world.look()
    return snapshot.memory.load[snapshot.services[0].key]


def test_a_load_that_steps_is_told_at_once_and_for_good(world: World) -> None:
    """Not only while a short window still differs from a long one: neither may the long one fall behind again."""
    world.alone()
    steady = told(world, 1, 600)
    for seconds in (2, 5, 10, 20, 40):
        assert told(world, 3, 20 * seconds) == pytest.approx(3 * steady, rel=0.25)
    assert told(world, 1, 100) == pytest.approx(steady, rel=0.3)


def test_a_steady_load_is_told_the_same(world: World) -> None:
    world.alone()
    told(world, 1, 600)
    assert len({told(world, 1, 1) for _ in range(200)}) == 1


def test_a_time_alone_that_no_plan_asked_for_does_not_replace_one_that_a_plan_did(world: World) -> None:
    """Else a policy that goes to a plan without a pace knows something else after it, and goes back."""
    world.alone()
    row = world.table._rows[world.service]
    for quantile_ppm, alone_ns, expected_ns in (
        (0, 30 * MS, 30 * MS),
        (950_000, 21 * MS, 21 * MS),
        (0, 30 * MS, 21 * MS),
    ):
        row.quantile_ppm, row.alone_ns = quantile_ppm, alone_ns
        world.clock.advance(LOOK_NS)
        assert world.look().memory.alone_high_ns[key(world)] == expected_ns
