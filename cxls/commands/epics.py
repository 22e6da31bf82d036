"""``cxls analyze --epics``: the server of process variables, made from settings."""

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from analyzer import logs
from analyzer.live.frames import Look
from cxls.cli import listening
from cxls.settings import AnalyzeSettings, BadSettings

if TYPE_CHECKING:
    from analyzer.epics import EpicsServer

log = logging.getLogger(__name__)


def check_epics(settings: AnalyzeSettings) -> None:
    """Refuse what cannot work before anything is slow. Raises ``BadSettings``."""
    if settings.epics is None:
        if settings.epics_reset:
            raise BadSettings("--epics-reset: there is nothing to reset by; give --epics PREFIX too")
        return
    try:
        importlib.import_module("p4p")
    except ImportError:
        raise BadSettings("--epics: p4p is not installed; run: pip install 'cxls-analyzer[epics]'") from None


def open_epics(
    settings: AnalyzeSettings,
    status: Callable[[], Mapping[str, Any]],
    latest: Callable[[], Look | None],
    reset: Callable[[], object],
) -> "EpicsServer | None":
    """The server, ``None`` without ``--epics``; it says where it listens. Raises ``BadSettings``."""
    if settings.epics is None:
        return None
    epics = importlib.import_module("analyzer.epics")
    try:
        server: EpicsServer = epics.EpicsServer(
            settings.epics, settings.epics_interface, status, latest, reset if settings.epics_reset else None
        )
    except epics.BadEpics as error:
        raise BadSettings(f"--epics {error}") from None
    listening("epics", server.address)
    if not server.loopback:
        may = "read, and reset by PREFIX:Reset," if settings.epics_reset else "read"
        log.warning(
            "--epics-interface %s: whoever reaches this address may %s what this run shows; there is no password",
            settings.epics_interface,
            may,
            extra=logs.event("epics_open"),
        )
    return server
