"""From a recording to iterations: the ops of each, and what an op costs at its position, as a median over iterations.

An op here is an event that may have device time of its own: not a view, not an op made of others, not an autograd
node. Pure: arrays in, arrays out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from herald.hooks.recorder import FUNCTION, Recording

Array = np.ndarray[Any, np.dtype[Any]]


def ops_of(recording: Recording, bounds_ns: Sequence[tuple[int, int]]) -> list[Array]:
    """For each iteration the places of its ops in ``recording.events``, thread by thread in order of begin."""
    events = recording.events
    ops = np.flatnonzero((events["scope"] == FUNCTION) & (events["device"] >= 0) & (events["signature"] >= 0))
    ops = ops[np.lexsort((ops, events["thread"][ops]))]
    begins_ns = events["begin_ns"][ops]
    return [ops[(begins_ns >= begin_ns) & (begins_ns < end_ns)] for begin_ns, end_ns in bounds_ns]


def keys_of(recording: Recording, places: Array) -> Array:
    """The signature keys of events."""
    keys = np.array([signature.key for signature in recording.signatures], "u8")
    return keys[recording.events["signature"][places]] if len(places) else np.zeros(0, "u8")


@dataclass(frozen=True)
class Positions:
    """The ops of an iteration by position; arrays of one length. Times are medians over iterations."""

    keys: Array  # signature keys
    begin_ns: Array  # from the iteration's begin
    host_ns: Array  # between the medians of begin and end, which lie as they do in every iteration: nested or apart
    self_ns: Array

    @classmethod
    def of(
        cls, recording: Recording, iterations: Sequence[Array], bounds_ns: Sequence[tuple[int, int]]
    ) -> "Positions | None":
        """None where iterations differ in their ops."""
        keys = [keys_of(recording, places) for places in iterations]
        if not keys or any(not np.array_equal(keys[0], other) for other in keys[1:]):
            return None
        events = recording.events[np.stack(iterations)]
        begins_ns = np.array([begin_ns for begin_ns, _ in bounds_ns])
        begin_ns, end_ns = (_median(events[name] - begins_ns[:, None]) for name in ("begin_ns", "end_ns"))
        return cls(keys[0], begin_ns, end_ns - begin_ns, _median(events["self_ns"]))


@dataclass(frozen=True)
class SignatureTimes:
    """What one call of a signature takes, and how often an iteration calls it."""

    calls: float
    host_ns: int
    self_ns: int


def times_by_key(
    recording: Recording, iterations: Sequence[Array], positions: Positions | None
) -> dict[int, SignatureTimes]:
    """Each signature's times: means over its positions, so that their sum is the iteration's; else medians of all."""
    if positions is not None:
        keys, host_ns, self_ns, per = positions.keys, positions.host_ns, positions.self_ns, 1
    else:
        places = np.concatenate(iterations)
        events = recording.events[places]
        keys, per = keys_of(recording, places), len(iterations)
        host_ns, self_ns = events["end_ns"] - events["begin_ns"], events["self_ns"]
    typical: Callable[[Array], Any] = np.median if positions is None else np.mean
    unique, of = np.unique(keys, return_inverse=True)
    return {
        int(key): SignatureTimes(
            calls=int((of == i).sum()) / per,
            host_ns=round(float(typical(host_ns[of == i]))),
            self_ns=round(float(typical(self_ns[of == i]))),
        )
        for i, key in enumerate(unique)
    }


def _median(times_ns: Array) -> Array:
    median: Array = np.median(times_ns, axis=0).round().astype("i8")
    return median
