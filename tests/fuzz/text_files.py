"""Small text files: spectra, lists of images, calibrations, settings, gzip; each refused by what its reader raises."""

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from analyzer.calibration import BadCalibration, load_calibration
from cxls.settings import BadSettings, _from_file
from sim_replay.beam import read_spectrum
from streamer.files import BadInput, named_files
from streamer.text_files import read_text
from tests.fuzz import said_well

MOST = 1 << 18
FOLDER = Path(tempfile.mkdtemp(prefix="cxls-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def one(data: bytes) -> None:
    kind, text = data[:1], data[1:]
    path = FOLDER / ("images.lst" if kind == b"l" else "file")
    path.write_bytes(text)
    try:
        if kind == b"s":
            read_spectrum(path)
        elif kind == b"l":
            assert all(images is None or images for _, images in named_files([str(path)]))
        elif kind == b"c":
            load_calibration(path, "bundle")
        elif kind == b"t":
            _from_file(path)
        else:
            assert len(read_text(path, "text", MOST, unzip=True)) <= MOST
    except (BadCalibration, BadSettings, BadInput) as error:
        said_well(error, 600)
    except (ValueError, zlib.error) as error:
        if kind in (b"l", b"c", b"t"):
            raise
        said_well(error, 600)


def seeds() -> Iterator[bytes]:
    yield b"s# photon energy, photons\n6900 1\n7000, 5 # middle\n7100 1\n"
    yield b"l# a list\na_master.h5\nb.h5 //0\nb.h5 //1\n\nc.cxi 3\n"
    yield b'c{"format":1,"bundle":"bundle"}'
    yield b'tlisten = "127.0.0.1:8080"\nmin_peaks = 3\n[a]\nb = [1, 2.0, {c = 1979-05-27}]\n'
    yield b"z" + gzip.compress(b"text" * 100)
    yield b"z" + gzip.compress(bytes(1 << 20))
    yield b"zplain"
    yield b"tmin_peaks = " + b"9" * 5000  # raised an error that was not expected
    yield b"l" + b"x" * 5000 + b".h5\nc.h5 //" + b"9" * 5000  # so did both lines
    yield b"la.h5" + b" " * 15_000 + b"b"  # took time by the square of its spaces
