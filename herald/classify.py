"""Light or heavy: the harm that an op does to a request beside it, predicted from what its kernels ask of the device.

Harm is the delay of a concurrent request in percent, while the op runs again and again beside it under MPS. The rule
was fitted to such measurements by `herald calibrate`; see docs/how-it-works.md, 'Light and heavy'. Without MPS the
processes of a GPU take turns whatever runs, and no op is light: who calls this decides that. Pure: measures nothing,
reads only the rules that are shipped beside it, imports neither torch nor numpy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from herald import rule_file
from herald.profiles import KernelFacts, OpKind, OpProfile

NONE_BELOW_NS = 2_500  # shorter is indistinguishable from an empty pair of events
RULES = Path(__file__).parent / "rules"
_SHIPPED = {"NVIDIA H200": "h200.json"}
_DEFAULT = "default.json"
_REGISTER_UNIT = 256  # registers are given to warps in units of so many
_WARP = 32
_SHARED_OF_DRIVER = 1024  # bytes of a block's shared memory that CUDA takes for itself, from compute capability 8 on


@dataclass(frozen=True)
class Limits:
    """What a device offers."""

    threads_per_sm: int
    registers_per_sm: int
    shared_bytes_per_sm: int
    blocks_per_sm: int
    bytes_per_s: float  # of its memory
    cache_bytes: int  # of its last cache

    def resident(self, kernel: KernelFacts) -> int:
        """Blocks of a kernel that one SM can hold at once, 1 at least."""
        threads = _WARP * math.ceil(math.prod(kernel.block) / _WARP)
        registers = (threads // _WARP) * _REGISTER_UNIT * math.ceil(kernel.registers * _WARP / _REGISTER_UNIT)
        return max(
            1,
            min(
                self.blocks_per_sm,
                self.threads_per_sm // max(1, threads),
                self.registers_per_sm // max(1, registers),
                self.shared_bytes_per_sm // (kernel.shared_bytes + _SHARED_OF_DRIVER),
            ),
        )


class Terms(NamedTuple):
    """What the rule weighs, each from 0 up: the mean over an op's kernels, by their share of its device time."""

    runs: float  # 1 for whatever runs at all
    hold: float  # SM share x how long a kernel lasts, up to a limit: 1 for one that takes all SMs so long
    drain: float  # SM share x square root of the time until an SM has room again, in us
    traffic: float  # SM share x (share of the memory's bandwidth, as far as no cache can help) squared


@dataclass(frozen=True)
class QuickPoint:
    """Of the calibrated ops that are so short and so small, none does more harm."""

    harm_percent: float
    light_ns: int
    light_numel: int


class Quick(NamedTuple):
    """The parameters of the hook's own rule (`LightRule` in hooks/csrc/costs.hpp)."""

    none_below_ns: int
    light_ns: int
    light_numel: int


@dataclass(frozen=True)
class Rule:
    """Harm in percent = the terms, weighted."""

    device: str  # that it was fitted on; for people
    limits: Limits
    runs: float
    hold: float
    drain: float
    traffic: float
    hold_limit_ns: int
    margin: float  # what predictions are multiplied by before they are compared with a bound
    quick: tuple[QuickPoint, ...]  # in the order of their harm

    def __post_init__(self) -> None:
        if not (self.hold_limit_ns > 0 and self.limits.bytes_per_s > 0 and self.margin >= 1):
            raise ValueError("hold_limit_ns and bytes_per_s must be above 0, margin 1 or more")

    def harm(self, op: OpProfile) -> float:
        """Percent by which a request takes longer beside the op: the best guess, without the margin."""
        weights = (self.runs, self.hold, self.drain, self.traffic)
        return sum(weight * term for weight, term in zip(weights, self.terms(op), strict=True))

    def terms(self, op: OpProfile) -> Terms:
        """All 0 for an op without device time."""
        return terms(op, self.limits, self.hold_limit_ns)


def classify(op: OpProfile, rule: Rule, bound_percent: float) -> OpKind:
    """The kind of an op where light ops may delay a request by less than ``bound_percent``.

    Without kernels there is only its time and its size, as the hook knows them: `quick` decides.
    """
    if op.kernels:
        if device_ns(op) == 0:
            return "none"
        return "light" if rule.harm(op) * rule.margin < bound_percent else "heavy"
    return by_time(op, quick(rule, bound_percent))


def by_time(op: OpProfile, known: Quick) -> OpKind:
    """The kind of an op of which only time and size are known, as the hook tells it."""
    if op.self_ns < known.none_below_ns:
        return "none"
    return "light" if op.self_ns <= known.light_ns and op.numel <= known.light_numel else "heavy"


def classified(op: OpProfile, rule: Rule, bound_percent: float) -> OpProfile:
    """The op with its kind and, where its kernels are known, its harm."""
    harm = round(rule.harm(op), 2) if op.kernels else None
    return replace(op, kind=classify(op, rule, bound_percent), harm=harm)


def quick(rule: Rule, bound_percent: float) -> Quick:
    """What the hook goes by until it knows more than an op's time and size. Errs on the heavy side."""
    fits = [point for point in rule.quick if point.harm_percent <= bound_percent]
    return Quick(NONE_BELOW_NS, fits[-1].light_ns, fits[-1].light_numel) if fits else Quick(NONE_BELOW_NS, 0, 0)


def load_rule(device_name: str) -> Rule:
    """The rule for a device by its name; where there is none, a careful one for any device. Raises ConfigError."""
    return read_rule(RULES / _SHIPPED.get(device_name, _DEFAULT))


def read_rule(path: Path) -> Rule:
    """A rule that `herald calibrate` wrote. Raises ConfigError."""
    return rule_file.read(path, Rule)


def device_ns(op: OpProfile) -> float:
    """Time of one call on the device; of its kernels where they are known."""
    return sum(kernel.calls * kernel.duration_ns for kernel in op.kernels) if op.kernels else op.self_ns


def terms(op: OpProfile, limits: Limits, hold_limit_ns: int) -> Terms:
    """Of an op without kernels: of one that fills the device with blocks that last as long as it does."""
    total_ns = device_ns(op)
    if total_ns <= 0:
        return Terms(0.0, 0.0, 0.0, 0.0)
    traffic = _traffic(op, limits, total_ns)
    hold = drain = touched = 0.0
    for kernel in _kernels(op, limits):
        share = kernel.total_ns / total_ns * kernel.sm_share
        hold += share * min(1.0, kernel.duration_ns / hold_limit_ns)
        drain += share * math.sqrt(kernel.drain_ns / 1e3)
        touched += share
    return Terms(1.0, hold, drain, touched * traffic**2)


class _Kernel(NamedTuple):
    total_ns: float  # of its launches in one call of the op
    sm_share: float  # of the device's SMs that it gets to
    duration_ns: float
    drain_ns: float  # how soon an SM that it is on has room again


def _kernels(op: OpProfile, limits: Limits) -> Iterator[_Kernel]:
    if not op.kernels:
        yield _Kernel(op.self_ns, 1.0, op.self_ns, op.self_ns)
    for kernel in op.kernels:
        total_ns = kernel.calls * kernel.duration_ns
        if kernel.blocks_per_sm > 0 and min(kernel.block) > 0:
            # A block lasts duration / waves, and of its SM's resident ones the first ends that much sooner.
            drain_ns = kernel.duration_ns / max(limits.resident(kernel), kernel.blocks_per_sm)
            yield _Kernel(total_ns, min(1.0, kernel.blocks_per_sm), kernel.duration_ns, drain_ns)
        else:  # a copy or a fill of the driver's has no grid; measured, it is as a short kernel on all SMs
            yield _Kernel(total_ns, 1.0, kernel.duration_ns, min(2_000.0, kernel.duration_ns))


def _traffic(op: OpProfile, limits: Limits, total_ns: float) -> float:
    """Share of the memory's bandwidth, 1 at most, less where most of it may come from the cache."""
    moved = op.bytes_in + op.bytes_out
    if moved == 0:
        return 0.0
    share = min(1.0, moved / total_ns * 1e9 / limits.bytes_per_s)
    return share * moved / (moved + limits.cache_bytes)
