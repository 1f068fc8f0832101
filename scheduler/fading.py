"""Sums over the last requests, in which those of before count for less and less."""

import math
from dataclasses import dataclass


@dataclass
class FadingSum:
    """Of requests, and of something of theirs: a time, or one for each that counts."""

    requests: float = 0
    total: float = 0

    def add(self, requests: int, total: int, half_life: float = math.inf) -> None:
        """So many requests more; those before count half after ``half_life`` requests."""
        keep = 0.5 ** (requests / half_life)
        self.requests = self.requests * keep + requests
        self.total = self.total * keep + total

    @property
    def mean(self) -> float | None:
        """None of nothing."""
        return self.total / self.requests if self.requests else None
