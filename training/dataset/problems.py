"""What is wrong with a file, as a value: validators yield these, and all are printed at once."""

import os
from dataclasses import dataclass
from pathlib import Path

from training.dataset.opening import is_special


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong: the file (or folder), the dataset in it ('' for the file as a whole) and what it is."""

    file: Path
    dataset: str
    text: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.dataset}" if self.dataset else str(self.file)
        return f"{where}: {self.text}"


def cannot_open(path: Path, error: OSError) -> Problem:
    """Why HDF5 does not open a file, without the library's own words where we know better."""
    if isinstance(error, PermissionError):
        text = "cannot be opened: permission denied"
    elif path.is_dir():
        text = "a folder where a file belongs"
    elif not path.exists():
        text = "no such file"
    elif is_special(path):
        text = "not a regular file"
    elif path.stat().st_size == 0:
        text = "an empty file"
    elif "truncated file" in str(error):
        text = f"truncated: {os.path.getsize(path)} bytes are there, more were written"
    elif "signature not found" in str(error):
        text = "not an HDF5 file"
    else:
        text = f"cannot be opened: {error}"
    return Problem(path, "", text)
