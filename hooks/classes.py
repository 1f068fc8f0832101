"""Which ops are light: told to the hook, and written into profiles. The rule itself is `herald.classify`'s."""

from dataclasses import replace

from herald.classify import Quick, by_time, classified, load_rule, quick
from herald.hooks import native
from herald.profiles import OpProfile

# On a CPU an op is light that is over before a request's own ops notice; a choice, not measured as for GPUs.
CPU = Quick(none_below_ns=2_500, light_ns=20_000, light_numel=1 << 18)


def teach(gpu: str | None, light_percent: float) -> None:
    """Have the hook tell light ops of a GPU (its model), or of the CPU (None), apart by their time and size."""
    native.hook().herald_costs_rule(*(CPU if gpu is None else quick(load_rule(gpu), light_percent)))


def told_apart(ops: tuple[OpProfile, ...], gpu: str | None, light_percent: float) -> tuple[OpProfile, ...]:
    """The ops with their kinds and, where their kernels are known, with the harm that they do."""
    if gpu is None:
        return tuple(replace(op, kind=by_time(op, CPU)) for op in ops)
    rule = load_rule(gpu)
    return tuple(classified(op, rule, light_percent) for op in ops)
