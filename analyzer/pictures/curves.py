"""Curves of a run as pictures: hit rate against time and image, and the radial profile with what was fitted to it."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analyzer.pictures.drawing import HIT, INK, RING, TITLE, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 130.0
_WIDE = (7.2, 2.7)
_MOST_POINTS = 180
_INDEXABLE = "#e69f00"
_FEWEST_SECONDS_SHOWN = 10


def rate_over_time(curves: Mapping[str, Any], began_at: float) -> bytes | None:
    """Hit and indexable rate against UTC, from ``began_at`` (Unix s); ``None`` without a frame."""
    bins = _time_bins(curves, began_at)
    at = np.asarray(bins["t"], np.float64)
    inside = at >= began_at - bins["width_s"]
    beam, hits, indexable = (np.asarray(bins[key], np.float64)[inside] for key in ("beam", "hits", "indexable"))
    if not beam.sum():
        return None
    at = at[inside] + bins["width_s"] / 2

    def draw(figure: "Figure", axes: "Axes") -> None:
        del figure
        where = _rates(axes, at, beam, hits, indexable)
        span = max(where[-1] - where[0], _FEWEST_SECONDS_SHOWN)
        axes.set_xlim(where[0] - 0.01 * span, where[0] + 1.01 * span)
        ticks = np.linspace(where[0], where[0] + span, 6)
        form = "%H:%M:%S" if span < 1800 else "%H:%M"
        axes.set_xticks(ticks, [time.strftime(form, time.gmtime(tick)) for tick in ticks])
        axes.set_xlabel("time received (UTC)", fontsize=8)

    return picture(draw, _WIDE, DOTS_PER_INCH)


def rate_over_images(curves: Mapping[str, Any]) -> bytes | None:
    """The same against the image's place among all of the run; dashed where a series begins."""
    bins = curves.get("images") or {"width": 1, "first": [], "beam": [], "hits": [], "indexable": []}
    at, beam, hits, indexable = (np.asarray(bins[key], np.float64) for key in ("first", "beam", "hits", "indexable"))
    if not beam.sum():
        return None

    def draw(figure: "Figure", axes: "Axes") -> None:
        del figure
        where = _rates(axes, at + bins["width"] / 2, beam, hits, indexable)
        for series in curves.get("series", ()):
            if where[0] < series["first_image"] < where[-1]:
                axes.axvline(series["first_image"], color=INK, lw=0.7, ls="--", alpha=0.5)
        axes.set_xlabel("image, all series of the run one after the other", fontsize=8)

    return picture(draw, _WIDE, DOTS_PER_INCH)


def radial_profile(curves: Mapping[str, Any]) -> bytes | None:
    """Diffuse scattering against q (radius where q is not known), and the model that was fitted."""
    profile = curves.get("profile")
    if not profile or not profile["x"]:
        return None

    def draw(figure: "Figure", axes: "Axes") -> None:
        del figure
        axes.plot(profile["x"], profile["measured"], ".", ms=3, color=INK, label="measured")
        if profile["model"] is not None:
            axes.plot(profile["x"], profile["model"], color=RING, lw=1.4, label="fitted")
        axes.set_ylim(bottom=0)
        unit = profile["unit"]
        axes.set_xlabel("q (1/Å)" if unit == "1/angstrom" else "radius (px)", fontsize=8)
        axes.set_ylabel(profile["label"], fontsize=8)
        axes.set_title(f"Diffuse scattering of {profile['frames']} frames", **TITLE)
        axes.legend(fontsize=8, frameon=False)

    return picture(draw, _WIDE, DOTS_PER_INCH)


def _time_bins(curves: Mapping[str, Any], began_at: float) -> Mapping[str, Any]:
    """By second where those reach back to the beginning, else by minute."""
    seconds, minutes = curves["time"], curves["minutes"]
    whole = not minutes["t"] or (seconds["t"] and seconds["t"][0] <= max(began_at, minutes["t"][0] + 60))
    chosen: Mapping[str, Any] = seconds if whole else minutes
    return chosen


def _rates(
    axes: "Axes",
    at: npt.NDArray[np.float64],
    beam: npt.NDArray[np.float64],
    hits: npt.NDArray[np.float64],
    indexable: npt.NDArray[np.float64],
) -> Sequence[float]:
    """Draw both rates, of so many bins together that they can be told apart; where they lie."""
    step = -(-len(at) // _MOST_POINTS)
    starts = np.arange(0, len(at), step)
    beam, hits, indexable = (np.add.reduceat(values, starts) for values in (beam, hits, indexable))
    where: npt.NDArray[np.float64] = np.add.reduceat(at, starts) / np.diff([*starts, len(at)])
    there = beam > 0
    # Often the same: the thin dashed one lies on the broad one then.
    styles = ((hits, "hits", {"color": HIT, "lw": 2.2}), (indexable, "indexable", {"color": _INDEXABLE, "ls": "--"}))
    for values, label, style in styles:
        axes.plot(where[there], values[there] / beam[there], marker=".", ms=3, label=label, **style)
    highest = float((np.maximum(hits, indexable)[there] / beam[there]).max())
    axes.set_ylim(0, max(0.05, 1.03 * highest))
    axes.set_ylabel("share of frames with beam", fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
    found: list[float] = where.tolist()
    return found
