"""OM's peakfinder8 on frames from folders. Run by the interpreter of .venv-om, which has nothing of ours.

usage: om_peakfinder8.py, then on stdin lines of MODE FOLDER: MODE is full or fast (OM's fast_mode: background from a
hundred pixels of each radius, drawn once).

FOLDER holds frames.npy (N, ss, fs) of counts, valid.npy (ss, fs) uint8 and task.json with
beam_center_fs and beam_center_ss (pixel index), adc, snr, min_pixels. Answered on stdout for each line: one
line of JSON, a list of N objects with fs, ss (lists, pixel index) and cpu_ms of ``find_peaks`` alone.
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def make_finder(folder: Path, mode: str) -> Any:
    """What finds peaks in frames like those of ``folder``."""
    from om.algorithms.crystallography import Peakfinder8PeakDetection  # type: ignore[import-not-found]

    task = json.loads((folder / "task.json").read_text())
    valid = np.load(folder / "valid.npy").astype(np.int8)
    rows, columns = valid.shape
    ss, fs = np.indices(valid.shape, dtype=np.float32)
    finder = Peakfinder8PeakDetection(
        radius_pixel_map=np.hypot(ss - task["beam_center_ss"], fs - task["beam_center_fs"]).astype(np.float32),
        layout_info={"asic_nx": columns, "asic_ny": rows, "nasics_x": 1, "nasics_y": 1},
        crystallography_parameters={
            "max_num_peaks": 2048,
            "adc_threshold": task["adc"],
            "minimum_snr": task["snr"],
            "min_pixel_count": task["min_pixels"],
            "max_pixel_count": 200,
            "local_bg_radius": 3,
            "min_res": 0,
            "max_res": 1600,
            "fast_mode": mode == "fast",
        },
    )
    finder.set_bad_pixel_map(valid)
    return finder


def find(finder: Any, folder: Path) -> list[dict[str, Any]]:
    """Find peaks in every frame; those of the first are found twice so that the mask is ready."""
    frames = np.load(folder / "frames.npy", mmap_mode="r")
    finder.find_peaks(data=np.array(frames[0]))
    found: list[dict[str, Any]] = []
    for frame in frames:
        pixels = np.array(frame)
        began = time.process_time()
        peaks = finder.find_peaks(data=pixels)
        spent = time.process_time() - began
        found.append({"fs": list(map(float, peaks["fs"])), "ss": list(map(float, peaks["ss"])), "cpu_ms": spent * 1e3})
    return found


def main() -> None:
    """Answer until stdin ends; a finder is made once for frames of one geometry, mask and parameters."""
    finders: dict[tuple[str, ...], Any] = {}
    for line in sys.stdin:
        mode, _, name = line.rstrip("\n").partition(" ")
        folder = Path(name)
        mask = hashlib.sha256((folder / "valid.npy").read_bytes()).hexdigest()
        key = mode, (folder / "task.json").read_text(), mask
        if key not in finders:
            finders[key] = make_finder(folder, mode)
        print(json.dumps(find(finders[key], folder)), flush=True)


if __name__ == "__main__":
    main()
