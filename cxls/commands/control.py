"""``cxls models use``: give a running analysis another bundle."""

import http.client
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import click

from analyzer.bundle import load_bundle
from cxls.cli import Failed
from cxls.http_address import open_connection, parse_address
from cxls.settings import BadSettings, ModelsUseSettings, Resolved
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
    raise BadSettings(line) if status in (400, 401, 403, 404, 405, 413, 422) else Failed(line)


def _decoded(raw: bytes, at: str) -> dict[str, Any]:
    try:
        change = json.loads(raw)
    except (ValueError, RecursionError):
        change = None
    if not isinstance(change, dict):
        raise Failed(f"{at}: the answer is not that of a cxls analyze")
    return change
