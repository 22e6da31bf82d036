"""The study of photon energy and camera length as tables and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analyzer.parameters.bound import Bound
from analyzer.parameters.claims import DISTANCE_SIGMA_LIMIT_M, ENERGY_SIGMA_LIMIT_EV
from sim_replay.detector import CONDITIONS
from training.evaluation.evaluation import Cell as Shown
from training.evaluation.evaluation import Evaluation, Table
from training.evaluation.metrics import Estimate, wilson_share
from training.evaluation.parameter_metrics import NORMAL_95
from training.evaluation.parameter_pair import APART, PAIR, SCANNED_EV, SCANNED_FRAMES, Pair
from training.evaluation.parameter_scenarios import SCENARIOS
from training.evaluation.parameter_study import (
    ENERGY,
    ENOUGH_ENERGY_EV,
    ENOUGH_LENGTH_M,
    LENGTH,
    RATIO,
    WRONG_CENTER_PX,
    Cell,
    Study,
    Values,
)

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_NAMES = ("L/E", "photon energy", "camera length")
_UNITS = ("%", "eV", "mm")
_KEV, _CM = 1000.0, 0.01
_COLOURS = ("#1f5fa8", "#5b94cf", "#a5c8ea", "#a02c2c", "#d16060", "#eaa5a5", "#22703c", "#5aa874", "#a5d6b5")
_DIGITS = 3
_REGION_99 = 9.21
"""Of chi squared with two degrees of freedom."""

_LIMITS = (np.inf, ENERGY_SIGMA_LIMIT_EV, DISTANCE_SIGMA_LIMIT_M)


@dataclass(frozen=True, slots=True)
class Measures:
    """One quantity of a cell, ``rms``, ``bias`` and ``sigma`` (the median of those stated) in the unit of its tables.

    ``over_plain``, ``over_full``: r.m.s. error over the bounds; ``coverage`` of the 95 % intervals of all posteriors
    and ``claimed_coverage`` of those that may be published, of which there is a share ``claimed``. ``pulls``: error
    over sigma, mean and standard deviation. ``nearest``: how often the nearest keV or cm is the true one, where nothing
    determined is wrong.
    """

    rms: float
    bias: float
    sigma: float
    over_plain: float
    over_full: float
    coverage: Estimate | None
    claimed: Estimate
    claimed_coverage: Estimate | None
    pulls: tuple[float, float]
    nearest: Estimate | None


def measures(cell: Cell, quantity: int, values: Values | None = None) -> Measures:
    """Of ``RATIO``, ``ENERGY`` or ``LENGTH``; ``values`` in place of what was fitted."""
    values = values or cell.fitted
    truth = float(cell.truth[quantity])
    value, sigma = values.value[:, quantity], values.sigma[:, quantity]
    known = np.isfinite(value) & np.isfinite(sigma)
    error, stated = value[known] - truth, sigma[known]
    inside, may = np.abs(error) <= NORMAL_95 * stated, stated <= _LIMITS[quantity]
    unit = (100.0 / truth, 1.0, 1000.0)[quantity]
    if not known.any():
        nan = float("nan")
        return Measures(nan, nan, nan, nan, nan, None, share(known), None, (nan, nan), _nearest(value, truth, quantity))
    rms, pulls = float(np.sqrt(np.mean(error**2))), error / stated
    claimed = np.zeros(len(value), np.bool_)
    claimed[np.flatnonzero(known)[may]] = True
    return Measures(
        rms * unit, float(error.mean()) * unit, float(np.median(stated)) * unit,
        rms / _of(cell.plain, quantity, truth), rms / _of(cell.full, quantity, truth), share(inside), share(claimed),
        share(inside[may]) if may.any() else None, (float(pulls.mean()), float(pulls.std())),
        _nearest(value, truth, quantity),
    )  # fmt: skip


def _of(bound: Bound, quantity: int, truth: float) -> float:
    return (bound.ratio * truth, bound.photon_energy_eV, bound.camera_length_m)[quantity]


def _nearest(value: Floats, truth: float, quantity: int) -> Estimate | None:
    if quantity == RATIO:
        return None
    step = _KEV if quantity == ENERGY else _CM
    return share(np.nan_to_num(np.rint(value / step), nan=-1.0) == round(truth / step))


def share(flags: Flags) -> Estimate:
    """How many are, in per cent, with Wilson's 95 % interval."""
    value = float(flags.mean())
    low, high = wilson_share(value, len(flags))
    return Estimate(100.0 * value, 100.0 * low, 100.0 * high)


def as_evaluation(study: Study, label: str, pair: Pair | None, seconds: float) -> Evaluation:
    """All tables; ``label`` names the bundle."""
    plan = study.plan
    fits = sum(len(cell.misfit) for cell in study.cells + study.mismatched)
    made = Evaluation(label, None, fits, (), about=f"{fits} fits to draws of the twin's profiles, {seconds:.0f} s")
    made.notes += [
        f"each cell: {plan.repeats} repeats, of what the fit was not made for {plan.scenario_repeats}; the beam is up "
        f"to {WRONG_CENTER_PX:g} pixels off the header's centre along each axis; seed {plan.seed}",
        "r.m.s. error and bias of all that is determined, sigma: the median of those stated",
        "/bound: r.m.s. error over the bound of Cramer and Rao, of pure water with beam centre, brightness, stray "
        "light and air free; /full: temperature, film, glass and errors of the water's table, as large as the fit "
        "finds them, free too",
        "covered: 95 % intervals that hold the truth, of all and of those claimed; pulls: error over sigma; nearest: "
        "the nearest keV or cm is the true one, nothing determined being wrong; shares in %, with Wilson's 95 % "
        "interval",
        f"claimed: sigma of photon energy up to {ENERGY_SIGMA_LIMIT_EV:.0f} eV, of camera length up to "
        f"{1e3 * DISTANCE_SIGMA_LIMIT_M:.0f} mm",
    ]
    usual = [cell for cell in study.cells if not cell.needed]
    made.tables += [_accuracy(usual, quantity) for quantity in (ENERGY, LENGTH, RATIO)]
    if any(cell.needed for cell in study.cells):
        made.tables.append(_needed(study))
    otherwise = [cell for cell in study.mismatched if SCENARIOS[cell.scenario or ""].water]
    nothing = [cell for cell in study.mismatched if not SCENARIOS[cell.scenario or ""].water]
    if otherwise:
        made.tables.append(_mismatched(otherwise))
    if nothing:
        made.tables.append(_without_water(nothing))
    if pair is not None:
        made.tables += _pair_tables(pair, usual)
    if any(cell.learned is not None for cell in usual):
        made.tables.append(_learned(usual))
    return made


def _table(title: str, heads: Sequence[str], rows: Sequence[tuple[Shown, ...]], note: str = "") -> Table:
    return Table(title, tuple(heads), tuple(rows), note, _DIGITS)


def _accuracy(cells: Sequence[Cell], quantity: int) -> Table:
    unit, single = _UNITS[quantity], quantity != RATIO
    heads = ["condition", "photons", "frames", f"r.m.s. {unit}", "bias", "sigma", "/bound", "/full", "covered", "pulls"]
    if single:
        heads += ["claimed", "claimed, covered", "nearest keV" if quantity == ENERGY else "nearest cm"]
    rows: list[tuple[Shown, ...]] = []
    for cell in cells:
        found = measures(cell, quantity)
        mean, deviation = found.pulls
        row: list[Shown] = [
            _condition(cell), f"{cell.flux:.0e}", cell.frames, found.rms, found.bias,
            found.sigma, found.over_plain, found.over_full, found.coverage,
            f"{mean:+.2f} ± {deviation:.2f}",
        ]  # fmt: skip
        if single:
            row += [found.claimed.value, found.claimed_coverage, found.nearest]
        rows.append(tuple(row))
    name = _NAMES[quantity]
    return _table(name[0].upper() + name[1:], heads, rows)


def _condition(cell: Cell) -> str:
    return f"{cell.condition}: {cell.truth[LENGTH]:.2f} m, {cell.truth[ENERGY] / 1e3:.0f} keV"


def _needed(study: Study) -> Table:
    rows: list[tuple[Shown, ...]] = []
    for cell in (each for each in study.cells if each.needed):
        energy, length = study.frames_needed[cell.condition, cell.flux]
        by_energy, by_length = measures(cell, ENERGY), measures(cell, LENGTH)
        rows.append((
            _condition(cell), f"{cell.flux:.0e}", _frames(energy), _frames(length), cell.frames,
            by_energy.rms, by_length.rms, by_energy.nearest, by_length.nearest,
        ))  # fmt: skip
    heads = (
        "condition", "photons", f"for {ENOUGH_ENERGY_EV / 1e3:g} keV", f"for {ENOUGH_LENGTH_M * 1e3:g} mm", "then with",
        "r.m.s. eV", "r.m.s. mm", "nearest keV", "nearest cm",
    )  # fmt: skip
    note = "frames at which the bound's standard deviation is so small, and what is found with as many as both ask for"
    return _table("Frames that the bound asks for", heads, rows, note)


def _frames(number: float) -> Shown:
    if not np.isfinite(number):
        return None
    return f"{number:.2g}" if number < 10.0 else round(number)


def _mismatched(cells: Sequence[Cell]) -> Table:
    rows: list[tuple[Shown, ...]] = []
    for cell in cells:
        energy, length, ratio = (measures(cell, each) for each in (ENERGY, LENGTH, RATIO))
        rows.append((
            cell.scenario, _condition(cell), cell.frames, 100.0 - ratio.claimed.value, ratio.rms,
            ratio.coverage, energy.rms, energy.claimed.value, energy.claimed_coverage, length.rms,
            length.claimed.value, length.claimed_coverage, cell.contradicted if cell.frames > 1 else None,
        ))  # fmt: skip
    heads = (
        "scenario", "condition", "frames", "undetermined", "L/E %", "L/E covered", "E eV", "E claimed", "E covered",
        "L mm", "L claimed", "L covered", "false alarms",
    )  # fmt: skip
    note = f"false alarms: of {len(cells[0].misfit)} repeats that call a right header wrong; {_texts(cells)}"
    return _table("What the fit was not made for", heads, rows, note)


def _texts(cells: Sequence[Cell]) -> str:
    names = dict.fromkeys(cell.scenario or "" for cell in cells)
    return "; ".join(f"{name}: {SCENARIOS[name].text}" for name in names)


def _without_water(cells: Sequence[Cell]) -> Table:
    rows: list[tuple[Shown, ...]] = []
    for cell in cells:
        undetermined = share(~np.isfinite(cell.fitted.value[:, RATIO]))
        claimed = [measures(cell, quantity).claimed.value for quantity in (ENERGY, LENGTH)]
        rows.append((cell.scenario, _condition(cell), cell.frames, undetermined, *claimed))
    heads = ("scenario", "condition", "frames", "undetermined", "E claimed", "L claimed")
    return _table("Without water: nothing may be determined", heads, rows, _texts(cells))


def _learned(cells: Sequence[Cell]) -> Table:
    rows: list[tuple[Shown, ...]] = []
    for cell in cells:
        if cell.learned is None:
            continue
        energy, length, ratio = (measures(cell, each, cell.learned) for each in (ENERGY, LENGTH, RATIO))
        row: list[Shown] = [_condition(cell), f"{cell.flux:.0e}", cell.frames]
        for found in (energy, length, ratio):
            row += [found.rms, found.over_plain, found.coverage]
        rows.append(tuple(row))
    heads = (
        "condition", "photons", "frames", "E eV", "E/bound", "E covered", "L mm", "L/bound", "L covered", "L/E %",
        "L/E/bound", "L/E covered",
    )  # fmt: skip
    return _table("The bundle's network on the same profiles", heads, rows)


def _pair_tables(pair: Pair, cells: Sequence[Cell]) -> list[Table]:
    first = CONDITIONS[PAIR[0]]
    ratio = first.camera_length_m / first.photon_energy_eV
    rows = tuple(
        (
            energy / 1e3, *(
                each for scan in (pair.plain, pair.full)
                for each in (scan.lengths_m[n], 100.0 * scan.lengths_m[n] / energy / ratio,
                             max(scan.losses[n], 0.0))
            ),
        )
        for n, energy in enumerate(SCANNED_EV.tolist())
    )  # fmt: skip
    heads = ("E keV", "L m", "L/E % of true", "loss", "L m, full", "L/E, full", "loss, full")
    note = (
        f"{_name(first.photon_energy_eV, first.camera_length_m)}, {SCANNED_FRAMES} frames of {first.flux_photons:.0e} "
        "photons, expected counts; at each E the likeliest L, and minus twice the log posterior; full: with all free "
        f"that the fit allows; minima: {pair.plain.minima} and {pair.full.minima}"
    )
    along = _table("Posterior along the photon energy", heads, rows, note)
    apart = _table(
        "The confused pair",
        ("truth", "taken for", "free", f"loss of {SCANNED_FRAMES} frames", "apart from so many frames"),
        tuple(
            (_name(*each.truth), _name(*each.other), "all" if each.full else "plain", each.loss,
             _frames(each.frames))
            for each in pair.apart
        ),
        f"loss: minus twice the log posterior at the other; apart: a loss of {APART:g}, three standard deviations",
    )  # fmt: skip
    seen = [_seen(cell) for cell in cells if cell.condition in PAIR]
    columns = ("truth", "photons", "frames", "distance", "other refused", "truth refused")
    note = (
        "distance: of the other in standard deviations of the stated posterior, median; refused: beyond the 99 % region"
    )
    return [along, apart] + ([_table("The confused pair as the fit has it", columns, seen, note)] if seen else [])


def _seen(cell: Cell) -> tuple[Shown, ...]:
    other = CONDITIONS[PAIR[1] if cell.condition == PAIR[0] else PAIR[0]]
    away = _distances(cell.fitted, other.photon_energy_eV, other.camera_length_m)
    at_truth = _distances(cell.fitted, float(cell.truth[ENERGY]), float(cell.truth[LENGTH]))
    distance = float(np.sqrt(np.median(away))) if len(away) else None
    refused = [share(each > _REGION_99) if len(each) else None for each in (away, at_truth)]
    return _name(cell.truth[ENERGY], cell.truth[LENGTH]), f"{cell.flux:.0e}", cell.frames, distance, *refused


def _distances(values: Values, photon_energy_eV: float, camera_length_m: float) -> Floats:
    """Squared distances of a place from each posterior, in its standard deviations, in ln(L/E) and ln E."""
    known = np.isfinite(values.value).all(1)
    value, relative = values.value[known], (values.sigma / values.value)[known]
    ratio, energy, length = (relative[:, each] ** 2 for each in (RATIO, ENERGY, LENGTH))
    both = (length - ratio - energy) / 2.0
    u = np.log(camera_length_m / photon_energy_eV / value[:, RATIO])
    v = np.log(photon_energy_eV / value[:, ENERGY])
    squared: Floats = (u * u * energy - 2.0 * u * v * both + v * v * ratio) / (ratio * energy - both * both)
    return squared


def _name(photon_energy_eV: float, camera_length_m: float) -> str:
    return f"{camera_length_m:.2f} m, {photon_energy_eV / 1e3:.0f} keV"


def draw_errors(study: Study, folder: Path) -> list[Path]:
    """The figure: r.m.s. error over the bound by number of frames, for energy, length and L/E; a line a condition."""
    figure = Figure(figsize=(10.5, 3.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharey=True)
    cells = sorted((cell for cell in study.cells), key=lambda cell: cell.frames)
    for axis, quantity in zip(axes, (ENERGY, LENGTH, RATIO), strict=True):
        for number, colour in zip(study.plan.conditions, _COLOURS, strict=False):
            own = [cell for cell in cells if cell.condition == number and cell.flux == study.plan.fluxes[0]]
            ratios = [measures(cell, quantity).over_plain for cell in own]
            axis.plot([cell.frames for cell in own], ratios, "o-", color=colour, label=_condition(own[0]), markersize=3)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(_NAMES[quantity])
        axis.set_xlabel("frames")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("r.m.s. error over the bound")
    axes[-1].legend(fontsize=7)
    target = folder / "parameters.png"
    figure.savefig(target, dpi=110, metadata={"Software": None})
    return [target]
