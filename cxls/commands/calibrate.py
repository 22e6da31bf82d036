"""``cxls calibrate``: what a blank run says of false hits, threshold and bad pixels."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import torch

from analyzer.blank_run import PixelCensus, PixelFlag, ProposedMask, roaming_peaks
from analyzer.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from analyzer.calibration import (
    FEWEST_FRAMES,
    FORMAT,
    Calibration,
    ChosenThreshold,
    choose_threshold,
    save_calibration,
)
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.circumstances import Circumstances, circumstances
from analyzer.front import POLL_S, Source
from analyzer.judge import Judge
from analyzer.mask_file import DEFAULT_DATASET, BadMask, read_mask
from analyzer.prior import hit_fraction
from analyzer.results import Decision, FrameResult, HitRule, Status
from analyzer.warm import check_bundle
from cxls.cli import Failed, Interrupted
from cxls.compilation import compilation
from cxls.figures.calibration import draw_calibration
from cxls.figures.drawing import house_style, save_png, text_table
from cxls.given_geometry import check_geometry, read_given_geometry
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, CalibrateSettings, Resolved
from streamer.account import Account
from streamer.files import FileSource
from streamer.frames import DIFFERENCE, Frame, make_frame
from streamer.messages import InvalidMessage, SeriesMetadata
from streamer.receiver import StreamReceiver
from streamer.series import ImageAccepted, SeriesClosed, SeriesTracker
from streamer.validity import Validity, sentinel

LIVE_FRAMES = 1000
_LARGEST_BLANK_HIT_FRACTION = 0.005
"""Scores that call for more crystals than this, at 95 %, are no blank run's."""
_NAMED_IMAGES = 8


def run(resolved: Resolved[CalibrateSettings], source: Sequence[str]) -> None:
    """Calibrate, write the files, print the table. After a signal: with the frames there are."""
    settings = resolved.settings
    paths = _Paths.of(settings)
    if settings.channel == DIFFERENCE:
        raise BadSettings("--channel difference: negative results read as all ones there; take threshold_1 or _2")
    torch.set_num_threads(1)
    bundle = load_bundle(settings.bundle or DEFAULT_BUNDLE)
    check_bundle(bundle)
    mask = _given_mask(settings)
    given = read_given_geometry(settings.geometry, mask)
    live = _is_live(source)
    opened = _open(settings, source, live)
    if isinstance(opened, FileSource):
        check_geometry(given, opened.first)
    cascade = CascadeSettings(mask=mask, geometry=given)
    blank = _watch(opened, bundle, cascade, settings, live)
    if blank.census is None or len(blank.probabilities) < FEWEST_FRAMES:
        if blank.interrupted is not None:
            raise blank.interrupted
        raise BadSettings(
            f"{' '.join(source)[:200]}: {len(blank.probabilities)} frames with beam ({blank.no_beam} without, "
            f"{blank.undecodable} undecodable); a calibration needs {FEWEST_FRAMES} at least"
        )
    proposed = blank.census.propose_mask()
    if mask is not None:
        proposed.flags[mask.valid == 0] |= PixelFlag.USER
    faulty = proposed.count(PixelFlag.HOT) + proposed.count(PixelFlag.NOISY)
    unmasked = bool(faulty) and (live or blank.interrupted is not None)
    if faulty and not unmasked:
        # Their peaks make scores that no run has which leaves them out.
        without = Validity(paths.mask.name, (proposed.flags == 0).astype(np.uint8))
        again = _watch(_open(settings, source, live), bundle, replace(cascade, mask=without), settings, live)
        unmasked = again.interrupted is not None
        blank = replace(blank, interrupted=again.interrupted) if unmasked else again
    masks = [mask] if unmasked else [mask, Validity(paths.mask.name, (proposed.flags == 0).astype(np.uint8))]
    finder, _ = Judge(bundle, cascade).finders
    known = circumstances(finder, settings.channel, masks[1:] if faulty and not unmasked else masks, blank.metadata)
    _finish(blank, proposed, unmasked, settings, bundle, source, paths, known)
    if blank.interrupted is not None:
        raise blank.interrupted


@dataclass(frozen=True, slots=True)
class _Paths:
    calibration: Path
    mask: Path
    mask_h5: Path
    plot: Path

    @classmethod
    def of(cls, settings: CalibrateSettings) -> "_Paths":
        """Raises ``BadSettings`` for what is there already or cannot be written."""
        out = settings.out.with_suffix("") if settings.out.suffix == ".json" else settings.out
        paths = cls(*(out.with_name(f"{out.name}{end}") for end in (".json", "_mask.npy", "_mask.h5", ".png")))
        if not out.name or not out.parent.is_dir():
            raise BadSettings(f"--out {settings.out}: no folder {out.parent}; make it first")
        for path in (paths.calibration, paths.mask, paths.mask_h5, paths.plot):
            if path.exists() and not settings.overwrite:
                raise BadSettings(f"{path}: exists; use --overwrite to replace or another --out")
        return paths


def _given_mask(settings: CalibrateSettings) -> Validity | None:
    try:
        return read_mask(settings.mask) if settings.mask else None
    except BadMask as error:
        raise BadSettings(f"--mask {error}") from None


def _is_live(sources: Sequence[str]) -> bool:
    addresses = [source for source in sources if "://" in source]
    if addresses and len(addresses) != len(sources):
        raise BadSettings("sources: give either stream addresses or files, not both")
    return bool(addresses)


def _open(settings: CalibrateSettings, sources: Sequence[str], live: bool) -> Source:
    if not live:
        return FileSource(sources)
    try:
        return StreamReceiver(list(sources), settings.stream, settings.max_message_mib << 20)
    except ValueError as error:
        raise BadSettings(str(error)) from None


@dataclass(slots=True)
class _BlankRun:
    """What the frames said, those with beam in order; ``images`` are their (series, image) ids."""

    probabilities: list[float] = field(default_factory=list)
    peaks: list[list[Any]] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)
    no_beam: int = 0
    undecodable: int = 0
    census: PixelCensus | None = None
    metadata: SeriesMetadata | None = None
    mask: str | None = None
    unfit: str = ""
    account: Account = field(default_factory=Account)
    interrupted: Interrupted | None = None

    @property
    def frames(self) -> int:
        return len(self.probabilities) + self.no_beam + self.undecodable

    def add(self, frame: Frame, result: FrameResult, analyser: Analyser) -> None:
        """Take in a frame that the analyser has just judged; its pixels still lie in the workspace.

        Raises ``BadSettings`` for images of another shape than those before, or than the mask given.
        """
        if result.status != Status.OK:
            self.undecodable += 1
            return
        if result.decision == Decision.NO_BEAM:
            self.no_beam += 1
            return
        # The latest: one of a header that was replaced may still be there.
        workspace = next(w for w in reversed(analyser.workspaces(frame.series)) if w.plan.shape == _shape(frame))
        shape = workspace.plan.shape
        if unfit := workspace.plan.validity.unfit:
            raise BadSettings(f"--mask {unfit}")
        self.unfit = self.unfit or workspace.plan.geometry.unfit
        if self.census is None:
            self.census, self.metadata, self.mask = PixelCensus(shape), frame.series.metadata, result.mask
        elif self.census.shape != shape:
            raise BadSettings(
                f"series {result.series_id}: images of {shape} after images of {self.census.shape}; "
                "calibrate on one kind of images at a time"
            )
        self.census.add(workspace.plan, workspace.pixels, workspace.background, sentinel(workspace.dtype))
        self.probabilities.append(result.hit_probability or 0.0)
        self.peaks.append(result.peaks or [])
        self.images.append((result.series_id, result.image_id))


def _shape(frame: Frame) -> Any:
    return getattr(frame.image, "shape", None)


def _watch(
    source: Source, bundle: Bundle, cascade: CascadeSettings, settings: CalibrateSettings, live: bool
) -> _BlankRun:
    """Judge frames until there are enough or no more; a signal ends it with those so far."""
    blank, analyser = _BlankRun(), Analyser(bundle, cascade)
    most = settings.frames or (LIVE_FRAMES if live else None)
    try:
        with interruptible_progress("calibrating", "blank frames") as after_frame:
            for event in _events(
                source, blank.account, lambda: after_frame(blank.frames, most or blank.account.announced)
            ):
                if isinstance(event, SeriesClosed):
                    analyser.forget(event.series)
                elif isinstance(event, ImageAccepted):
                    frame = make_frame(event.series, event.image, time.time(), settings.channel)
                    (result,) = analyser.process([frame]).results
                    compilation.done()
                    blank.add(frame, result, analyser)
                    if most is not None and len(blank.probabilities) >= most:
                        break
    except Interrupted as signal:
        blank.interrupted = signal
    finally:
        source.close()
    return blank


def _events(source: Source, account: Account, each: Any) -> Iterator[Any]:
    """Events of the source until it has no more; ``each`` is called after every message and every silence."""
    tracker = SeriesTracker(account)
    while True:
        received = source.receive(POLL_S)
        with contextlib.suppress(InvalidMessage):
            if received is None:
                if source.exhausted:
                    yield from tracker.finish()
                    return
                yield from tracker.tick(time.monotonic())
            elif not isinstance(received.message, InvalidMessage):
                yield from tracker.handle(received.message, time.monotonic())
        each()


def _finish(
    blank: _BlankRun,
    mask: ProposedMask,
    unmasked: bool,
    settings: CalibrateSettings,
    bundle: Bundle,
    sources: Sequence[str],
    paths: _Paths,
    known: Circumstances,
) -> None:
    card = bundle.card.hit
    chosen = choose_threshold(blank.probabilities, settings.false_hits, card.threshold)
    warnings = _warnings(blank, mask, unmasked, chosen, settings, card.prior)
    calibration = Calibration(
        format=FORMAT,
        bundle=bundle.label,
        prior=card.prior,
        threshold=chosen.threshold,
        false_hits=chosen.false_hits,
        false_hits_asked=settings.false_hits,
        probabilities=blank.probabilities,
        peak_counts=[len(peaks) for peaks in blank.peaks],
        no_beam_frames=blank.no_beam,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=list(sources[:100]),
        photon_energy_eV=blank.metadata.photon_energy_eV if blank.metadata else None,
        camera_length_m=blank.metadata.camera_length_m if blank.metadata else None,
        mask=blank.mask,
        warnings=warnings,
        circumstances=known,
    )
    try:
        save_calibration(calibration, paths.calibration)
        _save_mask(mask.flags, paths)
        with house_style():
            save_png(draw_calibration(calibration, card), paths.plot)
    except OSError as error:
        raise Failed(f"{error.filename or settings.out}: {error.strerror or error}") from None
    click.echo("\n".join(_table(blank, calibration, bundle, mask)))
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"wrote {paths.calibration}, {paths.mask}, {paths.mask_h5}, {paths.plot}")
    bad = int(np.count_nonzero(mask.flags))
    use = f" --mask {paths.mask}" if bad else ""
    click.echo(f"use: cxls analyze SOURCE --calibration {paths.calibration}{use}")


def _save_mask(flags: npt.NDArray[np.uint32], paths: _Paths) -> None:
    with paths.mask.open("wb") as plain:
        np.save(plain, flags)
    with h5py.File(paths.mask_h5, "w") as file:
        file.create_dataset(DEFAULT_DATASET, data=flags, chunks=flags.shape, **hdf5plugin.Bitshuffle())


def _warnings(
    blank: _BlankRun,
    mask: ProposedMask,
    unmasked: bool,
    chosen: ChosenThreshold,
    settings: CalibrateSettings,
    prior: float,
) -> list[str]:
    said = []
    if blank.unfit:
        said.append(f"geometry: {blank.unfit}; the header's geometry was used instead")
    frames = len(blank.probabilities)
    if not chosen.supported:
        said.append(
            f"{frames} blank frames set no false-hit rate below 3/{frames} = {3 / frames:.2%}; "
            f"{settings.false_hits:.2%} takes {int(np.ceil(3 / settings.false_hits))}. The threshold is that of "
            f"{chosen.false_hits:.2%}, or the bundle's where that is higher"
        )
    certain = int(np.sum(np.asarray(blank.probabilities) >= chosen.threshold)) if chosen.threshold >= 1.0 else 0
    if certain:
        said.append(f"{certain} frames have a hit probability of 1: no threshold keeps them out")
    if unmasked:
        said.append(
            "hot and noisy pixels were not left out yet and raise scores: calibrate again with the mask proposed"
        )
    assert blank.census is not None
    roaming = roaming_peaks(blank.peaks, blank.census.shape, mask.flags)
    suspect = [image for image, count in zip(blank.images, roaming, strict=True) if count >= settings.min_peaks]
    if suspect:
        named = ", ".join(f"{series}/{image}" for series, image in suspect[:_NAMED_IMAGES])
        more = " ..." if len(suspect) > _NAMED_IMAGES else ""
        said.append(
            f"{len(suspect)} frames have {settings.min_peaks} peaks or more at places that do not repeat: crystals of "
            f"protein, salt or ice in the blank run (series/image {named}{more}); the threshold is then too high"
        )
    fraction = hit_fraction(blank.probabilities, prior)
    if fraction is not None and fraction[1] > _LARGEST_BLANK_HIT_FRACTION:
        said.append(
            f"the scores are those of a run with crystals in {fraction[0]:.1%} of its frames ({fraction[1]:.1%} to "
            f"{fraction[2]:.1%}): crystals in the blank run, or a background that the bundle does not know"
        )
    return said


def _table(blank: _BlankRun, calibration: Calibration, bundle: Bundle, mask: ProposedMask) -> tuple[str, ...]:
    counts, scores = np.asarray(calibration.peak_counts), np.asarray(calibration.probabilities)
    flagged = ", ".join(f"{mask.count(flag)}" for flag in (PixelFlag.HOT, PixelFlag.NOISY, PixelFlag.DEAD))

    def rate(threshold: float) -> str:
        called = int((scores >= threshold).sum())
        found = calibration.false_hits_of(HitRule.NETWORK, 1, threshold)
        return f"{called} of {len(scores)}: {found.estimate:.2%} ({found.low:.2%} to {found.high:.2%})"

    quantiles = (0.5, 0.9, 0.99, 1.0)
    rows = [
        ("bundle", bundle.label),
        ("blank frames", f"{len(scores)} with beam, {blank.no_beam} without, {blank.undecodable} undecodable"),
        (f"false hits at the bundle's threshold {bundle.card.hit.threshold:.4f}", rate(bundle.card.hit.threshold)),
        (f"false hits at the threshold set, {calibration.threshold:.4f}", rate(calibration.threshold)),
        ("false hits asked, set", f"{calibration.false_hits_asked:.2%}, {calibration.false_hits:.2%}"),
        ("hit probability, median, 90 %, 99 %, most", ", ".join(f"{q:.4f}" for q in np.quantile(scores, quantiles))),
        ("peaks a frame, mean, 99 %, most", f"{counts.mean():.2f}, {np.quantile(counts, 0.99):.0f}, {counts.max()}"),
        ("mask: hot, noisy, dead pixels", flagged),
        ("panel with light enough to tell dead pixels", f"{mask.judged_dead:.1%}"),
    ]  # fmt: skip
    return text_table(("calibration", ""), rows)
