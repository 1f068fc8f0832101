"""Questions to a data-flow graph: critical path, parallel width, runs of one class, time by class and by module.

Works on any graph with the attributes that `build` describes, whether built or read from a file. Changes none.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import networkx as nx

from herald.graphs.build import order

KINDS = ("heavy", "light", "unknown", "none")


@dataclass(frozen=True)
class CriticalPath:
    """The chain of dependencies that takes the device longest: no schedule on any number of devices is shorter."""

    nodes: tuple[int, ...]
    length_ns: int  # sum of self_ns


@dataclass(frozen=True)
class Width:
    """How many ops could run at once.

    The largest antichain is costly, so this is measured on levels: the level of a node is the number of nodes on the
    longest chain that ends before it; nodes of one level do not depend on each other. ``widest`` is therefore a lower
    bound of the largest antichain. ``parallelism`` is work over span (Blumofe and Leiserson 1999): the sum of all times
    over the critical path, the greatest speed-up that any number of devices could give.
    """

    levels: tuple[int, ...]  # nodes per level
    parallelism: float

    @property
    def widest(self) -> int:
        """Nodes of the level that has most."""
        return max(self.levels)

    @property
    def mean(self) -> float:
        """Nodes per level."""
        return sum(self.levels) / len(self.levels)


@dataclass(frozen=True)
class Run:
    """Consecutive nodes of one class in issue order."""

    kind: str
    first: int
    last: int
    count: int
    self_ns: int


def critical_path(graph: "nx.DiGraph[int]") -> CriticalPath:
    """The heaviest chain, weighted by device time. Of equals, the one found first in issue order."""
    ends_ns: dict[int, int] = {}
    before: dict[int, int | None] = {}
    for node in order(graph):
        source = max(graph.predecessors(node), key=lambda n: (ends_ns[n], -n), default=None)
        before[node] = source
        ends_ns[node] = graph.nodes[node]["self_ns"] + (0 if source is None else ends_ns[source])
    last: int | None = max(ends_ns, key=lambda n: (ends_ns[n], -n))
    length_ns = ends_ns[last] if last is not None else 0
    nodes = []
    while last is not None:
        nodes.append(last)
        last = before[last]
    return CriticalPath(tuple(reversed(nodes)), length_ns)


def width(graph: "nx.DiGraph[int]") -> Width:
    """The width by levels and the parallelism of a graph."""
    level: dict[int, int] = {}
    for node in order(graph):
        level[node] = 1 + max((level[n] for n in graph.predecessors(node)), default=-1)
    counts = Counter(level.values())
    span_ns = critical_path(graph).length_ns
    work_ns = total_ns(graph)
    return Width(tuple(counts[i] for i in sorted(counts)), work_ns / span_ns if span_ns else 1.0)


def runs(graph: "nx.DiGraph[int]") -> list[Run]:
    """Maximal runs of one class in issue order. Nodes of class "none" neither count nor break a run."""
    working = [node for node in order(graph) if graph.nodes[node]["kind"] != "none"]
    return [_run(graph, kind, list(members)) for kind, members in groupby(working, lambda n: graph.nodes[n]["kind"])]


def longest(found: Sequence[Run], kind: str) -> Run | None:
    """The run of a class that takes the longest device time."""
    return max((run for run in found if run.kind == kind), key=lambda run: run.self_ns, default=None)


def time_by_kind(graph: "nx.DiGraph[int]") -> dict[str, int]:
    """Device time of each class, in ns."""
    return {kind: sum(t for k, t in _times(graph, "kind") if k == kind) for kind in KINDS}


def time_by_phase(graph: "nx.DiGraph[int]") -> dict[str, int]:
    """Device time of each phase that occurs, in ns, in order of first occurrence."""
    return _summed(graph, "phase")


def time_by_module(graph: "nx.DiGraph[int]") -> dict[str, int]:
    """Device time of each module, without the modules in it, in ns, longest first. "": outside all modules."""
    return dict(sorted(_summed(graph, "module").items(), key=lambda item: -item[1]))


def total_ns(graph: "nx.DiGraph[int]") -> int:
    """The sum of all device times."""
    return sum(ns for _, ns in _times(graph, "kind"))


def _run(graph: "nx.DiGraph[int]", kind: str, members: list[int]) -> Run:
    self_ns = sum(graph.nodes[node]["self_ns"] for node in members)
    return Run(kind, members[0], members[-1], len(members), self_ns)


def _times(graph: "nx.DiGraph[int]", attribute: str) -> Iterator[tuple[str, int]]:
    return ((graph.nodes[node][attribute], graph.nodes[node]["self_ns"]) for node in order(graph))


def _summed(graph: "nx.DiGraph[int]", attribute: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for value, self_ns in _times(graph, attribute):
        found[value] = found.get(value, 0) + self_ns
    return found
