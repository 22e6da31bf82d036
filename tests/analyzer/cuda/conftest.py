"""The kernels as every test of them runs them: on the CPU always, on a device where there is one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from analyzer.cuda import device
from analyzer.cuda.program import Program
from tests.analyzer.cuda.host_build import HostProgram, LanesProgram, WatchedProgram, has_sanitizers
from tests.support import require, required


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No device is lost yet, and what a test keeps of one."""
    of_this_test: list[Any] = []
    monkeypatch.setattr(device, "_lost", {})
    monkeypatch.setattr(device, "_kept", of_this_test)
    return of_this_test


@pytest.fixture(scope="session")
def host_decoder(tmp_path_factory: pytest.TempPathFactory) -> HostProgram:
    return HostProgram("bslz4.cu", tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def watched_decoder(tmp_path_factory: pytest.TempPathFactory) -> WatchedProgram:
    """The decoder under the sanitizers of addresses and of undefined behaviour."""
    require("g++")
    if not has_sanitizers():
        if required("g++"):
            pytest.fail("g++ is required (CXLS_TEST_REQUIRE) and comes without libasan")
        pytest.skip("g++ comes without libasan")
    return WatchedProgram("bslz4.cu", tmp_path_factory.mktemp("watched"))


@pytest.fixture
def lanes_decoder(tmp_path: Path) -> LanesProgram:
    return LanesProgram("bslz4.cu", tmp_path)


@pytest.fixture(scope="session")
def device_decoder(tmp_path_factory: pytest.TempPathFactory) -> Program:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Program("bslz4.cu", cache=tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["host_decoder", pytest.param("device_decoder", marks=pytest.mark.gpu)])
def program(request: pytest.FixtureRequest) -> Any:
    """What launches the decoder's kernels."""
    return request.getfixturevalue(request.param)
