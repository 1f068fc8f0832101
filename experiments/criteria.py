"""What Herald must show, as data: every threshold once, and whether a measured value meets it."""

from dataclasses import dataclass

P99_RATIO = 1.03  # inference p99 under Herald / alone, same MPS state
TRAINING_SHARE = 0.97  # of 1 - load
TRAINER_OVERHEAD = 1.005  # a lone trainer, step time with / without Herald
INFERENCE_OVERHEAD = 1.01  # a lone service, request time with / without Herald
HOOK_NS = 150.0  # per op event, of a trainer that is alone
DECISION_US = 50.0  # of the controller
DAEMON_SHARE = 0.02  # of one core
LOOKUP_NS = 200.0  # per op event: what the hook does itself, beyond what torch takes for any callback
PREDICTION_ERROR = 0.05  # of an iteration, sum over ops against measured
PROGRESS_ERROR = 0.10  # of what remains of a request at its middle
COVERAGE = 0.99  # of a trainer's device time, eager
UNGATED_MS = 2.0  # the longest stretch without a gate, compiled
HARM_RANKS = 0.8  # rank correlation of predicted and measured harm, of ops that the rule has not seen
LIGHT_HARM = 2.0  # measured harm of an op called light / the bound
RECORDER_RATIO = 10.0  # cost of torch.profiler / that of the recorder, from start to results
RECOVERY_S = 1.0  # after a process was killed
ATTAINMENT = 0.99  # share of requests that meet the SLO
STATIC_TOLERANCE = 0.98  # training under Herald / under the best static setting that holds the same SLO
STATIC_GAIN = 1.1  # geometric mean of that over all points
MPS_GAIN = 1.5  # likewise, against the settings of plain MPS
LAUNCH_BOUND_GAIN = 1.5  # training / (1 - load), beside a launch-bound service at SLO 1.5x
LAUNCH_BOUND_FACTOR = 1.5
POSTER_STEP_TIME = 1.22  # time per batch / alone
STEP_MISSES = 0.05  # of the first STEP_REQUESTS requests after a load step
STEP_REQUESTS = 50
DEMO_P99_RATIO = 1.3  # the demo's, on a CPU


@dataclass(frozen=True)
class Criterion:
    """One line of the verdict."""

    what: str
    measured: str
    passed: bool

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'MISS'}  {self.what}: {self.measured}"


def at_most(what: str, value: float, limit: float, unit: str = "", detail: str = "") -> Criterion:
    """``value <= limit``."""
    return Criterion(f"{what} <= {limit:.4g}{unit}", f"{value:.4g}{unit}{_bracketed(detail)}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str = "", detail: str = "") -> Criterion:
    """``value >= limit``."""
    return Criterion(f"{what} >= {limit:.4g}{unit}", f"{value:.4g}{unit}{_bracketed(detail)}", value >= limit)


def _bracketed(detail: str) -> str:
    return f" ({detail})" if detail else ""
