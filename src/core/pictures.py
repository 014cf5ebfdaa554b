"""How every picture of this project is drawn and saved: same fonts, same colours, the same bytes for the same numbers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from src.core.files import replacing

BLUE, ORANGE, GREY, RED = "#2f6db3", "#d9822b", "#9aa5b1", "#c23b3b"


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches, drawn without a screen."""
    made = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Figure, path: Path) -> None:
    """Write a PNG without date or program name, so that equal pictures are equal files."""
    with replacing(path) as fresh, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a label in a script that the font lacks is drawn as boxes
        made.savefig(fresh, format="png", metadata={"Software": None})


def show_image(axes: Any, image: NDArray[Any], title: str = "", colour: str = "black") -> None:
    """Draw one uint8 image of shape (height, width, 1 or 3) without axes, pixels sharp; the caller shortens the title."""
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize=8, color=colour)
    axes.set_axis_off()


def show_heat(axes: Any, heat: NDArray[np.float32], image: NDArray[Any]) -> None:
    """Lay equal cells of 0..1 over an image that is drawn, or say that all are 0: hiding no one place changes the answer."""
    if heat.any():
        edges = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        axes.imshow(heat, cmap="inferno", alpha=0.5, vmin=0, vmax=1, interpolation="bilinear", extent=edges)
    else:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0.5, 0.04, "no one place", transform=axes.transAxes, ha="center", va="bottom", fontsize=7, bbox=box)


def grid(count: int, columns: int, title: str) -> tuple[Figure, list[Any]]:
    """Return a figure of `count` small squares and their axes, `columns` in a row; unused squares stay blank."""
    rows = max(1, -(-count // columns))
    made = figure(1.25 * columns + 0.2, 1.45 * rows + 0.6)
    made.suptitle(title, fontsize=10)
    axes = list(np.ravel(made.subplots(rows, columns, squeeze=False)))
    for empty in axes[count:]:
        empty.set_axis_off()
    return made, axes[:count]


def shorten(text: str, longest: int = 22) -> str:
    """Cut a long class name or path for a title; `$` is escaped, since matplotlib would read mathematics."""
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")
