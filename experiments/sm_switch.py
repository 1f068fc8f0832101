"""`herald experiment sm-switch`: what it costs a trainer to change its share of a GPU's SMs between two steps.

One process trains as a low-priority job, and its plan is changed as the daemon changes it. Measured: making the stream
of a share, the switch itself (host time, as the job counts it), the first step after it and those that follow, memory
that torch holds, and whether losses stay what they are without switches, under each share alone and through them all.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table as TextTable

from herald.clock import now_ns
from herald.errors import ConfigError
from herald.experiments import provenance, rows, workloads
from herald.experiments.rows import Row

if TYPE_CHECKING:
    import torch

KIND = "sm-switch"
WIDTH = 80
WARM_UP_STEPS = 80  # Herald learns op times in the first 20,000 ops, which makes them longer
ALL = 0  # in a plan: all SMs


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    device: str
    workload: str
    shares: tuple[int, ...]  # SMs, besides all
    steps: int  # between two switches
    rounds: int
    seed: int

    def __post_init__(self) -> None:
        if self.device != "cuda":
            raise ConfigError(f"--device {self.device}: shares of SMs are a GPU's; run this with --device cuda on one")
        if workloads.get(self.workload).role != "training":
            raise ConfigError(f"--workload {self.workload}: this is no trainer, and only those get shares")
        if min(self.steps, self.rounds) < 2:
            raise ConfigError("--steps and --rounds: give 2 or more, the first of each is told apart")
        if not self.shares or min(self.shares) < 1:
            raise ConfigError("--shares: give numbers of SMs, as in 116,68")


@dataclass(frozen=True)
class Stretch:
    """Steps between two switches."""

    share: int  # SMs; ALL: all
    switch_ns: int  # host time that the job counted; 0 where nothing changed
    step_ms: tuple[float, ...]
    losses: tuple[str, ...]  # exact, as hexadecimal numbers
    reserved_bytes: int  # by torch's allocator, afterwards


class Trainer(Protocol):
    """A trainer whose share can be changed."""

    def begin(self, *, repeatable: bool) -> None:
        """A fresh program, always the same, on all SMs; ``repeatable``: in kernels that repeat themselves."""

    def allow(self, share: int) -> None:
        """Plan a share; it is taken at the end of the next step."""

    def step(self) -> str:
        """One step, waited for; its loss."""
        ...

    def switch_ns(self) -> int:
        """Host time that all switches took so far."""
        ...

    def reserved_bytes(self) -> int:
        """Device memory that torch holds."""
        ...


def stretch(trainer: Trainer, share: int, steps: int, clock_s: Callable[[], float] = time.perf_counter) -> Stretch:
    """Change to a share and run so many steps on it. The step at whose end the switch comes is not one of them."""
    before_ns = trainer.switch_ns()
    trainer.allow(share)
    losses, step_ms = [trainer.step()], []
    for _ in range(steps):
        begun_s = clock_s()
        losses.append(trainer.step())
        step_ms.append(round((clock_s() - begun_s) * 1e3, 4))
    return Stretch(share, trainer.switch_ns() - before_ns, tuple(step_ms), tuple(losses), trainer.reserved_bytes())


def losses_under(trainer: Trainer, shares: Sequence[int], steps: int) -> list[str]:
    """All losses of a fresh program that goes through these shares."""
    trainer.begin(repeatable=True)
    return [loss for share in shares for loss in stretch(trainer, share, steps).losses]


def run(trainer: Trainer, options: Options, creation_ms: Callable[[int], float]) -> Iterator[Row]:
    """A row per share with its times, then one per comparison of losses."""
    trainer.begin(repeatable=False)
    for _ in range(WARM_UP_STEPS):
        trainer.step()
    created = {share: creation_ms(share) for share in options.shares}
    cycle = (ALL, *options.shares)
    found = [stretch(trainer, share, options.steps) for _ in range(options.rounds) for share in cycle]
    for share in cycle:
        yield times_row([each for each in found if each.share == share], created.get(share))
    num_stretches = 2 * len(cycle)
    plain = losses_under(trainer, [ALL] * num_stretches, options.steps)
    compared = {"all again": [ALL] * num_stretches, "through all": list(cycle) * 2}
    compared |= {f"{share} SMs": [share] * num_stretches for share in options.shares}
    for name, shares in compared.items():
        yield losses_row(name, plain, losses_under(trainer, shares, options.steps))


def times_row(found: Sequence[Stretch], creation_ms: float | None) -> Row:
    """Of one share; the first stretch is its first use."""
    first, *later = found
    switches_ms = [each.switch_ns / 1e6 for each in later if each.switch_ns]
    return {
        "part": "times",
        "share": first.share,
        "creation_ms": creation_ms,
        "first_switch_ms": first.switch_ns / 1e6,
        "switch_ms": round(statistics.median(switches_ms), 4) if switches_ms else None,
        "longest_switch_ms": max(switches_ms, default=None),
        "very_first_step_ms": first.step_ms[0],
        "first_step_ms": round(statistics.median(each.step_ms[0] for each in later), 4),
        "step_ms": round(statistics.median(ms for each in later for ms in each.step_ms[1:]), 4),
        "reserved_bytes": later[-1].reserved_bytes,
        "stretches": [[each.switch_ns, list(each.step_ms), each.reserved_bytes] for each in found],
    }


def losses_row(name: str, plain: Sequence[str], other: Sequence[str]) -> Row:
    """How many losses are equal to the last bit, and how far the others are off, relatively."""
    pairs = [(float.fromhex(a), float.fromhex(b)) for a, b in zip(plain, other, strict=True)]
    return {
        "part": "losses",
        "case": name,
        "steps": len(pairs),
        "equal": sum(a == b for a, b in pairs),
        "first_unequal": next((place for place, (a, b) in enumerate(pairs) if a != b), None),
        "largest_difference": max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs),
    }


# On a GPU -------------------------------------------------------------------------------------------------------------


def record(options: Options, out: Path, *, log_dir: Path, commit: str | None = None) -> None:
    """Measure, append every row as it comes, show the table. Raises ConfigError without a GPU that has shares."""
    origin = provenance.of_command(commit)
    path = out / f"{KIND}.jsonl"
    found: list[Row] = []
    with gpu_trainer(options, log_dir) as trainer:
        for row in run(trainer, options, trainer.creation_ms):
            found.append({"kind": KIND, "workload": options.workload, "seed": options.seed, **row, **trainer.facts()})
            found[-1]["provenance"] = {"date": provenance.now(), **origin}
            rows.append(path, found[-1:])
    show(found, Console(width=WIDTH))
    print(f"Rows: {path}")


@contextmanager
def gpu_trainer(options: Options, log_dir: Path) -> Iterator["GpuTrainer"]:
    """This process as a trainer in a domain of its own."""
    # cuBLAS repeats itself only with a workspace of fixed size, which it reads when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    import herald
    from herald.experiments.domain import PrivateDomain
    from herald.hooks import green_contexts

    if not torch.cuda.is_available():
        raise ConfigError("sm-switch needs an NVIDIA GPU and a CUDA build of torch: see `herald doctor`")
    try:
        total = green_contexts.sm_total(0)
    except green_contexts.NoShareError as error:
        raise ConfigError(f"sm-switch: {error}") from error
    if max(options.shares) >= total:
        raise ConfigError(f"--shares {','.join(map(str, options.shares))}: this GPU has {total} SMs, give fewer")
    with (
        PrivateDomain("sm-switch", log_dir) as domain,
        herald.attach(priority="low", name="trainer", domain=domain.name, device="cuda") as job,
    ):
        yield GpuTrainer(options, domain.name, job, total)


class GpuTrainer:
    """A `Trainer` on the first GPU."""

    def __init__(self, options: Options, domain: str, job: Any, sm_total: int) -> None:
        import torch

        from herald.table import Table

        self._torch = torch
        self._options = options
        self._table = Table.open(domain)
        self._job = job
        self._sm_total = sm_total
        self._program: Any = None

    def begin(self, *, repeatable: bool) -> None:
        """See `Trainer`. The last program's memory is given back first."""
        if self._program is not None:
            self.allow(ALL)
            self.step()
        self._program = None
        gc.collect()
        self._torch.cuda.empty_cache()
        self._torch.use_deterministic_algorithms(repeatable, warn_only=True)
        device: torch.device = self._torch.device("cuda")
        self._program = workloads.get(self._options.workload).make(device, self._options.seed)

    def allow(self, share: int) -> None:
        """Likewise."""
        view = self._job.stats()
        self._table.beat(now_ns())  # as a daemon would: without one, no share holds
        self._table.publish_trainer_plan(view.row, view.generation, sm_count=share)

    def step(self) -> str:
        """Likewise. `item()` waits for the loss alone, so the stream is waited for, too."""
        loss = float(self._program.step()).hex()
        self._torch.cuda.current_stream().synchronize()
        return loss

    def switch_ns(self) -> int:
        """Likewise."""
        return int(self._job.stats().sm_switch_ns)

    def reserved_bytes(self) -> int:
        """Likewise."""
        return int(self._torch.cuda.memory_reserved())

    def creation_ms(self, share: int) -> float:
        """Of the green context and stream of a share, which are kept for its first use."""
        from herald.hooks import green_contexts

        begun_s = time.perf_counter()
        green_contexts.make_stream(0, share)
        return round((time.perf_counter() - begun_s) * 1e3, 4)

    def facts(self) -> Row:
        """For a row."""
        torch = self._torch
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name()}
        return {"sm_total": self._sm_total, "workers": {"training": versions}}


# What the user sees ---------------------------------------------------------------------------------------------------


def show(found: Sequence[Row], console: Console) -> None:
    """Two tables: times, losses."""
    times = TextTable(box=None, padding=(0, 1, 0, 0))
    for heading in ("SMs", "make ms", "1st use", "switch", "longest", "1st step", "then ms", "GiB held"):
        times.add_column(heading, justify="right")
    losses = TextTable(box=None, padding=(0, 1, 0, 0))
    for heading in ("losses against all SMs throughout", "equal", "first unequal", "largest relative difference"):
        losses.add_column(heading)
    for row in found:
        if row["part"] == "times":
            times.add_row(
                str(row["share"] or "all"),
                _ms(row["creation_ms"]),
                _ms(row["first_switch_ms"]),
                _ms(row["switch_ms"]),
                _ms(row["longest_switch_ms"]),
                _ms(row["first_step_ms"]),
                _ms(row["step_ms"]),
                f"{row['reserved_bytes'] / 2**30:.2f}",
            )
        else:
            losses.add_row(
                row["case"],
                f"{row['equal']} of {row['steps']}",
                "-" if row["first_unequal"] is None else f"step {row['first_unequal']}",
                f"{row['largest_difference']:.2g}",
            )
    console.print(times)
    console.print(losses)


def _ms(value: float | None) -> str:
    return f"{value:.2f}" if value else "-"
