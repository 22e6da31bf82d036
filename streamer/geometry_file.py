"""CrystFEL geometry files (.geom), as versions 0.10 to 0.12 read them: in and out.

A file is lines of ``key = value``; ``;`` starts a comment. A key with a slash belongs to a panel (``p0/corner_x``) or,
where the name starts with ``bad``, to a bad region; one without is about the whole detector or the default for panels
that are named for the first time further down. A key that comes twice counts the last time.

Panels are rectangles of the image array, bounds inclusive. ``corner_x, corner_y`` say in pixels where the outer corner
of a panel's first pixel stands as seen from the beam, ``fs`` and ``ss`` where one pixel's step leads; x, y, z are the
laboratory's axes, z along the beam. Lengths here are metres, photon energies eV, wavelengths angstrom; a quantity that
the file takes from the image's metadata is kept as text, ``"/entry/instrument/detector/distance m"``.
`streamer.flat_detector` makes an image's shape, beam centre and mask of it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from streamer.bounds import CAMERA_LENGTH_M, ENERGY_EV, PIXEL_SIZE_M, WAVELENGTH_A
from streamer.text_files import MAX_TEXT_FILE_BYTES, read_text

MAX_BYTES = MAX_TEXT_FILE_BYTES
"""A detector of 256 panels takes 0.1 MB."""

MAX_PANELS = 4096
MAX_BAD_REGIONS = 4096
MAX_EXTRA_KEYS = 256
"""Keys that mean nothing here, kept for each panel."""

MAX_DIMENSIONS = 8

HC_EV_ANGSTROM = 12398.4198

Vector = tuple[float, float, float]
Quantity = float | str | None
"""A number, the place of one in the image's metadata, or not said."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A bad-pixel mask in a file: the dataset, and the bits that must all be set or of which none may be."""

    number: int
    data: str | None = None
    file: str | None = None
    good_bits: int = 0
    bad_bits: int = 0


@dataclass(frozen=True, slots=True)
class Panel:
    """One rectangle of the image array, bounds inclusive, and where it stands (see the module).

    res_per_m is pixels a metre; coffset_m is added to the camera length; clen_m replaces the detector's for this panel
    (files of CrystFEL before 0.10). dims says what each axis of the dataset is: 'ss', 'fs', '%' (the frame) or a fixed
    index. extra are keys that mean nothing here, as text.
    """

    name: str
    min_fs: int
    max_fs: int
    min_ss: int
    max_ss: int
    corner_x: float
    corner_y: float
    fs: Vector
    ss: Vector
    res_per_m: float
    coffset_m: float = 0.0
    clen_m: Quantity = None
    data: str = "/data/data"
    dims: tuple[str, ...] = ("ss", "fs")
    masks: tuple[Mask, ...] = ()
    adu_per_photon: float | None = None
    adu_per_eV: float | None = None
    max_adu: float | None = None
    no_index: bool = False
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def pixel_size_m(self) -> float:
        """The pixel's edge."""
        return 1.0 / self.res_per_m

    @property
    def shape(self) -> tuple[int, int]:
        """(ss, fs) in pixels."""
        return self.max_ss - self.min_ss + 1, self.max_fs - self.min_fs + 1


@dataclass(frozen=True, slots=True)
class BadPixels:
    """A bad rectangle of the image array within one panel, bounds inclusive."""

    name: str
    panel: str
    min_fs: int
    max_fs: int
    min_ss: int
    max_ss: int


@dataclass(frozen=True, slots=True)
class BadArea:
    """A bad rectangle of the laboratory in pixels from the beam; a pixel is bad when its first corner lies inside."""

    name: str
    min_x: float
    max_x: float
    min_y: float
    max_y: float


@dataclass(frozen=True, slots=True)
class DetectorGeometry:
    """What a geometry file says. At most one of photon_energy_eV and wavelength_angstrom is there.

    extra are other keys of the whole detector, groups the panel groups, both as text.
    """

    panels: tuple[Panel, ...]
    photon_energy_eV: Quantity = None
    wavelength_angstrom: Quantity = None
    clen_m: Quantity = None
    bandwidth: float | None = None
    shift_x_m: Quantity = None
    shift_y_m: Quantity = None
    bad_pixels: tuple[BadPixels, ...] = ()
    bad_areas: tuple[BadArea, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()
    groups: tuple[tuple[str, str], ...] = ()

    @property
    def stated_photon_energy_eV(self) -> float | None:
        """The photon energy where the file gives it, or the wavelength, as a number."""
        if isinstance(self.photon_energy_eV, float):
            return self.photon_energy_eV
        if isinstance(self.wavelength_angstrom, float):
            return HC_EV_ANGSTROM / self.wavelength_angstrom
        return None


def read_geometry(path: str | os.PathLike[str]) -> DetectorGeometry:
    """Read a geometry file. Raises OSError, or ValueError with one line: file, line and what is wrong."""
    raw = read_text(path, "CrystFEL geometry file (.geom)", MAX_BYTES)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; give a CrystFEL geometry file") from None
    if "\0" in text:  # where CrystFEL's lines end, and HDF5's texts
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}, line {line}: has a NUL character; give a CrystFEL geometry file")
    return parse_geometry(text, str(path))


def parse_geometry(text: str, name: str = "geometry") -> DetectorGeometry:
    """The geometry in a file's text; name stands for the file in messages. Raises ValueError with one line."""
    return _Parser(name).parse(text)


def write_geometry(path: str | os.PathLike[str], geometry: DetectorGeometry) -> None:
    """Write a geometry file that `read_geometry` reads back as exactly this geometry; see `format_geometry`."""
    Path(path).write_text(format_geometry(geometry), encoding="utf-8")


def format_geometry(geometry: DetectorGeometry) -> str:
    """The text of a geometry file. What all panels share is stated once, above them.

    Raises ValueError when the geometry holds what such a file cannot say, such as a panel's name with a slash.
    """
    lines: list[str] = []

    def put(prefix: str, pairs: Iterable[tuple[str, str]]) -> None:
        lines.extend(f"{prefix}{key} = {value}" for key, value in pairs)

    put("", _global_lines(geometry))
    panels = geometry.panels
    own: list[list[tuple[str, str]]] = [_place_lines(panel) for panel in panels]
    for group in _PANEL_LINES:
        each = [group(panel) for panel in panels]
        if each and all(pairs == each[0] for pairs in each):
            put("", each[0])
        else:
            for rows, pairs in zip(own, each, strict=True):
                rows.extend(pairs)
    for panel, rows in zip(panels, own, strict=True):
        lines.append("")
        put(f"{panel.name}/", [*rows, *panel.extra])
    regions: list[BadPixels | BadArea] = [*geometry.bad_pixels, *geometry.bad_areas]
    for bad in regions:
        lines.append("")
        put(f"{bad.name}/", ((f.name, _plain(getattr(bad, f.name))) for f in fields(bad) if f.name != "name"))
    if geometry.groups:
        lines.append("")
        put("", geometry.groups)
    text = "\n".join(lines) + "\n"
    if parse_geometry(text, "geometry to write") != geometry:
        raise ValueError("geometry to write: holds a name or a value that a geometry file cannot express")
    return text


def _plain(value: int | float | str) -> str:
    return value if isinstance(value, str) else repr(value)


def _with_unit(value: float | str, unit: str) -> str:
    return value if isinstance(value, str) else f"{value!r} {unit}"


def _global_lines(geometry: DetectorGeometry) -> list[tuple[str, str]]:
    found = [
        ("photon_energy", geometry.photon_energy_eV, "eV"),
        ("wavelength", geometry.wavelength_angstrom, "A"),
        ("clen", geometry.clen_m, "m"),
        ("detector_shift_x", geometry.shift_x_m, "m"),
        ("detector_shift_y", geometry.shift_y_m, "m"),
    ]
    lines = [(key, _with_unit(value, unit)) for key, value, unit in found if value is not None]
    if geometry.bandwidth is not None:
        lines.append(("bandwidth", repr(geometry.bandwidth)))
    return [*lines, *geometry.extra]


def _place_lines(panel: Panel) -> list[tuple[str, str]]:
    lines = [(key, repr(getattr(panel, key))) for key in ("min_fs", "max_fs", "min_ss", "max_ss")]
    lines += [("corner_x", repr(panel.corner_x)), ("corner_y", repr(panel.corner_y))]
    if panel.clen_m is not None:
        lines.append(("clen", _with_unit(panel.clen_m, "m")))
    return lines


def _direction_text(vector: Vector) -> str:
    """+1.0x -0.002y: without exponents, which CrystFEL does not read here."""
    return " ".join(
        f"{Decimal(repr(value)):+f}{axis}" for value, axis in zip(vector, "xyz", strict=True) if value or axis == "x"
    )


def _mask_lines(panel: Panel) -> list[tuple[str, str]]:
    lines = []
    for mask in panel.masks:
        # Mask 0 by its old names, which every version reads.
        start, good, bad = (f"mask{mask.number}_", "goodbits", "badbits") if mask.number else ("mask_", "good", "bad")
        if mask.data is not None:
            lines.append((f"{start}data" if mask.number else "mask", mask.data))
        if mask.file is not None:
            lines.append((f"{start}file", mask.file))
        lines.append((f"{start}{good}", f"{mask.good_bits:#x}"))
        lines.append((f"{start}{bad}", f"{mask.bad_bits:#x}"))
    return lines


def _optional(key: str) -> Callable[[Panel], list[tuple[str, str]]]:
    def lines(panel: Panel) -> list[tuple[str, str]]:
        value = getattr(panel, key)
        return [] if value is None else [(key, repr(value))]

    return lines


_PANEL_LINES: tuple[Callable[[Panel], list[tuple[str, str]]], ...] = (
    lambda panel: [("res", repr(panel.res_per_m))],
    lambda panel: [("coffset", repr(panel.coffset_m))] if panel.coffset_m else [],
    lambda panel: [("data", panel.data)],
    lambda panel: [(f"dim{number}", value) for number, value in enumerate(panel.dims)],
    _mask_lines,
    _optional("adu_per_photon"),
    _optional("adu_per_eV"),
    _optional("max_adu"),
    lambda panel: [("no_index", "1")] if panel.no_index else [],
    lambda panel: [("fs", _direction_text(panel.fs))],
    lambda panel: [("ss", _direction_text(panel.ss))],
)


class _Wrong(ValueError):
    """What is wrong with a value; the parser adds where it stands."""


def _number(value: str) -> float:
    # Python's float also reads 1_000.
    if "_" in value or not (math.isfinite(number := _float(value))):
        raise _Wrong("is no finite number")
    return number


def _float(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def _above_0(value: str) -> float:
    number = _number(value)
    if number <= 0.0:
        raise _Wrong("must be above 0")
    return number


def _not_below_0(value: str) -> float:
    number = _number(value)
    if number < 0.0:
        raise _Wrong("must be 0 or more")
    return number


def _resolution(value: str) -> float:
    number = _above_0(value)
    if not PIXEL_SIZE_M[0] <= 1.0 / number <= PIXEL_SIZE_M[1]:
        raise _Wrong("must be pixels a metre, as 13333.3 for pixels of 75 um")
    return number


def _index(value: str) -> int:
    number = _number(value)
    if number != int(number) or not 0 <= number < 1 << 31:
        raise _Wrong("must be a pixel index, a whole number of 0 or more")
    return int(number)


def _bits(value: str) -> int:
    try:
        number = int(value, 16 if value.lower().startswith("0x") else 10)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64 or "_" in value:
        raise _Wrong("must be bits, as 0xffff")
    return number


def _yes(value: str) -> bool:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return _number(value) != 0.0


def _words(value: str) -> str:
    if not value:
        raise _Wrong("has no value")
    return value


# Without a way back: many digits and no axis would take time by the square of their number.
_TERM = re.compile(r"([+-]?)(\d++\.?+\d*+|\.\d++)?+([xyz])")


def _direction(value: str) -> Vector:
    """+1.0x -0.002y, x, -y + 0.1z, as a vector; a term that comes twice is added up, as in CrystFEL."""
    terms = "".join(value.split())
    total = dict.fromkeys("xyz", 0.0)
    place = 0
    while place < len(terms):
        match = _TERM.match(terms, place)
        if match is None or (place and not match[1]):
            raise _Wrong("must be a direction of x, y and z, as '+1.0x -0.002y'")
        total[match[3]] += float(f"{match[1]}{match[2] or '1'}")
        place = match.end()
    vector = (total["x"] + 0.0, total["y"] + 0.0, total["z"] + 0.0)  # no negative zeros
    if not all(map(math.isfinite, vector)) or not any(vector):
        raise _Wrong("must be a direction of x, y and z, as '+1.0x -0.002y'")
    return vector


def _quantity(units: dict[str, float], allowed: tuple[float, float], example: str) -> Callable[[str], float | str]:
    """A reader of a number with a unit, or of a place in the metadata with one; '' in units is 'no unit'."""

    def read(value: str) -> float | str:
        words = value.split()
        if not words or len(words) > 2 or (len(words) == 2 and words[1] not in units):
            raise _Wrong(f"must be a number or a place in the metadata with its unit, as '{example}'")
        starts = words[0][0]
        if not (starts.isdigit() or starts in "+-." or words[0].lower() in ("nan", "inf", "infinity")):
            return " ".join(words)
        unit = words[1] if len(words) == 2 else ""
        if unit not in units:
            raise _Wrong(f"needs its unit, as '{example}'")
        number = _number(words[0]) * units[unit]
        if not allowed[0] <= number <= allowed[1]:
            raise _Wrong(f"is outside what can be, as '{example}'")
        return number

    return read


_LENGTH_UNITS = {"": 1.0, "m": 1.0, "mm": 1e-3}
_camera_length = _quantity(_LENGTH_UNITS, CAMERA_LENGTH_M, "0.15 m")
_shift = _quantity(_LENGTH_UNITS, (-10.0, 10.0), "0.1 mm")
_photon_energy = _quantity({"": 1.0, "eV": 1.0, "keV": 1e3}, ENERGY_EV, "7000 eV")
_wavelength = _quantity({"A": 1.0, "m": 1e10}, WAVELENGTH_A, "1.77 A")

_PANEL_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    **{key: (key, _index) for key in ("min_fs", "max_fs", "min_ss", "max_ss")},
    "corner_x": ("corner_x", _number),
    "corner_y": ("corner_y", _number),
    "fs": ("fs", _direction),
    "ss": ("ss", _direction),
    "res": ("res_per_m", _resolution),
    "coffset": ("coffset_m", _number),
    "clen": ("clen_m", _camera_length),
    "data": ("data", _words),
    "adu_per_photon": ("adu_per_photon", _above_0),
    "adu_per_eV": ("adu_per_eV", _above_0),
    "max_adu": ("max_adu", _number),
    "no_index": ("no_index", _yes),
}
_REQUIRED = {
    "min_fs": "INDEX",
    "max_fs": "INDEX",
    "min_ss": "INDEX",
    "max_ss": "INDEX",
    "corner_x": "PIXELS",
    "corner_y": "PIXELS",
    "fs": "+1.0x",
    "ss": "+1.0y",
    "res_per_m": "PIXELS_PER_METRE",
}
_INSTEAD = {"adu_per_photon": "adu_per_eV", "adu_per_eV": "adu_per_photon"}
_GLOBAL_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "photon_energy": ("photon_energy_eV", _photon_energy),
    "wavelength": ("wavelength_angstrom", _wavelength),
    "clen": ("clen_m", _camera_length),
    "bandwidth": ("bandwidth", _not_below_0),
    "detector_shift_x": ("shift_x_m", _shift),
    "detector_shift_y": ("shift_y_m", _shift),
}
_GLOBAL_INSTEAD = {"photon_energy_eV": "wavelength_angstrom", "wavelength_angstrom": "photon_energy_eV"}
_GLOBAL_EXTRA = {"electron_voltage", "peak_list", "peak_list_type"}
_MASK_KEY = re.compile(r"mask([0-7])_(data|file|goodbits|badbits)")
_MASK_SHORT = {
    "mask": "mask0_data",
    "mask_file": "mask0_file",
    "mask_good": "mask0_goodbits",
    "mask_bad": "mask0_badbits",
}
_MASK_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "data": ("data", _words),
    "file": ("file", _words),
    "goodbits": ("good_bits", _bits),
    "badbits": ("bad_bits", _bits),
}
_PIXEL_BOUNDS = ("min_fs", "max_fs", "min_ss", "max_ss")
_AREA_BOUNDS = ("min_x", "max_x", "min_y", "max_y")


class _Parser:
    """Reads one file; drafts of panels and regions are dictionaries until all lines are read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._globals: dict[str, Any] = {}
        self._extra: dict[str, str] = {}
        self._groups: dict[str, str] = {}
        self._defaults: dict[str, Any] = {"dims": {0: "ss", 1: "fs"}, "masks": {}, "extra": ()}
        self._unused_default = 0  # its line, until a panel comes that takes it
        self._panels: dict[str, dict[str, Any]] = {}
        self._bad: dict[str, dict[str, Any]] = {}
        self._first_line: dict[str, int] = {}

    def _error(self, line: int, what: str) -> ValueError:
        return ValueError(f"{self._name}, line {line}: {what}")

    def parse(self, text: str) -> DetectorGeometry:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for number, whole in enumerate(lines, start=1):
            line = whole.split(";", 1)[0].strip()
            if not line:
                continue
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals or not key:
                raise self._error(number, f"expected 'key = value', found '{short(line)}'")
            try:
                self._take(number, key, value)
            except _Wrong as wrong:
                raise self._error(number, f"{short(key)} {wrong}, not '{short(value)}'") from None
        if not self._panels:
            raise ValueError(f"{self._name}: describes no panel; add lines such as 'p0/min_fs = 0'")
        if self._unused_default:
            raise self._error(self._unused_default, "a default after the last panel has no effect; move it above them")
        panels = tuple(self._panel(name, draft) for name, draft in self._panels.items())
        by_name = {panel.name: panel for panel in panels}
        pixels, areas = [], []
        for name, draft in self._bad.items():
            if "is_pixels" not in draft:
                raise self._error(self._first_line[name], f"{short(name)} has no bounds; add min_fs ... or min_x ...")
            if draft.pop("is_pixels"):
                pixels.append(self._bad_pixels(name, draft, by_name))
            else:
                areas.append(self._bad_area(name, draft))
        return DetectorGeometry(
            panels,
            bad_pixels=tuple(pixels),
            bad_areas=tuple(areas),
            extra=tuple(self._extra.items()),
            groups=tuple(self._groups.items()),
            **self._globals,
        )

    def _take(self, number: int, key: str, value: str) -> None:
        name, slash, own = key.partition("/")
        if not slash:
            self._take_global(number, key, value)
        elif not name or not own:
            raise self._error(number, f"expected 'panel/key = value', found '{short(key)}'")
        elif name.startswith("bad"):
            if name not in self._bad and len(self._bad) == MAX_BAD_REGIONS:
                raise self._error(number, f"more than {MAX_BAD_REGIONS} bad regions")
            self._first_line.setdefault(name, number)
            self._take_bad(self._bad.setdefault(name, {}), own, value)
        else:
            if name not in self._panels:
                if len(self._panels) == MAX_PANELS:
                    raise self._error(number, f"more than {MAX_PANELS} panels")
                self._panels[name] = dict(self._defaults)
                self._first_line[name] = number
                self._unused_default = 0
            self._take_panel(self._panels[name], own, value)

    def _take_global(self, number: int, key: str, value: str) -> None:
        if key in _GLOBAL_KEYS:
            field, read = _GLOBAL_KEYS[key]
            self._globals[field] = read(value)
            self._globals.pop(_GLOBAL_INSTEAD.get(field, ""), None)
        elif key.startswith(("rigid_group", "group_")):
            self._groups[key] = value
        elif key in _GLOBAL_EXTRA:
            self._extra[key] = value
        else:
            self._take_panel(self._defaults, key, value)
            self._unused_default = number

    def _take_panel(self, draft: dict[str, Any], key: str, value: str) -> None:
        key = _MASK_SHORT.get(key, key)
        if key in _PANEL_KEYS:
            field, read = _PANEL_KEYS[key]
            draft[field] = read(value)
            draft.pop(_INSTEAD.get(field, ""), None)
        elif match := _MASK_KEY.fullmatch(key):
            field, read = _MASK_FIELDS[match[2]]
            masks = dict(draft["masks"])  # panels share their defaults until they differ
            masks[int(match[1])] = {**masks.get(int(match[1]), {}), field: read(value)}
            draft["masks"] = masks
        elif key.startswith("dim"):
            axis = key[3:]
            if not (axis.isdecimal() and int(axis) < MAX_DIMENSIONS):
                raise _Wrong(f"must be dim0 to dim{MAX_DIMENSIONS - 1}")
            if value not in ("ss", "fs", "%") and not (value.isascii() and value.isdecimal()):
                raise _Wrong("must be ss, fs, % or an index")
            draft["dims"] = {**draft["dims"], int(axis): value}
        else:
            # flag_equal and its like add up; of other keys the last counts
            kept = tuple(pair for pair in draft["extra"] if key.startswith("flag_") or pair[0] != key)
            if len(kept) == MAX_EXTRA_KEYS:
                raise _Wrong(f"is one of more than {MAX_EXTRA_KEYS} keys that mean nothing here")
            draft["extra"] = (*kept, (key, value))

    def _take_bad(self, draft: dict[str, Any], key: str, value: str) -> None:
        if key == "panel":
            draft["panel"] = _words(value)
            return
        if key not in (*_PIXEL_BOUNDS, *_AREA_BOUNDS):
            raise _Wrong("is not a key of a bad region (min_fs, max_x, panel ...)")
        is_pixels = key in _PIXEL_BOUNDS
        if draft.setdefault("is_pixels", is_pixels) != is_pixels:
            raise _Wrong("mixes x and y with fs and ss in one bad region")
        draft[key] = _index(value) if is_pixels else _number(value)

    def _bounds(self, name: str, draft: dict[str, Any], keys: tuple[str, ...]) -> None:
        line = self._first_line[name]
        for key in keys:
            if key not in draft:
                raise self._error(line, f"{short(name)} has no {key}; add '{short(name)}/{key} = ...'")
        for low, high in ((keys[0], keys[1]), (keys[2], keys[3])):
            if draft[low] > draft[high]:
                raise self._error(line, f"{short(name)} has {low} {draft[low]} above {high} {draft[high]}")

    def _panel(self, name: str, draft: dict[str, Any]) -> Panel:
        line = self._first_line[name]
        for field, example in _REQUIRED.items():
            if field not in draft:
                key = "res" if field == "res_per_m" else field
                raise self._error(line, f"panel {short(name)} has no {key}; add '{short(name)}/{key} = {example}'")
        self._bounds(name, draft, _PIXEL_BOUNDS)
        dims = draft["dims"]
        order = tuple(dims.get(axis) for axis in range(max(dims) + 1))
        if None in order:
            raise self._error(line, f"panel {short(name)} has no dim{order.index(None)}, but a later one")
        if order.count("ss") != 1 or order.count("fs") != 1:
            raise self._error(line, f"panel {short(name)} must have one dim that is ss and one that is fs")
        if order.index("ss") > order.index("fs"):
            raise self._error(line, f"panel {short(name)} has fs before ss; CrystFEL reads only ss before fs")
        masks = []
        for number, parts in sorted(draft["masks"].items()):
            mask = Mask(number, **parts)
            if mask.data is None and (mask.file is not None or mask.good_bits or mask.bad_bits):
                raise self._error(line, f"panel {short(name)} has no mask{number}_data, the place of its mask")
            masks.append(mask)
        return Panel(name, **{**draft, "dims": order, "masks": tuple(masks)})

    def _bad_pixels(self, name: str, draft: dict[str, Any], panels: dict[str, Panel]) -> BadPixels:
        line = self._first_line[name]
        self._bounds(name, draft, _PIXEL_BOUNDS)
        if "panel" not in draft and len(panels) == 1:
            draft["panel"] = next(iter(panels))
        if "panel" not in draft:
            raise self._error(line, f"{short(name)} names no panel; add '{short(name)}/panel = NAME'")
        panel = panels.get(draft["panel"])
        if panel is None:
            raise self._error(line, f"{short(name)} is in panel {short(draft['panel'])}, which there is not")
        found = BadPixels(name, **draft)
        if (
            found.min_fs < panel.min_fs
            or found.max_fs > panel.max_fs
            or found.min_ss < panel.min_ss
            or found.max_ss > panel.max_ss
        ):
            raise self._error(line, f"{short(name)} reaches beyond its panel {short(panel.name)}")
        return found

    def _bad_area(self, name: str, draft: dict[str, Any]) -> BadArea:
        self._bounds(name, draft, _AREA_BOUNDS)
        draft.pop("panel", None)  # CrystFEL takes it and uses it for nothing
        return BadArea(name, **draft)


def short(text: str) -> str:
    """A text from a file as a message shows it: at most 60 characters, what cannot be printed as a space."""
    text = text[:57] + "..." if len(text) > 60 else text
    return "".join(c if c.isprintable() else " " for c in text)
