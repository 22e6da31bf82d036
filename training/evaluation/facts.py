"""What the truth of a series says of its frames, in the form that evaluation needs.

Some of it `training.dataset` does not read: how pixels counted, how many pulses a frame had, how much each pulse had
of the nominal one, and the simulated scene. It is read here, as guardedly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from sim_replay.distractors import Kind, kinds_names
from streamer.errors import first_line
from streamer.files import BadInput
from training.dataset.opening import open_linked
from training.dataset.series import OpenSeries
from training.dataset.truth import Truth, unusable
from training.dataset.truth_file import GROUP

_MOST_BYTES = 1 << 24
_EXTRA = ("response", "pulses", "pulses_per_frame", "flux_factor", "scene", "crystal_name")
_TURN_DECIMALS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """Truth of a series of N frames.

    hit (N,) bool, None where the truth does not say. no_beam (N,) bool. group (N,): what a frame's noise-free light
    depends on, a crystal's name in hits that name one and the frame itself in all others; frames of a group are not
    independent. crystal (N,) is the number of the crystal, -1 for none or unknown. by_column: values (N,) by which
    tables are split, '' where an empty belongs to every row.
    """

    path: Path
    truth: Truth
    hit: npt.NDArray[np.bool_] | None
    no_beam: npt.NDArray[np.bool_]
    group: tuple[str, ...]
    crystal: npt.NDArray[np.int64]
    by_column: dict[str, tuple[str, ...]]
    response: str | None
    pulses: int
    flux_factor: npt.NDArray[np.float64] | None
    scene: str | None
    crystal_name: str | None

    @property
    def frames(self) -> int:
        return self.truth.images

    def missing(self, name: str) -> str:
        """One line: this series lacks that dataset of its truth."""
        return f"{self.truth.file}:{self.truth.where(name)} is missing"


def read_facts(series: OpenSeries) -> Facts:
    """The facts of an open series. Raises BadInput when it has no truth or something in it is unfit for use."""
    truth = series.truth
    if truth is None:
        raise BadInput(f"{series.path}: no truth in {GROUP} or beside it; `cxls simulate` writes series with it")
    truth = _without_rim(truth, series.shape)
    for problem in unusable(truth, series.shape):
        raise BadInput(f"{problem}; `cxls data check` lists all that is wrong")
    extra = _read_extra(truth)
    classes = truth.per_frame("classes")
    kinds = [Kind(int(value)) for value in classes] if classes is not None else None
    names = truth.classes or [""] * truth.images
    no_beam = np.array([name == "no_beam" for name in names], np.bool_)
    crystal = truth.per_frame("frame_crystal")
    response = extra.get("response")
    return Facts(
        series.path,
        truth,
        truth.hits,
        no_beam,
        tuple(_groups(series.path, truth)),
        np.full(truth.images, -1) if crystal is None else crystal.astype(np.int64),
        _columns(truth, kinds, names, response),
        response,
        int(extra.get("pulses", extra.get("pulses_per_frame", 1))),
        _factors(extra.get("flux_factor"), truth.images),
        extra.get("scene"),
        extra.get("crystal_name"),
    )


def _without_rim(truth: Truth, shape: tuple[int, int]) -> Truth:
    """The truth without spots whose centre is less than a pixel off the panel: patterns may be that much larger."""
    ss, fs = truth.values.get("spot_ss"), truth.values.get("spot_fs")
    if ss is None or fs is None or ss.shape != fs.shape:
        return truth
    rim = np.zeros(ss.shape, np.bool_)
    for place, length in ((ss, shape[0]), (fs, shape[1])):
        beyond = np.maximum(-0.5 - place, place - (length - 0.5))
        rim |= (beyond >= 0.0) & (beyond <= 1.0)
    kept = {
        name: value[~rim] if name.startswith("spot_") and value.shape == ss.shape else value
        for name, value in truth.values.items()
    }
    return replace(truth, values=kept)


def _groups(path: Path, truth: Truth) -> list[str]:
    """Crystals by orientation where the truth has them, else by number under their condition, else frames."""
    turns = truth.per_frame("orientation_all")
    if turns is None:
        turns = truth.per_frame("orientation")
    numbers, hits = truth.per_frame("frame_crystal"), truth.hits
    if numbers is None:
        numbers = truth.per_frame("crystal_id")
    length, energy = (truth.per_frame(name) for name in ("camera_length_m", "photon_energy_eV"))
    groups = []
    for n in range(truth.images):
        name = f"{path} frame {n}"
        if hits is not None and hits[n]:
            first = None if turns is None else turns[n].reshape(-1, 3, 3)[0] if turns[n].size % 9 == 0 else None
            if first is not None and np.isfinite(first).all():
                name = "orientation " + " ".join(f"{value + 0.0:.{_TURN_DECIMALS}f}" for value in first.reshape(-1)[:6])
            elif numbers is not None and numbers[n] >= 0:
                where = "" if length is None or energy is None else f"{length[n]:g} m, {energy[n]:g} eV, "
                name = f"{where}crystal {numbers[n]}"
        groups.append(name)
    return groups


def _columns(
    truth: Truth, kinds: list[Kind] | None, names: Sequence[str], response: str | None
) -> dict[str, tuple[str, ...]]:
    columns: dict[str, tuple[str, ...]] = {}
    length, energy = (truth.per_frame(name) for name in ("camera_length_m", "photon_energy_eV"))
    if length is not None and energy is not None:
        columns["condition"] = tuple(
            f"{x:.2f} m, {e / 1e3:.1f} keV" for x, e in zip(length.tolist(), energy.tolist(), strict=True)
        )
    flux = truth.per_frame("flux_photons")
    if flux is not None:
        columns["photons a pulse"] = (half_decade(flux),) * truth.images
    water, thickness = truth.per_frame("water_scale"), truth.per_frame("water_thickness_m")
    if water is None and thickness is not None:
        water = thickness / 100e-6
    if water is not None:
        columns["water, 100 µm"] = (half_decade(water),) * truth.images
    if response is not None:
        columns["response"] = (response,) * truth.images
    columns["content"] = (
        tuple(names) if kinds is None else tuple(" + ".join(kinds_names(kind)) or "water" for kind in kinds)
    )
    hits = truth.hits
    if hits is None:
        return columns
    turns = truth.per_frame("orientation_all")
    if truth.per_frame("orientation") is not None or turns is not None:
        per_shot = np.ones(truth.images, int) if turns is None else np.isfinite(turns[..., 0, 0]).sum(-1)
        columns["crystals in the shot"] = tuple(
            str(n) if hit else "" for n, hit in zip(per_shot.tolist(), hits.tolist(), strict=True)
        )
    detectable = truth.per_frame("detectable")
    if detectable is not None:
        columns["detectable"] = tuple(
            ("yes" if seen else "no") if hit else "" for seen, hit in zip(detectable, hits, strict=True)
        )
    return columns


def half_decade(values: npt.NDArray[Any]) -> str:
    """Where the shots of a series lie, to half a decade: their median, as they jitter about one value.

    Shots without a pulse have none and do not count.
    """
    some = values[np.isfinite(values) & (values > 0.0)]
    if not len(some):
        return "0"
    return f"{10.0 ** (round(2.0 * math.log10(float(np.median(some)))) / 2.0):.0e}".replace("e+0", "e").replace(
        "e-0", "e-"
    )


def _factors(value: Any, frames: int) -> npt.NDArray[np.float64] | None:
    if not isinstance(value, np.ndarray) or value.shape != (frames,) or value.dtype.kind not in "uif":
        return None
    factors = value.astype(np.float64)
    return factors if (np.isfinite(factors) & (factors > 0.0)).all() else None


def _read_extra(truth: Truth) -> dict[str, Any]:
    """What is there under the names that only evaluation needs; what is too large or unreadable is not there."""
    try:
        found = _of_group(truth.file) if truth.group else _of_table(truth.file)
    except Exception as error:  # zipfile, zlib, numpy and HDF5 each have their own
        raise BadInput(f"{truth.file}: the truth cannot be read: {first_line(error)}") from None
    extra: dict[str, Any] = {}
    for name, value in found.items():
        if value.shape == () and value.dtype.kind in "SUO":
            text = value[()]
            extra[name] = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        elif value.shape == () and value.dtype.kind in "ui":
            extra[name] = int(value)
        elif value.dtype.kind in "uif":
            extra[name] = value
    for name in ("pulses", "pulses_per_frame"):
        stated = extra.get(name, 1)
        if isinstance(stated, np.ndarray) and stated.shape == () and float(stated).is_integer():
            stated = extra[name] = int(stated)
        if not isinstance(stated, int) or not 1 <= stated <= 1_000_000:
            said = f"{_brief(stated)} pulses a frame in {name}"
            raise BadInput(f"{truth.file}: the truth states {said}; give a whole number, 1 to 1000000")
    return extra


def _brief(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of_group(file: Path) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    with open_linked(file) as linked:
        for name in _EXTRA:
            item = linked.get(f"{GROUP}/{name}")
            if not isinstance(item, h5py.Dataset) or item.shape is None:
                continue
            if math.prod(item.shape) * max(item.dtype.itemsize, 1) <= _MOST_BYTES:
                found[name] = np.asarray(item[()])
    return found


def _of_table(file: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(file, allow_pickle=False) as table:
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in table.zip.infolist()}
        return {name: table[name] for name in _EXTRA if sizes.get(name, _MOST_BYTES + 1) <= _MOST_BYTES}
