"""Errors of libraries in one line."""

import pytest

from streamer.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("Unable to open file\n(truncated)"), "Unable to open file"),
        (RuntimeError("\n  CUDA error: unspecified launch failure\nstack"), "CUDA error: unspecified launch failure"),
        (RuntimeError(), "RuntimeError"),
        (KeyError(" "), "' '"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_an_error_is_one_line_whatever_its_text(error: Exception, line: str) -> None:
    assert first_line(error) == line
