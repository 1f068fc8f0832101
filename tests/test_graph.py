"""The data-flow graph: which ops are nodes, which tensors make edges, and what follows from both."""

from collections.abc import Sequence
from dataclasses import replace as replaced

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herald import fake_profiles
from herald.errors import GraphError
from herald.fake_profiles import FakeRun
from herald.graphs import flow
from herald.graphs.build import build, check
from herald.profiles import Iteration, Profile


def edges(graph: "nx.DiGraph[int]") -> dict[tuple[int, int], str]:
    return {(u, v): kind for u, v, kind in graph.edges(data="dependency")}


def graph_of(run: FakeRun) -> "nx.DiGraph[int]":
    return build(run.profile())


# Edges


def test_a_reader_depends_on_the_last_writer() -> None:
    run = FakeRun()
    a = run.op("aten::mm", 5_000)
    run.op("aten::relu", 5_000, [a])
    assert edges(graph_of(run)) == {(0, 1): "raw"}


def test_an_in_place_op_comes_after_the_writer_and_all_readers() -> None:
    run = FakeRun()
    a = run.op("aten::mm", 5_000)
    run.op("aten::relu", 5_000, [a])
    run.op("aten::add_", 5_000, [a], [a])
    run.op("aten::relu", 5_000, [a])
    assert edges(graph_of(run)) == {(0, 1): "raw", (0, 2): "raw+waw", (1, 2): "war", (2, 3): "raw"}


def test_an_update_of_an_input_comes_after_those_that_read_it() -> None:
    run = FakeRun()
    weight = run.tensor()
    run.op("aten::mm", 5_000, [weight])
    run.phase = "optimizer"
    run.op("aten::add_", 5_000, [weight], [weight])
    assert edges(graph_of(run)) == {(0, 1): "war"}


def test_a_storage_number_that_is_allocated_again_makes_no_dependency() -> None:
    run = FakeRun()
    a = run.op("aten::mm", 5_000)
    run.op("aten::relu", 5_000, [a])
    run.op("aten::mm", 5_000, [], [a])  # the address was used again
    run.op("aten::relu", 5_000, [a])
    assert edges(graph_of(run)) == {(0, 1): "raw", (2, 3): "raw"}


def test_reading_what_nobody_wrote_is_an_input() -> None:
    run = FakeRun()
    run.op("aten::mm", 5_000, [run.tensor()])
    assert graph_of(run).in_degree(0) == 0


def test_several_storages_between_two_ops_are_one_edge() -> None:
    run = FakeRun()
    pair = [run.tensor(), run.tensor()]
    run.op("aten::split_copy", 5_000, [], pair)
    run.op("aten::cat", 5_000, pair)
    assert graph_of(run).edges[0, 1] == {"dependency": "raw", "storages": 2}


# Nodes


def test_wrappers_and_views_are_no_nodes_and_dependencies_pass_through_them() -> None:
    run = FakeRun()
    a = run.op("aten::mm", 5_000)
    run.op("aten::view", 0, [a], [a])
    run.op("aten::addmm", 5_000, [a], wrappers=["aten::linear"])
    graph = graph_of(run)
    assert [graph.nodes[n]["op"] for n in sorted(graph)] == ["aten::mm", "aten::addmm"]
    assert list(edges(graph).values()) == ["raw"]


def test_an_op_that_writes_to_out_is_no_view() -> None:
    run = FakeRun()
    a, b = run.tensor(), run.tensor()
    run.op("aten::mm", 5_000, [a, b], [b])
    run.op("aten::relu", 5_000, [b])
    profile = run.profile()
    assert len(build(profile)) == 1
    written = tuple(replaced(op, bytes_out=64) for op in profile.ops)
    assert edges(build(replaced(profile, ops=written))) == {(0, 1): "raw"}


def test_a_dependency_passes_through_an_op_without_device_time() -> None:
    run = FakeRun()
    a = run.op("aten::mm", 5_000)
    b = run.op("aten::lift_fresh", 0, [a])  # another storage
    run.op("aten::relu", 5_000, [b])
    assert edges(graph_of(run)) == {(0, 2): "raw"}


def test_on_a_cpu_a_wrapper_that_works_less_than_what_it_wraps_is_folded_with_its_time() -> None:
    graph = build(nested_profile(outer_ns=3_000, inner_ns=50_000))
    assert sorted(graph) == [1]
    assert graph.nodes[1]["self_ns"] == 53_000
    assert graph.nodes[1]["contracted"] == 1


def test_on_a_cpu_an_op_that_works_more_than_what_it_calls_stays() -> None:
    graph = build(nested_profile(outer_ns=50_000, inner_ns=3_000))
    assert edges(graph) == {(0, 1): "waw"}  # both write the result


def test_a_temporary_of_an_op_was_written_by_it() -> None:
    run = FakeRun()
    run.op("aten::convolution_backward", 90_000, host_ns=50_000)
    run.op("aten::clone", 5_000, [run.tensor()], host_ns=1_000)
    profile = run.profile()
    assert profile.iteration is not None
    outer, inner = profile.iteration.instances
    instances = (outer, replaced(inner, begin_ns=20_000))
    nested = replaced(profile, iteration=replaced(profile.iteration, instances=instances))
    assert edges(build(profile)) == {}
    assert edges(build(nested)) == {(0, 1): "raw"}


def test_an_op_without_device_time_is_no_writer_to_come_after() -> None:
    run = FakeRun()
    a = run.op("aten::mm", 5_000)
    b = run.op("aten::lift_fresh", 0, [a])
    run.op("aten::add_", 5_000, [b], [b])
    assert edges(graph_of(run)) == {(0, 2): "raw"}  # and not "waw": the storages are two


def test_a_view_that_takes_host_time_on_a_cpu_writes_nothing() -> None:
    run = FakeRun()
    a = run.op("aten::mm", 50_000)
    run.op("aten::view", 900, [a], [a])
    run.op("aten::as_strided_", 900, [a], [a])
    run.op("aten::relu", 9_000, [a])
    graph = graph_of(run)
    assert edges(graph) == {(0, 3): "raw"}
    assert graph.nodes[3]["self_ns"] == 10_800  # with the time of what was contracted before it


def test_a_custom_kernel_that_shows_no_tensors_is_a_node() -> None:
    run = FakeRun()
    run.op("MyKernelBackward", 90_000, [], [])
    run.op("aten::mm", 9_000)
    assert sorted(graph_of(run)) == [0, 1]


def test_nodes_carry_costs_class_and_predicted_times() -> None:
    run = FakeRun()
    run.module = "layers.0"
    run.op("aten::mm", 30_000, flops=123)
    facts = graph_of(run).nodes[0]
    assert facts["op"] == "aten::mm"
    assert facts["signature"] == "aten::mm(30000)"
    assert (facts["phase"], facts["module"], facts["kind"]) == ("forward", "layers.0", "heavy")
    assert (facts["self_ns"], facts["host_ns"], facts["flops"], facts["remaining_ns"]) == (30_000, 8_000, 123, 0)
    assert "harm" not in facts  # none was predicted


def test_graph_without_iteration_says_what_to_do() -> None:
    profile = Profile("NVIDIA H200", "580", "2.11", ())
    with pytest.raises(GraphError, match="no iteration .* record one with `herald profile`"):
        build(profile)
    with pytest.raises(GraphError, match="has no ops"):
        build(replaced(profile, iteration=Iteration(1, 1, 1)))


def test_graph_without_device_time_says_so() -> None:
    run = FakeRun()
    run.op("aten::view", 0, [run.tensor()])
    with pytest.raises(GraphError, match="none of the 1 ops .* takes time on NVIDIA H200"):
        graph_of(run)


def test_a_cycle_is_named() -> None:
    graph: nx.DiGraph[int] = nx.DiGraph([(0, 1), (1, 2), (2, 0)])
    with pytest.raises(GraphError, match="cycle of 3 ops: 0 .* -> 1 .* -> 2 .* -> 0"):
        check(graph, source="graph = 'x'")


def test_an_edge_back_in_issue_order_is_refused() -> None:
    graph: nx.DiGraph[int] = nx.DiGraph([(2, 1)])
    with pytest.raises(GraphError, match="edge from node 2 to node 1, which was issued before"):
        check(graph)


# Questions


def test_critical_path_is_the_heaviest_chain() -> None:
    run = FakeRun()
    a = run.op("aten::a", 10_000)
    short = run.op("aten::b", 5_000, [a])
    long = run.op("aten::c", 50_000, [a])
    run.op("aten::d", 10_000, [short, long])
    path = flow.critical_path(graph_of(run))
    assert path.nodes == (0, 2, 3)
    assert path.length_ns == 70_000


def test_width_counts_ops_of_a_level_and_work_over_span() -> None:
    run = FakeRun()
    a = run.op("aten::a", 10_000)
    branches = [run.op("aten::b", 10_000, [a]) for _ in range(3)]
    run.op("aten::c", 10_000, branches)
    width = flow.width(graph_of(run))
    assert width.levels == (1, 3, 1)
    assert width.widest == 3
    assert width.parallelism == pytest.approx(50 / 30)


def test_runs_are_of_one_class_and_unbroken_by_ops_of_no_time() -> None:
    run = FakeRun()
    for self_ns, kind in ((30_000, "heavy"), (1_000, "none"), (40_000, "heavy"), (5_000, "light"), (30_000, "heavy")):
        run.op("aten::op", self_ns, kind=kind)  # of literals
    found = flow.runs(graph_of(run))
    assert [(r.kind, r.count, r.self_ns, r.first, r.last) for r in found] == [
        ("heavy", 2, 70_000, 0, 2),
        ("light", 1, 5_000, 3, 3),
        ("heavy", 1, 30_000, 4, 4),
    ]
    assert flow.longest(found, "heavy") == found[0]
    assert flow.longest(found, "unknown") is None


@pytest.mark.parametrize("profile", [fake_profiles.vgg16(), fake_profiles.transformer()], ids=["vgg16", "transformer"])
def test_imitations_of_real_models_hold_together(profile: Profile) -> None:
    graph = build(profile)
    assert profile.iteration is not None
    assert nx.is_weakly_connected(graph) or len(list(nx.weakly_connected_components(graph))) <= 3
    assert flow.total_ns(graph) == profile.iteration.device_ns
    assert flow.critical_path(graph).length_ns > 0.7 * profile.iteration.device_ns


# Any run at all

STORAGES = st.lists(st.integers(0, 7), max_size=3)
OPS = st.lists(
    st.tuples(
        st.sampled_from(["aten::mm", "aten::add_", "aten::view", "aten::empty", "Node"]),
        st.sampled_from([0, 0, 900, 9_000, 90_000]),
        STORAGES,
        STORAGES,
        st.integers(0, 60_000),
    ),
    min_size=1,
    max_size=40,
)
Op = tuple[str, int, list[int], list[int], int]


@given(OPS)
def test_every_graph_is_acyclic_in_issue_order_and_keeps_all_time(ops: Sequence[Op]) -> None:
    run = FakeRun()
    ops = [*ops, ("aten::mm", 9_000, [], [9], 10)]
    for name, self_ns, reads, writes, _ in ops:
        run.op(name, self_ns, reads, writes)
    profile = overlapping(run.profile(), [host_ns for *_, host_ns in ops])
    graph = build(profile)
    check(graph)
    assert all(u < v for u, v in graph.edges)
    assert flow.total_ns(graph) == sum(i.self_ns for i in profile.iteration.instances)
    path = flow.critical_path(graph)
    assert 0 < path.length_ns <= flow.total_ns(graph)
    assert all(graph.has_edge(u, v) for u, v in zip(path.nodes, path.nodes[1:], strict=False))
    assert sum(flow.width(graph).levels) == len(graph)
    remaining = [graph.nodes[n]["remaining_ns"] for n in sorted(graph)]
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] >= 0
    heavy = [r for r in flow.runs(graph) if r.kind == "heavy"]
    assert sum(r.self_ns for r in heavy) == flow.time_by_kind(graph)["heavy"]


@given(OPS)
def test_edges_respect_every_hazard_that_the_storages_have(ops: Sequence[Op]) -> None:
    """Against a slow and obvious reference, where every instance is a node."""
    run = FakeRun()
    for _, _, reads, writes, _ in ops:
        run.op("aten::work_", 9_000, reads, writes, host_ns=10)
    graph = graph_of(run)
    working = [n for n in range(len(ops)) if ops[n][2] or ops[n][3]]
    for target in working:
        _, _, reads, writes, _ = ops[target]
        for storage in set(reads):
            writers = [n for n in working if n < target and storage in ops[n][3]]
            if writers:
                assert "raw" in graph.edges[writers[-1], target]["dependency"]
            if storage in writes:
                since = writers[-1] if writers else -1
                for reader in (n for n in working if since < n < target and storage in ops[n][2]):
                    assert "war" in graph.edges[reader, target]["dependency"]


def overlapping(profile: Profile, host_ns: Sequence[int]) -> Profile:
    """The profile with other host times: ops within ops, or astride of their ends as other threads' are."""
    assert profile.iteration is not None
    pairs = zip(profile.iteration.instances, host_ns, strict=True)
    instances = tuple(replaced(instance, host_ns=ns) for instance, ns in pairs)
    return replaced(profile, iteration=replaced(profile.iteration, instances=instances))


def nested_profile(outer_ns: int, inner_ns: int) -> Profile:
    """An op within an op, both with time of their own, as on a CPU."""
    run = FakeRun()
    a, b = run.tensor(), run.tensor()
    run.op("aten::outer", outer_ns, [a], [b], host_ns=60_000, kind="unknown")
    run.op("aten::inner", inner_ns, [a], [b], host_ns=50_000, kind="unknown")
    profile = run.profile()
    assert profile.iteration is not None
    outer, inner = profile.iteration.instances
    return replaced(profile, iteration=replaced(profile.iteration, instances=(outer, replaced(inner, begin_ns=5_000))))
