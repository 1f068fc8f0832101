"""What the pictures of a graph share: matplotlib when it is there, a colour for each class, a grid in inches.

The only place of the core that knows matplotlib, which is an extra.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herald.errors import HeraldError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, told apart by colour-blind readers too.
COLOURS: Mapping[str, str] = {"heavy": "#D55E00", "light": "#56B4E9", "unknown": "#8A8A8A", "none": "#D9D9D9"}
INK = "#1A1A1A"
MUTED = "#5F5F5F"
FAINT = "#BDBDBD"
PANEL = "#F4F4F2"
DPI = 150


class PictureError(HeraldError):
    """There is nothing to draw with."""


def require() -> None:
    """Raises PictureError, saying how to get matplotlib, when it is not installed."""
    try:
        import matplotlib as _  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise PictureError("matplotlib is not installed: pip install 'herald[experiments]' draws pictures") from error


def figure(width_in: float, height_in: float) -> "Figure":
    """An empty figure. Raises PictureError without matplotlib."""
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # files only: there may be no display
    from matplotlib.figure import Figure

    made = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(made)
    return made


def sheet(of: "Figure") -> "Axes":
    """Axes over the whole figure whose units are inches, from the top left corner down."""
    width_in, height_in = of.get_size_inches()
    axes = of.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, float(width_in))
    axes.set_ylim(float(height_in), 0)
    axes.axis("off")
    axes.set_autoscale_on(False)
    return axes


def save(made: "Figure", path: Path) -> Path:
    """Write a PNG. Raises PictureError when the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, dpi=DPI)
    except OSError as e:
        raise PictureError(f"{str(path)!r} cannot be written ({e.strerror}): choose another folder with --out") from e
    return path


@cache
def text_width_in(text: str, points: float, *, bold: bool = False) -> float:
    """How wide a text is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(size=points, weight="bold" if bold else "normal")
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def shortened(text: str, width_in: float, points: float, *, bold: bool = False) -> str:
    """The text, with an ellipsis for what does not fit; "" where not even a few letters do."""
    if text_width_in(text, points, bold=bold) <= width_in:
        return text
    for end in range(len(text) - 1, 2, -1):
        cut = text[:end].rstrip(" ,._") + "\u2026"
        if text_width_in(cut, points, bold=bold) <= width_in:
            return cut
    return ""


def legend(axes: "Axes", x: float, y: float, kinds: list[str], points: float = 9) -> None:
    """Swatches with names, from x rightwards, in inches."""
    from matplotlib.patches import Rectangle

    for kind in kinds:
        axes.add_patch(Rectangle((x, y - 0.06), 0.16, 0.12, facecolor=COLOURS[kind], edgecolor="none"))
        label(axes, x + 0.21, y, kind, points, color=MUTED)
        x += 0.21 + text_width_in(kind, points) + 0.22


def title(axes: "Axes", x: float, y: float, text: str, width_in: float) -> None:
    """A title, smaller where it is long."""
    points = next((p for p in (13.0, 11.5) if text_width_in(text, p, bold=True) <= width_in), 10.0)
    label(axes, x, y, shortened(text, width_in, points, bold=True), points, weight="bold")


def label(axes: "Axes", x: float, y: float, text: str, points: float = 9, **how: Any) -> None:
    """A line of text, vertically centred at y."""
    style: dict[str, Any] = {"fontsize": points, "color": INK, "va": "center", "parse_math": False}
    axes.text(x, y, text, **(style | how))
