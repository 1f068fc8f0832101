"""Policies, found by name: the module `herald.scheduler.policies.NAME` is the policy NAME.

Adding one is adding one file, whose docstring begins with what it does in a line. It holds the policy as `POLICY`, or,
where it takes an argument ("reserve:32"), a function `make(argument)` that gives the policy, "" for none given.
A policy is pure: it reads no clock, no table, no file, and is the same object in the daemon, a simulator and a test.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from herald.config import did_you_mean
from herald.errors import ConfigError
from herald.scheduler.snapshot import Decision, Snapshot


class Policy(Protocol):
    """Decides how every service of a domain closes its gate, and what its trainers may have."""

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:
        """One plan for every service of the snapshot. Pure: equal arguments, equal decisions."""


def names() -> tuple[str, ...]:
    """The names of all policies."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def summary(name: str) -> str:
    """What the policy of that name does, in a line."""
    return (import_module(f"{__name__}.{name}").__doc__ or "").partition("\n")[0]


def load(text: str, *, setting: str = "policy") -> Policy:
    """The policy that ``text`` names: NAME, or NAME:ARGUMENT for one that takes an argument.

    Raises ConfigError naming ``setting`` and what is allowed.
    """
    name, _, argument = text.partition(":")
    if name not in names():
        raise ConfigError(f"{setting} = {text!r}: allowed are {', '.join(names())}{did_you_mean(name, names())}")
    module = import_module(f"{__name__}.{name}")
    if hasattr(module, "POLICY"):
        if text != name:
            raise ConfigError(f"{setting} = {text!r}: {name} takes no argument; give {name!r}")
        return cast("Policy", module.POLICY)
    try:
        return cast("Policy", module.make(argument))
    except ConfigError as error:
        raise ConfigError(f"{setting} = {text!r}: {error}") from None
