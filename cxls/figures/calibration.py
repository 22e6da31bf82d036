"""The figure of a calibration: scores of the blank frames, what a threshold costs, peaks a frame."""

import numpy as np
from matplotlib.figure import Figure

from analyzer.bundle import HitCard
from analyzer.calibration import Calibration
from analyzer.drift import LOGIT_STEP, score_bin_edges, score_histogram
from cxls.figures.drawing import BLUE, GREEN, GREY, RED, new_figure

_MOST_PEAKS = 40


def draw_calibration(calibration: Calibration, card: HitCard) -> Figure:
    """Three panels; the reference of the card is drawn where it has one."""
    figure = new_figure(11.0, 3.2)
    scores, rate, peaks = figure.subplots(1, 3)
    edges = np.array(score_bin_edges())
    middles = np.append(edges - LOGIT_STEP / 2, edges[-1] + LOGIT_STEP / 2)
    counted = np.array(score_histogram(calibration.probabilities))
    scores.bar(middles, counted / counted.sum(), LOGIT_STEP, color=BLUE, alpha=0.7, label="this blank run")
    if sum(card.score_reference_empties):
        reference = np.array(card.score_reference_empties)
        scores.step(middles, reference / reference.sum(), where="mid", color=GREY, label="bundle's empties")
    for threshold, colour, name in (
        (calibration.threshold, RED, "threshold set"),
        (card.threshold, GREEN, "bundle's threshold"),
    ):
        logit = np.log(max(threshold, 1e-6) / max(1 - threshold, 1e-6))
        scores.axvline(logit, color=colour, lw=1.2, label=name)
        rate.axvline(threshold, color=colour, lw=1.2)
    scores.set(xlabel="logit of the hit probability", ylabel="share of frames", title="Scores")
    scores.legend()
    ordered = np.sort(calibration.probabilities)
    rate.step(ordered, 1 - np.arange(len(ordered)) / len(ordered), where="pre", color=BLUE)
    rate.axhline(calibration.false_hits, color=GREY, lw=0.8, ls="--")
    rate.set(xlabel="threshold", ylabel="false-hit rate", yscale="log", xlim=(0, 1), title="What a threshold costs")
    shown = np.minimum(calibration.peak_counts, _MOST_PEAKS)
    peaks.hist(shown, bins=np.arange(-0.5, max(10, int(shown.max())) + 1.5), color=BLUE, alpha=0.7)
    peaks.set(xlabel=f"peaks a frame ({_MOST_PEAKS}: or more)", ylabel="frames", yscale="log", title="Peaks")
    return figure
