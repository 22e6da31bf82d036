"""Outputs of a running analysis, read as they are finished and then deleted, so that a long soak needs little disk.

Only what has its final name is touched, and the newest part of the results stays for a run that appends.
"""

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  # the filters that h5py needs to read hits
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from analyzer.hits import verify
from analyzer.hits.places import EVENT, FILES, IMAGES, LIST
from analyzer.product_files import HDF5
from analyzer.reports.files import TABLE
from analyzer.results import RECORD_FIELDS
from analyzer.sinks import open_results
from analyzer.sinks.files import RECORD_SCHEMA
from streamer.errors import first_line

MOST_PROBLEMS = 100
"""Sentences kept of what is wrong; more are only counted."""

_NEEDED = ("series_id", "image_id", "received_at", "status", "status_text", "decision")


@dataclass(slots=True)
class Problems:
    """Sentences on what is wrong, the first of them, and how many there were."""

    texts: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.texts) < MOST_PROBLEMS:
            self.texts.append(text)


@dataclass(slots=True)
class Recorded:
    """What the records say: how many of each kind, and of each its series, image and time of arrival (s)."""

    statuses: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    series: "array[int]" = field(default_factory=lambda: array("q"))
    images: "array[int]" = field(default_factory=lambda: array("q"))
    arrivals: "array[float]" = field(default_factory=lambda: array("d"))
    problems: Problems = field(default_factory=Problems)

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count records."""
        for row in rows:
            status = row["status"]
            self.statuses[f"{status} {row['status_text']}" if status == "dropped" else status] += 1
            if status == "ok":
                self.decisions[row["decision"]] += 1
            self.series.append(row["series_id"])
            self.images.append(row["image_id"])
            self.arrivals.append(row["received_at"])

    @property
    def records(self) -> int:
        return len(self.series)

    def repeated(self) -> Counter[int]:
        """Records of images that had one already, by series id.

        A rebooted detector's ids come again, so a series is what arrives without another in between.
        """
        order = np.argsort(np.asarray(self.arrivals), kind="stable")
        series, images = np.asarray(self.series)[order], np.asarray(self.images)[order]
        runs = np.cumsum(np.diff(series, prepend=series[:1]) != 0)
        rows, counts = np.unique(np.stack([runs, series, images]), axis=1, return_counts=True)
        return Counter({int(each): int(counts[rows[1] == each].sum() - (rows[1] == each).sum())
                        for each in np.unique(rows[1, counts > 1])})  # fmt: skip


class ParquetFollower:
    """Takes the parts of a ``.parquet`` folder and deletes them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.recorded = Recorded()
        self._seen: set[str] = set()

    def follow(self, last: bool = False) -> None:
        """Take what is finished; ``last``: the analysis is over, so nothing may be unfinished."""
        parts = sorted(self.path.glob("part-*.parquet"))
        for part in parts:
            if part.name not in self._seen:
                self._take(part)
        self._seen = {part.name for part in parts[-1:]}
        for part in parts[:-1]:
            part.unlink()
        if last and not self.path.is_dir():
            self.recorded.problems.add(f"{self.path}: the analysis did not make it")
        elif last:
            for left in self.path.iterdir():
                if left.name not in self._seen:
                    self.recorded.problems.add(f"{left}: left behind by an analysis that ended")

    def _take(self, part: Path) -> None:
        try:
            table = pq.read_table(part, use_threads=False)
            if table.schema != RECORD_SCHEMA:
                self.recorded.problems.add(f"{part}: columns are not those of a record")
            self.recorded.take(table.select(_NEEDED).to_pylist())
        except (OSError, pa.ArrowException, KeyError) as error:
            self.recorded.problems.add(f"{part}: cannot be read: {first_line(error)}")


class LinesFollower:
    """Reads a ``.jsonl`` file as it grows; it stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recorded = Recorded()
        self._read = 0

    def follow(self, last: bool = False) -> None:
        """Take whole lines; ``last``: the analysis is over, so the last line must be whole too."""
        if not self.path.exists():
            if last:
                self.recorded.problems.add(f"{self.path}: the analysis did not make it")
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    if last:
                        self.recorded.problems.add(f"{self.path}: the last line is not whole")
                    return
                self._read += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            if tuple(row) != RECORD_FIELDS:
                raise ValueError("fields are not those of a record")
            self.recorded.take([row])
        except (ValueError, KeyError, TypeError) as error:
            self.recorded.problems.add(f"{self.path}: a line before byte {self._read} cannot be read: {error}")


Follower = ParquetFollower | LinesFollower


def follower(results: Path) -> Follower:
    """By the ending of the results."""
    return ParquetFollower(results) if results.suffix == ".parquet" else LinesFollower(results)


class HitsFollower:
    """Takes finished files of hits out of their folder, decodes every image of them, and deletes them.

    A file is taken once ``hits.lst`` names it: from then on the analysis does not look at it again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hits = self.files = 0
        self.problems = Problems()
        self._looked = folder.with_name(folder.name + "-looked-at")

    def follow(self, last: bool = False) -> None:
        self._looked.mkdir(exist_ok=True)
        listed = None if last else self._listed()
        for path in sorted(self.folder.glob(FILES)):
            if listed is None or path.name in listed:
                path.rename(self._looked / path.name)
        found = verify(self._looked)
        for problem in found.problems():
            self.problems.add(problem)
        for path in sorted(self._looked.glob(FILES)):
            for problem in _by_h5py(path):
                self.problems.add(problem)
            path.unlink()
        self.hits += found.hits
        self.files += found.files
        if last:
            for left in (*self.folder.glob(".*.part"), *self.folder.glob("journal/*.journal")):
                self.problems.add(f"{left}: left behind by an analysis that ended")

    def _listed(self) -> set[str]:
        try:
            lines = (self.folder / LIST).read_text().splitlines()
        except FileNotFoundError:
            return set()
        return {Path(line.rpartition(" //")[0]).name for line in lines}


def _by_h5py(path: Path) -> Iterator[str]:
    """What is wrong for a reader that knows nothing of us: h5py with the filters of hdf5plugin."""
    try:
        with h5py.File(path) as file:
            images = file[IMAGES]
            if len(images) != len(file[f"{EVENT}/image_id"]):
                yield f"{path}: not as many ids as images"
            images[len(images) - 1]
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        yield f"{path}: h5py cannot read it: {first_line(error)}"


def finished(results: Path, products: Path, reports: Path) -> list[str]:
    """What is wrong with the outputs of an analysis that ended; its results must let another go on with them."""
    problems = []
    try:
        open_results(results, append=True).close()
    except (OSError, ValueError, pa.ArrowException) as error:
        problems.append(f"{results}: no run can append to it: {first_line(error)}")
    try:
        with h5py.File(products / HDF5) as file:
            file.visititems(lambda _, each: each[()] if isinstance(each, h5py.Dataset) else None)
        for picture in products.glob("*.png"):
            with Image.open(picture) as opened:
                opened.load()
        for mask in products.glob("*.npy"):
            np.load(mask)
    except (OSError, RuntimeError, ValueError) as error:
        problems.append(f"{products}: cannot be read: {first_line(error)}")
    try:
        rows = list(csv.DictReader((reports / TABLE).read_text().splitlines()))
        pages = list(reports.glob("run-*.html"))
        if len(rows) != len(pages) or not pages:
            problems.append(f"{reports}: {len(rows)} rows in {TABLE} for {len(pages)} pages")
        problems += [f"{page}: not whole" for page in pages if not page.read_text().rstrip().endswith("</html>")]
    except (OSError, ValueError) as error:
        problems.append(f"{reports}: cannot be read: {error}")
    return problems
