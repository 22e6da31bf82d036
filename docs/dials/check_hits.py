"""Does DIALS open hits as `cxls analyze --hits` writes them, and does it find spots where our peaks are?

    python docs/dials/check_hits.py FOLDER

simulates a series into FOLDER, analyses it with `--hits`, imports the file of hits with `dials.import`, compares what
DIALS understood with the file, finds spots with `dials.find_spots` and compares them with the peaks in the file. Prints
a table; ends with 0 when all holds, 1 when not, 2 without DIALS. Needs what `check_dials.py` beside it needs.
"""

from __future__ import annotations

import os
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
from check_dials import (
    LARGEST_MEAN_OFFSET_PX,
    READER,
    READER_NAME,
    Spots,
    dials_environment,
    dials_python,
    dials_version,
    matched,
    model_rows,
    nearest,
    run,
)

from analyzer.coordinates import Convention, in_convention

SIMULATION = "simulate series --frames 40 --hit-fraction 0.5 --condition 3 --seed 5 --overwrite"
ANALYSIS = "analyze series_master.h5 --hits hits --results records.jsonl --overwrite"
FINDING = "spotfinder.threshold.algorithm=dispersion spotfinder.filter.min_spot_size=2"
PHOTONS = (20, 50, 100)
SMALLEST_SHARE = 0.95
"""Of our peaks of the most photons, those that DIALS must have a spot at."""


def our_peaks(path: Path) -> Spots:
    """The peaks in a file of hits, as DIALS counts pixels."""
    with h5py.File(path) as file:
        result = file["entry_1/result_1"]
        counts = result["nPeaks"][()]
        taken = np.arange(result["peakXPosRaw"].shape[1]) < counts[:, None]
        fs, ss, photons = (result[name][()][taken] for name in ("peakXPosRaw", "peakYPosRaw", "peakTotalIntensity"))
    xy = np.stack([in_convention(fs, Convention.EDGES), in_convention(ss, Convention.EDGES)], axis=1)
    return Spots(np.repeat(np.arange(len(counts)), counts), xy, photons)


def main() -> int:
    """Check in the folder given; returns the exit code."""
    if len(sys.argv) != 2:
        print("give one folder to work in, as in: python docs/dials/check_hits.py /tmp/dials", file=sys.stderr)
        return 2
    python, folder = dials_python(), Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / READER_NAME).write_text(READER)
    for old in (folder / "hits").glob("*.*"):
        old.unlink()
    for command in (SIMULATION, ANALYSIS):
        run([sys.executable, "-m", "cxls", *command.split()], dict(os.environ), folder)
    (path,) = (folder / "hits").glob("hits-*.h5")
    dials = dials_environment()
    run(["dials.import", f"hits/{path.name}", "output.experiments=hits.expt"], dials, folder, makes="hits.expt")
    finding = ["dials.find_spots", "hits.expt", "output.reflections=hits.refl", "nproc=2", *FINDING.split()]
    run(finding, dials, folder, makes="hits.refl")
    run([python, READER_NAME, "hits.expt", "hits.refl", "hits.npz"], dials, folder, makes="hits.npz")
    with np.load(folder / "hits.npz") as file:
        seen = dict(file)
    peaks = our_peaks(path)
    found = Spots(seen["frame"].astype(np.int64), seen["xy"], np.zeros(len(seen["frame"])))
    images = len(np.unique(peaks.frame))
    print("# Hits in DIALS\n")
    print(f"    {date.today()}, cxls {version('cxls-analyzer')}, {dials_version(folder)}\n")
    for command in (f"cxls {SIMULATION}", f"cxls {ANALYSIS}", "dials.import hits/hits-*.h5",
                    f"dials.find_spots imported.expt {FINDING}"):  # fmt: skip
        print(f"    {command}")
    print()
    good = True
    for label, value, right in model_rows(path, seen, images):
        print(f"    {label:18} {value:26} {'as written' if right else 'NOT AS WRITTEN'}")
        good &= right
    print(f"\n    peaks in the file: {len(peaks.xy)}; DIALS found {len(found.xy)} spots\n")
    print("    our peaks of     peaks  with a spot of DIALS within 2 px   mean offset fs, ss (px)")
    for photons in PHOTONS:
        bright = peaks.bright(photons)
        offset = nearest(bright, found)
        near = matched(offset)
        mean = offset[near].mean(axis=0)
        share = f"{100 * near.mean():6.1f} %"
        print(f"    >= {photons:3d} photons  {len(bright.xy):6d}  {share:34} {mean[0]:+.3f} {mean[1]:+.3f}")
        good &= bool((np.abs(mean) < LARGEST_MEAN_OFFSET_PX).all())
    good &= bool(near.mean() >= SMALLEST_SHARE)
    print("\nall as it should be" if good else "\nNOT all as it should be")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
