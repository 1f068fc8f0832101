"""Does the simulator say what was measured? Rows of `herald experiment colocation` or `frontier`, run again in
simulation.

Every run is simulated on its own arrivals, with the service times of the run alone of the same repetition, request by
request. What jobs do to each other comes from one run per static setting, that of the first repetition:

    inflation    mean service time / that alone
    rate beside  what training lost, put down to the time with a request open. Where a setting keeps the trainer small
                 (an MPS percentage), it has the same rate all the time instead

So the runs of the first repetition are fitted (their p99 still has to come out of the queue), all others predicted.
Runs under a policy are predicted in every repetition, with the pair's static setting of the same MPS state: what they
add is when gates close and what runs on after. SMs that a policy keeps free for good are a static setting, too.

Rows of `frontier` leave out what follows from the rest: arrivals and service times are worked out again. They have no
runs alone under MPS; those without stand in for them, so that what MPS itself costs a service counts as inflation and
is missed behind a closed gate. Pure functions of rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median

import numpy as np

from herald.experiments import arrivals
from herald.experiments.rows import Row
from herald.scheduler import policies
from herald.scheduler.simulator.gpu import simulate
from herald.scheduler.simulator.interference import NO_MEASUREMENTS, Beside, Interference
from herald.scheduler.simulator.jobs import GpuModel, ServiceModel, TrainerModel

_LEAST_RATE = 0.01
_DEFAULT_STRETCH_NS = 2_600_000  # where no row has one: VGG16's on an H200
_CASE_FIELDS = ("pair", "device", "seconds", "load", "rate_hz", "arrivals", "seed")


@dataclass(frozen=True)
class Checked:
    """One run, measured and simulated."""

    pair: str
    mps: bool
    setting: str
    repetition: int
    fitted: bool  # its own numbers went into the model
    measured_p99_ms: float
    simulated_p99_ms: float
    measured_training: float  # relative to alone
    simulated_training: float

    @property
    def p99_error(self) -> float:
        """Of what was measured."""
        return self.simulated_p99_ms / self.measured_p99_ms - 1

    @property
    def training_error(self) -> float:
        """In shares of the speed alone."""
        return self.simulated_training - self.measured_training

    @property
    def training_ratio_error(self) -> float:
        """Of what was measured; infinite where that is nothing, and it was not foreseen."""
        if self.measured_training == 0:
            return 0.0 if self.simulated_training == 0 else inf
        return self.simulated_training / self.measured_training - 1


@dataclass(frozen=True)
class TypicalError:
    """Medians of the errors' magnitudes over runs, relative to what was measured."""

    runs: int
    p99: float
    training: float


def typical_errors(checked: Iterable[Checked]) -> dict[str, TypicalError]:
    """By pair, in the order of the runs."""
    pairs: dict[str, list[Checked]] = {}
    for run in checked:
        pairs.setdefault(run.pair, []).append(run)
    return {
        pair: TypicalError(
            runs=len(runs),
            p99=median(abs(run.p99_error) for run in runs),
            training=median(abs(run.training_ratio_error) for run in runs),
        )
        for pair, runs in pairs.items()
    }


def check(found: Iterable[Row], *, seed: int = 0) -> list[Checked]:
    """All runs of both jobs that have runs alone beside them, in the order of the rows."""
    cases: dict[tuple[object, ...], list[Row]] = {}
    for row in found:
        case = tuple(row["key"].get(field) for field in _CASE_FIELDS)
        states = (False, True) if row["kind"] == "frontier" and not _has_both(row) else (row["mps"],)
        for mps in states:
            cases.setdefault((*case, mps), []).append(_whole(row))
    return [checked for rows in cases.values() for checked in _check_case(rows, seed)]


def _has_both(row: Row) -> bool:
    return "inference" in row and "training" in row


def _whole(row: Row) -> Row:
    """The row with its arrivals, and service times as a queue of one server has them."""
    if row["kind"] != "frontier" or "inference" not in row:
        return row
    latency_ms = row["inference"]["latency_ms"]
    scheduled_s = arrivals.from_json(row["arrivals"]).times_s(row["key"]["seconds"])
    service_ms, free_ms = [], 0.0
    for arrival_s, latency in zip(scheduled_s, latency_ms, strict=True):
        done_ms = arrival_s * 1e3 + latency
        service_ms.append(done_ms - max(free_ms, arrival_s * 1e3))
        free_ms = done_ms
    return {**row, "inference": {**row["inference"], "scheduled_s": scheduled_s, "service_ms": service_ms}}


def _check_case(rows: Sequence[Row], seed: int) -> list[Checked]:
    services = {row["key"]["repetition"]: row for row in rows if "inference" in row and "training" not in row}
    trainers = {row["key"]["repetition"]: row for row in rows if "training" in row and "inference" not in row}
    both = [row for row in rows if _has_both(row)]
    both = [row for row in both if row["key"]["repetition"] in services.keys() & trainers.keys()]
    if not both:
        return []
    first = min(row["key"]["repetition"] for row in both)
    fits = {
        row["key"]["setting"]: fit(row, services[first], trainers[first])
        for row in both
        if _is_static(row) and row["key"]["repetition"] == first
    }
    shared = ("mps-priority", "mps") if both[0]["mps"] else ("timeslice",)  # a domain under MPS sets priorities
    base = next((fits[setting] for setting in shared if setting in fits), NO_MEASUREMENTS)
    stretch_ns = max((_stretch_ns(row) for row in both), default=0) or _DEFAULT_STRETCH_NS
    checked = []
    for row in both:
        key = row["key"]
        is_static = _is_static(row)
        if is_static and key["setting"] not in fits:
            continue  # not measured in the first repetition
        model = fits[key["setting"]] if is_static else base
        alone, trained = services[key["repetition"]], trainers[key["repetition"]]
        p99_ms, training = _simulated(row, alone, trained, _Terms(model, stretch_ns, seed))
        checked.append(
            Checked(
                pair=key["pair"],
                mps=row["mps"],
                setting=key["setting"],
                repetition=key["repetition"],
                fitted=is_static and key["repetition"] == first,
                measured_p99_ms=_p99(row["inference"]["latency_ms"]),
                simulated_p99_ms=p99_ms,
                measured_training=_relative(row, trained),
                simulated_training=training,
            )
        )
    return checked


def fit(row: Row, alone: Row, trained: Row) -> Interference:
    """What the jobs of a pair do to each other in a static setting, from one run and the two runs alone."""
    names = tuple(row["key"]["pair"].split("+"))
    inflation = float(np.mean(row["inference"]["service_ms"]) / np.mean(alone["inference"]["service_ms"]))
    relative = _relative(row, trained)
    if "pct" in row["key"]["setting"] or row["policy"]:
        beside = Beside(max(1.0, inflation), _as_rate(relative))
        return Interference({(names[0], names[1]): {0: beside}}, {names[1]: {0: _as_rate(relative)}})
    busy = _busy_share(row)
    rate = (relative - (1 - busy)) / busy if busy else 1.0
    return Interference({(names[0], names[1]): {0: Beside(max(1.0, inflation), _as_rate(rate))}})


@dataclass(frozen=True)
class _Terms:
    interference: Interference
    stretch_ns: int
    seed: int


def _simulated(row: Row, alone: Row, trained: Row, terms: _Terms) -> tuple[float, float]:
    """(p99 in ms, training relative to alone)."""
    inference, training = row["key"]["pair"].split("+")
    gpu = GpuModel(
        services=(
            ServiceModel(
                inference,
                tuple(row["inference"]["scheduled_s"]),
                tuple(max(1, round(ms * 1e6)) for ms in alone["inference"]["service_ms"]),
                slo_ns=round((row["slo_ms"] or 0) * 1e6),
                in_order=True,
            ),
        ),
        trainers=(
            TrainerModel(
                training,
                step_ns=round(1e9 / trained["training"]["steps_per_s"]),
                longest_stretch_ns=terms.stretch_ns,
            ),
        ),
        interference=terms.interference,
        mps=row["mps"],
    )
    policy = policies.load("free" if _is_static(row) else row["policy"])
    outcome = simulate(gpu, policy, seconds=row["key"]["seconds"], seed=terms.seed)
    return _p99([ns / 1e6 for ns in outcome.services[0].latencies_ns]), outcome.training


def _is_static(row: Row) -> bool:
    return row["policy"] is None or row["policy"].startswith("reserve")


def _busy_share(row: Row) -> float:
    """Share of the run's seconds with a request at work; what was served after them does not count."""
    seconds = float(row["key"]["seconds"])
    done_s = np.asarray(row["inference"]["scheduled_s"]) + np.asarray(row["inference"]["latency_ms"]) / 1e3
    begun_s = done_s - np.asarray(row["inference"]["service_ms"]) / 1e3
    inside_s = np.minimum(done_s, seconds) - np.minimum(begun_s, seconds)
    return min(1.0, float(inside_s.sum()) / seconds)


def _stretch_ns(row: Row) -> int:
    herald: Mapping[str, Mapping[str, int]] = row.get("herald") or {}
    return herald.get("training", {}).get("longest_op_ns", 0)


def _relative(row: Row, trained: Row) -> float:
    return float(row["training"]["steps_per_s"] / trained["training"]["steps_per_s"])


def _as_rate(value: float) -> float:
    return min(1.0, max(_LEAST_RATE, value))


def _p99(latency_ms: Sequence[float]) -> float:
    return float(np.percentile(latency_ms, 99))
