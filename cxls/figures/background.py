"""What scatters besides the crystal: tables, what a pixel gets of them, the beam stop, and the water of 2024."""

import math
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from cxls.figures.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SEED,
    Drawn,
    Request,
    condition_name,
    new_figure,
    show_counts,
    text_table,
)
from sim_replay.background import Surroundings, make_background
from sim_replay.background import draw_background as draw_photons
from sim_replay.detector import CONDITIONS, Condition, Detector, beam_center_px, eiger2_4m, plain_panel
from sim_replay.distractors import Distractors, draw_distractors
from sim_replay.salts import ice_lines
from sim_replay.scatter import (
    CLASSICAL_ELECTRON_RADIUS_M,
    Q_INV_ANGSTROM,
    WATER_MOLECULES_PER_M3,
    air_per_sr,
    glass_per_sr,
    helium_per_sr,
    water_per_sr,
)
from sim_replay.shots import frame_rng

WATER_M, AIR_M, GLASS_M, HELIUM_M = 100e-6, 0.05, 20e-6, 0.05
CELSIUS = {4.0: "#7fb3e6", 25.0: BLUE, 60.0: "#123a66"}
FACTOR_2024 = 1e10 / 3e8
"""Photons of the 2024 study's water over those of its Bragg patterns."""

_STOP = Surroundings(beam_stop_radius_m=1.5e-3, beam_stop_distance_m=0.03, beam_stop_arm_width_m=4e-4)
_ICE_FRAME = 0
_PULSES = 300


def draw_background(request: Request) -> Drawn:
    """Tables against q, profiles of condition 2, a beam stop, and the water of 2024."""
    del request
    figure = new_figure(10.6, 8.4)
    (tables, profiles), (stop, water) = figure.subplots(2, 2)
    ice = draw_distractors(Distractors(ice_ring=1.0), CONDITIONS[2], eiger2_4m(), frame_rng(SEED, _ICE_FRAME))
    assert ice.smooth_per_sr is not None
    _tables(tables, ice.smooth_per_sr)
    profile_lines = _profiles(profiles, ice.smooth_per_sr)
    stop_lines = _beam_stop(stop)
    water_lines = _water_2024(water)
    return Drawn(
        {"sim-background": figure},
        (*_table_lines(ice.smooth_per_sr), "", *profile_lines, "", *stop_lines, "", *water_lines),
    )


def _materials(ice_per_sr: NDArray[np.float64]) -> dict[str, tuple[NDArray[np.float64], str]]:
    water = {
        f"water {WATER_M * 1e6:g} µm, {celsius:g} °C": (water_per_sr(WATER_M, 273.15 + celsius), colour)
        for celsius, colour in CELSIUS.items()
    }
    return water | {
        f"air {AIR_M * 1e2:g} cm": (air_per_sr(AIR_M), GREEN),
        f"helium {HELIUM_M * 1e2:g} cm": (helium_per_sr(HELIUM_M), GREY),
        f"glass {GLASS_M * 1e6:g} µm": (glass_per_sr(GLASS_M), ORANGE),
        "a film of ice": (ice_per_sr, PURPLE),
    }


def _tables(axes: Axes, ice_per_sr: NDArray[np.float64]) -> None:
    for name, (per_sr, colour) in _materials(ice_per_sr).items():
        axes.plot(Q_INV_ANGSTROM, np.where(per_sr > 0.0, per_sr, np.nan), color=colour, label=name, linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlim(0.0, 5.0)
    axes.set_ylim(1e-6, 1e-1)
    axes.set_xlabel("q (1/Å)")
    axes.set_ylabel("w(q) (photons/sr for each photon of the pulse)")
    axes.set_title("scattering before polarisation")
    axes.legend(ncols=2, loc="upper right")
    axes.grid(alpha=0.3)


def _table_lines(ice_per_sr: NDArray[np.float64]) -> tuple[str, ...]:
    places = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    rows = []
    for name, (per_sr, _) in _materials(ice_per_sr).items():
        top = int(np.argmax(per_sr))
        rows.append(
            [name, *(f"{np.interp(q, Q_INV_ANGSTROM, per_sr):.2e}" for q in places),
             f"{per_sr[top]:.2e} at {Q_INV_ANGSTROM[top]:.2f}"]
        )  # fmt: skip
    return text_table(["w(q) in 1/sr at q in 1/angstrom", *(f"{q:g}" for q in places), "largest"], rows)


def _q_of(condition: Condition, detector: Detector) -> NDArray[np.float64]:
    """q (1/angstrom) of every pixel's middle, (ss, fs)."""
    center_x, center_y = beam_center_px(condition, detector)
    ss, fs = np.ogrid[: detector.shape[0], : detector.shape[1]]
    radius_m = np.hypot(fs + 0.5 - center_x, ss + 0.5 - center_y) * detector.pixel_size_m
    two_theta = np.arctan(radius_m / condition.camera_length_m)
    q: NDArray[np.float64] = 4.0 * math.pi / condition.wavelength_angstrom * np.sin(two_theta / 2.0)
    return q


def radial_mean(
    image: NDArray[np.generic], bin_of: NDArray[np.int64], mask: NDArray[np.bool_], bins: int
) -> NDArray[np.float64]:
    """Mean of an image (ss, fs) over the live pixels of each bin, (bins,); NaN where there are none."""
    live = ~mask
    pixels = np.bincount(bin_of[live], minlength=bins)[:bins]
    with np.errstate(invalid="ignore"):
        return np.bincount(bin_of[live], image[live], minlength=bins)[:bins] / np.where(pixels, pixels, np.nan)


def _profiles(axes: Axes, ice_per_sr: NDArray[np.float64]) -> tuple[str, ...]:
    """Photons a pixel under condition 2: the expectation, and the mean of drawn frames as points."""
    condition, detector = CONDITIONS[2], eiger2_4m()
    q = _q_of(condition, detector)
    step, bins = 0.005, 460
    bin_of = np.minimum((q / step).astype(np.int64), bins)
    middle = (np.arange(bins) + 0.5) * step
    dry = Surroundings(water_thickness_m=0.0)
    parts = {
        f"water, {celsius:g} °C": (Surroundings(water_temperature_K=273.15 + celsius), None, colour)
        for celsius, colour in CELSIUS.items()
    } | {
        "air": (replace(dry, air_path_m=AIR_M), None, GREEN),
        "helium": (replace(dry, helium_path_m=HELIUM_M), None, GREY),
        "glass": (replace(dry, capillary_wall_m=GLASS_M), None, ORANGE),
        "ice": (dry, ice_per_sr, PURPLE),
    }
    rng = frame_rng(SEED, 7)
    rows = []
    for name, (surroundings, extra, colour) in parts.items():
        made = make_background(condition, detector, surroundings, extra)
        water_too = surroundings.water_thickness_m > 0.0
        layer = made.water if water_too else made.rest
        assert layer is not None
        expected = radial_mean(layer.expected, bin_of, detector.mask, bins)
        # So many pulses at once, for points with small errors.
        drawn = np.zeros(detector.shape, dtype=np.uint32)
        weights = (float(_PULSES), 0.0) if water_too else (0.0, float(_PULSES))
        draw_photons(made, weights, rng, drawn, 2**31)
        seen = radial_mean(drawn, bin_of, detector.mask, bins) / _PULSES
        axes.plot(middle, expected, color=colour, linewidth=1.1, label=name)
        axes.plot(middle[::16], seen[::16], ".", color=colour, markersize=4)
        live = ~detector.mask
        rows.append(
            [name, f"{layer.expected[live].mean(dtype=np.float64):.3e}", f"{layer.total:.0f}",
             f"{drawn[live].sum(dtype=np.float64) / _PULSES:.0f}"]
        )  # fmt: skip
    d, strength = ice_lines(2.5)
    for spacing, height in zip(d, strength, strict=True):
        if height > 0.1:
            axes.axvline(2.0 * math.pi / spacing, color=PURPLE, linewidth=0.7, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlim(0.0, 2.35)
    axes.set_ylim(3e-4, 3.0)
    axes.set_xlabel("q (1/Å)")
    axes.set_ylabel("photons a pixel at 3e8 photons a pulse")
    axes.set_title(f"condition 2; points: {_PULSES} drawn pulses; dotted: 2π/d of ice")
    axes.legend(ncols=2, loc="upper left")
    axes.grid(alpha=0.3)
    return text_table(["condition 2, EIGER2 4M", "photons a pixel", "photons a frame", "drawn a frame"], rows)


def _beam_stop(axes: Axes) -> tuple[str, ...]:
    """The middle of a frame behind a beam stop, with the rim of its shadow where it should be."""
    condition, detector = CONDITIONS[2], plain_panel()
    made = make_background(condition, detector, _STOP)
    half = 150
    center_x, center_y = beam_center_px(condition, detector)
    ss, fs = int(center_y) - half, int(center_x) - half
    crop = made.water.expected[ss : ss + 2 * half, fs : fs + 2 * half]
    shown = show_counts(axes, crop, LogNorm(3e-4, 3e-2), first=(ss, fs))
    rim_px = _STOP.beam_stop_radius_m / _STOP.beam_stop_distance_m * condition.camera_length_m / detector.pixel_size_m
    turn = np.linspace(0.0, 2.0 * math.pi, 200)
    axes.plot(center_x - 0.5 + rim_px * np.cos(turn), center_y - 0.5 + rim_px * np.sin(turn), "--", color="white", lw=1)
    axes.set_xlabel("fs (pixel)")
    axes.set_ylabel("ss (pixel)")
    axes.set_title(
        f"beam stop of {_STOP.beam_stop_radius_m * 1e3:g} mm at {_STOP.beam_stop_distance_m * 1e3:g} mm, "
        f"arm {_STOP.beam_stop_arm_width_m * 1e3:g} mm; dashed: r L/D"
    )
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(shown, ax=axes, label="photons a pixel at 3e8 photons a pulse", extend="min")
    q = _q_of(condition, detector)
    radius = np.arange(0, 2 * half)
    radius_of = np.rint(np.tan(2.0 * np.arcsin(q * condition.wavelength_angstrom / (4.0 * math.pi)))
                        * condition.camera_length_m / detector.pixel_size_m).astype(np.int64)  # fmt: skip
    bare = make_background(condition, detector, Surroundings()).water.expected
    inside = np.minimum(radius_of, len(radius))
    nothing = np.zeros(detector.shape, dtype=np.bool_)
    share = radial_mean(made.water.expected, inside, nothing, len(radius)) / radial_mean(
        bare, inside, nothing, len(radius)
    )
    middle = int(np.argmax(share > 0.5))
    return (
        f"beam stop: rim of the shadow expected {rim_px:.1f} px from the beam; half of the light from {middle} px on",
    )


def _water_2024(axes: Axes) -> tuple[str, ...]:
    """Water as it is and as the 2024 study had it: F^2 squared once more, and 1e10 photons instead of 3e8."""
    per_sr = water_per_sr(WATER_M)
    f2 = per_sr / (CLASSICAL_ELECTRON_RADIUS_M**2 * WATER_MOLECULES_PER_M3 * WATER_M)
    top = int(np.argmax(f2))
    panel = plain_panel()
    rows = []
    for number, condition in CONDITIONS.items():
        made = make_background(condition, panel, Surroundings(), per_sr * f2 * FACTOR_2024)
        assert made.rest is not None
        right, then = (layer.expected.mean(dtype=np.float64) for layer in (made.water, made.rest))
        name = f"{number}: {condition_name(condition.camera_length_m, condition.photon_energy_eV)}"
        rows.append([name, f"{right:.4f}", f"{then:.2f}", f"{then / right:.0f}"])
        if number in (2, 8):
            q = _q_of(condition, panel)
            bin_of = np.minimum((q / 0.02).astype(np.int64), 130)
            nothing = np.zeros(panel.shape, dtype=np.bool_)
            for layer, style, what in ((made.rest, "--", "2024"), (made.water, "-", "as it is")):
                profile = radial_mean(layer.expected, bin_of, nothing, 130)
                colour = RED if number == 2 else BLUE
                axes.plot(
                    (np.arange(130) + 0.5) * 0.02, profile, style, color=colour, label=f"condition {number}, {what}"
                )
    axes.set_yscale("log")
    axes.set_ylim(8e-4, 300.0)
    axes.set_xlabel("q (1/Å)")
    axes.set_ylabel("photons a pixel")
    axes.set_title("water: the 2024 study's and what it is")
    axes.legend(ncols=2, loc="upper left")
    axes.grid(alpha=0.3)
    heads = ["mean photons a pixel, 2163 x 2069", "water, 3e8 photons", "F^4, 1e10 photons", "ratio"]
    return (
        f"water's F^2 at 25 C: {f2[0]:.2f} electrons^2 a molecule at q = 0, {f2[top]:.1f} at {Q_INV_ANGSTROM[top]:.2f}",
        *text_table(heads, rows),
    )
