"""Recorded series as they lie in files: one file, or a run of alike single-image files."""

from collections.abc import Sequence

from streamer.files import BadInput, FileSeries, Member, expand, grouped
from streamer.messages import ImageData


class Recording:
    """One series, image by image; ``first`` is the first of its files, open."""

    def __init__(self, first: FileSeries, members: Sequence[Member]) -> None:
        self._members = members
        self._open = first
        self._open_at = 0
        self.path = first.path
        self.problems = tuple(first.problems)
        self.metadata = first.metadata
        if len(members) > 1:
            self.metadata = first.metadata.with_changes(number_of_images=len(members))
        self._images = len(first) if len(members) == 1 else len(members)

    def __len__(self) -> int:
        return self._images

    def image(self, position: int) -> ImageData:
        """The image at ``position`` (0-based), packed as in the file. Raises ``OSError`` when unreadable."""
        if len(self._members) == 1:
            return self._open.image(position)
        if position != self._open_at:
            self._open.close()
            self._open, self._open_at = FileSeries(*self._members[position]), position
        return self._open.image(0)

    def first_image(self) -> ImageData | None:
        """``None`` when unreadable; that is counted when its turn comes."""
        try:
            return self.image(0)
        except (OSError, RuntimeError, BadInput):
            return None

    def packing(self) -> str:
        """``bslz4``, ``lz4`` or ``none``: what the first image's bytes are."""
        image = self.first_image()
        algorithm = "bslz4" if image is None else str(image.algorithm)
        return "none" if algorithm == "raw" else "lz4" if algorithm.startswith("lz4") else algorithm

    def close(self) -> None:
        self._open.close()


def open_recordings(inputs: Sequence[str]) -> list[Recording]:
    """The series that files, globs and lists name, in order. Raises ``BadInput``."""
    found: list[Recording] = []
    try:
        for first, members in grouped(expand(inputs)):
            found.append(Recording(first, members))
            if not len(first):
                raise BadInput(f"{first.path}: holds no images; nothing to play")
    except BaseException:
        for recording in found:
            recording.close()
        raise
    return found
