"""The files that the settings name, read as a run reads them first."""

from collections.abc import Iterator
from pathlib import Path

from analyzer.attribute_cascade import open_models
from analyzer.bundle import DEFAULT_BUNDLE, BadBundle, load_bundle
from cxls.commands.analyze import cascade_settings, read_calibration
from cxls.doctor.finding import Finding, fail, ok
from cxls.given_cell import read_known_cell
from cxls.settings import AnalyzeSettings, BadSettings
from cxls.token_file import read_token

_NAMED = ("mask", "geometry", "calibration", "cell", "control_token", "model")


def readable(settings: AnalyzeSettings) -> Iterator[Finding]:
    """Whether masks, geometry, calibration, cell, token and single models can be read and are what they should be."""
    try:
        cascade_settings(settings)
        read_known_cell(settings.cell, settings.space_group)
        if settings.calibration is not None:
            read_calibration(settings, load_bundle(settings.bundle or DEFAULT_BUNDLE).label)
        if settings.control_token is not None:
            read_token(settings.control_token, "--control-token")
        open_models([Path(folder) for folder in settings.model], "cpu")
    except (BadSettings, BadBundle) as error:
        yield fail("files", str(error), "see the setting that it names")
        return
    if named := [name.replace("_", "-") for name in _NAMED if getattr(settings, name)]:
        yield ok("files", f"{', '.join(named)} can be read")
