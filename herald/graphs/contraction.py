"""Which op instances of an iteration are nodes of its graph, and which are folded into others.

Everything that a hook sees is in a profile: `aten::linear` around `aten::addmm`, views, autograd nodes, marks of the
optimizer. A node for each would drown the graph. A node is an instance that works on tensors itself; the others are
contracted: dependencies pass through them and their time (on a CPU every wrapper takes some) and FLOPs are carried to
the next node in issue order, so that sums over nodes are sums over the iteration. Contracted are

- what has neither device time nor FLOPs: on CUDA all wrappers and views;
- a wrapper: it takes less time itself than the instances that began and ended within it;
- a view: it writes only what it reads, and no byte of that (as an op with `out=` does), and its name does not end in
  "_" as the names of in-place ops do; or it is one of those that change a tensor's shape alone;
- an allocation: its name has "empty" in it, and it writes only what is new;
- what touches no tensor, unless its class says that it takes device time (a custom kernel behind an autograd node).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from herald.profiles import OpInstance, OpProfile, Profile

_WORK = ("light", "heavy")
_RESHAPES_IN_PLACE = re.compile(
    "(as_strided|detach|requires_grad|resize|resize_as|set|squeeze|swapaxes|swapdims|t|transpose|unsqueeze)_"
)


@dataclass(frozen=True)
class Role:
    """What becomes of one instance."""

    is_node: bool
    node: int | None  # the instance that stands for it: itself, or the next node; None: there is no node at all


def roles(profile: Profile) -> tuple[Role, ...]:
    """A role for each instance of the profile's iteration."""
    instances = profile.iteration.instances if profile.iteration else ()
    wrapped_ns = _wrapped_ns(instances)
    flags = [
        _works(profile.ops[instance.op], instance, wrapped)
        for instance, wrapped in zip(instances, wrapped_ns, strict=True)
    ]
    last = max((i for i, flag in enumerate(flags) if flag), default=None)
    found: list[Role] = []
    following = last  # what is left over after the last node belongs to it
    for i in reversed(range(len(flags))):
        following = i if flags[i] else following
        found.append(Role(flags[i], following))
    return tuple(reversed(found))


def is_view(op: OpProfile, instance: OpInstance) -> bool:
    """Whether all it "writes" are other views of what it reads."""
    if not instance.writes or not set(instance.writes) <= set(instance.reads):
        return False
    name = _base_name(op)
    return not (op.bytes_out or name.endswith("_")) or _RESHAPES_IN_PLACE.fullmatch(name) is not None


def _works(op: OpProfile, instance: OpInstance, wrapped_ns: int) -> bool:
    if not instance.self_ns and not op.flops:
        return False
    if wrapped_ns and instance.self_ns <= wrapped_ns:
        return False
    if is_view(op, instance) or _allocates(op, instance):
        return False
    return bool(instance.reads or instance.writes) or op.kind in _WORK


def _allocates(op: OpProfile, instance: OpInstance) -> bool:
    return "empty" in _base_name(op) and not set(instance.writes) & set(instance.reads)


def _base_name(op: OpProfile) -> str:
    """ "add_" of "aten::add_.Tensor"."""
    return op.name.rpartition("::")[2].partition(".")[0]


def enclosing(instances: Sequence[OpInstance]) -> list[int | None]:
    """For each instance the innermost one that began before it and ended after it on the host."""
    parents: list[int | None] = []
    open_: list[int] = []
    for i, instance in enumerate(instances):
        while open_ and not _encloses(instances[open_[-1]], instance):
            open_.pop()
        parents.append(open_[-1] if open_ else None)
        open_.append(i)
    return parents


def _wrapped_ns(instances: Sequence[OpInstance]) -> list[int]:
    """For each instance the self time of all within it."""
    wrapped = [0] * len(instances)
    for i, parent in reversed(list(enumerate(enclosing(instances)))):
        if parent is not None:
            wrapped[parent] += instances[i].self_ns + wrapped[i]
    return wrapped


def _encloses(outer: OpInstance, inner: OpInstance) -> bool:
    outer_end_ns = outer.begin_ns + outer.host_ns
    return inner.begin_ns < outer_end_ns and inner.begin_ns + inner.host_ns <= outer_end_ns
