"""Fixtures of the front door's tests."""

from pathlib import Path

import pytest

from tests.analyzer.builders import frames_of_a_run, write_bundle, write_series


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights."""
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of 12 small images without a mask."""
    return write_series(tmp_path_factory.mktemp("series"), frames_of_a_run(12))
