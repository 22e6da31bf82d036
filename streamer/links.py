"""What an HDF5 file may refer to: files in its own folder, and HDF5 alone.

A data file comes from somebody else. By its links it may name any other file of whoever reads it, and by external
storage the bytes of any file at all would be its pixels: a key, a password file, shown on a page and written into
hits. So what lies outside the folder of the file that was named is not read. A symbolic link in that folder is its
owner's word and is followed.
"""

import os
from pathlib import Path

import h5py


def outside(filename: str, of: Path) -> bool:
    """Whether a file that the file ``of`` names lies in another folder; a link to ``of`` may lie elsewhere itself."""
    homes = {os.path.dirname(os.path.abspath(of)), os.path.dirname(os.path.realpath(of))}
    return not any(os.path.commonpath([home, os.path.abspath(os.path.join(home, filename))]) == home for home in homes)


def foreign(dataset: h5py.Dataset, of: Path) -> str | None:
    """What a dataset, reached from the file ``of``, has from elsewhere; ``None`` where all is from its folder."""
    if dataset.external:
        return f"takes its bytes from {_shown(dataset.external[0][0])}"
    actual = dataset.file.filename
    if outside(os.path.abspath(actual), of):
        return f"is a link to {_shown(actual)}"
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            if source.file_name != "." and outside(source.file_name, of):
                return f"is put together from {_shown(source.file_name)}"
    return None


def _shown(name: object) -> str:
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return text if text.isprintable() else ascii(text)
