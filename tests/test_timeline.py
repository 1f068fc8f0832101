"""The predicted timeline: two resources, the host that issues and the device that runs in order."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herald import fake_profiles
from herald.errors import GraphError
from herald.fake_profiles import GAP_NS, FakeRun
from herald.graphs.timeline import predict
from herald.profiles import KernelFacts, Profile


def profile_of(*device_ns: int, host_ns: int) -> Profile:
    run = FakeRun(host_ns=host_ns)
    for each in device_ns:
        run.op("aten::mm", each)
    return run.profile()


def test_a_busy_device_runs_one_op_after_the_other() -> None:
    prediction = predict(profile_of(100_000, 200_000, 300_000, host_ns=8_000))
    assert prediction.start_ns == (0, 100_000, 300_000)
    assert prediction.timeline_ns == prediction.device_sum_ns == prediction.busy_ns == 600_000


def test_a_slow_host_leaves_the_device_idle() -> None:
    prediction = predict(profile_of(5_000, 5_000, 5_000, host_ns=18_000))
    assert prediction.start_ns == (0, 20_000, 40_000)
    assert prediction.end_ns[-1] == 45_000
    assert prediction.busy_ns == 15_000
    assert prediction.timeline_ns == 58_000  # the host returns last


def test_a_device_catches_up_with_its_host() -> None:
    prediction = predict(profile_of(60_000, 5_000, 5_000, 5_000, host_ns=28_000))
    assert prediction.start_ns == (0, 60_000, 65_000, 90_000)


def test_remaining_time_is_what_lies_after_an_op() -> None:
    prediction = predict(profile_of(100_000, 200_000, 300_000, host_ns=8_000))
    assert [prediction.remaining_ns(i) for i in range(3)] == [500_000, 300_000, 0]


def test_what_recording_costs_the_host_is_taken_out() -> None:
    profile = profile_of(5_000, 5_000, host_ns=18_000)
    assert profile.iteration is not None
    unrecorded = replace(profile, iteration=replace(profile.iteration, host_ns=profile.iteration.host_ns // 2))
    assert predict(unrecorded).start_ns == (0, 10_000)


def test_gaps_within_an_op_are_no_device_time_where_its_kernels_are_known() -> None:
    profile = profile_of(50_000, host_ns=8_000)
    kernel = KernelFacts("k", 1, 20_000, (1, 1, 1), (32, 1, 1), 32, 0, 0.01, 0.5)
    known = replace(profile, ops=(replace(profile.ops[0], self_ns=20_000, kernels=(kernel,)),))
    assert predict(known).busy_ns == 20_000
    assert predict(known).device_sum_ns == 50_000


def test_a_profile_without_iteration_says_what_to_do() -> None:
    with pytest.raises(GraphError, match="record one with `herald profile`"):
        predict(Profile("NVIDIA H200", "580", "2.11", ()))


@pytest.mark.parametrize(("host_ns", "bound"), [(8_000, "device"), (200_000, "host")])
def test_the_same_request_bound_by_either(host_ns: int, bound: str) -> None:
    prediction = predict(fake_profiles.transformer(host_ns=host_ns))
    idle = 1 - prediction.busy_ns / prediction.timeline_ns
    assert idle < 0.01 if bound == "device" else idle > 0.5


@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 100_000)), min_size=1, max_size=50))
def test_the_timeline_is_no_shorter_than_either_resource(ops: list[tuple[int, int]]) -> None:
    run = FakeRun()
    for self_ns, host_ns in ops:
        run.op("aten::mm", self_ns, host_ns=host_ns)
    prediction = predict(run.profile())
    spent_ns = sum(host_ns + GAP_NS for _, host_ns in ops) - GAP_NS
    assert prediction.timeline_ns >= max(prediction.device_sum_ns, spent_ns)
    assert prediction.timeline_ns <= prediction.device_sum_ns + spent_ns
    remaining = [prediction.remaining_ns(i) for i in range(len(ops))]
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] == 0
    starts = prediction.start_ns[1:]
    assert all(end <= start for end, start in zip(prediction.end_ns, starts, strict=False))
