"""The same scene seen by a part of its panel, for those who need only that part."""

from __future__ import annotations

from dataclasses import replace

from sim_replay.detector import Detector, beam_center_px
from sim_replay.scene import Scene


def crop_scene(scene: Scene, ss0: int, fs0: int, height: int, width: int) -> Scene:
    """A scene whose detector is the window of `height` rows and `width` columns from pixel (ss0, fs0) on.

    What is expected in a pixel stays as it was, but for charge shared across the window's edge, and for beams of some
    milliradians' divergence, whose light from reflections beyond the window's farthest corner `diffract` leaves out
    (6e-4 of the light at 5 mrad). `simulate_shot` draws other random numbers for it, so the same seed gives another
    frame; faulty pixels are those of a panel of the window's shape. Raises ValueError when the window leaves the panel.
    """
    detector = scene.detector
    rows, columns = detector.shape
    if ss0 < 0 or fs0 < 0 or height < 1 or width < 1 or ss0 + height > rows or fs0 + width > columns:
        raise ValueError(
            f"a window of {height} x {width} pixels from ({ss0}, {fs0}) is not inside the panel of {rows} x {columns}"
        )
    center_x, center_y = beam_center_px(scene.condition, detector)
    return replace(
        scene,
        detector=_window(detector, ss0, fs0, height, width),
        condition=replace(scene.condition, beam_center_x_px=center_x - fs0, beam_center_y_px=center_y - ss0),
    )


def _window(detector: Detector, ss0: int, fs0: int, height: int, width: int) -> Detector:
    bad = []
    for ss_low, ss_high, fs_low, fs_high in detector.bad:
        part_ss, part_fs = _part(ss_low, ss_high, ss0, height), _part(fs_low, fs_high, fs0, width)
        if part_ss is not None and part_fs is not None:
            bad.append((*part_ss, *part_fs))
    return replace(
        detector,
        shape=(height, width),
        gaps_ss=tuple(gap for low, high in detector.gaps_ss if (gap := _part(low, high, ss0, height)) is not None),
        gaps_fs=tuple(gap for low, high in detector.gaps_fs if (gap := _part(low, high, fs0, width)) is not None),
        bad=tuple(bad),
    )


def _part(low: int, high: int, start: int, size: int) -> tuple[int, int] | None:
    """The part of a half-open range that a window sees, in the window's numbers."""
    low, high = max(low - start, 0), min(high - start, size)
    return (low, high) if low < high else None
