"""What the report says of load steps: misses just after each, attainment from then on, and the latencies over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from herald.experiments import arrivals as arrivals_data
from herald.experiments import criteria, shares
from herald.experiments.criteria import Criterion
from herald.experiments.figures import colour, pyplot
from herald.experiments.report_page import Grid, Section
from herald.experiments.rows import Row, of_kind
from herald.experiments.settings import SETTINGS
from herald.experiments.shares import Share
from herald.experiments.steps import KIND

_Latencies = Sequence[tuple[float, float]]  # scheduled s, latency in ms


@dataclass(frozen=True)
class Climb:
    """One setting over the steps."""

    setting: str
    after: tuple[Share, ...]  # of the first requests after each step
    settled: Share  # of all others after the first step
    relative: float | None  # training to alone

    @property
    def is_quick(self) -> bool:
        """Whether few of the first requests miss."""
        return all(1 - share.value <= criteria.STEP_MISSES for share in self.after)


def climb(row: Row, slo_ms: float, trainer: Row | None) -> Climb:
    """What a row says. A phase with fewer requests than are judged first gives no settled ones."""
    key = row["key"]
    seen = latencies(row)
    firsts, rest = [], []
    for begin_s in (key["phase_s"], 2 * key["phase_s"]):
        phase = [ms for s, ms in seen if begin_s <= s < begin_s + key["phase_s"]]
        firsts.append(shares.within(phase[: criteria.STEP_REQUESTS], slo_ms))
        rest.append(shares.within(phase[criteria.STEP_REQUESTS :], slo_ms))
    alone = trainer["training"]["steps_per_s"] if trainer else None
    relative = row["training"]["steps_per_s"] / alone if "training" in row and alone else None
    return Climb(key["setting"], tuple(firsts), shares.total(rest), relative)


def latencies(row: Row) -> _Latencies:
    """When each request was due, and how long it took."""
    times_s = arrivals_data.from_json(row["arrivals"]).times_s(3 * row["key"]["phase_s"])
    return list(zip(times_s, row["inference"]["latency_ms"], strict=True))


def sections(found: Sequence[Row], out: Path) -> list[Section]:
    """A section per pair and seed; figures are drawn into ``out``."""
    cases: dict[tuple[str, int, float], dict[str, Row]] = {}
    for row in of_kind(found, KIND):
        key = row["key"]
        cases.setdefault((key["pair"], key["seed"], key["slo_factor"]), {})[key["setting"]] = row
    return [_section(pair, by_setting, out) for (pair, _, _), by_setting in cases.items()]


def _section(pair: str, by_setting: Mapping[str, Row], out: Path) -> Section:
    slo_ms = next((row["slo_ms"] for row in by_setting.values() if row["slo_ms"] is not None), float("inf"))
    climbs = [climb(r, slo_ms, by_setting.get("train-alone")) for r in by_setting.values() if "inference" in r]
    key = next(iter(by_setting.values()))["key"]
    title = f"{pair}: load {key['low']:g} -> {key['high']:g} -> {key['low']:g}, SLO {slo_ms:.1f} ms"
    grid = Grid(
        title=title,
        headings=("setting", f"first {criteria.STEP_REQUESTS} up", "down", "then", "train"),
        lines=tuple(_line(found) for found in climbs),
        notes=("requests in time, in %, with 95 % interval; train relative to alone without MPS",),
    )
    verdict = tuple(line for found in climbs if SETTINGS[found.setting].uses_slo for line in _verdict(pair, found))
    return Section(
        "Load steps", (grid,), verdict, (_figure(title, by_setting, slo_ms, out / f"steps-{_slug(pair)}.png"),)
    )


def _line(found: Climb) -> tuple[str, ...]:
    relative = "" if found.relative is None else f"{found.relative:.3f}"
    return SETTINGS[found.setting].label, *(str(share) for share in found.after), str(found.settled), relative


def _verdict(pair: str, found: Climb) -> list[Criterion]:
    missed = ", ".join(f"{share.total - share.met} of {share.total}" for share in found.after)
    few = f"at most {criteria.STEP_MISSES:.0%} of the first {criteria.STEP_REQUESTS} requests after a load step miss"
    return [
        Criterion(f"{pair}: {few}", missed, found.is_quick),
        Criterion(
            f"{pair}: from then on attainment >= {criteria.ATTAINMENT:.0%}, or not surely below",
            f"{found.settled} %, {found.settled.total} requests",
            found.settled.holds(criteria.ATTAINMENT),
        ),
    ]


def _figure(title: str, by_setting: Mapping[str, Row], slo_ms: float, path: Path) -> Path:
    plt = pyplot()
    served = {name: row for name, row in by_setting.items() if "inference" in row}
    figure, axes = plt.subplots(
        len(served), 1, figsize=(9, 2.2 * len(served)), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for (ax,), (name, row) in zip(axes, served.items(), strict=True):
        seen, phase_s = latencies(row), row["key"]["phase_s"]
        ax.axvspan(phase_s, 2 * phase_s, color="#000000", alpha=0.07)
        ax.plot([s for s, _ in seen], [ms for _, ms in seen], "o", markersize=3, color=colour(SETTINGS[name].family))
        ax.axhline(slo_ms, color="#000000", linewidth=1, linestyle="--")
        ax.set_ylabel(f"{SETTINGS[name].label}\nlatency, ms", fontsize=9)
        ax.set_yscale("log")
        ax.grid(alpha=0.25)
    axes[-1][0].set_xlabel("scheduled arrival, s (shaded: the high load; dashed: the SLO)")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _slug(pair: str) -> str:
    return pair.replace("+", "-beside-")
