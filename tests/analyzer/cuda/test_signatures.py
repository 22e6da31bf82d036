"""What kernels take is read from their source."""

import ctypes
from typing import Any

import pytest
import torch

from analyzer.cuda.compiler import SOURCES, source_of
from analyzer.cuda.signatures import Kernel, kernels_of, pack

CPU = torch.device("cpu")
TEXT = """
#define WARP 32
constexpr int MANY = 256;
// KERNEL(not_this, 32, int a) {
KERNEL(first, WARP, const float* __restrict__ in, // KERNEL(nor, 1, int a)
       int64_t n, /* a, b */ float scale, uint8_t small) {
}
KERNEL(second,MANY,int* out,const double x){}
KERNEL(third, 64, bool yes) {}
"""


def test_kernels_are_read_with_their_threads_and_parameters() -> None:
    kernels = kernels_of(TEXT)
    assert kernels == {
        "first": Kernel("first", 32, (ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_uint8)),
        "second": Kernel("second", 256, (ctypes.c_void_p, ctypes.c_double)),
        "third": Kernel("third", 64, (ctypes.c_bool,)),
    }


def test_every_kernel_of_ours_is_read() -> None:
    for path in SOURCES.glob("*.cu"):
        text = source_of(path.name)
        assert len(kernels_of(text)) == sum(line.startswith("KERNEL(") for line in text.splitlines()) > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("KERNEL(k, THREADS, int a) {}", "has THREADS threads"),
        ("KERNEL(k, 32, Frame frame) {}", "'Frame frame'"),
        ("KERNEL(k, 32, unsigned int a) {}", "'unsigned int a'"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels_of(text)


def test_arguments_become_values_of_the_parameters_widths() -> None:
    tensor = torch.arange(5)
    values = pack(kernels_of(TEXT)["first"], [tensor, -(1 << 62), 0.5, 255], CPU)
    assert [type(value) for value in values] == [ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_uint8]
    assert [value.value for value in values] == [tensor.data_ptr(), -(1 << 62), 0.5, 255]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([torch.zeros(3), 1, 0.5], "takes 4 arguments, not 3"),
        ([0x1000, 1, 0.5, 1], "argument 0 of first is a pointer"),
        ([torch.zeros(4, 4).T, 1, 0.5, 1], "contiguous"),
        ([torch.zeros(3, device="meta"), 1, 0.5, 1], "on cpu, not on meta"),
        ([torch.zeros(3), torch.zeros(1), 0.5, 1], "argument 1 of first is a number"),
        ([torch.zeros(3), 1.0, 0.5, 1], "whole number of 64 bits"),
        ([torch.zeros(3), 1 << 63, 0.5, 1], "whole number of 64 bits"),
        ([torch.zeros(3), 1, 0.5, 256], "whole number of 8 bits"),
        ([torch.zeros(3), 1, 0.5, -1], "whole number of 8 bits"),
    ],
)
def test_arguments_that_do_not_suit_are_refused(arguments: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(kernels_of(TEXT)["first"], arguments, CPU)
