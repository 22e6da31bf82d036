"""What a run says of itself: ``/status``, and what the live page is sent of it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from analyzer.alarms import Alarms
from analyzer.front import Front
from analyzer.parameters.running import Curve
from analyzer.results import FrameResult, record

_CURVES_S = 1.5
"""Curves younger than this are given again: they are long, and several may ask."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What depends on what frames are judged with; replaced as a whole when that changes.

    ``estimate`` gives the running parameters, ``curve`` what they were fitted to; ``facts`` (bundle, threshold, mask)
    go into /status.
    """

    registry: CollectorRegistry
    estimate: Callable[[], dict[str, Any]]
    facts: dict[str, Any]
    curve: Callable[[], Curve | None] = lambda: None


class StatusReport:
    """Answers for one front. ``view`` is set before anyone asks, and may be replaced; ``ready`` says that everything is
    open and warm. ``more`` gives further keys of /status.
    """

    view: View

    def __init__(self, front: Front, alarms: Alarms, more: Callable[[], dict[str, Any]] = dict) -> None:
        self.ready = False
        self._started_at = time.time()
        self._front, self._alarms, self._more = front, alarms, more
        self._lock = threading.Lock()
        self._curves: tuple[float, bytes] = (0.0, b"")
        self._hits: tuple[int, bytes] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether frames are analysed, and will be."""
        return self.ready and not self._front.stopping

    def snapshot(self) -> dict[str, Any]:
        """Everything of ``/status``, consistent as far as it can be without stopping anything."""
        front, account, view = self._front, self._front.account, self.view
        # Outcomes before arrivals, so that a frame in between is in flight and not lost.
        settled = {
            "processed": dict(account.processed),
            "dropped": dict(account.dropped),
            "undecodable": dict(account.undecodable),
        }
        now = time.time()
        return {
            "time": now,
            "started_at": self._started_at,
            "ready": self.is_ready,
            "connected": front.source.connected,
            "series_open": front.series_open,
            "over": front.over,
            **view.facts,
            "mask_unfit": front.products.mask_unfit or None,
            "queue_frames": len(front.ring),
            "queue_capacity_frames": front.ring.capacity,
            "sampling": front.sampler.facts,
            "device_faults": front.device_faults,
            "account": {
                "announced": account.announced,
                "received": account.received,
                **settled,
                "missing": account.missing,
                "messages_invalid": account.invalid,
                "oddities": account.oddities,
                "identity": account.identity(),
            },
            "rates": front.history.rates(now),
            "targets": front.targets.facts(),
            "alarms": self._alarms.facts(),
            "estimate": view.estimate(),
            "header": self._header(),
            **{output.name: output.facts() for output in front.reporting},
            **self._more(),
            **front.running.snapshot(),
        }

    def state(self) -> bytes:
        """The message of the state: the snapshot without what is long."""
        status = self.snapshot()
        status.pop("history", None)
        for key in ("last", "last_hit"):
            status[key] = _short(status[key])
        if isinstance(status.get("indexing"), dict):
            status["indexing"] = {key: value for key, value in status["indexing"].items() if key != "cells"}
        return msgspec.json.encode({"kind": "state", "status": status})

    def curves(self) -> bytes:
        """The message of what is drawn as curves, up to ``_CURVES_S`` old."""
        with self._lock:
            made_s, message = self._curves
            if message and time.monotonic() - made_s < _CURVES_S:
                return message
            message = msgspec.json.encode({"kind": "curves", **self.gathered()})
            self._curves = time.monotonic(), message
            return message

    def hits(self) -> bytes:
        """The message of the hits that can be looked at, the same one as long as they are the same."""
        frames = self._front.latest
        with self._lock:
            if self._hits is None or self._hits[0] != frames.changes:
                changes = frames.changes
                message = msgspec.json.encode({"kind": "hits", "held": [look.facts for look in frames.hits()]})
                self._hits = changes, message
            return self._hits[1]

    def gathered(self) -> dict[str, Any]:
        """What is drawn as curves, as plain values."""
        front = self._front
        with front.running.lock:
            scatter = front.running.latest_history()
        return {
            **front.history.curves(),
            "split": None if front.split is None else front.split.facts(),
            "map": None if front.map is None else front.map.facts(),
            "profile": self._profile(),
            "scatter": scatter,
            "cells": self._cells(),
        }

    def _profile(self) -> dict[str, Any] | None:
        curve, geometry = self.view.curve(), self._front.products.geometry
        if curve is None:
            return None
        q = None if geometry is None else geometry.q_at(curve.radius_px)
        along = curve.radius_px if q is None else q
        return {
            "unit": "px" if q is None else "1/angstrom",
            "x": [round(float(value), 5) for value in along],
            "measured": [float(f"{value:.5g}") for value in curve.measured],
            "model": None if curve.fitted is None else [float(f"{value:.5g}") for value in curve.fitted],
            "frames": round(curve.frames),
            "label": "photons a pixel a frame",
        }

    def _cells(self) -> dict[str, Any] | None:
        for output in self._front.reporting:
            facts = output.facts()
            if facts.get("cells"):
                return {"lattice": facts.get("lattice"), "values": facts["cells"]}
        return None

    def _header(self) -> dict[str, Any] | None:
        metadata, latest = self._front.running.shown_header, self._front.running.metadata
        if metadata is None or latest is None:
            return None
        return {
            "shape": metadata.shape,
            "photon_energy_eV": metadata.photon_energy_eV,
            "camera_length_m": metadata.camera_length_m,
            "beam_center_x_px": metadata.beam_center_x_px,
            "beam_center_y_px": metadata.beam_center_y_px,
            "number_of_images": latest.number_of_images,
            "frame_time_s": latest.frame_time_s,
        }


def _short(result: FrameResult | None) -> dict[str, Any] | None:
    """A record without its peaks."""
    return None if result is None else {key: value for key, value in record(result).items() if key != "peaks"}
