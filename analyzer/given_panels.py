"""A geometry file that was given, as one for what is handed out: the same pixels at the same places, energy and
distance where the receiver finds them.

What the file states in numbers stays. What it takes from the image's metadata stands elsewhere in what we write: camera
length and photon energy are the header's there, by the place named; a shift becomes the number that the header said.
Masks in files of their own are left to the caller, who has them as pixels.
"""

from dataclasses import dataclass, replace

from analyzer.panels import BadGeometry, GivenGeometry, camera_length_of, shift_of
from streamer.geometry_file import DetectorGeometry, Mask, Panel
from streamer.messages import SeriesMetadata

_OF_THE_IMAGES = ("peak_list", "peak_list_type")
"""Keys of the whole detector that name places in the image's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the receiver finds a frame's pixels, with their axes, and with its unit what a header says: text."""

    data: str
    dims: tuple[str, ...]
    masks: tuple[Mask, ...]
    photon_energy: str
    camera_length: str
    extra: tuple[tuple[str, str], ...]


def handed_out(
    given: GivenGeometry, metadata: SeriesMetadata, shape: tuple[int, int], places: Places
) -> DetectorGeometry | None:
    """What a geometry file says of a series' images (ss, fs); ``None`` where it is not for them."""
    try:
        given.fit(metadata, shape)
        shifts = shift_of(given.name, given.detector, metadata)
    except BadGeometry:
        return None
    detector = given.detector
    first = _clen(detector, detector.panels[0])
    known = [camera_length_of(_clen(detector, panel), metadata) for panel in detector.panels]
    reference = known[0]
    panels = []
    for panel, length in zip(detector.panels, known, strict=True):
        beyond = 0.0 if reference is None or length is None or None in known else length - reference
        panels.append(_panel(panel, panel.coffset_m + beyond, metadata, places))
    stated = detector.stated_photon_energy_eV is not None
    of_header = None if metadata.photon_energy_eV is None else places.photon_energy
    return replace(
        detector,
        panels=tuple(panels),
        photon_energy_eV=detector.photon_energy_eV if stated else of_header,
        wavelength_angstrom=detector.wavelength_angstrom if stated else None,
        clen_m=first if isinstance(first, float) else places.camera_length if reference is not None else None,
        shift_x_m=shifts[0] or None,
        shift_y_m=shifts[1] or None,
        extra=(*(pair for pair in detector.extra if pair[0] not in _OF_THE_IMAGES), *places.extra),
    )


def _clen(detector: DetectorGeometry, panel: Panel) -> float | str | None:
    return panel.clen_m if panel.clen_m is not None else detector.clen_m


def _panel(panel: Panel, coffset_m: float, metadata: SeriesMetadata, places: Places) -> Panel:
    saturation = metadata.saturation_value
    unsaid = panel.adu_per_photon is None and panel.adu_per_eV is None
    return replace(
        panel,
        coffset_m=coffset_m,
        clen_m=None,
        data=places.data,
        dims=places.dims,
        masks=places.masks,
        adu_per_photon=1.0 if unsaid else panel.adu_per_photon,
        max_adu=float(saturation) if panel.max_adu is None and saturation is not None else panel.max_adu,
        extra=tuple(pair for pair in panel.extra if not pair[0].startswith("saturation_map")),
    )
