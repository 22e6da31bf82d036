"""What the paths of a command name: trees of the paper's kind, series, single images, splits."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from streamer.files import BadInput
from training.dataset.tree import Tree, find_tree

_DATA_FILE = re.compile(r"(.*)_data_\d+\.h5")


def find_sources(paths: Sequence[str]) -> list[Tree | Path]:
    """Trees and files that paths, globs and folders name, each once, in order; no file is opened.

    A folder is a tree, or holds `*_master.h5`. Data files whose master is there come with it. Raises BadInput for a
    path that is not there, a glob without a match, a folder of neither kind.
    """
    found: list[Tree | Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            tree = find_tree(path)
            masters = sorted(path.glob("*_master.h5"))
            if tree is None and not masters:
                raise BadInput(f"{path}: neither a tree (images/peaks/01/...) nor a folder of *_master.h5 files")
            found += [tree] if tree is not None else masters
        elif path.exists():
            found.append(path)
        elif glob.has_magic(text):
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))
            if not matches:
                raise BadInput(f"{text}: no file matches; check the folder and the pattern")
            found += _without_parts(matches)
        else:
            raise BadInput(f"{text}: no such file or folder")
    return list(dict.fromkeys(found))


def _without_parts(matches: Sequence[Path]) -> list[Path]:
    names = {str(match) for match in matches}
    return [
        match
        for match in matches
        if not ((part := _DATA_FILE.fullmatch(str(match))) and f"{part[1]}_master.h5" in names)
    ]
