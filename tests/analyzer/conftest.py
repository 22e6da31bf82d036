"""Fixtures of the analyser's tests."""

from pathlib import Path

import pytest

from analyzer.bundle import Bundle, load_bundle
from tests.analyzer.builders import write_bundle


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights."""
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    return load_bundle(bundle_folder)
