"""A data-flow graph collapsed to a few dozen rows of modules: what a person can take in at a glance.

From the root of the module tree (`module_tree`) the module that takes longest is opened again and again, as long
as the rows stay few; where one has too many children, those that take least are joined to the one before. Draws
nothing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import networkx as nx

from herald.graphs.build import order
from herald.graphs.module_tree import Module, is_outside, is_own, rank, tree

Column = Literal["forward", "backward", "optimizer"]

MOST_ROWS = 25
_MOST_JOINED = 16  # a module with more children than there is room for is shown as so many
_LEAST_SHARE = 0.02  # of the time: a module below it stays closed
_LEAST_ROOM = 4  # a module is not joined into fewer parts than this


@dataclass(frozen=True)
class Row:
    """A module, or several that were folded or joined."""

    label: str  # "self_attn", "0-5"; of what a module does itself, the ops: "add"
    repeats: int  # modules folded into it
    within: str  # the module that was opened to show it: "encoder.layers.0-5"; "": the root
    within_repeats: int  # modules folded into that
    is_module: bool
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """What one row does in one phase."""

    nodes: tuple[int, ...]
    time_ns: dict[str, int]  # by class
    ops: tuple[str, ...]  # names, longest total time first

    @property
    def total_ns(self) -> int:
        """Device time of all its nodes."""
        return sum(self.time_ns.values())


Place = tuple[int, Column]  # of a cell: row and phase


@dataclass(frozen=True)
class Outline:
    """The collapsed graph: rows in forward order, what they do in each phase, how many dependencies go between."""

    rows: tuple[Row, ...]
    cells: dict[Place, Cell]
    edges: dict[tuple[Place, Place], int]  # "raw" dependencies only: others are a matter of memory, not of flow


def outline(graph: "nx.DiGraph[int]", most_rows: int = MOST_ROWS) -> Outline:
    """Collapse a graph to at most ``most_rows`` rows, the optimizer's included."""
    rows = tuple(_rows(graph, most_rows))
    places: dict[int, Place] = {node: (i, _column(graph, node)) for i, row in enumerate(rows) for node in row.nodes}
    members: dict[Place, list[int]] = {}
    for node in order(graph):
        members.setdefault(places[node], []).append(node)
    edges: Counter[tuple[Place, Place]] = Counter()
    for source, target, dependency in graph.edges(data="dependency"):
        if "raw" in dependency and places[source] != places[target]:
            edges[places[source], places[target]] += 1
    return Outline(rows, {place: _cell(graph, nodes) for place, nodes in members.items()}, dict(edges))


def short_name(op: str) -> str:
    """ "addmm" of "aten::addmm"."""
    return op.rpartition("::")[2]


def _column(graph: "nx.DiGraph[int]", node: int) -> Column:
    phase = graph.nodes[node]["phase"]
    return phase if phase in ("backward", "optimizer") else "forward"


def _cell(graph: "nx.DiGraph[int]", nodes: Sequence[int]) -> Cell:
    time_ns: Counter[str] = Counter()
    ops: Counter[str] = Counter()
    for node in nodes:
        facts = graph.nodes[node]
        time_ns[facts["kind"]] += facts["self_ns"]
        ops[short_name(facts["op"])] += facts["self_ns"]
    return Cell(tuple(nodes), dict(time_ns), tuple(name for name, _ in ops.most_common()))


# Opening modules ------------------------------------------------------------------------------------------------------


@dataclass
class _Entry:
    """A row in the making. ``module`` None: it stays closed."""

    label: str
    within: str
    within_repeats: int
    nodes: list[int]
    module: Module | None = None
    repeats: int = 1

    @property
    def can_open(self) -> bool:
        return self.module is not None and bool(self.module.children)


def _rows(graph: "nx.DiGraph[int]", most_rows: int) -> list[Row]:
    optimizer = [node for node in order(graph) if _column(graph, node) == "optimizer"]
    model = [node for node in order(graph) if _column(graph, node) != "optimizer"]
    entries = _opened(graph, model, max(1, most_rows - bool(optimizer))) if model else []
    rows = _without_lone_headings([_row(graph, entry) for entry in entries])
    return rows + ([Row("optimizer", 1, "", 1, False, tuple(optimizer))] if optimizer else [])


def _row(graph: "nx.DiGraph[int]", entry: _Entry) -> Row:
    is_module = bool(entry.label) and not is_own(entry.label)
    label = entry.label if is_module else _own_label(graph, entry)
    nodes = tuple(sorted(entry.nodes))
    return Row(label, entry.repeats, entry.within, entry.within_repeats, is_module, nodes)


def _without_lone_headings(rows: list[Row]) -> list[Row]:
    """A row that is alone under the module that was opened gets its whole path instead."""
    result: list[Row] = []
    for (_, repeats), members in groupby(rows, key=lambda row: (row.within, row.within_repeats)):
        group = list(members)
        if len(group) == 1 and group[0].within and repeats == 1:
            row = group[0]
            separator = "." if row.is_module else ": "
            group = [replace(row, label=f"{row.within}{separator}{row.label}", within="")]
        result += group
    return result


def _own_label(graph: "nx.DiGraph[int]", entry: _Entry) -> str:
    """The two longest ops of a module itself."""
    if not entry.within and is_outside(entry.label):
        return "outside modules"
    ops = _cell(graph, entry.nodes).ops
    return ", ".join([name for name in ops if "backward" not in name][:2] or ops[:2])


def _opened(graph: "nx.DiGraph[int]", nodes: Sequence[int], most_rows: int) -> list[_Entry]:
    root = tree(graph, nodes)
    entries = [_Entry("", "", 1, root.nodes(), root)]
    least_ns = _LEAST_SHARE * _time_ns(graph, nodes)
    while candidates := [entry for entry in entries if entry.can_open]:
        entry = max(candidates, key=lambda e: _time_ns(graph, e.nodes))
        parts = _parts(graph, entry)
        room = most_rows - len(entries) + 1
        if entry.label and (_time_ns(graph, entry.nodes) < least_ns or len(parts) > room < _LEAST_ROOM):
            entry.module = None
            continue
        place = entries.index(entry)
        entries[place : place + 1] = _joined(graph, parts, room)
    return entries


def _parts(graph: "nx.DiGraph[int]", entry: _Entry) -> list[_Entry]:
    """The rows that a module opens into, in forward order. An only child stays on the row, with a longer name."""
    module = entry.module
    assert module is not None
    children = sorted(module.children.values(), key=lambda child: rank(graph, child))
    path = f"{entry.within}.{entry.label}" if entry.within else entry.label
    if len(children) == 1 and not is_own(children[0].name):
        only = children[0]
        label = f"{entry.label}.{only.name}" if entry.label else only.name
        repeats = entry.repeats * only.repeats
        return [_Entry(label, entry.within, entry.within_repeats, entry.nodes, only, repeats)]
    repeats = entry.within_repeats * entry.repeats
    return [_Entry(child.name, path, repeats, child.nodes(), child, child.repeats) for child in children]


def _joined(graph: "nx.DiGraph[int]", parts: list[_Entry], room: int) -> list[_Entry]:
    """As many parts as there is room for: those that take least are joined to the one before them."""
    parts = list(parts)
    most = len(parts) if len(parts) <= room else max(1, min(room, _MOST_JOINED))
    while len(parts) > most:
        place = min(range(1, len(parts)), key=lambda i: (_bounds_apart(parts[i - 1 : i + 1]), _cost(graph, parts[i])))
        first, second = parts[place - 1 : place + 1]
        label = f"{first.label.partition(' - ')[0]} - {second.label.rpartition(' - ')[2]}"
        if is_own(second.label):
            label = first.label
        parts[place - 1 : place + 1] = [_Entry(label, first.within, first.within_repeats, first.nodes + second.nodes)]
    return parts


def _bounds_apart(pair: Sequence[_Entry]) -> bool:
    """Whether two parts are better kept apart: what is outside all modules is not part of one."""
    return any(not entry.within and is_outside(entry.label) for entry in pair)


def _cost(graph: "nx.DiGraph[int]", entry: _Entry) -> int:
    return _time_ns(graph, entry.nodes)


def _time_ns(graph: "nx.DiGraph[int]", nodes: Iterable[int]) -> int:
    return sum(graph.nodes[node]["self_ns"] for node in nodes)
