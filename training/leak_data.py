"""Images by the 2024 paper's protocol and by one that leaks nothing, from the same twin, in memory.

The panel is the paper's, 162 by 155 mm, with pixels `bin` times as large: spots, rings and photons are where they were,
and a network sees fewer pixels. What differs between the protocols is the water:

    paper   one draw a data set, added to every image of it; an empty image is a copy of that draw
    fresh   the same brightness and the same data sets, but a new draw for every image
    honest  the water of the same pulse that lights the crystal, a new draw for every image, and pulse energy and
            thickness that vary from image to image
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim_replay.background import expected_water
from sim_replay.crystal import proteinase_k
from sim_replay.detector import CONDITIONS, Condition, Detector
from sim_replay.diffraction import Sample, diffract, footprint, random_orientation
from sim_replay.poisson import draw_sparse
from streamer.files import BadInput
from training.dataset.labels import local_maxima
from training.dataset.simulated import Expectation, frame_rng
from training.loop.arrays import ArraySource

Counts = Mapping[int, tuple[int, int]]
"""Images by number of the data set: hits and empties."""

HEADLINE: Counts = {1: (26, 13), 4: (25, 12), 5: (24, 12), 6: (34, 17), 7: (29, 14), 8: (40, 20)}
"""Behind all of the paper's figures but those at low flux; 02, 03 and 09 held nothing."""
LOW_FLUX: Counts = {1: (35, 10), 2: (75, 22)}
"""Behind its figures at "extreme low flux"."""

CRYSTAL_M, LOW_FLUX_CRYSTAL_M = 10e-6, 1e-6
"""The paper's crystal; and one of a thousandth of its volume, which its notes of the low-flux weeks name."""

PANEL_SHAPE, PIXEL_M = (2163, 2069), 75e-6
LARGEST_BIN = 32
"""With larger pixels the paper's deeper network has no pixel left."""

_POINT_SPREAD_PX = 0.4
_WATER_STREAM = 1 << 39
_LARGEST_COUNT = (1 << 16) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a set of images is made.

    stream: which random numbers; no two sets of one seed share any. water: brightness of the water in units of what the
    pulse scatters into the pixel. frozen: one draw of it a data set, as the paper has it. jitter: standard deviation of
    the logarithm of pulse energy, and of thickness, from image to image.
    """

    name: str
    counts: Counts
    stream: int
    water: float = 1.0
    frozen: bool = False
    jitter: float = 0.0
    crystal_size_m: float = CRYSTAL_M


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """N images and what is true of them, data set by data set, hits first.

    fields: those of `training.loop.samples`, images (N, 1, ss, fs) as uint16. dataset (N,) int64; orientation
    (N, 3, 3), NaN for empties; water (N,) int64, the same for images that share a draw of it.
    """

    name: str
    fields: dict[str, NDArray[Any]]
    dataset: NDArray[np.int64]
    orientation: NDArray[np.float64]
    water: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.dataset)

    def at(self, places: NDArray[np.intp], name: str) -> "Images":
        """Some of them."""
        fields = {field: values[places] for field, values in self.fields.items()}
        return Images(name, fields, self.dataset[places], self.orientation[places], self.water[places])

    def with_clean_image(self, clean: NDArray[np.uint16], name: str) -> "Images":
        """The same with other images in the place of those without water."""
        return Images(name, self.fields | {"clean_image": clean}, self.dataset, self.orientation, self.water)

    def source(self) -> ArraySource:
        """For the loop; images that share water are of one group."""
        return ArraySource(self.fields, self.water, self.name)


def panel(bin_px: int) -> Detector:
    """The paper's panel with pixels of bin_px times 75 um. Raises ``BadInput``."""
    if not 1 <= bin_px <= LARGEST_BIN:
        raise BadInput(f"--bin {bin_px}: give 1 to {LARGEST_BIN}; the paper's panel has 2163 x 2069 pixels")
    shape = (PANEL_SHAPE[0] // bin_px, PANEL_SHAPE[1] // bin_px)
    spread = max(_POINT_SPREAD_PX / bin_px, 0.01)
    return Detector("panel of the paper", shape, PIXEL_M * bin_px, dtype="uint32", point_spread_px=spread)


def only(counts: Counts, datasets: frozenset[int]) -> Counts:
    """The part of a set that is of these data sets."""
    return {number: count for number, count in counts.items() if number in datasets}


def alike(datasets: frozenset[int], images: int) -> Counts:
    """So many images for each data set, one half of them hits."""
    return dict.fromkeys(sorted(datasets), (images - images // 2, images // 2))


def images_of(counts: Counts) -> int:
    """How many in all."""
    return sum(hits + empties for hits, empties in counts.values())


def simulate(
    protocol: Protocol, bin_px: int, seed: int, after_image: Callable[[], None] = lambda: None, maps: bool = False
) -> Images:
    """Simulate a set; the same settings give the same images. maps: with a map of the peaks for each image."""
    detector = panel(bin_px)
    total = images_of(protocol.counts)
    image, clean = (np.zeros((total, 1, *detector.shape), np.uint16) for _ in range(2))
    orientation = np.full((total, 3, 3), np.nan)
    dataset, water = np.zeros(total, np.int64), np.zeros(total, np.int64)
    hit = np.zeros(total, np.bool_)
    sample = Sample(proteinase_k(), size_m=protocol.crystal_size_m)
    n = 0
    for number, (hits, empties) in protocol.counts.items():
        condition = CONDITIONS[number]
        water_of = Expectation(expected_water(condition, detector))
        first = protocol.stream << 48 | number << 40
        frozen = np.zeros(detector.shape, np.uint32)
        if protocol.frozen:
            water_of.draw(protocol.water, frame_rng(seed, first | _WATER_STREAM), frozen)
        for own in range(hits + empties):
            rng = frame_rng(seed, first | own)
            pulse, thickness = np.exp(protocol.jitter * rng.standard_normal(2) - protocol.jitter**2 / 2)
            if own < hits:
                bragg, orientation[n] = _bragg(condition, pulse, sample, detector, rng)
                clean[n, 0] = np.minimum(bragg, _LARGEST_COUNT)
            photons = frozen.copy()
            if not protocol.frozen:
                water_of.draw(protocol.water * pulse * thickness, rng, photons)
            image[n, 0] = np.minimum(photons + clean[n, 0], _LARGEST_COUNT)
            dataset[n], hit[n], water[n] = number, own < hits, first if protocol.frozen else first | own
            n += 1
            after_image()
    fields: dict[str, NDArray[Any]] = {
        "image": image,
        "clean_image": clean,
        "hit": hit,
        "photon_energy_eV": np.array([CONDITIONS[int(d)].photon_energy_eV for d in dataset]),
        "camera_length_m": np.array([CONDITIONS[int(d)].camera_length_m for d in dataset]),
    }
    if maps:
        fields["peak_map"] = np.stack([local_maxima(each[0])[None] for each in clean]).astype(np.uint8)
    return Images(protocol.name, fields, dataset, orientation, water)


def split_at_random(images: Images, seed: int) -> tuple[Images, Images]:
    """Four fifths and one fifth, image by image, whatever they share: the paper's split, which had no seed."""
    order = np.random.default_rng([seed, 0xE77]).permutation(len(images))
    cut = int(0.8 * len(images))
    return images.at(order[:cut], f"{images.name}, training"), images.at(order[cut:], f"{images.name}, test")


def paired_by_unsorted_listings(images: Images, seed: int) -> Images:
    """Peak images matched with overlays as two directory listings in no order match them: hardly ever with its own."""
    order = np.random.default_rng([seed, 0xD0A1]).permutation(len(images))
    return images.with_clean_image(images.fields["clean_image"][order], f"{images.name}, wrongly paired")


def water_as_the_paper_shows(times: float, bin_px: int) -> float:
    """Water so bright that a pixel of this panel counts what one of 75 um counted with water `times` the true one."""
    if not (math.isfinite(times) and times >= 0):
        raise BadInput(f"--frozen-water {times}: give a factor of 0 or more")
    return times / bin_px**2


def _bragg(
    condition: Condition, pulse: float, sample: Sample, detector: Detector, rng: np.random.Generator
) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    orientation = random_orientation(rng)
    laid = footprint(diffract(sample, condition, detector, orientation), condition, detector)
    counts = np.zeros(detector.shape, np.uint32)
    draw_sparse(laid.index, laid.photons * pulse, rng, counts, int(np.iinfo(np.uint32).max))
    return counts, orientation
