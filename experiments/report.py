"""`herald experiment report`: tables, criteria and figures, all from rows."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from herald.experiments import analysis, crowd_report, figures, report_page, rows, steps_report, sweep_report
from herald.experiments.analysis import Group, Result
from herald.experiments.criteria import Criterion
from herald.experiments.verdicts import READERS

WIDTH = 80
HEADINGS = ("setting", "n", "p50 ms", "p99 ms", "p99/alone [95 %]", "SLO met", "training/alone")


def write(paths: Sequence[Path], out: Path, *, over: str = "slo", console: Console | None = None) -> list[Criterion]:
    """Report on the rows: tables and verdict to the terminal and ``out``/report.md, figures beside it."""
    found = rows.read_all(paths)
    out.mkdir(parents=True, exist_ok=True)
    groups = analysis.groups(rows.of_kind(found, "colocation"))
    verdict = [
        *analysis.verdict(groups),
        *(c for kind, read in READERS.items() for c in read(rows.of_kind(found, kind))),
    ]
    drawn = draw(groups, out, over=over)
    if told := rows.of_kind(found, "classification"):
        drawn.append(figures.harms(told, out / figures.HARMS))
    sections = [
        *sweep_report.sections(found, out),
        *steps_report.sections(found, out),
        *crowd_report.sections(found),
    ]
    page = markdown(groups, verdict, drawn) + "\n".join(
        line for s in sections for line in ["", *report_page.markdown(s)]
    )
    (out / "report.md").write_text(page.rstrip() + "\n", encoding="utf-8")
    console = console or Console(width=WIDTH)
    show(groups, verdict, console)
    for section in sections:
        report_page.show(section, console)
    return [*verdict, *(criterion for section in sections for criterion in section.verdict)]


def draw(groups: Sequence[Group], out: Path, *, over: str) -> list[Path]:
    """A frontier per pair and rate, its MPS states side by side."""
    cases: dict[tuple[str, str, float], list[Group]] = {}
    for group in groups:
        if any(r.inference and r.training and r.training.relative for r in group.results):
            cases.setdefault((group.pair, group.device, group.rate_hz), []).append(group)
    return [
        figures.frontier(members, out / f"frontier-{pair.replace('+', '-beside-')}-{rate:g}hz.png", over=over)
        for (pair, _, rate), members in cases.items()
    ]


def cells(result: Result) -> tuple[str, ...]:
    """A line of the table, under HEADINGS."""
    inference, training = result.inference, result.training
    ratio = inference.p99_ratio if inference else None
    relative = training.relative if training else None
    return (
        result.setting,
        str(result.repetitions),
        f"{inference.p50_ms:.1f}" if inference else "",
        f"{inference.p99_ms:.1f}" if inference else "",
        f"{ratio.value:.3f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "",
        f"{inference.attainment:.1%}" if inference and inference.attainment is not None else "",
        f"{relative.value:.3f} ({relative.low:.2f}-{relative.high:.2f})" if relative else "",
    )


def show(groups: Sequence[Group], verdict: Sequence[Criterion], console: Console) -> None:
    """Tables and verdict on a terminal of 80 columns."""
    for group in groups:
        table = Table(title=_heading(group), box=None, padding=(0, 1, 0, 0), title_justify="left")
        for place, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
        for result in group.results:
            table.add_row(*cells(result))
        console.print(table)
        for line in differences(group):
            console.print(line, highlight=False)
        console.print()
    report_page.show_verdict(verdict, console)


def differences(group: Group) -> list[str]:
    """Request by request against the run alone, for Herald's settings."""
    return [
        f"{r.setting}: request by request against alone, median {r.inference.difference_p50_ms:+.2f} ms, "
        f"p99 {r.inference.difference_p99_ms:+.2f} ms; p99/alone of single repetitions "
        f"{r.inference.p99_ratio_range[0]:.3f} to {r.inference.p99_ratio_range[1]:.3f}"
        for r in group.results
        if r.setting.startswith("herald") and r.inference and r.inference.p99_ratio_range
    ]


def markdown(groups: Sequence[Group], verdict: Sequence[Criterion], drawn: Sequence[Path]) -> str:
    """The report as a page."""
    parts = ["# Measured", ""]
    for group in groups:
        lines = [HEADINGS, tuple("---" for _ in HEADINGS), *(cells(result) for result in group.results)]
        parts += [f"## {_heading(group)}", "", *("| " + " | ".join(line) + " |" for line in lines), ""]
        parts += [f"- {line}" for line in differences(group)] + [""]
    if verdict:
        parts += [f"## {report_page.TARGETS}", "", *(f"- {criterion}" for criterion in verdict), ""]
    parts += [f"![{path.stem}]({path.name})" for path in drawn]
    return "\n".join(parts).rstrip() + "\n"


def _heading(group: Group) -> str:
    load = f"; load {group.load:.3f}, 1 - load {1 - group.load:.3f}" if group.load is not None else ""
    return group.title + load
