"""How well a parameter network does: at the 2024 paper's nine conditions, and over the world it was trained for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from analyzer.geometry import bin_map, series_geometry
from analyzer.networks import coarse_profile, profile_features, profile_index
from analyzer.parameters.answers import PAPER_ENERGIES_EV, PAPER_LENGTHS_M, Answers, answers, joint
from analyzer.parameters.claims import DISTANCE_SIGMA_LIMIT_M, ENERGY_SIGMA_LIMIT_EV
from sim_replay.background import expected_water
from sim_replay.detector import CONDITIONS, Condition, eiger2_4m
from streamer.messages import SeriesMetadata
from training.parameters import Z_95
from training.placements import CENTRE_ERROR_PX, STATED_CENTRE_SPREAD_PX, Placements
from training.water_profiles import World, draw_profiles

FRAMES = (1, 10, 100, 1000)
_CENTRES = 8
_DRAWS = 50
"""Profiles of each of the centres, for one condition and number of frames."""
_WORLD_PROFILES = 24_000
_DECADES = range(2, 9)

Floats = npt.NDArray[np.float64]
Scale = tuple[float, float, float]


@torch.inference_mode()
def evaluate_parameters(
    network: nn.Module, scale: Scale, world: World, test: Placements, seed: int, device: torch.device
) -> dict[str, Any]:
    """Errors (r.m.s.), stated uncertainties (median), coverage of 95 % intervals and right answers.

    ``rows``: 400 profiles of each of the nine conditions, pure water, 3e8 photons a pulse, in 1 to 1000 frames; from
    whole images, so that they are independent of the way the training's profiles are made. ``world``: profiles of the
    world on test placements, by the photons in them. A value is claimed where the cascade would publish it; coverage
    of the claimed is None where none is. The 3 x 3 confusion matrices (rows: truth) are of the most probable of the
    paper's values in one frame, claimed or not.
    """
    network.eval()
    rng = np.random.default_rng(seed)
    rows = []
    energy_matrix, length_matrix = np.zeros((3, 3), int), np.zeros((3, 3), int)
    for number, condition in CONDITIONS.items():
        mean, pixels = condition_profiles(condition, rng, _CENTRES)
        for frames in FRAMES:
            photons = rng.poisson(np.repeat(mean * frames, _DRAWS, 0))
            profiles = np.stack([photons, np.repeat(pixels * frames, _DRAWS, 0)], 1).astype(np.float32)
            said = _Said(_said(network, torch.from_numpy(profiles), device), scale)
            energy, length = condition.photon_energy_eV, condition.camera_length_m
            given = list(said.answers())
            rows.append(
                {
                    "condition": number,
                    "frames": frames,
                    "photons": round(float(mean.sum(1).mean() * frames)),
                    **said.figures(np.full(len(given), energy), np.full(len(given), length)),
                    **_right(given, energy, length),
                }
            )
            if frames == 1:
                for answer in given:
                    said_energy = PAPER_ENERGIES_EV.index(answer.paper_energy_eV)
                    said_length = PAPER_LENGTHS_M.index(answer.paper_length_m)
                    energy_matrix[PAPER_ENERGIES_EV.index(energy), said_energy] += 1
                    length_matrix[PAPER_LENGTHS_M.index(length), said_length] += 1
    return {
        "rows": rows,
        "energy_confusion": energy_matrix.tolist(),
        "distance_confusion": length_matrix.tolist(),
        "world": _over_the_world(network, scale, world, test, seed, device),
    }


def condition_profiles(condition: Condition, rng: np.random.Generator, centres: int) -> tuple[Floats, Floats]:
    """Expected photons of water and pixels of each bin, (centres, bins) each, from whole images.

    Each about a stated beam centre of its own, the true one up to 10 px from that in x and in y.
    """
    detector = eiger2_4m()
    live = ~detector.mask
    middle = np.array(detector.shape[::-1]) / 2
    made = []
    for _ in range(centres):
        stated = middle + rng.uniform(-STATED_CENTRE_SPREAD_PX, STATED_CENTRE_SPREAD_PX, 2)
        x, y = stated + rng.uniform(-CENTRE_ERROR_PX, CENTRE_ERROR_PX, 2)
        geometry = series_geometry(
            SeriesMetadata(beam_center_x_px=stated[0], beam_center_y_px=stated[1]), detector.shape
        )
        bins = bin_map(geometry)
        place = bins.bin_of[live.reshape(-1)]
        true = Condition(
            photon_energy_eV=condition.photon_energy_eV,
            camera_length_m=condition.camera_length_m,
            flux_photons=condition.flux_photons,
            beam_center_x_px=x,
            beam_center_y_px=y,
        )
        photons = np.bincount(place, expected_water(true, detector)[live], bins.bins).astype(np.float64)
        pixels = np.bincount(place, minlength=bins.bins).astype(np.float64)
        made.append(coarse_profile(photons, pixels, profile_index(geometry, bins.radial_bins)))
    mean, area = np.stack(made, 1).astype(np.float64)
    return mean, area


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What a network said of B profiles: its numbers (B, 6), and how their uncertainties are scaled."""

    out: Floats
    scale: Scale

    @property
    def value(self) -> Floats:
        """E, L and L/E, (B, 3)."""
        return np.exp(self.out[:, :3])

    @property
    def sigma(self) -> Floats:
        """Their standard deviations."""
        sigma: Floats = self.value * np.exp(self.out[:, 3:]) * np.array(self.scale)
        return sigma

    def answers(self) -> Iterator[Answers]:
        """The plain answers of each."""
        return (answers(*joint(row.tolist(), self.scale)) for row in self.out)

    def figures(self, energy_eV: Floats, length_m: Floats) -> dict[str, float | None]:
        """Errors, stated uncertainties and coverage against the truth (B,); of L/E as parts of it."""
        truth = np.stack([energy_eV, length_m, length_m / energy_eV], 1)
        value, sigma = self.value, self.sigma
        error = value - truth
        r_m_s = np.sqrt(np.mean(error**2, 0))
        covered = np.abs(error) <= Z_95 * sigma
        claimed = sigma[:, :2] <= np.array([ENERGY_SIGMA_LIMIT_EV, DISTANCE_SIGMA_LIMIT_M])
        relative = np.sqrt(np.mean((error[:, 2] / truth[:, 2]) ** 2))
        return {
            "energy_error_eV": round(float(r_m_s[0]), 1),
            "energy_sigma_eV": round(float(np.median(sigma[:, 0])), 1),
            "energy_coverage_95": float(covered[:, 0].mean()),
            "energy_claimed": float(claimed[:, 0].mean()),
            "energy_claimed_coverage_95": _mean_where(covered[:, 0], claimed[:, 0]),
            "distance_error_m": round(float(r_m_s[1]), 5),
            "distance_sigma_m": round(float(np.median(sigma[:, 1])), 5),
            "distance_coverage_95": float(covered[:, 1].mean()),
            "distance_claimed": float(claimed[:, 1].mean()),
            "distance_claimed_coverage_95": _mean_where(covered[:, 1], claimed[:, 1]),
            "ratio_error": round(float(relative), 5),
            "ratio_sigma": round(float(np.median(sigma[:, 2] / value[:, 2])), 5),
            "ratio_coverage_95": float(covered[:, 2].mean()),
        }


def _said(network: nn.Module, profiles: Tensor, device: torch.device) -> Floats:
    out: Floats = network(profile_features(profiles.to(device))).cpu().double().numpy()
    return out


def _right(given: list[Answers], energy_eV: float, length_m: float) -> dict[str, float]:
    """Shares of right answers."""
    kev, cm = round(energy_eV / 1000), round(length_m * 100)
    return {
        "nearest_kev": float(np.mean([each.nearest_kev == kev for each in given])),
        "nearest_cm": float(np.mean([each.nearest_cm == cm for each in given])),
        "energy_class": float(np.mean([each.paper_energy_eV == energy_eV for each in given])),
        "distance_class": float(np.mean([each.paper_length_m == length_m for each in given])),
    }


def _mean_where(values: npt.NDArray[np.bool_], chosen: npt.NDArray[np.bool_]) -> float | None:
    return float(values[chosen].mean()) if chosen.any() else None


def _over_the_world(
    network: nn.Module, scale: Scale, world: World, test: Placements, seed: int, device: torch.device
) -> list[dict[str, Any]]:
    profiles, target = draw_profiles(test, world, _WORLD_PROFILES, torch.Generator().manual_seed(seed))
    out = _said(network, profiles, device)
    ratio, energy = target.double().exp().numpy().T
    photons = profiles[:, 0].sum(1).numpy()
    rows = []
    for decade in _DECADES:
        chosen = (photons >= 10.0**decade) & (photons < 10.0 ** (decade + 1))
        if chosen.any():
            figures = _Said(out[chosen], scale).figures(energy[chosen], (ratio * energy)[chosen])
            rows.append({"photons_from": 10**decade, "profiles": int(chosen.sum()), **figures})
    return rows
