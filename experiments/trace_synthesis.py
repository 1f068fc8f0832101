"""Where the bundled traces come from: they are made up, by the functions here. No service was watched for them.

`python -m herald.experiments.trace_synthesis` writes them; a test compares the files with what this gives.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent / "traces"
_SPAN_S = 120.0


def diurnal(seed: int = 7) -> list[float]:
    """Arrival times in s over two minutes that stand for a day: a slow wave from 1 to 7 requests/s, and bursts on it.

    A burst comes once in 15 s in the mean, lasts 1 s in the mean and has 5 times the rate of its time of day.
    """
    generator = np.random.default_rng(seed)
    bursts: list[tuple[float, float]] = []
    at_s = float(generator.exponential(15))
    while at_s < _SPAN_S:
        bursts.append((at_s, at_s + float(generator.exponential(1))))
        at_s = bursts[-1][1] + float(generator.exponential(15))

    def rate_hz(s: float) -> float:
        wave = 4 - 3 * math.cos(2 * math.pi * s / _SPAN_S)
        return wave * (5 if any(begin <= s < end for begin, end in bursts) else 1)

    most_hz = 35.0  # thinning (Lewis and Shedler): candidates at the highest rate, kept by the present one
    times: list[float] = []
    now = float(generator.exponential(1 / most_hz))
    while now < _SPAN_S:
        if generator.random() * most_hz < rate_hz(now):
            times.append(round(now, 4))
        now += float(generator.exponential(1 / most_hz))
    return times


TRACES: Mapping[str, Callable[[], list[float]]] = {"diurnal": diurnal}


def text_of(name: str) -> str:
    """The file of a trace."""
    made = TRACES[name]
    notes = [
        f"# {name}: SYNTHETIC, made by herald/experiments/trace_synthesis.py; no service was watched for it.",
        f"# {' '.join((made.__doc__ or '').split())}",
        f"# span_s = {_SPAN_S:g}",
        "arrival_s",
    ]
    return "\n".join([*notes, *(f"{s:.4f}" for s in made())]) + "\n"


def write() -> None:
    """All files."""
    FOLDER.mkdir(exist_ok=True)
    for name in TRACES:
        (FOLDER / f"{name}.csv").write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    write()
