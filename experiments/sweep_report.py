"""What the report says of a sweep: tables at 80 columns, criteria, figures. All from rows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from herald.experiments import criteria, sweep_figures, sweeps
from herald.experiments.criteria import Criterion
from herald.experiments.report_page import Grid, Section
from herald.experiments.rows import Row
from herald.experiments.shares import Share, percent
from herald.experiments.sweep_analysis import Outcome, Standing, standings
from herald.experiments.sweep_comparison import Comparison, Rival, by_kind, closest, compare, geometric_mean, overall

MOST_INTERVALS = 3  # in a line of 80 columns
POINT_HEADINGS = ("pair", "SLO", "met %", "train", "best static", "ratio")
MPS_HEADINGS = ("best MPS", "ratio")
POSTER_MPS_STEP_TIME = 2.5  # the poster's, on a V100 under TensorFlow: time per batch / alone, with MPS tuned
POSTER_HERALD_STEP_TIME = 1.22  # with Herald


def sections(found: Sequence[Row], out: Path) -> list[Section]:
    """Of every kind of sweep that has rows; figures are drawn into ``out``."""
    told = [(kind, standings(found, kind)) for kind in READERS]
    return [READERS[kind](mine, found, out) for kind, mine in told if mine]


# Tables ---------------------------------------------------------------------------------------------------------------


def grid(standing: Standing) -> Grid:
    """Every setting of a pair: tail, attainment at each SLO with its 95 % interval, training relative to alone."""
    without = f"; 1 - load {1 - standing.load:.2f}" if standing.load is not None else ""
    return Grid(
        title=standing.title + without,
        headings=("setting", "p99", *(f"met {factor:g}x, %" for factor in standing.factors), "train"),
        lines=tuple(_line(standing, outcome) for outcome in standing.outcomes),
        notes=(
            "p99 and train relative to alone without MPS; met: requests in time"
            + (", with 95 % interval" if len(standing.factors) <= MOST_INTERVALS else ""),
            *_host(standing),
        ),
    )


def _host(standing: Standing) -> tuple[str, ...]:
    if standing.stolen is None:
        return ()
    low, high = (percent(share) for share in standing.stolen)
    return (f"of the host's cores {low} to {high} % were taken by other machines, run by run",)


def _line(standing: Standing, outcome: Outcome) -> tuple[str, ...]:
    attained = outcome.attained
    return (
        outcome.label,
        f"{outcome.p99_ratio:.2f}" if outcome.p99_ratio is not None else "",
        *(_met(attained[factor], standing) if factor in attained else "" for factor in standing.factors),
        f"{outcome.relative.value:.3f}" if outcome.relative else "",
    )


def _met(share: Share, standing: Standing) -> str:
    return str(share) if len(standing.factors) <= MOST_INTERVALS else percent(share.value)


def points(comparisons: Sequence[Comparison]) -> list[Grid]:
    """Herald against the best static settings, a line per pair and SLO; each load apart where a pair has several."""
    if not any(c.standing.one_of_several for c in comparisons):
        title = "Herald against the best setting that holds the same SLO"
        return [_points(title, comparisons)] if comparisons else []
    names = dict.fromkeys(c.standing.name for c in comparisons)
    return [_points(f"{n}: Herald against the best", [c for c in comparisons if c.standing.name == n]) for n in names]


def _points(title: str, comparisons: Sequence[Comparison]) -> Grid:
    had_mps = any(c.mps for c in comparisons)  # not on a CPU
    return Grid(
        title=title,
        headings=(*POINT_HEADINGS, *(MPS_HEADINGS if had_mps else ())),
        lines=tuple((*_point(c), *(_against(c.mps) if had_mps else ())) for c in comparisons),
        notes=(
            "ratio: training under Herald / under that setting",
            "(strict): no setting of the class holds the SLO; the ratio is to strict",
            "!: Herald does not hold the SLO",
        ),
    )


def _point(c: Comparison) -> tuple[str, ...]:
    relative = f"{c.herald.relative.value:.3f}" if c.herald.relative else ""
    return (
        c.standing.pair,
        f"{c.factor:g}",
        f"{percent(c.attained.value)}{'' if c.holds else '!'}",
        relative,
        *_against(c.static),
    )


def _against(rival: Rival | None) -> tuple[str, str]:
    return ("", "") if rival is None else (str(rival), f"{rival.ratio:.2f}")


def one_for_all(comparisons: Sequence[Comparison]) -> list[Grid]:
    """What comes of a setting that is chosen once for all pairs and SLOs, and once for each kind of service."""
    if len(comparisons) < 2:
        return []
    found = [_one_for_all("One setting for all pairs and SLOs", comparisons)]
    if len(kinds := by_kind(comparisons)) > 1:
        found += [_one_for_all(f"One setting for all {kind} services", members) for kind, members in kinds.items()]
    return [grid for grid in found if grid.lines]


def _one_for_all(title: str, comparisons: Sequence[Comparison]) -> Grid:
    return Grid(
        title=title,
        headings=("setting", "SLOs held", f"at {criteria.ATTAINMENT:.0%}", "train where held", "over all, 0 if missed"),
        lines=tuple(
            (
                o.label,
                f"{o.held} of {o.points}",
                str(o.reached),
                "" if o.training is None else f"{o.training:.3f}",
                f"{o.useful:.3f}",
            )
            for o in overall(comparisons, sweeps.STATICS)
        ),
        notes=(
            f"held: not surely below {criteria.ATTAINMENT:.0%}; at {criteria.ATTAINMENT:.0%}: by the share itself",
            "train: relative to alone without MPS, means over pairs and SLOs",
            "herald: under MPS where `mps_choice` says so",
        ),
    )


# Criteria -------------------------------------------------------------------------------------------------------------


def verdict(comparisons: Sequence[Comparison]) -> list[Criterion]:
    """The criteria of the frontier."""
    lines = [criterion for c in comparisons for criterion in _of_point(c)]
    held = [c for c in comparisons if c.holds]
    lines += _gains("a static setting, strict among them", held, lambda c: c.static, criteria.STATIC_GAIN)
    lines += _gains("plain MPS", held, lambda c: c.mps, criteria.MPS_GAIN)
    return lines


def _of_point(c: Comparison) -> list[Criterion]:
    lines = []
    if c.is_feasible:
        low, high = c.attained.interval
        target = f"{criteria.ATTAINMENT:.0%}"
        lines.append(
            Criterion(
                what=f"{c.title}: attainment >= {target}, or {target} within its interval and alone's",
                measured=f"{c.attained.value:.2%} ({low:.3%} to {high:.3%}, {c.attained.total} requests{_details(c)})",
                passed=c.holds,
            )
        )
    if c.static is not None:
        what = f"{c.title}: training / best static, {c.static}"
        lines.append(criteria.at_least(what, c.static.ratio, criteria.STATIC_TOLERANCE))
    return lines + _of_kind(c)


def _details(c: Comparison) -> str:
    """Of a miss: which repetitions it is of, how many were late alone, and what Herald's own account says."""
    if c.holds:
        return ""
    late = [percent(1 - share.value) for share in c.herald.met[c.factor].values()]
    alone = c.standing.attained_alone(c.factor)
    parts = [f"; late {', '.join(late)} %"]
    if alone is not None:
        parts.append(f"alone {percent(1 - alone.value)} %")
    if c.herald.late_anyway is not None:
        parts.append(f"behind a closed gate, too, as its agent tells, {percent(c.herald.late_anyway)} %")
    return ", ".join(parts)


def _of_kind(c: Comparison) -> list[Criterion]:
    """What a service asks for that is bound by the device, or by its launches."""
    standing, share = c.standing, c.herald.over_idle
    if standing.load is None or c.gpu_bound is None or share is None or c.herald.p99_ratio is None:
        return []
    room = f"1 - load = {1 - standing.load:.3f} in the mean, each repetition by its own"
    if c.gpu_bound and c.factor == min(standing.factors):
        what = f"{c.title}, GPU-bound: training / (1 - load)"
        return [
            criteria.at_most(f"{c.title}, GPU-bound: p99 / alone", c.herald.p99_ratio, criteria.P99_RATIO),
            criteria.at_least(what, share, criteria.TRAINING_SHARE, detail=room),
        ]
    if not c.gpu_bound and c.factor == criteria.LAUNCH_BOUND_FACTOR:
        what = f"{c.title}, launch-bound: training / (1 - load)"
        return [criteria.at_least(what, share, criteria.LAUNCH_BOUND_GAIN, detail=room)]
    return []


def _gains(
    against: str, held: Sequence[Comparison], rival_of: Callable[[Comparison], Rival | None], least: float
) -> list[Criterion]:
    def ratios(comparisons: Sequence[Comparison]) -> list[float]:
        return [rival.ratio for c in comparisons if (rival := rival_of(c)) is not None]

    known = ratios(held)
    mean = geometric_mean(known)
    if mean is None:
        return []
    parts = [f"{len(known)} points at which Herald holds the SLO"]
    parts += [f"{kind} {m:.3f}" for kind, c in by_kind(held).items() if (m := geometric_mean(ratios(c))) is not None]
    what = f"geometric mean of training over the best of {against}"
    return [criteria.at_least(what, mean, least, detail="; ".join(parts))]


# Kinds ----------------------------------------------------------------------------------------------------------------


def frontier(mine: Sequence[Standing], _found: Sequence[Row], out: Path) -> Section:
    """Pairs x SLOs against every static setting."""
    comparisons = [comparison for standing in mine for comparison in compare(standing)]
    grids = [*(grid(standing) for standing in mine), *points(comparisons), *one_for_all(comparisons)]
    drawn = [sweep_figures.frontier(s, out / f"frontier-{_slug(s)}.png") for s in mine if _drawable(s)]
    if overview := [s for s in mine if _drawable(s)]:
        drawn.append(sweep_figures.overview(overview, out / "frontier.png"))
    return Section("Frontier", tuple(grids), tuple(verdict(comparisons)), tuple(drawn))


def ablation(mine: Sequence[Standing], _found: Sequence[Row], _out: Path) -> Section:
    """The controller against itself without a part."""
    return Section("Ablation", tuple(_ablation_grid(standing) for standing in mine), (), ())


def _ablation_grid(standing: Standing) -> Grid:
    base = grid(standing)
    whole = {factor: standing.outcome("herald-mps", factor) for factor in standing.factors}
    ratios = [_over_whole(o, whole.get(o.slo_factor or standing.factors[0])) for o in standing.outcomes]
    lines = tuple((*line, ratio) for line, ratio in zip(base.lines, ratios, strict=True))
    return Grid(base.title, (*base.headings, "/ whole"), lines, base.notes)


def _over_whole(outcome: Outcome, whole: Outcome | None) -> str:
    if whole is None or not outcome.met:
        return ""
    ratio = outcome.training_over(whole)
    return "" if ratio is None else f"{ratio:.3f}"


def poster(mine: Sequence[Standing], found: Sequence[Row], out: Path) -> Section:
    """The poster's figures: alone, tuned MPS, Herald."""
    grids, lines, drawn = [], [], []
    for standing in mine:
        grids.append(grid(standing))
        for factor in standing.factors:
            tuned, herald = closest(standing, sweeps.MPS_SWEEP, factor), standing.controllers.get(factor)
            if tuned is None or herald is None or not (tuned.relative and herald.relative):
                continue
            grids.append(_poster_grid(standing, factor, tuned, herald))
            lines += _poster_verdict(standing, factor, herald)
            path = out / f"poster-{_slug(standing)}-slo{factor:g}.png"
            drawn.append(sweep_figures.poster(standing, factor, found, path, tuned=tuned, herald=herald))
    return Section("Poster", tuple(grids), tuple(lines), tuple(drawn))


def _poster_grid(standing: Standing, factor: float, tuned: Outcome, herald: Outcome) -> Grid:
    held = "holds the SLO" if standing.holds(tuned, factor) else "none of the sweep holds the SLO; it comes closest"
    return Grid(
        title=f"{standing.name} at SLO {factor:g}x, beside the poster (V100, TensorFlow)",
        headings=("", "% met", "time per batch / alone", "the poster's"),
        lines=(
            (f"tuned MPS: {tuned.label}", *_poster_cells(tuned, factor), f"{POSTER_MPS_STEP_TIME:g}"),
            (f"Herald: {herald.label}", *_poster_cells(herald, factor), f"{POSTER_HERALD_STEP_TIME:g}"),
        ),
        notes=(f"tuned MPS is {tuned.label}: {held}; the poster names no load",),
    )


def _poster_cells(outcome: Outcome, factor: float) -> tuple[str, str]:
    assert outcome.relative is not None
    return str(outcome.attained[factor]), f"{1 / outcome.relative.value:.2f}"


def _poster_verdict(standing: Standing, factor: float, herald: Outcome) -> list[Criterion]:
    assert herald.relative is not None
    share, slowdown = herald.attained[factor], 1 / herald.relative.value
    bound = f"time slicing gives {1 / (1 - standing.load):.2f}" if standing.load is not None else ""
    return [
        Criterion(
            f"{standing.name}: every request meets its SLO of {factor:g}x",
            f"{share.met} of {share.total}",
            share.met == share.total,
        ),
        criteria.at_most(f"{standing.name}: time per batch / alone", slowdown, criteria.POSTER_STEP_TIME, detail=bound),
    ]


def _drawable(standing: Standing) -> bool:
    return any(o.judged_at(f) and o.relative for o in standing.outcomes for f in standing.factors)


def _slug(standing: Standing) -> str:
    number = f"-{standing.number}" if standing.number > 1 else ""
    return f"{standing.pair.replace('+', '-beside-')}-{standing.load_told.replace(' ', '').lower()}{number}"


Reader = Callable[[Sequence[Standing], Sequence[Row], Path], Section]
READERS: Mapping[str, Reader] = {"frontier": frontier, "poster": poster, "ablation": ablation}
