"""``cxls bench``: measure against peers, in one run."""

import importlib
import os
from pathlib import Path

import click

from cxls.settings import BadSettings, BenchSettings, Resolved

BENCHMARKS = {
    "receive": "a frame off the wire and unpacked, against the bare decoder",
    "parse": "reading an image message, against cbor2 and json",
    "front": "CPU of the receiving thread for a frame, by part, and what it carries flat out; pyzmq, LiberTEM",
    "start": "seconds from the start of an analysis to its first record, and where they go; with an empty cache too",
    "sampling": "a source faster than the analysis: delay and evenness of a full queue beside --sample auto",
    "memory": "a source that outruns the analysis: memory stays bounded, every image is accounted for",
    "end-to-end": "frames a second, CPU by stage, against OM's peakfinder8",
    "peaks": "peak lists and their cost, against OM's peakfinder8",
    "spots": "where peaks stand and what they weigh, against the twin's truth and what photons allow",
    "peakfinder8": "our peakfinder8 against OM's, same parameters and frames, and against truth",
    "hot-pixels": "the running hot-pixel map: faulty pixels found, and false ones where crystals or frames repeat",
    "peak-finders": "the learned peak finder of a bundle beside the classical one: recall, false peaks, places, cost",
    "hits": "hits found and false hits of a bundle by scenario: flux, water, response, salt, rings, new cells",
    "indexing": "handing hits to indexers, reading their stream, publishing records",
    "hits-to-disk": "what it costs to keep a hit in a file, against packing it anew",
    "simulate": "CPU a simulated frame, and training inputs a second, beside pattern_sim's figures",
}


def run(resolved: Resolved[BenchSettings], name: str) -> None:
    """Run one benchmark, print its table and write its JSON; ``list`` names them."""
    if name == "list":
        for known, text in BENCHMARKS.items():
            click.echo(f"{known:<12} {text}")
        return
    if name not in BENCHMARKS:
        raise BadSettings(f"bench {name}: unknown; take one of {', '.join(BENCHMARKS)}, or list")
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
