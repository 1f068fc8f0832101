"""A data-flow graph as files: GraphML for graph tools (Gephi, yEd, Cytoscape), JSON for programs, and back from JSON.

The JSON is node-link data, one node or edge per line:

    {"format": "herald-graph", "version": 1,
     "graph": {"device": ..., "wall_ns": ..., ...},
     "nodes": [{"id": 3, "op": "aten::addmm", "self_ns": 41250, ...}, ...],
     "edges": [{"source": 3, "target": 4, "dependency": "raw", "storages": 1}, ...]}

Attributes are those that `build` describes. Every number is finite; a reader refuses what is not, and cycles.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import networkx as nx

from herald.errors import ConfigError, GraphError
from herald.graphs.build import check
from herald.graphs.flow import KINDS

FORMAT = "herald-graph"
VERSION = 1
_TIMES = ("self_ns", "host_ns", "begin_ns", "start_ns", "end_ns", "remaining_ns")
_TEXTS = ("op", "signature", "phase", "module", "kind")


def write_graphml(graph: "nx.DiGraph[int]", path: Path) -> Path:
    """Write GraphML. Raises ConfigError when the folder cannot be written."""
    facts = {name: value for name, value in graph.graph.items() if value is not None}  # GraphML has no null
    plain: nx.DiGraph[int] = nx.DiGraph(**facts)
    plain.add_nodes_from(graph.nodes(data=True))
    plain.add_edges_from(graph.edges(data=True))
    return _write(path, "\n".join(nx.generate_graphml(plain)) + "\n")


def write_json(graph: "nx.DiGraph[int]", path: Path) -> Path:
    """Write JSON. Raises ConfigError when the folder cannot be written."""
    nodes = [{"id": node, **facts} for node, facts in sorted(graph.nodes(data=True))]
    edges = [{"source": u, "target": v, **facts} for u, v, facts in sorted(graph.edges(data=True), key=lambda e: e[:2])]
    parts = [
        f' "format": {_line(FORMAT)},\n "version": {VERSION},\n "graph": {_line(graph.graph)}',
        _lines("nodes", nodes),
        _lines("edges", edges),
    ]
    return _write(path, "{\n" + ",\n".join(parts) + "\n}\n")


def read_json(path: str | Path) -> "nx.DiGraph[int]":
    """Read a graph. Raises GraphError saying what is wrong with the file, a cycle among it."""
    source = f"graph = {str(path)!r}"
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as e:
        raise GraphError(f"{source} cannot be read: {e.strerror}") from e
    except json.JSONDecodeError as e:
        raise GraphError(f"{source} is not whole JSON ({e}): make it again with `herald graph`") from e
    except ValueError as e:
        raise GraphError(f"{source} is damaged ({e}): make it again with `herald graph`") from e
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise GraphError(f"{source} is not a graph of this Herald: its format must be {FORMAT!r}, version {VERSION}")
    try:
        graph = _decoded(document)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise GraphError(f"{source} is damaged ({type(e).__name__}: {e}): make it again with `herald graph`") from e
    check(graph, source=source)
    return graph


def _decoded(document: Mapping[str, Any]) -> "nx.DiGraph[int]":
    graph: nx.DiGraph[int] = nx.DiGraph(**document["graph"])
    for facts in document["nodes"]:
        _check_node(facts)
        graph.add_node(facts["id"], **{name: value for name, value in facts.items() if name != "id"})
    if not graph:
        raise ValueError("it has no nodes")
    for facts in document["edges"]:
        ends = facts["source"], facts["target"]
        for end in ends:
            if end not in graph:
                raise ValueError(f"the edge {ends[0]} -> {ends[1]} ends at {end}, which is not a node")
        graph.add_edge(*ends, dependency=str(facts["dependency"]), storages=int(facts["storages"]))
    return graph


def _check_node(facts: Mapping[str, Any]) -> None:
    if isinstance(facts["id"], bool) or not isinstance(facts["id"], int):
        raise ValueError(f"id = {facts['id']!r} of a node must be a whole number")
    for name in _TIMES:
        value = facts[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} = {value!r} of node {facts['id']} must be a number of at least 0 ns")
    for name in _TEXTS:
        if not isinstance(facts[name], str):
            raise ValueError(f"{name} = {facts[name]!r} of node {facts['id']} must be a text")
    if facts["kind"] not in KINDS:
        raise ValueError(f"kind = {facts['kind']!r} of node {facts['id']} must be one of {', '.join(KINDS)}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number that can be measured")


def _lines(name: str, records: list[dict[str, Any]]) -> str:
    return f' "{name}": [\n' + ",\n".join(f"  {_line(record)}" for record in records) + "\n ]"


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _write(path: Path, text: str) -> Path:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as e:
        raise ConfigError(f"{str(path)!r} cannot be written ({e.strerror}): choose another folder with --out") from e
    return path
