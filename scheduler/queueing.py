"""What a mode is worth, by a textbook queue: pure functions of rates, shared by the controller and its tests.

A service is an M/M/1 queue whose speed depends on its length n: with up to ``limit`` requests open, the gate is open
and the service runs 1 / inflation as fast; with more it is closed and the service runs as if alone. Training runs at
one rate while the queue is empty, at another beside open requests, not at all behind the gate. Requests that run out of
slack close the gate, too; that is left out (it changes the rank of modes little, see tests/test_queueing.py).
"""

from typing import NamedTuple


class Shares(NamedTuple):
    """Shares of time; together 1."""

    idle: float  # no request open
    beside: float  # requests open, gate open
    closed: float


def shares(load: float, inflation: float, limit: int) -> Shares:
    """Of a service with ``load`` (arrival rate x mean service time alone). At a load of 1 or more: closed for good."""
    if load >= 1:
        return Shares(0.0, 0.0, 1.0)
    beside_load = load * inflation
    weight = 1.0  # of the states with n requests, relative to the empty one
    beside = 0.0
    for _ in range(limit):
        weight *= beside_load
        beside += weight
    closed = weight * load / (1 - load)
    total = 1 + beside + closed
    return Shares(1 / total, beside / total, closed / total)


def most_open(slo_ns: float, margin_ns: float, inflation: float, mean_ns: float) -> float:
    """How many requests the service can have open without closing the gate, and still meet its SLO.

    That many, less one, can be ahead of a new one: beside training they take ``inflation`` x ``mean_ns`` each.
    """
    return (slo_ns - margin_ns) / (inflation * mean_ns) - 1
