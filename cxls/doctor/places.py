"""Folders that a run writes to, files that it reads, addresses that it binds."""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from analyzer.alarms import THRESHOLDS
from cxls.doctor.finding import Finding, fail, ok, warn

_PROBE_BYTES = 64 << 20
_PROBE_S = 10.0
_SLOW_BYTES_S = 100e6
"""Below this the hits of a bright run can be more than the disk takes."""


def outputs(folders: Mapping[str, Path]) -> Iterator[Finding]:
    """Room and speed of the disk of each output, by the name of its option."""
    for option, folder in folders.items():
        yield output(option, folder)


def output(option: str, folder: Path) -> Finding:
    """Whether ``folder``, or the one that it would be made in, takes what is written, how fast, and how much more."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    text = f"--{option} {folder}" + ("" if there == folder else f" (to be made in {there})")
    try:
        speed = write_speed(there)
        size, _, free = shutil.disk_usage(there)
    except OSError as error:
        return fail("disk", f"{text}: {error.strerror or error}", "give this user the right to write there")
    text += f": {free / 1e9:.0f} of {size / 1e9:.0f} GB free, {speed / 1e6:.0f} MB/s"
    if free < THRESHOLDS.disk_free_ratio * size:
        return warn("disk", text, "make room")
    if speed < _SLOW_BYTES_S:
        return warn("disk", text, "take a faster disk for hits; results and products are small")
    return ok("disk", text)


def write_speed(folder: Path) -> float:
    """Bytes a second, on the disk and not in memory; what is written has no name. Raises ``OSError``."""
    block = np.random.default_rng(1).bytes(4 << 20)
    written, began = 0, time.monotonic()
    with tempfile.TemporaryFile(dir=folder) as file:
        while written < _PROBE_BYTES and time.monotonic() - began < _PROBE_S:
            written += file.write(block)
            file.flush()
            os.fsync(file.fileno())
    return written / max(1e-6, time.monotonic() - began)


def ports(addresses: Mapping[str, str | None]) -> Iterator[Finding]:
    """Whether each address can be bound, by the name of its option; HOST:PORT or tcp://HOST:PORT."""
    for option, address in addresses.items():
        if address is not None and not address.startswith(("ipc:", "inproc:")):
            yield port(option, address)


def port(option: str, address: str) -> Finding:
    """Whether nobody else has the address; it is bound for a moment."""
    host, _, number = address.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    where = "" if host in ("*", "") else host
    if not number.isdigit() or not 0 <= int(number) <= 65535:
        return fail("port", f"--{option} {address}: no port from 0 to 65535", "give HOST:PORT")
    try:
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        socket.create_server((where, int(number)), family=family).close()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return fail("port", f"--{option} {address}: {why}", "is an analysis running there? end it, or take another")
    return ok("port", f"--{option} {address} is free")
