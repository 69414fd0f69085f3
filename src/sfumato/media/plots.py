"""Figures in one quiet style, as pictures: nothing is shown on a screen and no global state is left behind.

matplotlib comes when a figure is begun.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sfumato.errors import finite

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase
    from torch import Tensor

INK, SOFT, PALE, LINE = "#23201b", "#77705f", "#b9c4cf", "#e2dccf"
COLOURS = ("#2f5d8a", "#c8702a", "#4f8a5b", "#8a4f7d", "#b09a2f", "#5aa0b5")
"""Of curves, in this order."""
RGB = ("#b8433a", "#3f8f57", "#3a6ab0")
Look = Mapping[str, Any]
"""Of a line, in matplotlib's words: color, linewidth, ..."""
LIMIT: Look = {"color": INK, "linewidth": 0.8, "linestyle": (0, (4, 3))}
DPI = 130
LETTERS = 14  # an inch, in a title
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@contextmanager
def figure(
    path: Path, size: tuple[float, float], title: str, about: str = "", words: Mapping[str, object] | None = None
) -> Iterator[Figure]:
    """An empty figure of ``size`` inches, which is written as a PNG when the block is left without an error.

    ``about`` is the line below the title, cut where the figure ends; ``words`` become the PNG's text entries. Raises
    ``SfumatoError`` where it cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sfumato.media import pictures

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a person's prompt may hold any sign
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        lines = (title, textwrap.shorten(about, int(size[0] * LETTERS), placeholder=" …"))
        figure.suptitle("\n".join(filter(None, lines)), x=0.01, ha="left", fontsize=10)
        yield figure
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pictures.write(picture, path, words)


def image(axes: Axes, pixels: Float[Tensor, "3 h w"], title: str = "") -> None:
    """An image in [0, 1] in place of axes."""
    finite(pixels, "a picture")
    axes.imshow(pixels.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title)


def mark(axes: Axes, row: float, column: float, side: float, label: str) -> None:
    """A labelled frame around a square of an image's pixels."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    for colour, width in (("white", 2.4), (INK, 1.0)):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), side, side, fill=False, edgecolor=colour, linewidth=width))
    axes.annotate(
        label,
        (column - 0.5, row - 0.5 + side / 2),
        (-2, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )


def legend(figure: FigureBase, looks: Mapping[str, Look]) -> None:
    """One legend for all axes, below them: names, and how their lines look."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **look) for look in looks.values()]
    figure.legend(lines, list(looks), loc="outside lower center", ncols=min(len(lines), 8), labelcolor=INK)


def colours(n: int) -> list[Any]:
    """``n`` colours that can be told apart: those of the style, or as many along a colour map."""
    if n <= len(COLOURS):
        return list(COLOURS[:n])
    from matplotlib import colormaps

    return list(colormaps["turbo"](np.linspace(0.05, 0.95, n)))
