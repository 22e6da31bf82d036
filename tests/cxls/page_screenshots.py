"""Pictures of the live page for the documentation: ``python -m tests.cxls.page_screenshots OUTDIR``.

A simulated jet with a pump laser that is on in every second image and a stage that moves over a sample; the program
analyses what is sent, the tests' stand-in for indexamajig takes its hits and gives them cells at random, a headless
browser looks. Takes about two minutes.
"""

import json
import math
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from playwright.sync_api import Locator, Page

from streamer import stream_v2
from streamer.messages import ImageData, ImageMessage
from tests.analyzer.builders import image, image_data, metadata
from tests.analyzer.stream_text import LYSOZYME
from tests.cxls.browser import Served, Watched, chromium, write_token
from tests.cxls.indexamajig import Indexamajig
from tests.cxls.programs import Sender, cxls
from tests.support import free_port, read_pixels

FRAMES, RATE_HZ, SECONDS, SERIES_IMAGES = 32, 16.0, 75.0, 300
FEWEST_SPOTS = 12
"""The stand-in indexes a hit with as many peaks."""

COLUMNS, ROWS, STEP_MM = 14, 9, 0.1


def record(folder: Path) -> tuple[list[ImageData], list[ImageData]]:
    """Packed frames with a crystal and without."""
    done = cxls(
        "simulate", folder / "jet", "--frames", FRAMES, "--condition", 2, "--crystal", "lysozyme", "--seed", 3,
        "--jitter-pulse-energy", 0.3, "--jitter-crystal", 7e-6, "--workers", 1,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    master = folder / "jet_master.h5"
    with h5py.File(master) as file:
        hits = file["entry/truth/hit"][()].astype(bool)
    frames = [image_data(pixels) for pixels in read_pixels(master)]
    return [f for f, hit in zip(frames, hits, strict=True) if hit], [
        f for f, hit in zip(frames, hits, strict=True) if not hit
    ]


class Jet(threading.Thread):
    """Sends frames: crystals are more likely in the middle of the sample, and fewer with the laser on."""

    def __init__(self, sender: Sender, crystals: list[ImageData], water: list[ImageData]) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self._sender, self._crystals, self._water = sender, crystals, water
        self._rng = np.random.default_rng(7)

    def run(self) -> None:
        shape = self._water[0].shape
        facts: dict[str, Any] = {
            "shape": shape, "beam_center_x_px": shape[1] / 2, "beam_center_y_px": shape[0] / 2,
            "frame_time_s": 1 / RATE_HZ, "count_time_s": 1e-3,
        }  # fmt: skip
        began = time.monotonic()
        for shot in range(10**6):
            series, number = 1 + shot // SERIES_IMAGES, shot % SERIES_IMAGES
            if number == 0:
                self._sender.send(stream_v2.encode_start(series, metadata(SERIES_IMAGES, **facts)))
            self._sender.send(stream_v2.encode_image(self._shot(shot, series, number)))
            if number == SERIES_IMAGES - 1:
                self._sender.send(stream_v2.encode_end(series))
            if self.stop.wait(max(0.0, began + shot / RATE_HZ - time.monotonic())):
                return

    def _shot(self, shot: int, series: int, number: int) -> ImageMessage:
        place = shot * 5 % (COLUMNS * ROWS)
        x, y = place % COLUMNS, place // COLUMNS
        laser = shot % 2 == 0
        chance = 0.12 + 0.6 * math.exp(-((x - 8) ** 2 + (y - 4) ** 2) / 8) - 0.06 * laser + 0.05 * math.sin(shot / 150)
        among = self._crystals if self._rng.random() < chance else self._water
        tags = {"laser": "on" if laser else "off", "x_mm": x * STEP_MM, "y_mm": y * STEP_MM}
        return image(number, series, among[self._rng.integers(len(among))], tags)


def indexer(address: str, stream: Path) -> Indexamajig:
    """Indexes hits with enough peaks, with the cell of lysozyme to within some parts in a thousand."""
    rng, cell = np.random.default_rng(5), np.array(LYSOZYME)
    spread = np.array([0.03, 0.03, 0.015, 0.2, 0.2, 0.2])
    return Indexamajig(
        address,
        stream,
        decides=lambda peaks: int(len(peaks) >= FEWEST_SPOTS),
        cell=lambda: tuple((cell + spread * rng.normal(size=6)).tolist()),
    )


def post(url: str, token: str, action: str, body: dict[str, object]) -> None:
    """One change, as the page would ask for it."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}control/{action}", json.dumps(body).encode(), headers)
    urllib.request.urlopen(request, timeout=30).close()


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Sender() as sender:
        jet = Jet(sender, *record(Path(folder)))
        path, token = write_token(Path(folder))
        stream, address = Path(folder) / "out.stream", f"tcp://127.0.0.1:{free_port()}"
        served = Served(
            sender.endpoint, free_port(), "--control-token", path, "--target-hits", 2000,
            "--split-tag", "laser", "--map-tags", "x_mm,y_mm", "--index-listen", address, "--index-stream", stream,
        )  # fmt: skip
        try:
            jet.start()
            post(served.url, token, "run", {"number": 12, "sample": "lysozyme, 20 µm, batch 3"})
            with indexer(address, stream):
                time.sleep(SECONDS)
                post(served.url, token, "threshold", {"value": 0.7})
                time.sleep(8)
                take(served.url, out)
        finally:
            jet.stop.set()
            served.kill()


def take(url: str, out: Path) -> None:
    """The pictures."""
    with chromium() as browser:
        light = Watched(browser, url)
        light.wait_for_image()
        light.page.keyboard.press("h")
        light.wait("/ · hit, /.test(document.getElementById('caption').textContent)")
        shoot(light, out / "live-page.png")
        for view in ("run", "scan"):
            light.view(view)
            shoot(light, out / f"live-page-{view}.png")
            if view == "run":
                light.wait("document.getElementById('noCells').hidden")
                save(light.page.locator("#cellsCard"), out / "live-page-cells.png")
        dark = Watched(browser, url, dark=True)
        dark.wait_for_image()
        dark.page.keyboard.press("h")
        dark.page.keyboard.press("ArrowLeft")
        dark.page.wait_for_timeout(500)
        dark.page.mouse.move(520, 170)
        dark.page.mouse.wheel(0, -200)
        dark.page.mouse.wheel(0, -60)
        shoot(dark, out / "live-page-dark.png")


def shoot(watched: Watched, path: Path) -> None:
    watched.page.wait_for_timeout(3500)
    save(watched.page, path)


def save(shown: Page | Locator, path: Path) -> None:
    shown.screenshot(path=path)
    print(f"{path}: {path.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
