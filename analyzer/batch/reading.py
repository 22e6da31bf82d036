"""The frames of chunks, in order, a few at a time: as ``cxls analyze`` has them of the same files."""

from collections.abc import Iterator, Sequence

from analyzer.batch.shares import Chunk
from streamer.files import BadInput, FileSeries, Member, announced_images, image_message
from streamer.frames import Frame, make_frame
from streamer.series import Series


class SeriesReader:
    """One series of a batch, open. Raises ``BadInput`` where its first file cannot be read or holds less now."""

    def __init__(self, series_id: int, members: Sequence[Member], images: int, channel: str | None) -> None:
        self._members, self._channel = members, channel
        self._first = FileSeries(*members[0])
        self._alone = len(members) == 1
        if self._alone and len(self._first) < images:
            self._first.close()
            raise BadInput(f"{members[0][0]}: {len(self._first)} images, {images} when the batch began")
        self._announced = announced_images(self._first, len(members))
        metadata = self._first.metadata.with_changes(number_of_images=self._announced)
        self._series = Series(series_id, series_id, None, metadata)

    def close(self) -> None:
        self._first.close()

    def batches(self, chunk: Chunk, frames: int) -> Iterator[list[Frame]]:
        """The frames of a chunk, so many together. Raises ``BadInput`` where a file cannot be opened any more."""
        for start in range(chunk.first, chunk.last, frames):
            found = [self._frame(position) for position in range(start, min(start + frames, chunk.last))]
            if some := [frame for frame in found if frame is not None]:
                yield some

    def _frame(self, position: int) -> Frame | None:
        """``None`` for an image whose id is beyond what is announced: not of the series, here as on the wire."""
        first = self._alone or position == 0
        file = self._first if first else FileSeries(*self._members[position])
        try:
            image_id = file.image_id(position) if self._alone else position
            if self._announced is not None and image_id >= self._announced:
                return None
            message = image_message(self._series.series_id, image_id, file, position if self._alone else 0)
        except IndexError:
            raise BadInput(f"{file.path}: no image, one when the batch began") from None
        finally:
            if not first:
                file.close()
        return make_frame(self._series, message, 0.0, self._channel)
