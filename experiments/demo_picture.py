"""The demo's figure: how long requests took, and what training got for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from herald.experiments.figures import colour, pyplot, scale_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SAID = {"alone": "each alone", "shared": "shared", "herald": "Herald"}


@dataclass(frozen=True)
class Point:
    """What is drawn of a setting."""

    latency_ms: Sequence[float]  # of every request
    training: float  # throughput relative to alone

    @property
    def p99_ms(self) -> float:
        """Of the requests."""
        return float(np.percentile(self.latency_ms, 99))


def draw(points: Mapping[str, Point], path: Path, *, slo_ms: float, load: float, title: str) -> Path:
    """Left: what share of requests took longer than x, with the SLO. Right: training against p99 / SLO.

    ``load``: share of the time in which the service works when it is alone; pure time slicing leaves training the rest.
    Raises FigureError without matplotlib.
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), width_ratios=(3, 2), layout="constrained")
    _draw_tails(left, points, slo_ms)
    _draw_frontier(right, points, slo_ms, 1 - load)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _draw_tails(ax: "Axes", points: Mapping[str, Point], slo_ms: float) -> None:
    for setting, point in points.items():
        ordered = np.sort(np.asarray(point.latency_ms))
        share_above = 1 - np.arange(len(ordered)) / len(ordered)
        label = f"{_SAID[setting]}: p99 {point.p99_ms:.1f} ms"
        ax.step(ordered, share_above, where="post", color=colour(setting), linewidth=2, label=label)
    ax.axvline(slo_ms, color="#000000", linewidth=1, linestyle=":")
    ax.text(slo_ms, 1.25, f"SLO {slo_ms:.1f} ms", ha="center", va="bottom", fontsize=9)
    ax.set_yscale("log")
    least = 0.7 / max(len(point.latency_ms) for point in points.values())
    ax.set_ylim(least, 1.2)
    shares = [share for share in (1, 0.1, 0.01, 0.001, 0.0001) if share >= least]
    ax.set_yticks(shares, [f"{share * 100:g} %" for share in shares])
    slowest = max(max(point.latency_ms) for point in points.values())
    fastest = min(min(point.latency_ms) for point in points.values())
    scale_x(ax, fastest * 0.9, max(slowest, slo_ms) * 1.15)
    ax.set_xlabel("latency from scheduled arrival, ms")
    ax.set_ylabel("share of requests that took longer")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, loc="lower left")


def _draw_frontier(ax: "Axes", points: Mapping[str, Point], slo_ms: float, sliced: float) -> None:
    tails = {setting: point.p99_ms / slo_ms for setting, point in points.items()}
    for setting, point in points.items():
        label = f"{_SAID[setting]}: training {point.training:.2f}"
        ax.plot(tails[setting], point.training, "o", markersize=11, color=colour(setting), label=label)
    ax.axhline(sliced, color="#5F5F5F", linewidth=1, linestyle="--", label=f"1 - load = {sliced:.2f}")
    ax.axvline(1, color="#000000", linewidth=1, linestyle=":")
    top = 1.15 * max(1.0, *(point.training for point in points.values()))
    ax.text(1, 1.01 * top, "SLO", ha="center", va="bottom", fontsize=9)
    scale_x(ax, 0.8 * min(0.75, *tails.values()), 1.25 * max(1.5, *tails.values()))
    ax.set_ylim(0, top)
    ax.set_xlabel("inference p99 / SLO")
    ax.set_ylabel("training, relative to alone")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, loc="lower left")
