"""``cxls control`` and ``cxls models use``: ask a running analysis for a change."""

import http.client
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import click

from cxls.cli import Failed
from cxls.http_address import open_connection, parse_address
from cxls.settings import BadSettings, ControlSettings, ModelsUseSettings, Resolved
from cxls.token_file import read_token

TIMEOUT_S = 120.0
"""Loading and warming a large bundle takes seconds; this is for an analysis that hangs."""

_MAX_ANSWER_BYTES = 64 << 10
_MEANING = {
    401: "the token is not the one that the analysis was started with; see --token",
    404: "there is no control here; is this the address of a cxls analyze?",
    405: "there is no control here; is this the address of a cxls analyze?",
}


def use(resolved: Resolved[ModelsUseSettings], folder: Path) -> None:
    """Check the bundle here, then have the analysis load it."""
    # Not imported for a mere number, which needs no networks.
    from analyzer.bundle import load_bundle

    settings = resolved.settings
    where = parse_address(settings.at, "--at")
    token = read_token(settings.token, "--token") if settings.token else None
    bundle = load_bundle(folder)
    began = time.monotonic()
    change = _post(where, "/control/bundle", {"path": str(folder.resolve())}, token)
    if change.get("new") != bundle.label:
        raise Failed(f"{settings.at}: judges with {change.get('new')!a} now, the bundle here is {bundle.label}")
    click.echo(f"{change.get('old')} -> {change['new']} in {time.monotonic() - began:.1f} s")
    if not change.get("drained"):
        click.echo("a batch is still with the old one", err=True)


def change(resolved: Resolved[ControlSettings], action: str, values: Sequence[str]) -> None:
    """Have the analysis make one change, and say what it was."""
    settings = resolved.settings
    body = _BODIES.get(action)
    if body is None:
        raise BadSettings(
            f"{action!a} is no action; known are {', '.join(_BODIES)}, and `cxls models use` for a bundle"
        )
    content = body(list(values))
    where = parse_address(settings.at, "--at")
    token = read_token(settings.token, "--token") if settings.token else None
    done = _post(where, f"/control/{action}", content, token)
    click.echo(str(done.get("text", action)))
    if not done.get("drained"):
        click.echo("a batch is still as it was before", err=True)


def _threshold_body(values: list[str]) -> dict[str, Any]:
    value = _one("threshold", values, "a probability from 0 to 1, or none")
    number = _plain(value)
    if isinstance(number, str):
        raise BadSettings(f"threshold {value!a}: give a probability from 0 to 1, or none")
    return {"value": number}


def _channel_body(values: list[str]) -> dict[str, Any]:
    value = _one("channel", values, "the name of a channel, or none")
    return {"name": None if value == "none" else value}


def _mask_body(values: list[str]) -> dict[str, Any]:
    value = _one("mask", values, "a file, hot-pixels, or none")
    if value == "hot-pixels":
        return {"mask": value}
    return {"path": None if value == "none" else str(Path(value).absolute())}


def _reset_body(values: list[str]) -> dict[str, Any]:
    if values:
        raise BadSettings(f"reset takes no value, not {values[0]!a}")
    return {}


def _run_body(values: list[str]) -> dict[str, Any]:
    words = {"new": True} if "new" in values else {}
    pairs = _pairs("run", [value for value in values if value != "new"], ("number", "sample", "notes"))
    if not words and not pairs:
        raise BadSettings("run: say what changes, KEY=VALUE of number, sample or notes, or the word new")
    if "number" in pairs:
        number = _plain(pairs["number"])
        if number is not None and not isinstance(number, int):
            raise BadSettings(f"run number={pairs['number']!a}: give a whole number, or none")
        pairs["number"] = number
    return pairs | words


def _numbers_body(action: str, known: tuple[str, ...]) -> Callable[[list[str]], dict[str, Any]]:
    def body(values: list[str]) -> dict[str, Any]:
        pairs = _pairs(action, values, known)
        if not pairs:
            raise BadSettings(f"{action}: say what changes, KEY=VALUE; `cxls control --help` has the keys")
        return {key: _plain(value) for key, value in pairs.items()}

    return body


def _one(action: str, values: list[str], wanted: str) -> str:
    if len(values) != 1:
        raise BadSettings(f"{action}: give {wanted}")
    return values[0]


def _pairs(action: str, values: list[str], known: tuple[str, ...]) -> dict[str, Any]:
    """What KEY=VALUE words say; without ``known`` keys the analysis says which there are."""
    pairs: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or (known and key not in known):
            raise BadSettings(f"{action} {text!a}: give KEY=VALUE" + (f", KEY one of {', '.join(known)}" * bool(known)))
        if key in pairs:
            raise BadSettings(f"{action}: {key} is given twice")
        pairs[key] = value
    return pairs


def _plain(text: str) -> int | float | str | None:
    """A value as JSON has it: none, a number where it reads as one, else the text."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


_BODIES: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "threshold": _threshold_body,
    "peaks": _numbers_body("peaks", ()),
    "channel": _channel_body,
    "mask": _mask_body,
    "reset": _reset_body,
    "run": _run_body,
    "target": _numbers_body("target", ("hits", "indexed")),
}
"""What a control endpoint is told, made from the words of the command line."""


def _post(where: SplitResult, path: str, content: dict[str, Any], token: str | None) -> dict[str, Any]:
    """The answer of a control endpoint. Goes straight there: a token is for no proxy and follows no redirection.

    Raises ``BadSettings`` where the request is refused, ``Failed`` where there is no good answer.
    """
    at = f"{where.scheme}://{where.netloc}"
    connection = open_connection(where, TIMEOUT_S)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request("POST", where.path.rstrip("/") + path, json.dumps(content), headers)
        answer = connection.getresponse()
        status, raw = answer.status, answer.read(_MAX_ANSWER_BYTES)
    except TimeoutError:
        raise Failed(f"{at}: no answer within {TIMEOUT_S:.0f} s; look at the log of the analysis") from None
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"{at}: no connection ({error}); is the analysis running, and is --at its address?") from None
    finally:
        connection.close()
    if status == 200:
        return _decoded(raw, at)
    text = _MEANING.get(status) or " ".join(raw.decode("utf-8", "replace").split())[:500] or "no reason given"
    if status == 401 and token is None:
        text = "a token is wanted; name its file with --token"
    line = f"{at}: refused ({status}): {text}"
    raise BadSettings(line) if status in (400, 401, 403, 404, 405, 413, 415, 422) else Failed(line)


def _decoded(raw: bytes, at: str) -> dict[str, Any]:
    try:
        change = json.loads(raw)
    except (ValueError, RecursionError):
        change = None
    if not isinstance(change, dict):
        raise Failed(f"{at}: the answer is not that of a cxls analyze")
    return change
