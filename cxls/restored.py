"""What was changed in a run that was killed, put on again by the run that follows it."""

import logging
from pathlib import Path
from typing import Any

from analyzer import logs
from analyzer.kept_changes import KINDS, Asked
from analyzer.peak_parameters import RANGES
from analyzer.restart import Restart
from analyzer.web.control import ControlEndpoints
from cxls.settings import AnalyzeSettings

log = logging.getLogger(__name__)

_NAMES = (
    "bundle", "threshold", "calibration", "mask", "channel", "peak_finder", *(key for key in RANGES if key != "finder"),
    "run_number", "sample_name", "target_hits", "target_indexed",
)  # fmt: skip
"""Settings that say the same as a change."""


def started_with(settings: AnalyzeSettings) -> dict[str, Any]:
    """The settings that changes are compared with, as plain values."""
    return {name: _plain(getattr(settings, name)) for name in _NAMES}


def _plain(value: Any) -> Any:
    text = str(value.absolute()) if isinstance(value, Path) else value
    # A name that is no UTF-8 would fit into no JSON.
    return text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text


def restore(restart: Restart, endpoints: ControlEndpoints) -> None:
    """Ask again for what the killed run was asked for. What cannot be is told, and the run goes on without it."""
    for kind, instead in restart.overruled:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in instead)
        log.info(
            "control: %s of the killed run gives way to %s, which is another than it was started with", kind, names,
            extra=logs.event("control_unrestored", action=kind, why=names),
        )  # fmt: skip
    left = sorted(restart.asked.values(), key=lambda asked: KINDS.index(asked.kind))
    restart.asked = {}
    if not endpoints.enabled:
        for asked in left:
            endpoints.give_up(asked.kind, "this run was started without --control-token")
        return
    refused: list[tuple[Asked, str]] = []
    while left:
        tried = [(asked, endpoints.restore(asked)) for asked in left]
        refused = [(asked, why) for asked, why in tried if why is not None]
        if len(refused) == len(left):
            break
        # A bundle may need the finder that is restored after it, or the finder its bundle.
        left = [asked for asked, _ in refused]
    for asked, why in refused:
        endpoints.give_up(asked.kind, why)
    restart.on_header = endpoints.look_at_header
