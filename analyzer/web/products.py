"""``GET /products``: what a run shows as a whole, as JSON, arrays and pictures.

A picture is drawn when someone asks, by a process of its own, and kept a while: drawing takes a share of one core at
most, however many look. One thread of those that answer requests waits for it; who else asks keeps none of the others.
"""

import asyncio
import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from analyzer.logs import Repeats
from analyzer.pictures import FIGURES, Draw, NoPicture, ProductPicture
from analyzer.product_arrays import IN_JSON, PRODUCTS, edges_of, facts_of, geometry_of, plain, rings_of
from analyzer.product_snapshot import Snapshot
from analyzer.products import Products

log = logging.getLogger(__name__)

KEPT_S = 10.0
"""An answer younger than this is given again."""

COST = 20.0
"""An answer is kept so many times as long as it took to make: a twentieth of one core at most goes into each."""

_NO_FRAME = "no frame yet\n"


@dataclass(frozen=True, slots=True)
class _Kept:
    body: bytes
    until: float


class ProductEndpoints:
    """The endpoints of one run's products."""

    def __init__(self, products: Products, draw: Draw) -> None:
        self._draw = draw
        self._repeats = Repeats(log)
        self._products = products
        self._kept: dict[str, _Kept] = {}
        self._making = asyncio.Lock()

    @property
    def routes(self) -> list[Route]:
        return [Route("/products", self._index), Route("/products/{file}", self._file)]

    async def _index(self, request: Request) -> Response:
        del request
        return await self._answer("index", "application/json", lambda s: msgspec.json.encode(_index(s, self._products)))

    async def _file(self, request: Request) -> Response:
        file = str(request.path_params["file"])
        name, _, kind = file.partition(".")
        if kind == "png" and name in FIGURES:
            dark = request.query_params.get("theme") == "dark"
            return await self._answer(file + " dark" * dark, "image/png", lambda s: self._picture(name, s, dark))
        if kind == "npy" and name in PRODUCTS:
            # Not kept: a mask of 16M pixels would be, for nobody.
            return await self._answer(file, "application/octet-stream", lambda s: _npy(name, s), kept=False)
        if kind == "json" and name in IN_JSON:
            return await self._answer(file, "application/json", lambda s: msgspec.json.encode(plain(name, s)))
        applied = self._products.applied
        if applied is not None and file == applied.name:
            body = await run_in_threadpool(lambda: npy(applied.valid == 0))
            return Response(body, media_type="application/octet-stream")
        return PlainTextResponse("no such product; GET /products lists them\n", 404)

    async def _answer(
        self, key: str, media_type: str, make: Callable[[Snapshot], bytes], kept: bool = True
    ) -> Response:
        """An answer, made anew when the last one is old; while another request makes it, the old one."""
        headers = {"Cache-Control": "no-store"}
        last = self._kept.get(key)
        if last is not None and (time.monotonic() < last.until or self._making.locked()):
            return Response(last.body, media_type=media_type, headers=headers)
        async with self._making:
            last = self._kept.get(key)
            if last is not None and time.monotonic() < last.until:
                return Response(last.body, media_type=media_type, headers=headers)
            try:
                body = await run_in_threadpool(self._make, key, make, kept)
            except NoPicture as error:
                return PlainTextResponse(f"{error}\n", 500, headers)
            except Exception:
                self._repeats.exception(f"products: {key} could not be made", "product_failed")
                return PlainTextResponse("could not be made, see the log of the analysis\n", 500, headers)
        if body is None:
            return PlainTextResponse(_NO_FRAME, 404, headers)
        return Response(body, media_type=media_type, headers=headers)

    def _picture(self, name: str, snapshot: Snapshot, dark: bool) -> bytes:
        return self._draw(ProductPicture(name, snapshot, dark=dark)) or b""

    def _make(self, key: str, make: Callable[[Snapshot], bytes], kept: bool) -> bytes | None:
        """``None`` before the first frame."""
        began = time.monotonic()
        snapshot = self._products.snapshot()
        if snapshot is None:
            self._kept.clear()
            return None
        body = make(snapshot)
        now = time.monotonic()
        if kept:
            self._kept[key] = _Kept(body, now + max(KEPT_S, COST * (now - began)))
        return body


def _index(snapshot: Snapshot, products: Products) -> dict[str, object]:
    return {
        "time": time.time(),
        "frames": snapshot.frames,
        "saturated_frames": snapshot.saturated_frames,
        "geometry": geometry_of(snapshot.geometry),
        "rings": rings_of(snapshot.geometry),
        "mask_unfit": products.mask_unfit or None,
        "hot_pixels_applied": products.applied.name if products.applied else None,
        "products": [
            {
                "name": name,
                "text": product.text,
                "unit": product.unit,
                "axes": product.axes,
                "shape": product.take(snapshot).shape,
                "dtype": str(product.take(snapshot).dtype),
                "edges": list(edges_of(name, snapshot)),
                **facts_of(name, snapshot),
                "files": [f"{name}.npy"] + [f"{name}.json"] * (name in IN_JSON) + [f"{name}.png"] * (name in FIGURES),
            }
            for name, product in PRODUCTS.items()
        ],
    }


def _npy(name: str, snapshot: Snapshot) -> bytes:
    return npy(PRODUCTS[name].take(snapshot))


def npy(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    """An array as the bytes of an ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
