"""What a row of the calibration says: the op as a profile describes it, and the harm that was measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from herald.experiments.rows import Row
from herald.profiles import KernelFacts, OpProfile

# The kinds of requests whose worst counts. (small-normal is small again: a stream's priority counts in one process.)
WORST_OF = ("compute", "memory", "small")


@dataclass(frozen=True)
class Sample:
    """An op that was measured under MPS."""

    label: str
    op: OpProfile
    harms: Sequence[float]  # in percent, by WORST_OF

    @property
    def harm(self) -> float:
        """Of the kind of request that suffers most."""
        return max(self.harms)

    @property
    def group(self) -> str:
        """What is left out together to see how well the rest predicts it: a model, or a kind of the sweep."""
        source, _, rest = self.label.partition("/")
        return f"{source}/{rest.rpartition('-')[0]}" if source == "sweep" else source


def of_rows(rows: Iterable[Row]) -> list[Sample]:
    """The samples in rows: of ops that were measured under MPS and whose kernels are known."""
    measured = (row for row in rows if row["mps"] and row.get("probes") and row.get("kernels"))
    return [Sample(row["op"], op_of(row), [row["probes"][kind]["mean"] for kind in WORST_OF]) for row in measured]


def op_of(row: Row) -> OpProfile:
    """The op of a row."""
    return OpProfile(
        signature=row["signatures"][0] if row["signatures"] else row["op"],
        key=0,
        self_ns=row["call_ns"],
        numel=row["numel"],
        bytes_in=row["bytes_in"],
        bytes_out=row["bytes_out"],
        flops=row["flops"],
        kernels=tuple(_kernel(kernel) for kernel in row["kernels"]),
    )


def _kernel(facts: Row) -> KernelFacts:
    return KernelFacts(**{**facts, "grid": tuple(facts["grid"]), "block": tuple(facts["block"])})
