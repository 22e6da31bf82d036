"""The paper's folders: `images/{peaks,labels,peaks_water_overlay,water}/NN/*.h5`, listed by what names say."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.dataset.paper import IMAGE_KINDS, PAPER, WATER, ImageId, ImageKind, file_name, parse_name
from training.dataset.problems import Problem

_FOLDERS: tuple[ImageKind | Literal["water"], ...] = (*IMAGE_KINDS, WATER)


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree; images is the folder that holds the four kinds."""

    images: Path

    def folder(self, kind: str, dataset: int) -> Path:
        """The folder of a kind and a data set."""
        return self.images / kind / PAPER[dataset].folder

    def path(self, kind: ImageKind, image: ImageId) -> Path:
        """Where an image is written."""
        return self.folder(kind, image.dataset) / file_name(kind, image)

    def water_path(self, dataset: int) -> Path:
        """Where the water of a data set is written."""
        return self.folder(WATER, dataset) / f"water{dataset:02d}.h5"


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in a tree: images by kind and id, water by data set, and what is wrong with names and places."""

    tree: Tree
    datasets: tuple[int, ...]
    images: dict[ImageKind, dict[ImageId, Path]]
    water: dict[int, list[Path]]
    problems: list[Problem] = field(default_factory=list)

    def target(self, kind: ImageKind, image: ImageId) -> Path:
        """Where an image is written: over the file that has its id, whatever its name, else under the usual one."""
        return self.images[kind].get(image, self.tree.path(kind, image))

    def ids(self, dataset: int, kind: ImageKind | None = None) -> list[ImageId]:
        """Ids of a data set in order: those of one kind of image, or of any."""
        kinds = IMAGE_KINDS if kind is None else (kind,)
        return sorted({image for k in kinds for image in self.images[k] if image.dataset == dataset})


def find_tree(path: Path) -> Tree | None:
    """The tree at a path, which may be its root, above `images`, or `images` itself; None when there is none."""
    for folder in (path, path / "images"):
        if any((folder / kind).is_dir() for kind in _FOLDERS):
            return Tree(folder)
    return None


def list_tree(tree: Tree, datasets: Iterable[int] | None = None) -> Listing:
    """List a tree, or these data sets of it, in order of names. Files that do not end in .h5 are none of its business.

    Unknown folders and names, files in a wrong folder and a second file for one id are problems of the listing; the
    first file, in order of names, keeps the id.
    """
    chosen = set(PAPER if datasets is None else datasets)
    listing = Listing(tree, (), {kind: {} for kind in IMAGE_KINDS}, {})
    seen: set[int] = set()
    for kind in _FOLDERS:
        for folder in _entries(tree.images / kind, listing.problems):
            if not _is_folder(folder, listing.problems):
                continue
            number = int(folder.name) if re.fullmatch(r"[0-9]{2}", folder.name) else 0
            if number not in PAPER:
                listing.problems.append(Problem(folder, "", "none of the nine data sets 01 to 09"))
            elif number in chosen:
                seen.add(number)
                files = [entry for entry in _entries(folder, listing.problems) if entry.suffix == ".h5"]
                if kind == "water":
                    _list_water(listing, number, files)
                else:
                    _list_images(listing, kind, number, files)
    return Listing(tree, tuple(sorted(seen)), listing.images, listing.water, listing.problems)


def _entries(folder: Path, problems: list[Problem]) -> list[Path]:
    """What a folder holds, hidden files left out, in order of names."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except (PermissionError, NotADirectoryError) as error:
        problems.append(Problem(folder, "", f"cannot be listed: {(error.strerror or str(error)).lower()}"))
        return []


def _is_folder(path: Path, problems: list[Problem]) -> bool:
    try:
        return path.is_dir()
    except PermissionError:
        problems.append(Problem(path, "", "cannot be listed: permission denied"))
        return False


def _list_images(listing: Listing, kind: ImageKind, number: int, files: list[Path]) -> None:
    found = listing.images[kind]
    for path in files:
        image = parse_name(kind, path.name)
        if image is None:
            known = file_name(kind, ImageId(number, False, 1))
            listing.problems.append(Problem(path, "", f"no name of an image in {kind}, such as {known}"))
        elif image.dataset != number:
            listing.problems.append(
                Problem(path, "", f"its name is of data set {image.dataset:02d}, its folder is {number:02d}")
            )
        elif image in found:
            listing.problems.append(Problem(path, "", f"a second file of image {image}, beside {found[image].name}"))
        else:
            found[image] = path


def _list_water(listing: Listing, number: int, files: list[Path]) -> None:
    listing.water[number] = []
    for path in files:
        if path.name == f"water{number:02d}.h5":
            listing.water[number].append(path)
        elif path.name.startswith("water"):
            listing.problems.append(Problem(path, "", f"a second water file; data set {number:02d} has one"))
        else:
            listing.problems.append(Problem(path, "", f"no name of a water file; it is water{number:02d}.h5"))
