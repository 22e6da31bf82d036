"""A Prometheus of one's own, with the repository's configuration and rules, that looks every second."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.cxls.programs import wait_for
from tests.support import free_port

DEPLOY = Path(__file__).parents[3] / "deploy"


class Prometheus:
    """Scrapes ``target`` until closed; its data lie in ``folder``."""

    def __init__(self, folder: Path, target: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        for ours, here in (
            ("_interval: 5s", "_interval: 1s"),
            ("rules/*.yml", str(DEPLOY / "prometheus" / "rules" / "*.yml")),
            ("127.0.0.1:8080", target),
        ):
            assert ours in config, f"prometheus.yml does not say {ours}"
            config = config.replace(ours, here)
        (folder / "prometheus.yml").write_text(config)
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.address}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        wait_for(self._ready)

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that answer an instant query now, each with ``metric`` and ``value``."""
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def query_range(self, expr: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """The series that answer, each with ``metric`` and ``values``; ``start`` and ``end`` in Unix seconds."""
        asked = {"query": expr, "start": f"{start}", "end": f"{end}", "step": f"{step_s}"}
        found: list[dict[str, Any]] = self.get("query_range", **asked)["result"]
        return found

    def get(self, what: str, **asked: str) -> dict[str, Any]:
        """The ``data`` of an endpoint of the API; AssertionError with Prometheus' words where it refuses."""
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{asked}: {error.read().decode()}") from None
        data: dict[str, Any] = body["data"]
        return data

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def __enter__(self) -> "Prometheus":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ready(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
