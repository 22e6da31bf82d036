"""Pictures of a run's products, with axes and units."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analyzer.pictures.drawing import HIT, INK, MISS, NIGHT, PALE, RING, TITLE, picture
from analyzer.product_snapshot import LOG_INTENSITY, SPACING_EDGES_ANGSTROM, Snapshot, spacing_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 90.0
_MOST_POINTS = 300
"""Squares a side of the powder's picture: smaller ones are hard to see."""


def draw(
    name: str, products: Snapshot, dots_per_inch: float = DOTS_PER_INCH, scale: float = 1.0, dark: bool = False
) -> bytes:
    """The PNG of a product of ``FIGURES``, ``scale`` times its size beside the same letters, light or ``dark``.

    Raises ``KeyError`` for another name.
    """
    draw_on, (width, height) = FIGURES[name]

    def drawn(figure: "Figure", axes: "Axes") -> None:
        draw_on(figure, axes, products)
        if dark:
            _darken(figure)

    return picture(drawn, (scale * width, scale * height), dots_per_inch)


def _darken(figure: "Figure") -> None:
    """Pale letters, ticks and frames on a dark ground; what is measured keeps its colours."""
    from matplotlib.text import Text

    figure.set_facecolor(NIGHT)
    for axes in figure.axes:
        axes.tick_params(colors=PALE)
        if axes.get_facecolor()[:3] == (1.0, 1.0, 1.0):
            axes.set_facecolor(NIGHT)
        if (legend := axes.get_legend()) is not None:
            legend.get_frame().set_facecolor(NIGHT)
        for spine in axes.spines.values():
            spine.set_edgecolor(PALE)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_color() in (INK, "black"):
            text.set_color(PALE)


def _powder(figure: "Figure", axes: "Axes", products: Snapshot) -> None:
    from matplotlib.colors import LogNorm

    photons, bin_px = _coarser(products.powder_photons, products.bin_px)
    rows, columns = products.geometry.shape
    extent = (-0.5, photons.shape[1] * bin_px - 0.5, photons.shape[0] * bin_px - 0.5, -0.5)
    blinded, _ = _coarser(products.powder_saturated.astype(np.uint32), products.bin_px)
    # A saturated peak may hold 2^32 counts, beside which nothing else would be seen.
    most = float(photons[blinded == 0].max(initial=0.0)) or float(photons.max())
    shown = np.ma.masked_less_equal(photons, 0.0)
    drawn = axes.imshow(
        shown, cmap="viridis", norm=LogNorm(max(1.0, most / 1e4), max(10.0, most)), extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    axes.set_facecolor("#0d1320")
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    for ring in products.geometry.rings():
        for line in ring.lines:
            axes.plot(line[:, 0], line[:, 1], color=RING, lw=0.8, alpha=0.8)
        at = max(ring.lines, key=len)
        fs, ss = at[len(at) // (2 if len(ring.lines) > 1 else 8)]
        axes.text(fs, ss, f"{ring.spacing_angstrom:g} Å", color=RING, fontsize=7, clip_on=True)
    axes.plot(products.geometry.beam_center_fs, products.geometry.beam_center_ss, "+", color="white", ms=6)
    axes.set_xlabel("fs (px)", fontsize=8)
    axes.set_ylabel("ss (px)", fontsize=8)
    axes.set_title(f"Virtual powder: peaks of {products.frames['hit']} hits", **TITLE)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label(f"photons in {bin_px} x {bin_px} px", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _coarser(image: npt.NDArray[Any], bin_px: int) -> tuple[npt.NDArray[Any], int]:
    """An image small enough to show, by sums of squares, and its pixels a square."""
    while max(image.shape) > _MOST_POINTS:
        rows, columns = (-(-size // 2) * 2 for size in image.shape)
        even = np.zeros((rows, columns), image.dtype)
        even[: image.shape[0], : image.shape[1]] = image
        image, bin_px = even.reshape(rows // 2, 2, columns // 2, 2).sum((1, 3)), bin_px * 2
    return image, bin_px


def _peakogram(figure: "Figure", axes: "Axes", products: Snapshot) -> None:
    from matplotlib.colors import LogNorm

    axis, counts = products.axis, products.peakogram
    shown = np.ma.masked_equal(counts.T, 0)
    drawn = axes.pcolormesh(
        axis.edges, LOG_INTENSITY, shown, cmap="viridis", norm=LogNorm(1, max(10, int(counts.max())))
    )
    filled = np.flatnonzero(counts.any(0))
    axes.set_ylim(
        LOG_INTENSITY[0], LOG_INTENSITY[min(len(LOG_INTENSITY) - 1, int(filled[-1]) + 3 if len(filled) else 30)]
    )
    powers = np.arange(0, int(axes.get_ylim()[1]) + 1)
    axes.set_yticks(powers, [f"{10**power:g}" for power in powers.tolist()])
    axes.set_ylabel("intensity (photons)", fontsize=8)
    if axis.name == "q":
        axes.set_xlabel("q (1/Å)", fontsize=8)
        above = axes.twiny()
        above.set_xlim(axes.get_xlim())
        marks = [mark for mark in axes.get_xticks() if 0 < mark <= axis.edges[-1]]
        above.set_xticks(marks, [f"{spacing_of(mark):.2g}" for mark in marks])
        above.set_xlabel("d (Å)", fontsize=8)
        above.tick_params(labelsize=8, colors=INK)
        axes.set_title("Peakogram", **TITLE, pad=12)
    else:
        axes.set_xlabel("radius (px); no camera length or photon energy is known", fontsize=8)
        axes.set_title("Peakogram", **TITLE)
    bar = figure.colorbar(drawn, ax=axes)
    bar.set_label("peaks of hits", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _peak_counts(figure: "Figure", axes: "Axes", products: Snapshot) -> None:
    del figure
    misses, hits = products.peak_counts
    filled = np.flatnonzero(misses + hits)
    end = min(int(filled[-1]) + 2, len(hits)) if len(filled) else 10
    at = np.arange(end)
    axes.bar(at, misses[:end], width=1.0, color=MISS, label="no hits")
    axes.bar(at, hits[:end], width=1.0, bottom=misses[:end], color=HIT, label="hits")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel(f"peaks a frame ({len(hits) - 1} and more in the last bin)", fontsize=8)
    axes.set_ylabel("frames with beam", fontsize=8)
    axes.set_title("Peaks a frame", **TITLE)
    axes.legend(fontsize=8, frameon=False)


def _resolution(figure: "Figure", axes: "Axes", products: Snapshot) -> None:
    del figure
    counts, edges = products.resolution, SPACING_EDGES_ANGSTROM
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=HIT)
    filled = np.flatnonzero(counts)
    low, high = (edges[filled[0]], edges[filled[-1] + 1]) if len(filled) else (1.0, 5.0)
    axes.set_xlim(high + 0.2, max(0.0, low - 0.2))
    axes.set_xlabel("resolution estimate d (Å), finest to the right", fontsize=8)
    axes.set_ylabel("hits", fontsize=8)
    axes.set_title(f"Resolution estimates of {int(counts.sum())} hits", **TITLE)


def _hot_pixels(figure: "Figure", axes: "Axes", products: Snapshot) -> None:
    hot = products.hot_pixels
    rows, columns = hot.shape
    ss, fs = np.divmod(hot.pixel, columns)
    share = hot.firings / max(1, hot.frames)
    drawn = axes.scatter(fs, ss, c=share, s=14, cmap="autumn_r", vmin=0, vmax=1, edgecolors=INK, linewidths=0.4)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
    axes.set_xlabel("fs (px)", fontsize=8)
    axes.set_ylabel("ss (px)", fontsize=8)
    tied = f", {hot.tied} left out as tied to other peaks" if hot.tied else ""
    axes.set_title(f"{len(hot.pixel)} hot pixels in {hot.frames} distinct frames{tied}", **TITLE)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label("share of the frames", fontsize=8)
    bar.ax.tick_params(labelsize=7)


Drawer = Callable[["Figure", "Axes", Snapshot], None]

FIGURES: dict[str, tuple[Drawer, tuple[float, float]]] = {
    "powder": (_powder, (6.4, 5.6)),
    "peakogram": (_peakogram, (6.4, 3.8)),
    "peak_counts": (_peak_counts, (6.4, 3.2)),
    "resolution": (_resolution, (6.4, 3.2)),
    "hot_pixels": (_hot_pixels, (6.0, 5.2)),
}
"""Products that have a picture, and its size in inches."""
