"""The reduction's kernels as text: written from the CPU's constants, compiled for a GPU, run under sanitizers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from analyzer import diffuse, evidence, kernels, spots
from analyzer.cuda.compiler import SOURCES as FOLDER
from analyzer.cuda.compiler import NoDevice, compiled, source_of
from analyzer.cuda.layout import (
    COUNTED_WORDS,
    HEADER_DTYPE,
    KEPT_WHOLE,
    MOST_CANDIDATES,
    MOST_CELLS_ACROSS,
    MOST_CLAIMS,
    SPOT_DTYPE,
    Reduction,
    Sizes,
    header,
    result_dtype,
    slab,
)
from analyzer.cuda.reduce import OPTIONS, SOURCES, load
from analyzer.reduction import CELL, PEAK_DTYPE, Workspace
from tests.analyzer.builders import plan
from tests.analyzer.cuda.host_build import has_sanitizers
from tests.support import REPOSITORY, require, required

_NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?|-?\d+e[-+]?\d+")


def test_the_header_of_the_kernels_is_written_from_the_constants_of_today() -> None:
    kept, now = source_of("reduce_layout.cuh"), header()
    assert _NUMBER.sub("x", kept).split() == _NUMBER.sub("x", now).split(), "run python -m analyzer.cuda.layout"
    # Another machine's mathematics may round otherwise.
    numbers = [[float(each) for each in _NUMBER.findall(text)] for text in (kept, now)]
    np.testing.assert_allclose(*numbers, rtol=1e-12)


def test_structures_have_one_size_on_both_sides(tmp_path: Path) -> None:
    require("g++")
    sizes = {"Reduction": Reduction, "Spot": SPOT_DTYPE, "Header": HEADER_DTYPE}
    lines = ["#define CXLS_HOST", '#include "prelude.cuh"', '#include "reduce_layout.cuh"', "#include <cstddef>"]
    for name, kind in sizes.items():
        size = kind.itemsize if isinstance(kind, np.dtype) else np.dtype(kind).itemsize
        lines.append(f'static_assert(sizeof({name}) == {size}, "{name}");')
    offset = {name: getattr(Reduction, name).offset for name, _ in Reduction._fields_}
    lines += [f'static_assert(offsetof(Reduction, {name}) == {at}, "{name}");' for name, at in offset.items()]
    text = tmp_path / "sizes.cpp"
    text.write_text("\n".join(lines))
    made = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", "-Wno-unused", "-I", str(FOLDER), str(text)],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr


def test_lists_hold_as_much_as_on_the_cpu() -> None:
    workspace = Workspace(plan((8, 8)), np.dtype("u2"))
    assert workspace._candidate_index.size == MOST_CANDIDATES
    assert workspace._claim_index.size == MOST_CLAIMS
    # Counts that are kept without limit are told by the largest number of 32 bits; no pixel and no limit reaches it.
    assert kernels.KEPT_WHOLE > KEPT_WHOLE > 9 * 0xFFFF > diffuse._MOST_COUNTS


def test_sums_in_shared_memory_cannot_overflow() -> None:
    assert COUNTED_WORDS * 64 * 0xFFFF < 1 << 32
    assert CELL**2 * 0xFFFF < 1 << 32
    assert evidence.TABLE.shape[2] <= 128
    assert spots.CLASS.max() < len(spots.DISTANCES)


@pytest.mark.parametrize("source", SOURCES)
def test_the_kernels_compile_for_a_gpu_without_one(source: str) -> None:
    require("cuda.bindings.nvrtc", "cuda-bindings")
    made = compiled(source, (9, 0), None, (*OPTIONS, "--ptxas-options=-v"))
    assert made.image[:4] == b"\x7fELF"
    assert "warning" not in made.log
    spilled = [int(each) for each in re.findall(r"(\d+) bytes spill stores", made.log)]
    shared = [int(each) for each in re.findall(r"(\d+) bytes smem", made.log)]
    assert spilled
    assert max(spilled) <= 160
    assert max(shared, default=0) <= 48 << 10


def test_without_a_device_there_are_no_programs() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(NoDevice, match="CPU does the work"):
        load()


def test_a_frames_buffers_do_not_meet_and_its_results_are_aligned() -> None:
    sizes = Sizes(61, 75, 30, 60, 65534, 1)
    offsets, zeroed, size = slab(sizes)
    starts = sorted(offsets.values())
    assert all(start % 256 == 0 for start in starts)
    assert len(set(starts)) == len(starts)
    assert 0 < zeroed < size
    result = result_dtype(sizes)
    assert result.fields is not None
    ends = 0
    for name in result.names or ():
        kind, at = result.fields[name][:2]
        assert at >= ends
        assert at % 8 == 0
        ends = at + kind.itemsize
    assert result["peaks"].base == PEAK_DTYPE
    assert MOST_CELLS_ACROSS * CELL * CELL < 1 << 31


def test_nothing_is_read_or_written_out_of_place() -> None:
    require("g++")
    if not has_sanitizers():
        if required("g++"):
            pytest.fail("g++ is required (CXLS_TEST_REQUIRE) and comes without libasan")
        pytest.skip("g++ comes without libasan")
    sanitizer = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    child = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("reduce_child.py"))], capture_output=True, text=True,
        env={**os.environ, "LD_PRELOAD": sanitizer.stdout.strip(), "PYTHONPATH": str(REPOSITORY),
             "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-4000:]
    assert "frames" in child.stdout
