"""The simulator: its parts by themselves, and one GPU."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from herald.config import Limits
from herald.errors import ConfigError
from herald.layout import LEAD_ALWAYS, NO_DEADLINE
from herald.scheduler.simulator.closing import NEVER_NS, Work, close_at_ns, wish
from herald.scheduler.simulator.gate import Gate
from herald.scheduler.simulator.gpu import simulate
from herald.scheduler.simulator.interference import Beside, Interference
from herald.scheduler.simulator.jobs import GpuModel, ServiceModel
from herald.scheduler.simulator.rates import Running, rates
from herald.scheduler.snapshot import FREE_PLAN, STRICT_PLAN, Decision, Pace, Plan, Snapshot
from tests.simulated import GAIN, MS, ROOMY, SECOND, VGG, Fixed, chat, poisson, run

# The closing rule -----------------------------------------------------------------------------------------------------


def wished(plan: Plan, now_ns: int = 0, remaining_ns: tuple[int, ...] | None = None, num: int = 1) -> tuple[bool, int]:
    """Of requests that are all due at 100 ms."""
    queue = [Work(ROOMY, left_ns) for left_ns in remaining_ns or (None,) * num]
    found = wish(plan, queue, now_ns, busy_since_ns=0)
    return found.closed, found.again_ns


def test_strict_closes_at_once_and_free_never() -> None:
    assert wished(STRICT_PLAN) == (True, NEVER_NS)
    assert wished(FREE_PLAN, 10 * SECOND) == (False, NEVER_NS)


def test_nobody_wants_anything_without_requests() -> None:
    assert wished(STRICT_PLAN, num=0) == (False, NEVER_NS)


def test_a_lead_closes_that_long_before_the_deadline() -> None:
    assert wished(Plan(30 * MS), 69 * MS) == (False, 70 * MS)
    assert wished(Plan(30 * MS), 70 * MS)[0]


def test_a_second_request_closes_where_one_may_be_open() -> None:
    assert not wished(Plan(30 * MS, queue_limit=1), num=1)[0]
    assert wished(Plan(30 * MS, queue_limit=1), num=2)[0]
    assert wished(FREE_PLAN._replace(queue_limit=1), num=2)[0]


def test_turns_begin_closed_and_nothing_else_counts() -> None:
    turns = Plan(LEAD_ALWAYS, slice_ns=5 * MS)
    assert wished(turns, 0) == (True, 5 * MS)
    assert wished(turns, 7 * MS) == (False, 10 * MS)
    assert wished(turns, 10 * MS) == (True, 15 * MS)


def test_demand_counts_the_work_of_those_ahead() -> None:
    paced = Plan(30 * MS, pace=Pace(2 * MS, 1_500_000, 990_000))
    # 2 ms + 1.5 x (10 ms of the first and 20 ms of its own) before 100 ms
    assert wished(paced, remaining_ns=(10 * MS, 20 * MS)) == (False, 53 * MS)
    assert wished(paced, remaining_ns=(10 * MS,)) == (False, 83 * MS)


def test_demand_counts_what_others_must_have_done_before_and_not_what_is_done() -> None:
    paced = Plan(30 * MS, pace=Pace(2 * MS, 1_000_000, 990_000))
    queue = [Work(ROOMY, 10 * MS, spent_ns=4 * MS), Work(ROOMY, 10 * MS, others_ns=5 * MS)]
    assert wish(paced, queue, 0, busy_since_ns=0).again_ns == (100 - 2 - 6 - 5 - 10) * MS
    assert wish(paced, queue[:1], 0, busy_since_ns=0).again_ns == (100 - 2 - 10) * MS


def test_what_is_not_known_takes_as_long_as_the_lead_of_the_plan_says() -> None:
    paced = Plan(30 * MS, pace=Pace(2 * MS, 1_400_000, 990_000))
    closed, again_ns = wished(paced)
    assert not closed
    assert again_ns == pytest.approx(70 * MS, abs=10)
    assert wished(paced, num=2)[1] == pytest.approx(42 * MS, abs=10)


def test_a_request_that_ran_out_of_slack_is_told_where_it_stands_in_the_queue() -> None:
    queue = [Work(ROOMY), Work(50 * MS), Work(ROOMY)]
    assert wish(Plan(30 * MS), queue, 20 * MS, busy_since_ns=0).urgent == 2


def test_requests_without_a_deadline_never_run_out_of_slack() -> None:
    assert wish(Plan(30 * MS), [Work(NO_DEADLINE)], 0, busy_since_ns=0).again_ns == NEVER_NS
    assert close_at_ns([], [], 0, 1_000_000) == NEVER_NS


# The gate -------------------------------------------------------------------------------------------------------------


def test_a_gate_is_open_when_nobody_holds_it() -> None:
    gate = Gate(10 * SECOND, SECOND)
    gate.close(0, 0)
    gate.close(3, MS)
    gate.open(0, 2 * MS)
    assert not gate.is_open
    gate.open(3, 3 * MS)
    assert gate.is_open


def test_a_gate_that_is_held_too_long_is_opened_for_a_breather() -> None:
    gate = Gate(10 * SECOND, SECOND)
    gate.close(0, SECOND)
    assert gate.overdue_ns == 11 * SECOND + 1
    gate.force_open(gate.overdue_ns)
    assert gate.is_open
    assert not gate.may_close(12 * SECOND)
    assert gate.may_close(12 * SECOND + 1)


def test_an_instant_between_two_holds_does_not_start_the_count_anew() -> None:
    gate = Gate(10 * SECOND, SECOND)
    gate.close(0, 0)
    gate.open(0, 6 * SECOND)
    gate.close(0, 6 * SECOND + 100 * MS)  # a tenth of a breather pays for 1 s of 6
    assert gate.overdue_ns == 6 * SECOND + 100 * MS - 5 * SECOND + 10 * SECOND + 1


# Speeds ---------------------------------------------------------------------------------------------------------------


def test_jobs_that_were_not_measured_take_turns() -> None:
    service = chat(())
    assert rates(Interference(), [service], [Running(VGG)]).services == (0.5,)
    both = rates(Interference(), [service, service], [Running(VGG), Running(VGG)])
    assert both.services == pytest.approx((0.25, 0.25))
    assert both.trainers == pytest.approx((0.25, 0.25))
    assert rates(Interference(), [], [Running(VGG, sm_count=33)]).trainers == (0.25,)


def test_measured_pairs_run_as_measured() -> None:
    found = rates(GAIN, [chat(())], [Running(VGG)])
    assert found.services == pytest.approx((1 / 1.3,))
    assert found.trainers == pytest.approx((0.6,))


def test_a_trainer_at_half_its_rate_does_half_the_harm() -> None:
    found = rates(GAIN, [chat(())], [Running(VGG, rate_ppm=300_000)])
    assert found.services == pytest.approx((1 / 1.15,))
    assert found.trainers == (0.3,)


def test_between_measured_shares_lies_a_straight_line() -> None:
    model = Interference({("chat", "vgg"): {0: Beside(2, 0.8), 32: Beside(1, 0.2)}}, {"vgg": {0: 1.0, 32: 0.3}})
    assert model.of("chat", "vgg", 82, 132, 1.0) == Beside(1.5, 0.5)
    assert model.of("chat", "vgg", 8, 132, 1.0) == Beside(1, 0.2)
    assert model.idle_rate("vgg", 82, 132) == pytest.approx(0.65)


def test_a_launch_bound_trainer_does_in_its_device_time_what_it_does_alone() -> None:
    idle = replace(VGG, duty=0.4)
    outcome = run(GpuModel((), (idle,)), FREE_PLAN, seconds=2)
    assert outcome.trainers[0].relative == pytest.approx(1)
    assert outcome.trainers[0].work_ns == pytest.approx(0.8e9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: chat((), alone_ms=0),
        lambda: ServiceModel("chat", (0.1, 0.2), (MS,), in_order=True),
        lambda: replace(VGG, duty=1.5),
        lambda: replace(VGG, step_ns=0),
        lambda: Beside(0.5, 1),
    ],
)
def test_impossible_jobs_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


# One GPU --------------------------------------------------------------------------------------------------------------


def test_a_service_alone_takes_its_requests_one_by_one() -> None:
    outcome = run(GpuModel((chat((0.1, 0.11, 0.5)),), ()), STRICT_PLAN, seconds=1)
    (service,) = outcome.services
    assert service.latencies_ns == (20 * MS, 30 * MS, 20 * MS)
    assert service.service_ns == (20 * MS,) * 3
    assert service.alone_latencies_ns == service.latencies_ns


def test_beside_an_open_gate_both_go_at_half_their_speed() -> None:
    outcome = run(GpuModel((chat((0.1,)),), (VGG,)), FREE_PLAN, seconds=1)
    assert outcome.services[0].latencies_ns == (40 * MS,)
    assert outcome.trainers[0].relative == pytest.approx(0.98)


def test_a_close_takes_effect_after_what_runs_on() -> None:
    arrivals_s = tuple(0.01 + 0.05 * i for i in range(400))
    outcome = run(GpuModel((chat(arrivals_s),), (VGG,)), STRICT_PLAN, seconds=20)
    added_ns = [latency - 20 * MS for latency in outcome.services[0].latencies_ns]
    assert min(added_ns) >= 0
    assert max(added_ns) <= VGG.longest_stretch_ns / 2 + 1  # meanwhile both go at half their speed
    assert sum(added_ns) / len(added_ns) == pytest.approx(VGG.longest_stretch_ns / 4, rel=0.15)


def test_turns_share_evenly() -> None:
    outcome = run(GpuModel((chat((0.1,), alone_ms=100),), (VGG,)), Plan(LEAD_ALWAYS, slice_ns=5 * MS), seconds=1)
    # 5 ms closed and 5 ms open at half the speed: 3/4 of the speed alone, and a little less for what runs on
    assert outcome.services[0].latencies_ns[0] == pytest.approx(133 * MS, rel=0.15)


def test_a_share_of_sms_holds_from_the_next_step_on() -> None:
    outcome = run(GpuModel((), (VGG,)), FREE_PLAN, seconds=2, sm_count=66)
    # one step with all SMs, the rest with half of them
    assert outcome.trainers[0].work_ns == pytest.approx(26 * MS + (2 * SECOND - 26 * MS) / 2, rel=1e-6)


def test_a_rate_holds_from_the_first_tick_on() -> None:
    assert run(GpuModel((), (VGG,)), FREE_PLAN, seconds=2, rate_ppm=250_000).training == pytest.approx(0.25)


def test_a_service_that_never_rests_leaves_training_its_floor() -> None:
    limits = Limits(max_hold_ns=SECOND, floor=0.2)
    outcome = run(GpuModel((chat(poisson(100, 20)),), (VGG,)), STRICT_PLAN, seconds=20, limits=limits)
    assert outcome.forced > 5
    assert outcome.training >= 0.2 / 2 * 0.9  # open for a fifth of the time, at half the speed


def seen_of(gpu: GpuModel, seconds: float) -> list[Snapshot]:
    """What a policy is shown of a run under strict."""
    seen: list[Snapshot] = []

    @dataclass(frozen=True)
    class Seeing:
        def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:
            seen.append(snapshot)
            return Fixed(STRICT_PLAN).decide(snapshot, now_ns)

    simulate(gpu, Seeing(), seconds=seconds, tick_ns=SECOND)
    return seen


def test_rows_say_what_real_jobs_rows_would() -> None:
    periodic = tuple(0.05 + 0.1 * i for i in range(60))
    last = seen_of(GpuModel((chat(periodic, slo_ns=10 * MS),), (replace(VGG, longest_stretch_ns=0),)), 6.1)[-1]
    (service,), (trainer,) = last.services, last.trainers
    assert (service.work_begun, service.requests_done) == (60, 60)
    assert (service.met, service.missed, service.missed_anyway) == (0, 60, 60)
    assert (service.solo_requests, service.solo_ns) == (60, 60 * 20 * MS)
    assert (service.busy_ns, service.busy_open_ns, service.alone_ns) == (60 * 20 * MS, 0, 20 * MS)
    assert service.service_times.count == 60
    assert (trainer.longest_stretch_ns, trainer.sm_total) == (0, 132)
    assert trainer.work_ns == pytest.approx(0.8 * 6 * SECOND, rel=1e-6)
