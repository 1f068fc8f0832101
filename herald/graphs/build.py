"""The data-flow graph of one iteration or request: a node per op instance with its costs, an edge per dependency.

A `networkx.DiGraph` made from a profile's iteration. Node numbers are places in ``profile.iteration.instances``, so an
edge always leads to a larger number: issue order is a topological order. Which instances are nodes, and where the time
of the others goes, says `contraction`. Owns the meaning of nodes and edges; asks nothing of them (`flow`)
and writes nothing (`files`).

Nodes carry: ``op`` (its name), ``signature``, ``phase``, ``module``, ``self_ns`` (device time, with what was carried
to it), ``host_ns``, ``begin_ns`` (host, as recorded), ``flops``, ``bytes``, ``kind`` (class), ``harm`` (percent; only
where it is predicted), ``contracted`` (instances it stands for besides itself), ``start_ns``, ``end_ns`` and
``remaining_ns`` (predicted: `herald.graphs.timeline`).

Edges carry ``dependency``, one or several of these joined by "+", and ``storages``, how many demand it:

- "raw": the target reads what the source was the last to write;
- "war": the target overwrites in place what the source reads;
- "waw": the target overwrites in place what the source wrote.

A storage that nobody wrote before is an input; but where it first occurs within another op, it is a temporary that the
other op wrote. One that an op writes but does not read was allocated by that op: a new value, whatever had its number
before, so that addresses used again make no false dependencies.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import networkx as nx

from herald.errors import GraphError
from herald.graphs.contraction import Role, enclosing, is_view, roles
from herald.graphs.timeline import Prediction, iteration_of, predict
from herald.profiles import OpInstance, Profile

DEPENDENCIES = ("raw", "war", "waw")


def build(profile: Profile) -> "nx.DiGraph[int]":
    """The graph of a profile's iteration. Raises GraphError when it has none, or no op of it takes any time."""
    iteration = iteration_of(profile)
    decided = roles(profile)
    if not any(role.is_node for role in decided):
        raise GraphError(
            f"none of the {len(decided)} ops of the profile's iteration takes time on {profile.device}: "
            "profile a step function that works on that device"
        )
    prediction = predict(profile)
    graph: nx.DiGraph[int] = nx.DiGraph(
        device=profile.device,
        is_cpu=profile.driver is None and profile.num_sms is None,
        torch=profile.torch,
        workload=profile.workload,
        wall_ns=iteration.wall_ns,
        host_ns=iteration.host_ns,
        device_sum_ns=prediction.device_sum_ns,
        timeline_ns=prediction.timeline_ns,
        busy_ns=prediction.busy_ns,
        instances=len(decided),
    )
    _add_nodes(graph, profile, decided, prediction)
    _add_edges(graph, profile, decided)
    return graph


def order(graph: "nx.DiGraph[int]") -> list[int]:
    """The nodes in issue order, which is a topological order."""
    return sorted(graph)


def check(graph: "nx.DiGraph[int]", *, source: str = "graph") -> None:
    """Raise GraphError, naming some of its nodes, when a graph that came from elsewhere has a cycle."""
    if nx.is_directed_acyclic_graph(graph):
        back = next(((u, v) for u, v in graph.edges if u > v), None)
        if back is None:
            return
        raise GraphError(
            f"{source} has an edge from node {back[0]} to node {back[1]}, which was issued before it: "
            "make the graph again from its profile with `herald graph`"
        )
    cycle = [edge[0] for edge in nx.find_cycle(graph)]
    shown = " -> ".join(f"{node} ({graph.nodes[node].get('op', '?')})" for node in [*cycle[:4], cycle[0]])
    raise GraphError(
        f"{source} has a cycle of {len(cycle)} ops: {shown}{' (shortened)' if len(cycle) > 4 else ''}; "
        "no run can have made it: make the graph again from its profile with `herald graph`"
    )


def _add_nodes(graph: "nx.DiGraph[int]", profile: Profile, decided: Sequence[Role], prediction: Prediction) -> None:
    instances = iteration_of(profile).instances
    carried: dict[int, list[OpInstance]] = defaultdict(list)
    for instance, role in zip(instances, decided, strict=True):
        if role.node is not None:
            carried[role.node].append(instance)
    for node, members in sorted(carried.items()):
        instance = instances[node]
        op = profile.ops[instance.op]
        graph.add_node(
            node,
            op=op.name,
            signature=op.signature,
            phase=instance.phase,
            module=instance.module,
            self_ns=sum(member.self_ns for member in members),
            host_ns=instance.host_ns,
            begin_ns=instance.begin_ns,
            flops=sum(profile.ops[member.op].flops for member in members),
            bytes=op.bytes_in + op.bytes_out,
            kind=op.kind,
            contracted=len(members) - 1,
            start_ns=prediction.start_ns[node],
            end_ns=prediction.end_ns[node],
            remaining_ns=prediction.remaining_ns(node),
            **({} if op.harm is None else {"harm": op.harm}),
        )


class _Storage:
    """Who wrote the present value of a storage, and who has read it since."""

    def __init__(self, writers: Iterable[int] = (), *, passed_through: bool = False) -> None:
        self.writers = frozenset(writers)
        self.passed_through = passed_through  # by a contracted instance: the writers wrote another storage
        self.readers: set[int] = set()


def _add_edges(graph: "nx.DiGraph[int]", profile: Profile, decided: Sequence[Role]) -> None:
    instances = iteration_of(profile).instances
    flow = _Flow(graph)
    for node, (instance, around) in enumerate(zip(instances, _enclosing_nodes(instances, decided), strict=True)):
        flow.see(instance.reads, around)
        if not decided[node].is_node:
            flow.pass_through(instance)
        elif is_view(profile.ops[instance.op], instance):
            flow.depend(node, instance.reads, (), around)
        else:
            flow.depend(node, instance.reads, instance.writes, around)


def _enclosing_nodes(instances: Sequence[OpInstance], decided: Sequence[Role]) -> list[list[int]]:
    """For each instance the innermost node around it, or nothing."""
    found: list[list[int]] = []
    for parent in enclosing(instances):
        found.append([] if parent is None else [parent] if decided[parent].is_node else found[parent])
    return found


class _Flow:
    """Adds edges as instances go by."""

    def __init__(self, graph: "nx.DiGraph[int]") -> None:
        self._graph = graph
        self._storages: dict[int, _Storage] = {}

    def see(self, reads: Iterable[int], around: Sequence[int]) -> None:
        """Storages that occur for the first time belong to the node around, or are inputs."""
        for number in reads:
            self._storages.setdefault(number, _Storage(around))

    def depend(self, node: int, reads: Iterable[int], writes: Iterable[int], around: Sequence[int]) -> None:
        """A node that reads and writes, ``around`` it a node that may write the same."""
        for number in set(reads):
            for writer in self._storages[number].writers:
                self._connect(writer, node, "raw")
        for number in set(writes):
            before = self._storages.get(number)
            if before is not None and (number in reads or before.writers.intersection(around)):
                self._order_after(before, node)
            self._storages[number] = _Storage([node])
        for number in set(reads):
            self._storages[number].readers.add(node)

    def pass_through(self, instance: OpInstance) -> None:
        """What a contracted instance writes depends on the writers of what it reads."""
        origins = frozenset(writer for number in instance.reads for writer in self._storages[number].writers)
        for number in set(instance.writes) - set(instance.reads):
            self._storages[number] = _Storage(origins, passed_through=True)

    def _order_after(self, storage: _Storage, node: int) -> None:
        for reader in storage.readers - storage.writers:
            self._connect(reader, node, "war")
        for writer in () if storage.passed_through else storage.writers:
            self._connect(writer, node, "waw")

    def _connect(self, source: int, target: int, dependency: str) -> None:
        if source == target:
            return
        if not self._graph.has_edge(source, target):
            self._graph.add_edge(source, target, dependency=dependency, storages=1)
            return
        edge = self._graph.edges[source, target]
        found = {*edge["dependency"].split("+"), dependency}
        edge["storages"] += dependency == "raw" or "raw" not in found
        edge["dependency"] = "+".join(kind for kind in DEPENDENCIES if kind in found)
