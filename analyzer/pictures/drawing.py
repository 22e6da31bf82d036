"""How every picture of a run is drawn: without a display, as PNG, in the same colours.

matplotlib is loaded with the first picture.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIT, MISS, RING, INK = "#0072b2", "#b9c4ce", "#d55e00", "#1b2733"
"""Colours that people of any sight can tell apart (Okabe and Ito 2008)."""

NIGHT, PALE = "#17202a", "#e4ebf2"
"""Ground and ink of the live page when it is dark."""

TITLE: Any = {"fontsize": 9, "color": INK, "loc": "left"}


def picture(draw_on: Callable[["Figure", "Axes"], None], size: tuple[float, float], dots_per_inch: float) -> bytes:
    """The PNG of what is drawn on one pair of axes; ``size`` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=dots_per_inch)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8, colors=INK)
    draw_on(figure, axes)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
