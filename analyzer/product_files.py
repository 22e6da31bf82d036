"""A run's products in a folder: one HDF5 file, the hot-pixel masks and the pictures.

Written every minute and at the end, a hot-pixel map when it is applied too, in a thread of its own, each file by
renaming it into place when it is complete. A fault costs one writing: it is counted, said once a minute at most, and
the next writing has it all.
"""

import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from analyzer.pictures import FIGURES, Draw, ProductPicture
from analyzer.placing import placed
from analyzer.product_arrays import PRODUCTS, edges_of, facts_of, geometry_of
from analyzer.product_snapshot import Snapshot
from analyzer.products import Products
from streamer.validity import Validity

log = logging.getLogger(__name__)

EVERY_S = 60.0
CLOSE_S = 60.0
"""How long the end of a run waits for the last writing."""

HDF5 = "products.h5"
_MAPS_HELD = 16


class ProductsExist(ValueError):
    """A folder that holds products already: one line with what to do."""


def prepare(folder: Path, overwrite: bool = False) -> None:
    """Make the folder and see that products can be written there.

    Raises ``ProductsExist`` for a folder that has some, unless ``overwrite``, and ``OSError`` for one that cannot be
    written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / HDF5).exists() and not overwrite:
        raise ProductsExist(
            f"{folder}: holds products already; use --overwrite, --append (which keeps them) or another folder"
        )
    tempfile.TemporaryFile(dir=folder).close()


class ProductFiles(Collector):
    """Keeps the products of a run in ``folder``; raises what ``prepare`` raises.

    With ``append`` those of an earlier run stay, as ``products-1.h5`` and so on: sums begin with each run.
    """

    def __init__(
        self,
        folder: Path,
        products: Products,
        draw: Draw,
        overwrite: bool = False,
        every_s: float = EVERY_S,
        append: bool = False,
    ) -> None:
        prepare(folder, overwrite or append)
        self.folder = folder
        self._earlier = folder / HDF5 if append and (folder / HDF5).exists() else None
        self.failed = 0
        self._products, self._draw, self._every_s = products, draw, every_s
        self._written = -1
        self._over = threading.Event()
        self._woken = threading.Event()
        self._applied: deque[Validity] = deque(maxlen=_MAPS_HELD)
        products.on_applied = self._keep
        self._thread = threading.Thread(target=self._run, name="products", daemon=True)
        self._thread.start()

    def collect(self) -> Iterator[Metric]:
        """``cxls_products_unwritten_total``."""
        yield CounterMetricFamily(
            "cxls_products_unwritten", "Times that a run's products could not be written", value=self.failed
        )

    def close(self) -> None:
        """Write what there is at the end of the run."""
        self._over.set()
        self._woken.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self.failed += 1
            log.error("products: %s was not written in %.0f s", self.folder, CLOSE_S)

    def _run(self) -> None:
        due = time.monotonic() + self._every_s
        while not self._over.is_set():
            self._woken.wait(max(0.0, due - time.monotonic()))
            self._woken.clear()
            self._save_applied()
            if not self._over.is_set() and time.monotonic() >= due:
                self._write()
                due = time.monotonic() + self._every_s
        self._save_applied()
        self._write()

    def _keep(self, applied: Validity) -> None:
        """Records name a map from the moment that it is applied: it is saved at once."""
        self._applied.append(applied)
        self._woken.set()

    def _save_applied(self) -> None:
        """One that cannot be saved is tried again with the next writing."""
        try:
            while self._applied:
                applied = self._applied[0]
                self._place(applied.name, lambda path, mask=applied: _save(path, (mask.valid == 0).astype(np.uint8)))
                self._applied.popleft()
        except Exception as error:
            self._failed(error)

    def _write(self) -> None:
        products = self._products
        added = products.added
        if added == self._written:
            return
        if self._over.is_set():
            products.hot_pixels(fresh=True)
        snapshot = products.snapshot()
        if snapshot is None:
            return
        try:
            self._files(snapshot)
        except Exception as error:
            # Whatever is wrong with the disk or a picture, the run goes on.
            self._failed(error)
        else:
            self._written = added

    def _failed(self, error: Exception) -> None:
        self.failed += 1
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        log.warning("products: %s could not be written: %s", self.folder, " ".join(str(why).split()))

    def _files(self, snapshot: Snapshot) -> None:
        if self._earlier is not None:
            self._earlier.rename(_free(self._earlier))
            self._earlier = None
        self._place(HDF5, lambda path: _write_hdf5(path, snapshot))
        masks = {"hot_pixels.npy": snapshot.hot_pixels.mask}
        if (applied := self._products.applied) is not None:
            masks[applied.name] = (applied.valid == 0).astype(np.uint8)
        for name, mask in masks.items():
            self._place(name, lambda path, mask=mask: _save(path, mask))
        for name in FIGURES:
            picture = self._draw(ProductPicture(name, snapshot)) or b""
            self._place(f"{name}.png", lambda path, picture=picture: path.write_bytes(picture))

    def _place(self, name: str, write: Any) -> None:
        with placed(self.folder / name) as temporary:
            write(temporary)


def _free(path: Path) -> Path:
    """A name for what an earlier run wrote."""
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return kept


def _save(path: Path, array: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _write_hdf5(path: Path, snapshot: Snapshot) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["written"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        file.attrs["saturated_frames"] = snapshot.saturated_frames
        for decision, frames in snapshot.frames.items():
            file.attrs[f"frames_{decision}"] = frames
        geometry = file.create_group("geometry")
        geometry.attrs.update(
            {key: value for key, value in geometry_of(snapshot.geometry).items() if value is not None}
        )
        for name, product in PRODUCTS.items():
            group = file.create_group(name)
            group.attrs.update({"text": product.text, "axes": list(product.axes), **facts_of(name, snapshot)})
            data = group.create_dataset("data", data=product.take(snapshot), compression="gzip", compression_opts=1)
            data.attrs["units"] = product.unit
            for key, edges in edges_of(name, snapshot).items():
                group[key] = edges
        hot = snapshot.hot_pixels
        ss, fs = np.divmod(hot.pixel, hot.shape[1])
        for key, values in (("fs", fs), ("ss", ss), ("firings", hot.firings)):
            file["hot_pixels"][key] = values
