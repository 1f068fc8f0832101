"""`herald experiment prediction`: whether what Herald predicts of an iteration, and of a request's rest, comes true.

Iterations: a worker trains unprofiled for some blocks, is profiled (`herald.profile`), trains again; the predicted
time is compared with the median step of the unprofiled blocks, which run back to back with two steps in flight.
Requests: a service whose progress Herald follows serves Poisson arrivals, alone and beside a trainer under Herald; the
time predicted to remain at the middle of each request is scored by the service's own process when it has ended.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from herald.errors import ConfigError
from herald.experiments import settings, workloads
from herald.experiments.arrivals import Poisson
from herald.experiments.crew import Crew, Pair, launch_for, load
from herald.experiments.domain import PrivateDomain
from herald.experiments.measurement import Kind
from herald.experiments.plan import profile_path
from herald.experiments.process import Channel, Worker
from herald.experiments.rows import Row
from herald.experiments.settings import Setting
from herald.experiments.trial import Terms, run_trial

PARTS = ("iterations", "requests")
PREDICTIONS = ("sum", "kernels", "timeline")
DEFAULT = {"cpu": ("cpu-vgg", "cpu-rnnlm", "cpu-gpt"), "cuda": ("vgg16", "rnnlm", "resnet50", "gpt2")}
PAIRS = {
    "cpu": (Pair("cpu-transformer", "cpu-vgg"), Pair("cpu-decode", "cpu-vgg")),
    "cuda": (Pair("transformer", "vgg16"), Pair("eager-decode", "vgg16")),
}
RATE_HZ = 10.0
BLOCK_S = 0.4
LEAST_STEPS = 5  # in a block
NUM_BLOCKS = 5  # before and after
PROFILED_ITERATIONS = 10
PROFILE_LIMIT_S = 120
CALL_TIMEOUT_S = 120.0
# Alone, but known to Herald, which has nobody to hold back then.
WATCHED = Setting("watched", "inference alone, its progress followed", roles=("inference",), policy="strict")
BESIDE = settings.get("herald-strict")


@dataclass(frozen=True)
class Options:
    """What is to be measured."""

    device: str
    parts: Sequence[str]
    names: Sequence[str] | None  # of trainers
    pairs: Sequence[Pair] | None
    seconds: float  # of arrivals
    seed: int

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"--part = {part!r}: allowed are {', '.join(PARTS)}")
        if not self.seconds >= 1:
            raise ConfigError(f"--seconds = {self.seconds:g}: give 1 or more")


def run(options: Options, *, profiles: Path, log_dir: Path) -> Iterator[Row]:
    """A row per trainer, whose profile is kept in ``profiles``, and per service and company."""
    if "iterations" in options.parts:
        for name in options.names or DEFAULT[options.device]:
            yield from _iteration_row(options, workloads.get(name), profiles, log_dir)
    if "requests" in options.parts:
        for pair in options.pairs or PAIRS[options.device]:
            yield from _request_rows(options, pair, log_dir)


# Iterations -----------------------------------------------------------------------------------------------------------


def _iteration_row(options: Options, workload: workloads.Workload, profiles: Path, log_dir: Path) -> Iterator[Row]:
    launch = launch_for(workload.role, settings.alone(workload.role, mps=False), options.device, None)
    with Worker(launch, log_dir) as worker:
        facts = load([worker], workload.name, options.device, options.seed)
        yield {
            "part": "iterations",
            "workload": workload.name,
            "device": options.device,
            "seed": options.seed,
            **iteration(worker, profile_path(profiles, workload.name)),
            "workers": {workload.role: facts[0]},
        }


def iteration(worker: Channel, path: Path) -> Row:
    """Measured, predicted and the errors, for the program that a worker has loaded."""
    steps = max(LEAST_STEPS, round(BLOCK_S / _block_s(worker, LEAST_STEPS)))
    blocks = [_block_s(worker, steps) for _ in range(NUM_BLOCKS)]
    predicted = worker.call(
        "instrument",
        timeout_s=PROFILE_LIMIT_S + CALL_TIMEOUT_S,
        name="profile",
        path=str(path.resolve()),
        iterations=PROFILED_ITERATIONS,
        limit=f"{PROFILE_LIMIT_S}s",
    )
    blocks += [_block_s(worker, steps) for _ in range(NUM_BLOCKS)]
    return {"steps_per_block": steps, "block_ms": [round(s * 1e3, 4) for s in blocks], **compared(blocks, predicted)}


def compared(blocks_s: Sequence[float], predicted: Row) -> Row:
    """The measured step, each prediction of it, and their relative errors."""
    measured_ms = median(blocks_s) * 1e3
    predicted_ms = {name: predicted[f"{name}_ns"] / 1e6 for name in PREDICTIONS}
    return {
        "measured_ms": round(measured_ms, 4),
        "predicted_ms": {name: round(ms, 4) for name, ms in predicted_ms.items()},
        "error": {name: round(ms / measured_ms - 1, 5) for name, ms in predicted_ms.items()},
        "ops": predicted["ops"],
        "instances": predicted["instances"],
    }


def _block_s(worker: Channel, steps: int) -> float:
    return float(worker.call("train", timeout_s=CALL_TIMEOUT_S, count=steps)["elapsed_s"]) / steps


# Requests -------------------------------------------------------------------------------------------------------------


def _request_rows(options: Options, pair: Pair, log_dir: Path) -> Iterator[Row]:
    with ExitStack() as stack:
        domain = stack.enter_context(PrivateDomain("prediction", log_dir))
        crew = stack.enter_context(Crew(pair, options.device, options.seed, lambda launch: Worker(launch, log_dir)))
        for setting in (WATCHED, BESIDE):
            terms = Terms(
                arrivals=Poisson(RATE_HZ, options.seed),
                seconds=options.seconds,
                slo_ms=1000.0,
                domain=domain.name,
                follow=True,
                observe=True,
            )
            trial = run_trial(crew, setting, terms)
            yield {
                "part": "requests",
                "workload": pair.inference,
                "beside": pair.training if "training" in setting.roles else None,
                "device": options.device,
                "seed": options.seed,
                **scored(trial.herald["inference"], len(trial.answers["inference"]["done_s"])),
                "herald": trial.herald,
                "workers": dict(crew.facts),
            }


def scored(counters: Row, num_requests: int) -> Row:
    """How many requests were scored at their middle, and the mean |predicted - actual| / actual of what remained."""
    count = counters["progress_scored"]
    error = counters["progress_error_ppm"] / 1e6 / count if count else None
    return {"requests": num_requests, "scored": count, "error": None if error is None else round(error, 5)}


# The table ------------------------------------------------------------------------------------------------------------


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    if row["part"] == "iterations":
        told = [f"{row['predicted_ms'][name]:.2f} ({row['error'][name]:+.1%})" for name in PREDICTIONS]
        yield (row["workload"], f"{row['measured_ms']:.2f}", *told)
    else:
        beside = f"beside {row['beside']}" if row["beside"] else "alone"
        error = "-" if row["error"] is None else f"{row['error']:.1%} off"
        yield (row["workload"], beside, f"{row['scored']} of {row['requests']} scored", error, "")


KIND = Kind("prediction", ("workload", "measured ms", "sum ms", "kernels ms", "timeline ms"), _lines)
