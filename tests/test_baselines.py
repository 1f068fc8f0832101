"""Sibling policies: the rules of other systems, each as one pure function of a snapshot."""

from dataclasses import replace
from typing import Any

import pytest

from herald.errors import ConfigError
from herald.fakes import memory_table
from herald.layout import LEAD_ALWAYS
from herald.scheduler import policies
from herald.scheduler.daemon import Daemon
from herald.scheduler.policies.orion import Orion
from herald.scheduler.policies.reserve import Reserve
from herald.scheduler.policies.tgs import Tgs
from herald.scheduler.policies.timeslice import Timeslice
from herald.scheduler.recent import Windows
from herald.scheduler.snapshot import (
    FREE_PLAN,
    STRICT_PLAN,
    JobKey,
    Memory,
    Plan,
    Recent,
    Service,
    Snapshot,
    Trainer,
    TrainerPlan,
)

MS = 1_000_000
CHAT, VGG = JobKey(0, 1), JobKey(1, 1)


class NoTimes:
    """Nothing recorded."""

    count = 0

    def quantile(self, q: float, /) -> int | None:
        return None


def snapshot(memory: Memory | None = None, **trainer: object) -> Snapshot:
    """A service and a trainer on one GPU."""
    service = Service(CHAT, "chat", "GPU-1", 50 * MS, 0.99, NoTimes())
    training = replace(Trainer(VGG, "vgg16", "GPU-1", 2 * MS, sm_total=132), **trainer)
    return Snapshot((service,), (training,), memory or Memory())


# timeslice ------------------------------------------------------------------------------------------------------------


def test_timeslice_takes_turns_of_5_ms_unless_told_otherwise() -> None:
    assert policies.load("timeslice") == Timeslice(5 * MS)
    assert policies.load("timeslice:250us") == Timeslice(250_000)
    plans = policies.load("timeslice:2ms").decide(snapshot(), 0).plans
    assert plans == {CHAT: Plan(LEAD_ALWAYS, slice_ns=2 * MS)}


@pytest.mark.parametrize(("text", "said"), [("5", "no unit"), ("10us", "from 100us to 1s"), ("2s", "from 100us to 1s")])
def test_a_bad_turn_says_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy = 'timeslice:{text}': .*{said}"):
        policies.load(f"timeslice:{text}")


# reserve --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_sms", "share"), [(32, 96), (30, 96), (4, 128), (125, 8), (500, 8)])
def test_reserve_keeps_trainers_to_what_is_left_in_eights(num_sms: int, share: int) -> None:
    decision = Reserve(num_sms).decide(snapshot(), 0)
    assert decision.plans == {CHAT: FREE_PLAN}
    assert decision.trainer_plans == {VGG: TrainerPlan(sm_count=share)}


def test_reserve_does_not_limit_a_trainer_that_cannot_keep_to_a_share() -> None:
    assert Reserve(32).decide(snapshot(sm_total=0), 0).trainer_plans == {}


@pytest.mark.parametrize(
    ("num_sms", "trainer", "said"),
    [
        (124, {}, None),
        (125, {}, "reserve:125 leaves vgg16 too few of 132 SMs: it is kept to 8, the least share; reserve 124 at most"),
        (16, {"sm_total": 0, "work_ns": 1_000 * MS}, None),  # it may not have ended a step yet
        (16, {"sm_total": 0, "device": "cpu"}, "reserve:16 has no effect on vgg16: a CPU has no SMs"),
    ],
)
def test_reserve_says_where_fewer_sms_are_free_than_it_is_to_keep(
    num_sms: int, trainer: dict[str, Any], said: str | None
) -> None:
    unmet = Reserve(num_sms).decide(snapshot(**trainer), 0).unmet
    assert [said in words for words in unmet.values()] == [True] if said else unmet == {}


@pytest.mark.parametrize("text", ["reserve", "reserve:", "reserve:0", "reserve:-8", "reserve:half"])
def test_reserve_wants_a_number_of_sms(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy = '{text}': say how many SMs .*'reserve:32'"):
        policies.load(text)


# tgs ------------------------------------------------------------------------------------------------------------------


KNOWN = Memory(alone_mean_ns={CHAT: 20.0 * MS}, alone_requests={CHAT: 20})


def news(mean_ms: float, done: int = 10) -> Memory:
    """A window in which requests took so long; alone they take 20 ms."""
    recent = Recent(1_000 * MS, done, 0, round(done * mean_ms * MS))
    return replace(KNOWN, recent={CHAT: recent})


def rate_after(memory: Memory, rate_ppm: int) -> int:
    return Tgs().decide(snapshot(memory, rate_ppm=rate_ppm), 0).trainer_plans[VGG].rate_ppm


def test_tgs_leaves_requests_alone_until_it_knows_what_they_take_alone() -> None:
    few = replace(KNOWN, alone_requests={CHAT: 19})
    assert Tgs().decide(snapshot(few), 0).plans == {CHAT: STRICT_PLAN}


def test_tgs_starts_low_and_leaves_gates_open() -> None:
    decision = Tgs().decide(snapshot(KNOWN), 0)
    assert decision.plans == {CHAT: FREE_PLAN}
    assert decision.trainer_plans == {VGG: TrainerPlan(rate_ppm=100_000)}


def test_tgs_raises_by_a_step_and_cuts_in_half() -> None:
    assert rate_after(news(20.5), 300_000) == 350_000
    assert rate_after(news(23), 300_000) == 150_000


def test_tgs_acts_once_on_what_it_is_told() -> None:
    assert rate_after(KNOWN, 300_000) == 300_000


def test_tgs_rises_beside_an_idle_service_and_stays_between_its_bounds() -> None:
    assert rate_after(news(0, done=0), 980_000) == 1_000_000
    assert rate_after(news(90), 30_000) == 20_000


# orion ----------------------------------------------------------------------------------------------------------------


def test_orion_bounds_outstanding_training_by_the_shortest_request_beside_it() -> None:
    decision = Orion().decide(snapshot(Memory(alone_mean_ns={CHAT: 20.0 * MS})), 0)
    assert decision.plans == {CHAT: STRICT_PLAN}
    assert decision.trainer_plans == {VGG: TrainerPlan(ahead_ns=500_000)}


def test_orion_leaves_a_trainer_alone_until_a_request_has_run_alone() -> None:
    assert Orion().decide(snapshot(), 0).trainer_plans == {VGG: TrainerPlan()}
    elsewhere = Memory(alone_mean_ns={CHAT: 20.0 * MS})
    assert Orion().decide(snapshot(elsewhere, device="GPU-2"), 0).trainer_plans == {VGG: TrainerPlan()}


# What happened lately -------------------------------------------------------------------------------------------------


def told(**counts: int) -> Service:
    return replace(snapshot().services[0], **counts)


def test_a_window_is_told_once_when_it_ends() -> None:
    windows = Windows(1_000 * MS)
    assert not windows.look([told()], 0)
    assert not windows.look([told(requests_done=4, busy_ns=90 * MS)], 999 * MS)
    seen = windows.look([told(requests_done=5, missed=1, busy_ns=100 * MS)], 1_000 * MS)
    assert seen == {CHAT: Recent(1_000 * MS, done=5, missed=1, busy_ns=100 * MS)}
    assert not windows.look([told(requests_done=6)], 1_050 * MS)
    assert windows.look([told(requests_done=9)], 2_100 * MS)[CHAT].done == 4


def test_nothing_is_told_of_a_service_that_came_within_the_window() -> None:
    windows = Windows(1_000 * MS)
    windows.look([], 0)
    assert not windows.look([told(requests_done=5)], 1_000 * MS)


@pytest.mark.parametrize(("policy", "limits"), [("reserve:32", (96, 0, 0)), ("tgs", (0, 100_000, 0))])
def test_the_daemon_publishes_what_a_policy_allows_a_trainer(policy: str, limits: tuple[int, int, int]) -> None:
    table = memory_table()
    table.add_job(name="chat")
    row = table.add_job(name="vgg16", priority="low", sm_total=132)
    Daemon(table, policies.load(policy)).tick(MS)
    vgg = table.job(row)
    assert (vgg.sm_count, vgg.rate_ppm, vgg.ahead_ns) == limits
