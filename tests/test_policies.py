"""Policies: pure functions from a snapshot to one plan per service."""

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herald import native
from herald.errors import ConfigError
from herald.fakes import memory_table
from herald.scheduler import policies
from herald.scheduler.policies.laxity import Laxity
from herald.scheduler.prediction import DEFAULT_STRETCH_NS, MIN_SAMPLES, RELEASE_NS, infeasible, residual_ns
from herald.scheduler.snapshot import (
    FREE_PLAN,
    STRICT_PLAN,
    JobKey,
    Pace,
    Plan,
    Service,
    Snapshot,
    Trainer,
)

MS = 1_000_000


@dataclass(frozen=True)
class Times:
    """Service times as a sorted list."""

    values_ns: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.values_ns)

    def quantile(self, q: float, /) -> int | None:
        if not self.values_ns:
            return None
        return sorted(self.values_ns)[max(0, math.ceil(q * self.count) - 1)]


def service(row: int = 0, **fields: object) -> Service:
    base = Service(JobKey(row, 1), f"service{row}", "cpu", 50 * MS, 0.99, Times((20 * MS,) * MIN_SAMPLES))
    return replace(base, **fields)


def trainer(row: int = 9, **fields: object) -> Trainer:
    return replace(Trainer(JobKey(row, 1), "trainer", "cpu", 2 * MS), **fields)


def durations_ns() -> st.SearchStrategy[int]:
    return st.integers(1_000, 10_000 * MS)


services = st.builds(
    service,
    device=st.sampled_from(["cpu", "GPU-1"]),
    slo_ns=st.none() | durations_ns(),
    target=st.floats(0.5, 0.999),
    service_times=st.builds(Times, st.lists(durations_ns(), max_size=40).map(tuple)),
    alone_ns=st.none() | durations_ns(),
)
trainers = st.builds(trainer, device=st.sampled_from(["cpu", "GPU-1"]), longest_stretch_ns=st.just(0) | durations_ns())


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    high = [replace(s, key=JobKey(row, 1)) for row, s in enumerate(draw(st.lists(services, max_size=4)))]
    return Snapshot(tuple(high), tuple(draw(st.lists(trainers, max_size=3))))


def texts() -> list[str]:
    """Every policy, with an argument where it needs one."""
    return ["reserve:32" if name == "reserve" else name for name in policies.names()]


@pytest.mark.parametrize("text", texts())
@given(snapshot=snapshots(), now_ns=st.integers(0, 2**62))
def test_every_policy_is_pure_and_plans_for_exactly_the_services(text: str, snapshot: Snapshot, now_ns: int) -> None:
    policy = policies.load(text)
    decision = policy.decide(snapshot, now_ns)
    assert decision.plans.keys() == {s.key for s in snapshot.services}
    assert decision.trainer_plans.keys() <= {t.key for t in snapshot.trainers}
    assert decision == policy.decide(snapshot, now_ns)


@given(snapshot=snapshots())
def test_a_laxity_lead_covers_residual_release_and_predicted_service_time(snapshot: Snapshot) -> None:
    policy = Laxity()
    for s, plan in ((s, policy.decide(snapshot, 0).plans[s.key]) for s in snapshot.services):
        predicted_ns = s.service_times.quantile(policy.quantile)
        if s.slo_ns is None or predicted_ns is None or s.service_times.count < MIN_SAMPLES:
            assert plan == STRICT_PLAN
        else:
            needed_ns = residual_ns(snapshot, s.device) + RELEASE_NS + predicted_ns
            assert needed_ns <= plan.lead_ns < STRICT_PLAN.lead_ns
            assert plan.queue_limit == 1
            assert plan.pace is not None
            assert residual_ns(snapshot, s.device) + RELEASE_NS <= plan.pace.margin_ns
            assert plan.pace.lead_ns(predicted_ns) >= needed_ns


@given(
    pace=st.builds(Pace, durations_ns(), st.integers(1, 3_000_000), st.just(990_000)),
    remaining_ns=durations_ns(),
    more_ns=st.integers(0, 10**12),
)
def test_a_lead_from_progress_covers_its_margin_and_grows_with_what_remains(
    pace: Pace, remaining_ns: int, more_ns: int
) -> None:
    lead_ns = pace.lead_ns(remaining_ns)
    assert pace.margin_ns <= pace.lead_ns(0) <= lead_ns <= pace.lead_ns(remaining_ns + more_ns)
    assert native.table().herald_lead(pace.margin_ns, remaining_ns, pace.inflation_ppm) == lead_ns


@given(snapshot=snapshots(), longer_ns=durations_ns())
def test_a_longer_stretch_of_training_never_closes_a_gate_later(snapshot: Snapshot, longer_ns: int) -> None:
    slower = Snapshot(
        snapshot.services,
        tuple(
            replace(t, longest_stretch_ns=(t.longest_stretch_ns or DEFAULT_STRETCH_NS) + longer_ns)
            for t in snapshot.trainers
        ),
    )
    before, after = Laxity().decide(snapshot, 0).plans, Laxity().decide(slower, 0).plans
    assert all(after[key].lead_ns >= before[key].lead_ns for key in before)


@given(snapshot=snapshots())
def test_infeasible_is_an_slo_below_the_time_alone_and_residual(snapshot: Snapshot) -> None:
    noted = {note.key: note for note in infeasible(snapshot)}
    for s in snapshot.services:
        if s.slo_ns is None or s.alone_ns is None:
            assert s.key not in noted, "beside training, requests may take any time"
        else:
            needed_ns = s.alone_ns + residual_ns(snapshot, s.device) + RELEASE_NS
            assert (s.key in noted) == (s.slo_ns < needed_ns)
            assert s.key not in noted or noted[s.key].needed_ns == needed_ns


def test_laxity_is_strict_until_it_has_seen_enough_requests() -> None:
    few = service(service_times=Times((20 * MS,) * (MIN_SAMPLES - 1)))
    assert Laxity().decide(Snapshot((few,)), 0).plans[few.key] == STRICT_PLAN


def test_laxity_adds_up() -> None:
    snapshot = Snapshot((service(),), (trainer(longest_stretch_ns=2 * MS), trainer(device="GPU-1")))
    # 2 ms residual + 50 us release + 1.1 x 20 ms, rounded up to 100 us
    pace = Pace(margin_ns=2_100_000, inflation_ppm=1_100_000, quantile_ppm=990_000)
    assert Laxity().decide(snapshot, 0).plans == {JobKey(0, 1): Plan(24_100_000, 1, pace)}


def test_only_trainers_of_the_same_device_leave_a_residual() -> None:
    snapshot = Snapshot(trainers=(trainer(device="GPU-1", longest_stretch_ns=90 * MS), trainer()))
    assert residual_ns(snapshot, "cpu") == 2 * MS
    assert residual_ns(snapshot, "GPU-1") == 90 * MS
    assert residual_ns(snapshot, "GPU-2") == 0


def test_a_trainer_that_has_not_measured_itself_counts_as_the_default() -> None:
    assert residual_ns(Snapshot(trainers=(trainer(longest_stretch_ns=0),)), "cpu") == DEFAULT_STRETCH_NS


def test_free_never_closes() -> None:
    hopeless = service(slo_ns=1)
    assert policies.load("free").decide(Snapshot((hopeless,)), 0).plans == {hopeless.key: FREE_PLAN}


def test_a_policy_is_found_by_the_name_of_its_file() -> None:
    assert {"free", "laxity", "orion", "reserve", "strict", "tgs", "timeslice"} <= set(policies.names())


@pytest.mark.parametrize("name", policies.names())
def test_a_policy_says_in_a_line_what_it_does(name: str) -> None:
    assert policies.summary(name).startswith(f"{name}: ")


def test_an_unknown_policy_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"policy = 'laxty': allowed are free, .*laxity, .*strict.*'laxity'"):
        policies.load("laxty")


def test_an_unknown_policy_with_an_argument_is_told_likewise() -> None:
    with pytest.raises(ConfigError, match=r"policy = 'reserv:32': allowed are .*'reserve'"):
        policies.load("reserv:32")


@pytest.mark.parametrize("text", ["strict:3", "strict:"])
def test_an_argument_to_a_policy_that_takes_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--policy = '{text}': strict takes no argument"):
        policies.load(text, setting="--policy")


def test_a_snapshot_says_what_the_table_says() -> None:
    table = memory_table()
    chat = table.add_job(name="chat", slo_ns=50 * MS)
    table.add_job(name="batch", device="GPU-1")
    vgg = table.add_job(name="vgg16", priority="low", longest_op_ns=3 * MS, armed=1)
    table.record(chat, latency_ns=30 * MS, service_ns=20 * MS, count=5)

    snapshot = Snapshot.of(table.jobs())

    first, second = snapshot.services
    assert (first.key, first.name, first.device, first.slo_ns) == (JobKey(chat, 1), "chat", "cpu", 50 * MS)
    assert first.service_times.count == 5
    assert (second.device, second.slo_ns) == ("GPU-1", None)
    assert snapshot.trainers == (Trainer(JobKey(vgg, 1), "vgg16", "cpu", 3 * MS),)
