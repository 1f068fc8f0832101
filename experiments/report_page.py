"""What a report is made of: tables, criteria and figures, on a page and on a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from herald.experiments.criteria import Criterion

TARGETS = "Herald's own targets"  # whoever measures pairs of their own need not share them


@dataclass(frozen=True)
class Grid:
    """A table."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """What one experiment gave."""

    title: str
    grids: tuple[Grid, ...]
    verdict: tuple[Criterion, ...] = ()
    figures: tuple[Path, ...] = ()


def show(section: Section, console: Console) -> None:
    """On a terminal."""
    for grid in section.grids:
        console.print(grid.title, style="bold", highlight=False)
        table = Table(box=None, padding=(0, 1, 0, 0))
        for place, heading in enumerate(grid.headings):
            table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
        for line in grid.lines:
            table.add_row(*line)
        console.print(table)
        for note in grid.notes:
            console.print(note, highlight=False)
        console.print()
    show_verdict(section.verdict, console)


def show_verdict(verdict: Sequence[Criterion], console: Console) -> None:
    """Target by target; nothing where there is none."""
    if verdict:
        console.print(TARGETS, style="bold", highlight=False)
    for criterion in verdict:
        console.print(str(criterion), style="green" if criterion.passed else "bold red", highlight=False)


def markdown(section: Section) -> list[str]:
    """The lines of a page."""
    lines = [f"## {section.title}", ""]
    for grid in section.grids:
        body = [grid.headings, tuple("---" for _ in grid.headings), *grid.lines]
        lines += [f"### {grid.title}", "", *("| " + " | ".join(line) + " |" for line in body), ""]
        lines += [f"- {note}" for note in grid.notes] + [""]
    if section.verdict:
        lines += [f"### {TARGETS}", "", *(f"- {criterion}" for criterion in section.verdict), ""]
    return lines + [f"![{path.stem}]({path.name})" for path in section.figures] + [""]
