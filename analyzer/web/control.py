"""``POST /control/…``: changes to a running analysis, for whoever holds the token.

The token is looked at before anything is read, a body is bounded in bytes and time, and the work
is done in a thread: pages and metrics are served meanwhile. A browser that shows a page from
elsewhere may not ask for changes, even with the token, nor send what needs no asking beforehand.
"""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from analyzer.bundle import BadBundle
from analyzer.control import ACTIONS, BadChange, Busy, Change, Control
from analyzer.front import Ending
from analyzer.kept_changes import Asked
from analyzer.live.socket import same_origin
from analyzer.logs import Repeats
from analyzer.mask_file import BadMask
from analyzer.peak_parameters import BadPeaks
from analyzer.runs import MOST_NUMBER, BadRun
from streamer.messages import SeriesMetadata

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 10
BODY_TIMEOUT_S = 10.0
_MOST_SAID = 300
"""Characters of what a decoder says, which may name a key of any length."""

OUTCOMES = ("done", "refused", "busy", "unauthorised", "failed", "restored", "unrestored")
OFF = "control is off here; start cxls analyze with --control-token FILE"

Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
PathText = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class BundleRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The folder of a bundle on the analyser's machine."""

    path: PathText


class ThresholdRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The hit probability from which a frame is a hit; null: the bundle's own."""

    value: Probability | None


class MaskRequest(msgspec.Struct, forbid_unknown_fields=True):
    """One of two: ``path``, a mask as ``--mask`` takes it, on the analyser's machine, null for none; or ``mask``, the
    name of a running map, which is frozen and added."""

    path: PathText | msgspec.UnsetType | None = msgspec.UNSET
    mask: Literal["hot-pixels"] | msgspec.UnsetType = msgspec.UNSET


class ChannelRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The channel to analyse; null: the first threshold."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None


class RunRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What the run is called; only what is given changes. ``new``: end the run and begin the one described."""

    number: Annotated[int, msgspec.Meta(ge=0, le=MOST_NUMBER)] | msgspec.UnsetType | None = msgspec.UNSET
    sample: str | msgspec.UnsetType = msgspec.UNSET
    notes: str | msgspec.UnsetType = msgspec.UNSET
    new: bool = False


Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]


class TargetRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Hits and indexed patterns to collect, null for no target; only what is given changes."""

    hits: Count | msgspec.UnsetType | None = msgspec.UNSET
    indexed: Count | msgspec.UnsetType | None = msgspec.UNSET


class ResetRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing to say."""


T = TypeVar("T")


class _Refusal(Exception):
    """An answer other than 200, in one line."""

    def __init__(self, status: int, outcome: str, text: str) -> None:
        super().__init__(text)
        self.status, self.outcome, self.text = status, outcome, " ".join(text.split())


class ControlEndpoints(Collector):
    """The endpoints, and the count of what became of their requests.

    Without a ``token`` every request is refused.
    """

    def __init__(self, control: Control, token: str | None) -> None:
        self.enabled = token is not None
        self._control = control
        # Digests: of equal length, so that comparing them says nothing of the token's.
        self._token = hashlib.sha256(token.encode()).digest() if token is not None else None
        self._repeats = Repeats(log)
        self._counts = {(action, outcome): 0 for action in ACTIONS for outcome in OUTCOMES}

    @property
    def routes(self) -> list[Route]:
        return [Route(f"/control/{action}", self._endpoint(action), methods=["POST"]) for action in ACTIONS]

    def reset(self) -> Change:
        """The same as a request for it, and counted as one. Raises ``Busy``, ``Ending``."""
        change = self._control.reset()
        self._counts["reset", "done"] += 1
        return change

    def restore(self, asked: Asked) -> str | None:
        """Do what a killed run was asked for, checked as a request is; why not, in a line, where it cannot be."""
        try:
            work = self._again(asked)
            with self._control.restoring():
                work()
        except Exception as error:
            return _refused(asked.kind, error).text
        self._counts[asked.kind, "restored"] += 1
        return None

    def give_up(self, kind: str, why: str) -> None:
        """What a killed run was asked for is not restored."""
        self._control.give_up(kind, why)
        self._counts[kind, "unrestored"] += 1

    def look_at_header(self, metadata: SeriesMetadata) -> bool:
        """Take back what was restored and is not for this series; whether no other header has to be looked at."""
        try:
            taken, known = self._control.take_back(metadata)
        except (Busy, Ending):
            return False
        except Exception:
            log.exception("control: what was restored cannot be compared with the header")
            return True
        for kind in taken:
            self._counts[kind, "unrestored"] += 1
        return known

    def _again(self, asked: Asked) -> Callable[[], object]:
        control = self._control
        if asked.masks is not None:
            own, hot = asked.masks
            return lambda: control.use_kept_masks(own, hot, asked.first)
        if asked.kind == "bundle":
            folder = _path(_decoded(asked.body, BundleRequest).path)
            return lambda: control.use_bundle(folder, asked.label)
        if asked.kind == "run" and _decoded(asked.body, RunRequest).new:
            raise _Refusal(400, "refused", "a run is begun once")
        return self._work(asked.kind, asked.body)

    def collect(self) -> Iterator[Metric]:
        """``cxls_control_actions_total``, every child from the start."""
        family = CounterMetricFamily(
            "cxls_control_actions",
            "Requests to change the running analysis, and changes of a killed run asked for again",
            labels=["action", "outcome"],
        )
        for key, count in list(self._counts.items()):
            family.add_metric(key, count)
        yield family

    def _endpoint(self, action: str) -> Callable[[Request], object]:
        async def answer(request: Request) -> Response:
            outcome, response = await self._answer(action, request)
            self._counts[action, outcome] += 1
            return response

        return answer

    async def _answer(self, action: str, request: Request) -> tuple[str, Response]:
        try:
            _refuse_strangers(request)
            self._authorise(request)
            body = await _body(request)
            _refuse_other_types(request, body)
            work = self._work(action, body)
            change = await run_in_threadpool(work)
        except Exception as error:
            refused = _refused(action, error)
        else:
            return "done", Response(msgspec.json.encode(change) + b"\n", media_type="application/json")
        self._complain(action, refused)
        headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
        return refused.outcome, PlainTextResponse(refused.text + "\n", refused.status, headers)

    def _complain(self, action: str, refused: _Refusal) -> None:
        """Strangers get a line in a while, so that they cannot fill the log; the counter has them all."""
        kind = refused.outcome if refused.outcome == "unauthorised" else f"{action} {refused.status} {refused.text}"
        text = f"control: {action} refused ({refused.status}): {refused.text}"
        self._repeats.warning(kind, text, "control_refused", action=action, status=refused.status)

    def _authorise(self, request: Request) -> None:
        if self._token is None:
            raise _Refusal(403, "unauthorised", OFF)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        if not hmac.compare_digest(digest, self._token) or scheme.lower() != "bearer":
            raise _Refusal(401, "unauthorised", "the token is missing or wrong; send Authorization: Bearer TOKEN")

    def _work(self, action: str, body: bytes) -> Callable[[], Change]:
        """What a request asks for."""
        control = self._control
        if action == "bundle":
            folder = _path(_decoded(body, BundleRequest).path)
            return lambda: control.use_bundle(folder)
        if action == "threshold":
            value = _decoded(body, ThresholdRequest).value
            return lambda: control.use_threshold(value)
        if action == "peaks":
            changes = _decoded(body, dict[str, Any])
            return lambda: control.use_peaks(changes)
        if action == "channel":
            name = _decoded(body, ChannelRequest).name
            return lambda: control.use_channel(name)
        if action == "run":
            run = _given(_decoded(body, RunRequest))
            new = run.pop("new", False)
            return lambda: control.use_run(run, new)
        if action == "target":
            targets = _given(_decoded(body, TargetRequest))
            if not targets:
                raise _Refusal(400, "refused", "not the JSON that is wanted here: give hits or indexed, or both")
            return lambda: control.use_targets(targets)
        if action == "mask":
            request = _decoded(body, MaskRequest)
            text = request.path
            if (text is msgspec.UNSET) == (request.mask is msgspec.UNSET):
                raise _Refusal(400, "refused", "not the JSON that is wanted here: give either path or mask")
            if text is msgspec.UNSET:
                return control.use_hot_pixels
            mask = None if text is None else _path(text)
            return lambda: control.use_mask(mask)
        _decoded(body or b"{}", ResetRequest)
        return control.reset


def _refused(action: str, error: Exception) -> _Refusal:
    """What an error is to whoever asked; one of ours is logged."""
    if isinstance(error, _Refusal):
        return error
    if isinstance(error, Busy):
        return _Refusal(409, "busy", str(error))
    if isinstance(error, Ending):
        return _Refusal(503, "refused", str(error))
    if isinstance(error, (BadBundle, BadChange, BadMask, BadPeaks, BadRun)):
        return _Refusal(422, "refused", str(error))
    log.error("control: %s failed", action, exc_info=error)
    return _Refusal(500, "failed", "internal error, see the log of the analysis")


def _refuse_strangers(request: Request) -> None:
    """A page from another host may not ask, whatever it has: a browser sends its ``Origin`` along."""
    if not same_origin(request.headers.get("origin"), request.headers.get("host")):
        raise _Refusal(403, "unauthorised", "asked by a page of another host; only this one's page may change anything")


def _refuse_other_types(request: Request, body: bytes) -> None:
    """Of a page only JSON: text and forms a browser sends without asking first. curl and scripts may say anything."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "origin" in request.headers and kind != "application/json" and (body or kind):
        raise _Refusal(415, "refused", "a body of another type; send Content-Type: application/json")


def _given(request: msgspec.Struct) -> dict[str, Any]:
    """The fields that a request has."""
    return {name: value for name, value in msgspec.structs.asdict(request).items() if value is not msgspec.UNSET}


async def _body(request: Request) -> bytes:
    """The body. Raises ``_Refusal`` where it is too large or does not come."""
    try:
        return await asyncio.wait_for(_bounded(request), BODY_TIMEOUT_S)
    except TimeoutError:
        raise _Refusal(408, "refused", f"no whole body in {BODY_TIMEOUT_S:.0f} s") from None
    except ClientDisconnect:
        raise _Refusal(400, "refused", "the connection ended within the body") from None


async def _bounded(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _Refusal(413, "refused", f"a body of more than {MAX_BODY_BYTES >> 10} KiB")
        parts.append(part)
    return b"".join(parts)


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Refusal(400, "refused", f"not the JSON that is wanted here: {str(error)[:_MOST_SAID]}") from None


def _path(text: str) -> Path:
    if not text.isprintable():
        raise _Refusal(400, "refused", "a path with unprintable characters")
    return Path(text)
