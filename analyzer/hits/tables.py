"""A result record as the numbers that files of hits have of it. Conversions raise what ``float`` and ``int`` raise."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

INTEGERS = ("series_id", "image_id", "peak_count", "saturated_pixels")
NUMBERS = (
    "start_time", "exposure_s", "received_at", "hit_probability", "resolution_angstrom", "background_photons",
    "relative_flux", "photon_energy_eV", "photon_energy_sigma_eV", "camera_length_m", "camera_length_sigma_m",
    "camera_length_over_energy_m_per_eV", "camera_length_over_energy_sigma_m_per_eV",
)  # fmt: skip
TEXTS = ("channel", "hit_rule", "bundle", "mask")
PEAK_DATASETS = (
    # the first two are coordinates
    ("peakXPosRaw", "fs", np.float64), ("peakYPosRaw", "ss", np.float64), ("peakTotalIntensity", "intensity_photons",
     np.float64), ("peakSNR", "snr", np.float64), ("peakSaturated", "saturated", np.uint8),
)  # fmt: skip


def integers_of(record: dict[str, Any]) -> dict[str, np.int64]:
    """Whole numbers by name; 0 for null."""
    return {name: np.int64(int(record.get(name) or 0)) for name in INTEGERS}


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """Numbers by name; NaN for null."""
    values = {name: record.get(name) for name in NUMBERS}
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def peaks_of(record: dict[str, Any]) -> npt.NDArray[np.float64]:
    """(peaks, 5): the columns of ``PEAK_DATASETS``."""
    rows = [[peak[key] for _, key, _ in PEAK_DATASETS] for peak in record.get("peaks") or ()]
    return np.array(rows, np.float64).reshape(-1, len(PEAK_DATASETS))
