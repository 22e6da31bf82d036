"""A stand-in for CrystFEL's indexamajig: asks as it asks, reads by its rules, writes what it writes.

indexamajig --zmq-input=ADDRESS --zmq-request=next --data-format=msgpack --peaks=msgpack --no-image-data
    --no-revalidate --copy-header=event_id --copy-header=frame_id -g live.geom -o out.stream
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq

from streamer.geometry_file import DetectorGeometry, read_geometry
from tests.analyzer import crystfel_reader as reader
from tests.analyzer.stream_text import HEADER, LYSOZYME, chunk, crystal

Peaks = list[tuple[float, float, float]]


class Indexamajig:
    """Several workers that write one stream; ``decides`` says how many lattices a list of peaks has, ``cell`` which."""

    def __init__(
        self,
        address: str,
        stream: Path,
        workers: int = 3,
        decides: Callable[[Peaks], int] = lambda peaks: 1,
        cell: Callable[[], Sequence[float]] = lambda: LYSOZYME,
    ) -> None:
        self.stream = stream
        self.messages: list[bytes] = []
        self.errors: list[str] = []
        self._address = address
        self._decides, self._cell = decides, cell
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    def __enter__(self) -> "Indexamajig":
        self.stream.write_text(HEADER)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.RCVTIMEO, 3000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._address)
        try:
            while not self._stop.is_set():
                socket.send(b"next")
                reply = socket.recv()
                if len(reply) >= reader.SHORTEST_MESSAGE:
                    self._index(reply)
        except zmq.Again:
            if not self._stop.is_set():
                self.errors.append("no reply within 3 s")
        finally:
            socket.close()
            context.term()

    def _index(self, message: bytes) -> None:
        reading = reader.Reading()
        peaks = reader.peaks(message, reading) or []
        energy = reader.header(message, "beam_energy", reading)
        distance = reader.header(message, "detector_distance", reading)
        name = reader.header(message, "event_id", reading)
        number = reader.header(message, "frame_id", reading)
        assert number is not None
        with self._lock:
            self.messages.append(message)
            self.errors += reading.errors
            if (energy, distance) != (7000.0, 150.0):
                self.errors.append(f"energy {energy}, distance {distance}")
            with open(self.stream, "a") as file:
                file.write(
                    chunk(
                        None if name is None else str(name),
                        [crystal(self._cell()) for _ in range(self._decides(peaks))],
                        len(self.messages),
                        peaks,
                        [reader.stream_line("frame_id", number)],
                    )
                )


def peaks_of(messages: Sequence[bytes]) -> dict[int, Peaks]:
    """Peaks by image id."""
    found = {}
    for message in messages:
        number = reader.header(message, "frame_id", reader.Reading())
        assert isinstance(number, int)
        found[number] = reader.peaks(message, reader.Reading()) or []
    return found


def panel_geometry(path: Path) -> DetectorGeometry:
    """The geometry as indexamajig -g reads it."""
    geometry = read_geometry(path)
    assert geometry.photon_energy_eV == "beam_energy eV"
    assert geometry.clen_m == "detector_distance mm"
    assert ("peak_list", "peak_list") in geometry.extra
    return geometry
