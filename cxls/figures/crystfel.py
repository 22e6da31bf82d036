"""Our diffraction and water beside those of CrystFEL's pattern_sim, pattern by pattern."""

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cxls.figures.drawing import (
    BLUE,
    GREEN,
    RED,
    SEED,
    Drawn,
    Request,
    condition_name,
    new_figure,
    text_table,
)
from sim_replay.against_crystfel import (
    SAMPLING_SHIFT_PX,
    Agreement,
    compare_spots,
    condition_of,
    label_fringes,
    panel_of,
    perfect_sample,
    radial_photons,
)
from sim_replay.background import expected_water
from sim_replay.cells import ready_crystal
from sim_replay.crystal import PROTEINASE_K_CELL, Crystal, read_hkl, reciprocal_basis
from sim_replay.crystfel import Pattern, read_sparse_patterns

NEAR_PX = 3.0
BRIGHT_PHOTONS = 50.0
FRINGE_PHOTONS = 5.0

_RING_PX = 100.0
_BOOTSTRAPS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class _Condition:
    """Patterns of one file, how they agree, and photons in rings: (patterns, 2, rings), pattern_sim's and ours."""

    name: str
    patterns: list[Pattern]
    agreements: list[Agreement]
    rings: NDArray[np.float64]
    water: NDArray[np.float32] | None

    @property
    def distance_px(self) -> NDArray[np.float64]:
        return np.concatenate([each.distance_px for each in self.agreements])

    @property
    def photons(self) -> NDArray[np.float64]:
        return np.concatenate([each.photons for each in self.agreements])

    @property
    def bright(self) -> NDArray[np.bool_]:
        return (self.photons >= BRIGHT_PHOTONS) & (self.distance_px < NEAR_PX)


def draw_crystfel(request: Request) -> Drawn:
    """Nothing without patterns. Raises OSError, or ValueError for files that are none of them."""
    if request.crystfel is None:
        return Drawn(lines=("not drawn: needs --crystfel, a folder of combo*.npz patterns of pattern_sim, and --hkl",))
    if request.hkl is None:
        raise ValueError("--crystfel needs --hkl, the reflection list that the patterns were made with")
    files = sorted(request.crystfel.glob("combo*.npz"))
    if not files:
        raise ValueError(f"--crystfel {request.crystfel}: holds no combo*.npz")
    crystal = read_hkl(request.hkl, PROTEINASE_K_CELL if request.cell is None else request.cell)
    conditions = [_read(path, crystal) for path in files]
    figure = new_figure(10.6, 7.2)
    (distances, offsets, rings), (ratios, profiles, waters) = figure.subplots(2, 3)
    _distances(distances, conditions)
    offset_line = _offsets(offsets, conditions)
    _rings(rings, conditions)
    ratio_line = _ratios(ratios, conditions)
    water_lines = _waters(profiles, waters, conditions)
    return Drawn(
        {"sim-crystfel": figure},
        (
            *_table(conditions), offset_line, ratio_line, _fringe_line(conditions, crystal), *water_lines,
            _stand_in_line(crystal),
        ),
    )  # fmt: skip


def _read(path: Path, crystal: Crystal) -> _Condition:
    patterns = list(read_sparse_patterns(path))
    if not patterns:
        raise ValueError(f"{path}: holds no patterns")
    sample = perfect_sample(crystal)
    first = patterns[0]
    reach_px = math.hypot(*first.shape) / 2.0
    edges = np.arange(0.0, reach_px + _RING_PX, _RING_PX)
    return _Condition(
        condition_name(first.camera_length_m, first.photon_energy_eV),
        patterns,
        [compare_spots(pattern, sample) for pattern in patterns],
        np.array([radial_photons(pattern, sample, edges) for pattern in patterns]),
        _water_of(path, first.shape),
    )


def _water_of(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The water image that such a file may hold: the upper 16 bits of each float32."""
    with np.load(path, allow_pickle=False) as stored:
        if "water_f32_high16" not in stored:
            return None
        upper = stored["water_f32_high16"]
    if upper.dtype.kind != "u" or upper.size != shape[0] * shape[1]:
        raise ValueError(f"{path}: water_f32_high16 is {upper.dtype} of {upper.size} values, not uint16 of {shape}")
    water: NDArray[np.float32] = (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return water.reshape(shape)


def _table(conditions: list[_Condition]) -> tuple[str, ...]:
    rows = []
    for each in [*conditions, None]:
        of = conditions if each is None else [each]
        photons, distance, bright = (
            np.concatenate([getattr(c, name) for c in of]) for name in ("photons", "distance_px", "bright")
        )
        theirs, ours = np.sum([c.rings.sum(axis=(0, 2)) for c in of], axis=0)
        rows.append(
            [
                "all" if each is None else each.name, str(sum(len(c.patterns) for c in of)),
                f"{photons[distance < NEAR_PX].sum() / photons.sum():.1%}", str(int(bright.sum())),
                f"{np.median(distance[bright]):.2f}", f"{ours / theirs:.2f}",
            ]
        )  # fmt: skip
    heads = [
        "condition", "patterns", f"photons within {NEAR_PX:g} px", f"spots >= {BRIGHT_PHOTONS:g} photons",
        "median distance (px)", "our photons / theirs",
    ]  # fmt: skip
    return text_table(heads, rows)


def _distances(axes: Axes, conditions: list[_Condition]) -> None:
    """How far bright spots are from the nearest prediction, camera length by camera length."""
    lengths = sorted({each.patterns[0].camera_length_m for each in conditions})
    for length, colour in zip(lengths, (BLUE, GREEN, RED, *["0.5"] * len(lengths)), strict=False):
        for line, each in enumerate(c for c in conditions if c.patterns[0].camera_length_m == length):
            far = np.sort(each.distance_px[each.photons >= BRIGHT_PHOTONS])
            far = np.minimum(far, 10.0 * NEAR_PX)
            axes.step(
                far, (np.arange(len(far)) + 1.0) / len(far), where="post", color=colour, label=each.name,
                linestyle=("-", "--", ":")[line % 3], linewidth=1.1,
            )  # fmt: skip
    axes.set_xlim(0.0, NEAR_PX)
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("distance to the nearest predicted reflection (pixel)")
    axes.set_ylabel("share of the spots that are nearer")
    axes.set_title(f"spots of {BRIGHT_PHOTONS:g} photons and more")
    axes.legend(loc="lower right", fontsize=7)
    axes.grid(alpha=0.3)


def _offsets(axes: Axes, conditions: list[_Condition]) -> str:
    ss, fs = (
        np.concatenate([getattr(a, name) for c in conditions for a in c.agreements])
        for name in ("offset_ss", "offset_fs")
    )
    bright = np.concatenate([c.bright for c in conditions])
    ss, fs = ss[bright], fs[bright]
    bins = np.linspace(-NEAR_PX, NEAR_PX, 49).tolist()
    for offset, colour, name in ((fs, BLUE, "along fs"), (ss, RED, "along ss")):
        axes.hist(offset, bins, histtype="step", color=colour, label=f"{name}, mean {offset.mean():.3f}")
    axes.axvline(
        SAMPLING_SHIFT_PX, color="black", linewidth=0.8, linestyle=":", label=f"{SAMPLING_SHIFT_PX:g}: sampling"
    )
    axes.set_xlabel("their spot − our reflection (pixel)")
    axes.set_ylabel("spots")
    axes.set_title(f"{len(fs)} spots within {NEAR_PX:g} pixels")
    axes.set_ylim(0.0, 1.4 * axes.get_ylim()[1])
    axes.legend(loc="upper left", fontsize=7)
    axes.grid(alpha=0.3)
    error = [offset.std(ddof=1) / math.sqrt(len(offset)) for offset in (ss, fs)]
    return (
        f"mean offset ({ss.mean():.3f} +- {error[0]:.3f}, {fs.mean():.3f} +- {error[1]:.3f}) px along (ss, fs); "
        f"pattern_sim's sampling shifts by {SAMPLING_SHIFT_PX:g}"
    )


def _rings(axes: Axes, conditions: list[_Condition]) -> None:
    most = max(each.rings.shape[2] for each in conditions)
    rings = np.concatenate([np.pad(c.rings, ((0, 0), (0, 0), (0, most - c.rings.shape[2]))) for c in conditions])
    middle = (np.arange(most) + 0.5) * _RING_PX
    drawn = _resampled(rings)
    for which, colour, name in ((0, RED, "pattern_sim"), (1, BLUE, "ours")):
        low, high = np.percentile(drawn[:, which], (2.5, 97.5), axis=0)
        axes.fill_between(middle, low, high, step="mid", color=colour, alpha=0.2, linewidth=0.0)
        axes.step(middle, rings[:, which].sum(axis=0), where="mid", color=colour, label=name)
    axes.set_yscale("log")
    axes.set_ylim(30.0, None)
    axes.set_xlabel("distance from the beam (pixel)")
    axes.set_ylabel(f"Bragg photons in rings of {_RING_PX:g} pixels")
    axes.set_title(f"{len(rings)} patterns together; bands: 95 %")
    axes.legend()
    axes.grid(alpha=0.3)


def _resampled(rings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums (bootstraps, 2, rings) over as many patterns, drawn with replacement."""
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(len(rings), np.full(len(rings), 1.0 / len(rings)), _BOOTSTRAPS)
    return np.asarray(np.tensordot(times, rings, axes=(1, 0)))


def _interval(rings: NDArray[np.float64]) -> tuple[float, float, float]:
    """Our photons over pattern_sim's, and the 95 % interval of resampled crystals."""
    theirs, ours = rings.sum(axis=(0, 2))
    drawn = _resampled(rings.sum(axis=2, keepdims=True))[:, :, 0]
    low, high = np.percentile(drawn[:, 1] / drawn[:, 0], (2.5, 97.5))
    return float(ours / theirs), float(low), float(high)


def _ratios(axes: Axes, conditions: list[_Condition]) -> str:
    totals = [each.rings.sum(axis=2, keepdims=True) for each in conditions]
    found = np.array([_interval(each) for each in (*totals, np.concatenate(totals))])
    place = np.arange(len(found))
    value, low, high = found.T
    axes.errorbar(place, value, (value - low, high - value), fmt="o", color=BLUE, markersize=4, capsize=3)
    axes.axhline(1.0, color="0.5", linewidth=1.0)
    axes.set_yscale("log")
    axes.set_yticks([0.25, 0.5, 1.0, 2.0, 4.0], ["¼", "½", "1", "2", "4"])
    axes.minorticks_off()
    axes.set_xticks(place, [*(each.name for each in conditions), "all"], rotation=60, ha="right")
    axes.set_ylabel("our Bragg photons / pattern_sim's")
    axes.set_title("95 % intervals over the crystals")
    axes.grid(alpha=0.3)
    return f"our photons / pattern_sim's over all: {value[-1]:.2f}, 95 % interval {low[-1]:.2f} to {high[-1]:.2f}"


def _fringe_line(conditions: list[_Condition], crystal: Crystal) -> str:
    photons, streak, outside = [], [], []
    for condition in conditions:
        for pattern, agreement in zip(condition.patterns, condition.agreements, strict=True):
            rest = (agreement.distance_px >= NEAR_PX) & (agreement.photons >= FRINGE_PHOTONS)
            fringes = label_fringes(pattern, crystal)
            photons.append(agreement.photons[rest])
            streak.append(fringes.on_streak[rest])
            outside.append(np.abs(fringes.wavelength[rest] - 1.0) > 0.005)
    total = np.concatenate(photons)
    if total.sum() == 0.0:
        return f"no spots of {FRINGE_PHOTONS:g} photons and more are further away"
    on, beyond = (float(total[np.concatenate(chosen)].sum() / total.sum()) for chosen in (streak, outside))
    return (
        f"spots of {FRINGE_PHOTONS:g} photons and more further away: {on:.1%} of their photons on a streak, "
        f"{beyond:.1%} of reflections outside the band"
    )


def _waters(profiles: Axes, ratios: Axes, conditions: list[_Condition]) -> tuple[str, ...]:
    """Water profiles beside those in the files, and their ratios pixel ring by pixel ring."""
    rows = []
    for each, colour in zip(conditions, _nine_colours(len(conditions)), strict=True):
        if each.water is None:
            continue
        pattern = each.patterns[0]
        condition, panel = condition_of(pattern), panel_of(pattern)
        ours = expected_water(condition, panel)
        ss, fs = np.ogrid[: pattern.shape[0], : pattern.shape[1]]
        radius = np.hypot(fs + 0.5 - pattern.beam_center_x_px, ss + 0.5 - pattern.beam_center_y_px)
        ring = (radius / 10.0).astype(np.int64).reshape(-1)
        sums = [np.bincount(ring, image.reshape(-1).astype(np.float64)) for image in (ours, each.water)]
        pixels = np.bincount(ring)
        middle = (np.arange(len(pixels)) + 0.5) * 10.0
        theta = np.arctan(middle * pattern.pixel_size_m / pattern.camera_length_m) / 2.0
        q = 4.0 * math.pi / condition.wavelength_angstrom * np.sin(theta)
        profiles.plot(q, sums[1] / pixels, color="black", linewidth=2.2, alpha=0.3)
        profiles.plot(q, sums[0] / pixels, color=colour, linewidth=1.0, label=each.name)
        with np.errstate(invalid="ignore"):
            ratio = sums[0] / sums[1]
        ratios.plot(q, ratio, color=colour, linewidth=1.0)
        rows.append(
            [
                each.name, f"{ours.mean(dtype=np.float64):.5f}", f"{each.water.mean(dtype=np.float64):.5f}",
                f"{np.nanmin(ratio):.3f} to {np.nanmax(ratio):.3f}",
            ]
        )  # fmt: skip
    if not rows:
        return ("the files hold no water",)
    profiles.set_yscale("log")
    profiles.set_xlabel("q (1/Å)")
    profiles.set_ylabel("water, photons a pixel")
    profiles.set_title("water: ours (colour), with the patterns (grey)")
    profiles.legend(fontsize=6.5, loc="upper left")
    profiles.set_ylim(1.5e-3, 0.6)
    ratios.set_xlabel("q (1/Å)")
    ratios.set_ylabel("our water / theirs")
    ratios.set_ylim(0.95, 1.05)
    ratios.axhline(1.0, color="0.5", linewidth=0.8)
    ratios.set_title("water: rings of 10 pixels")
    for axes in (profiles, ratios):
        axes.grid(alpha=0.3)
    return text_table(["water, mean photons a pixel", "ours", "with the patterns", "ratio over the rings"], rows)


def _nine_colours(count: int) -> list[tuple[float, ...]]:
    return [tuple(matplotlib.colormaps["viridis"](value)) for value in np.linspace(0.0, 0.9, count)]


def _stand_in_line(crystal: Crystal) -> str:
    """How strong the ready proteinase K with random intensities is beside the list, to the list's finest spacing."""
    if crystal.cell != PROTEINASE_K_CELL:
        return "the list's cell is not proteinase K's: its mean |F|^2 is not compared with the ready crystal's"
    d_min = 1.0 / float(np.linalg.norm(crystal.hkl @ reciprocal_basis(crystal.cell).T, axis=1).max())
    stand_in = ready_crystal("proteinase-k", d_min_angstrom=d_min)
    return (
        f"mean |F|^2 to {d_min:.2f} angstrom: ready crystal {stand_in.intensity.mean():.3g}, list "
        f"{crystal.intensity.mean():.3g} electrons^2, ratio {stand_in.intensity.mean() / crystal.intensity.mean():.2f}"
    )
