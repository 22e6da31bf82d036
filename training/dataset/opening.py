"""Opening what a path names without waiting for ever: a pipe opened for reading waits for its writer."""

from pathlib import Path

import h5py

from streamer.links import Linked


def is_special(path: Path) -> bool:
    """Whether a pipe, a socket or a device is there, which no data set is kept in."""
    return path.exists() and not path.is_file() and not path.is_dir()


def require_ordinary(path: Path) -> None:
    """Raises OSError for a pipe, a socket or a device."""
    if is_special(path):
        raise OSError(f"{path}: not a regular file")


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading. Raises OSError; `problems.cannot_open` says it in our words."""
    require_ordinary(path)
    return h5py.File(path, "r")


def open_linked(path: Path) -> Linked:
    """As `open_hdf5`, and what the file links to comes from its folder or not at all (`streamer.links`)."""
    return Linked(open_hdf5(path), path)
