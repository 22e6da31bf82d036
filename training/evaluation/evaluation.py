"""One evaluation: all figures of judged series, and what could not be measured and why."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamer.files import BadInput
from training.dataset.truth import SPOT_PLACE
from training.evaluation.bragg_light import BraggLight, bragg_light
from training.evaluation.calibration import (
    HIT_FRACTIONS,
    Reliability,
    at_fraction,
    chance_error,
    reliability,
)
from training.evaluation.facts import Facts
from training.evaluation.metrics import (
    Curve,
    Estimate,
    Ranking,
    Sample,
    area,
    area_difference,
    balanced_estimate,
    best_balanced,
    number_groups,
    of_curve,
    rate,
    recall_estimate,
)
from training.evaluation.parameter_metrics import ParameterError, as_array, parameter_error
from training.evaluation.peak_metrics import PHOTONS, Matches, PeakCount, match, spots_of
from training.evaluation.peers import Peer, tuned
from training.evaluation.reference import CLEAN, Referred
from training.evaluation.scoring import Judged, Judgement

METRICS = ("hits", "calibration", "no-beam", "peaks", "photon-energy", "camera-length")
FALSE_RATES = (0.01, 0.001)

Cell = str | int | float | Estimate | None
Flags = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under heads; ``digits``: as many are printed, where other than usual."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    digits: int | None = None


@dataclass(frozen=True, slots=True)
class Missed:
    """A hit that was not called one."""

    series: str
    frame: int
    crystal: str
    probability: float
    bragg_photons: float | None
    spots_of_5_photons: int | None


@dataclass(slots=True, eq=False)
class Evaluation:
    """What was measured. summary: (name, figure); curves by scorer; reliability by what it was corrected to.

    refused: metrics that the truth does not allow, and why; not_measured names them too, and what else is left out.
    about: what was evaluated on, in place of frames and series.
    """

    bundle: str
    threshold: float | None
    frames: int
    series: tuple[str, ...]
    summary: list[tuple[str, Estimate]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    missed: list[Missed] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    about: str = ""

    @property
    def evaluated_on(self) -> str:
        """In words."""
        return self.about or f"{self.frames} frames of {self.sources}"

    @property
    def sources(self) -> str:
        """How many there are, in words."""
        return "1 source" if len(self.series) == 1 else f"{len(self.series)} sources"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be measured. metrics: some of METRICS; asked: the user named them, so that a missing one is an error.

    prior: the share of hits that probabilities are calibrated for, None where the bundle is not at hand. crystals:
    folder of the sparse patterns that series were made of.
    """

    metrics: tuple[str, ...] = METRICS
    asked: bool = False
    prior: float | None = 0.5
    threshold: float | None = None
    crystals: Path | None = None


NOT_KNOWN = "not known"
"""The row of frames whose truth does not say what a table is split by."""


@dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """Frames with a beam that were judged, of all series: truth, judgement, and where each stands."""

    sample: Sample
    series: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]


def evaluate(
    judged: Sequence[Judged],
    request: Request,
    referred: Sequence[Referred] | None = None,
    peer: Peer | None = None,
) -> Evaluation:
    """Measure. Raises BadInput when a metric that the user named cannot be measured."""
    labels = {str(j.bundle) for each in judged for j in each.judgements if j.bundle is not None}
    made = Evaluation(
        bundle=", ".join(sorted(labels)) or "none",
        threshold=request.threshold,
        frames=sum(each.facts.frames for each in judged),
        series=tuple(str(each.facts.path) for each in judged),
    )
    undecodable = sum(j.status != "ok" for each in judged for j in each.judgements)
    if undecodable:
        made.notes.append(f"{undecodable} frames could not be analysed and are left out")
    frames = None
    if _wanted(request, "hits", "calibration"):
        try:
            frames = _frames(judged)
        except _Refused as refusal:
            _refuse(made, request, [name for name in ("hits", "calibration") if name in request.metrics], refusal)
    if frames is not None and "hits" in request.metrics:
        _hits(made, judged, frames)
        _others(made, judged, frames, referred, peer)
    if frames is not None and "calibration" in request.metrics:
        _calibration(made, frames.sample, request)
    for name, measure in (
        ("no-beam", _no_beam),
        ("peaks", lambda made, judged: _peaks(made, judged, request.crystals)),
        ("photon-energy", _energy),
        ("camera-length", _distance),
    ):
        if name in request.metrics:
            try:
                measure(made, judged)
            except _Refused as refusal:
                _refuse(made, request, [name], refusal)
    return made


class _Refused(Exception):
    """A metric that the truth does not allow: why, in one line."""


def _wanted(request: Request, *names: str) -> bool:
    return any(name in request.metrics for name in names)


def _refuse(made: Evaluation, request: Request, names: Sequence[str], refusal: _Refused) -> None:
    if request.asked:
        raise BadInput(f"{refusal}; --metrics asks for {' and '.join(names)}")
    made.not_measured.append(f"{', '.join(names)}: {refusal}")
    made.refused |= dict.fromkeys(names, str(refusal))


# --- hits -------------------------------------------------------------------------------


def _frames(judged: Sequence[Judged]) -> _Frames:
    positive, score, called, groups, series, position = [], [], [], [], [], []
    for number, each in enumerate(judged):
        facts = each.facts
        if facts.hit is None:
            raise _Refused(facts.missing("hit"))
        for n, judgement in enumerate(each.judgements):
            if judgement.status != "ok" or judgement.hit_probability is None or facts.no_beam[n]:
                continue
            positive.append(bool(facts.hit[n]))
            score.append(judgement.hit_probability)
            called.append(bool(judgement.hit))
            groups.append(facts.group[n])
            series.append(number)
            position.append(n)
    if not positive:
        raise _Refused("no frame with a beam was analysed")
    sample = Sample(np.array(positive), np.array(score, np.float64), number_groups(groups), np.array(called))
    return _Frames(sample, np.array(series), np.array(position))


def _hits(made: Evaluation, judged: Sequence[Judged], frames: _Frames) -> None:
    sample = frames.sample
    assert sample.called is not None
    hits, empties = sample.positive, ~sample.positive
    crystals = len(np.unique(sample.group[hits]))
    made.notes.append(
        f"{int(hits.sum())} hits of {crystals} crystals and {int(empties.sum())} empties; intervals count crystals"
    )
    if sample.both:
        made.curves["network"] = Ranking(sample).curve(np.ones(len(hits)))
        made.summary.append(("area under the curve", of_curve(sample, area)))
        for share in FALSE_RATES:
            made.summary.append((f"recall at {100 * share:g} % false hits", recall_estimate(sample, share)))
        made.summary.append(("balanced accuracy at the bundle's threshold", balanced_estimate(sample)))
    made.summary.append(("recall at the bundle's threshold", rate(sample.called[hits], sample.group[hits])))
    made.summary.append(("false hits at the bundle's threshold", rate(sample.called[empties], sample.group[empties])))
    rows = (
        ("hit", int((sample.called & hits).sum()), int((~sample.called & hits).sum())),
        ("empty", int((sample.called & empties).sum()), int((~sample.called & empties).sum())),
    )
    made.tables.append(Table("Confusion", ("truth", "called hit", "called miss or no beam"), rows))
    for column in _columns(judged):
        table = _table(column, _values(column, judged, frames), sample)
        if len(table.rows) > 1 or column == "content":
            made.tables.append(table)
    made.missed = _missed(judged, frames)


def _places(frames: _Frames) -> list[tuple[int, int]]:
    return list(zip(frames.series.tolist(), frames.position.tolist(), strict=True))


def _columns(judged: Sequence[Judged]) -> list[str]:
    return list(dict.fromkeys(name for each in judged for name in each.facts.by_column))


def _values(column: str, judged: Sequence[Judged], frames: _Frames) -> npt.NDArray[np.str_]:
    """Values (N,) of a column: '' for empties that no value splits, `NOT_KNOWN` where the truth has none."""
    values = []
    for (series, position), hit in zip(_places(frames), frames.sample.positive.tolist(), strict=True):
        column_of = judged[series].facts.by_column.get(column)
        value = NOT_KNOWN if column_of is None else column_of[position]
        values.append(value if value or (column != "content" and not hit) else NOT_KNOWN)
    return np.array(values)


def _table(column: str, values: npt.NDArray[np.str_], sample: Sample) -> Table:
    """A row for each value, what is not known last; frames of the value '' belong to every row but that."""
    assert sample.called is not None
    rows: list[tuple[Cell, ...]] = []
    for value in sorted({str(v) for v in values} - {""}, key=lambda each: (each == NOT_KNOWN, each)):
        part = sample.where((values == value) | ((values == "") & (value != NOT_KNOWN)))
        assert part.called is not None
        hits = part.positive
        rows.append(
            (
                value,
                int(hits.sum()),
                int((~hits).sum()),
                of_curve(part, area) if part.both else None,
                recall_estimate(part, FALSE_RATES[0]) if part.both else None,
                rate(part.called[hits], part.group[hits]) if hits.any() else None,
                rate(part.called[~hits], part.group[~hits]) if not hits.all() else None,
            )
        )
    heads = (column, "hits", "empties", "AUC", "recall at 1 % false hits", "recall", "false hits")
    return Table(f"By {column}", heads, tuple(rows), "recall and false hits without more are at the bundle's threshold")


def _missed(judged: Sequence[Judged], frames: _Frames) -> list[Missed]:
    assert frames.sample.called is not None
    found = []
    for place, (s, n) in enumerate(_places(frames)):
        if not frames.sample.positive[place] or frames.sample.called[place]:
            continue
        facts = judged[s].facts
        photons = facts.truth.per_frame("bragg_photons")
        spots = facts.truth.spots(n)[2] if facts.truth.has_spots else None
        bragg = float(photons[n]) if photons is not None else None if spots is None else float(spots.sum())
        probability = float(frames.sample.score[place])
        bright = None if spots is None else int((spots >= PHOTONS[0]).sum())
        found.append(Missed(facts.path.name, n, facts.group[n], probability, bragg, bright))
    return sorted(found, key=lambda each: (each.crystal, each.series, each.frame))


# --- the same frames by others ----------------------------------------------------------


def _others(
    made: Evaluation, judged: Sequence[Judged], frames: _Frames, referred: Sequence[Referred] | None, peer: Peer | None
) -> None:
    """The network beside the references and the peer, each pair on the frames that both scored."""
    others: list[tuple[str, Array]] = []
    places = _places(frames)
    if referred is not None:
        for reason in dict.fromkeys(each.why_not for each in referred if each.why_not):
            made.not_measured.append(f"ideal observer: {reason}")
        for name, attribute in (
            ("ideal observer, blocks", "blocks"),
            ("ideal observer, pixels", "pixels"),
            ("total count", "total"),
        ):
            others.append((name, np.array([getattr(referred[s], attribute)[p] for s, p in places])))
    if peer is not None and peer.why_not:
        made.not_measured.append(f"{peer.name}: {peer.why_not}")
    elif peer is not None:
        starts = np.cumsum([0, *(each.facts.frames for each in judged)])
        others.append((peer.name, np.array([peer.peak_counts[starts[s] + p] for s, p in places])))
    rows: list[tuple[Cell, ...]] = []
    for name, score in others:
        known = np.isfinite(score)
        ours = frames.sample.where(known)
        if not known.any() or not ours.both:
            continue
        theirs = Sample(ours.positive, score[known], ours.group)
        made.curves[name] = Ranking(theirs).curve(np.ones(int(known.sum())))
        best = tuned(theirs) if peer is not None and name == peer.name else None
        if best is not None:
            made.notes.append(f"{name}: best on this set from {best.least_peaks} peaks")
        rows.append(
            (
                name,
                int(known.sum()),
                of_curve(theirs, area),
                area_difference(ours, theirs),
                recall_estimate(theirs, FALSE_RATES[0]),
                best.balanced if best is not None else of_curve(theirs, best_balanced),
            )
        )
    if rows:
        heads = (
            "scorer",
            "frames",
            "AUC",
            "AUC of the network beyond it",
            "recall at 1 % false hits",
            "best balanced accuracy",
        )
        note = "each on the frames that it scored; the best balanced accuracy has its threshold tuned on this set"
        made.tables.insert(0, Table("On the same frames", heads, tuple(rows), note))


# --- calibration, no beam ---------------------------------------------------------------


def _calibration(made: Evaluation, sample: Sample, request: Request) -> None:
    if not sample.both:
        made.not_measured.append("calibration: hits and empties are both needed")
        return
    plain = reliability(sample.score, sample.positive)
    made.reliability["as they come"] = plain
    note = f"{chance_error(sample.score):.3g} if every probability were right"
    made.summary.append(("expected calibration error", Estimate(plain.error, note=note)))
    if request.prior is None:
        made.not_measured.append(
            "calibration at other shares of hits: no prior without the bundle; name it by --bundle"
        )
        return
    for fraction in HIT_FRACTIONS:
        corrected = at_fraction(sample.score, sample.positive, request.prior, fraction)
        made.reliability[f"at {fraction:g} hits"] = corrected
        name = f"expected calibration error at {fraction:g} hits, prior corrected"
        made.summary.append((name, Estimate(corrected.error)))


def _no_beam(made: Evaluation, judged: Sequence[Judged]) -> None:
    said = [
        (bool(each.facts.no_beam[n]), judgement.decision == "no_beam")
        for each in judged
        for n, judgement in enumerate(each.judgements)
        if judgement.status == "ok"
    ]
    truth, called = np.array(said, np.bool_).reshape(-1, 2).T
    singles = np.arange(len(said))
    if not truth.any():
        raise _Refused("no frame without a beam among them")
    made.summary.append(("frames without beam recognised", rate(called[truth], singles[truth])))
    made.summary.append(("frames with beam called no beam", rate(called[~truth], singles[~truth])))


# --- peaks ------------------------------------------------------------------------------


def _peaks(made: Evaluation, judged: Sequence[Judged], crystals: Path | None) -> None:
    counts: dict[str, PeakCount] = {}
    left_out = 0
    for each in judged:
        facts = each.facts
        if missing := facts.truth.missing(*SPOT_PLACE):
            raise _Refused(missing)
        columns, light = facts.by_column, bragg_light(facts, crystals)
        for n, judgement in enumerate(each.judgements):
            if judgement.status != "ok" or judgement.peaks is None or facts.no_beam[n]:
                continue
            if columns["content"][n] not in CLEAN:
                left_out += 1
                continue
            key = ", ".join(columns[c][n] for c in ("condition", "photons a pulse", "water, 100 µm") if c in columns)
            counts.setdefault(key, PeakCount()).add(match_frame(facts, n, judgement, light))
    if left_out:
        made.notes.append(
            f"peaks: {left_out} frames with salt, rings or faults are left out, as their peaks are no error"
        )
    whole = PeakCount()
    for part in counts.values():
        whole.include(part)
    if not whole.frames:
        raise _Refused("no frame of protein and water, or water alone, was analysed")
    rows = [_peak_row("all", whole), *(_peak_row(*item) for item in sorted(counts.items()))]
    heads = (
        "condition, photons a pulse, water",
        "frames",
        "peaks",
        *(f"recall, {least:g} photons and more" for least in PHOTONS),
        "false peaks a frame",
        "position error, pixels",
    )
    note = f"spots by expected photons; the position error is the root mean square from {PHOTONS[1]:g} photons"
    made.tables.append(Table("Peaks", heads, tuple(rows[:1] if len(rows) == 2 else rows), note))


def _peak_row(name: str, count: PeakCount) -> tuple[Cell, ...]:
    recalls = [f"{found / true:.3f} ({found} of {true})" if true else "-" for true, found in count.by_photons]
    return (name, count.frames, count.peaks, *recalls, count.false / count.frames, count.position_error_px)


def match_frame(facts: Facts, frame: int, judgement: Judgement, light: BraggLight | None = None) -> Matches:
    """Peaks of a judged frame against its true spots, and against its crystal's light where that is known."""
    ss, fs, photons = facts.truth.spots(frame)
    found = judgement.peaks or []
    peaks = spots_of([p.fs for p in found], [p.ss for p in found])
    return match(peaks, spots_of(fs, ss), photons, None if light is None else light(frame, peaks))


# --- photon energy and camera length ----------------------------------------------------


def _energy(made: Evaluation, judged: Sequence[Judged]) -> None:
    _parameter(made, judged, "photon_energy_eV", "photon_energy_sigma_eV", "Photon energy", "eV", 1.0)


def _distance(made: Evaluation, judged: Sequence[Judged]) -> None:
    _parameter(made, judged, "camera_length_m", "camera_length_sigma_m", "Camera length", "mm", 1e3)


def _parameter(
    made: Evaluation, judged: Sequence[Judged], name: str, sigma_name: str, title: str, unit: str, factor: float
) -> None:
    values: dict[str, list[tuple[float | None, float | None, float]]] = {}
    for each in judged:
        truth = each.facts.truth.per_frame(name)
        if truth is None:
            raise _Refused(each.facts.missing(name))
        for n, judgement in enumerate(each.judgements):
            if judgement.status == "ok" and not each.facts.no_beam[n]:
                key = each.facts.by_column.get("condition", (NOT_KNOWN,) * (n + 1))[n]
                values.setdefault(key, []).append((getattr(judgement, name), getattr(judgement, sigma_name), truth[n]))
    everything = [value for some in values.values() for value in some]
    if not everything:
        raise _Refused("no frame with a beam was analysed")
    groups = [("all", everything), *sorted(values.items())] if len(values) > 1 else [("all", everything)]
    rows = []
    for key, some in groups:
        error = parameter_error(*(as_array([value[k] for value in some]) for k in range(3)))
        rows.append(_parameter_row(key, error, factor))
    heads = ("condition", "frames", "stated in", f"rms error, {unit}", f"bias, {unit}", "95 % interval covers")
    made.tables.append(Table(title, heads, tuple(rows), "from one frame's pixels; errors of what was stated"))


def _parameter_row(name: str, error: ParameterError, factor: float) -> tuple[Cell, ...]:
    rms = None if error.rms is None else error.rms * factor
    bias = None if error.bias is None else error.bias * factor
    return (name, error.frames, error.stated, rms, bias, error.coverage)
