"""Python, packages, what is compiled, the decoder, the device and the model bundle."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import bitshuffle
import numpy as np
import torch
from numba.core.registry import CPUDispatcher

import analyzer.kernels
import analyzer.peak_tiles
import streamer.listing
from analyzer.bundle import DEFAULT_BUNDLE, BadBundle, load_bundle
from analyzer.cuda.compiler import NoDevice, compiled, default_cache
from analyzer.cuda.engine import KERNELS
from analyzer.warm import check_bundle
from cxls.doctor.finding import Finding, fail, ok, warn
from streamer import decoding
from streamer.errors import first_line
from streamer.messages import Algorithm, ImageData, UndecodableImage

DISTRIBUTION = "cxls-analyzer"
_NAMED = ("torch", "numpy", "pyzmq", "numba", "bitshuffle", "h5py")
_COMPILED = (decoding, streamer.listing, analyzer.kernels, analyzer.peak_tiles)
_SPECIFIER = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9][0-9A-Za-z.]*)")
_MIB = 1 << 20


def python() -> Iterator[Finding]:
    """The interpreter against what the distribution asks for."""
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    version = platform.python_version()
    if satisfies(version, wanted):
        yield ok("python", f"{version} at {sys.executable}, {DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
    else:
        yield fail("python", f"{version}, wanted {wanted}", "make the environment anew with such a Python")


def packages() -> Iterator[Finding]:
    """Every package that the program needs, in a version that it takes."""
    wrong, found = [], {}
    for requirement in metadata.requires(DISTRIBUTION) or []:
        wanted, _, marker = requirement.partition(";")
        if "extra" in marker:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", wanted, maxsplit=1)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.strip()} is not installed")
            continue
        if not satisfies(found[name], wanted[len(name) :]):
            wrong.append(f"{name} {found[name]}, wanted {wanted[len(name) :].strip()}")
    if wrong:
        yield fail("packages", "; ".join(wrong), f"pip install -c constraints.txt {DISTRIBUTION} into this environment")
    else:
        named = ", ".join(f"{name} {found[name]}" for name in _NAMED if name in found)
        yield ok("packages", f"{len(found)} as wanted, among them {named}")


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version's numbers fit specifiers such as ``>=3.11,<3.13``."""
    have = _numbers(version)
    for operator, limit in _SPECIFIER.findall(wanted):
        bound = _numbers(limit)
        width = max(len(have), len(bound))
        a, b = (each + (0,) * (width - len(each)) for each in (have, bound))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"(?:\d+!)?([0-9]+(?:\.[0-9]+)*)", version)
    return tuple(int(part) for part in release[1].split(".")) if release else ()


def kernels() -> Iterator[Finding]:
    """Whether what numba compiles is kept, so that only the first start takes a minute."""
    compiled_here = [each for module in _COMPILED for each in vars(module).values() if isinstance(each, CPUDispatcher)]
    stats: list[Any] = [each.stats for each in compiled_here]
    places = {stat.cache_path for stat in stats if stat.cache_path}
    new = sum(sum(stat.cache_misses.values()) for stat in stats)
    closed = sorted(place for place in places if not os.access(place, os.W_OK))
    if closed and new:
        yield warn(
            "compiled", f"{closed[0]} cannot be written: every start compiles for about a minute",
            "set NUMBA_CACHE_DIR to a folder that this user may write",
        )  # fmt: skip
    elif new:
        yield ok("compiled", f"{new} functions just now; the next start finds them in {min(places)}")
    else:
        yield ok("compiled", f"{len(stats)} functions from {min(places, default='memory')}")


def decoder() -> Iterator[Finding]:
    """A known image through the decoder, and the same one damaged, which has to be refused and not to crash."""
    pixels = (np.arange(33 * 517, dtype=np.uint16) % 251).reshape(33, 517)
    head = pixels.nbytes.to_bytes(8, "big") + (8192).to_bytes(4, "big")
    packed = head + bitshuffle.compress_lz4(pixels.reshape(-1), 4096).tobytes()
    out = np.empty_like(pixels)
    decoding.decode(_image(packed, pixels), out)
    if not np.array_equal(out, pixels):
        yield fail("decoder", "a known image comes out wrong", "install bitshuffle anew")
        return
    damaged = {
        "cut short": packed[:-7],
        "with a wrong length": packed[:12] + b"\x7f" + packed[13:],
        "of nothing": b"",
        "of zeros": bytes(len(packed)),
    }
    for how, data in damaged.items():
        try:
            decoding.decode(_image(data, pixels), out)
        except UndecodableImage:
            continue
        yield fail("decoder", f"an image {how} is not refused", "do not attach to a detector; report this")
        return
    text = (
        f"bitshuffle {metadata.version('bitshuffle')}: a known image is right, {len(damaged)} damaged ones are refused"
    )
    yield ok("decoder", text)


def _image(data: bytes, pixels: np.ndarray[Any, Any]) -> ImageData:
    rows, columns = pixels.shape
    return ImageData(data, (rows, columns), pixels.dtype, Algorithm.BSLZ4, pixels.itemsize)


def device(wanted: str) -> Iterator[Finding]:
    """The CUDA device, its memory and driver, and whether our kernels compile for it."""
    if not torch.cuda.is_available():
        if wanted == "cuda":
            yield fail("device", "no CUDA device is usable", "check nvidia-smi and the driver, or set --device cpu")
        else:
            yield ok("device", f"none, the CPU is used (torch {torch.__version__})")
        return
    free, size = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    room = f"{free / _MIB:.0f} of {size / _MIB:.0f} MiB free"
    text = f"{name}, {room}, driver {_driver()}, CUDA {torch.version.cuda}"
    if free < size / 2:
        yield warn("device", text, "another program holds its memory; see nvidia-smi")
    else:
        yield ok("device", text)
    try:
        for source, options in KERNELS.items():
            compiled(source, torch.cuda.get_device_capability(), default_cache(), options)
    except NoDevice as error:
        yield warn("nvrtc", str(error), "without it the GPU judges frames that the CPU reduced")
    except RuntimeError as error:
        yield fail("nvrtc", first_line(error), "report this, with the versions above; --device cpu goes on")
    else:
        yield ok("nvrtc", f"compiles the decoder and the reduction for {name}")


def _driver() -> str:
    try:
        found = re.search(r"(\d+\.\d+(?:\.\d+)?)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def bundle(folder: Path | None) -> Iterator[Finding]:
    """Whether the model bundle loads, is what its card says, and answers a frame."""
    try:
        loaded = load_bundle(folder or DEFAULT_BUNDLE)
        check_bundle(loaded)
    except BadBundle as error:
        yield fail("bundle", str(error), "name another with --bundle, or leave it out for the one shipped")
    else:
        yield ok("bundle", f"{loaded.label}, threshold {loaded.card.hit.threshold:g}, at {folder or DEFAULT_BUNDLE}")
