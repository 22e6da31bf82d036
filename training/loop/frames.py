"""Frames cut and binned as the analyser cuts and bins them, so that a network sees later what it was trained on."""

from analyzer.framing import Framing, parse_size

__all__ = ["Framing", "parse_size"]
