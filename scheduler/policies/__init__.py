"""Policies, found by name: the module `herald.scheduler.policies.NAME` holds the policy NAME as `POLICY`.

Adding one is adding one file. A policy is pure: it reads no clock, no table, no file, and is the same object
in the daemon, in a simulator and in a test.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from herald.config import did_you_mean
from herald.errors import ConfigError
from herald.scheduler.snapshot import Decision, Snapshot


class Policy(Protocol):
    """Decides how every service of a domain closes its gate."""

    def decide(self, snapshot: Snapshot, now_ns: int, /) -> Decision:
        """One plan for every service of the snapshot. Pure: equal arguments, equal decisions."""


def names() -> tuple[str, ...]:
    """The names of all policies."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def load(name: str, *, setting: str = "policy") -> Policy:
    """The policy of that name. Raises ConfigError naming ``setting`` and the policies there are."""
    if name not in names():
        raise ConfigError(f"{setting} = {name!r}: allowed are {', '.join(names())}{did_you_mean(name, names())}")
    return cast("Policy", import_module(f"{__name__}.{name}").POLICY)
