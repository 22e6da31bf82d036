"""What the figures share: style, panels of detector frames, PNG files, tables as text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

DOTS_PER_INCH = 100.0
SEED = 2024
"""Of everything that figures draw at random."""

GAP_COLOUR = "0.55"
BLUE, RED, GREEN, ORANGE, PURPLE, GREY = "#1f5fa8", "#c23b3b", "#2d8a4e", "#d98a1f", "#7a4fa3", "#666666"

_STYLE: Any = {  # whose keys matplotlib types one by one
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.facecolor": "white",
    "savefig.dpi": DOTS_PER_INCH,
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks of the figures.

    orientations: random turns for the powder's mean. crystfel: folder of sparse patterns, with the reflection list hkl
    and its cell file (None for proteinase K's); without it that figure is not drawn.
    """

    orientations: int = 4000
    crystfel: Path | None = None
    hkl: Path | None = None
    cell: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Figures by file name without ending, and their numbers as lines of text."""

    figures: dict[str, Figure] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


Drawer = Callable[[Request], Drawn]


@contextmanager
def house_style() -> Iterator[None]:
    """matplotlib's own defaults with ours on top, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """A figure of that size (inches) that needs no display."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure; the same figure gives the same bytes. Raises OSError."""
    figure.savefig(path, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})


def binned(image: NDArray[Any], mask: NDArray[np.bool_], size: int) -> NDArray[np.float64]:
    """Sums of an image (ss, fs) over squares of size x size pixels, whole ones only; NaN where all is masked."""
    rows, columns = (pixels // size for pixels in image.shape)
    cut = (slice(rows * size), slice(columns * size))
    live = ~mask[cut]
    blocks = (rows, size, columns, size)
    total = np.where(live, image[cut], 0).reshape(blocks).sum(axis=(1, 3), dtype=np.float64)
    return np.where(live.reshape(blocks).any(axis=(1, 3)), total, np.nan)


def most_nearby(image: NDArray[Any], mask: NDArray[np.bool_], inner: int, outer: int) -> NDArray[np.float64]:
    """For each square of outer x outer pixels the largest sum of its squares of inner x inner; NaN where masked.

    Spots stay as they are in a picture `outer` times smaller, and single photons do not add up.
    """
    sums = binned(image, mask, inner)
    each = outer // inner
    rows, columns = (length // each for length in sums.shape)
    blocks = np.nan_to_num(sums, nan=-1.0)[: rows * each, : columns * each].reshape(rows, each, columns, each)
    largest: NDArray[np.float64] = blocks.max(axis=(1, 3))
    return np.where(largest < 0.0, np.nan, largest)


def colours_of_counts() -> Colormap:
    """Dark for nothing, bright for much, grey for gaps."""
    colours = matplotlib.colormaps["inferno"]
    return colours.with_extremes(bad=GAP_COLOUR, under=colours(0.0))


def show_counts(
    axes: Axes,
    counts: NDArray[Any],
    norm: LogNorm,
    size: int = 1,
    first: tuple[int, int] = (0, 0),
) -> AxesImage:
    """Draw counts (ss, fs), NaN for gaps, of squares of `size` pixels whose first pixel is (ss, fs) `first`."""
    ss, fs = first
    rows, columns = counts.shape
    extent = (fs - 0.5, fs + columns * size - 0.5, ss + rows * size - 0.5, ss - 0.5)
    # Zero has no logarithm; it gets the colour of the lowest value.
    seen = np.ma.masked_invalid(np.where(counts == 0.0, 1e-9, counts))
    drawn = axes.imshow(seen, cmap=colours_of_counts(), norm=norm, extent=extent, interpolation="nearest")
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    return drawn


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return (line(heads), *(line(row) for row in rows))


def condition_name(camera_length_m: float, photon_energy_eV: float) -> str:
    """As in '0.15 m, 6 keV'."""
    return f"{camera_length_m:g} m, {photon_energy_eV / 1000.0:g} keV"
