"""Plots of a run as PNG files: losses, and what the network says of a set of samples beside the truth."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analyzer.intervals import wilson
from training.loop.judging import Judged, metric_name
from training.loop.record import Epoch

LOSS, ROC, CONFUSION, RELIABILITY, VALUES = "loss.png", "roc.png", "confusion.png", "reliability.png", "values.png"
_BINS = 10


def draw(folder: Path, history: Sequence[Epoch], judged: Judged, title: str) -> None:
    """Write the plot of the losses and those of ``draw_judged``."""
    _save(folder / LOSS, (7, 5), lambda axes: _loss(axes, history, metric_name(judged.attribute)))
    draw_judged(folder, judged, title)


def draw_judged(folder: Path, judged: Judged, title: str) -> list[Path]:
    """Write the plots of samples that make sense for the attribute, and name them; title names the set of samples."""
    kind = judged.attribute.kind
    drawn: list[Path] = []
    if not len(judged):
        return drawn

    def save(name: str, size: tuple[float, float], paint: Callable[[Axes, Judged, str], None]) -> None:
        _save(folder / name, size, lambda axes: paint(axes, judged, title))
        drawn.append(folder / name)

    title = f"{judged.attribute.name}, {title}, {len(judged)} samples"
    if kind == "yes-no" and np.isfinite(judged.probability).all() and len(np.unique(judged.truth)) == 2:
        save(ROC, (5, 5), _roc)
    if kind in ("yes-no", "classes"):
        save(CONFUSION, (5.5, 5), _confusion)
        if np.isfinite(judged.probability).all():
            save(RELIABILITY, (5, 5), _reliability)
    if kind == "value":
        save(VALUES, (5, 5), _values)
    return drawn


def _save(path: Path, size: tuple[float, float], paint: Callable[[Axes], None]) -> None:
    figure = Figure(figsize=size, layout="constrained")
    paint(figure.subplots())
    figure.savefig(path, dpi=120)


def _loss(axes: Axes, history: Sequence[Epoch], metric: str) -> None:
    epochs = [row.epoch for row in history]
    axes.plot(epochs, [row.train_loss for row in history], ".-", label="training loss")
    axes.plot(epochs, [row.validation_loss for row in history], ".-", label="validation loss")
    best = min(history, key=lambda row: row.validation_loss)
    axes.axvline(best.epoch, color="0.6", lw=1, ls=":", label=f"kept weights, epoch {best.epoch}")
    losses = [loss for row in history for loss in (row.train_loss, row.validation_loss)]
    wide = min(losses) > 0 and max(losses) > 20 * min(losses)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log" if wide else "linear")
    other = axes.twinx()
    other.plot(epochs, [row.metric for row in history], "s-", ms=3, color="tab:green", label=f"validation {metric}")
    other.set_ylabel(metric.replace("_", " "))
    if metric != "mean_absolute_error":
        other.set_ylim(0, 1.02)
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="center right", fontsize=8)
    axes.set_title("training")


def roc_curve(score: NDArray[np.float64], yes: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False-positive and true-positive rates (n,) as the threshold falls, from (0, 0) to (1, 1); ties are one step."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    found, wrong = np.cumsum(yes[order])[last], np.cumsum(~yes[order])[last]
    return np.append(0.0, wrong / max(1, (~yes).sum())), np.append(0.0, found / max(1, yes.sum()))


def _roc(axes: Axes, judged: Judged, title: str) -> None:
    summary = judged.summary()
    false_rate, true_rate = roc_curve(judged.probability, judged.truth > 0.5)
    axes.plot(false_rate, true_rate, drawstyle="steps-post", label=f"AUC {summary['auc']:.4f}")
    axes.plot([summary["false_hits"]], [summary["recall"]], "o", label="decision of the attribute")
    axes.plot([0, 1], [0, 1], color="0.7", lw=1, ls=":", label="chance")
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate", aspect="equal")
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title(title, fontsize=9)


def _confusion(axes: Axes, judged: Judged, title: str) -> None:
    attribute = judged.attribute
    classes = np.array(attribute.values) if attribute.kind == "classes" else np.array([0.0, 1.0])
    counts = np.array(
        [[np.count_nonzero((judged.truth == t) & (judged.said == s)) for s in classes] for t in classes], dtype=int
    )
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        text = f"{share[row, column]:.3f}\n{count}" if counts[row].sum() else "no sample"
        axes.text(column, row, text, ha="center", va="center", color="white" if share[row, column] > 0.6 else "black")
    names = [f"{value:g}" for value in classes] if attribute.kind == "classes" else ["no", "yes"]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    unit = f", {attribute.unit}" if attribute.unit else ""
    axes.set(xlabel=f"said{unit}", ylabel=f"truth{unit}")
    axes.set_title(f"{title}\nshare of the row, and count", fontsize=9)


def _reliability(axes: Axes, judged: Judged, title: str) -> None:
    """Of samples whose answer is given a probability, the share in which it is right; Wilson intervals."""
    if judged.attribute.kind == "yes-no":
        right, what = judged.truth > 0.5, "yes"
    else:
        right, what = judged.truth == judged.said, "the class said"
    place = np.minimum((judged.probability * _BINS).astype(int), _BINS - 1)
    error = 0.0
    for number in np.unique(place):
        mine = place == number
        said, true, n = float(judged.probability[mine].mean()), int(right[mine].sum()), int(mine.sum())
        low, high = wilson(true, n)
        axes.errorbar(
            [said], [true / n], [[true / n - low], [high - true / n]], fmt="o", color="tab:blue", capsize=2, ms=4
        )
        axes.annotate(str(n), (said, true / n), textcoords="offset points", xytext=(5, -9), fontsize=7)
        error += n / len(right) * abs(true / n - said)
    axes.plot([0, 1], [0, 1], color="0.7", lw=1, ls=":")
    axes.set(xlabel=f"probability of {what}", ylabel="share in which it is", aspect="equal")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_title(f"{title}\nexpected calibration error {error:.4f}; counts beside the points", fontsize=9)


def _values(axes: Axes, judged: Judged, title: str) -> None:
    axes.plot(judged.truth, judged.said, ".", ms=4, alpha=0.6)
    ends = [float(judged.truth.min()), float(judged.truth.max())]
    axes.plot(ends, ends, color="0.7", lw=1, ls=":")
    unit = f", {judged.attribute.unit}" if judged.attribute.unit else ""
    axes.set(xlabel=f"truth{unit}", ylabel=f"said{unit}")
    axes.set_title(title, fontsize=9)
