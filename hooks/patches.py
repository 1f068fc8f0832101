"""Wraps the methods that `herald.hooks.launch_points` names for as long as somebody listens, and puts them back.

A module that is not imported yet is wrapped when it is. Whatever goes wrong is said once in the log and breaks nothing.
"""

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NamedTuple

from herald.hooks.launch_points import Announcer, Begin, End, Function, Point

_log = logging.getLogger("herald")
_TRACING = "torch._dynamo.trace_rules"


class _Wrapped(NamedTuple):
    owner: type
    ours: Function
    original: Function
    inherited: bool


class Patches:
    """Which methods are wrapped, and for how many users. ``functions``: gives `begin` and `end` of an event."""

    def __init__(
        self, announcer: Announcer, points: Iterable[Point], functions: Callable[[], tuple[Begin, End]]
    ) -> None:
        self._announcer = announcer
        self._points = tuple(points)
        self._functions = functions
        self._lock = threading.RLock()
        self._users = 0
        self._wrapped: dict[Point, _Wrapped] = {}
        self._finder = _Finder({_TRACING, *(point.module for point in self._points)}, self._imported)

    def start(self, gate: str | None) -> None:
        """One more user; with the first everything is wrapped. ``gate``: what ops wait for from now on."""
        begin, end = self._functions()
        with self._lock:
            self._users += 1
            self._announcer.begin, self._announcer.end = begin, end
            self._announcer.gate = gate or self._announcer.gate
            if self._users > 1:
                return
            self._announcer.on = True
            sys.meta_path.insert(0, self._finder)
        for name in self._finder.names & sys.modules.keys():
            if sys.modules.get(name) is not None:  # None: somebody forbids its import
                # Waits for another thread that is in the middle of importing it, so no lock of ours may be held.
                self._imported(importlib.import_module(name))

    def stop(self, gate: str | None) -> None:
        """One user less; with the last everything is as it was."""
        with self._lock:
            self._users -= 1
            self._announcer.gate = None if gate else self._announcer.gate
            if self._users <= 0:
                self._remove()

    def forget(self) -> None:
        """In a forked child, which has none of the parent's jobs: as it was. The lock may have been held."""
        self._lock = threading.RLock()
        self._remove()

    def _remove(self) -> None:
        self._users = 0
        self._announcer.on, self._announcer.gate = False, None
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for point, (owner, ours, original, inherited) in list(self._wrapped.items()):
            if owner.__dict__.get(point.method) is not ours:
                continue  # somebody wrapped it in turn: ours stays below, without effect until the next start
            if inherited:
                delattr(owner, point.method)
            else:
                setattr(owner, point.method, original)
            del self._wrapped[point]

    def _imported(self, module: ModuleType) -> None:
        if module.__name__ == _TRACING:
            _keep_out_of_compiled_code(module)
            return
        with self._lock:
            for point in self._points:
                if self._users and point.module == module.__name__ and point not in self._wrapped:
                    try:
                        self._wrapped[point] = _wrap(point, module, self._announcer)
                    except (AttributeError, TypeError):
                        _tell_missing(point)


def _wrap(point: Point, module: ModuleType, announcer: Announcer) -> _Wrapped:
    owner = getattr(module, point.owner)
    original = getattr(owner, point.method)
    ours = point.wrap(original, announcer)
    ours.__name__, ours.__qualname__, ours.__doc__ = original.__name__, original.__qualname__, original.__doc__
    ours.__dict__.update(
        original.__dict__,
        __wrapped__=original,
        _torchdynamo_disable=True,  # to torch.compile, a call of it ends the graph
    )
    inherited = point.method not in owner.__dict__
    setattr(owner, point.method, ours)
    return _Wrapped(owner, ours, original, inherited)


def _keep_out_of_compiled_code(trace_rules: ModuleType) -> None:
    """Let torch.compile neither trace nor compile wrappers and marks. For good: it looks at files, not at functions.

    Not all of herald.hooks: checkpoints' hooks are traced and leave nothing, but break graphs where they are skipped.
    """
    if not getattr(trace_rules, "_herald_added", False):
        trace_rules.__dict__["_herald_added"] = True
        with suppress(AttributeError):
            for module in ("launch_points", "launches", "patches", "profiling"):
                trace_rules.add(f"herald.hooks.{module}")


class _Finder(MetaPathFinder):
    """Calls back after modules of certain names were imported."""

    def __init__(self, names: set[str], imported: Callable[[ModuleType], None]) -> None:
        self.names = names
        self._imported = imported

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders give, with a loader that calls back."""
        if name not in self.names:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_tell(module: ModuleType) -> None:
            execute(module)
            self._imported(module)

        spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


_told: set[str] = set()


def _tell_missing(point: Point) -> None:
    if point.what in _told:
        return
    _told.add(point.what)
    _log.warning(
        "%s are not gated: there is no %s.%s.%s in this version. What they enqueue waits only where ops around them "
        "do; announce it with herald.hooks.launches.announce(name, tensor), or leave that feature off",
        point.what,
        point.module,
        point.owner,
        point.method,
    )
