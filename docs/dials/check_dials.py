"""Does DIALS open a series as we write it, and does it find the true spots?

    python docs/dials/check_dials.py FOLDER

simulates 20 hits on each of three detectors into FOLDER, imports them with `dials.import`, compares what DIALS
understood with the file, finds spots with `dials.find_spots` and compares them with the truth. Prints tables; ends with
0 when all holds, 1 when not, 2 without DIALS. Needs DIALS 3.12 or later on the PATH (Debian: `apt-get install dials`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

DETECTORS = ("eiger2-4m", "eiger1-4m", "paper")
FRAMES = 20
SIMULATION = f"--frames {FRAMES} --hit-fraction 1 --condition 3 --seed 5"
SPOTFINDING = {
    "defaults": "",
    "strong": "spotfinder.threshold.algorithm=dispersion spotfinder.filter.min_spot_size=2",
}
"""The second is for stills of a photon-counting detector: spots of few pixels, none grown over its neighbours."""
REACH_PX = 2.0
PHOTONS = (20, 50, 100)
LARGEST_MEAN_OFFSET_PX = 0.2
SMALLEST_RECALL = 0.95
"""Of the true spots of the largest of PHOTONS and more."""

READER_NAME = "read_dials.py"
# Runs in DIALS' own Python, which need not have anything of ours.
READER = """
import json, sys
import numpy as np
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model.experiment_list import ExperimentListFactory
experiments = ExperimentListFactory.from_json_file(sys.argv[1])
spots = flex.reflection_table.from_file(sys.argv[2])
first, last = experiments[0], experiments[-1]
panel = first.detector[0]
models = {
    "format": last.imageset.get_format_class().__name__,
    "images": len(experiments),
    "stills": all(e.goniometer is None and e.scan is None for e in experiments),
    "panels": len(first.detector),
    "wavelength (A)": first.beam.get_wavelength(),
    "distance (m)": panel.get_directed_distance() / 1e3,
    "pixel (m)": [size / 1e3 for size in panel.get_pixel_size()],
    "panel (fs, ss)": list(panel.get_image_size()),
    "beam centre (px)": list(panel.get_beam_centre_px(first.beam.get_s0())),
    "trusted to": panel.get_trusted_range()[1],
}
np.savez(
    sys.argv[3],
    models=json.dumps(models),
    image=flumpy.to_numpy(last.imageset.get_raw_data(0)[0]),
    mask=flumpy.to_numpy(last.imageset.get_mask(0)[0]),
    frame=flumpy.to_numpy(spots["id"]),
    xy=flumpy.to_numpy(spots["xyzobs.px.value"])[:, :2],
)
"""


@dataclass(frozen=True, slots=True)
class Spots:
    """Spots of a series: frame (n,) from 0; xy (n, 2) along fs, ss in edge-based pixels; photons (n,) or zeros."""

    frame: NDArray[np.int64]
    xy: NDArray[np.float64]
    photons: NDArray[np.float64]

    def bright(self, photons: float) -> Spots:
        """Those of so many photons and more."""
        keep = self.photons >= photons
        return Spots(self.frame[keep], self.xy[keep], self.photons[keep])


def run(command: Sequence[str], environment: dict[str, str], folder: Path, makes: str | None = None) -> str:
    """Run a command in a folder and return what it printed; ends the check, with one line, when it fails.

    makes: the file that it must leave, as `dials.import` ends with 0 when it understands none of its files.
    """
    if makes is not None:
        (folder / makes).unlink(missing_ok=True)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0 or (makes is not None and not (folder / makes).exists()):
        lines = [line.strip() for text in (done.stdout, done.stderr) for line in text.splitlines() if line.strip()]
        telling = [" ".join(pair) for pair in pairwise(lines) if "Unable to handle" in pair[0]]
        reason = (telling or lines[-1:] or ["it printed nothing"])[0]
        raise SystemExit(f"{' '.join([Path(command[0]).name, *command[1:3]])} failed in {folder}: {reason}")
    return done.stdout


def dials_python() -> str:
    """The interpreter that has DIALS: `dials.python`, or the one that `dials.import` is run by. Ends with 2."""
    program = shutil.which("dials.import")
    if program is None:
        print("dials.import is not on the PATH; install DIALS, on Debian with `apt-get install dials`", file=sys.stderr)
        raise SystemExit(2)
    if found := shutil.which("dials.python"):
        return found
    with open(program, "rb") as script:
        return script.readline().decode().removeprefix("#!").strip()


def dials_environment() -> dict[str, str]:
    """DIALS needs the bitshuffle filter; Debian's has none, so that it gets ours."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment.setdefault("HDF5_PLUGIN_PATH", hdf5plugin.PLUGIN_PATH)
    return environment


def true_spots(master: Path) -> Spots:
    """The truth's pixel indices, 0 at the centre of the first pixel, made edge-based: plus 0.5."""
    with h5py.File(master) as file:
        truth = file["entry/truth"]
        xy = np.stack([truth["spot_fs"][()], truth["spot_ss"][()]], axis=1) + 0.5
        return Spots(truth["spot_frame"][()], xy, truth["spot_photons"][()])


def nearest(spots: Spots, others: Spots) -> NDArray[np.float64]:
    """(n, 2) float64, from each of n spots to the nearest of the others on its frame; infinite where there is none."""
    offset = np.full((len(spots.xy), 2), np.inf)
    for frame in np.unique(spots.frame):
        rows, there = np.flatnonzero(spots.frame == frame), others.xy[others.frame == frame]
        if len(there):
            between = there - spots.xy[rows, None]
            best = np.hypot(between[..., 0], between[..., 1]).argmin(axis=1)
            offset[rows] = between[np.arange(len(rows)), best]
    return offset


def matched(offset: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) bool: an offset (n, 2) within reach."""
    return np.asarray(np.hypot(offset[:, 0], offset[:, 1]) <= REACH_PX)


def model_rows(master: Path, result: dict[str, NDArray[Any]], images: int = FRAMES) -> Iterator[tuple[str, str, bool]]:
    """What DIALS understood of so many images: name, its value, and whether that is what the file says."""
    models = json.loads(str(result["models"]))
    with h5py.File(master) as file:
        entry, detector = file["entry"], file["entry/instrument/detector"]
        pixel_mask = detector["pixel_mask"][()]
        last = entry["data"][max((name for name in entry["data"] if name.startswith("data_")), default="data")][-1]
        rows, columns = pixel_mask.shape
        said = {
            "images": images,
            "stills": True,
            "panels": 1,
            "wavelength (A)": entry["instrument/beam/incident_wavelength"][()],
            "distance (m)": detector["detector_distance"][()],
            "pixel (m)": [detector["x_pixel_size"][()], detector["y_pixel_size"][()]],
            "panel (fs, ss)": [columns, rows],
            "beam centre (px)": [detector["beam_center_x"][()], detector["beam_center_y"][()]],
            "trusted to": detector["saturation_value"][()],
        }
    yield "format", models["format"], True
    for name, value in said.items():
        given = models[name]
        shown = f"{given:.7g}" if isinstance(given, float) else str(given)
        if isinstance(given, list):
            shown = ", ".join(f"{part:.7g}" for part in given)
        yield name, shown, bool(np.allclose(given, value, rtol=1e-6))
    live = pixel_mask == 0
    yield "masked pixels", f"{np.count_nonzero(~result['mask'])}", bool(np.array_equal(result["mask"], live))
    same = np.array_equal(result["image"][live], last[live]) and bool((result["image"][~live] < 0).all())
    yield "last image", "equal; masked below 0" if same else "differs", same


def spot_row(true: Spots, found: Spots) -> tuple[str, bool]:
    """A line of the table of spots, and whether it is good enough."""
    elsewhere = Spots((found.frame + 1) % FRAMES, found.xy, found.photons)
    recall = [float(matched(nearest(true.bright(photons), found)).mean()) for photons in PHOTONS]
    chance = float(matched(nearest(true.bright(PHOTONS[0]), elsewhere)).mean())
    no_spot = int(np.count_nonzero(~matched(nearest(found, true))))
    offset = nearest(true.bright(PHOTONS[0]), found)
    offset = offset[matched(offset)]
    mean, median = offset.mean(axis=0), np.median(offset, axis=0)
    line = f"{len(found.xy):6d} {no_spot:8d} " + " ".join(f"{100 * part:6.1f} %" for part in recall)
    line += f" {100 * chance:6.2f} %  {mean[0]:+.3f} {mean[1]:+.3f}   {median[0]:+.3f} {median[1]:+.3f}"
    return line, bool((np.abs(mean) < LARGEST_MEAN_OFFSET_PX).all()) and recall[-1] >= SMALLEST_RECALL


def check(detector: str, folder: Path, python: str) -> bool:
    """Simulate, import, find and compare one detector's series; prints, and returns whether all holds."""
    master = folder / f"{detector}_master.h5"
    command = f"simulate {detector} {SIMULATION} --detector {detector} --overwrite"
    print(f"\n## {detector}\n\n    cxls {command}\n    dials.import {master.name}\n")
    run([sys.executable, "-m", "cxls", *command.split()], dict(os.environ), folder)
    dials, models = dials_environment(), f"{detector}.expt"
    run(["dials.import", master.name, f"output.experiments={models}"], dials, folder, makes=models)
    good, true = True, true_spots(master)
    lines: list[str] = []
    for number, (name, options) in enumerate(SPOTFINDING.items()):
        spots, result = f"{detector}_{name}.refl", f"{detector}_{name}.npz"
        finding = ["dials.find_spots", models, f"output.reflections={spots}", "nproc=2", *options.split()]
        run(finding, dials, folder, makes=spots)
        run([python, READER_NAME, models, spots, result], dials, folder, makes=result)
        with np.load(folder / result) as file:
            seen = dict(file)
        if number == 0:
            for label, value, right in model_rows(master, seen):
                print(f"    {label:18} {value:26} {'as written' if right else 'NOT AS WRITTEN'}")
                good &= right
        frame = seen["frame"].astype(np.int64)
        line, right = spot_row(true, Spots(frame, seen["xy"], np.zeros(len(frame))))
        lines.append(f"    {name:9} {line}{'' if right else '   NOT GOOD ENOUGH'}")
        good &= right
    counts = ", ".join(f"{len(true.bright(photons).xy)} of {photons} photons and more" for photons in PHOTONS)
    print(f"\n    true spots: {len(true.xy)}, {counts}\n")
    recall = " ".join(f">={photons:4d} ph" for photons in PHOTONS)
    print(f"    {'options':9} {'found':>6} {'no spot':>8} {recall} {'chance':>8}  mean fs, ss     median fs, ss")
    print("\n".join(lines))
    return good


def main() -> int:
    """Check every detector in the folder given; returns the exit code."""
    if len(sys.argv) != 2:
        print("give one folder to work in, as in: python docs/dials/check_dials.py /tmp/dials", file=sys.stderr)
        return 2
    python, folder = dials_python(), Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / READER_NAME).write_text(READER)
    print("# A series of ours in DIALS\n")
    print(f"    {date.today()}, cxls {version('cxls-analyzer')}, {dials_version(folder)}")
    for name, options in SPOTFINDING.items():
        print(f"    {name}: dials.find_spots {options or 'without options'}")
    good = [check(detector, folder, python) for detector in DETECTORS]
    print("\nall as it should be" if all(good) else "\nNOT all as it should be")
    return 0 if all(good) else 1


def dials_version(folder: Path) -> str:
    """As in 'DIALS 3.12'."""
    return run(["dials.version"], dials_environment(), folder).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
