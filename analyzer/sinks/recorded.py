"""Which images have a record already, in little memory: a bit an image."""

from streamer.series import IdSet

_NONE = IdSet()


class Recorded:
    """Pairs (series_id, image_id) with a record."""

    def __init__(self) -> None:
        self._series: dict[int, IdSet] = {}

    def add(self, series_id: int, image_id: int) -> None:
        self._series.setdefault(series_id, IdSet()).add(image_id)

    def of(self, series_id: int) -> IdSet:
        """Image ids of a series, not to be changed."""
        return self._series.get(series_id, _NONE)

    def __contains__(self, pair: tuple[int, int]) -> bool:
        return pair[1] in self.of(pair[0])

    def __bool__(self) -> bool:
        return bool(self._series)
