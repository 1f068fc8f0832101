"""`herald experiment coverage`: what share of a trainer's device time Herald's gate can hold back, told in two ways.

What the job counts itself (`JobView.coverage`: the predicted time of what passed, over the measured time of stretches
in which the GPU was never idle), and the truth (`op_trace`: kernels linked to the event around their launch by torch's
profiler). For compiled code also the longest stretch without a gate: as the job predicts it, and the most kernel time
that lies behind one event in the trace.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from herald.errors import ConfigError
from herald.experiments import settings, workloads
from herald.experiments.crew import launch_for, load
from herald.experiments.domain import PrivateDomain, private_mps
from herald.experiments.measurement import Kind
from herald.experiments.overhead import CALL_TIMEOUT_S, LEAST_STEPS, LoneJob
from herald.experiments.process import Worker
from herald.experiments.rows import Row

DEFAULT = {
    "cpu": ("cpu-vgg", "cpu-rnnlm"),
    "cuda": ("vgg16", "rnnlm", "resnet50", "gpt2", "vgg16-compiled", "gpt2-compiled"),
}
COMPILED = "-compiled"  # ends the names of workloads under torch.compile
BLOCK_S = 0.4
TRACED_STEPS = 5


def run(
    device: str, *, mps: bool, names: Sequence[str] | None, seconds: float, seed: int, log_dir: Path
) -> Iterator[Row]:
    """A row per workload."""
    if not seconds > 0:
        raise ConfigError(f"--seconds = {seconds:g}: give more than 0 seconds of training")
    with ExitStack() as stack:
        pipe = str(stack.enter_context(private_mps("coverage")).pipe_dir) if mps else None
        domain = stack.enter_context(PrivateDomain("coverage", log_dir))
        for workload in [workloads.get(name) for name in names or DEFAULT[device]]:
            launch = launch_for(workload.role, settings.alone(workload.role, mps=mps), device, pipe)
            with Worker(launch, log_dir) as worker:
                facts = load([worker], workload.name, device, seed)
                job = LoneJob(worker, workload.role, device, domain.name)
                yield {
                    "workload": workload.name,
                    "device": device,
                    "mps": mps,
                    "seed": seed,
                    "compiled": workload.name.endswith(COMPILED),
                    **measured(job, seconds),
                    "workers": {workload.role: facts[0]},
                }


def measured(job: LoneJob, seconds: float) -> Row:
    """Learn the ops, train for ``seconds``, ask the job; then trace some steps."""
    step_s = job.block_s(LEAST_STEPS)
    steps = max(LEAST_STEPS, round(BLOCK_S / step_s))
    job.learn(steps)
    job.attach(steps)
    for _ in range(max(1, round(seconds / (steps * step_s)))):
        job.block_s(steps)
    counters = job.channel.call("stats", timeout_s=CALL_TIMEOUT_S)
    truth = job.channel.call("instrument", timeout_s=CALL_TIMEOUT_S, name="op-trace", steps=TRACED_STEPS)
    job.detach()
    return {
        "steps": steps,
        "counted": counted(counters),
        "sampled_ms": round(counters["sampled_ns"] / 1e6, 3),
        "longest_predicted_us": round(counters["longest_op_ns"] / 1e3, 1),
        "truth": truth,
        "herald": counters,
    }


def counted(counters: Row) -> float | None:
    """Coverage as the job counts it; None without a sample."""
    sampled_ns = counters["sampled_ns"]
    return round(counters["covered_ns"] / sampled_ns, 5) if sampled_ns else None


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    truth = row["truth"]
    yield (
        f"{row['workload']}{' (MPS)' if row['mps'] else ''}",
        "-" if row["counted"] is None else f"{row['counted']:.2%}",
        f"{row['sampled_ms']:.0f}",
        "-" if truth["covered"] is None else f"{truth['covered']:.3%}",
        f"{row['longest_predicted_us']:.0f}",
        "-" if truth["longest_us"] is None else f"{truth['longest_us']:.0f} ({truth['longest']})",
    )


KIND = Kind("coverage", ("workload", "counted", "ms", "truth", "longest us", "traced us"), _lines)
