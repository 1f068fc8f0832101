"""The controller: which mode, how many open requests, which plan; and the model and the feedback behind it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herald.errors import ConfigError
from herald.layout import LEAD_NEVER, NO_QUEUE_LIMIT
from herald.scheduler import policies
from herald.scheduler.device_view import ALONE_REQUESTS, HOPELESS, IN_VAIN_NS, TRIED_NS, TRIED_REQUESTS
from herald.scheduler.policies.herald import UNLUCKY, Herald
from herald.scheduler.prediction import RELEASE_NS, infeasible
from herald.scheduler.snapshot import (
    CLOSED,
    FREE_PLAN,
    OPEN,
    STRICT_PLAN,
    Decision,
    Evidence,
    Infeasible,
    JobKey,
    Memory,
    Mode,
    Plan,
    Service,
    Snapshot,
    Trainer,
)
from tests.test_policies import Times

MS = 1_000_000
GPU = "GPU-1"
SERVICE, TRAINER = JobKey(0, 1), JobKey(1, 1)
MEAN_NS = 20 * MS
NEVER = Plan(LEAD_NEVER, NO_QUEUE_LIMIT - 1)
NARROW, HALF = Mode(closed=False, sm_count=116), Mode(closed=False, sm_count=68)


def service(**fields: object) -> Service:
    base = Service(SERVICE, "chat", GPU, 80 * MS, 0.99, Times(), mps=True, alone_ns=21 * MS)
    return replace(base, **fields)


def trainer(**fields: object) -> Trainer:
    return replace(Trainer(TRAINER, "train", GPU, 2 * MS, mps=True, sm_total=132), **fields)


def evidence(inflation: float, beside: float, idle: float = 1.0) -> Evidence:
    return Evidence(2 * TRIED_NS, 2 * TRIED_REQUESTS, {SERVICE: inflation}, {TRAINER: beside}, {TRAINER: idle})


def memory(found: dict[Mode, Evidence], mode: Mode = CLOSED, **fields: object) -> Memory:
    base = Memory(
        evidence={(GPU, m): e for m, e in found.items()},
        mode={GPU: mode},
        leeway={SERVICE: 0.0},
        load={SERVICE: 0.4},
        alone_mean_ns={SERVICE: float(MEAN_NS)},
        alone_high_ns={SERVICE: 21 * MS},
        alone_requests={SERVICE: float(ALONE_REQUESTS)},
    )
    return replace(base, **fields)


def decide(policy: policies.Policy, remembered: Memory, **fields: object) -> Decision:
    return policy.decide(Snapshot((service(**fields),), (trainer(),), remembered), 0)


ALL_TRIED = {OPEN: evidence(1.7, 0.8), NARROW: evidence(1.6, 0.7, 0.88), HALF: evidence(1.3, 0.6, 0.7)}


def test_nothing_is_tried_before_the_service_is_known_alone() -> None:
    young = memory({}, alone_requests={SERVICE: ALONE_REQUESTS - 1.0})
    decision = decide(Herald(), young)
    assert decision.modes == {GPU: CLOSED}
    assert decision.plans == {SERVICE: STRICT_PLAN}


def test_an_untried_mode_is_tried_with_one_open_request_at_least() -> None:
    decision = decide(Herald(), memory({}))
    assert decision.modes == {GPU: OPEN}
    assert decision.plans[SERVICE].queue_limit == 1
    assert decision.plans[SERVICE].pace is not None


def test_shares_are_tried_only_where_there_is_inflation_to_bring_down() -> None:
    assert decide(Herald(), memory({OPEN: evidence(1.7, 0.8)})).modes == {GPU: NARROW}
    assert decide(Herald(), memory({OPEN: evidence(1.05, 0.9)})).modes == {GPU: OPEN}


def test_a_share_is_tried_only_where_its_sms_may_be_worth_more_than_the_best_so_far() -> None:
    good, poor = {OPEN: evidence(1.3, 0.9)}, {OPEN: evidence(1.7, 0.3)}
    assert decide(Herald(), memory(good), slo_ns=160 * MS).modes == {GPU: OPEN}
    assert decide(Herald(), memory(poor)).modes == {GPU: NARROW}
    assert decide(Herald(), memory(poor | {NARROW: evidence(1.2, 0.8)})).modes == {GPU: NARROW}
    assert decide(Herald(), memory(poor | {NARROW: evidence(1.5, 0.3)})).modes == {GPU: HALF}


def test_a_share_is_tried_with_the_requests_that_the_open_mode_may_have() -> None:
    """Which it can only be gentler than."""
    slow = {OPEN: evidence(1.4, 0.6)}
    harsh = evidence(4.0, 0.0, 0.5)
    trial, known = (
        decide(Herald(), memory(slow | others), slo_ns=120 * MS) for others in ({}, {NARROW: harsh, HALF: harsh})
    )
    assert trial.modes == {GPU: NARROW}
    assert known.modes == {GPU: OPEN}
    assert trial.plans[SERVICE].queue_limit == known.plans[SERVICE].queue_limit > 1


def test_a_larger_share_is_not_tried_where_a_small_one_brings_nothing() -> None:
    seen = {OPEN: evidence(1.7, 0.8), NARROW: evidence(1.65, 0.5, 0.7)}
    assert decide(Herald(), memory(seen), slo_ns=160 * MS).modes == {GPU: OPEN}
    no_gentler = {OPEN: evidence(1.23, 0.29, 0.96), NARROW: evidence(1.23, 0.25, 0.78)}
    assert decide(Herald(), memory(no_gentler), slo_ns=72 * MS).modes == {GPU: CLOSED}


def test_a_larger_share_is_tried_where_a_small_one_helped_though_not_enough() -> None:
    """Nothing may be open yet, so that the small one only costs training its SMs."""
    gentler = {OPEN: evidence(2.5, 0.5), NARROW: evidence(1.7, 0.4, 0.88)}
    assert decide(Herald(), memory(gentler), slo_ns=80 * MS).modes == {GPU: HALF}
    known = gentler | {HALF: evidence(1.15, 0.6, 0.75)}
    assert decide(Herald(), memory(known), slo_ns=80 * MS).modes == {GPU: HALF}


def test_a_mode_in_which_no_request_gets_through_counts_as_harsh() -> None:
    in_vain = Evidence(IN_VAIN_NS, 0, {}, {TRAINER: 0.1}, {TRAINER: 1.0})
    decision = decide(Herald(), memory({OPEN: in_vain, NARROW: in_vain, HALF: in_vain}))
    assert decision.modes == {GPU: CLOSED}


def test_the_mode_with_the_most_training_is_chosen() -> None:
    assert decide(Herald(), memory(ALL_TRIED)).modes == {GPU: OPEN}
    costly = ALL_TRIED | {OPEN: evidence(6.0, 0.2), NARROW: evidence(1.1, 0.8, 0.97)}
    decision = decide(Herald(), memory(costly))
    assert decision.modes == {GPU: NARROW}
    assert decision.trainer_plans[TRAINER].sm_count == 116


def test_the_gate_stays_closed_where_open_costs_more_than_it_brings() -> None:
    useless = {OPEN: evidence(2.2, 0.05), NARROW: evidence(2.0, 0.05, 0.8), HALF: evidence(1.9, 0.05, 0.6)}
    assert decide(Herald(), memory(useless)).modes == {GPU: CLOSED}


def test_a_mode_is_kept_unless_another_is_clearly_better() -> None:
    alike = {OPEN: evidence(1.5, 0.80), NARROW: evidence(1.5, 0.81, 1.0), HALF: evidence(1.9, 0.1, 0.5)}
    for present in (OPEN, NARROW):
        assert decide(Herald(), memory(alike, mode=present)).modes == {GPU: present}


def open_requests(decision: Decision) -> int:
    """How many may be open before the gate closes."""
    plan = decision.plans[SERVICE]
    return 0 if plan == STRICT_PLAN else plan.queue_limit


def test_more_slack_allows_a_longer_queue_before_the_gate_closes() -> None:
    limits = [open_requests(decide(Herald(), memory(ALL_TRIED), slo_ns=slo * MS)) for slo in (60, 90, 320)]
    assert limits == sorted(limits)
    assert limits[0] < limits[1] < limits[2] == NO_QUEUE_LIMIT


def test_a_higher_load_allows_a_shorter_queue() -> None:
    loads = [memory(ALL_TRIED, load={SERVICE: load}) for load in (0.1, 0.4, 0.8)]
    limits = [open_requests(decide(Herald(), remembered, slo_ns=110 * MS)) for remembered in loads]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] > limits[2]


def test_without_slack_the_gate_closes_when_a_request_begins() -> None:
    assert decide(Herald(), memory(ALL_TRIED), slo_ns=30 * MS).plans == {SERVICE: STRICT_PLAN}
    assert decide(Herald(), memory(ALL_TRIED), slo_ns=None).plans == {SERVICE: STRICT_PLAN}


def test_misses_shorten_the_queue_and_stop_what_is_new() -> None:
    before = decide(Herald(), memory(ALL_TRIED), slo_ns=110 * MS)
    after = decide(Herald(), memory(ALL_TRIED, leeway={SERVICE: -1.0}), slo_ns=110 * MS)
    assert open_requests(after) < open_requests(before)
    unlucky = memory({OPEN: evidence(1.7, 0.8)}, mode=OPEN, leeway={SERVICE: UNLUCKY - 0.5})
    assert decide(Herald(), unlucky).modes[GPU] in (OPEN, CLOSED)
    assert decide(Herald(feedback=False), unlucky).modes[GPU] == NARROW


def test_requests_of_other_services_are_load_too() -> None:
    other = replace(service(), key=JobKey(2, 1), name="second")
    both = (SERVICE, other.key)
    seen = replace(evidence(1.7, 0.8), inflation=dict.fromkeys(both, 1.7))

    def limit(load: float) -> int:
        remembered = Memory(
            evidence={(GPU, OPEN): seen},
            mode={GPU: OPEN},
            load={SERVICE: 0.2, other.key: load},
            alone_mean_ns=dict.fromkeys(both, float(MEAN_NS)),
            alone_high_ns=dict.fromkeys(both, 21 * MS),
            alone_requests=dict.fromkeys(both, float(ALONE_REQUESTS)),
        )
        snapshot = Snapshot((service(slo_ns=110 * MS), replace(other, slo_ns=110 * MS)), (trainer(),), remembered)
        return Herald(space=False).decide(snapshot, 0).plans[SERVICE].queue_limit

    assert limit(0.0) > limit(0.3)


def test_luck_is_a_matter_of_the_service_and_not_of_the_mode_in_use() -> None:
    unlucky = memory({OPEN: evidence(1.7, 0.8)}, mode=CLOSED, leeway={SERVICE: UNLUCKY - 0.5})
    assert decide(Herald(), unlucky).modes[GPU] in (OPEN, CLOSED)


def test_what_missed_often_was_tried_enough_and_few_requests_say_nothing_of_inflation() -> None:
    lucky_one = Evidence(TRIED_NS // 10, 1, {SERVICE: 0.9}, {TRAINER: 0.9}, {TRAINER: 1.0}, missed=HOPELESS)
    decision = decide(Herald(space=False), memory({OPEN: lucky_one}, leeway={SERVICE: -5.0}), slo_ns=60 * MS)
    assert decision.plans == {SERVICE: STRICT_PLAN}


def test_no_share_is_tried_for_a_service_that_promises_nothing() -> None:
    short = memory({}, alone_mean_ns={SERVICE: 5.0 * MS}, alone_high_ns={SERVICE: 6 * MS})
    jobs = Snapshot((service(slo_ns=None),), (trainer(longest_stretch_ns=6 * MS),), short)
    assert Herald().decide(jobs, 0).modes == {GPU: CLOSED}


def test_without_time_as_a_means_the_gate_is_never_closed() -> None:
    for slo_ms in (24, 60, 200):
        assert decide(policies.load("herald:no-time"), memory({}), slo_ns=slo_ms * MS).plans == {SERVICE: NEVER}


def test_without_mps_what_still_runs_has_the_device_to_itself() -> None:
    kept = memory({OPEN: evidence(1.25, 0.8)}, mode=OPEN)
    plan = decide(Herald(space=False), kept, mps=False).plans[SERVICE]
    assert plan.pace is not None
    assert plan.pace.margin_ns == pytest.approx(2 * MS + RELEASE_NS, abs=0.1 * MS)


def test_shares_need_mps_and_trainers_that_can_be_kept_to_them() -> None:
    seen = memory({OPEN: evidence(1.7, 0.8)})
    assert decide(Herald(), seen, mps=False).modes == {GPU: OPEN}
    cannot = Snapshot((service(),), (trainer(sm_total=0),), seen)
    assert Herald().decide(cannot, 0).modes == {GPU: OPEN}


def test_ablations_leave_out_what_they_name() -> None:
    assert decide(policies.load("herald:no-space"), memory({OPEN: evidence(1.7, 0.8)})).modes == {GPU: OPEN}
    assert decide(policies.load("herald:no-time"), memory(ALL_TRIED)).plans == {SERVICE: NEVER}
    assert decide(policies.load("herald:no-laxity"), memory(ALL_TRIED)).plans == {SERVICE: STRICT_PLAN}
    with pytest.raises(ConfigError, match="no-spice.*did you mean 'no-space'"):
        policies.load("herald:no-spice")


def noted(**fields: object) -> tuple[Infeasible, ...]:
    return infeasible(Snapshot((service(**fields),), (trainer(),), memory({})))


def test_an_infeasible_slo_is_told_with_its_reason() -> None:
    reasons = {
        10 * MS: "alone",
        22 * MS: "residual",
    }
    for slo_ns, reason in reasons.items():
        assert [note.reason for note in noted(slo_ns=slo_ns)] == [reason]
    overloaded = noted(met=150, missed=50, missed_anyway=40)
    assert [note.reason for note in overloaded] == ["load"]
    assert not noted(met=199, missed=1, missed_anyway=1)


def test_however_long_requests_take_beside_training_the_gate_stays_open_where_training_gains_and_none_is_late() -> None:
    for inflation, beside, load in ((4.2, 0.95, 0.2), (5.0, 0.95, 0.05)):
        known = memory({OPEN: evidence(inflation, beside)}, mode=OPEN, load={SERVICE: load})
        assert decide(Herald(space=False), known, slo_ns=400 * MS).modes == {GPU: OPEN}
    hardly_any = memory({OPEN: evidence(4.2, 0.1)}, mode=OPEN, load={SERVICE: 0.2})
    assert decide(Herald(space=False), hardly_any, slo_ns=400 * MS).modes == {GPU: CLOSED}


def test_long_ops_leave_a_share_of_sms_to_be_tried_where_closing_protects_little() -> None:
    """A closed gate holds neither SLO, since what still runs takes longer than a request; a share does."""
    short = memory({OPEN: evidence(3.0, 0.8)}, alone_mean_ns={SERVICE: 5.0 * MS}, alone_high_ns={SERVICE: 6 * MS})
    long_ops = Snapshot((service(slo_ns=11 * MS),), (trainer(longest_stretch_ns=6 * MS),), short)
    assert Herald().decide(long_ops, 0).modes == {GPU: NARROW}
    idle = replace(short, load={SERVICE: 0.02})  # so that a closed gate leaves more to training than a share could
    assert Herald().decide(replace(long_ops, memory=idle), 0).modes == {GPU: NARROW}
    easy = replace(short, evidence={(GPU, OPEN): evidence(1.2, 0.95)}, load={SERVICE: 0.2})
    assert Herald().decide(replace(long_ops, services=(service(slo_ns=400 * MS),), memory=easy), 0).modes == {GPU: OPEN}
    with_share = replace(short, evidence={**short.evidence, (GPU, NARROW): evidence(0.6, 0.75, 0.8)})
    decision = Herald().decide(replace(long_ops, memory=with_share), 0)
    assert decision.modes == {GPU: NARROW}
    assert decision.plans == {SERVICE: FREE_PLAN}


def test_a_closed_gate_that_misses_the_target_gives_way_to_a_share_that_holds_it() -> None:
    """Though training has more of the closed one."""
    known = {OPEN: evidence(3.0, 0.1), NARROW: evidence(0.6, 0.65, 0.65)}
    times = memory(known, alone_mean_ns={SERVICE: 5.0 * MS}, alone_high_ns={SERVICE: 6 * MS}, load={SERVICE: 0.3})
    for slo_ms, mode in ((11, NARROW), (30, CLOSED)):
        snapshot = Snapshot((service(slo_ns=slo_ms * MS),), (trainer(longest_stretch_ns=6 * MS),), times)
        assert Herald().decide(snapshot, 0).modes == {GPU: mode}


@pytest.mark.parametrize(("inflation", "margin_ms"), [(1.0, 0.0), (1.25, 0.8), (2.0, 2.0)])
def test_the_gate_closes_as_early_as_what_still_runs_then_harms(inflation: float, margin_ms: float) -> None:
    plan = decide(Herald(space=False), memory({OPEN: evidence(inflation, 0.8)}, mode=OPEN)).plans[SERVICE]
    if inflation == 1.0:
        assert plan == FREE_PLAN
    else:
        assert plan.pace is not None
        assert plan.pace.margin_ns == pytest.approx(margin_ms * MS + RELEASE_NS, abs=0.1 * MS)


def test_what_is_known_of_a_mode_in_use_is_enough_where_nothing_may_be_tried() -> None:
    """Else it would be left as untried and, once left, chosen as known, tick by tick."""
    barely = replace(evidence(1.2, 0.9), time_ns=round(1.1 * TRIED_NS), beside_requests=1.1 * TRIED_REQUESTS)
    for slo_ms in range(50, 100, 2):
        chosen = {
            decide(Herald(), memory({OPEN: barely}, mode=mode), slo_ns=slo_ms * MS, mps=False).modes[GPU]
            for mode in (OPEN, CLOSED)
        }
        assert len(chosen) == 1


@given(
    load=st.floats(0.05, 0.9),
    slo_ms=st.integers(40, 240),
    open_=st.builds(evidence, st.floats(1.0, 3.0), st.floats(0.1, 1.0)),
    share=st.builds(evidence, st.floats(1.0, 2.0), st.floats(0.3, 1.0), st.floats(0.5, 1.0)),
    enough=st.sampled_from([0.9, 1.1, 1.5]),
)
@settings(max_examples=100, deadline=None)
def test_a_mode_that_is_chosen_is_chosen_again(
    load: float, slo_ms: int, open_: Evidence, share: Evidence, enough: float
) -> None:
    """Whatever else is known: else modes would change tick by tick, and none would be learnt of."""
    share = replace(share, time_ns=round(enough * TRIED_NS), beside_requests=enough * TRIED_REQUESTS)
    known = {OPEN: open_, NARROW: share}
    for mode in (CLOSED, OPEN, NARROW, HALF):
        chosen = decide(Herald(), memory(known, mode=mode, load={SERVICE: load}), slo_ns=slo_ms * MS).modes[GPU]
        again = decide(Herald(), memory(known, mode=chosen, load={SERVICE: load}), slo_ns=slo_ms * MS).modes[GPU]
        assert again == chosen


def test_a_trial_is_not_left_for_another() -> None:
    """As where what is known of one mode is forgotten while the other is being tried."""
    short = replace(evidence(1.2, 0.9), beside_requests=0.9 * TRIED_REQUESTS)
    enough = replace(evidence(0.9, 0.99), time_ns=round(1.1 * TRIED_NS), beside_requests=1.1 * TRIED_REQUESTS)
    known = memory({OPEN: evidence(1.7, 0.3), NARROW: short, HALF: enough}, mode=HALF)
    assert decide(Herald(), known).modes == {GPU: HALF}


def test_a_trial_keeps_the_rule_of_slack() -> None:
    """Though the open mode may do without, nobody knows yet whether this one can."""
    known = {OPEN: evidence(1.3, 0.3)}
    decision = decide(Herald(), memory(known), slo_ns=400 * MS)
    assert decision.modes == {GPU: NARROW}
    assert decision.plans[SERVICE].queue_limit == NO_QUEUE_LIMIT
    assert decision.plans[SERVICE] != FREE_PLAN


def test_nothing_is_tried_where_the_slo_leaves_no_slack() -> None:
    decision = decide(Herald(), memory({}), slo_ns=69 * MS)
    assert decision.modes == {GPU: CLOSED}
    assert decision.plans == {SERVICE: STRICT_PLAN}


def test_where_a_closed_gate_does_not_hold_the_slo_either_there_is_nothing_to_lose_by_a_trial() -> None:
    """But for a queue where contexts take turns."""
    assert decide(Herald(), memory({}), slo_ns=55 * MS).modes == {GPU: OPEN}
    assert decide(Herald(), memory({}), slo_ns=55 * MS, mps=False).modes == {GPU: CLOSED}
    unlucky = memory({}, leeway={SERVICE: -2.0})
    assert decide(Herald(), unlucky, slo_ns=55 * MS).modes == {GPU: CLOSED}
