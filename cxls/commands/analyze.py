"""``cxls analyze``: one analysis, live or of files."""

import ipaddress
import logging
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from analyzer import logs
from analyzer.alarms import Alarms
from analyzer.attribute_cascade import open_models
from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.calibration import BadCalibration, Calibration, load_calibration
from analyzer.cascade import MOST_FRAMES, CascadeSettings
from analyzer.control import Control
from analyzer.drift import score_drift, score_histogram
from analyzer.front import Front, FrontSettings, Source
from analyzer.hits import HitFolder, HitFolderSettings, UnusableFolder
from analyzer.indexing import IndexServer
from analyzer.judge import Judge
from analyzer.live.socket import LiveSocket
from analyzer.live.status import StatusReport, View
from analyzer.live.targets import Targets
from analyzer.logs.counting import LogCounts
from analyzer.mask_file import BadMask, read_mask
from analyzer.metrics import DiskSpace, GpuLoad, make_registry
from analyzer.panels import GivenGeometry, contradictions
from analyzer.parameters.bragg_watch import BraggWatch, HitSpots
from analyzer.parameters.gathered import Gathered
from analyzer.parameters.header import FAMILIES, Quantity
from analyzer.parameters.running import RunEstimate, RunEstimator
from analyzer.peak_finder import FinderKind
from analyzer.peak_parameters import Pf8Options, finder_of
from analyzer.pictures import Pictures
from analyzer.product_files import ProductFiles, ProductsExist
from analyzer.product_files import prepare as prepare_products
from analyzer.reports import BadReports, ReportFiles
from analyzer.reports import prepare as prepare_reports
from analyzer.restart import Restart
from analyzer.results import Decision, HitRule
from analyzer.running import WINDOWS
from analyzer.runs import BadRun, RunInfo, Runs
from analyzer.sinks import DetachedSink, HitOutput, ResultsFile, Sink, open_results
from analyzer.warm import warm_threads, warm_up
from analyzer.web.control import ControlEndpoints
from analyzer.web.guard import Refusals
from analyzer.web.http import bind
from analyzer.web.products import ProductEndpoints
from analyzer.web.reports import ReportEndpoints
from analyzer.web.server import WebServer
from cxls import allocator
from cxls.cli import Failed, Interrupted, listening, stop_on_signals
from cxls.commands.epics import check_epics, open_epics
from cxls.commands.indexing import open_broadcast, open_indexing
from cxls.commands.series_lines import SeriesLines, numbers
from cxls.compilation import compilation
from cxls.crew import open_crew
from cxls.given_cell import read_known_cell
from cxls.given_geometry import check_geometry, read_given_geometry
from cxls.makers import Makers
from cxls.open_files import raise_limit
from cxls.restored import restore, started_with
from cxls.service import open_notifier
from cxls.settings import AnalyzeSettings, BadSettings, FinderName, JudgeSettings, Resolved
from cxls.token_file import read_token
from streamer.files import FileSource
from streamer.frames import DIFFERENCE
from streamer.receiver import StreamReceiver, check_port
from streamer.validity import Validity

log = logging.getLogger(__name__)

STATUS_LINE_S = 10.0
PARAMETERS_S = 1.0
"""How often the run's photon energy and camera length are estimated anew, at most."""

PARAMETERS_PAUSES = 20.0
"""Between two estimates, as many times as one takes: on a slow machine the frames come first."""

DEFAULT_LISTEN = "127.0.0.1:8080"
CPU_BATCH = 8
DEVICE_WORKERS = 3
"""One whose frames are staged, one whose frames are on the device, one whose records are made."""


def run(resolved: Resolved[AnalyzeSettings], source: Sequence[str]) -> None:
    """Analyse until the source ends, enough series are over, or a signal comes."""
    raise_limit()
    session = Session(resolved.settings, list(source))
    interrupted = stop_on_signals(session.stop)
    session.run()
    print_summary(session.front)
    if session.restart is not None and session.restart.lost:
        click.echo(f"lost in crashes: {session.restart.lost} images of earlier runs are in no record")
    lost = sum(sink.lost for sink in session.front.sinks)
    hits = session.hits
    if hits is not None:
        click.echo(f"{hits.folder}: {hits.written} hits in {hits.files} files")
    if session.indexing is not None:
        click.echo(session.indexing.summary)
    if interrupted:
        raise Interrupted(interrupted[0])
    if session.problems:
        raise BadSettings(session.problems[0])
    if lost:
        raise Failed(f"{lost} records could not be written; see the log")
    if hits is not None and (hits.lost_hits or hits.unfinished):
        raise Failed(f"{hits.folder}: {hits.lost_hits} hits lost, {hits.unfinished} in the journal alone; see the log")


@dataclass(frozen=True, slots=True)
class _Where:
    live: bool
    block: bool
    listen: str | None


def _where(settings: AnalyzeSettings, sources: list[str]) -> _Where:
    addresses = [source for source in sources if "://" in source]
    if addresses and len(addresses) != len(sources):
        raise BadSettings("sources: give either stream addresses or files, not both")
    live = bool(addresses)
    on_full = settings.on_full or ("drop" if live else "block")
    if settings.sample == "auto" and on_full == "block":
        raise BadSettings("--sample auto: the source waits for the analysis here; give a number, or --on-full drop")
    return _Where(live, on_full == "block", settings.listen or (DEFAULT_LISTEN if live else None))


def refuse_difference(settings: JudgeSettings) -> None:
    """Raises ``BadSettings`` where the threshold difference is to be analysed."""
    if settings.channel == DIFFERENCE:
        raise BadSettings(
            "--channel difference: negative results read as all ones there; analyse threshold_1 or threshold_2"
        )


class Session:
    """An analysis made from settings: checked and warm when constructed, run once.

    ``stay``: the page is served on after the last frame, until ``stop`` is set.
    """

    def __init__(self, settings: AnalyzeSettings, sources: list[str], *, stay: bool = False) -> None:
        where = _where(settings, sources)
        refuse_difference(settings)
        self.stop = threading.Event()
        self._stay = stay
        self._done = threading.Event()
        self._series_lines = SeriesLines(
            lambda ordinal, copied: self.front.running.over(ordinal, copied=copied), self._estimate_series
        )
        self._log_counts = LogCounts()
        self._live = where.live
        # What can be refused is looked at before anything is written or slow.
        self._files = None if where.live else FileSource(sources)
        cascade = replace(
            cascade_settings(settings),
            tags=_all_tags(settings),
            shadow=_finder(settings, settings.shadow_finder) if settings.shadow_finder else None,
        )
        cell = read_known_cell(settings.cell, settings.space_group)
        if self._files is not None:
            check_geometry(cascade.geometry, self._files.first)
        if where.live:
            _check_addresses(sources)
        info = _run_info(settings)
        if settings.products:
            _prepare_products(settings.products, settings.overwrite or settings.append)
        if settings.reports:
            _prepare_reports(settings.reports)
        check_epics(settings)
        token = _read_token(settings, where)
        bound = bind_or_refuse(where.listen) if where.listen else None
        broadcast = open_broadcast(settings, lambda result: self.front.running.header_of(result.ordinal))
        indexing = self.indexing = open_indexing(
            settings, lambda: self.control.judge.cascade.mask, cascade.geometry, self.stop.is_set
        )
        if indexing is not None:
            # Workers that are waiting already are told to ask again from here on.
            indexing.start()
        allocator.settle()
        device = choose_device(settings.device)
        torch.set_num_threads(1)
        bundle = load_bundle(settings.bundle or DEFAULT_BUNDLE)
        models = open_models([Path(folder) for folder in settings.model], device)
        cascade = replace(cascade, models=models)
        judge = Judge(bundle, cascade, read_calibration(settings, bundle.label), settings.channel)
        finder, shadow = judge.finders
        if cascade.shadow is not None and shadow is None:
            raise BadSettings(f"--shadow-finder {finder.name}: the published peaks are its own; name another")
        makers = Makers(device, models, [Path(folder) for folder in settings.model])
        on_device = makers.reduces_there(judge)
        batch_frames = settings.batch or (MOST_FRAMES if on_device else CPU_BATCH)
        warm_up(makers.make(judge), judge)
        compilation.done()
        allocator.set_aside()
        self.crew = open_crew(settings, judge, makers.plans)
        own = DEVICE_WORKERS if on_device else os.cpu_count() or 1
        workers = settings.workers or (own if self.crew is None else 0)
        analysers = [makers.make(judge) for _ in range(workers)]
        threads = warm_threads(analysers, judge)
        # What is there is touched only now that all else is known to be in order.
        self.hits = _open_hits(settings, cascade.geometry)
        sinks: list[Sink] = []
        self.restart: Restart | None = None
        if settings.results is not None:
            try:
                results = _open_results(settings, settings.results)
            except BadSettings:
                self._let_go_of_hits()
                raise
            sinks.append(DetachedSink(results))
            # A file is read from its start again, so a kill costs it nothing.
            if where.live:
                self.restart = Restart(settings.results, results, settings.append, started_with(settings))
        if broadcast is not None:
            sinks.append(broadcast)
        hit_outputs: list[HitOutput] = [output for output in (self.hits, indexing) if output is not None]
        if self.restart is not None:
            self.restart.start()
        # Connected last: from here on the detector hands us its images.
        try:
            source: Source = self._files or _connect(settings, sources)
        except BadSettings:
            self._let_go_of_hits()
            if self.restart is not None:
                self.restart.close(began=False)
            raise
        self.front = Front(
            source,
            analysers,
            sinks,
            FrontSettings(
                block=where.block,
                batch_frames=batch_frames,
                ring_bytes=settings.queue_mib << 20,
                channel=settings.channel,
                series=settings.series,
                tags=judge.cascade.tags,
                attributes=tuple(model.attribute.name for model in models),
                finders=None if shadow is None else (finder.name, shadow.name),
                sample=None if settings.sample == "auto" else settings.sample,
                split_tag=settings.split_tag,
                map_tags=_map_tags(settings),
            ),
            on_series=self._series_lines.report,
            hit_outputs=hit_outputs,
            crew=None if self.crew is None else self.crew.dispatch,
            restart=self.restart,
            contradicted=lambda metadata: contradictions(self.control.judge.cascade.geometry, metadata),
            threads=threads,
        )
        indexed = _indexed_by(indexing)
        self.pictures = Pictures()
        self.run_reports = None if settings.reports is None else ReportFiles(settings.reports, self.pictures.draw)
        runs = Runs(
            self.front,
            info,
            self.running_estimate,
            lambda: self.report.gathered(),
            indexed,
            lambda capture: None if self.run_reports is None else self.run_reports.write(capture),
        )
        self.control = Control(
            self.front,
            judge,
            lambda new: makers.make(new, bool(self.front.device_faults)),
            load_bundle,
            self._follow,
            _pf8_options(settings),
            runs,
            (lambda asked: None) if self.restart is None else self.restart.keep,
        )
        self.parameters = RunEstimator(
            self.front.running.diffuse_sums,
            lambda: self.control.judge.bundle.scattering,
            lambda: None if self.bragg is None else self.bragg.latest,
        )
        self.bragg: BraggWatch | None = None
        if cell is not None:
            self.front.running.gathering.spots = HitSpots()
            self.bragg = BraggWatch(cell, self.front.running.hit_spots, lambda: self.parameters.water)
        self._endpoints = ControlEndpoints(self.control, token)
        self._product_files = (
            ProductFiles(
                settings.products, self.front.products, self.pictures.draw, settings.overwrite, append=settings.append
            )
            if settings.products
            else None
        )
        disks = DiskSpace(_folders(settings))
        gpu = None if device == "cpu" else GpuLoad.of(device)
        self._load = [disks, *([] if gpu is None else [gpu])]
        self.front.latest.keeping = bound is not None or settings.epics is not None
        self.front.targets = Targets(lambda: self.front.account.processed[Decision.HIT], indexed)
        self.front.targets.set(hits=settings.target_hits, indexed=settings.target_indexed)
        self._alarms = Alarms(
            self.front, self.running_estimate, self._drift, disks.rooms, lambda: gpu is not None and gpu.throttled
        )
        self.report = StatusReport(self.front, self._alarms, self._control_facts)
        self._refusals = Refusals()
        self._live_socket = LiveSocket(self.report, self.front.latest)
        self.report.view = self._view(judge)
        if self.restart is not None:
            restore(self.restart, self._endpoints)
        self.web: WebServer | None = None
        if bound is not None:
            routes = [
                self._live_socket.route,
                *self._endpoints.routes,
                *ProductEndpoints(self.front.products, self.pictures.draw).routes,
                *ReportEndpoints(self.control, self.pictures.draw).routes,
            ]
            self.web = WebServer(bound, self.report, self._refusals, routes)
            listening("http", self.web.address)
        self.epics = open_epics(settings, self.report.snapshot, self.front.latest.latest, self._endpoints.reset)

    def _let_go_of_hits(self) -> None:
        """A run that is refused leaves neither lock nor journal in the folder."""
        if self.hits is not None:
            self.hits.close()

    @property
    def problems(self) -> list[str]:
        """Parts of the input that could not be read, a sentence each."""
        return self._files.problems if self._files else []

    def _follow(self, judge: Judge) -> None:
        finder, shadow = judge.finders
        self.front.running.compare_finders(None if shadow is None else (finder.name, shadow.name))
        self.report.view = self._view(judge)

    def _view(self, judge: Judge) -> View:
        build = {
            "version": version("cxls-analyzer"),
            "torch": torch.__version__,
            "bundle": judge.bundle.label,
            "python": platform.python_version(),
        }
        registry = make_registry(self.front, self.running_estimate, judge.point, build)
        registry.register(self._endpoints)
        collectors = (
            self._log_counts, self._live_socket, self._refusals, *self._load, self._product_files, self.run_reports,
            self.restart,
        )  # fmt: skip
        for collector in collectors:
            if collector is not None:
                registry.register(collector)
        if self.crew is not None:
            registry.register(self.crew.dispatch)
        for output in self.front.reporting:
            registry.register(output)
        facts = judge.facts | {"control": self._endpoints.enabled}
        return View(registry, self.running_estimate, facts, lambda: self.parameters.curve)

    def _control_facts(self) -> dict[str, Any]:
        contradicted = contradictions(self.control.judge.cascade.geometry, self.front.running.metadata)
        facts = self.control.facts | {"geometry_contradicts": contradicted}
        if self.crew is not None:
            facts = facts | {"crew": self.crew.dispatch.facts()}
        return facts | {"controls": {"enabled": self._endpoints.enabled} | facts["controls"]}

    def _drift(self) -> float | None:
        """How far the misses' scores are from the calibration's, if there is one."""
        point, running = self.control.judge.point, self.front.running
        reference = point.references.get("calibration")
        if reference is None:
            return None
        with running.lock:
            scores = running.scores.values(max(WINDOWS))
        found = score_drift(score_histogram(scores), reference, point.threshold)
        return None if found is None else found.divergence

    def running_estimate(self) -> dict[str, object]:
        """Photon energy and camera length of the run so far, and what of the header they contradict."""
        if self.control.judge.bundle.scattering is not None:
            estimate = self.parameters.latest
            # One from before a reset, or of another header, is not of what came since.
            now = self.front.running.gathering.sums.number
            return {} if estimate is None or estimate.number != now else estimate.facts
        running = self.front.running
        with running.lock:
            profile, frames = running.profile.astype(np.float32), running.profile_frames
        return self.control.estimator.estimate(profile) if frames >= 1 and profile[0].sum() >= 50 else {}

    def run(self) -> None:
        """Run to the end; every output is complete when it returns."""
        with self._log_counts:
            self._run()

    def _run(self) -> None:
        talker = threading.Thread(target=self._talk, name="status", daemon=True)
        talker.start()
        watcher = threading.Thread(target=self._watch_parameters, name="parameters", daemon=True)
        watcher.start()
        if self.bragg is not None:
            # Not waited for: an estimate in hand at the end may take its seconds.
            threading.Thread(target=self.bragg.watch, args=(self._done,), name="bragg", daemon=True).start()
        if self.web is not None or self.epics is not None:
            threading.Thread(target=self._alarms.watch, args=(self._done,), name="alarms", daemon=True).start()
        self._series_lines.start()
        self.report.ready = True
        notifier = open_notifier(lambda: self.report.is_ready, self.front.pulse.longest, self._line)
        if self.epics is not None:
            self.epics.start()
        try:
            if self.crew is not None:
                self.crew.start()
            self.front.run(self.stop)
            self._series_lines.close()
            self._last_look()
            if self._stay and not self.stop.is_set():
                log.info("%s; the page stays until Ctrl-C", self.front.account.identity())
                self.stop.wait()
        finally:
            if self.crew is not None:
                self.crew.close()
            self._done.set()
            talker.join()
            watcher.join()
            if self._product_files is not None:
                self._product_files.close()
            if self.run_reports is not None:
                self.run_reports.close(lambda: self.control.capture(over=True))
            self.pictures.close()
            if self.restart is not None:
                self.restart.close()
            if self.epics is not None:
                self.epics.close()
            if self.web is not None:
                self.web.close()
            self.front.source.close()
            if notifier is not None:
                notifier.close()

    def _line(self) -> str:
        """What the service manager shows."""
        return f"{_hit_text(self.front)} | queue {len(self.front.ring)} | {self.front.account.identity()}"

    def _watch_parameters(self) -> None:
        told: set[Quantity] = set()
        contradicted, pause = False, PARAMETERS_S
        while not self._done.wait(pause):
            began = time.thread_time()
            estimate = self._look()
            pause = max(PARAMETERS_S, PARAMETERS_PAUSES * (time.thread_time() - began))
            wrong = {} if estimate is None else {each.quantity: each.text for each in estimate.mismatches}
            for quantity in wrong.keys() - told:
                log.warning("%s", wrong[quantity], extra=logs.event("header_mismatch", quantity=quantity.value))
            standing = [family for family in FAMILIES if family & wrong.keys()]
            told = {each for each in told | wrong.keys() if any(each in family for family in standing)}
            disagreement = None if estimate is None else estimate.disagreement
            if disagreement is not None and not contradicted:
                log.warning("%s", disagreement, extra=logs.event("parameters_disagree"))
            contradicted = disagreement is not None

    def _last_look(self) -> None:
        """Files may be over before the watches had their turn: the run's last word has all frames and spots."""
        if self.bragg is None or self.stop.is_set():
            self._look()
            return
        # In a thread, so that a signal does not wait for it.
        last = threading.Thread(target=self.bragg.finish, name="last bragg", daemon=True)
        last.start()
        while last.is_alive() and not self.stop.is_set():
            last.join(0.1)
        found = self.bragg.latest
        estimate = self._look()
        if found is not None and found.reason is not None:
            log.info("nothing from the Bragg spots of the known cell: %s", found.reason)
        if estimate is not None:
            log.info("run: %s", estimate.text, extra=logs.event("run_parameters", **numbers(estimate)))

    def _look(self) -> RunEstimate | None:
        try:
            self.control.meets(self.front.running.metadata)
            return self.parameters.look()
        except Exception:
            # Only shown, so a fault of it costs no frame.
            log.exception("the running photon energy and camera length failed")
            return None

    def _estimate_series(self, gathered: Gathered) -> RunEstimate | None:
        self.control.meets(self.front.running.metadata)
        bragg = None if self.bragg is None else self.bragg.of(gathered.spots)
        return None if gathered.sums is None else self.parameters.of(gathered.sums, bragg)

    def _talk(self) -> None:
        """A bar for files on a terminal, else a line every ``STATUS_LINE_S`` seconds."""
        if not self._live and sys.stderr.isatty():
            self._bar()
            return
        account, last, then = self.front.account, 0, time.monotonic()
        while not self._done.wait(STATUS_LINE_S):
            received, now = account.received, time.monotonic()
            rate = (received - last) / (now - then)
            last, then = received, now
            waiting = len(self.front.ring)
            log.info(
                "%s | %.1f frames/s | queue %d | %s",
                _hit_text(self.front),
                rate,
                waiting,
                account.identity(),
                extra=logs.event(
                    "status",
                    frames_hz=round(rate, 3),
                    queue_frames=waiting,
                    received=received,
                    processed=dict(account.processed),
                    dropped=dict(account.dropped),
                    undecodable=dict(account.undecodable),
                ),
            )

    def _bar(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        account = self.front.account
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("frames", total=None)
            while not self._done.wait(0.2):
                progress.update(
                    task, total=account.announced or None, completed=account.settled, description=_hit_text(self.front)
                )


def _indexed_by(indexing: IndexServer | None) -> Callable[[], int | None]:
    return (lambda: None) if indexing is None else (lambda: indexing.indexed)


def _run_info(settings: AnalyzeSettings) -> RunInfo:
    try:
        return RunInfo(number=settings.run_number, sample=settings.sample_name)
    except BadRun as error:
        raise BadSettings(f"--sample-name: {error}") from None


def _prepare_reports(folder: Path) -> None:
    try:
        prepare_reports(folder)
    except BadReports as error:
        raise BadSettings(f"--reports {error}") from None
    except OSError as error:
        raise BadSettings(
            f"--reports {folder}: {error.strerror or error}; choose a folder that can be written"
        ) from None


def bind_or_refuse(listen: str) -> socket.socket:
    """The socket of ``--listen``; an address that others reach is warned of. Raises ``BadSettings``."""
    try:
        bound = bind(listen)
    except (OSError, ValueError) as error:
        raise BadSettings(f"--listen {listen}: {error}; choose another HOST:PORT") from None
    if not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
        text = "--listen %s: whoever reaches this address may see what this run shows; changes need the token"
        log.warning(text, listen, extra=logs.event("http_open", address=listen))
    return bound


def _read_token(settings: AnalyzeSettings, where: _Where) -> str | None:
    if settings.control_token is None:
        return None
    if where.listen is None:
        raise BadSettings("--control-token: nothing is served that it could control; give --listen HOST:PORT too")
    return read_token(settings.control_token, "--control-token")


def _connect(settings: AnalyzeSettings, addresses: list[str]) -> StreamReceiver:
    try:
        return StreamReceiver(addresses, settings.stream, settings.max_message_mib << 20)
    except ValueError as error:
        raise BadSettings(str(error)) from None


def _open_results(settings: AnalyzeSettings, path: Path) -> ResultsFile:
    try:
        return open_results(path, append=settings.append, overwrite=settings.overwrite)
    except OSError as error:
        why = error.strerror or error
        raise BadSettings(f"{path}: {why}; choose a place that can be written") from None
    except ValueError as error:
        raise BadSettings(str(error)) from None


def _folders(settings: AnalyzeSettings) -> dict[str, Path]:
    """Where the outputs in use are written."""
    places = {
        "results": settings.results and settings.results.absolute().parent,
        "hits": settings.hits,
        "products": settings.products,
        "reports": settings.reports,
    }
    return {output: place for output, place in places.items() if place is not None}


def _open_hits(settings: AnalyzeSettings, geometry: GivenGeometry | None) -> HitFolder | None:
    if settings.hits is None:
        return None
    kept = HitFolderSettings(
        queue_bytes=settings.hits_queue_mib << 20, file_bytes=settings.hits_file_mib << 20, append=settings.append
    )
    try:
        return HitFolder(settings.hits, kept, geometry)
    except UnusableFolder as error:
        raise BadSettings(f"--hits {error}") from None


def _check_addresses(addresses: list[str]) -> None:
    try:
        for address in addresses:
            check_port(address)
    except ValueError as error:
        raise BadSettings(str(error)) from None


def _prepare_products(folder: Path, overwrite: bool) -> None:
    try:
        prepare_products(folder, overwrite)
    except ProductsExist as error:
        raise BadSettings(f"--products {error}") from None
    except OSError as error:
        raise BadSettings(
            f"--products {folder}: {error.strerror or error}; choose a folder that can be written"
        ) from None


def cascade_settings(settings: JudgeSettings) -> CascadeSettings:
    """How frames are judged, by what the user gave. Raises ``BadSettings``."""
    mask = _read_mask(settings.mask) if settings.mask else None
    return CascadeSettings(
        hit_rule=HitRule(settings.hit_rule),
        min_peaks=settings.min_peaks,
        indexable_peaks=settings.indexable_peaks,
        threshold=settings.threshold,
        mask=mask,
        geometry=read_given_geometry(settings.geometry, mask),
        finder=_finder(settings, settings.peak_finder),
    )


def _map_tags(settings: AnalyzeSettings) -> tuple[str, str] | None:
    if not settings.map_tags:
        return None
    names = [each.strip() for each in settings.map_tags.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise BadSettings(f"--map-tags {settings.map_tags}: give two tags, such as stage_x,stage_y")
    return names[0], names[1]


def _all_tags(settings: AnalyzeSettings) -> tuple[str, ...]:
    """Tags to keep in records: those asked for, and those that hits are split or mapped by."""
    asked = (tag.strip() for tag in settings.tags.split(","))
    named = (*asked, settings.split_tag or "", *(_map_tags(settings) or ()))
    return tuple(dict.fromkeys(tag for tag in named if tag))


def _finder(settings: JudgeSettings, name: FinderName) -> FinderKind:
    try:
        return finder_of(name, _pf8_options(settings))
    except ValueError as error:
        raise BadSettings(f"--peak-finder {name}: pf8 {error}") from None


def _pf8_options(settings: JudgeSettings) -> Pf8Options:
    return Pf8Options(**{field.name: getattr(settings, field.name) for field in fields(Pf8Options)})


def choose_device(wanted: str) -> str:
    """The torch device for a setting. Raises ``BadSettings`` when CUDA is asked for and not there."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise BadSettings("--device cuda: no CUDA device is usable here; use --device auto or cpu")
    return "cuda" if wanted != "cpu" and available else "cpu"


def _hit_text(front: Front) -> str:
    hits, counted = front.running.hits.counts(100)
    return f"hit rate {hits / counted:.1%} of last {counted}" if counted else "no frame yet"


def _read_mask(path: Path) -> Validity:
    try:
        return read_mask(path)
    except BadMask as error:
        raise BadSettings(f"--mask {error}") from None


def read_calibration(settings: JudgeSettings, bundle: str) -> Calibration | None:
    """The calibration given, which is to be of this bundle. Raises ``BadSettings``."""
    try:
        return load_calibration(settings.calibration, bundle) if settings.calibration else None
    except BadCalibration as error:
        raise BadSettings(f"--calibration {error}") from None


def print_summary(front: Front) -> None:
    """The end of a run on stdout, after what is left of the log."""
    logs.settle()
    account = front.account
    analysed = sum(account.processed.values())
    hits = account.processed["hit"]
    click.echo(
        f"{front.finished} series, {analysed} frames analysed, {hits} hits"
        + (f" ({hits / analysed:.1%})" if analysed else "")
    )
    click.echo(account.identity())
    if left_out := account.dropped["sampled"]:
        chosen = (account.accepted - left_out) / account.accepted
        click.echo(
            f"sampled: {chosen:.1%} of {account.accepted} images chosen, one in {front.sampler.every} at the end"
        )
    nulls = {f"{name} {reason}": count for (name, reason), count in front.nulls.items()}
    for title, counts in (("dropped", account.dropped), ("undecodable", account.undecodable),
                          ("missing", account.missing), ("messages refused", account.invalid),
                          ("odd about the stream", account.oddities),
                          ("attributes null", nulls),
                          ("geometry file not for these images", {"frames": front.products.unfit_frames}),
                          ("mask not for these images", {"frames": front.products.mask_unfit_frames})):  # fmt: skip
        if any(counts.values()):
            click.echo(f"{title}: " + ", ".join(f"{reason} {n}" for reason, n in counts.items() if n))
