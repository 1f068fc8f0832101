"""A measurement other than a colocation: its rows get their provenance and are kept one by one, then it is shown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from herald.experiments import provenance, report, rows, verdicts
from herald.experiments.rows import Row


@dataclass(frozen=True)
class Kind:
    """What tells one measurement from another."""

    name: str  # of the command, of its rows and of their file
    headings: tuple[str, ...]
    lines: Callable[[Row], Iterable[tuple[str, ...]]]  # of the table, for a row


def record(
    kind: Kind, measured: Iterable[Row], out: Path, *, commit: str | None = None, console: Console | None = None
) -> bool:
    """Append every row as it comes to ``out``; then show all with their criteria. True if every criterion is met."""
    origin = provenance.of_command(commit)
    path = out / f"{kind.name}.jsonl"
    found: list[Row] = []
    for row in measured:
        found.append({"kind": kind.name, **row, "provenance": {"date": provenance.now(), **origin}})
        rows.append(path, found[-1:])
    return show(kind, found, console or Console(width=report.WIDTH))


def show(kind: Kind, found: Sequence[Row], console: Console) -> bool:
    """The table and the criteria at 80 columns; True if every criterion is met."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for place, heading in enumerate(kind.headings):
        table.add_column(heading, justify="left" if place == 0 else "right")
    for row in found:
        for line in kind.lines(row):
            table.add_row(*line)
    console.print(table)
    verdict = verdicts.READERS[kind.name](found)
    for criterion in verdict:
        console.print(str(criterion), style="green" if criterion.passed else "bold red", highlight=False)
    return all(criterion.passed for criterion in verdict)
