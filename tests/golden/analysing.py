"""The records of golden cases as this program makes them now, in one of the ways in which it can.

``python -m tests.golden.analysing OUT.json --batch 3`` is a process of its own for ``tests.golden.variation``.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from analyzer.attribute_cascade import open_models
from analyzer.batch.reading import SeriesReader
from analyzer.batch.shares import Chunk
from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import Analyser
from analyzer.judge import Judge
from analyzer.results import to_json_line
from cxls.commands.analyze import CPU_BATCH, cascade_settings
from cxls.makers import Makers
from cxls.settings import JudgeSettings
from streamer import stream_v2
from streamer.files import FileSeries
from streamer.frames import Frame, make_frame
from streamer.messages import ImageMessage, StartMessage
from streamer.series import Series
from tests.cxls.programs import cxls, records, replaying
from tests.golden.cases import CASES, INPUTS, Case

Record = dict[str, Any]
MakeAnalyser = Callable[[Judge, JudgeSettings], Analyser]

PER_RUN = ("series_id", "received_at", "latency_s")
"""Fields that differ from run to run of the same frames; ``series`` names the input instead."""


def master(series: str) -> Path:
    """The master file of a golden series."""
    return INPUTS / f"{series}_master.h5"


def frames_of(series: str, channel: str | None = None, number: int = 1) -> list[Frame]:
    """The frames of a golden series, as ``cxls batch`` has them of files, or of recorded messages."""
    path = master(series)
    if path.exists():
        with closing(FileSeries(path)) as file:
            images = len(file)
        with closing(SeriesReader(number, [(path, None)], images, channel)) as reader:
            return [frame for batch in reader.batches(Chunk(number, 0, images), images) for frame in batch]
    return list(_recorded(INPUTS / f"{series}.msgpack", channel, number))


def _recorded(path: Path, channel: str | None, number: int) -> Iterator[Frame]:
    parsed = [stream_v2.parse(memoryview(each)) for each in msgspec.msgpack.decode(path.read_bytes())]
    start = parsed[0]
    assert isinstance(start, StartMessage)
    series = Series(number, number, None, start.metadata)
    for message in parsed:
        if isinstance(message, ImageMessage):
            yield make_frame(series, message, 0.0, channel)


def on_cpu(judge: Judge, settings: JudgeSettings) -> Analyser:
    """An analyser as ``cxls analyze --device cpu`` has it."""
    return Makers("cpu", judge.cascade.models, [Path(folder) for folder in settings.model]).make(judge)


def records_of(
    case: Case,
    make: MakeAnalyser = on_cpu,
    *,
    batch: int = CPU_BATCH,
    backwards: bool = False,
    before: int = 0,
    device: str = "cpu",
) -> list[Record]:
    """The records of a case, sorted. ``before``: so many frames are judged by the same analyser first."""
    settings = JudgeSettings(**case.settings)
    torch.set_num_threads(1)
    models = open_models([Path(folder) for folder in settings.model], device)
    judge = Judge(load_bundle(settings.bundle or DEFAULT_BUNDLE), replace(cascade_settings(settings), models=models))
    analyser = make(judge, settings)
    frames = [
        frame for number, name in enumerate(case.series, 1) for frame in frames_of(name, settings.channel, number)
    ]
    while before > 0:
        analyser.process(frames[: min(before, batch)])
        before -= min(len(frames), before, batch)
        frames = frames[batch:] + frames[:batch]
    if backwards:
        frames.reverse()
    found = []
    for first in range(0, len(frames), batch):
        for result in analyser.process(frames[first : first + batch]).results:
            found.append(json.loads(to_json_line(result)))
    return named(found, case)


def by_command(case: Case, *options: object) -> list[Record]:
    """The records that ``cxls analyze`` writes of a case's files."""
    return named(_analysed([master(name) for name in case.series], *_as_options(case), *options), case)


def by_stream(case: Case, protocol: str) -> list[Record]:
    """The records that ``cxls analyze`` writes of a case's files, sent to it as a detector would."""
    files = [master(name) for name in case.series]
    with replaying(*files, protocol=protocol, header_detail="all") as (endpoint, _):
        live = ("--series", len(files), "--on-full", "block", "--listen", "127.0.0.1:0")
        return named(_analysed([endpoint], *_as_options(case), *live), case)


def _as_options(case: Case) -> list[str]:
    return [word for name, value in case.settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _analysed(sources: Sequence[object], *options: object) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "records.jsonl"
        done = cxls("analyze", *sources, "--device", "cpu", "--results", results, *options)
        assert done.returncode == 0, done.stderr
        return records(results)


def named(found: Sequence[Record], case: Case) -> list[Record]:
    """Records by series and image, the series by its name, without what differs from run to run."""
    order = {name: place for place, name in enumerate(case.series)}
    kept = []
    for each in found:
        names = case.fields or [name for name in each if name not in (*PER_RUN, "image_id")]
        which = {"series": case.series[each["series_id"] - 1], "image_id": each["image_id"]}
        kept.append(which | {name: each[name] for name in names})
    return sorted(kept, key=lambda each: (order[each["series"]], each["image_id"]))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.analysing", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=CPU_BATCH)
    parser.add_argument("--backwards", action="store_true")
    parser.add_argument("--before", type=int, default=0)
    parser.add_argument("--way", choices=["file", "processes", "v1", "v2"])
    given = parser.parse_args(arguments)
    default = CASES["default"]
    if given.way is None:
        how = {"batch": given.batch, "backwards": given.backwards, "before": given.before}
        # So many frames first are for one case alone: the others would take as long again each.
        cases = {"default": default} if given.before else CASES
        found = {name: records_of(case, **how) for name, case in cases.items()}
    elif given.way in ("v1", "v2"):
        found = {"default": by_stream(default, given.way)}
    else:
        found = {"default": by_command(default, *(("--processes", 2) if given.way == "processes" else ()))}
    given.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
