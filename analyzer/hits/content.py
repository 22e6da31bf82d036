"""What is in a file of hits.

/entry                                NXmx, as the Eiger's file writer names things (`streamer.nxmx`): DIALS, and us
/entry/data/data                      (N, ss, fs), one chunk an image, never packed anew (`packing`)
/entry/event/...                      (N,): which frame it is, when, what was said of it; `record` has all as JSON
/entry_1/result_1/nPeaks              (N,) int32; peakXPosRaw (fs), peakYPosRaw (ss), peakTotalIntensity, peakSNR,
                                      peakSaturated (N, P): CrystFEL's --peaks=cxi. Pixel indices
/entry_1/data_1/data, instrument_1    the same images and distances by their CXI names
"""

from collections.abc import Callable
from typing import Any

import h5py
import msgspec
import numpy as np

from analyzer.coordinates import Convention, in_convention
from analyzer.hits.entries import read_series, result_of
from analyzer.hits.geometry import geometry_text
from analyzer.hits.grouping import Group
from analyzer.hits.guarded_file import GuardedFile
from analyzer.hits.journal import read_body
from analyzer.hits.packing import chunk_of, dataset_options
from analyzer.hits.places import EVENT, GEOMETRY, PEAKS
from analyzer.hits.tables import INTEGERS, NUMBERS, PEAK_DATASETS, TEXTS, integers_of, numbers_of, peaks_of
from streamer import nxmx
from streamer.files import CHANNEL
from streamer.messages import SeriesMetadata

FORMAT = "cxls hits 1"
_JOULE_PER_EV = 1.602176634e-19


def fill(journal_fd: int, file: h5py.File, group: Group, output: GuardedFile, after_image: Callable[[], None]) -> None:
    hits, shape = group.hits, group.shape
    metadata, geometry = SeriesMetadata(channels=(CHANNEL,)), None
    if group.series is not None:
        metadata, geometry = read_series(group.series.head, read_body(journal_fd, group.series))
    file.attrs["creator"], file.attrs["format"] = "cxls analyze", FORMAT
    file.attrs[GEOMETRY] = geometry_text(metadata, shape) if geometry is None else geometry
    nxmx.write_instrument(
        file, metadata, images=len(hits), shape=shape, dtype=group.dtype, mask=metadata.masks.get(CHANNEL)
    )
    data = nxmx.nexus_group(file["entry"], "data", "NXdata")
    data.attrs["signal"] = "data"
    images = data.create_dataset(
        "data", (len(hits), *shape), group.dtype, chunks=(1, *shape), **dataset_options(group.packed_with)
    )
    for number, hit in enumerate(hits):
        images.id.write_direct_chunk((number, 0, 0), chunk_of(hit.image(read_body(journal_fd, hit.body))))
        output.check()
        after_image()
    records = [result_of(hit.entry) for hit in hits]
    _write_events(file.create_group(EVENT), group, records)
    _write_peaks(file.create_group(PEAKS), group, records)
    _write_cxi(file, metadata)


def _write_events(event: h5py.Group, group: Group, records: list[dict[str, Any]]) -> None:
    text = h5py.string_dtype()
    integers, numbers = list(map(integers_of, records)), list(map(numbers_of, records))
    for name in INTEGERS:
        event[name] = np.array([values[name] for values in integers])
    for name in NUMBERS:
        event[name] = np.array([values[name] for values in numbers])
    event["indexable"] = np.array([bool(record.get("indexable")) for record in records])
    for name in TEXTS:
        event.create_dataset(name, data=[str(record.get(name) or "") for record in records], dtype=text)
    tags = [record.get("tags") for record in records]
    event.create_dataset("tags", data=["" if tag is None else _json(tag) for tag in tags], dtype=text)
    event.create_dataset("record", data=[bytes(hit.entry.record).decode() for hit in group.hits], dtype=text)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _write_peaks(result: h5py.Group, group: Group, records: list[dict[str, Any]]) -> None:
    """CrystFEL takes a row's first nPeaks; the rest is 0."""
    result["nPeaks"] = np.array([hit.peaks for hit in group.hits], np.int32)
    table = np.zeros((len(records), max(1, *(hit.peaks for hit in group.hits)), len(PEAK_DATASETS)))
    for rows, record in zip(table, records, strict=True):
        peaks = peaks_of(record)
        peaks[:, :2] = in_convention(peaks[:, :2], Convention.CRYSTFEL_PEAKS)
        rows[: len(peaks)] = peaks
    for column, (name, _, dtype) in enumerate(PEAK_DATASETS):
        result[name] = table[:, :, column].astype(dtype)


def _write_cxi(file: h5py.File, metadata: SeriesMetadata) -> None:
    file["cxi_version"] = 150
    file["entry_1/data_1/data"] = file["entry/data/data"]
    detector = file.create_group("entry_1/instrument_1/detector_1")
    detector["data"] = file["entry/data/data"]
    for name, value in (
        ("distance", metadata.camera_length_m),
        ("x_pixel_size", metadata.pixel_size_x_m),
        ("y_pixel_size", metadata.pixel_size_y_m),
    ):
        if value is not None:
            detector[name] = value
    if metadata.masks:
        detector["mask"] = file[nxmx.PIXEL_MASK]
    if metadata.photon_energy_eV is not None:
        file["entry_1/instrument_1/source_1/energy"] = metadata.photon_energy_eV * _JOULE_PER_EV
