"""A run's products by name, as arrays and as plain values: what HTTP serves and files hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.geometry import Geometry
from analyzer.product_snapshot import LOG_INTENSITY, SPACING_EDGES_ANGSTROM, Snapshot

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Product:
    """One product: what it is, the unit of its values, the meaning of its axes, and how it is taken from a snapshot."""

    text: str
    unit: str
    axes: tuple[str, ...]
    take: Callable[[Snapshot], Array]


PRODUCTS: dict[str, Product] = {
    "powder": Product(
        "photons of the peaks of hits", "photons", ("ss / bin_px", "fs / bin_px"), lambda s: s.powder_photons
    ),
    "powder_peaks": Product("number of peaks of hits", "1", ("ss / bin_px", "fs / bin_px"), lambda s: s.powder_peaks),
    "peakogram": Product(
        "peaks of hits by q (radius where it is not known) and intensity", "1",
        ("q or radius", "log10 of photons"), lambda s: s.peakogram,
    ),
    "peak_counts": Product(
        "frames with beam by number of peaks; the last bin has all from there on", "1",
        ("no hits, hits", "peaks"), lambda s: s.peak_counts,
    ),
    "resolution": Product("hits by resolution estimate", "1", ("d",), lambda s: s.resolution),
    "hot_pixels": Product(
        "1 where a pixel is hot; acts on records only once applied by name", "1", ("ss", "fs"),
        lambda s: s.hot_pixels.mask,
    ),
}  # fmt: skip
"""Every product, in the order in which it is shown."""


def edges_of(name: str, products: Snapshot) -> dict[str, Array]:
    """The edges of a product's bins, by name with unit."""
    if name == "peakogram":
        axis = products.axis
        unit = "per_angstrom" if axis.name == "q" else axis.unit
        return {f"{axis.name}_edges_{unit}": axis.edges, "log10_intensity_edges_photons": LOG_INTENSITY}
    if name == "resolution":
        return {"d_edges_angstrom": SPACING_EDGES_ANGSTROM}
    return {}


def facts_of(name: str, products: Snapshot) -> dict[str, Any]:
    """Numbers that go with a product."""
    if name.startswith("powder"):
        return {"bin_px": products.bin_px, "hits": products.frames["hit"]}
    if name == "hot_pixels":
        hot = products.hot_pixels
        return {
            "pixels": len(hot.pixel), "frames": hot.frames, "tied": hot.tied, "fewest_firings": hot.fewest_firings,
        }  # fmt: skip
    if name == "peak_counts":
        return {"saturated_frames": products.saturated_frames, "saturated_peaks_of_hits": products.saturated_peaks}
    return {}


def plain(name: str, products: Snapshot) -> dict[str, Any]:
    """A product as plain values, for JSON: counts, edges, facts; of hot pixels the list."""
    product = PRODUCTS[name]
    values: dict[str, Any] = {"name": name, "text": product.text, "unit": product.unit, "axes": product.axes}
    values |= facts_of(name, products)
    values |= {key: np.round(edges, 6).tolist() for key, edges in edges_of(name, products).items()}
    if name == "hot_pixels":
        hot = products.hot_pixels
        ss, fs = np.divmod(hot.pixel, hot.shape[1])
        return values | {"fs": fs.tolist(), "ss": ss.tolist(), "firings": hot.firings.tolist()}
    if name == "peak_counts":
        misses, hits = products.peak_counts
        return values | {"no_hits": misses.tolist(), "hits": hits.tolist()}
    return values | {"counts": product.take(products).tolist()}


IN_JSON = ("peakogram", "peak_counts", "resolution", "hot_pixels")
"""Products small enough to be JSON."""


def rings_of(geometry: Geometry, points: int = 120) -> list[dict[str, Any]]:
    """Resolution rings as plain values: spacing, radius, and lines of [fs, ss] to draw."""
    return [
        {
            "d_angstrom": ring.spacing_angstrom,
            "radius_px": round(ring.radius_px, 2),
            "lines": [
                np.round(line[:: max(1, len(line) // points)], 1).tolist() + np.round(line[-1:], 1).tolist()
                for line in ring.lines
            ],
        }
        for ring in geometry.rings()
    ]


def geometry_of(geometry: Geometry) -> dict[str, Any]:
    """A geometry's numbers as plain values."""
    return {
        "shape": geometry.shape,
        "beam_center_fs": round(geometry.beam_center_fs, 4),
        "beam_center_ss": round(geometry.beam_center_ss, 4),
        "pixel_size_m": geometry.pixel_size_m,
        "camera_length_m": geometry.camera_length_m,
        "photon_energy_eV": geometry.photon_energy_eV,
        "panels": 1 if geometry.panels is None else len(geometry.panels),
        "unfit": geometry.unfit or None,
    }
