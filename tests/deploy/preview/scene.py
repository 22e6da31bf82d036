"""A real run to look at: simulated series, replayed, analysed, and watched by Prometheus."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from tests.cxls.programs import LOOPBACK, Child, cxls, wait_for
from tests.deploy.preview.panels import Span
from tests.deploy.preview.server import Prometheus
from tests.support import free_port

SETTLED_S = 2.5
"""Until two scrapes and an evaluation of the rules have seen the last images."""


@dataclass(frozen=True)
class Scene:
    """What is simulated and how it is sent."""

    hit_fractions: Sequence[float]
    """One file each, replayed in this order."""

    frames: int
    """In each file."""

    repeats: int
    """How often each file is sent before the next."""

    rate_hz: float
    flux: float
    """Photons a pulse. The more, the fewer images tell photon energy and camera length; bundles are made for 3e8."""


@dataclass(frozen=True)
class Watched:
    """A run that was sent whole and analysed whole, while the analysis and Prometheus still run."""

    prometheus: Prometheus
    analysis: Child
    span: Span
    sent: int
    series: int

    def status(self) -> dict[str, Any]:
        return _status(self.span.instance)


@contextmanager
def watched(folder: Path, scene: Scene) -> Iterator[Watched]:
    """Play the scene; the body sees its end."""
    instance = f"127.0.0.1:{free_port()}"
    # Prometheus scrapes a target first some seconds after it learns of it: it waits for the analysis, not the reverse.
    with Prometheus(folder, instance) as prometheus:
        masters = [_simulated(folder, scene, n) for n in range(len(scene.hit_fractions))]
        playlist = [master for master in masters for _ in range(scene.repeats)]
        outputs = ["--results", folder / "results.jsonl", "--hits", folder / "hits"]
        wait_for(lambda: bool(prometheus.query("up")))
        start = time.time()
        with Child("replay", *playlist, "--rate", scene.rate_hz, "--bind", LOOPBACK) as replay:
            stream = replay.listening("replay")
            with Child("analyze", stream, "--listen", instance, "--on-full", "block", *outputs) as analysis:
                series, sent = _sent(replay)
                wait_for(lambda: _settled(instance) == sent, 120)
                wait_for(lambda: _status(instance)["estimate"].get("photon_energy_eV") is not None)
                time.sleep(SETTLED_S)
                yield Watched(prometheus, analysis, Span(start, time.time(), instance), sent, series)


def _sent(replay: Child) -> tuple[int, int]:
    """Series and images that the replay says it sent, once it is through."""
    assert replay.end(timeout_s=240) == 0, replay.errors
    assert replay.process.stdout is not None
    said = replay.process.stdout.read()
    found = re.search(r"(\d+) series, (\d+) images sent, 0 dropped", said)
    assert found, said
    return int(found[1]), int(found[2])


def _simulated(folder: Path, scene: Scene, number: int) -> Path:
    out = folder / f"scene-{number}"
    options = {"frames": scene.frames, "flux": scene.flux, "seed": number, "hit-fraction": scene.hit_fractions[number]}
    done = cxls("simulate", out, *(part for name, value in options.items() for part in (f"--{name}", value)))
    assert done.returncode == 0, done.stderr
    master = out.with_name(f"{out.name}_master.h5")
    with h5py.File(master, "r+") as file:
        # The detector says the rate at which it is replayed.
        file["entry/instrument/detector/frame_time"][...] = 1 / scene.rate_hz
    return master


def _settled(instance: str) -> int:
    account = _status(instance)["account"]
    settled: int = sum(account["processed"].values()) + sum(account["dropped"].values())
    return settled


def _status(instance: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{instance}/status", timeout=10) as answer:
        status: dict[str, Any] = json.load(answer)
        return status
