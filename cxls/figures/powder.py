"""The absolute scale: the mean over random orientations against the powder formula."""

import math

import numpy as np
from numpy.typing import NDArray

from cxls.figures.drawing import BLUE, RED, SEED, Drawn, Request, condition_name, new_figure, text_table
from cxls.figures.frames import CRYSTAL
from sim_replay.beam import lit_path_m
from sim_replay.cells import ready_crystal
from sim_replay.crystal import Crystal, reciprocal_basis
from sim_replay.detector import CONDITIONS, Condition, Detector, plain_panel
from sim_replay.diffraction import Sample, diffract, footprint, random_orientation
from sim_replay.scatter import CLASSICAL_ELECTRON_RADIUS_M
from sim_replay.shots import frame_rng

_AZIMUTHS = 720


def powder_photons(sample: Sample, condition: Condition, panel: Detector) -> float:
    """Photons that a pulse sends on average from a crystal in a random orientation onto a gapless panel.

    The powder formula (Warren, X-ray Diffraction, 1969, ch. 4) with the part of each ring that is on the panel:
    n l r_e^2 / V_c^2 * sum over reflections of |F|^2 <P> lambda^3 / (4 sin theta), all light at the middle of the band.
    """
    crystal, beam = sample.crystal, condition.beam
    q = np.linalg.norm(crystal.hkl @ reciprocal_basis(crystal.cell).T, axis=1)
    lengths, ring = np.unique(np.round(q, 9), return_inverse=True)
    intensity = np.bincount(ring, crystal.intensity)
    sine = condition.wavelength_angstrom * lengths / 2.0
    met = sine < 0.7
    two_theta = 2.0 * np.arcsin(sine[met])[:, None]
    azimuth = (np.arange(_AZIMUTHS) + 0.5) * 2.0 * math.pi / _AZIMUTHS
    x, y = np.cos(azimuth), np.sin(azimuth)
    xx, xy, yy = beam.polarisation_terms
    polarisation = 1.0 - np.sin(two_theta) ** 2 * (xx * x * x + 2.0 * xy * x * y + yy * y * y)
    radius = condition.camera_length_m / panel.pixel_size_m * np.tan(two_theta)
    fs, ss = panel.shape[1] / 2.0 + radius * x, panel.shape[0] / 2.0 + radius * y
    polarisation *= (fs > 0) & (fs < panel.shape[1]) & (ss > 0) & (ss < panel.shape[0])
    rings_m3 = intensity[met] * (condition.wavelength_angstrom * 1e-10) ** 3 / (4.0 * sine[met])
    strength = condition.flux_photons * lit_path_m(beam, sample.size_m) * CLASSICAL_ELECTRON_RADIUS_M**2
    cell_m3 = crystal.volume_angstrom3 * 1e-30
    return float(strength / cell_m3**2 * np.sum(polarisation.mean(axis=1) * rings_m3))


def draw_powder(request: Request) -> Drawn:
    """Photons of Bragg spots on the 2024 panel, condition by condition."""
    panel, crystal = plain_panel(), ready_crystal(CRYSTAL)
    formula, mean, error = np.zeros((3, len(CONDITIONS)))
    for n, (number, condition) in enumerate(CONDITIONS.items()):
        # What reaches the panel only: the same photons sooner.
        sample = Sample(_down_to(crystal, _corner_spacing(condition, panel) * 0.97))
        formula[n] = powder_photons(sample, condition, panel)
        photons = _photons_of_orientations(sample, condition, panel, request.orientations, number)
        mean[n], error[n] = photons.mean(), photons.std(ddof=1) / math.sqrt(len(photons))
    names = [condition_name(c.camera_length_m, c.photon_energy_eV) for c in CONDITIONS.values()]
    place = np.arange(len(names))
    figure = new_figure(9.6, 3.9)
    left, right = figure.subplots(1, 2)
    left.bar(place, formula, color="0.85", label="powder formula")
    left.errorbar(place, mean, error, fmt="o", color=BLUE, markersize=4, capsize=3, label="mean of simulated crystals")
    left.set_ylabel("Bragg photons on the panel")
    left.set_title("3e8 photons a pulse")
    left.legend()
    right.axhline(1.0, color="0.5", linewidth=1.0)
    right.errorbar(place, mean / formula, error / formula, fmt="o", color=RED, markersize=4, capsize=3)
    reach = max(0.02, 1.3 * float(np.max(np.abs(mean / formula - 1.0) + error / formula)))
    right.set_ylim(1.0 - reach, 1.0 + reach)
    right.set_ylabel("simulated / formula, ± 1 standard error")
    right.set_title(f"{request.orientations} orientations a condition")
    for axes in (left, right):
        axes.set_xticks(place, names, rotation=40, ha="right")
        axes.grid(alpha=0.3, axis="y")
    rows = [
        [name, f"{mean[n]:.1f}", f"{formula[n]:.1f}", f"{mean[n] / formula[n]:.4f} +- {error[n] / formula[n]:.4f}"]
        for n, name in enumerate(names)
    ]
    weight = (formula / error) ** 2
    together = float(np.sum(weight * mean / formula) / weight.sum())
    rows.append(["all, weighted", "", "", f"{together:.4f} +- {1.0 / math.sqrt(float(weight.sum())):.4f}"])
    chi2 = float(np.sum(((mean - formula) / error) ** 2))
    return Drawn(
        {"sim-powder": figure},
        (
            *text_table(["Bragg photons on the panel", "simulated", "formula", "ratio"], rows),
            f"{request.orientations} orientations a condition, chi^2 {chi2:.1f} for {len(names)} conditions",
        ),
    )


def _photons_of_orientations(
    sample: Sample, condition: Condition, panel: Detector, orientations: int, stream: int
) -> NDArray[np.float64]:
    rng = frame_rng(SEED, stream)
    return np.array(
        [
            footprint(diffract(sample, condition, panel, random_orientation(rng)), condition, panel).photons.sum()
            for _ in range(orientations)
        ]
    )


def _corner_spacing(condition: Condition, panel: Detector) -> float:
    """The finest spacing (angstrom) that the shortest wavelength of the band sends to the panel's corner."""
    radius_m = math.hypot(*panel.shape) / 2.0 * panel.pixel_size_m
    theta = math.atan(radius_m / condition.camera_length_m) / 2.0
    return condition.wavelength_angstrom * condition.beam.spectrum.edges[0] / (2.0 * math.sin(theta))


def _down_to(crystal: Crystal, d_min_angstrom: float) -> Crystal:
    inverse_d = np.linalg.norm(crystal.hkl @ reciprocal_basis(crystal.cell).T, axis=1)
    kept = inverse_d <= 1.0 / d_min_angstrom
    return Crystal(crystal.name, crystal.cell, crystal.hkl[kept], crystal.intensity[kept], crystal.space_group)
