"""What the report says of a sweep follows from rows alone: made-up rows whose answers are known."""

import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from herald.experiments import report, rows, sweep_analysis, sweep_comparison, sweep_report, sweeps
from herald.experiments.rows import Row
from herald.experiments.settings import SETTINGS
from herald.experiments.shares import Share, within
from herald.experiments.sweep_analysis import Standing
from herald.experiments.sweep_comparison import Comparison

NUM_REQUESTS = 200
SECONDS = 20.0
FACTORS = (1.1, 2.0)
PAIR = "eager-decode+resnet50"


def row(
    setting: str,
    *,
    late: int = 0,
    steps_per_s: float = 0.0,
    factor: float | None = None,
    repetition: int = 0,
    kind: str = "frontier",
    pair: str = PAIR,
    seed: int = 0,
    slowness: float = 1.0,
) -> Row:
    """A run in which requests take 20 ms (0.04 of the time in all), ``late`` of them 100 ms, on a host that slow."""
    chosen = SETTINGS[setting]
    made: dict[str, Any] = {
        "kind": kind,
        "key": {
            "pair": pair,
            "setting": setting,
            "slo_factor": factor,
            "repetition": repetition,
            "device": "cuda",
            "seconds": SECONDS,
            "load": 0.4,
            "rate_hz": None,
            "seed": seed,
        },
        "slo_factors": list(FACTORS),
        "mps": chosen.mps,
        "slo_ms": slowness * 20.0 * (factor or FACTORS[-1]),
        "arrivals": {"kind": "periodic", "rate_hz": 10.0},
    }
    if "inference" in chosen.roles:
        latency_ms = [slowness * ms for ms in [100.0] * late + [20.0] * (NUM_REQUESTS - late)]
        made["inference"] = {"latency_ms": latency_ms, "busy_s": 8.0, "attainment": 1 - late / NUM_REQUESTS}
    if "training" in chosen.roles:
        made["training"] = {"steps_per_s": steps_per_s / slowness}
    return made


def references(
    busy_share: float = 1.0, slowdown: float = 9.0, pair: str = PAIR, seed: int = 0, slowness: float = 1.0
) -> list[Row]:
    case = {"pair": pair, "device": "cuda", "load": 0.4, "rate_hz": None, "seed": seed}
    return [
        {
            "kind": "service-time",
            "workload": pair.partition("+")[0],
            "device": "cuda",
            "mean_s": 0.004,
            "busy_share": busy_share,
            "slowdown": slowdown,
            "seed": seed,
        },
        {"kind": "slo-reference", **case, "p99_ms": 20.0 * slowness, "count": NUM_REQUESTS},
    ]


def frontier(
    herald_steps: float = 8.0, *, late: int = 0, mps_late: int = 20, busy_share: float = 1.0, slowdown: float = 9.0
) -> list[Row]:
    """Load 0.4. Time slicing trains most and misses; MPS at 25 % trains least and holds, where ``mps_late`` lets it."""
    return [
        *references(busy_share, slowdown),
        row("alone"),
        row("train-alone", steps_per_s=10.0),
        row("timeslice", late=50, steps_per_s=9.0),
        row("herald-strict", steps_per_s=6.0),
        row("mps", late=60, steps_per_s=9.5),
        row("mps-pct-25", late=mps_late, steps_per_s=2.0),
        *(row(name, late=late, steps_per_s=herald_steps, factor=f) for name in sweeps.CONTROLLER for f in FACTORS),
    ]


def only(found: list[Row], kind: str = "frontier") -> Standing:
    (standing,) = sweep_analysis.standings(found, kind)
    return standing


def first(found: list[Row]) -> Comparison:
    return sweep_comparison.compare(only(found))[0]


def outcomes(found: list[Row]) -> list[tuple[str, bool]]:
    verdict = sweep_report.verdict(sweep_comparison.compare(only(found)))
    return [(criterion.what, criterion.passed) for criterion in verdict]


@pytest.mark.parametrize(
    ("share", "low", "high"),
    [(Share(99, 100), 0.9455, 0.9982), (Share(0, 10), 0.0, 0.2775), (Share(10, 10), 0.7225, 1.0)],
)
def test_the_interval_of_a_share_is_wilsons(share: Share, low: float, high: float) -> None:
    assert share.interval == pytest.approx((low, high), abs=1e-4)


def test_a_share_counts_requests_that_took_just_the_slo() -> None:
    assert within([1.0, 2.0, 3.0], 2.0) == Share(2, 3)


def test_an_slo_is_held_where_it_is_not_surely_missed_but_only_if_alone_holds_it_too() -> None:
    unsure, missed = Share(197, 200), Share(150, 200)
    assert unsure.holds(0.99, alone=unsure)
    assert not unsure.holds(0.99, alone=missed)
    assert not missed.holds(0.99, alone=unsure)
    assert Share(99, 100).holds(0.99, alone=missed)


def test_a_setting_that_does_not_ask_for_the_slo_is_judged_at_all_of_them() -> None:
    standing = only(frontier())
    strict, herald = standing.outcome("herald-strict", 1.1), standing.outcome("herald", 1.1)
    assert strict is not None and herald is not None
    assert set(strict.attained or {}) == set(FACTORS)
    assert set(herald.attained or {}) == {1.1}


def test_training_is_relative_to_alone_without_mps() -> None:
    herald = only(frontier()).outcome("herald-mps", 2.0)
    assert herald is not None and herald.relative is not None
    assert herald.relative.value == pytest.approx(0.8)


def test_repetitions_are_pooled_and_their_spread_is_kept() -> None:
    more = [
        row("herald", factor=1.1, steps_per_s=7.0, repetition=1),
        row("train-alone", steps_per_s=10.0, repetition=1),
    ]
    herald = only([*frontier(), *more]).outcome("herald", 1.1)
    assert herald is not None and herald.relative is not None
    assert (herald.repetitions, herald.attained[1.1].total) == (2, 2 * NUM_REQUESTS)
    assert (herald.relative.low, herald.relative.value, herald.relative.high) == pytest.approx((0.7, 0.75, 0.8))


def test_runs_on_several_hosts_are_pooled_each_against_what_was_alone_in_it() -> None:
    slow = {"seed": 1, "slowness": 3.0}
    second = [
        *references(**slow),
        row("alone", **slow),
        row("train-alone", steps_per_s=10.0, **slow),
        row("mps-pct-25", steps_per_s=4.0, **slow),
        row("herald", late=1, steps_per_s=9.0, factor=1.1, **slow),
    ]
    standing = only([*frontier(mps_late=2), *second])
    herald, mps = standing.outcome("herald", 1.1), standing.outcome("mps-pct-25")
    assert herald is not None and mps is not None
    assert (herald.attained[1.1], mps.attained[1.1]) == (Share(399, 400), Share(398, 400))
    assert herald.relative is not None and mps.relative is not None
    assert (herald.relative.value, mps.relative.value) == pytest.approx((0.85, 0.3))
    assert herald.p99_ratio == pytest.approx(1.0)
    assert "2 runs" in standing.title


@pytest.mark.parametrize("turned", [False, True])
def test_each_run_is_judged_in_the_mps_state_that_was_chosen_on_its_host(turned: bool) -> None:
    """And against rivals of the same repetitions, whichever file comes first."""
    one = [row("alone"), row("herald", factor=1.1, steps_per_s=9.0), row("timeslice", steps_per_s=9.0)]
    other = [
        row("alone", seed=1),
        row("herald-mps", factor=1.1, steps_per_s=6.0, seed=1),
        row("timeslice", steps_per_s=6.0, seed=1),
        row("mps", steps_per_s=5.0, seed=1),
    ]
    comparison = first([*other, *one] if turned else [*one, *other])
    assert comparison.herald.repetitions == 2
    assert comparison.static is not None and (comparison.static.setting, comparison.static.ratio) == ("timeslice", 1.0)
    assert comparison.mps is not None and comparison.mps.ratio == pytest.approx(1.2)


@pytest.mark.parametrize("turned", [False, True])
def test_where_both_states_were_measured_each_host_says_which_counts(turned: bool) -> None:
    runs = []
    for seed, busy_share, chosen in ((0, 1.0, "herald"), (1, 0.5, "herald-mps")):
        both = [
            row(name, late=0 if name == chosen else 50, factor=1.1, steps_per_s=5.0, seed=seed)
            for name in sweeps.CONTROLLER
        ]
        runs.append([*references(busy_share, seed=seed), row("alone", seed=seed), *both])
    found = [*runs[1], *runs[0]] if turned else [*runs[0], *runs[1]]
    assert first(found).attained == Share(2 * NUM_REQUESTS, 2 * NUM_REQUESTS)


def test_a_rival_is_judged_over_the_repetitions_that_herald_has() -> None:
    found = [
        *references(),
        row("alone"),
        row("herald", factor=1.1, steps_per_s=5.0),
        row("timeslice", steps_per_s=9.0),
        row("herald-strict", steps_per_s=4.0),
        *references(seed=1),
        row("alone", seed=1),
        row("timeslice", late=60, steps_per_s=9.0, seed=1),
    ]
    rival = first(found).static
    assert rival is not None and (rival.setting, rival.ratio) == ("timeslice", pytest.approx(5 / 9))


def test_no_training_at_all_is_a_mean_of_nothing_not_a_crash() -> None:
    assert sweep_comparison.geometric_mean([0.0, 1.0]) == 0.0
    assert sweep_comparison.geometric_mean([]) is None


def test_a_run_without_a_reference_leaves_the_others_of_its_setting_standing() -> None:
    found = [*frontier(mps_late=0), row("mps-pct-25", late=100, steps_per_s=2.0, seed=1)]
    mps = only(found).outcome("mps-pct-25")
    assert mps is not None
    assert mps.attained[1.1] == Share(NUM_REQUESTS, NUM_REQUESTS)


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


def test_one_setting_for_all_counts_what_it_holds_and_what_it_trains_there() -> None:
    other = [{**r, **({"pair": "b+c"} if "pair" in r else {})} for r in frontier(mps_late=0)]
    other = [{**r, "key": {**r["key"], "pair": "b+c"}} if "key" in r else r for r in other]
    found = [*frontier(), *other]
    comparisons = [
        c for standing in sweep_analysis.standings(found, "frontier") for c in sweep_comparison.compare(standing)
    ]
    told = {o.label: o for o in sweep_comparison.overall(comparisons, sweeps.STATICS)}
    assert [(o.held, o.points) for o in told.values()] == [(0, 4), (0, 4), (2, 4), (4, 4), (4, 4)]
    assert list(told) == ["timeslice", "mps", "mps-pct-25", "strict", "herald"]
    assert (told["timeslice"].training, told["timeslice"].useful) == (None, 0.0)
    assert (told["mps-pct-25"].training, told["mps-pct-25"].useful) == pytest.approx((0.2, 0.1))
    assert told["herald"].useful == pytest.approx(0.8)


def test_what_is_not_surely_missed_is_told_from_what_is_reached() -> None:
    comparisons = sweep_comparison.compare(only(frontier(late=3)))
    told = {o.label: o for o in sweep_comparison.overall(comparisons, sweeps.STATICS)}
    assert (told["herald"].held, told["herald"].reached, told["strict"].reached) == (2, 0, 2)  # 98.5 % of 200


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


def test_a_setting_that_some_pair_lacks_is_not_compared_over_all() -> None:
    without = [r for r in frontier() if r.get("key", {}).get("setting") != "mps"]
    comparisons = sweep_comparison.compare(only(without))
    assert "mps" not in [o.label for o in sweep_comparison.overall(comparisons, sweeps.STATICS)]


def test_two_rows_of_one_run_are_refused() -> None:
    with pytest.raises(rows.RowsError, match=r"alone, repetition 0, with seed 0: .*--seed"):
        only([*frontier(), row("alone")])


@pytest.mark.parametrize(
    ("slowdown", "busy_share", "chosen"), [(1.5, 0.5, "herald-mps"), (1.0, 0.5, "herald-mps"), (1.0, 1.0, "herald")]
)
def test_heralds_state_is_the_one_that_the_probe_says(slowdown: float, busy_share: float, chosen: str) -> None:
    herald = only(frontier(slowdown=slowdown, busy_share=busy_share)).controllers[1.1]
    assert herald.setting == chosen


def test_the_rival_trains_most_among_those_that_hold() -> None:
    comparison = first(frontier(mps_late=0))
    assert comparison.static is not None and comparison.static.setting == "herald-strict"
    assert comparison.mps is not None and (comparison.mps.setting, comparison.mps.holds) == ("mps-pct-25", True)
    assert comparison.mps.ratio == pytest.approx(4.0)


def test_where_no_setting_of_a_class_holds_strict_stands_in_and_it_is_said() -> None:
    comparison = first(frontier(mps_late=20))
    assert str(comparison.mps) == "(strict)"
    assert comparison.mps is not None and comparison.mps.ratio == pytest.approx(8 / 6)


def test_without_anything_to_compare_with_there_is_no_ratio() -> None:
    lonely = [*references(), row("alone"), row("herald", factor=1.1, steps_per_s=5.0)]
    comparison = first(lonely)
    assert comparison.static is None


def test_tuned_mps_is_the_closest_where_none_holds() -> None:
    found = [*frontier(), row("mps-pct-50", late=15, steps_per_s=4.0)]
    closest = sweep_comparison.closest(only(found), sweeps.MPS_SWEEP, 1.1)
    assert closest is not None and closest.setting == "mps-pct-50"


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
