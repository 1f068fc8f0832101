"""`herald graph`: the data flow of a profile as a summary on the terminal, as files for tools and as pictures.

A graph may be looked at anywhere: neither torch nor the device of the profile is needed. A graph that was written as
JSON can be given in place of a profile; then only the summary is shown.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
from rich.console import Console
from rich.table import Table

from herald.durations import format_ns
from herald.errors import GraphError
from herald.graphs import files, flow, module_picture, timeline_picture
from herald.graphs.build import build
from herald.graphs.canvas import PictureError
from herald.graphs.outline import Row, outline
from herald.profiles import Profile

WIDTH = 80
_MOST_MODULES = 8
_NAME_WIDTH = 50


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`herald graph`."""
    parser = subparsers.add_parser(
        "graph",
        help="show the data flow of a profile: summary, GraphML, JSON, pictures",
        description="Build the data-flow graph of a profile's iteration, say what is in it, and write it: "
        "NAME.graphml, NAME.graph.json, NAME.timeline.png (one iteration over time), NAME.modules.png (the graph).",
    )
    parser.add_argument("profile", type=Path, help="made by `herald profile`; or a NAME.graph.json, to look at again")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="where to write; default: beside the profile")
    parser.add_argument("--no-picture", action="store_true", help="write no PNGs")
    parser.set_defaults(run=_main)


def _main(arguments: argparse.Namespace) -> int:
    console = Console(width=WIDTH, highlight=False, markup=False)
    path: Path = arguments.profile
    if _is_graph(path):
        show(files.read_json(path), console)
        return 0
    profile = Profile.load(path)
    try:
        graph = build(profile)
    except GraphError as error:
        raise GraphError(f"profile = {str(path)!r}: {error}") from error
    show(graph, console)
    base = (arguments.out or path.parent) / _stem(path)
    written = [
        files.write_graphml(graph, base.with_name(f"{base.name}.graphml")),
        files.write_json(graph, base.with_name(f"{base.name}.graph.json")),
    ]
    lacking = None
    if not arguments.no_picture:
        try:
            written.append(timeline_picture.draw(profile, graph, base.with_name(f"{base.name}.timeline.png")))
            written.append(module_picture.draw(graph, base.with_name(f"{base.name}.modules.png")))
        except PictureError as error:  # the rest is there all the same
            lacking = error
    console.print()
    for each in written:
        console.print(f"wrote {each}", soft_wrap=True)
    if lacking is not None:
        console.print(f"no picture: {lacking} (or say --no-picture)", soft_wrap=True)
    return 0


def show(graph: "nx.DiGraph[int]", console: Console) -> None:
    """The summary, for people; reads well at 80 columns."""
    grid = Table.grid(padding=(0, 2))
    for heading, text in summary(graph):
        grid.add_row(heading, text)
    console.print(grid)
    console.print()
    console.print(_module_table(graph))


def summary(graph: "nx.DiGraph[int]") -> Iterator[tuple[str, str]]:
    """Heading and text of each line."""
    facts = graph.graph
    if facts.get("workload"):
        yield "workload", str(facts["workload"])
    yield "device", f"{facts.get('device', '?')}, torch {facts.get('torch', '?')}"
    yield from _iteration_lines(graph)
    instances = f", of {facts['instances']} recorded" if facts.get("instances") else ""
    yield "graph", f"{len(graph)} ops{instances}; {graph.number_of_edges()} edges ({_edge_counts(graph)})"
    work_ns = flow.total_ns(graph)
    path = flow.critical_path(graph)
    yield (
        "critical path",
        f"{format_ns(path.length_ns)} over {len(path.nodes)} ops, {_share(path.length_ns, work_ns)} of op time",
    )
    width = flow.width(graph)
    yield (
        "width",
        f"{width.widest} ops at most, {width.mean:.1f} in the mean, on {len(width.levels)} levels; "
        f"work / span {width.parallelism:.2f}",
    )
    by_kind = flow.time_by_kind(graph)
    yield "classes", ", ".join(f"{kind} {_share(ns, work_ns)}" for kind, ns in by_kind.items() if ns) or "no time"
    found = flow.runs(graph)
    for kind in ("heavy", "light", "unknown"):
        if run := flow.longest(found, kind):
            number = sum(each.kind == kind for each in found)
            yield (
                f"{kind} runs",
                f"{number}; the longest {format_ns(run.self_ns)} over {run.count} ops, "
                f"from {graph.nodes[run.first]['op']} in {graph.nodes[run.first]['module'] or 'no module'}",
            )
    yield "phases", ", ".join(f"{name} {format_ns(ns)}" for name, ns in flow.time_by_phase(graph).items())


def _iteration_lines(graph: "nx.DiGraph[int]") -> Iterator[tuple[str, str]]:
    facts = graph.graph
    wall_ns, timeline_ns, sum_ns = (int(facts.get(name, 0)) for name in ("wall_ns", "timeline_ns", "device_sum_ns"))
    if wall_ns:
        yield (
            "iteration",
            f"{format_ns(wall_ns)} measured, {format_ns(timeline_ns)} predicted "
            f"({timeline_ns / wall_ns - 1:+.1%}), {format_ns(sum_ns)} the sum over ops ({sum_ns / wall_ns - 1:+.1%})",
        )
    if timeline_ns and "busy_ns" in facts:
        yield (
            "device busy",
            f"{_share(facts['busy_ns'], timeline_ns)} of the predicted time; else it waits for the host",
        )


def _edge_counts(graph: "nx.DiGraph[int]") -> str:
    kinds = [dependency.split("+") for _, _, dependency in graph.edges(data="dependency")]
    counts = {name: sum(name in kind for kind in kinds) for name in ("raw", "war", "waw")}
    return ", ".join(f"{name} {number}" for name, number in counts.items() if number) or "none"


def _module_table(graph: "nx.DiGraph[int]") -> Table:
    """Modules by time, as the picture collapses them."""
    work_ns = flow.total_ns(graph)
    found = outline(graph)
    times = dict.fromkeys(map(_row_name, found.rows), 0)
    for (place, _), cell in found.cells.items():
        times[_row_name(found.rows[place])] += cell.total_ns
    ranked = sorted(times.items(), key=lambda item: -item[1])
    shown = ranked if len(ranked) <= _MOST_MODULES + 1 else ranked[:_MOST_MODULES]
    table = Table("module", box=None, padding=(0, 2, 0, 0))
    table.add_column("time", justify="right")
    table.add_column("share", justify="right")
    for name, ns in shown:
        table.add_row(_short(name), format_ns(ns), _share(ns, work_ns))
    if rest := [ns for _, ns in ranked[len(shown) :]]:
        table.add_row(f"{len(rest)} others", format_ns(sum(rest)), _share(sum(rest), work_ns))
    return table


def _row_name(row: Row) -> str:
    label = row.label if row.is_module else f"({row.label})"
    repeats = row.repeats * row.within_repeats
    times = f" \u00d7{repeats}" if repeats > 1 else ""
    return (f"{row.within}.{label}" if row.within else label) + times


def _short(path: str) -> str:
    return path if len(path) <= _NAME_WIDTH else f"...{path[3 - _NAME_WIDTH :]}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _is_graph(path: Path) -> bool:
    """Whether a file says at its beginning that it is a graph."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return json.dumps(files.FORMAT) in file.read(200)
    except OSError:
        return False  # loading it as a profile says what is wrong


def _stem(path: Path) -> str:
    """ "vgg16" of "vgg16.profile.json"."""
    return path.name.removesuffix(".json").removesuffix(".profile") or "graph"
