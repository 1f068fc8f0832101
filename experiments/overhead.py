"""`herald experiment overhead`: what Herald costs a job that is alone.

One process per workload runs short blocks without and with Herald attached in turns (off on, on off, ...). Training
runs as a training loop does, requests one after the other, each told to Herald and timed to its completion on the
device. A pair of blocks gives a ratio; the result is their median.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from herald.errors import ConfigError
from herald.experiments import settings, workloads
from herald.experiments.crew import LOAD_TIMEOUT_S, WARMUP_STEPS, launch_for
from herald.experiments.domain import PrivateDomain, private_mps
from herald.experiments.measurement import Kind
from herald.experiments.process import Channel, Worker
from herald.experiments.roles import PRIORITY, Role
from herald.experiments.rows import Row

DEFAULT = {
    "cpu": ("cpu-vgg", "cpu-rnnlm", "cpu-transformer"),
    "cuda": ("vgg16", "rnnlm", "transformer", "graph-decode"),
}
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

    def learn(self, steps: int) -> None:
        """Be attached until Herald has learnt what it will. A process that attaches again has not forgotten it."""
        self.attach(steps)
        rounds = MOST_LEARNING_ROUNDS if self.role == "training" else 0  # nothing is learnt of a service
        for _ in range(rounds):
            if self.channel.call("stats", timeout_s=CALL_TIMEOUT_S)["ops_seen"] > LEARNT_OPS:
                break
            self.block_s(steps)
        self.detach()

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
    device: str, *, mps: bool, names: Sequence[str] | None, num_pairs: int, seed: int, log_dir: Path
) -> Iterator[Row]:
    """A row per workload."""
    if num_pairs < 1:
        raise ConfigError(f"--blocks = {num_pairs}: give 1 or more pairs of blocks")
    chosen = [workloads.get(name) for name in names or DEFAULT[device]]
    with ExitStack() as stack:
        pipe = str(stack.enter_context(private_mps("overhead")).pipe_dir) if mps else None
        domain = stack.enter_context(PrivateDomain("overhead", log_dir))
        for workload in chosen:
            launch = launch_for(workload.role, settings.alone(workload.role, mps=mps), device, pipe)
            with Worker(launch, log_dir) as worker:
                facts = worker.call(
                    "load",
                    timeout_s=LOAD_TIMEOUT_S,
                    workload=workload.name,
                    device=device,
                    seed=seed,
                    warmup=WARMUP_STEPS,
                )
                job = LoneJob(worker, workload.role, device, domain.name)
                steps = max(LEAST_STEPS, round(BLOCK_S / job.block_s(LEAST_STEPS)))
                blocks, stats = measured(job, steps, num_pairs)
            yield {
                "workload": workload.name,
                "role": workload.role,
                "device": device,
                "mps": mps,
                "seed": seed,
                "steps_per_block": steps,
                **blocks.ratios(),
                "herald": stats,
                "workers": {workload.role: facts},
            }


def measured(job: LoneJob, steps: int, num_pairs: int) -> tuple[Blocks, dict[str, Any]]:
    """All blocks, and the counters of the job that was attached last. Attached blocks that meet share one job."""
    blocks = Blocks()
    stats: dict[str, Any] = {}
    job.learn(steps)
    for pair in range(num_pairs):
        if pair % 2 == 0:
            blocks.off_s.append(job.block_s(steps))
            job.attach(steps)
            blocks.on_s.append(job.block_s(steps))
        else:
            blocks.on_s.append(job.block_s(steps))
            stats = job.detach()
            blocks.off_s.append(job.block_s(steps))
    return blocks, stats if num_pairs % 2 == 0 else job.detach()


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    yield (
        f"{row['workload']}{' (MPS)' if row['mps'] else ''}",
        str(row["blocks"]),
        f"{row['off_ms']:.3f}",
        f"{row['on_ms']:.3f}",
        f"{row['ratio']:.4f}",
        f"{row['ratio_low']:.4f}-{row['ratio_high']:.4f}",
        f"{row['ratio_min']:.4f}-{row['ratio_max']:.4f}",
    )


KIND = Kind("overhead", ("workload", "n", "off ms", "on ms", "ratio", "quartiles", "range"), _lines)
