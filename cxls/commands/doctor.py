"""``cxls doctor``: whether this machine can do what the settings ask for, and what to do where it cannot."""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cxls.cli import Failed
from cxls.doctor import detector, machine, places
from cxls.doctor.finding import Finding, Level, fail, guarded
from cxls.http_address import parse_address
from cxls.http_get import NoAnswer
from cxls.settings import BadSettings, DoctorSettings, Resolved
from streamer.errors import first_line

_DEFAULT_LISTEN = "127.0.0.1:8080"
_MIB = 1 << 20


def run(resolved: Resolved[DoctorSettings], source: str | None, json_path: Path | None) -> None:
    """Print a line a check as it is made. Raises ``Failed`` when one failed."""
    settings = resolved.settings
    where = None if source is None else detector.endpoint_of(source)
    rest = None if settings.rest is None else parse_address(settings.rest, "--rest")
    if settings.rehearse is not None and settings.rate is None and rest is None:
        raise BadSettings("--rehearse: at which rate? give --rate HZ, or --rest to ask the detector")
    findings: list[Finding] = []
    for finding in _look(settings, where, rest):
        click.echo(finding.line)
        findings.append(finding)
    counts = {level: sum(each.level == level for each in findings) for level in Level}
    click.echo(f"{counts[Level.OK]} ok, {counts[Level.WARN]} to look at, {counts[Level.FAIL]} that no run works with")
    if json_path is not None:
        _write(json_path, {"findings": [each.facts for each in findings], "failed": counts[Level.FAIL]})
    if counts[Level.FAIL]:
        raise Failed(f"{counts[Level.FAIL]} checks failed")


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(facts, indent=1) + "\n")
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}; nothing was written there") from None


def _look(settings: DoctorSettings, where: detector.Endpoint | None, rest: Any) -> Iterator[Finding]:
    yield from _software(settings)
    yield from guarded("cores", machine.cores)
    # What workers of this machine hold is bounded as the queue is, and lies in shared memory once more.
    queues = settings.queue_mib * (3 if settings.processes else 1)
    queues += settings.hits_queue_mib if settings.hits else 0
    yield from guarded("memory", lambda: machine.memory(queues * _MIB, settings.workers, settings.processes))
    yield from guarded("limits", machine.limits)
    yield from guarded("tcp buffers", machine.network_buffers)
    yield from guarded("clock", machine.clock)
    yield from guarded("disk", lambda: places.outputs(_folders(settings)))
    yield from guarded("port", lambda: places.ports(_addresses(settings)))
    if where is not None:
        yield from guarded("stream", lambda: detector.stream(where))
    told: detector.Told | None = None
    if rest is not None:
        base = f"{rest.scheme}://{rest.netloc}{rest.path.rstrip('/')}"
        try:
            told = detector.ask(rest)
        except NoAnswer as error:
            yield fail("detector", f"{base}: {error}", "check --rest; it is the address of the control unit (DCU)")
        else:
            asked = told
            yield from guarded("detector", lambda: detector.settings_match(asked, base, settings, where))
    if settings.rehearse is not None:
        yield from _rehearsal(settings, settings.rehearse, told)


def _software(settings: DoctorSettings) -> Iterator[Finding]:
    """Imported here: where a library is missing or cannot be loaded, that is a finding."""
    try:
        software = importlib.import_module("cxls.doctor.software")
    except Exception as error:
        first = first_line(error)
        yield fail(
            "packages", f"cannot be loaded: {first}", "install anew with constraints.txt, or set NUMBA_CACHE_DIR"
        )
        return
    looks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("python", software.python),
        ("packages", software.packages),
        ("compiled", software.kernels),
        ("decoder", software.decoder),
        ("device", lambda: software.device(settings.device)),
        ("bundle", lambda: software.bundle(settings.bundle)),
        ("files", lambda: _files(settings)),
    ]
    for name, look in looks:
        yield from guarded(name, look)


def _files(settings: DoctorSettings) -> Iterator[Finding]:
    yield from importlib.import_module("cxls.doctor.files").readable(settings)


def _folders(settings: DoctorSettings) -> dict[str, Path]:
    places_of = {
        "results": settings.results and settings.results.absolute().parent,
        **{name: getattr(settings, name, None) for name in ("hits", "products", "reports")},
    }
    return {option: folder for option, folder in places_of.items() if folder is not None}


def _addresses(settings: DoctorSettings) -> dict[str, str | None]:
    return {
        "listen": settings.listen or _DEFAULT_LISTEN,
        **{
            name.replace("_", "-"): getattr(settings, name, None)
            for name in ("index_listen", "broadcast", "worker_listen")
        },
    }


def _rehearsal(settings: DoctorSettings, seconds: float, told: detector.Told | None) -> Iterator[Finding]:
    rate_hz = settings.rate or (None if told is None else told.rate_hz)
    if rate_hz is None:
        yield fail("rehearsal", "the detector does not say its rate", "give --rate HZ")
        return

    def rehearse() -> Iterator[Finding]:
        rehearsal = importlib.import_module("cxls.doctor.rehearsal")
        yield rehearsal.judged(rehearsal.rehearse(settings, seconds, rate_hz))

    yield from guarded("rehearsal", rehearse)
