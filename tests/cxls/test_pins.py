"""What is installed is what was pinned: nothing is taken from wherever, in whatever version is new."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
_OF_TORCH = re.compile(r"nvidia-.*|triton|cuda-.*")
"""Of a build for CUDA; torch pins each of them itself."""


def pins() -> dict[str, str]:
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in found.items()}


def needed() -> dict[str, str]:
    """Names and versions of all that is installed because of us, with the test extra."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [("cxls-analyzer", frozenset({"test"}))]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        found[canonicalize_name(name)] = installed.version
        for text in installed.requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": each}) for each in extras | {""}):
                waiting.append((wanted.name, frozenset(wanted.extras)))
    del found["cxls-analyzer"]
    return found


def test_every_line_pins_one_version_and_has_no_address() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+|#[^/]*|", line), line


def test_all_that_is_installed_for_us_is_pinned_to_the_version_that_is_there() -> None:
    pinned = pins()
    loose = {
        name: (version, pinned.get(name))
        for name, version in needed().items()
        if not _OF_TORCH.fullmatch(name) and version.split("+")[0] != (pinned.get(name) or "").split("+")[0]
    }
    assert len(needed()) > 50
    assert not loose


def test_the_audit_looks_at_what_is_pinned() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\naudit:")[1].split("\n\n")[0]
    assert "pip-audit" in recipe
    assert "constraints.txt" in recipe
