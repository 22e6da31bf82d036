"""CrystFEL geometries: taken, they are written and read back the same; as a flat detector they have a bounded mask."""

from collections.abc import Iterator

from streamer.flat_detector import flat_detector
from streamer.geometry_file import format_geometry, parse_geometry
from tests.fuzz import said_well

SIMPLE = """photon_energy = 7000 eV
clen = 0.15 m
res = 13333.3
p0/min_fs = 0
p0/max_fs = 50
p0/min_ss = 0
p0/max_ss = 36
p0/corner_x = -25.5
p0/corner_y = -18.5
p0/fs = +1.0x
p0/ss = +1.0y
"""

MANY = """; a comment
wavelength = 1.77 A
clen = /entry/instrument/detector/distance m
detector_shift_x = 0.1 mm
bandwidth = 0.01
adu_per_eV = 0.001
max_adu = 65535
data = /entry/data/data
dim0 = %
dim1 = ss
dim2 = fs
mask0_data = /entry/mask
mask_good = 0x0
mask_bad = 0xffff
peak_list = /peaks
rigid_group_a = p0,p1
rigid_group_collection_all = a
res = 13333.3
fs = +1.0x -0.001y
ss = 0.001x + y
no_index = 0
p0/min_fs = 0
p0/max_fs = 9
p0/min_ss = 0
p0/max_ss = 9
p0/corner_x = 0
p0/corner_y = 0
p1/min_fs = 10
p1/max_fs = 19
p1/min_ss = 0
p1/max_ss = 9
p1/corner_x = 12.5
p1/corner_y = 0
p1/coffset = 0.001
p1/flag_equal = 3
bad1/panel = p0
bad1/min_fs = 0
bad1/max_fs = 1
bad1/min_ss = 0
bad1/max_ss = 1
badbeam/min_x = -5
badbeam/max_x = 5
badbeam/min_y = -5
badbeam/max_y = 5
"""


def one(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        geometry = parse_geometry(text)
    except ValueError as error:
        said_well(error)
        return
    assert parse_geometry(format_geometry(geometry)) == geometry
    try:
        flat = flat_detector(geometry)
    except ValueError as error:
        said_well(error, 600)
        return
    if flat.shape[0] * flat.shape[1] <= 1 << 20:
        assert flat.mask.shape == flat.shape


def seeds() -> Iterator[bytes]:
    yield from (SIMPLE.encode(), MANY.encode(), b"", b"p0/min_fs = 0\n")
    yield (
        MANY.replace("fs = +1.0x -0.001y", "fs = x")
        .replace("ss = 0.001x + y", "ss = y")
        .replace("0.001\n", "0\n")
        .encode()
    )
    yield SIMPLE.replace("\n", "\r\n").encode()
    yield SIMPLE.replace("+1.0x", "1" * 15_000).encode()  # took time by the square of its digits
