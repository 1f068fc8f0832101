"""`herald experiment classification`: whether the shipped rule predicts the harm of ops that it has never seen.

The ops of models that no calibration uses are measured as the calibration measures, under MPS, and predicted by the
rule as it is. A row keeps all that was measured, what was predicted then, and the op's costs, so that the verdict of
another rule, or of another bound, can be had from old rows (`show_again`).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from herald.classify import Rule, classify, load_rule, read_rule
from herald.config import ClassesConfig
from herald.errors import ConfigError
from herald.experiments import figures, measurement, report, rows
from herald.experiments.calibration import collect, samples
from herald.experiments.measurement import Kind
from herald.experiments.process import Worker
from herald.experiments.rows import Row

HELD_OUT = ("bert", "bert-train", "convnext", "convnext-train", "dlrm")
_SHOWN = 46  # characters of an op's name


@dataclass(frozen=True)
class Terms:
    """What predictions are made with."""

    rule_file: Path | None = None  # None: the one shipped for the device
    bound_percent: float = ClassesConfig.light_percent

    def rule(self, gpu: str) -> Rule:
        """Raises ConfigError."""
        return read_rule(self.rule_file) if self.rule_file else load_rule(gpu)


def run(
    terms: Terms, *, names: Sequence[str] | None, ops_per_workload: int, seed: int, log_dir: Path, limit_s: float
) -> Iterator[Row]:
    """A row per op. Takes ``limit_s`` at most, and what the last op needs."""
    options = collect.Options(
        device="cuda",
        mps=(True,),
        workloads=_unseen(names or HELD_OUT),
        ops_per_workload=ops_per_workload,
        only="/aten::",  # nothing of the sweep
        seed=seed,
        end_s=time.monotonic() + limit_s,
    )
    for row in collect.run(options, lambda launch: Worker(launch, log_dir), _never):
        yield predicted(row, terms)


def show_again(paths: Sequence[Path], terms: Terms, out: Path) -> bool:
    """Measure nothing: predict what is in rows anew, show it and draw it. True if every criterion is met."""
    found = [predicted(row, terms) for row in rows.of_kind(rows.read_all(paths), KIND.name)]
    met = measurement.show(KIND, found, Console(width=report.WIDTH))
    out.mkdir(parents=True, exist_ok=True)
    figures.harms(found, out / figures.HARMS)
    return met


def predicted(row: Row, terms: Terms) -> Row:
    """A row of the collector's with measured and predicted harm; as it is where something is missing."""
    if not row.get("probes") or not row.get("kernels"):
        return row
    (sample,) = samples.of_rows([row])
    rule = terms.rule(row["device"]["gpu"])
    return {
        **row,
        "measured": sample.harm,
        "predicted": round(rule.harm(sample.op), 2),
        "class": classify(sample.op, rule, terms.bound_percent),
        "bound": terms.bound_percent,
        "margin": rule.margin,
        "rule": rule.device,
    }


def _never(op: str, mps: bool) -> bool:
    """No row is there already."""
    del op, mps
    return False


def _unseen(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name in collect.WORKLOADS["cuda"]:
            raise ConfigError(
                f"--workload = {name!r}: the rule was fitted to its ops; give others, such as {', '.join(HELD_OUT)}"
            )
    return names


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    name = row["op"][:_SHOWN]
    if "predicted" in row:
        yield (name, f"{row['measured']:.1f}", f"{row['predicted']:.1f}", row["class"])
    else:
        yield (name, "-", "-", "-")


KIND = Kind("classification", ("op", "measured %", "predicted", "class"), _lines)
