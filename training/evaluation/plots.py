"""The plots of a report, as PNG bytes."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.evaluation.evaluation import Evaluation

_COLOURS = ("#1f5fa8", "#c23b3b", "#2d8a4e", "#d98a1f", "#7a4fa3", "#666666")
_LEAST_FALSE = 1e-4


def roc_png(made: Evaluation) -> bytes | None:
    """Recall over the share of false hits, which is logarithmic; None without a curve."""
    if not made.curves:
        return None
    figure = _figure(6.4, 4.4)
    axes = figure.subplots()
    for (name, curve), colour in zip(made.curves.items(), _COLOURS * 2, strict=False):
        false, recall = curve.false_rate, curve.recall
        axes.step(np.maximum(false, _LEAST_FALSE), recall, where="post", label=name, color=colour, linewidth=1.4)
    axes.set(xscale="log", xlim=(_LEAST_FALSE, 1.0), ylim=(0.0, 1.02), xlabel="false hits", ylabel="recall")
    chance = np.geomspace(_LEAST_FALSE, 1.0, 100)
    axes.plot(chance, chance, color="0.7", linewidth=0.8, linestyle=":", label="by chance")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.25)
    return _png(figure)


def reliability_png(made: Evaluation) -> bytes | None:
    """Share of hits found over the probability said; None where it was not measured."""
    if not made.reliability:
        return None
    figure = _figure(5.0, 4.4)
    axes = figure.subplots()
    axes.plot([0.0, 1.0], [0.0, 1.0], color="0.7", linewidth=0.8)
    for (name, bins), colour in zip(made.reliability.items(), _COLOURS, strict=False):
        axes.plot(bins.said, bins.found, "o-", markersize=3.5, linewidth=1.0, color=colour, label=name)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="probability said", ylabel="share of hits found")
    axes.legend(loc="upper left", fontsize=8)
    axes.grid(alpha=0.25)
    return _png(figure)


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
