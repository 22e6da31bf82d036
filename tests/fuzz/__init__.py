"""Targets of coverage-guided fuzzing: each a module with ``one(data)``, which fails for an input that shows a fault,
and ``seeds()``, inputs to begin with. Their kept inputs lie in ``corpus/NAME``.
"""

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "stream_v1": (("streamer",), ()),
    "stream_v2": (("streamer",), ()),
    "image_reader": (("streamer",), ()),
    "decoder": (("streamer",), ("streamer.decoding",)),
    "geometry": (("streamer",), ()),
    "text_files": (("streamer", "sim_replay", "analyzer", "cxls"), ()),
    "crew_wire": (("analyzer",), ()),
    "control": (("analyzer",), ()),
}
"""Targets: packages whose branches are counted, and modules of compiled functions that are run as they are written."""


def said_well(error: Exception, most: int = 400) -> None:
    """A refusal is one line, and not a long one, whatever was refused."""
    text = str(error)
    assert "\n" not in text.strip(), f"a refusal of several lines: {text[:400]!r}"
    assert len(text) < most, f"a refusal of {len(text)} characters: {text[:400]!r}"
