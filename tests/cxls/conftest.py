"""Fixtures of the front door's tests."""

from pathlib import Path

import pytest

from tests.analyzer.builders import frames_of_a_run, write_bundle, write_series
from tests.analyzer.test_control import renamed
from tests.cxls.programs import TOKEN


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights."""
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of 12 small images without a mask."""
    return write_series(tmp_path_factory.mktemp("series"), frames_of_a_run(12))


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the token of control, for its owner alone."""
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def second(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle by another name."""
    return renamed(bundle_folder, tmp_path_factory.mktemp("second") / "b", "second")
