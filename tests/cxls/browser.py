"""A headless browser on the live page, and what it is shown: a simulated series in a loop, analysed by the program."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, WebSocket, sync_playwright

from tests.cxls.programs import Child

TIMEOUT_S = 60.0
SIZE = {"width": 1280, "height": 800}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's, without a sandbox as root has none."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page and what it did: ``errors`` on its console, hosts it asked (``hosts``), wishes it sent (``wishes``)."""

    def __init__(self, browser: Browser, url: str, dark: bool = False) -> None:
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.wishes: list[dict[str, Any]] = []
        self.page: Page = browser.new_page(viewport=SIZE, color_scheme="dark" if dark else "light")
        self.page.set_default_timeout(1e3 * TIMEOUT_S)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.on("websocket", self._listen)
        self.page.goto(url)

    def _listen(self, socket: WebSocket) -> None:
        self.hosts.add(socket.url.split("/")[2])
        socket.on("framesent", lambda sent: self.wishes.append(json.loads(sent)))

    def text(self, name: str) -> str:
        """Of the element with this id."""
        return self.page.locator(f"#{name}").inner_text()

    def wait(self, condition: str, argument: Any = None) -> None:
        """Until a JavaScript condition holds. By evaluation: the page's policy allows no script of strings."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.page.evaluate(condition, argument):
            assert time.monotonic() < deadline, f"not in {TIMEOUT_S:.0f} s: {condition}; {self.errors}"
            self.page.wait_for_timeout(50)

    def wait_for_image(self) -> None:
        self.wait("document.getElementById('caption').textContent.startsWith('series')")

    def view(self, name: str) -> None:
        """Open one of now, run, scan, performance, settings."""
        self.page.locator(f"[data-view={name}]").click()


class Served:
    """``cxls analyze`` on a source, serving the page at one address however often it is ended and started."""

    def __init__(self, source: object, port: int, *options: object) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self._arguments = ("analyze", source, "--listen", f"127.0.0.1:{port}", *options)
        self.start()

    def start(self) -> None:
        self.program = Child(*self._arguments)
        self.program.listening("http")

    def kill(self) -> None:
        self.program.process.send_signal(signal.SIGKILL)
        self.program.process.wait()


def write_token(folder: Path) -> tuple[Path, str]:
    """A token and the file of mode 0600 that has it."""
    path, token = folder / "token", "a-token-for-tests"
    path.touch(mode=0o600)
    path.write_text(token)
    return path, token
