"""What the report says of a crowd: every service's attainment, every trainer's progress."""

from collections.abc import Sequence
from typing import Any

from herald.experiments import criteria, shares
from herald.experiments.criteria import Criterion
from herald.experiments.crowd import KIND
from herald.experiments.report_page import Grid, Section
from herald.experiments.rows import Row, of_kind


def sections(found: Sequence[Row]) -> list[Section]:
    """A section per row."""
    return [_section(row) for row in of_kind(found, KIND)]


def _section(row: Row) -> Section:
    key = row["key"]
    services = Grid(
        title=f"Services at load {key['load']:g} in all, SLO {key['slo_factor']:g}x p99 alone, policy {row['policy']}",
        headings=("service", "rate/s", "SLO ms", "without trainers, %", "with them, %"),
        lines=tuple(_service(service) for service in row["services"]),
        notes=("requests in time, in %, with 95 % interval",),
    )
    trainers = Grid(
        title="Trainers",
        headings=("trainer", "steps/s alone", "steps/s", "relative", "floor"),
        lines=tuple(_trainer(trainer) for trainer in row["trainers"]),
    )
    verdict = [criterion for service in row["services"] for criterion in _of_service(service)]
    verdict += [
        criteria.at_least(f"{trainer['name']}: progress relative to alone", _relative(trainer), trainer["floor"])
        for trainer in row["trainers"]
    ]
    return Section("Crowd", (services, trainers), tuple(verdict))


def _service(service: dict[str, Any]) -> tuple[str, ...]:
    together, with_them = (shares.within(service[name], service["slo_ms"]) for name in ("together_ms", "latency_ms"))
    return service["name"], f"{service['rate_hz']:.1f}", f"{service['slo_ms']:.1f}", str(together), str(with_them)


def _of_service(service: dict[str, Any]) -> list[Criterion]:
    """Nothing is asked where the services alone do not hold the SLO."""
    together, with_them = (shares.within(service[name], service["slo_ms"]) for name in ("together_ms", "latency_ms"))
    if not together.holds(criteria.ATTAINMENT):
        return []
    what = f"{service['name']}: attainment >= {criteria.ATTAINMENT:.0%}, or not surely below"
    return [
        Criterion(what, f"{with_them} %, {with_them.total} requests", with_them.holds(criteria.ATTAINMENT, together))
    ]


def _trainer(trainer: dict[str, Any]) -> tuple[str, ...]:
    return (
        trainer["name"],
        f"{trainer['alone_steps_per_s']:.2f}",
        f"{trainer['steps_per_s']:.2f}",
        f"{_relative(trainer):.3f}",
        f"{trainer['floor']:g}",
    )


def _relative(trainer: dict[str, Any]) -> float:
    return float(trainer["steps_per_s"] / trainer["alone_steps_per_s"])
