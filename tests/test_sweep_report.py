"""What the report says of a sweep follows from rows alone: tables, targets, a page."""

import io
import itertools
import re
from pathlib import Path

import pytest
from rich.console import Console

from herald.experiments import report, rows, sweep_analysis, sweep_comparison, sweep_report
from herald.experiments.rows import Row
from herald.experiments.settings import SETTINGS
from tests.sweep_rows import FACTORS, NUM_REQUESTS, PAIR, SECONDS, first, frontier, only, references, row


def outcomes(found: list[Row]) -> list[tuple[str, bool]]:
    verdict = sweep_report.verdict(sweep_comparison.compare(only(found)))
    return [(criterion.what, criterion.passed) for criterion in verdict]


def test_the_table_says_what_others_took_of_the_host() -> None:
    found = frontier()
    assert not [note for note in sweep_report.grid(only(found)).notes if "taken" in note]  # rows of before
    for made, stolen in zip((made for made in found if "key" in made), itertools.cycle((0.0, 0.031, 0.002))):
        made["host"] = {"busy": 0.2, "stolen": stolen}
    assert "0 to 3.1 %" in sweep_report.grid(only(found)).notes[-1]


def test_several_loads_of_a_pair_are_told_apart() -> None:
    def under(**key: float) -> list[Row]:
        return [found | {"key": found["key"] | key} for found in frontier() if "key" in found]

    told = sweep_analysis.standings([*frontier(), *under(seconds=2 * SECONDS), *under(load=0.3)], "frontier")
    names = [f"{PAIR} load 0.40", f"{PAIR} load 0.20", f"{PAIR} load 0.40 #2"]
    assert [standing.name for standing in told] == names
    grids = sweep_report.points([c for standing in told for c in sweep_comparison.compare(standing)])
    assert [grid.title.partition(": ")[0] for grid in grids] == names
    assert only(frontier()).name == PAIR


def test_gpu_bound_and_launch_bound_services_are_told_apart() -> None:
    launch_bound = [*references(0.3, pair="b+c"), *(r for r in frontier(herald_steps=9.0) if "key" in r)]
    launch_bound = [{**r, "key": {**r["key"], "pair": "b+c"}} if "key" in r else r for r in launch_bound]
    unknown = [{**r, "key": {**r["key"], "pair": "d+e"}} for r in frontier() if "key" in r]
    comparisons = [
        c
        for standing in sweep_analysis.standings([*frontier(), *launch_bound, *unknown], "frontier")
        for c in sweep_comparison.compare(standing)
    ]
    tables = {
        grid.title: dict((line[0], line[1:]) for line in grid.lines) for grid in sweep_report.one_for_all(comparisons)
    }
    held = {title.removeprefix("One setting for all "): lines["herald"][0] for title, lines in tables.items()}
    assert held == {"pairs and SLOs": "6 of 6", "GPU-bound services": "2 of 2", "launch-bound services": "2 of 2"}
    assert tables["One setting for all launch-bound services"]["herald"][3] == "0.900"
    (mean,) = [c.measured for c in sweep_report.verdict(comparisons) if "a static setting" in c.what]
    assert mean.endswith(" (6 points at which Herald holds the SLO; GPU-bound 1.333; launch-bound 1.500)")
    one_kind = sweep_report.one_for_all([c for c in comparisons if c.gpu_bound])
    assert [grid.title for grid in one_kind] == ["One setting for all pairs and SLOs"]


def test_every_criterion_of_a_point_can_pass_and_be_missed() -> None:
    assert all(passed for _, passed in outcomes(frontier(mps_late=0)))
    missed = [what for what, passed in outcomes(frontier(herald_steps=5.0, late=10, mps_late=0)) if not passed]
    assert [what for what in missed if "attainment" in what]
    assert [what for what in missed if "best static, strict" in what]


def test_a_miss_says_which_repetitions_it_is_of_and_what_its_agent_tells() -> None:
    found = [*references(), row("alone"), row("train-alone", steps_per_s=10.0)]
    for repetition, anyway in enumerate((NUM_REQUESTS, 4)):  # counters hold the requests before a run, too
        mine = row("herald", late=10, steps_per_s=8.0, factor=1.1, repetition=repetition)
        found.append({**mine, "herald": {"inference": {"missed_anyway": anyway}}})
    assert first(found).herald.late_anyway == 14 / (2 * NUM_REQUESTS)
    (told,) = [c.measured for c in sweep_report.verdict([first(found)]) if "attainment" in c.what]
    assert "; late 5.0, 5.0 %, alone 0 %, behind a closed gate, too, as its agent tells, 3.5 %)" in told
    del found[-1]["herald"]  # rows of before
    assert first(found).herald.late_anyway is None


def test_points_at_which_herald_misses_the_slo_are_not_gains() -> None:
    assert not [what for what, _ in outcomes(frontier(late=10)) if "geometric mean" in what]


def test_a_launch_bound_service_is_to_leave_more_than_its_idle_time() -> None:
    at_one_and_a_half = [*frontier(busy_share=0.2), row("herald-mps", factor=1.5, steps_per_s=8.0)]
    for made in at_one_and_a_half:
        made["slo_factors"] = [1.5]
    told = dict(outcomes(at_one_and_a_half))
    assert [passed for what, passed in told.items() if "launch-bound" in what] == [False]  # 0.8 / 0.6


def test_the_idle_time_that_training_has_is_that_of_the_same_repetition() -> None:
    """A median of training over a mean of loads would compare the one repetition with all."""
    found = references()
    for repetition, load in enumerate((0.1, 0.5, 0.5)):
        alone = row("alone", repetition=repetition)
        alone["inference"]["busy_s"] = load * SECONDS
        mine = row("herald", factor=1.1, steps_per_s=10 * (1 - load), repetition=repetition)
        found += [alone, mine, row("train-alone", steps_per_s=10.0, repetition=repetition)]
    herald = first(found).herald
    assert herald.relative is not None and herald.relative.value == pytest.approx(0.5)
    assert herald.over_idle == pytest.approx(1.0)


def test_ablations_are_relative_to_the_whole(tmp_path: Path) -> None:
    parts = [row("herald-no-space-mps", factor=1.1, steps_per_s=6.0, kind="ablation")]
    found = [made | {"kind": "ablation"} if made["kind"] == "frontier" else made for made in frontier()]
    (section,) = sweep_report.sections([*found, *parts], tmp_path)
    (grid,) = section.grids
    assert {line[0]: line[-1] for line in grid.lines}["no-space-mps 1.1x"] == "0.750"


def test_without_mps_no_column_speaks_of_it() -> None:
    made = [found for found in frontier() if not found.get("mps")]
    ((with_mps,), (without,)) = (
        sweep_report.points(sweep_comparison.compare(only(found))) for found in (frontier(), made)
    )
    assert with_mps.headings == (*without.headings, "best MPS", "ratio")
    assert [len(line) for line in without.lines] == [len(without.headings)] * len(FACTORS)


def test_the_report_is_a_page_figures_and_a_terminal_of_80_columns(tmp_path: Path) -> None:
    posters = [made | {"kind": "poster"} for made in frontier(mps_late=0) if "key" in made]
    names = [name for name in SETTINGS if name not in {made["key"]["setting"] for made in frontier() if "key" in made}]
    others = [row(name, late=3, steps_per_s=5.0, factor=1.1 if SETTINGS[name].uses_slo else None) for name in names]
    rows.append(tmp_path / "frontier.jsonl", [*frontier(), *others, *posters])
    terminal = io.StringIO()
    report.write([tmp_path / "frontier.jsonl"], tmp_path / "out", console=Console(file=terminal, width=report.WIDTH))
    page = (tmp_path / "out" / "report.md").read_text()
    drawn = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert drawn == sorted(re.findall(r"\]\((.*?)\)", page))
    assert {"frontier.png", "frontier-eager-decode-beside-resnet50-load0.40.png"} <= set(drawn)
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in terminal.getvalue()
