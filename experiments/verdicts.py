"""What the rows of measurements say of Herald's criteria: one reader per kind of row. Pure functions of rows."""

from collections.abc import Callable, Mapping, Sequence

from herald.experiments import criteria
from herald.experiments.criteria import Criterion
from herald.experiments.rows import Row

_EVENT = " ns an event"


def hook_cost(found: Sequence[Row]) -> list[Criterion]:
    """The cost of an op event to a trainer that is alone; elsewhere, of the look-up beyond torch's own."""
    lines: list[Criterion] = []
    for case in (case for row in found for case in row["cases"]):
        if case["alone"]:
            lines.append(criteria.at_most(f"hook, {case['case']}", case["ns_per_event"], criteria.HOOK_NS, _EVENT))
        elif case["looks_up"]:
            cost_ns = case["lookup_ns_per_event"]
            lines.append(criteria.at_most(f"look-up, {case['case']}", cost_ns, criteria.LOOKUP_NS, _EVENT))
    return lines


def decision_cost(found: Sequence[Row]) -> list[Criterion]:
    """The daemon's, with the controller, on this machine."""
    return [
        criterion
        for row in found
        if row["policy"] == "herald"
        for criterion in (
            criteria.at_most("a decision of herald", row["decision_us"], criteria.DECISION_US, " us"),
            criteria.at_most("the daemon, of one core", row["core_share"], criteria.DAEMON_SHARE),
        )
    ]


def overhead(found: Sequence[Row]) -> list[Criterion]:
    """What Herald costs a job that is alone: not the rows of a sweep, which have a service beside them."""
    limits = {"training": criteria.TRAINER_OVERHEAD, "inference": criteria.INFERENCE_OVERHEAD}
    return [
        criteria.at_most(
            f"{row['workload']} alone, time with / without Herald",
            row["ratio"],
            limits[row["role"]],
            detail=f"quartiles {row['ratio_low']:.4f} to {row['ratio_high']:.4f}, {row['blocks']} blocks",
        )
        for row in found
        if row.get("quantum_ns") is None
    ]


def numerics(found: Sequence[Row]) -> list[Criterion]:
    """Bit-identical losses."""
    return [
        Criterion(
            what=f"{row['workload']} on {row['device']}: losses bit-identical under a gate that opens and closes",
            measured=f"{row['equal']} of {row['steps']} steps; the gate closed {row['closes']} times"
            + ("" if row["gated"] else ", but nothing waited for it"),
            passed=row["identical"] and row["gated"],
        )
        for row in found
    ]


def faults(found: Sequence[Row]) -> list[Criterion]:
    """How long the others took to go on after a kill."""
    return [
        Criterion(
            what=f"{row['case']} on {row['device']}{', MPS' if row['mps'] else ''}: "
            f"others go on within {criteria.RECOVERY_S:g} s",
            measured=row["outcome"],
            passed=row["recovered"],
        )
        for row in found
    ]


def recorder(found: Sequence[Row]) -> list[Criterion]:
    """How much cheaper than torch's profiler."""
    lines: list[Criterion] = []
    for row in found:
        ratio, cost = row["ratio"]["whole"], row["cost"]["recorder"]["whole"]
        detail = "at least: the recorder is below the noise; " if ratio["is_bound"] else ""
        detail += f"recorder {cost['ns']:.0f} ns an op, {cost['low_ns']:.0f} to {cost['high_ns']:.0f}"
        what = f"{row['workload']} on {row['device']}, cost of torch.profiler / recorder"
        lines.append(criteria.at_least(what, ratio["value"], criteria.RECORDER_RATIO, detail=detail))
    return lines


def prediction(found: Sequence[Row]) -> list[Criterion]:
    """How far off predictions of iterations and of requests are."""
    return [_iteration(row) if row["part"] == "iterations" else _request(row) for row in found]


def _iteration(row: Row) -> Criterion:
    others = ", ".join(f"{name} {error:+.1%}" for name, error in row["error"].items() if name != "sum")
    what = f"{row['workload']}: sum over ops against a measured iteration, off"
    return criteria.at_most(what, abs(row["error"]["sum"]), criteria.PREDICTION_ERROR, detail=others)


def _request(row: Row) -> Criterion:
    company = f"beside {row['beside']}" if row["beside"] else "alone"
    what = f"{row['workload']} {company}: what remains of a request at its middle, off"
    if row["error"] is None:
        return Criterion(what, f"none of {row['requests']} requests was scored", passed=False)
    detail = f"{row['scored']} of {row['requests']} requests"
    return criteria.at_most(what, row["error"], criteria.PROGRESS_ERROR, detail=detail)


def coverage(found: Sequence[Row]) -> list[Criterion]:
    """Share of device time that can be held back (eager), longest stretch that cannot (compiled). Of GPUs only."""
    lines: list[Criterion] = []
    for row in found:
        truth = row["truth"]
        if truth["covered"] is None:
            continue
        if row["compiled"]:
            detail = f"traced {truth['longest_us'] / 1e3:.3f}, coverage {truth['covered']:.2%}"
            most_ms = max(truth["longest_us"], row["longest_predicted_us"]) / 1e3
            what = f"{row['workload']}: longest stretch without a gate"
            lines.append(criteria.at_most(what, most_ms, criteria.UNGATED_MS, " ms", detail=detail))
        else:
            counted = "none" if row["counted"] is None else f"{row['counted']:.2%}"
            what = f"{row['workload']}: share of device time that passes the gate"
            detail = f"the job's own counter says {counted}"
            lines.append(criteria.at_least(what, truth["covered"], criteria.COVERAGE, detail=detail))
    return lines


def classification(found: Sequence[Row]) -> list[Criterion]:
    """Whether predicted harm ranks ops as measured harm does, and how wrong the worst op called light is."""
    from herald.experiments.calibration.fit import spearman

    told = [row for row in found if "predicted" in row]
    if not found:
        return []
    if not told:
        return [Criterion("harm of unseen ops", f"none of {len(found)} ops was measured and predicted", passed=False)]
    measured, predicted = ([row[name] for row in told] for name in ("measured", "predicted"))
    sources = sorted({row["op"].partition("/")[0] for row in told})
    light = [row for row in told if row["class"] == "light"]
    worst = max((row["measured"] / row["bound"] for row in light), default=0.0)
    truly = sum(row["measured"] < row["bound"] for row in told)
    return [
        criteria.at_least(
            "harm of unseen ops, rank correlation of predicted and measured",
            spearman(measured, predicted),
            criteria.HARM_RANKS,
            detail=f"{len(told)} of {len(found)} ops, of {', '.join(sources)}",
        ),
        criteria.at_most(
            f"worst harm of an op called light / the bound of {told[0]['bound']:g} %",
            worst,
            criteria.LIGHT_HARM,
            detail=f"{len(light)} called light, {truly} are",
        ),
    ]


READERS: Mapping[str, Callable[[Sequence[Row]], list[Criterion]]] = {
    "hook-cost": hook_cost,
    "decision-cost": decision_cost,
    "classification": classification,
    "coverage": coverage,
    "overhead": overhead,
    "prediction": prediction,
    "recorder": recorder,
    "numerics": numerics,
    "faults": faults,
}
