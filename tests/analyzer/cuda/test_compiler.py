"""NVRTC makes images for devices that are not here, and the disk keeps them."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from analyzer.cuda import compiler
from analyzer.cuda.compiler import NoDevice, compiled, default_cache, source_of
from analyzer.cuda.signatures import kernels_of
from tests.support import require

SOURCE = "bslz4.cu"
_USED = re.compile(r"Used (\d+) registers.*?(\d+) bytes smem")
_SM_SHARED_BYTES = 228 * 1024
_SM_REGISTERS = 65536
_BLOCK_OWN_BYTES = 1024
"""Compute capability 9.0, CUDA programming guide: of a multiprocessor, and what every block takes besides its own."""


@pytest.fixture(autouse=True)
def _nvrtc() -> None:
    require("cuda.bindings.nvrtc", "cuda-bindings")


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_the_decoder_compiles_without_spilling(capability: tuple[int, int]) -> None:
    made = compiled(SOURCE, capability, None, ["--ptxas-options=-v"])
    kernels = kernels_of(source_of(SOURCE))
    assert made.image.startswith(b"\x7fELF")
    assert all(name.encode() in made.image for name in kernels)
    assert made.log.count("Compiling entry function") == len(kernels)
    assert made.log.count(" 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == len(kernels)
    assert "warning" not in made.log


def test_24_blocks_of_the_decoder_run_on_a_multiprocessor_at_once() -> None:
    used = _USED.findall(compiled(SOURCE, (9, 0), None, ["--ptxas-options=-v"]).log)
    assert len(used) == len(kernels_of(source_of(SOURCE)))
    for registers, shared in used:
        assert 24 * (int(shared) + _BLOCK_OWN_BYTES) <= _SM_SHARED_BYTES
        assert 24 * 32 * int(registers) <= _SM_REGISTERS


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """A source that compiles at once."""
    text = '#include "prelude.cuh"\nKERNEL(small, 32, int* out) { LANES(i, 32) out[i] = i; }\n'
    monkeypatch.setattr(compiler, "source_of", lambda name: text)
    return text


def test_a_compiled_image_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: str) -> None:
    cache = tmp_path / "deep" / "kernels"
    image = compiled(SOURCE, (9, 0), cache).image
    (kept,) = cache.iterdir()
    monkeypatch.setattr(compiler, "_compile", _not_again)
    assert compiled(SOURCE, (9, 0), cache).image == image
    for other in (((8, 0), ()), ((9, 0), ("--fmad=false",))):
        with pytest.raises(AssertionError, match="not again"):
            compiled(SOURCE, other[0], cache, other[1])
    monkeypatch.setattr(compiler, "source_of", lambda name: small + "// more\n")
    with pytest.raises(AssertionError, match="not again"):
        compiled(SOURCE, (9, 0), cache)
    assert list(cache.iterdir()) == [kept]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_a_damaged_cache_costs_only_the_time_to_compile(tmp_path: Path, damage: str, small: str) -> None:
    image = compiled(SOURCE, (9, 0), tmp_path).image
    (kept,) = tmp_path.iterdir()
    content = kept.read_bytes()
    kept.unlink()
    if damage == "folder":
        kept.mkdir()
    else:
        kept.write_bytes({"cut": content[:-9], "flipped": content[:-1] + b"?", "empty": b""}[damage])
    assert compiled(SOURCE, (9, 0), tmp_path).image == image
    if damage != "folder":
        assert kept.read_bytes() == content
    assert list(tmp_path.iterdir()) == [kept]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, small: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert compiled(SOURCE, (9, 0), tmp_path / "file" / "kernels").image


def test_a_device_newer_than_the_compiler_gets_what_its_driver_can_compile(small: str) -> None:
    made = compiled(SOURCE, (19, 9), None)
    assert b".target sm_" in made.image
    assert b".entry small" in made.image


def test_a_device_older_than_the_compiler_is_none() -> None:
    with pytest.raises(NoDevice, match=r"capability 3\.5"):
        compiled(SOURCE, (3, 5), None)


def test_without_nvrtc_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(NoDevice, match="install cuda-bindings"):
        compiled(SOURCE, (9, 0), None)


def test_what_does_not_compile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "source_of", lambda name: "int nothing() { return missing; }")
    with pytest.raises(RuntimeError, match=r"bslz4.cu does not compile with .*sm_90(.|\n)*missing") as caught:
        compiled(SOURCE, (9, 0), tmp_path)
    assert not isinstance(caught.value, NoDevice)
    assert not list(tmp_path.iterdir())


def test_the_cache_is_in_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "cxls" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "cxls" / "kernels"


def _not_again(*_: Any) -> Any:
    raise AssertionError("not again")
