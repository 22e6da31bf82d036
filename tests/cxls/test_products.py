"""Products and geometry through the front door: endpoints, folder, the map applied over HTTP, files refused."""

import io
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from analyzer.pictures import FIGURES
from cxls.soak.samples import family
from tests.analyzer.builders import SHAPE, frames_of_a_run, image, water, write_series
from tests.analyzer.test_panels import FLAT, TWO, written
from tests.cxls.programs import TOKEN, Analysis, Child, Sender, by_image, cxls, records, refusal, replaying, wait_for
from tests.cxls.test_live import Wire

HOT = (50, 60)


def get(address: str, path: str) -> tuple[int, str, bytes]:
    """Status, content type and body."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("content-type", ""), error.read()


class Live:
    """A live analysis with products in a folder and a token, and its sender."""

    def __init__(self, sender: Sender, analysis: Analysis) -> None:
        self.sender, self.analysis = sender, analysis
        assert analysis.session.web is not None
        self.address = analysis.session.web.address
        self._series = 0

    def send(self, images: int, hot: bool = False) -> int:
        """A series of water, with a pixel that always counts if asked; returns its id when it is over."""
        wire, reports = Wire("v2"), self.analysis.session.front.reports
        self._series += 1
        before, number = len(reports), self._series
        self.sender.send(*wire.start(number, images))
        for n in range(images):
            pixels = water(0.05, seed=1000 * number + n)
            if hot:
                pixels[HOT] += np.random.default_rng(1000 * number + n).poisson(60)
            self.sender.send(*wire.image(image(n, number, pixels)))
        self.sender.send(*wire.end(number))
        wait_for(lambda: len(reports) > before, 60)
        return number

    def ask(self, body: dict[str, Any], token: str = TOKEN) -> tuple[int, bytes]:
        request = urllib.request.Request(
            f"http://{self.address}/control/mask",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture
def live(bundle_folder: Path, tmp_path: Path) -> Iterator[Live]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with Sender() as sender:
        settings = {"control_token": token, "products": tmp_path / "products", "hit_rule": "peaks"}
        yield Live(sender, Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", **settings).start())


def test_before_the_first_frame_there_is_no_product_and_no_fault(live: Live) -> None:
    for path in ("/products", "/products/powder.png", "/products/powder.npy"):
        assert get(live.address, path)[0] == 404
    assert b"no frame yet" in get(live.address, "/products")[2]
    live.analysis.stop()


def test_every_file_of_the_index_is_served_in_its_shape(live: Live) -> None:
    live.send(5)
    code, kind, body = get(live.address, "/products")
    index = json.loads(body)
    assert (code, kind) == (200, "application/json")
    assert index["frames"] == {"hit": 0, "miss": 5, "no_beam": 0}
    assert index["geometry"]["camera_length_m"] == 0.15
    assert [ring["d_angstrom"] for ring in index["rings"]] == [200.0, 100.0]
    names = [product["name"] for product in index["products"]]
    assert names == ["powder", "powder_peaks", "peakogram", "peak_counts", "resolution", "hot_pixels"]
    for product in index["products"]:
        for file in product["files"]:
            code, kind, body = get(live.address, f"/products/{file}")
            assert code == 200, file
            if file.endswith(".npy"):
                array = np.load(io.BytesIO(body))
                assert [list(array.shape), str(array.dtype)] == [product["shape"], product["dtype"]]
            elif file.endswith(".json"):
                assert json.loads(body)["name"] == product["name"]
            else:
                assert (kind, body[:4]) == ("image/png", b"\x89PNG")
    live.analysis.stop()


@pytest.mark.parametrize(
    "path",
    ["/products/nothing.png", "/products/powder", "/products/powder.txt", "/products/powder.json",
     "/products/..%2f..%2fetc%2fpasswd", "/products/powder.png.npy", "/products/hot-pixels-00000000.npy",
     "/products/" + "x" * 5000],
)  # fmt: skip
def test_what_is_no_product_is_not_found(shared: Live, path: str) -> None:
    assert get(shared.address, path)[0] == 404


@pytest.fixture(scope="module")
def shared(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path_factory.mktemp("shared") / "r.jsonl").start()
        found = Live(sender, analysis)
        found.send(3)
        yield found
        analysis.stop()


def test_many_who_look_at_once_get_one_picture(shared: Live) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: get(shared.address, "/products/powder.png"), range(40)))
    assert {code for code, _, _ in answers} == {200}
    assert len({body for _, _, body in answers}) == 1


def test_however_many_wait_for_a_picture_others_are_answered(shared: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(shared.address, "/products/powder.png")[0] == 200
    pictures = shared.analysis.session.pictures
    drawing = pictures.pid
    assert drawing is not None
    monkeypatch.setattr(pictures, "_deadline_s", 300.0)
    os.kill(drawing, signal.SIGSTOP)
    waiting = 60
    with ThreadPoolExecutor(waiting) as pool:
        paths = [f"/products/{name}.png?theme=dark" for name in FIGURES] * (waiting // len(FIGURES))
        asked = [pool.submit(get, shared.address, path) for path in paths]
        try:
            # Each asks by now, and gets no answer yet.
            wait_for(lambda: sum(each.running() for each in asked) == waiting, 30)
            time.sleep(1.0)
            for path in ("/status", "/metrics", "/healthz") * 5:
                with urllib.request.urlopen(f"http://{shared.address}{path}", timeout=10) as answer:
                    assert answer.status == 200
            assert not any(each.done() for each in asked)
        finally:
            os.kill(drawing, signal.SIGCONT)
        answers = [each.result() for each in asked]
    assert {code for code, _, _ in answers} == {200}
    assert len({body for _, _, body in answers}) == len(FIGURES)


def test_a_picture_that_nobody_draws_is_500_with_the_reason_and_the_next_one_comes(
    shared: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert get(shared.address, "/products/peakogram.png")[0] == 200
    pictures = shared.analysis.session.pictures
    drawing = pictures.pid
    assert drawing is not None
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_deadline_s", 0.3)
        os.kill(drawing, signal.SIGSTOP)
        code, _, body = get(shared.address, "/products/resolution.png")
    assert (code, body) == (
        500,
        b"the picture resolution was not drawn: the process that draws hangs and is killed; the next picture starts "
        b"another\n",
    )
    assert [record.message for record in caplog.records if "was not drawn" in record.message] == [body.decode().strip()]
    assert get(shared.address, "/products/resolution.png")[0] == 200
    assert pictures.pid not in (None, drawing)


def test_an_analysis_draws_without_matplotlib_and_its_pictures_end_with_it(bundle_folder: Path, tmp_path: Path) -> None:
    """A kill leaves no process behind; until then one beside it drew everything: products, report, files."""
    with Sender() as sender:
        products = tmp_path / "products"
        arguments = [sender.endpoint, "--bundle", bundle_folder, "--listen", "127.0.0.1:0", "--products", products]
        with Child("analyze", *arguments, "--device", "cpu", "--workers", "1") as child:
            address = child.listening("http")
            wire = Wire("v2")
            sender.send(*wire.start(1, 3))
            for n in range(3):
                sender.send(*wire.image(image(n, 1, water(0.05, seed=n))))
            sender.send(*wire.end(1))
            wait_for(lambda: get(address, "/products/powder.png")[0] == 200, 60)
            code, _, page = get(address, "/report")
            assert (code, page.count(b"data:image/png;base64,iVBORw0K")) == (200, 6)
            assert "matplotlib" not in Path(f"/proc/{child.process.pid}/maps").read_text()
            below = family(child.process.pid)[1:]
            assert len(below) == 1
            assert "matplotlib" in Path(f"/proc/{below[0]}/maps").read_text()
            child.process.kill()
            child.process.wait()
            wait_for(lambda: not Path(f"/proc/{below[0]}").exists(), 10)


# --- the map ----------------------------------------------------------------------------


def at_hot(record: dict[str, Any]) -> bool:
    return any(round(p["ss"]) == HOT[0] and round(p["fs"]) == HOT[1] for p in record["peaks"])


def test_the_map_is_applied_by_name_and_saved_as_the_mask_it_is_named_by(
    live: Live, bundle_folder: Path, tmp_path: Path
) -> None:
    first = live.send(130, hot=True)
    assert {r["mask"] for r in live.analysis.records} == {"none"}
    assert all(at_hot(r) for r in live.analysis.records)
    code, body = live.ask({"mask": "hot-pixels"})
    assert code == 200, body
    name = json.loads(body)["mask"]
    assert re.fullmatch(r"hot-pixels-[0-9a-f]{8}\.npy", name)
    second = live.send(5, hot=True)
    by_series = {number: [r for r in live.analysis.records if r["series_id"] == number] for number in (first, second)}
    assert {(r["mask"], at_hot(r)) for r in by_series[second]} == {(f"none + {name}", False)}
    assert json.loads(get(live.address, "/status")[2])["mask"] == name
    assert json.loads(get(live.address, "/products")[2])["hot_pixels_applied"] == name
    served = np.load(io.BytesIO(get(live.address, f"/products/{name}")[2]))
    assert np.argwhere(served).tolist() == [list(HOT)]
    live.analysis.stop()
    # What was saved, used as --mask, gives the same records.
    saved = tmp_path / "products" / name
    np.testing.assert_array_equal(np.load(saved), served)
    pixels = np.stack([water(0.05, seed=1000 * second + n) for n in range(5)])
    for n in range(5):
        pixels[n][HOT] += np.random.default_rng(1000 * second + n).poisson(60)
    master = write_series(tmp_path, pixels, "again")
    again = Analysis([master], bundle_folder, tmp_path / "again.jsonl", mask=saved, hit_rule="peaks").start().join()
    kept = ("image_id", "mask", "peaks", "hit_probability", "background_photons")
    assert [[r[k] for k in kept] for r in by_image(again.records)] == [
        [r[k] for k in kept] for r in by_image(by_series[second])
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"mask": "hot"},
        {"mask": None},
        {"mask": 1},
        {"mask": "hot-pixels", "path": None},
        {"mask": "hot-pixels", "x": 1},
    ],
)
def test_another_name_is_refused(live: Live, body: dict[str, Any]) -> None:
    assert live.ask(body)[0] == 400
    live.analysis.stop()


def test_strangers_and_an_empty_map_change_nothing(live: Live) -> None:
    assert live.ask({"mask": "hot-pixels"}, "wrong")[0] == 401
    code, text = live.ask({"mask": "hot-pixels"})
    assert code == 422
    assert b"no pixel yet" in text
    live.send(5)
    assert live.ask({"mask": "hot-pixels"})[0] == 422
    assert json.loads(get(live.address, "/status")[2])["mask"] is None
    live.analysis.stop()


# --- the folder -------------------------------------------------------------------------


def test_a_run_over_files_leaves_its_products(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    done = cxls("analyze", master, "--bundle", bundle_folder, "--products", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "out" / "products.h5") as file:
        assert sum(file.attrs[f"frames_{name}"] for name in ("hit", "miss", "no_beam")) == 12
    assert (tmp_path / "out" / "powder.png").read_bytes()[:4] == b"\x89PNG"
    again = refusal("analyze", master, "--bundle", bundle_folder, "--products", tmp_path / "out")
    assert "--overwrite" in again
    done = cxls("analyze", master, "--bundle", bundle_folder, "--products", tmp_path / "out", "--overwrite")
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_is_refused(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said = refusal("analyze", master, "--bundle", bundle_folder, "--products", tmp_path / "file" / "out")
    assert "--products" in said
    assert "choose a folder" in said


def test_an_interrupted_run_leaves_its_products(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(6))
    with (
        replaying(master, rate_hz=200, loop=True) as (endpoint, _),
        Child("analyze", endpoint, "--bundle", bundle_folder, "--products", tmp_path / "out", "--listen",
              "127.0.0.1:0", "--results", tmp_path / "r.jsonl", "--on-full", "block") as child,
    ):  # fmt: skip
        child.listening("http")
        wait_for(lambda: (tmp_path / "r.jsonl").exists() and len(records(tmp_path / "r.jsonl")) > 20, 60)
        assert child.end(signal.SIGTERM) == 143
    with h5py.File(tmp_path / "out" / "products.h5") as file:
        assert sum(file.attrs[f"frames_{name}"] for name in ("hit", "miss", "no_beam")) >= 20


# --- geometry ---------------------------------------------------------------------------


def test_peaks_are_in_the_geometry_that_is_given(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    found = []
    for name, text in (("flat", FLAT), ("two", TWO)):
        done = cxls("analyze", master, "--bundle", bundle_folder, "--geometry", written(tmp_path, text, f"{name}.geom"),
                    "--results", tmp_path / f"{name}.jsonl")  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(records(tmp_path / f"{name}.jsonl"))
    plain = Analysis([master], bundle_folder, tmp_path / "plain.jsonl").start().join().records
    assert by_image(found[0]) == by_image(plain)
    resolutions = [[p["resolution_angstrom"] for r in by_image(run) for p in r["peaks"]] for run in found]
    assert resolutions[0]
    assert resolutions[0] != resolutions[1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (FLAT.replace("max_ss = 60", "max_ss = 61"), "covers images of 62 x 75 pixels, the images are 61 x 75"),
        (FLAT.replace("0.15 m", "0.15 parsec"), "needs its unit|with its unit"),
        ("mask = /m\nmask_file = absent.h5\nmask_bad = 1\n" + FLAT, "no such file"),
        ("mask = /m\nmask_file = small.npy\nmask_bad = 1\n" + FLAT, "3 x 4 pixels, the panels cover 61 x 75"),
        ("detector_shift_x = /nowhere m\n" + FLAT, "the header does not say"),
        ("nonsense", "key = value"),
    ],
)
def test_a_geometry_that_cannot_be_right_is_refused_before_anything_is_written(
    master: Path, bundle_folder: Path, tmp_path: Path, text: str, why: str
) -> None:
    np.save(tmp_path / "small.npy", np.zeros((3, 4), np.uint8))
    path = written(tmp_path, text)
    said = refusal("analyze", master, "--bundle", bundle_folder, "--geometry", path, "--results", tmp_path / "r.jsonl")
    assert re.search(why, said), said
    assert said.startswith("cxls: --geometry ")
    assert not (tmp_path / "r.jsonl").exists()


def test_an_absent_geometry_and_a_mask_beside_it_are_refused(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    said = refusal("analyze", master, "--bundle", bundle_folder, "--geometry", tmp_path / "no.geom")
    assert "No such file" in said
    np.save(tmp_path / "m.npy", np.zeros((5, 5), np.uint8))
    path = written(tmp_path, FLAT)
    said = refusal("analyze", master, "--bundle", bundle_folder, "--geometry", path, "--mask", tmp_path / "m.npy")
    assert "--mask m.npy" in said
    assert "give one of its shape" in said


def test_on_a_live_stream_another_shape_is_said_and_counted_and_analysis_goes_on(
    bundle_folder: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, FLAT.replace("max_ss = 60", "max_ss = 70"))
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", geometry=path).start()
        live = Live(sender, analysis)
        live.send(6)
        metrics = get(live.address, "/metrics")[2].decode()
        index = json.loads(get(live.address, "/products")[2])
        analysis.stop()
    assert {r["status"] for r in analysis.records} == {"ok"}
    assert "cxls_geometry_unfit_frames_total 6.0" in metrics
    assert index["geometry"]["unfit"].startswith("det.geom covers images of 71 x 75")
    assert index["geometry"]["shape"] == list(SHAPE)


def test_a_number_of_the_geometry_that_the_header_contradicts_is_said(
    bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, FLAT.replace("clen = 0.15", "clen = 0.3"))
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", geometry=path).start()
        live = Live(sender, analysis)
        live.send(6)
        status = json.loads(get(live.address, "/status")[2])
        analysis.stop()
    (text,) = status["geometry_contradicts"]
    assert text == "det.geom has a camera length of 0.3 m, the header 0.15 m; the file's is used"
    assert caplog.text.count(text) == 1


def test_on_a_live_stream_a_mask_of_another_shape_is_said_and_counted_and_analysis_goes_on(
    bundle_folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "large.npy", np.zeros((71, 75), np.uint8))
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", mask=tmp_path / "large.npy").start()
        live = Live(sender, analysis)
        live.send(6)
        metrics = get(live.address, "/metrics")[2].decode()
        index, status = (json.loads(get(live.address, path)[2]) for path in ("/products", "/status"))
        analysis.stop()
    assert {(r["status"], r["mask"]) for r in analysis.records} == {("ok", "none")}
    assert "cxls_mask_unfit_frames_total 6.0" in metrics
    assert index["mask_unfit"].startswith("large.npy is for images of 71 x 75 pixels")
    assert status["mask_unfit"] == index["mask_unfit"]


def test_calibration_takes_a_geometry_too(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, np.stack([water(0.2, seed=n) for n in range(40)]))
    bad = "bad0/panel = p0\nbad0/min_fs = 3\nbad0/max_fs = 9\nbad0/min_ss = 1\nbad0/max_ss = 2\n"
    path = written(tmp_path, FLAT + bad)
    done = cxls("calibrate", master, "--bundle", bundle_folder, "--geometry", path, "--out", tmp_path / "blank")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "blank.json").read_bytes())["mask"].startswith("none + det.geom ")
    wrong = written(tmp_path, FLAT.replace("max_ss = 60", "max_ss = 61"), "wrong.geom")
    said = refusal("calibrate", master, "--bundle", bundle_folder, "--geometry", wrong, "--out", tmp_path / "other")
    assert "covers images of 62 x 75" in said
