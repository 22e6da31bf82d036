"""The anatomy of a spot: one reflection under crystals and beams of different quality."""

import math
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from cxls.figures.drawing import Drawn, Request, new_figure, show_counts, text_table
from sim_replay.beam import Beam, top_hat
from sim_replay.crystal import Crystal
from sim_replay.detector import CONDITIONS, Condition, plain_panel
from sim_replay.diffraction import Footprint, Sample, diffract, footprint

SPACING_ANGSTROM = 4.0
INTENSITY = 2e4
AZIMUTH_DEG = 35.0
OFF_BRAGG_DEG = 0.02

_CROP_PX = 41


@dataclass(frozen=True, slots=True)
class _Case:
    """Settings of a crystal and of a beam that differ from a perfect crystal of 10 um in a 1 % top hat."""

    title: str
    mosaicity_deg: float = 0.0
    strain: float = 0.0
    bandwidth: float = 0.01
    divergence_rad: float = 0.0


_CASES = (
    _Case("mosaicity 0°"),
    _Case("mosaicity 0.05°", mosaicity_deg=0.05),
    _Case("mosaicity 0.2°", mosaicity_deg=0.2),
    _Case("divergence 1 mrad", divergence_rad=1e-3),
    _Case("mosaicity 0.2°, band 0.1 %", mosaicity_deg=0.2, bandwidth=0.001),
    _Case("mosaicity 0.2°, band 1 %", mosaicity_deg=0.2, bandwidth=0.01),
    _Case("mosaicity 0.2°, band 3 %", mosaicity_deg=0.2, bandwidth=0.03),
    _Case("mosaicity 0.2°, strain 1 %", mosaicity_deg=0.2, strain=0.01),
)


def one_reflection(condition: Condition) -> tuple[Crystal, NDArray[np.float64]]:
    """A crystal of one reflection, and the turn that brings it near its Bragg angle for the middle of the band."""
    edge = 10.0 * SPACING_ANGSTROM
    crystal = Crystal(
        "one reflection",
        (edge, edge, edge, 90.0, 90.0, 90.0),
        np.array([[10, 0, 0]], dtype=np.int32),
        np.array([INTENSITY]),
    )
    theta = math.asin(condition.wavelength_angstrom / (2.0 * SPACING_ANGSTROM)) + math.radians(OFF_BRAGG_DEG)
    c, s = math.cos(math.radians(AZIMUTH_DEG)), math.sin(math.radians(AZIMUTH_DEG))
    tilt = np.array(
        [[math.cos(theta), 0.0, math.sin(theta)], [0.0, 1.0, 0.0], [-math.sin(theta), 0.0, math.cos(theta)]]
    )
    return crystal, np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ tilt


def draw_spots(request: Request) -> Drawn:
    """Zooms of one reflection, pixel by pixel, and how wide and how bright each is."""
    del request
    panel, half = plain_panel(), _CROP_PX // 2
    figure = new_figure(10.8, 5.7)
    grid = figure.subplots(2, 4)
    rows = []
    for axes, case in zip(grid.flat, _CASES, strict=True):
        beam = Beam(spectrum=top_hat(case.bandwidth), divergence_rad=case.divergence_rad)
        condition = replace(CONDITIONS[2], beam=beam)
        crystal, turn = one_reflection(condition)
        sample = Sample(crystal, mosaicity_deg=case.mosaicity_deg, strain=case.strain)
        spots = diffract(sample, condition, panel, turn, min_photons=0.0)
        laid = footprint(spots, condition, panel)
        image = np.bincount(laid.index, laid.photons, panel.mask.size).reshape(panel.shape)
        # The same window for all: about where the middle of the band meets the reflection.
        radius = (
            condition.camera_length_m
            / panel.pixel_size_m
            * math.tan(2.0 * math.asin(condition.wavelength_angstrom / (2.0 * SPACING_ANGSTROM)))
        )
        ss = round(panel.shape[0] / 2 + radius * math.sin(math.radians(AZIMUTH_DEG))) - half
        fs = round(panel.shape[1] / 2 + radius * math.cos(math.radians(AZIMUTH_DEG))) - half
        shown = show_counts(axes, image[ss : ss + _CROP_PX, fs : fs + _CROP_PX], LogNorm(0.01, 100.0), first=(ss, fs))
        photons, partiality = float(spots.photons[0]), float(spots.partiality[0])
        axes.set_title(f"{case.title}\n{photons:.0f} photons, largest {image.max():.1f}")
        along, across = _spreads(laid, panel.shape[1])
        rows.append(
            [
                case.title.replace("°", " deg"), f"{photons:.1f}", f"{partiality:.3f}", f"{along:.2f}", f"{across:.2f}",
                f"{image.max() / photons:.3f}", str(int(np.sum(image > 0.5))),
            ]
        )  # fmt: skip
    for axes in grid[1]:
        axes.set_xlabel("fs (pixel)")
    for axes in grid[:, 0]:
        axes.set_ylabel("ss (pixel)")
    figure.colorbar(shown, ax=grid, label="expected photons a pixel", extend="both", shrink=0.8)
    heads = [
        "spot", "photons", "partiality", "along (px)", "across (px)", "share in brightest pixel", "pixels > 0.5 photon",
    ]  # fmt: skip
    return Drawn({"sim-spot": figure}, text_table(heads, rows))


def _spreads(laid: Footprint, columns: int) -> tuple[float, float]:
    """Standard deviations along the radius and across it, pixels."""
    ss, fs = np.divmod(laid.index, columns)
    c, s = math.cos(math.radians(AZIMUTH_DEG)), math.sin(math.radians(AZIMUTH_DEG))
    found = []
    for place in (fs * c + ss * s, -fs * s + ss * c):
        mean = np.average(place, weights=laid.photons)
        found.append(math.sqrt(float(np.average((place - mean) ** 2, weights=laid.photons))))
    return found[0], found[1]
