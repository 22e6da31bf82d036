"""The learned peak finder: a small heatmap network that looks only where something may be.

The reduction's map says which cells of 8 x 8 pixels hold anything unlikely; around each the network sees 24 x 24 pixels
of counts, of how unlikely they are, and of what is valid (``peak_tiles``), and answers how sure it is of a spot in each
2 x 2 pixels, where in there, and how bright. What fools windows of counts, a hot pixel, a ring's edge, a streak, a
gap's border, it has been shown in training.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from analyzer import peak_tiles
from analyzer.bundle import Bundle
from analyzer.kernels import PEAK_DTYPE
from analyzer.reduction import MAX_PEAKS, Reduced, Workspace
from analyzer.tile_layout import CHANNELS, FACTS, HEATS, MAX_TILES, OUTPUTS, TILE
from streamer.validity import sentinel

_TILES_AT_ONCE = 64


class Tiler:
    """Chooses and cuts the tiles of reduced frames, in buffers of its own.

    threshold: significance of a cell, in the units of ``Workspace.significance``, from which it is looked at. After
    ``choose``: ``cells`` (MAX_TILES,) int32, the flat cells of the map of as many tiles as it returned.
    """

    def __init__(self, threshold: float) -> None:
        if not (math.isfinite(threshold) and threshold >= 0.0):
            raise ValueError(f"tile threshold {threshold}: give a significance of 0 or more")
        self.threshold = threshold
        self.cells = np.zeros(MAX_TILES, np.int32)
        self._frame_facts = np.zeros(3)
        self._marked = np.zeros(0, np.uint8)

    def choose(self, workspace: Workspace, reduced: Reduced) -> int:
        """Choose the tiles of the frame that the workspace has just reduced; returns how many."""
        cells = reduced.significance[0].size
        if cells != self._marked.size:
            self._marked = np.zeros(cells, np.uint8)
        count: int = peak_tiles.choose_tiles(
            *_seen(workspace), reduced.significance, self.threshold, self._marked, self.cells, self._frame_facts
        )
        return count

    def fill(
        self, workspace: Workspace, reduced: Reduced, first: int, last: int,
        inputs: npt.NDArray[np.float32], facts: npt.NDArray[np.float32],
    ) -> None:  # fmt: skip
        """Write tiles first to before last of those chosen: inputs (n, CHANNELS, TILE, TILE), facts (n, FACTS)."""
        across = reduced.significance.shape[2]
        peak_tiles.fill_tiles(*_seen(workspace), across, self.cells, first, last, self._frame_facts, inputs, facts)


def _seen(workspace: Workspace) -> tuple[Any, ...]:
    plan = workspace.plan
    top = sentinel(workspace.dtype)
    return workspace.pixels.reshape(-1), plan.shape, top, plan.inside, plan.bins.bin_of, workspace.background


class LearnedFinder:
    """Finds the peaks of reduced frames by a ``PeakNetwork``; one a worker, it keeps its buffers.

    threshold: heat from which there is a peak, 0 to 1. What is found is a function of the frame, its plan and the
    network alone.
    """

    def __init__(
        self, network: nn.Module, threshold: float, tile_threshold: float, device: torch.device | str = "cpu"
    ) -> None:
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"threshold {threshold}: give a heat between 0 and 1")
        self._tiler = Tiler(tile_threshold)
        self._least_logit = math.log(threshold) - math.log1p(-threshold)
        self._device = torch.device(device)
        self._network = network.to(self._device).eval()
        self._inputs = np.zeros((_TILES_AT_ONCE, CHANNELS, TILE, TILE), np.float32)
        self._facts = np.zeros((_TILES_AT_ONCE, FACTS), np.float32)
        self._outputs = np.zeros((MAX_TILES, OUTPUTS, HEATS, HEATS), np.float32)
        self._maxima, self._measured = np.zeros((MAX_PEAKS, 4)), np.zeros((MAX_PEAKS, 6))
        self._tile_of = np.full(0, -1, np.int32)

    @torch.inference_mode()
    def find(self, workspace: Workspace, reduced: Reduced) -> npt.NDArray[Any]:
        """Peaks of the frame that the workspace has just reduced, surest first, as ``PEAK_DTYPE``.

        Places are the network's; intensity and snr are from the counts, as the classical finder has them; surprise is
        -ln(1 - heat), by the network's word the chance that there is nothing.
        """
        count = self._tiler.choose(workspace, reduced)
        for first in range(0, count, _TILES_AT_ONCE):
            last = min(first + _TILES_AT_ONCE, count)
            self._tiler.fill(workspace, reduced, first, last, self._inputs, self._facts)
            some = (torch.from_numpy(each[: last - first]).to(self._device) for each in (self._inputs, self._facts))
            self._outputs[first:last] = self._network(*some).cpu().numpy()
        return self.decode(workspace, reduced, self._tiler.cells, self._outputs, count)

    def decode(
        self, workspace: Workspace, reduced: Reduced, cells: npt.NDArray[np.int32], outputs: npt.NDArray[np.float32],
        count: int,
    ) -> npt.NDArray[Any]:  # fmt: skip
        """Peaks from the network's answers (n, OUTPUTS, HEATS, HEATS) for ``count`` cells."""
        plan = workspace.plan
        _, down, across = reduced.significance.shape
        if self._tile_of.size != down * across:
            self._tile_of = np.full(down * across, -1, np.int32)
        found = peak_tiles.list_maxima(outputs, cells, count, self._tile_of, across, self._least_logit, self._maxima)
        pixels, shape, top, *where = _seen(workspace)
        kept = peak_tiles.measure(pixels, shape, top, plan.saturation, *where, self._maxima, found, self._measured)
        peaks = np.zeros(kept, PEAK_DTYPE)
        for column, name in enumerate(("fs", "ss", "intensity", "snr", "surprise", "saturated")):
            peaks[name] = self._measured[:kept, column]
        peaks["surprise"] = np.logaddexp(0.0, self._measured[:kept, 4])
        return peaks


def learned_finder(bundle: Bundle, device: torch.device | str = "cpu") -> LearnedFinder | None:
    """The finder that a bundle carries; None where it has none."""
    card = bundle.card.peaks
    if card is None or bundle.peaks is None:
        return None
    return LearnedFinder(bundle.peaks, card.threshold, card.tile_threshold, device)
