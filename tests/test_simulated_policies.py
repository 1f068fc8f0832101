"""What the design rests on, and what every policy must keep to, in the simulator."""

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herald.config import Limits
from herald.experiments.arrivals import Steps
from herald.layout import NO_QUEUE_LIMIT
from herald.scheduler import feedback, policies
from herald.scheduler.simulator.gpu import simulate
from herald.scheduler.simulator.interference import Beside, Interference
from herald.scheduler.simulator.jobs import GpuModel, ServiceModel, TrainerModel
from herald.scheduler.simulator.outcome import Outcome
from herald.scheduler.snapshot import STRICT_PLAN, Plan
from tests.simulated import GAIN, MS, ROOMY, SECOND, VGG, chat, poisson, run

# What the design rests on ---------------------------------------------------------------------------------------------


def test_plain_laxity_misses_what_the_queue_rule_saves() -> None:
    """Load 0.47, SLO 1.5 x the p99 alone, requests twice as long beside training, perfect predictions."""
    arrivals_s = poisson(10, 200, seed=1)
    alone = run(GpuModel((chat(arrivals_s, alone_ms=47),), ()), STRICT_PLAN, seconds=200)
    slo_ns = round(1.5 * alone.services[0].quantile_ns(0.99))
    gpu = GpuModel((chat(arrivals_s, alone_ms=47, slo_ns=slo_ns),), (VGG,))
    lead_ns = 47 * MS + VGG.longest_stretch_ns

    def missed(plan: Plan) -> float:
        return 1 - run(gpu, plan, seconds=200).services[0].attainment

    plain, queue, strict = missed(Plan(lead_ns, NO_QUEUE_LIMIT)), missed(Plan(lead_ns, 1)), missed(STRICT_PLAN)
    assert plain > 0.05
    assert queue < 0.01
    assert queue <= strict + 0.005


# What every policy keeps to -------------------------------------------------------------------------------------------


def texts() -> list[str]:
    """Every policy, with an argument where it needs one."""
    return ["reserve:32" if name == "reserve" else name for name in policies.names()]


GATING = [text for text in texts() if text not in ("free", "tgs", "reserve:32")]
PROTECTING = [text for text in GATING if text != "timeslice"]  # by SLO


@cache
def outcome_of(text: str, rate_hz: float = 10, slo_ns: int = ROOMY, seed: int = 0, seconds: float = 15) -> Outcome:
    gpu = GpuModel((chat(poisson(rate_hz, seconds, seed), slo_ns=slo_ns),), (VGG,), GAIN)
    return simulate(gpu, policies.load(text), seconds=seconds, seed=seed, tick_ns=SECOND // 4)


@pytest.mark.parametrize("text", texts())
def test_equal_seeds_give_equal_outcomes(text: str) -> None:
    first = outcome_of(text)
    outcome_of.cache_clear()
    assert outcome_of(text) == first
    assert outcome_of(text, seed=1) != first


@pytest.mark.parametrize("text", texts())
def test_every_request_is_served_and_none_before_it_could_be(text: str) -> None:
    (service,) = outcome_of(text).services
    assert len(service.latencies_ns) == len(poisson(10, 15))
    assert all(a >= b - 1 for a, b in zip(service.latencies_ns, service.alone_latencies_ns, strict=True))


@pytest.mark.parametrize("text", texts())
def test_a_gate_is_never_closed_without_a_request(text: str) -> None:
    assert outcome_of(text).idle_closed_ns == 0


@pytest.mark.parametrize("text", texts())
def test_training_is_never_starved(text: str) -> None:
    """Even beside a service that could use the GPU twice over."""
    gpu = GpuModel((chat(poisson(100, 5), slo_ns=50 * MS),), (VGG,), GAIN)
    limits = Limits(max_hold_ns=SECOND, floor=0.1)
    outcome = simulate(gpu, policies.load(text), seconds=5, tick_ns=SECOND // 4, limits=limits)
    # All the time at the least rate of tgs, else open for the floor of the time at the rate beside requests.
    assert outcome.training > (0.015 if text == "tgs" else 0.1 * 0.6 * 0.8)


@pytest.mark.parametrize("text", PROTECTING)
@given(seed=st.integers(0, 10_000), rate_hz=st.sampled_from([3.0, 10.0, 20.0]), slo_ns=st.sampled_from([60, 120, 400]))
@settings(max_examples=4, deadline=None)
def test_the_slo_comes_first(text: str, seed: int, rate_hz: float, slo_ns: int) -> None:
    """No more is missed than the service would miss alone with an SLO that is tighter by what runs on after a close."""
    (service,) = outcome_of(text, rate_hz, slo_ns * MS, seed).services
    # Requests that queue feel every close of their busy period, at most one each; 2 % of slack for predictions.
    tighter_ns = slo_ns * MS - 3 * VGG.longest_stretch_ns
    missed_alone = sum(latency > tighter_ns for latency in service.alone_latencies_ns)
    allowed = missed_alone + (0 if text in ("strict", "orion") else 1 + 0.02 * len(service.latencies_ns))
    assert service.missed <= allowed


@given(seed=st.integers(0, 10_000))
@settings(max_examples=3, deadline=None)
def test_more_slack_never_means_less_training_under_laxity(seed: int) -> None:
    training = [outcome_of("laxity", 10, slo_ns * MS, seed).training for slo_ns in (30, 60, 120, 240, 480)]
    assert all(later >= earlier - 0.01 for earlier, later in pairwise(training))
    assert training[-1] > training[0]


def test_slack_buys_training_where_sharing_pays() -> None:
    assert outcome_of("laxity", slo_ns=400 * MS).training > outcome_of("strict", slo_ns=400 * MS).training + 0.03
    assert outcome_of("laxity", slo_ns=400 * MS).services[0].missed == 0


def test_tgs_comes_down_where_requests_suffer_and_goes_up_where_they_do_not() -> None:
    harmless = Interference({("chat", "vgg"): {0: Beside(1.0, 0.9)}})
    service = chat(poisson(10, 60))

    def trained(model: Interference) -> float:
        gpu = GpuModel((service,), (VGG,), model)
        return simulate(gpu, policies.load("tgs"), seconds=60, tick_ns=SECOND // 4).training

    assert trained(harmless) > 0.6
    assert trained(Interference()) < 0.3


PAIRS = {  # mean service time in ms, inflation, rate beside requests, longest stretch in ms; as on an H200
    "eager-decode beside resnet50": (35, 1.75, 0.79, 0.6),
    "eager-decode beside rnnlm": (35, 1.71, 0.76, 2.1),
    "bert beside dlrm": (8, 1.2, 0.96, 0.25),
    "transformer beside vgg16": (20, 1.24, 0.29, 2.1),
    "graph-decode beside vgg16": (47, 2.33, 0.79, 2.1),
    "convnext beside gpt2": (20, 3.5, 0.85, 6.2),
}
ALONE_P99_AT_07 = 7.3  # mean service times, M/D/1


def excess_of(pair: str, steps: Steps, seconds: float, slo_factor: float) -> tuple[list[float], list[bool]]:
    """Arrivals under the controller, and which of them were late on training's account."""
    mean_ms, inflation, rate, stretch_ms = PAIRS[pair]
    arrivals_s = tuple(steps.times_s(seconds))
    service = ServiceModel(
        "chat", arrivals_s, (mean_ms * MS,), slo_ns=round(slo_factor * ALONE_P99_AT_07 * mean_ms * MS)
    )
    trainer = TrainerModel("train", 25 * MS, round(stretch_ms * MS))
    beside = Interference({("chat", "train"): {0: Beside(inflation, rate)}})
    gpu = GpuModel((service,), (trainer,), beside, mps=True)
    done = simulate(gpu, policies.load("herald"), seconds=seconds).services[0]
    pairs = zip(done.latencies_ns, done.alone_latencies_ns, strict=True)
    return list(arrivals_s), [late > done.slo_ns >= alone for late, alone in pairs]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("slo_factor", [1.1, 2.0])
def test_a_load_that_steps_up_and_down_is_followed_within_50_requests(pair: str, slo_factor: float) -> None:
    """Load 0.1 -> 0.7 -> 0.1: at most 5 % of the first 50 requests after a step are late on training's account, and 1 %
    of all later ones. Late ones come in clusters, so that the bound holds of several runs, not of each.
    """
    mean_s = PAIRS[pair][0] / 1e3
    phase_s, first, after = 800 * mean_s / 0.7, [], []
    rates_hz = [(phase_s * i, load / mean_s) for i, load in enumerate((0.1, 0.7, 0.1))]
    for seed in range(2):
        arrivals_s, excess = excess_of(pair, Steps(tuple(rates_hz), seed=seed), 3 * phase_s, slo_factor)
        for step in (1, 2):
            begin, end = (sum(at < i * phase_s for at in arrivals_s) for i in (step, step + 1))
            first += excess[begin : begin + 50]
            after += excess[begin + 50 : end]
    assert sum(first) <= 0.05 * len(first)
    assert sum(after) <= 0.01 * len(after)


@pytest.mark.parametrize("load", [0.6, 0.7])
def test_at_a_high_load_no_more_requests_are_late_than_the_target_allows(load: float) -> None:
    for pair in ("eager-decode beside rnnlm", "convnext beside gpt2"):
        mean_s = PAIRS[pair][0] / 1e3
        _, excess = excess_of(pair, Steps(((0, load / mean_s),), seed=0), 1_500 * mean_s / load, 1.5)
        assert sum(excess) <= 0.01 * len(excess)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bursts_that_the_model_does_not_know_are_learnt_from(seed: int) -> None:
    """40 requests/s for one second of four, else 4/s: the backlog of an open gate is charged after the close, too
    (were it not, this would fail with two of these seeds).
    """
    steps = tuple((s, rate) for i in range(50) for s, rate in ((4.0 * i, 40.0), (4.0 * i + 1, 4.0)))
    gpu = GpuModel(
        (ServiceModel("chat", tuple(Steps(steps, seed=seed).times_s(200)), (20 * MS,), slo_ns=200 * MS),),
        (TrainerModel("train", 25 * MS, 2 * MS),),
        Interference({("chat", "train"): {0: Beside(1.75, 0.79)}}),
        mps=True,
    )
    late = {}
    for name in ("strict", "herald"):
        done = simulate(gpu, policies.load(name), seconds=200).services[0]
        late[name] = sum(ns > done.slo_ns for ns in done.latencies_ns) / len(done.latencies_ns)
    assert late["herald"] <= late["strict"] + 0.015


def test_ops_longer_than_requests_are_kept_off_some_sms() -> None:
    """ResNet50 at batch 4 beside GPT-2: 6 ms ops run on after every close, and a share holds what closing cannot."""
    arrivals_s = poisson(140, 40, seed=0)
    beside = Interference(
        {("chat", "train"): {0: Beside(3.5, 0.85), 116: Beside(1.02, 0.72), 68: Beside(1.0, 0.45)}},
        {"train": {0: 1.0, 116: 0.8, 68: 0.5}},
    )
    gpu = GpuModel(
        (ServiceModel("chat", tuple(arrivals_s), (round(2.8 * MS),), slo_ns=15 * MS),),
        (TrainerModel("train", 80 * MS, round(6.2 * MS), sm_total=132),),
        beside,
        mps=True,
    )
    strict, herald = (simulate(gpu, policies.load(name), seconds=40) for name in ("strict", "herald"))
    assert herald.trainers[0].relative > 1.15 * strict.trainers[0].relative
    late = sum(ns > 15 * MS for ns in herald.services[0].latencies_ns)
    assert late <= 0.01 * len(arrivals_s)


def test_a_host_that_is_slow_for_a_while_is_not_training_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training costs requests nothing; the host makes all of them 1.4 x as long now and then, so that some are late.
    What comes of a single run is chance: whether the gate is closed while the host is slow, or just after.
    """
    slow_s = ((10, 14), (20, 26), (34, 38), (46, 52))

    def trained() -> float:
        training = []
        for seed in range(4):
            arrivals_s = poisson(140, 60, seed)
            slow = [any(begin <= at < end for begin, end in slow_s) for at in arrivals_s]
            times_ns = tuple(round(3.3 * MS * (1.4 if is_slow else 1.0)) for is_slow in slow)
            service = ServiceModel("chat", arrivals_s, times_ns, slo_ns=18 * MS, in_order=True)
            beside = Interference({("chat", "train"): {0: Beside(1.0, 0.95)}})
            gpu = GpuModel((service,), (TrainerModel("train", 25 * MS, round(0.3 * MS)),), beside, mps=True)
            herald = simulate(gpu, policies.load("herald"), seconds=60)
            assert herald.services[0].missed <= 1.05 * herald.services[0].missed_anyway
            training.append(herald.training)
        return sum(training) / len(training)

    settled = trained()
    monkeypatch.setattr(feedback, "HARMLESS", 0.0)  # whatever is charged stands
    assert settled > 0.91
    assert trained() < 0.88
