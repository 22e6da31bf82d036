"""The threat model names tests, files and metrics: each of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()


def test_every_test_that_the_page_names_is_one() -> None:
    texts = [file.read_text() for file in (ROOT / "tests").rglob("test_*.py")]
    functions = {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 50
    assert named <= functions


def test_every_file_that_the_page_names_is_there() -> None:
    for name in re.findall(r"`((?:streamer|analyzer|cxls|deploy|tests)/[\w/.]+)`", PAGE):
        assert (ROOT / name).exists(), name


def test_every_metric_that_the_page_names_is_described() -> None:
    described = "".join((ROOT / "docs" / name).read_text() for name in ("metrics.md", "indexing.md", "broadcast.md"))
    named = set(re.findall(r"`(cxls_\w+)", PAGE))
    assert len(named) > 10
    assert not {name for name in named if name not in described}
