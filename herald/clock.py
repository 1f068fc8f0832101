"""The one clock of Herald."""

import time


def now_ns() -> int:
    """CLOCK_MONOTONIC in ns: the same in every process of a machine."""
    return time.monotonic_ns()
