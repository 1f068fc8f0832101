"""The daemon, one tick at a time on a private table."""

import logging
import os
import signal
from dataclasses import dataclass, field

import pytest

from herald.config import Limits
from herald.fakes import FakeClock, MemoryTable
from herald.layout import LEAD_NEVER
from herald.scheduler import policies
from herald.scheduler.daemon import Daemon, describe, publish_limits, rest_s, serve
from herald.scheduler.signals import StopSignals, stop_signals
from herald.scheduler.snapshot import FREE_PLAN, STRICT_PLAN, JobKey, Pace, Plan

MS = 1_000_000


class RecordingTable(MemoryTable):
    """Remembers which plans were published, and whom it shall declare dead."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[tuple[JobKey, Plan]] = []
        self.dead: list[int] = []

    def publish_plan(self, row: int, generation: int, lead_ns: int, queue_limit: int, **pace: int) -> None:
        super().publish_plan(row, generation, lead_ns, queue_limit, **pace)
        self.published.append((JobKey(row, generation), self.plan(row)))

    def reap(self, now_ns: int) -> list[int]:
        freed, self.dead = self.dead, []
        for row in freed:
            self.release(row)
        return freed + super().reap(now_ns)

    def plan(self, row: int) -> Plan:
        return Plan.of(self.job(row))


@dataclass
class Domain:
    """A table with its daemon under a policy, and a clock that stands still."""

    policy: str
    table: RecordingTable = field(default_factory=RecordingTable)
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.daemon = Daemon(self.table, policies.load(self.policy))

    def tick(self) -> None:
        self.daemon.tick(self.clock.advance(50 * MS))


@pytest.fixture(autouse=True)
def _say_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_tick_beats() -> None:
    domain = Domain("strict")
    domain.tick()
    assert domain.table.header.daemon_heartbeat_ns == domain.clock()


def test_a_plan_is_published_once_and_again_only_when_it_changes() -> None:
    domain = Domain("free")
    row = domain.table.add_job()
    domain.tick()
    domain.tick()
    assert domain.table.published == [(JobKey(row, 1), FREE_PLAN)]
    assert domain.table.plan(row) == FREE_PLAN


def test_the_default_plan_of_a_row_needs_no_publishing_under_strict() -> None:
    domain = Domain("strict")
    row = domain.table.add_job()
    domain.tick()
    assert domain.table.published == []
    assert domain.table.plan(row) == STRICT_PLAN


def test_laxity_takes_over_from_strict_once_there_are_samples() -> None:
    domain = Domain("laxity")
    row = domain.table.add_job(slo_ns=100 * MS)
    domain.table.add_job(priority="low", longest_op_ns=2 * MS)
    domain.tick()
    assert domain.table.plan(row) == STRICT_PLAN
    domain.table.record(row, latency_ns=20 * MS, count=100)
    domain.tick()
    plan = domain.table.plan(row)
    assert 22 * MS < plan.lead_ns < 30 * MS
    assert plan.queue_limit == 1
    assert plan.pace is not None
    assert 2 * MS < plan.pace.margin_ns < 3 * MS


def test_training_gets_no_plan() -> None:
    domain = Domain("free")
    domain.table.add_job(priority="low")
    domain.tick()
    assert domain.table.published == []


def test_withdrawing_puts_services_back_on_the_strict_plan() -> None:
    domain = Domain("free")
    row = domain.table.add_job()
    domain.tick()
    domain.daemon.withdraw()
    assert domain.table.plan(row) == STRICT_PLAN


def test_joining_and_leaving_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("strict")
    row = domain.table.add_job(name="chat", slo_ns=50 * MS, requests_done=7)
    domain.tick()
    domain.tick()
    domain.table.release(row)
    domain.tick()
    domain.tick()
    said = [message for message in caplog.messages if "chat" in message]
    assert said == [
        f"joined: chat (high, cpu, SLO 50 ms, pid {os.getpid()})",
        f"left: chat after at least 7 requests (pid {os.getpid()})",
    ]


def test_a_trainer_leaves_after_steps(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("strict")
    row = domain.table.add_job(name="vgg16", priority="low", train_steps=9)
    domain.tick()
    domain.table.release(row)
    domain.tick()
    assert caplog.messages[-1] == f"left: vgg16 after 9 steps (pid {os.getpid()})"


@pytest.mark.parametrize(
    ("books", "done"),
    [({"gated_ns": 900 * MS, "light_ns": 100 * MS}, " after 1 s of predicted device time"), ({}, "")],
)
def test_a_trainer_whose_steps_nobody_counts_leaves_without_them(
    caplog: pytest.LogCaptureFixture, books: dict[str, int], done: str
) -> None:
    domain = Domain("strict")
    row = domain.table.add_job(name="vgg16", priority="low", **books)
    domain.tick()
    domain.table.release(row)
    domain.tick()
    assert caplog.messages[-1] == f"left: vgg16{done} (pid {os.getpid()})"


def test_the_dead_are_reaped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("strict")
    row = domain.table.add_job(name="vgg16", priority="low")
    domain.tick()
    domain.table.dead = [row]
    domain.tick()
    assert f"reaped: vgg16, its process (pid {os.getpid()}) died" in caplog.messages


def test_a_row_that_was_used_again_is_another_job(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("strict")
    domain.table.release(domain.table.add_job(name="first"))
    row = domain.table.add_job(name="first")
    domain.tick()
    domain.table.release(row)
    assert domain.table.add_job(name="second") == row
    domain.tick()
    assert [message.split(" (")[0] for message in caplog.messages] == [
        "joined: first",
        "left: first after at least 0 requests",
        "joined: second",
    ]


def test_an_infeasible_slo_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("laxity")
    domain.table.add_job(name="chat", slo_ns=10 * MS, alone_ns=20 * MS)
    domain.tick()
    domain.tick()
    said = [message for message in caplog.messages if message.startswith("infeasible")]
    assert len(said) == 1
    assert "chat has an SLO of 10 ms" in said[0]


def test_an_infeasible_slo_of_an_engine_is_said_of_its_tokens(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("strict")
    row = domain.table.add_job(name="llm", slo_ns=1 * MS, ttft_slo_ns=500 * MS, tpot_slo_ns=10 * MS, engine=1)
    domain.table.row(row).alone_ns = 20 * MS
    domain.tick()
    assert "infeasible: llm has an SLO of 10 ms per output token, but it takes longer even alone" in caplog.text
    domain.table.row(row).tpot_slo_ns = 0
    domain.table.row(row).ttft_slo_ns = 9 * MS
    domain.table.row(row).infeasible = 0
    domain.tick()
    assert "llm has an SLO of 9 ms to the first token, but" in caplog.text


def shares_told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message.split(" but ")[0] for message in caplog.messages if message.startswith("share:")]


def test_a_service_whose_requests_outrun_a_hold_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("strict")
    domain.table.publish_limits(max_hold_ns=100 * MS, breather_ns=0, quantum_ns=1)
    row = domain.table.add_job(name="chat")
    domain.tick()
    assert "max_hold" not in caplog.text
    for overdue in (1, 2):
        domain.table.row(row).requests_overdue = overdue
        domain.tick()
    (said,) = [message for message in caplog.messages if message.startswith("overdue: ")]
    assert "chat run longer than limits.max_hold, 100 ms" in said


def test_a_share_that_isolates_nothing_is_told_once_per_job(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("reserve:16")
    domain.table.add_job(name="in-mps", priority="low", sm_total=132, mps=1)
    domain.table.add_job(name="not-yet", priority="low")  # before its first step nobody knows whether it can
    row = domain.table.add_job(name="vgg16", priority="low", sm_total=132)
    for _ in range(3):
        domain.tick()
    assert shares_told(caplog) == ["share: vgg16 is kept to 112 of 132 SMs"]
    domain.table.release(row)
    domain.table.add_job(name="vgg16", priority="low", sm_total=132)
    domain.tick()
    assert len(shares_told(caplog)) == 2  # another job


def unmet_told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message.partition(": ")[2] for message in caplog.messages if message.startswith("policy: ")]


def test_what_a_trainer_cannot_have_of_the_policy_is_told_once_per_job(caplog: pytest.LogCaptureFixture) -> None:
    domain = Domain("reserve:999")
    domain.table.add_job(name="chat")
    row = domain.table.add_job(name="cpu-vgg", priority="low")
    big = domain.table.add_job(name="vgg16", priority="low", device="GPU-0", sm_total=132, mps=1)
    for _ in range(3):
        domain.tick()
    assert [line.split(": ")[0] for line in unmet_told(caplog)] == [
        "reserve:999 has no effect on cpu-vgg",
        "reserve:999 leaves vgg16 too few of 132 SMs",
    ]
    assert domain.table.job(big).sm_count == 8
    domain.table.release(row)
    domain.tick()
    domain.table.add_job(name="cpu-vgg", priority="low")
    domain.tick()
    assert len(unmet_told(caplog)) == 3  # another job


def test_the_highest_floor_of_any_trainer_holds() -> None:
    table = MemoryTable()
    daemon = Daemon(table, policies.load("strict"), limits=Limits(max_hold_ns=3_000 * MS, floor=0.05))
    row = table.claim(name="vgg16", priority="low", device="cpu", floor=0.25)
    daemon.tick(1)
    assert table.header.breather_ns == 1_000 * MS
    table.release(row)
    daemon.tick(2)
    assert table.header.breather_ns < 1_000 * MS


def test_the_floor_becomes_the_pause_after_the_longest_hold() -> None:
    table = MemoryTable()
    quantum_ns = table.header.quantum_ns
    publish_limits(table, Limits(max_hold_ns=3_000 * MS, floor=0.25))
    # 1 s open after 3 s closed is a quarter of the time
    assert (table.header.max_hold_ns, table.header.breather_ns) == (3_000 * MS, 1_000 * MS)
    assert table.header.quantum_ns == quantum_ns


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (STRICT_PLAN, "closes the gate when a request begins"),
        (FREE_PLAN, "never closes the gate"),
        (Plan(LEAD_NEVER, 3), "never closes the gate, or with more than 3 open"),
        (Plan(24 * MS, 1), "closes the gate 24 ms before the deadline, or with more than 1 open"),
        (
            Plan(24 * MS, 1, Pace(2 * MS, 1_100_000, 990_000)),
            "closes the gate 24 ms before the deadline (down to 2 ms as it gets on), or with more than 1 open",
        ),
    ],
)
def test_plans_in_words(plan: Plan, words: str) -> None:
    assert describe(plan) == words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_serving_ends_with_the_signal_and_the_handlers_come_back(number: signal.Signals) -> None:
    """The signal arrives during a tick: that tick is finished, and no further one begins."""
    domain = Domain("strict")
    before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may have it ignored

    def clock() -> int:
        os.kill(os.getpid(), number)
        return domain.clock()

    with stop_signals() as stop:
        serve(domain.daemon, stop, clock)
        assert stop.received is number
        assert stop.wait(3600)  # at once: it was asked before
    assert domain.table.header.daemon_heartbeat_ns == domain.clock()
    assert signal.signal(number, before) is signal.SIG_DFL


def test_under_nohup_a_closed_terminal_is_not_heard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("tick_ns", "rest"),
    [(100_000, 0.05), (4 * MS, 0.2), (1_000 * MS, 0.25)],
    ids=["the usual period", "two percent of a core", "still seen alive"],
)
def test_a_slow_tick_is_followed_by_a_longer_rest(tick_ns: int, rest: float) -> None:
    assert rest_s(tick_ns) == pytest.approx(rest)


def test_without_a_signal_waiting_ends_with_its_time() -> None:
    with stop_signals() as stop:
        assert isinstance(stop, StopSignals)
        assert not stop.wait(0)
