"""``GET /report`` and ``GET /runs.csv``: the run so far as a page, and every run of this program as a row.

The page is made when someone asks, in a thread, and kept a while, as pictures of products are; a process of their own
draws its pictures.
"""

import logging
import threading
import time

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from analyzer.control import Control
from analyzer.logs import Repeats
from analyzer.pictures import Draw
from analyzer.reports import header_line, make_page, row_line

log = logging.getLogger(__name__)

KEPT_S = 10.0
"""A report younger than this is given again."""

COST = 20.0
"""And one that took long for so many times as long: a twentieth of one core at most goes into it."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class ReportEndpoints:
    """The endpoints of what ``control`` knows of its runs."""

    def __init__(self, control: Control, draw: Draw) -> None:
        self._draw = draw
        self._repeats = Repeats(log)
        self._control = control
        self._making = threading.Lock()
        self._kept = b""
        self._until = 0.0
        self._of: object = None

    @property
    def routes(self) -> list[Route]:
        return [Route("/report", self._report), Route("/runs.csv", self._runs)]

    def _report(self, request: Request) -> Response:
        del request
        if self._kept and (self._fresh or self._making.locked()):
            return self._page(self._kept)
        # Until there is a first one nobody waits for it: who waits would keep a thread from all else that is asked.
        if not self._making.acquire(blocking=bool(self._kept)):
            text = "the report is being made; ask again in a moment\n"
            return PlainTextResponse(text, 503, _HEADERS | {"Retry-After": "2"})
        try:
            if not self._fresh:
                began = time.monotonic()
                try:
                    info = self._control.runs.info
                    self._kept, self._of = make_page(self._control.capture(), self._draw), info
                except Exception:
                    self._repeats.exception("the report could not be made", "report_failed")
                    return PlainTextResponse("could not be made, see the log of the analysis\n", 500, _HEADERS)
                now = time.monotonic()
                self._until = now + max(KEPT_S, COST * (now - began))
            return self._page(self._kept)
        finally:
            self._making.release()

    @property
    def _fresh(self) -> bool:
        """Whether what is kept is young, and still of this run under this name."""
        return time.monotonic() < self._until and self._of is self._control.runs.info

    def _page(self, body: bytes) -> Response:
        return Response(body, media_type="text/html; charset=utf-8", headers=_HEADERS)

    def _runs(self, request: Request) -> Response:
        del request
        runs = [*self._control.runs.over, self._control.summary()]
        body = header_line() + b"".join(row_line(run) for run in runs)
        return Response(body, media_type="text/csv; charset=utf-8", headers=_HEADERS)
