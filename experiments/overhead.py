"""`herald experiment overhead`: what Herald costs a job that is alone.

One process per workload runs short blocks without and with Herald attached in turns (off on, on off, ...). Training
runs as a training loop does, requests one after the other, each told to Herald and timed to its completion on the
device. A pair of blocks gives a ratio; the result is their median. For a sweep over the quantum, the same process takes
part in one domain for each quantum in turn, and each has a service without requests: a trainer that is all alone has no
waits.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from herald.errors import ConfigError
from herald.experiments import residual, settings, workloads
from herald.experiments.crew import launch_for, load
from herald.experiments.domain import PrivateDomain, private_mps
from herald.experiments.measurement import Kind
from herald.experiments.process import Channel, Worker
from herald.experiments.roles import PRIORITY, Role
from herald.experiments.rows import Row

DEFAULT = {
    "cpu": ("cpu-vgg", "cpu-rnnlm", "cpu-transformer"),
    "cuda": ("vgg16", "rnnlm", "gpt2", "transformer", "graph-decode"),
}
SWEPT = {"cpu": ("cpu-vgg", "cpu-rnnlm"), "cuda": ("vgg16", "rnnlm", "gpt2")}
BLOCK_S = 0.4
LEAST_STEPS = 5  # in a block
LEARNT_OPS = 25_000  # learning ends 20,000 ops after the last one of unknown cost
MOST_LEARNING_ROUNDS = 50
CALL_TIMEOUT_S = 120.0


@dataclass
class Blocks:
    """Seconds per step of every block, in the order of the pairs."""

    off_s: list[float] = field(default_factory=list)
    on_s: list[float] = field(default_factory=list)

    def ratios(self) -> dict[str, Any]:
        """Time with / without Herald over pairs: median, quartiles, least and most."""
        ratios = [on / off for off, on in zip(self.off_s, self.on_s, strict=True)]
        low, high = np.percentile(ratios, (25, 75))
        return {
            "blocks": len(ratios),
            "off_ms": round(median(self.off_s) * 1e3, 4),
            "on_ms": round(median(self.on_s) * 1e3, 4),
            "ratio": round(median(ratios), 5),
            "ratio_low": round(float(low), 5),
            "ratio_high": round(float(high), 5),
            "ratio_min": round(min(ratios), 5),
            "ratio_max": round(max(ratios), 5),
        }


@dataclass(frozen=True)
class LoneJob:
    """The process of a workload, and how it takes part in Herald."""

    channel: Channel
    role: Role
    device: str
    domain: str

    def attach(self, steps: int) -> None:
        """Attach, and run as many steps as a block has."""
        self.channel.call(
            "attach",
            timeout_s=CALL_TIMEOUT_S,
            domain=self.domain,
            priority=PRIORITY[self.role],
            slo="1s" if self.role == "inference" else None,
            device=self.device,
            settle=steps,
        )

    def learn(self, steps: int) -> dict[str, Any]:
        """Be attached until Herald has learnt what it will. A process that attaches again has not forgotten it."""
        self.attach(steps)
        rounds = MOST_LEARNING_ROUNDS if self.role == "training" else 0  # nothing is learnt of a service
        for _ in range(rounds):
            if self.channel.call("stats", timeout_s=CALL_TIMEOUT_S)["ops_seen"] > LEARNT_OPS:
                break
            self.block_s(steps)
        return self.detach()

    def detach(self) -> dict[str, Any]:
        """Leave Herald; the job's counters."""
        return self.channel.call("detach", timeout_s=CALL_TIMEOUT_S)

    def block_s(self, steps: int) -> float:
        """Seconds per step over ``steps`` of them: the mean in training, where they overlap, else the median."""
        if self.role == "training":
            return float(self.channel.call("train", timeout_s=CALL_TIMEOUT_S, count=steps)["elapsed_s"]) / steps
        times_s: list[float] = self.channel.call("steps", timeout_s=CALL_TIMEOUT_S, count=steps)["step_s"]
        return median(times_s)


def run(
    device: str,
    *,
    mps: bool,
    names: Sequence[str] | None,
    num_pairs: int,
    seed: int,
    log_dir: Path,
    quanta_ns: Sequence[int] = (),
) -> Iterator[Row]:
    """A row per workload; with ``quanta_ns``, one per trainer and quantum, and with what runs on after a close."""
    if num_pairs < 1:
        raise ConfigError(f"--blocks = {num_pairs}: give 1 or more pairs of blocks")
    chosen = [workloads.get(name) for name in names or (SWEPT if quanta_ns else DEFAULT)[device]]
    with ExitStack() as stack:
        pipe = str(stack.enter_context(private_mps("overhead")).pipe_dir) if mps else None
        domains = _domains(stack, quanta_ns, log_dir)
        closer = _closer(stack, device, pipe, log_dir) if quanta_ns and device != "cpu" else None
        for workload in chosen:
            launch = launch_for(workload.role, settings.alone(workload.role, mps=mps), device, pipe)
            with Worker(launch, log_dir) as worker:
                facts = load([worker], workload.name, device, seed)
                jobs = {q: LoneJob(worker, workload.role, device, domain.name) for q, domain in domains.items()}
                steps = max(LEAST_STEPS, round(BLOCK_S / jobs[next(iter(jobs))].block_s(LEAST_STEPS)))
                for quantum_ns, job in jobs.items():
                    stats = job.learn(steps)
                    if quantum_ns is not None and job.role == "training":
                        domains[quantum_ns].seat_service(stats["device"])
                found = measured(list(jobs.values()), steps, num_pairs)
                for (quantum_ns, job), (blocks, stats) in zip(jobs.items(), found, strict=True):
                    yield {
                        "workload": workload.name,
                        "role": workload.role,
                        "device": device,
                        "mps": mps,
                        "seed": seed,
                        "quantum_ns": quantum_ns,
                        "steps_per_block": steps,
                        **blocks.ratios(),
                        "residual": _residual(job, closer, steps, seed, log_dir) if closer else None,
                        "herald": stats,
                        "workers": {workload.role: facts[0]},
                    }


def _domains(stack: ExitStack, quanta_ns: Sequence[int], log_dir: Path) -> dict[int | None, PrivateDomain]:
    """A domain for every quantum, none of them with a daemon; without quanta, one as it comes (None)."""
    domains: dict[int | None, PrivateDomain] = {}
    for quantum_ns in quanta_ns or (None,):
        label = "overhead" if quantum_ns is None else f"overhead-q{quantum_ns // 1000}"
        domains[quantum_ns] = stack.enter_context(PrivateDomain(label, log_dir))
        if quantum_ns is not None:
            domains[quantum_ns].set_quantum(quantum_ns)
    return domains


def _closer(stack: ExitStack, device: str, pipe: str | None, log_dir: Path) -> Worker:
    """The process that closes gates."""
    launch = launch_for("inference", settings.alone("inference", mps=pipe is not None), device, pipe)
    return stack.enter_context(Worker(launch, log_dir))


def _residual(job: LoneJob, closer: Channel, steps: int, seed: int, log_dir: Path) -> Row | None:
    """What runs on after a close, of a trainer whose ops are known."""
    if job.role != "training":
        return None
    residual.warm_up(job.channel, closer, domain=job.domain, device=job.device, folder=log_dir)
    job.attach(steps)
    found = residual.measured(job.channel, closer, domain=job.domain, device=job.device, seed=seed, folder=log_dir)
    job.detach()
    return found


def measured(jobs: Sequence[LoneJob], steps: int, num_pairs: int) -> list[tuple[Blocks, dict[str, Any]]]:
    """For each job all blocks, and the counters when it was attached last.

    Jobs that are one process in several domains take turns, two pairs at a time: their attached blocks share one job.
    All have learnt.
    """
    blocks = [Blocks() for _ in jobs]
    stats: list[dict[str, Any]] = [{} for _ in jobs]
    for pair in range(0, num_pairs, 2):
        for index, job in enumerate(jobs):
            blocks[index].off_s.append(job.block_s(steps))
            job.attach(steps)
            blocks[index].on_s.append(job.block_s(steps))
            if pair + 1 < num_pairs:
                blocks[index].on_s.append(job.block_s(steps))
            stats[index] = job.detach()
            if pair + 1 < num_pairs:
                blocks[index].off_s.append(job.block_s(steps))
    return list(zip(blocks, stats, strict=True))


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    residual = row.get("residual")
    yield (
        f"{row['workload']}{' (MPS)' if row['mps'] else ''}",
        f"{row['quantum_ns'] / 1e3:g}" if row.get("quantum_ns") else "",
        f"{row['off_ms']:.3f}",
        f"{row['on_ms']:.3f}",
        f"{row['ratio']:.4f}",
        f"{row['ratio_low']:.4f}-{row['ratio_high']:.4f}",
        f"{residual['p50_us']} / {residual['p99_us']} / {residual['max_us']}" if residual else "",
    )


KIND = Kind(
    "overhead", ("workload", "q us", "off ms", "on ms", "ratio", "quartiles", "runs on us: p50/p99/max"), _lines
)
