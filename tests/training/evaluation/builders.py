"""Small series with truth, and judgements of them that no network made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.training.dataset.builders import build_series, good_truth, rotation
from training.evaluation.facts import Facts
from training.evaluation.scoring import FoundPeak, Judged, Judgement, all_facts


def series_of(folder: Path, hits: Sequence[bool], crystals: Sequence[int] | None = None, **truth: Any) -> Path:
    """A series whose frames are hits of these crystals (their own each by default); truth changes what it says."""
    count = len(hits)
    made = good_truth(count)
    hit = np.array(hits, np.bool_)
    numbers = np.arange(count) if crystals is None else np.array(crystals)
    where = np.repeat(np.flatnonzero(hit), 2)
    made |= {
        "hit": hit,
        "class": np.array([b"protein" if h else b"water" for h in hit]),
        "orientation": np.stack(
            [rotation(int(n)) if h else np.full((3, 3), np.nan) for n, h in zip(numbers, hit, strict=True)]
        ),
        "bragg_photons": np.where(hit, 100.0, 0.0),
        "spot_frame": where,
        "spot_ss": np.tile([4.0, 15.2], len(where) // 2),
        "spot_fs": np.tile([5.0, 20.7], len(where) // 2),
        "spot_photons": np.tile([60.0, 40.0], len(where) // 2),
    }
    made |= truth
    kept = {name: value for name, value in made.items() if value is not None}
    return build_series(folder, frames=count, truth=kept, per_file=max(1, count))


def facts_of(master: Path) -> Facts:
    return all_facts([master])[0]


def judged_as(master: Path, probability: npt.ArrayLike, threshold: float = 0.5, **fields: Any) -> Judged:
    """Judgements of these probabilities."""
    said = [
        Judgement(
            **{
                "series_id": 1,
                "image_id": n,
                "status": "ok",
                "decision": "hit" if p >= threshold else "miss",
                "hit": bool(p >= threshold),
                "hit_probability": float(p),
                "peaks": [],
                "bundle": "test-0",
                **{name: value[n] for name, value in fields.items()},
            }
        )
        for n, p in enumerate(np.asarray(probability).tolist())
    ]
    return Judged(facts_of(master), tuple(said))


def peak(fs: float, ss: float, photons: float = 50.0) -> FoundPeak:
    return FoundPeak(fs, ss, photons)
