"""OM's peakfinder8 on frames from a folder. Run by the interpreter of .venv-om, which has nothing of ours.

usage: om_peakfinder8.py FOLDER

FOLDER holds frames.npy (N, ss, fs) uint16, valid.npy (ss, fs) uint8 and task.json with
beam_center_fs and beam_center_ss (pixel index), adc, snr, min_pixels. Written: peaks.json, a
list of N objects with fs, ss (lists, pixel index) and cpu_ms of ``find_peaks`` alone.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    """Find peaks in every frame; the first frame is found twice so that the mask is ready."""
    from om.algorithms.crystallography import Peakfinder8PeakDetection  # type: ignore[import-not-found]

    task = json.loads((folder / "task.json").read_text())
    frames = np.load(folder / "frames.npy", mmap_mode="r")
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
            "fast_mode": False,
        },
    )
    finder.set_bad_pixel_map(valid)
    finder.find_peaks(data=np.array(frames[0]))
    found: list[dict[str, Any]] = []
    for frame in frames:
        pixels = np.array(frame)
        began = time.process_time()
        peaks = finder.find_peaks(data=pixels)
        spent = time.process_time() - began
        found.append({"fs": list(map(float, peaks["fs"])), "ss": list(map(float, peaks["ss"])), "cpu_ms": spent * 1e3})
    (folder / "peaks.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
