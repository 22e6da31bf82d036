"""``cxls bench``: measure against peers, in one run."""

import importlib
import os
from pathlib import Path

import click

from cxls.cli import Failed
from cxls.settings import BadSettings, BenchSettings, Resolved

BENCHMARKS = {
    "receive": "a frame off the wire and unpacked, against the bare decoder",
    "parse": "reading an image message, against cbor2 and json",
    "decode": "decoding by pixel type and flux, against bare decoders and a copy of the pixels",
    "preprocess": "the reduction by flux and water, against OM's peakfinder8, full and fast, and a read of the frame",
    "cascade": "a worker, packed bytes to record, by stage and condition, against OM and the paper's network",
    "front": "CPU of the receiving thread for a frame, by part, and what it carries flat out; pyzmq, LiberTEM",
    "start": "seconds from the start of an analysis to its first record, and where they go; with an empty cache too",
    "sampling": "a source faster than the analysis: delay and evenness of a full queue beside --sample auto",
    "memory": "a source that outruns the analysis: memory stays bounded, every image is accounted for",
    "end-to-end": "the program: frames a second, two cores against one, latency at a rate",
    "scaling": "a worker's cost by batch, size of the frame and flux; frames a second by workers",
    "roofline": "what the machine can do, and the share of it that decoding, reduction and networks reach",
    "gpu": "qualifies a GPU: the tests that need one, then every row of one that other benchmarks have, by part",
    "profile": "where a worker's time goes, by statement and by library",
    "peaks": "peak lists and their cost, against OM's peakfinder8",
    "spots": "where peaks stand and what they weigh, against the twin's truth and what photons allow",
    "rings": "peaks on smooth powder rings: false ones, and spots found on a ring and beside it",
    "peakfinder8": "our peakfinder8 against OM's, same parameters and frames, and against truth",
    "hot-pixels": "the running hot-pixel map: faulty pixels found, and false ones where crystals or frames repeat",
    "peak-finders": "the learned peak finder of a bundle beside the classical one: recall, false peaks, places, cost",
    "hits": "hits found and false hits of a bundle by scenario: flux, water, response, salt, rings, new cells",
    "indexing": "handing hits to indexers, reading their stream, publishing records",
    "hits-to-disk": "what it costs to keep a hit in a file, against packing it anew",
    "metrics": "what counting for /metrics costs a frame, against prometheus_client, and a scrape every second",
    "workers": "handing frames to worker processes: CPU at a rate, TCP against a bare PUSH, two workers against one",
    "live-page": "what browsers on the live page cost the analysis: one, four, four that never read",
    "simulate": "CPU a simulated frame, and training inputs a second, beside pattern_sim's figures",
}


def run(resolved: Resolved[BenchSettings], name: str) -> None:
    """Run one benchmark, print its table and write its JSON; ``list`` names them, ``docs`` fills a page."""
    if name == "list":
        for known, text in BENCHMARKS.items():
            click.echo(f"{known:<13} {text}")
        return
    if name == "docs":
        _fill_page(resolved.settings)
        return
    if name not in BENCHMARKS:
        raise BadSettings(f"bench {name}: unknown; take one of {', '.join(BENCHMARKS)}, or list, or docs")
    # Before numpy and the decoder load: a benchmark compares single threads.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    report = importlib.import_module("cxls.bench.report")
    module = importlib.import_module("cxls.bench." + name.replace("-", "_"))
    settings = resolved.settings
    target = settings.json_file or Path("runs") / f"bench-{name}.json"
    if settings.json_file is not None and not target.parent.is_dir():
        raise BadSettings(f"--json-file {target}: no such folder; make it first")
    where = report.machine()
    found = module.run(settings)
    report.show(found, where)
    target.parent.mkdir(exist_ok=True)
    target.write_text(report.as_json(name, found, where))
    click.echo(f"figures in {target}")
    if found.failed:
        raise Failed(found.failed)


def _fill_page(settings: BenchSettings) -> None:
    page = importlib.import_module("cxls.bench.page")
    files = [Path(each) for each in settings.tables] or sorted(Path("runs").glob("bench-*.json"))
    if not files:
        raise BadSettings("bench docs: no runs/bench-*.json here; run a benchmark first, or give --tables FILE")
    try:
        placed, left = page.update(settings.page, files)
    except page.BadPage as error:
        raise BadSettings(str(error)) from None
    click.echo(f"{settings.page}: {', '.join(placed) or 'nothing'} replaced")
    if left:
        click.echo(f"no place in it for {', '.join(left)}")
