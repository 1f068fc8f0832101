"""The modules of a model as a tree over the nodes of a graph, with equal neighbours folded into one.

What a module does itself between its children (the addition of a residual, say) is a child of it as well, named after
the child that it follows. (A profile calls the model itself by its class, as if that were a module beside the others.)
Consecutive children with numbers for names and the same structure become one: "0-5", six
times. The tree is found from the paths of nodes alone; the model is not needed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import networkx as nx

_OWN = "*"  # in no module's name


@dataclass
class Module:
    """A module, or several folded into one."""

    name: str
    own: list[int] = field(default_factory=list)  # nodes, if it has no children
    children: dict[str, "Module"] = field(default_factory=dict)  # in forward order
    repeats: int = 1

    def nodes(self) -> list[int]:
        """All nodes in it, in issue order."""
        return sorted([*self.own, *(node for child in self.children.values() for node in child.nodes())])


def tree(graph: "nx.DiGraph[int]", nodes: Iterable[int]) -> Module:
    """The tree over some nodes of a graph, folded."""
    nodes = sorted(nodes)
    backward = [node for node in reversed(nodes) if graph.nodes[node]["phase"] == "backward"]
    forward = [node for node in nodes if graph.nodes[node]["phase"] != "backward"]
    paths = {graph.nodes[node]["module"] for node in nodes}
    parents = {parent for path in paths for parent in _prefixes(path)}
    models = {path for path in paths - parents if path[:1].isupper() and "." not in path and len(paths) > 2}
    root = Module("")
    for sequence in (forward, backward):  # the latter reversed, so that the same child comes before
        previous: dict[str, str] = {}
        for node in sequence:
            module = root
            path = graph.nodes[node]["module"]
            for name in [_own("", previous, path)] if path in models else _names(path, parents, previous):
                module = module.children.setdefault(name, Module(name))
            module.own.append(node)
    return _folded(graph, root)


def rank(graph: "nx.DiGraph[int]", module: Module) -> tuple[bool, int]:
    """Where a module stands among others: by its first node in forward order; without one, last."""
    nodes = module.nodes()
    forward = [node for node in nodes if graph.nodes[node]["phase"] != "backward"]
    return not forward, forward[0] if forward else -nodes[-1]


def _prefixes(path: str) -> Iterator[str]:
    """ "" and "a" of "a.b"."""
    parts = path.split(".") if path else []
    return (".".join(parts[:depth]) for depth in range(len(parts)))


def _names(path: str, parents: set[str], previous: dict[str, str]) -> list[str]:
    """The way from the root to the place of a node. ``previous``: the last child seen in each module."""
    names = path.split(".") if path else []
    for depth, name in enumerate(names):
        previous[".".join(names[:depth])] = name
    return [*names, _own(path, previous)] if path in parents else names


def _own(path: str, previous: dict[str, str], model: str = "") -> str:
    """The name of what a module, or the model, does itself at this point."""
    return f"{_OWN}{model}{_OWN}{previous.get(path, '')}"


def is_own(name: str) -> bool:
    """Whether it names what a module does itself between its children."""
    return name.startswith(_OWN)


def is_outside(name: str) -> bool:
    """Whether, as a child of the root, it names what happens outside the model."""
    return name.startswith(_OWN + _OWN)


def _folded(graph: "nx.DiGraph[int]", module: Module) -> Module:
    children = sorted((_folded(graph, child) for child in module.children.values()), key=lambda c: rank(graph, c))
    merged: list[Module] = []
    before: tuple[object, int] | None = None  # structure and number of the child before
    for child in children:
        now = (_structure(graph, child), int(child.name)) if child.name.isdecimal() else None
        if before is not None and now is not None and now == (before[0], before[1] + 1):
            merged[-1] = _merged(merged[-1], child, name=f"{merged[-1].name.partition('-')[0]}-{child.name}")
        else:
            merged.append(child)
        before = now
    return Module(module.name, module.own, {child.name: child for child in merged}, module.repeats)


def _structure(graph: "nx.DiGraph[int]", module: Module) -> object:
    """Equal for modules that do the same. Ops without FLOPs are left out where they can be: on a CPU, which of the
    small ones are nodes is chance.
    """
    forward = [graph.nodes[node] for node in module.nodes() if graph.nodes[node]["phase"] != "backward"]
    large = frozenset(facts["signature"] for facts in forward if facts.get("flops"))
    return _shape(module), large or frozenset(facts["signature"] for facts in forward)


def _shape(module: Module) -> object:
    return tuple((name, _shape(child)) for name, child in sorted(module.children.items()) if not is_own(name))


def _merged(first: Module, second: Module, *, name: str | None = None) -> Module:
    children = dict(first.children)
    for key, child in second.children.items():
        children[key] = _merged(children[key], child) if key in children else child
    return Module(name or first.name, sorted(first.own + second.own), children, first.repeats + (name is not None))
