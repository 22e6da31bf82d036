"""Our kernels compiled by NVRTC, which needs neither a compiler nor a device on the machine; kept on disk.

A compiled image is a function of the sources, the options, the architecture and NVRTC's version, which name its file.
A cache that cannot be read or written only costs the time to compile, a second or so.
"""

import hashlib
import importlib
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "sources"
_DIGEST_BYTES = 32


class NoDevice(RuntimeError):
    """There is no CUDA, no NVRTC, or no device they know; the text says which. The CPU can do the work."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """``image`` is what a driver loads; ``log`` what the compiler said, empty when the image came from the cache."""

    image: bytes
    log: str


def source_of(name: str) -> str:
    """The text of a source in this package, such as ``bslz4.cu``."""
    return (SOURCES / name).read_text(encoding="utf-8")


def default_cache() -> Path | None:
    """Where compiled kernels are kept: ``$XDG_CACHE_HOME/cxls/kernels`` or in ~/.cache; ``None`` without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "cxls" / "kernels"
    except RuntimeError:
        return None


def compiled(name: str, capability: tuple[int, int], cache: Path | None, options: Sequence[str] = ()) -> Compiled:
    """Compile source ``name`` for a compute capability, or take it from the folder ``cache``.

    Raises ``NoDevice`` when NVRTC is not installed or knows no architecture that old, and ``RuntimeError`` with the
    compiler's words when the source does not compile.
    """
    nvrtc = _nvrtc()
    target, is_binary = _architecture(nvrtc, capability)
    every = (f"--gpu-architecture={target}", "--std=c++17", *options)
    headers = {path.name: path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.cuh"))}
    source = source_of(name)
    key = hashlib.sha256(repr((source, headers, every, _checked(nvrtc, nvrtc.nvrtcVersion()))).encode()).hexdigest()
    path = None if cache is None else cache / f"{Path(name).stem}-{target}-{key[:32]}"
    image = None if path is None else _read(path)
    if image is not None:
        return Compiled(image, "")
    made = _compile(nvrtc, name, source, headers, every, is_binary)
    if path is not None:
        _write(path, made.image)
    return made


def _nvrtc() -> Any:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise NoDevice(f"NVRTC cannot be used ({error}); install cuda-bindings and nvidia-cuda-nvrtc") from None
    return nvrtc


def _architecture(nvrtc: Any, capability: tuple[int, int]) -> tuple[str, bool]:
    """The name to compile for, and whether that is machine code; else it is PTX, for the driver to compile."""
    wanted = 10 * capability[0] + capability[1]
    (known,) = _checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())
    if wanted in known:
        return f"sm_{wanted}", True
    older = [each for each in known if each < wanted]
    if not older:
        raise NoDevice(
            f"a device of compute capability {capability[0]}.{capability[1]}; NVRTC knows {min(known)} and up"
        )
    return f"compute_{max(older)}", False


def _compile(
    nvrtc: Any, name: str, source: str, headers: dict[str, str], options: Sequence[str], is_binary: bool
) -> Compiled:
    texts, names = [text.encode() for text in headers.values()], [header.encode() for header in headers]
    (program,) = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), len(texts), texts, names))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        said = _text(nvrtc, program)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"{name} does not compile with {' '.join(options)}: {said}")
        size_of, get = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if is_binary else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        (size,) = _checked(nvrtc, size_of(program))
        image = bytearray(size)
        _checked(nvrtc, get(program, image))
        return Compiled(bytes(image), said)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(nvrtc: Any, program: Any) -> str:
    (size,) = _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
    said = bytearray(size)
    _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, said))
    return said.rstrip(b"\0").decode(errors="replace").strip()


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {answer[0].name}")
    return answer[1:]


def _read(path: Path) -> bytes | None:
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    digest, image = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
    return image if hashlib.sha256(image).digest() == digest else None


def _write(path: Path, image: bytes) -> None:
    """Put a file in its place at once, so that no other process reads half of it."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(hashlib.sha256(image).digest() + image)
        temporary.replace(path)
    except OSError as error:
        log.info("compiled kernels are not kept: %s", error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
