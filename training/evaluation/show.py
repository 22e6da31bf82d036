"""Truth beside result, frame by frame, as lines of text."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from training.evaluation.evaluation import match_frame
from training.evaluation.facts import Facts
from training.evaluation.scoring import Judged, Judgement

MOST_SPOTS = 60
"""Lines of spots and peaks a frame, the brightest first."""

LEAST_PHOTONS = 0.5
"""Fainter spots that no peak was found at are counted, not listed."""


Which = Literal["wrong", "first", "hits", "missed", "false"]
"""Missed and false hits before all others, all, those with a crystal, missed hits, false hits; else in their order."""


def show(judged: Sequence[Judged], frames: int, which: Which = "wrong") -> Iterator[str]:
    """Lines for the first so many frames of those that are asked for."""
    places = [(each.facts, n, judgement) for each in judged for n, judgement in enumerate(each.judgements)]
    if which == "wrong":
        places.sort(key=lambda place: not (_missed(*place) or _false(*place)))
    elif which != "first":
        wanted = {"hits": _hit, "missed": _missed, "false": _false}[which]
        places = [place for place in places if wanted(*place)]
    for place in places[:frames]:
        yield from _frame(*place)


def _hit(facts: Facts, n: int, judgement: Judgement) -> bool:
    return facts.hit is not None and bool(facts.hit[n])


def _missed(facts: Facts, n: int, judgement: Judgement) -> bool:
    return _hit(facts, n, judgement) and judgement.hit is False


def _false(facts: Facts, n: int, judgement: Judgement) -> bool:
    return facts.hit is not None and not facts.hit[n] and judgement.hit is True


def _frame(facts: Facts, n: int, judgement: Judgement) -> Iterator[str]:
    yield f"{facts.path.name} frame {n}: {_truth(facts, n)}"
    if judgement.status != "ok":
        yield f"    {judgement.status}"
        return
    right = "" if facts.hit is None else " right" if bool(judgement.hit) == bool(facts.hit[n]) else " WRONG"
    parts = [f"said {judgement.decision}{right}, probability {judgement.hit_probability or 0.0:.4f}"]
    for name, unit, factor in (("photon_energy", "eV", 1.0), ("camera_length", "m", 1.0)):
        value = getattr(judgement, f"{name}_{unit}")
        sigma = getattr(judgement, f"{name}_sigma_{unit}")
        if value is not None and sigma is not None:
            parts.append(f"{name.replace('_', ' ')} {factor * value:.4g} ± {factor * sigma:.2g} {unit}")
    yield "    " + ", ".join(parts)
    if facts.truth.has_spots and judgement.peaks is not None:
        yield from _spots(facts, n, judgement)


def _truth(facts: Facts, n: int) -> str:
    truth = facts.truth
    parts = [facts.by_column["content"][n]]
    for name, form in (
        ("camera_length_m", "{:.4g} m"),
        ("photon_energy_eV", "{:.5g} eV"),
        ("flux_photons", "{:.3g} photons a pulse"),
        ("bragg_photons", "{:.4g} Bragg photons"),
        ("background_photons", "{:.4g} of background"),
    ):
        value = truth.per_frame(name)
        if value is not None:
            parts.append(form.format(float(value[n])))
    if facts.hit is not None and facts.hit[n] and not facts.group[n].endswith(f"frame {n}"):
        parts.append(facts.group[n])
    return ", ".join(part for part in parts if part)


def _spots(facts: Facts, n: int, judgement: Judgement) -> Iterator[str]:
    matches = match_frame(facts, n, judgement)
    peaks = judgement.peaks or []
    peak_of = {int(spot): peak for peak, spot in enumerate(matches.spot_of) if spot >= 0}
    lines: list[tuple[float, str]] = []
    faint = 0
    for spot, ((fs, ss), photons) in enumerate(zip(matches.spots, matches.photons, strict=True)):
        text = f"    spot fs {fs:7.1f} ss {ss:7.1f} {photons:9.1f} photons   "
        peak = peak_of.get(spot)
        if peak is None and photons >= LEAST_PHOTONS:
            lines.append((float(photons), text + "not found"))
        elif peak is None:
            faint += 1
        else:
            found = peaks[peak]
            said = f"peak fs {found.fs:7.1f} ss {found.ss:7.1f} {found.intensity_photons:9.1f} photons"
            lines.append((float(photons), f"{text}{said}, {matches.distance[peak]:.2f} px off"))
    for peak in np.flatnonzero(matches.spot_of < 0).tolist():
        found = peaks[peak]
        why = "false" if matches.spot_of[peak] == -2 else "on light of a spot that has a peak"
        text = f"    peak fs {found.fs:7.1f} ss {found.ss:7.1f} {found.intensity_photons:9.1f} photons   {why}"
        lines.append((found.intensity_photons, text))
    lines.sort(key=lambda line: -line[0])
    yield from (text for _, text in lines[:MOST_SPOTS])
    if len(lines) > MOST_SPOTS:
        yield f"    and {len(lines) - MOST_SPOTS} more"
    if faint:
        yield f"    and {faint} spots below {LEAST_PHOTONS:g} photons that were not found"
