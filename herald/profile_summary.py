"""A profile in a few lines for a terminal: the iteration, and the ops that it spends its time in."""

from collections import defaultdict
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as Grid

from herald.durations import format_ns
from herald.profiles import OpProfile, Profile

_TOP = 8
_KINDS = ("heavy", "light", "unknown", "none")


@dataclass(frozen=True)
class NamedOp:
    """All signatures of one op name together, per iteration."""

    name: str
    calls: float
    self_ns: float
    moved_bytes: float
    flops: float
    kinds: tuple[str, ...]  # heaviest first

    @classmethod
    def of(cls, name: str, ops: list[OpProfile]) -> "NamedOp":
        """Of the op's signatures."""
        return cls(
            name=name,
            calls=sum(op.calls for op in ops),
            self_ns=sum(op.calls * op.self_ns for op in ops),
            moved_bytes=sum(op.calls * (op.bytes_in + op.bytes_out) for op in ops),
            flops=sum(op.calls * op.flops for op in ops),
            kinds=tuple(kind for kind in _KINDS if any(op.kind == kind and op.calls for op in ops)),
        )


def by_name(profile: Profile) -> list[NamedOp]:
    """The ops of an iteration, the longest first."""
    ops: defaultdict[str, list[OpProfile]] = defaultdict(list)
    for op in profile.ops:
        ops[op.name].append(op)
    return sorted((NamedOp.of(name, each) for name, each in ops.items()), key=lambda op: -op.self_ns)


def render(profile: Profile, path: str, console: Console) -> None:
    """Print the summary; 80 columns are enough."""
    where = f"{profile.device}, torch {profile.torch}" + (f", driver {profile.driver}" if profile.driver else "")
    console.print(f"[bold]{profile.workload or 'profile'}[/] on {where}", highlight=False, soft_wrap=True)
    ops = by_name(profile)
    total_ns = sum(op.self_ns for op in ops)
    iteration = profile.iteration
    if iteration is not None:
        share = f" ({iteration.device_ns / iteration.wall_ns:.0%})" if iteration.wall_ns else ""
        console.print(
            f"iteration  {format_ns(iteration.wall_ns)}; {format_ns(iteration.device_ns)} in ops{share}, "
            f"{format_ns(iteration.host_ns)} on the host\n"
            f"ops        {sum(op.calls for op in ops):.0f} calls of {len(profile.ops)} signatures\n",
            highlight=False,
        )
    console.print(_grid(ops[:_TOP], total_ns))
    console.print(f"\nwritten to {path}", highlight=False, soft_wrap=True)


def _grid(ops: list[NamedOp], total_ns: float) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    grid.add_column("op", overflow="ellipsis", max_width=32)  # the only one that gives way where it is narrow
    for title in ("calls", "time", "share", "kind", "GB/s", "GFLOP/s"):
        grid.add_column(title, justify="right", no_wrap=True)
    for op in ops:
        grid.add_row(
            op.name,
            f"{op.calls:g}",
            format_ns(op.self_ns),
            f"{op.self_ns / total_ns:.0%}" if total_ns else "",
            _kind(op.kinds),
            f"{op.moved_bytes / op.self_ns:,.0f}" if op.self_ns else "",  # bytes per ns
            f"{op.flops / op.self_ns:,.0f}" if op.self_ns and op.flops else "",
        )
    return grid


def _kind(kinds: tuple[str, ...]) -> str:
    """What is told of an op's signatures; "none" only where that is all of them."""
    return "/".join(kind for kind in kinds if kind not in ("unknown", "none")) or "".join(set(kinds) & {"none"})
