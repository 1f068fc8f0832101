"""What is known of a job's ops on one device: the nouns of a profile, and the way to and from a file.

Made by `herald.profile` (everything) or `Job.save_profile` (times alone); read by attach, the graph and the classes.
The text of the file is `herald.profile_format`'s; nothing here measures, and nothing here imports torch.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from herald.errors import ConfigError
from herald.profile_format import FormatError, dump, parse

OpKind = Literal["unknown", "none", "light", "heavy"]
Phase = Literal["forward", "backward", "optimizer", "other"]


@dataclass(frozen=True)
class KernelFacts:
    """One CUDA kernel of an op, as the device ran it."""

    name: str
    calls: float  # per call of the op
    duration_ns: int  # of one launch, mean
    grid: tuple[int, int, int]  # blocks
    block: tuple[int, int, int]  # threads
    registers: int  # per thread
    shared_bytes: int  # per block
    blocks_per_sm: float  # blocks of the grid over SMs of the device
    occupancy: float  # estimated, 0 .. 1


@dataclass(frozen=True)
class OpProfile:
    """One op signature: name, shapes, dtypes, memory format. Costs are those of one call, in the mean."""

    signature: str  # for people: "aten::addmm(Float[128], Float[32, 784], Float[784, 128])"
    key: int  # its 64-bit hash, by which the hook finds it
    self_ns: int  # device time without the ops that it calls and, where its kernels are known, without launch gaps
    numel: int  # elements of all tensor inputs
    calls: float = 0.0  # per iteration; 0: not counted
    host_ns: int = 0  # from its begin to its end on the host, the ops that it calls included
    bytes_in: int = 0  # that it has to read at least
    bytes_out: int = 0  # that it has to write at least
    flops: int = 0  # by torch's formulas; 0: there is none
    kernels: tuple[KernelFacts, ...] = ()
    kind: OpKind = "unknown"  # told by the rule, written for people
    harm: float | None = None  # predicted, in percent of a concurrent request's time

    @property
    def name(self) -> str:
        """The op without its operands: "aten::addmm"."""
        return self.signature.partition("(")[0]


@dataclass(frozen=True)
class OpInstance:
    """One op at its place in the iteration."""

    op: int  # index into Profile.ops
    phase: Phase
    module: str  # path of the innermost module, "layers.0.attention"; backward ops have their forward op's; "": none
    begin_ns: int  # on the host, from the begin of the iteration
    host_ns: int  # from its begin to its end on the host
    self_ns: int  # device time without the ops that it calls, launch gaps included: the sum is the iteration's
    reads: tuple[int, ...] = ()  # storages, as small numbers that mean one storage within the iteration
    writes: tuple[int, ...] = ()  # storages; in-place ops have theirs in both


@dataclass(frozen=True)
class Iteration:
    """One iteration of training, or one request: its op instances in the order in which the host began them."""

    wall_ns: int  # from one iteration's begin to the next one's, nothing recorded
    device_ns: int  # sum of its instances' self_ns
    host_ns: int  # until the step function returns, nothing recorded
    instances: tuple[OpInstance, ...] = ()


@dataclass(frozen=True)
class Profile:
    """The costs of a job's ops on one device under one torch."""

    device: str  # "NVIDIA H200", or a CPU's model with its number of threads
    driver: str | None  # version of the GPU's driver; None on a CPU
    torch: str
    ops: tuple[OpProfile, ...]
    workload: str = ""  # for people
    fingerprint: str = ""  # of the model: equal for equal sequences of op signatures
    iteration: Iteration | None = None  # None where ops were only timed, as by `Job.save_profile`
    created: str = ""  # ISO 8601, UTC
    num_sms: int | None = None

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Raises ConfigError when it cannot be written."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(dump(self), encoding="utf-8")
            partial.replace(path)
        except OSError as e:
            partial.unlink(missing_ok=True)
            raise ConfigError(f"profile = {str(path)!r} cannot be written: {e.strerror}") from e

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None, torch: str | None = None) -> Self:
        """Read a file; with ``device`` and ``torch`` only one that was made for them.

        Raises ConfigError, saying what is wrong with the file and what to do about it.
        """
        try:
            text = Path(path).read_bytes()
        except OSError as e:
            raise ConfigError(f"profile = {str(path)!r} cannot be read: {e.strerror}") from e
        try:
            profile = parse(text, cls)
        except FormatError as e:
            raise ConfigError(f"profile = {str(path)!r} {e}") from None  # it is said whole
        for field, made_for, here in (("device", profile.device, device), ("torch", profile.torch, torch)):
            if here is not None and made_for != here:
                raise ConfigError(
                    f"profile = {str(path)!r} was made for {field} {made_for!r}, this is {here!r}: "
                    "make it again here with `herald profile`, or leave it out to learn while running"
                )
        return profile
