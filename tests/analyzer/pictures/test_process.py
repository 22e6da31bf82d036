"""The process that draws: the same pictures, small, gone with who asked, and replaced when it dies, hangs or errs."""

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.geometry import Geometry, Panels
from analyzer.pictures import FIGURES, CurvePicture, NoPicture, Pictures, ProductPicture, Request, drawn, process
from analyzer.pictures.requests import packed, unpacked
from analyzer.product_snapshot import LOG_INTENSITY, SPACING_EDGES_ANGSTROM, Axis, HotPixels, Snapshot

SHAPE = (120, 90)
CELLS = (60, 45)
_RNG = np.random.default_rng(3)

FLAT = Geometry(SHAPE, 45.0, 60.0, 75e-6, 0.05, 12_400.0)
TWO_PANELS = Panels(
    [[0, 60, 0, 90], [60, 120, 0, 90]],
    [[-3e-3, -4.5e-3, 0.0], [-3e-3, 0.1e-3, 1e-4]],
    [[75e-6, 0.0, 0.0]] * 2,
    [[0.0, 75e-6, 0.0]] * 2,
)


def products(geometry: Geometry = FLAT, **given: Any) -> Snapshot:
    """Made-up products of a small detector."""
    hot = HotPixels(SHAPE, np.array([5, 700]), np.array([4, 9]), 200, 1, 3)
    axis = Axis("q", "1/angstrom", np.linspace(0.0, 4.0, 201))
    plain: dict[str, Any] = {
        "geometry": geometry,
        "bin_px": 2,
        "powder_photons": _RNG.poisson(3.0, CELLS).astype(np.float64),
        "powder_peaks": np.ones(CELLS, np.uint32),
        "powder_saturated": np.zeros(CELLS, np.bool_),
        "axis": axis,
        "peakogram": _RNG.integers(0, 9, (200, len(LOG_INTENSITY) - 1)),
        "peak_counts": _RNG.integers(0, 9, (2, 256)),
        "resolution": _RNG.integers(0, 9, len(SPACING_EDGES_ANGSTROM) - 1),
        "frames": {"hit": 7, "miss": 5, "no_beam": 0},
        "saturated_frames": 1,
        "saturated_peaks": np.int64(2),
        "hot_pixels": hot,
    }
    return Snapshot(**plain | given)


SECONDS = {"width_s": 1, "t": [1e9, 1e9 + 1, 1e9 + 2], "beam": [4, 5, 6], "hits": [1, 2, 3], "indexable": [0, 1, 2]}
CURVES = {
    "time": SECONDS,
    "minutes": {"width_s": 60, "t": [], "beam": [], "hits": [], "indexable": []},
    "images": {"width": 1, "first": [0, 1, 2], "beam": [1, 1, 1], "hits": [0, 1, 1], "indexable": [0, 0, 1]},
    "series": [{"first_image": 1}],
    "profile": {
        "unit": "px", "x": [1.0, 2.0], "measured": [3.0, 2.0], "model": None, "frames": 9, "label": "photons a pixel"
    },
    "cells": object(),
}  # fmt: skip
"""With something in it that no picture shows and no pipe carries."""

REQUESTS: list[Request] = [
    *(ProductPicture(name, products(), dark=bool(n % 2)) for n, name in enumerate(FIGURES)),
    ProductPicture("powder", products(Geometry(SHAPE, 45.0, 60.0, 75e-6, 0.05, 12_400.0, TWO_PANELS)), 169.0, 0.68),
    ProductPicture("peakogram", products(Geometry(SHAPE, 45.0, 60.0, 75e-6, unfit="no\npanel"))),
    CurvePicture("rate_over_time", CURVES, 1e9),
    CurvePicture("rate_over_images", CURVES),
    CurvePicture("radial_profile", CURVES),
]
POWDER = REQUESTS[0]


@pytest.fixture(scope="module")
def pictures() -> Iterator[Pictures]:
    with Pictures() as found:
        yield found


def test_pictures_are_those_that_are_drawn_here(pictures: Pictures) -> None:
    for request in REQUESTS:
        picture = pictures.draw(request)
        assert picture is not None
        assert picture == drawn(request), request.name


def test_where_there_is_nothing_to_show_there_is_no_picture(pictures: Pictures) -> None:
    assert pictures.draw(CurvePicture("radial_profile", CURVES | {"profile": None})) is None
    assert pictures.draw(CurvePicture("radial_profile", {})) is None


def test_a_request_goes_through_the_pipe_without_what_its_picture_does_not_show() -> None:
    (powder, other) = (_through(ProductPicture(name, products(), 90.0, 1.5, True)) for name in ("powder", "peakogram"))
    assert isinstance(powder, ProductPicture)
    assert isinstance(other, ProductPicture)
    assert (powder.products.powder_photons.shape, powder.products.powder_peaks.size) == (CELLS, 0)
    assert (other.products.powder_photons.size, other.products.powder_saturated.size) == (0, 0)
    assert (other.scale, other.dark, other.products.geometry, other.products.frames["hit"]) == (1.5, True, FLAT, 7)
    assert other.products.peakogram.dtype == np.int64


def _through(request: Request) -> Request:
    header, arrays = packed(request)
    sent = memoryview(b"".join(each.tobytes() for each in arrays))

    def read_into(place: memoryview) -> None:
        nonlocal sent
        place[:] = sent[: len(place)]
        sent = sent[len(place) :]

    found = unpacked(header, read_into)
    assert not sent
    return found


def test_the_process_loads_none_of_the_large_libraries(pictures: Pictures) -> None:
    pictures.draw(POWDER)
    mapped = Path(f"/proc/{pictures.pid}/maps").read_text()
    assert "matplotlib" in mapped
    assert not [name for name in ("torch", "scipy", "numba", "llvmlite", "h5py") if f"/{name}/" in mapped]


def test_many_threads_get_their_own_pictures(pictures: Pictures) -> None:
    requests = REQUESTS[-4:]
    expected = [drawn(request) for request in requests]
    found: dict[int, bytes | None] = {}

    def ask(number: int) -> None:
        found[number] = pictures.draw(requests[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert [found[number] for number in range(4)] == expected


def test_a_process_that_dies_between_two_pictures_costs_none(pictures: Pictures) -> None:
    expected = pictures.draw(POWDER)
    before = pictures.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert pictures.draw(POWDER) == expected
    assert pictures.pid not in (None, before)


def test_one_that_dies_over_a_picture_costs_that_one(caplog: pytest.LogCaptureFixture) -> None:
    with Pictures() as pictures:
        expected = pictures.draw(POWDER)
        with _stopped(pictures) as before:

            def kill() -> None:
                _until(pictures._lock.locked)
                time.sleep(0.2)
                os.kill(before, signal.SIGKILL)

            threading.Thread(target=kill).start()
            with pytest.raises(NoPicture, match=r"the process that draws ended \(signal 9\); the next picture starts"):
                pictures.draw(POWDER)
        _gone(before)
        assert pictures.draw(POWDER) == expected
    assert [record.levelname for record in said(caplog)] == ["WARNING"]


def test_one_that_hangs_is_killed_at_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it does not read any more, which a powder of megabytes shows, or does not answer."""
    large = products(powder_photons=np.ones((2000, 1000)), powder_saturated=np.zeros((2000, 1000), np.bool_))
    for request in (ProductPicture("powder", large), REQUESTS[3]):
        caplog.clear()
        with Pictures() as pictures:
            with _stopped(pictures) as before:
                pictures._deadline_s = 0.5
                began = time.monotonic()
                with pytest.raises(NoPicture, match="hangs and is killed"):
                    pictures.draw(request)
                assert time.monotonic() - began < 20.0
            _gone(before)
            pictures._deadline_s = 30.0
            assert pictures.draw(request)
        assert [record.message for record in said(caplog)] == [
            f"the picture {request.name} was not drawn: the process that draws hangs and is killed; the next picture "
            "starts another"
        ]


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """By what draws; what others kept back, a timer may tell of in the middle of this test."""
    return [record for record in caplog.records if record.name == process.log.name]


@contextlib.contextmanager
def _stopped(pictures: Pictures) -> Iterator[int]:
    """The process of ``pictures``, standing still."""
    pictures.draw(POWDER)
    pid = pictures.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    yield pid


def _gone(pid: int, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


NONSENSE = (
    b"P\xff\xff\xff\xff",  # of 4 GiB
    b"P\x05\x00\x00\x00hello",  # no PNG
    b"X\x00\x00\x00\x00",
    b"R\x00\x00\x00\x00",
    b"\x00" * 64,
)


def test_nonsense_for_an_answer_costs_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pictures() as pictures:
        for number, answer in enumerate((b"", *NONSENSE)):
            said = b"R" + bytes(4) + answer if answer else b"Segmentation fault"
            script = tmp_path / f"nonsense-{number}"
            script.write_text(f"#!{sys.executable} -IS\nimport os, time\nos.write(1, {said!r})\ntime.sleep(60)\n")
            script.chmod(0o755)
            with monkeypatch.context() as patch:
                patch.setattr(sys, "executable", str(script))
                with pytest.raises(NoPicture, match="answers nonsense"):
                    pictures.draw(POWDER)
            assert pictures.pid is None
        assert pictures.draw(POWDER) == drawn(POWDER)


def test_what_cannot_be_drawn_says_why_and_the_process_stays(pictures: Pictures) -> None:
    wrong = ProductPicture("peak_counts", products(peak_counts=np.zeros((3, 256), np.int64)))
    pictures.draw(POWDER)
    before = pictures.pid
    with pytest.raises(NoPicture, match="the picture peak_counts was not drawn: ValueError: too many values"):
        pictures.draw(wrong)
    with pytest.raises(NoPicture, match="the picture nothing was not drawn: KeyError: 'nothing'"):
        pictures.draw(ProductPicture("nothing", products()))
    assert pictures.pid == before


def test_a_process_that_cannot_be_started_is_said_once_and_nothing_is_drawn_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Pictures() as pictures:
        for _ in range(5):
            with pytest.raises(NoPicture, match="a process that draws cannot be started: No such file or directory"):
                pictures.draw(POWDER)
        assert [record.levelno for record in said(caplog)] == [logging.WARNING]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_one_that_ends_before_it_draws_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Pictures() as pictures, pytest.raises(NoPicture, match=r"ended \(exit status 1\)"):
        pictures.draw(POWDER)


def test_no_more_processes_than_the_system_allows_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **keywords: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refused)
    with Pictures() as pictures, pytest.raises(NoPicture, match="Resource temporarily unavailable"):
        pictures.draw(POWDER)


def test_it_ends_when_nobody_asks_and_comes_again() -> None:
    with Pictures(idle_s=0.5) as pictures:
        expected = pictures.draw(POWDER)
        before = pictures.pid
        assert before is not None
        _gone(before)
        assert pictures.draw(POWDER) == expected
        assert pictures.pid not in (None, before)


def test_a_stop_is_for_the_analysis_to_hear(pictures: Pictures) -> None:
    """A service's stop goes to every process of it, before the last pictures are asked for."""
    pictures.draw(POWDER)
    before = pictures.pid
    assert before is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(before, number)
    assert pictures.draw(POWDER)
    assert pictures.pid == before
    assert os.getpgid(before) != os.getpgid(0), "Ctrl-C goes to the group of the terminal"


def test_closing_ends_it_and_nothing_is_drawn_any_more() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    pictures = Pictures()
    pictures.draw(POWDER)
    pid = pictures.pid
    pictures.close()
    pictures.close()
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(NoPicture, match="the run is over"):
        pictures.draw(POWDER)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_closing_waits_for_no_picture_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_END_S", 0.2)
    pictures = Pictures()
    with _stopped(pictures) as pid:
        pictures._deadline_s = 60.0
        failed: list[NoPicture] = []

        def ask() -> None:
            try:
                pictures.draw(POWDER)
            except NoPicture as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        _until(pictures._lock.locked)
        began = time.monotonic()
        pictures.close()
        assert time.monotonic() - began < 30.0, "of 60 s that it has"
        asking.join(30)
    assert len(failed) == 1
    _gone(pid)


def _until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


_PARENT = """
import sys, threading, time
from tests.analyzer.pictures.test_process import POWDER, REQUESTS
from analyzer.pictures import Pictures
pictures = Pictures()
pictures.draw(POWDER)
print(pictures.pid, flush=True)
if sys.argv[1] == "drawing":
    while True:
        pictures.draw(REQUESTS[1])
time.sleep(60)
"""


@pytest.mark.parametrize("doing", ["waiting", "drawing"])
def test_it_is_gone_when_who_asks_was_killed(doing: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, doing], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
        parent.wait()
        _gone(pid)
