"""The setting ``geometry``: a CrystFEL geometry file, refused at the start where it cannot be the right one."""

from pathlib import Path

from analyzer.panels import BadGeometry, GivenGeometry, open_geometry
from cxls.settings import BadSettings
from streamer.messages import SeriesMetadata
from streamer.validity import Validity


def read_given_geometry(path: Path | None, mask: Validity | None) -> GivenGeometry | None:
    """The geometry file given. Raises ``BadSettings``, also for one that a mask given does not fit."""
    if path is None:
        return None
    try:
        given = open_geometry(path)
    except BadGeometry as error:
        raise BadSettings(f"--geometry {error}") from None
    if mask is not None and mask.valid.shape != given.shape:
        raise BadSettings(
            f"--mask {mask.name}: a mask of {mask.valid.shape}, the geometry {path} covers {given.shape}; "
            "give one of its shape"
        )
    return given


def check_geometry(given: GivenGeometry | None, metadata: SeriesMetadata) -> None:
    """Raises ``BadSettings`` where a geometry file is not for images of this kind."""
    if given is None or metadata.shape is None:
        return
    try:
        given.fit(metadata, metadata.shape)
    except BadGeometry as error:
        raise BadSettings(f"--geometry {error}") from None
