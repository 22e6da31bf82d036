"""What a run shows as a whole: powder, peakogram, histograms; what begins them anew; pictures of them."""

import io
import threading
import time
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pytest
from matplotlib.figure import Figure

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.control import Control
from analyzer.front import Front, FrontSettings
from analyzer.geometry import Geometry
from analyzer.judge import Judge
from analyzer.mask_file import BadMask, read_mask
from analyzer.panels import open_geometry
from analyzer.pictures import FIGURES, Request, drawn
from analyzer.pictures.drawing import NIGHT
from analyzer.pictures.products import _powder, draw
from analyzer.product_arrays import IN_JSON, PRODUCTS, edges_of, plain
from analyzer.product_files import HDF5, ProductFiles, ProductsExist
from analyzer.product_snapshot import LOG_INTENSITY, Snapshot
from analyzer.products import MOST_PEAKS_COUNTED, PEAKOGRAM_BINS, POWDER_CELLS, Products
from analyzer.results import Decision, HitRule
from streamer.validity import Validity
from tests.analyzer.builders import (
    BROKEN,
    SHAPE,
    SPOT,
    Collector,
    ScriptedSource,
    end,
    frame,
    image,
    series,
    start,
    water,
    with_spots,
)
from tests.analyzer.test_panels import FLAT, written

BY_PEAKS = CascadeSettings(hit_rule=HitRule.PEAKS, min_peaks=3)


def gathered(bundle: Bundle, frames: list[Any], settings: CascadeSettings = BY_PEAKS) -> Products:
    products, analyser = Products(), Analyser(bundle, settings)
    outcome = analyser.process(frames)
    products.add(outcome.results, outcome.peaks, outcome.profiles)
    return products


def shown(products: Products) -> Snapshot:
    snapshot = products.snapshot()
    assert snapshot is not None
    return snapshot


def hot_run(frames: int, pixel: tuple[int, int] = (50, 60)) -> list[np.ndarray[Any, Any]]:
    """Water with one pixel that always counts."""
    rng = np.random.default_rng(8)
    images = [water(0.05, seed=n) for n in range(frames)]
    for each in images:
        each[pixel] += rng.poisson(60)
    return images


# --- what is gathered -------------------------------------------------------------------


def test_peaks_of_hits_make_the_powder_and_others_do_not(bundle: Bundle) -> None:
    lit = [frame(with_spots(water(0.0)), n) for n in range(3)]
    hot = water(0.0)
    hot[::8, ::8] = 1  # a beam
    hot[55, 70] = 80
    products = shown(gathered(bundle, [*lit, frame(hot, 3)]))
    assert products.frames == {"hit": 3, "miss": 1, "no_beam": 0}
    assert products.bin_px == 2
    assert products.powder_peaks.shape == (31, 38)
    assert products.powder_peaks.sum() == 3 * len(SPOT)
    assert products.powder_photons.sum() == pytest.approx(3 * len(SPOT) * 60, rel=0.02)
    for ss, fs in SPOT:
        cells = products.powder_peaks[(ss) // 2 : (ss + 1) // 2 + 1, fs // 2 : (fs + 1) // 2 + 1]
        assert cells.sum() == 3
    assert products.peakogram.sum() == 3 * len(SPOT)
    assert products.peak_counts[1, len(SPOT)] == 3
    assert products.peak_counts[0, 1] == 1
    assert products.resolution.sum() == 3


def test_the_peakogram_is_in_q_and_photons(bundle: Bundle) -> None:
    products = shown(gathered(bundle, [frame(with_spots(water(0.0), photons=400))]))
    assert (products.axis.name, products.axis.unit) == ("q", "1/angstrom")
    ss, fs = (np.array(each, float) + 0.5 for each in zip(*SPOT, strict=True))
    q = products.geometry.q_per_angstrom(fs, ss)
    assert q is not None
    expected, _, _ = np.histogram2d(q, np.full(len(q), np.log10(400.0)), [products.axis.edges, LOG_INTENSITY])
    assert products.peakogram.shape == (PEAKOGRAM_BINS, len(LOG_INTENSITY) - 1)
    assert np.abs(products.peakogram.sum(1) - expected.sum(1)).sum() <= 2
    assert products.peakogram[:, 25:27].sum() == len(SPOT)


def test_without_distance_the_peakogram_is_by_radius_and_begins_anew_when_it_is_known(bundle: Bundle) -> None:
    blind = series(1, camera_length_m=None)
    products = gathered(bundle, [frame(with_spots(water(0.0)), of=blind)])
    assert shown(products).axis.name == "radius"
    assert shown(products).resolution.sum() == 0
    outcome = Analyser(bundle, BY_PEAKS).process([frame(with_spots(water(0.0)), of=series(2, 2))])
    products.add(outcome.results, outcome.peaks, outcome.profiles)
    assert shown(products).axis.name == "q"
    assert shown(products).peakogram.sum() == len(SPOT)
    assert shown(products).powder_peaks.sum() == 2 * len(SPOT)


def hit_of(bundle: Bundle, products: Products, ordinal: int, **header: Any) -> Geometry:
    """Adds a hit of a series with this header; its geometry."""
    outcome = Analyser(bundle, BY_PEAKS).process([frame(with_spots(water(0.0)), of=series(ordinal, ordinal, **header))])
    products.add(outcome.results, outcome.peaks, outcome.profiles)
    return outcome.peaks[0].plan.geometry


def in_q(products: Snapshot, *geometries: Geometry) -> np.ndarray[Any, Any]:
    """What the peakogram has to be along q, of a hit in each of these geometries."""
    ss, fs = (np.array(each, float) + 0.5 for each in zip(*SPOT, strict=True))
    q = np.concatenate([geometry.q_per_angstrom(fs, ss) for geometry in geometries])  # type: ignore[arg-type]
    assert q.max() < products.axis.edges[-1]
    return np.histogram(q, products.axis.edges)[0]


@pytest.mark.parametrize("header", [{"camera_length_m": 0.08}, {"photon_energy_eV": 12_000.0}])
def test_a_detector_that_comes_to_reach_farther_gets_a_longer_axis_and_no_peak_moves(
    bundle: Bundle, header: dict[str, float]
) -> None:
    """On the first series' axis the new peaks would all be in its last bin."""
    products = Products()
    first = hit_of(bundle, products, 1)
    before = shown(products)
    second = hit_of(bundle, products, 2, **header)
    after = shown(products)
    reach = second.q_at(second.reach_px)
    assert reach is not None
    assert before.axis.edges[-1] < reach <= after.axis.edges[-1] < 1.03 * reach
    np.testing.assert_allclose(after.axis.edges[: len(before.axis.edges)], before.axis.edges, rtol=1e-12)
    assert np.abs(before.peakogram.sum(1) - in_q(before, first)).sum() <= 2
    assert np.abs(after.peakogram.sum(1) - in_q(after, first, second)).sum() <= 2
    assert len(after.peakogram) == len(after.axis.edges) - 1
    # Back again: the axis stays, and so does all that was gathered.
    hit_of(bundle, products, 3)
    assert shown(products).peakogram.sum() == 3 * len(SPOT)
    np.testing.assert_array_equal(shown(products).axis.edges, after.axis.edges)


@pytest.mark.parametrize("camera_length_m", [0.01, 5.0])
def test_a_detector_that_stands_altogether_elsewhere_begins_the_peakogram_anew(
    bundle: Bundle, camera_length_m: float
) -> None:
    products = Products()
    hit_of(bundle, products, 1)
    there = hit_of(bundle, products, 2, camera_length_m=camera_length_m)
    assert shown(products).peakogram.sum() == len(SPOT)
    assert shown(products).axis.edges[-1] == there.q_at(there.reach_px + 1.0)
    assert shown(products).powder_peaks.sum() == 2 * len(SPOT)


def test_images_of_another_shape_begin_anew_but_not_for_prometheus(bundle: Bundle) -> None:
    products = gathered(bundle, [frame(with_spots(water(0.0)))])
    other = frame(with_spots(water(0.0, (80, 90))), of=series(2, 2, shape=(80, 90)))
    outcome = Analyser(bundle, BY_PEAKS).process([other])
    products.add(outcome.results, outcome.peaks, outcome.profiles)
    assert shown(products).geometry.shape == (80, 90)
    assert shown(products).frames["hit"] == 1
    assert products.peaks_per_frame.buckets()[-1] == ("+Inf", 2.0)


def test_frames_without_beam_and_bad_frames_count_nowhere_else(bundle: Bundle) -> None:
    products = gathered(bundle, [frame(water(0.0)), frame(BROKEN, 1), frame(with_spots(water(0.0)), 2)])
    found = shown(products)
    assert found.frames == {"hit": 1, "miss": 0, "no_beam": 1}
    assert found.peak_counts.sum() == 1
    assert products.peaks_per_frame.buckets()[-1] == ("+Inf", 1.0)


def test_saturated_frames_and_peaks_are_counted(bundle: Bundle) -> None:
    lit = with_spots(water(0.0))
    lit[20, 30] = 5000
    of = series(saturation_value=4000)
    products = gathered(bundle, [frame(lit, of=of), frame(with_spots(water(0.0)), 1, of)])
    assert (shown(products).saturated_frames, shown(products).saturated_peaks) == (1, 1)
    assert products.saturated_frames == 1


def test_a_cell_of_the_powder_stays_saturated_whatever_other_peak_lies_in_it(bundle: Bundle) -> None:
    """Cells are larger than a spot on large detectors."""
    outcome = Analyser(bundle, BY_PEAKS).process([frame(with_spots(water(0.0)))])
    (seen,) = outcome.peaks
    there = seen.peaks.copy()
    there["fs"], there["ss"] = 20, 30
    there["saturated"][0] = True
    products = Products()
    products.add(outcome.results, [replace(seen, peaks=there)], outcome.profiles)
    assert shown(products).powder_peaks[15, 10] == len(there) > 1
    assert shown(products).powder_saturated[15, 10]


def test_many_peaks_count_in_the_last_bin(bundle: Bundle) -> None:
    lit = np.zeros((200, 300), "u2")
    lit[4::8, 4::8] = 60
    lit[5::8, 4::8] = 60
    products = shown(gathered(bundle, [frame(lit, of=series(shape=lit.shape))]))
    assert products.peak_counts[1, MOST_PEAKS_COUNTED] == 1


def test_large_detectors_are_binned_more(bundle: Bundle) -> None:
    shape = (3000, 4000)
    lit = np.zeros(shape, "u2")
    lit[::50, ::50] = 1  # a beam
    lit[[10, 1500, 2990, 2999], [5, 3999, 7, 3999]] = 900
    lit[[11, 1501, 2991, 2998], [5, 3999, 7, 3999]] = 900
    products = shown(gathered(bundle, [frame(lit, of=series(shape=shape))]))
    assert products.bin_px == 4
    assert products.powder_peaks.size <= POWDER_CELLS
    assert products.powder_peaks.sum() == 4


def test_before_the_first_frame_there_is_nothing() -> None:
    assert Products().snapshot() is None
    assert Products().hot_pixels() is None


def test_a_snapshot_is_not_written_to_any_more(bundle: Bundle) -> None:
    products = gathered(bundle, [frame(with_spots(water(0.0)))])
    before = shown(products)
    outcome = Analyser(bundle, BY_PEAKS).process([frame(with_spots(water(0.0)))])
    products.add(outcome.results, outcome.peaks, outcome.profiles)
    assert before.powder_peaks.sum() == len(SPOT)
    assert before.frames["hit"] == 1


def test_readers_and_the_publisher_do_not_disturb_each_other(bundle: Bundle) -> None:
    outcome = Analyser(bundle, BY_PEAKS).process([frame(with_spots(water(0.02, seed=n)), n) for n in range(8)])
    products, over, wrong = Products(), threading.Event(), []

    def look() -> None:
        while not over.is_set():
            snapshot = products.snapshot()
            if snapshot is not None and snapshot.powder_peaks.sum() != snapshot.peakogram.sum():
                wrong.append(snapshot)

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(100):
        products.add(outcome.results, outcome.peaks, outcome.profiles)
        if n % 30 == 29:
            products.reset()
    over.set()
    for reader in readers:
        reader.join()
    assert wrong == []


# --- through the front ------------------------------------------------------------------


def run_front(bundle: Bundle, script: list[Any], settings: CascadeSettings = BY_PEAKS) -> tuple[Front, Collector]:
    kept = Collector()
    front = Front(
        ScriptedSource(script), [Analyser(bundle, settings) for _ in range(2)], [kept], FrontSettings(block=True)
    )
    front.run(threading.Event())
    return front, kept


def test_a_run_gathers_all_its_series(bundle: Bundle) -> None:
    script: list[Any] = []
    for number in (1, 2):
        script += [
            start(number, 5),
            *(image(n, number, with_spots(water(0.02, seed=n))) for n in range(5)),
            end(number),
        ]
    front, _ = run_front(bundle, script)
    assert shown(front.products).frames["hit"] == 10


def test_a_geometry_that_does_not_fit_is_said_and_counted(
    bundle: Bundle, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = open_geometry(written(tmp_path, FLAT))
    other = (40, 50)
    script = [start(1, 6, shape=other), *(image(n, 1, water(0.3, other, n)) for n in range(6)), end(1)]
    front, kept = run_front(bundle, script, replace(BY_PEAKS, geometry=given))
    assert [r.status for r in kept.results] == ["ok"] * 6
    assert front.products.unfit_frames == 6
    said = [r.message for r in caplog.records if r.message.startswith("geometry")]
    assert said == [
        "geometry: det.geom covers images of 61 x 75 pixels, the images are 40 x 50; give the geometry of this "
        "detector; the header's geometry is used instead"
    ]


# --- the hot-pixel map, applied ---------------------------------------------------------


class Hot:
    """A controlled front that has seen a hot pixel in 130 frames."""

    def __init__(self, bundle: Bundle, mask: Validity | None = None) -> None:
        judge = Judge(bundle, replace(BY_PEAKS, mask=mask))

        def make(judge: Judge) -> Analyser:
            return Analyser(judge.bundle, judge.settings)

        self.kept, self.stop = Collector(), threading.Event()
        self.source = ScriptedSource([start(1, 400), *(image(n, 1, p) for n, p in enumerate(hot_run(130)))], live=True)
        self.front = Front(self.source, [make(judge)], [self.kept], FrontSettings(block=True))
        self.control = Control(self.front, judge, make, lambda path: bundle)
        self.thread = threading.Thread(target=self.front.run, args=(self.stop,))
        self.thread.start()
        self.wait(130)

    def wait(self, results: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.kept.results) < results:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def more(self, images: list[np.ndarray[Any, Any]], first: int) -> list[Any]:
        self.source._script.extend(image(first + n, 1, pixels) for n, pixels in enumerate(images))
        self.wait(first + len(images))
        return self.kept.results[first:]

    def __enter__(self) -> "Hot":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(30)


def test_the_map_acts_only_once_applied_and_then_under_a_name_of_its_pixels(bundle: Bundle) -> None:
    with Hot(bundle) as run:
        found = run.front.products.hot_pixels(fresh=True)
        assert found is not None
        assert np.argwhere(found.mask).tolist() == [[50, 60]]
        assert {r.mask for r in run.kept.results} == {"none"}
        assert all(any(round(p.ss) == 50 and round(p.fs) == 60 for p in r.peaks) for r in run.kept.results)
        change = run.control.use_hot_pixels()
        assert change.mask is not None
        assert change.mask.startswith("hot-pixels-")
        after = run.more(hot_run(20), 130)
        assert {r.mask for r in after} == {f"none + {change.mask}"}
        assert not any(round(p.ss) == 50 and round(p.fs) == 60 for r in after for p in r.peaks)
        # Another pixel goes bad: applied again, the first one stays out.
        run.more(hot_run(130, (10, 10)), 150)
        again = run.control.use_hot_pixels()
        applied = run.front.products.applied
        assert applied is not None
        assert np.argwhere(applied.valid == 0).tolist() == [[10, 10], [50, 60]]
        assert again.mask == applied.name != change.mask


def test_a_mask_that_was_taken_away_is_not_said_to_be_unfit_any_more(bundle: Bundle) -> None:
    wide = replace(BY_PEAKS, mask=Validity("wide.npy", np.ones((5, 7), np.uint8)))
    products = gathered(bundle, [frame(water(0.2))], wide)
    assert products.mask_unfit.startswith("wide.npy is for images of 5 x 7 pixels")
    products.reset()
    assert not products.mask_unfit
    assert products.mask_unfit_frames == 1


def test_the_map_joins_the_users_mask_and_leaves_with_it(bundle: Bundle) -> None:
    valid = np.ones(SHAPE, np.uint8)
    valid[0] = 0
    with Hot(bundle, Validity("mine.npy", valid)) as run:
        change = run.control.use_hot_pixels()
        assert change.mask is not None
        assert change.mask.startswith("mine.npy + hot-pixels-")
        assert run.control.use_mask(None).mask is None
        assert run.front.products.applied is None


def test_an_empty_map_is_not_applied(bundle: Bundle) -> None:
    with Hot(bundle) as run:
        run.control.reset()
        with pytest.raises(BadMask, match="no pixel yet"):
            run.control.use_hot_pixels()
        assert run.control.judge.mask is None


def test_hot_pixels_that_make_every_frame_a_hit_are_found(bundle: Bundle) -> None:
    script = [start(1, 130), *(image(n, 1, p) for n, p in enumerate(hot_run(130))), end(1)]
    front, kept = run_front(bundle, script, CascadeSettings(hit_rule=HitRule.PEAKS, min_peaks=1))
    assert {r.decision for r in kept.results} == {"hit"}
    found = front.products.hot_pixels(fresh=True)
    assert found is not None
    assert np.argwhere(found.mask).tolist() == [[50, 60]]


@pytest.mark.parametrize("min_peaks", [3, 100])
def test_a_looped_series_of_crystals_feeds_nothing(bundle: Bundle, min_peaks: int) -> None:
    frames = [with_spots(water(0.05, seed=n)) for n in range(20)]
    script: list[Any] = []
    for number in range(1, 16):
        script += [start(number, 20), *(image(n, number, p) for n, p in enumerate(frames)), end(number)]
    front, _ = run_front(bundle, script, CascadeSettings(hit_rule=HitRule.PEAKS, min_peaks=min_peaks))
    found = front.products.hot_pixels(fresh=True)
    assert found is not None
    assert (len(found.pixel), found.frames) == (0, 20)


# --- pictures and files -----------------------------------------------------------------


@pytest.mark.parametrize("name", list(FIGURES))
@pytest.mark.parametrize("camera_length_m", [0.15, None])
def test_every_picture_is_drawn(bundle: Bundle, name: str, camera_length_m: float | None) -> None:
    of = series(camera_length_m=camera_length_m)
    for frames in ([frame(with_spots(water(0.02)), of=of)], [frame(water(0.2), of=of)]):
        png = draw(name, shown(gathered(bundle, frames)))
        assert png.startswith(b"\x89PNG")
        assert len(png) > 2000


def test_frames_in_the_last_bin_of_the_peak_counts_are_drawn(bundle: Bundle) -> None:
    products = shown(gathered(bundle, [frame(water(0.2))]))
    products.peak_counts[:, -1] = 7
    assert draw("peak_counts", products).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_dark_picture_has_a_dark_ground_and_letters_that_stand_out(bundle: Bundle, name: str) -> None:
    from matplotlib.image import imread

    products = shown(gathered(bundle, [frame(with_spots(water(0.02)))]))
    light, dark = (imread(io.BytesIO(draw(name, products, dark=dark)))[..., :3] for dark in (False, True))
    assert light.shape == dark.shape
    night = np.array([int(NIGHT[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    ground = np.all(light == 1.0, axis=2) & np.all(np.abs(dark - night) < 0.01, axis=2)
    # What was white around the axes is dark now, and nothing dark is written on it.
    assert ground[:3].mean() > 0.9
    assert ground[:, :3].mean() > 0.9
    assert np.all(dark == 1.0, axis=2).mean() < 0.001, "the cross of the beam at most"
    letters = (light.max(2) < 0.35) & (np.abs(light - dark).max(2) > 0.2)
    assert letters.sum() > 200
    assert dark[letters].min(1).mean() > 0.5


def test_every_product_has_an_array_with_the_edges_it_names(bundle: Bundle) -> None:
    products = shown(gathered(bundle, [frame(with_spots(water(0.02)))]))
    for name, product in PRODUCTS.items():
        array = product.take(products)
        assert len(product.axes) == array.ndim
        for edges, size in zip(edges_of(name, products).values(), array.shape, strict=False):
            assert len(edges) == size + 1
        if name in IN_JSON:
            assert plain(name, products)["unit"] == product.unit


def test_every_map_that_was_in_force_is_saved_when_it_is_applied(tmp_path: Any) -> None:
    """Records name both, however soon the second came and before any frame was seen."""
    products = Products()
    files = ProductFiles(tmp_path / "out", products, drawn)
    for name in ("hot-pixels-aaaaaaaa.npy", "hot-pixels-bbbbbbbb.npy"):
        products.apply(Validity(name, np.ones((61, 75), np.uint8)))
    products.apply(None)
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "out").glob("hot-pixels-*.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    saved = sorted(path.name for path in (tmp_path / "out").glob("hot-pixels-*.npy"))
    files.close()
    assert saved == ["hot-pixels-aaaaaaaa.npy", "hot-pixels-bbbbbbbb.npy"]
    assert files.failed == 0


def test_a_map_applied_while_the_last_files_are_written_is_saved_too(bundle: Bundle, tmp_path: Any) -> None:
    products = gathered(bundle, [frame(with_spots(water(0.02)))])
    drawing, over = threading.Event(), threading.Event()

    def slowly(request: Request) -> bytes | None:
        drawing.set()
        over.wait(30)
        return drawn(request)

    files = ProductFiles(tmp_path / "out", products, slowly, every_s=0.01)
    assert drawing.wait(30)
    products.apply(Validity("hot-pixels-cccccccc.npy", np.ones(SHAPE, np.uint8)))
    threading.Timer(0.2, over.set).start()
    files.close()
    assert (tmp_path / "out/hot-pixels-cccccccc.npy").exists()
    assert files.failed == 0


def test_a_saturated_peak_does_not_set_the_scale_of_the_powder_pattern(bundle: Bundle) -> None:
    products = gathered(bundle, [frame(with_spots(water(0.02), 40)), frame(with_spots(water(0.02), 40), 1)])
    seen = shown(products)
    assert not seen.powder_saturated.any()
    plain_scale = _powder_norm(seen)
    photons = seen.powder_photons.copy()
    at = np.unravel_index(photons.argmax(), photons.shape)
    photons[at], saturated = 2.0**32, np.zeros(photons.shape, np.bool_)
    saturated[at] = True
    assert _powder_norm(replace(seen, powder_photons=photons)) > 1e9
    assert _powder_norm(replace(seen, powder_photons=photons, powder_saturated=saturated)) <= plain_scale


def _powder_norm(seen: Snapshot) -> float:
    figure = Figure()
    axes = figure.subplots()
    _powder(figure, axes, seen)
    most = axes.images[0].norm.vmax
    assert isinstance(most, float)
    return most


def test_a_folder_holds_everything_at_the_end_and_its_masks_can_be_used(bundle: Bundle, tmp_path: Any) -> None:
    front, _ = run_front(bundle, [start(1, 130), *(image(n, 1, p) for n, p in enumerate(hot_run(130))), end(1)])
    front.products.applied = front.products.hot_pixels(fresh=True).frozen()  # type: ignore[union-attr]
    files = ProductFiles(tmp_path / "out", front.products, drawn)
    files.close()
    assert files.failed == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {HDF5, "hot_pixels.npy", front.products.applied.name, *(f"{name}.png" for name in FIGURES)}
    for mask in (tmp_path / "out/hot_pixels.npy", tmp_path / f"out/{HDF5}:/hot_pixels/data",
                 tmp_path / "out" / front.products.applied.name):  # fmt: skip
        assert np.argwhere(read_mask(mask).valid == 0).tolist() == [[50, 60]]
    assert read_mask(tmp_path / "out" / front.products.applied.name).name == front.products.applied.name
    with h5py.File(tmp_path / "out" / HDF5) as file:
        assert set(PRODUCTS) <= set(file)
        assert file.attrs["frames_miss"] == 130
        assert file["powder/data"].attrs["units"] == "photons"


def test_an_existing_folder_is_refused_unless_it_may_be_replaced(bundle: Bundle, tmp_path: Any) -> None:
    front, _ = run_front(bundle, [start(1, 1), image(0), end(1)])
    ProductFiles(tmp_path, front.products, drawn).close()
    with pytest.raises(ProductsExist, match="--overwrite"):
        ProductFiles(tmp_path, front.products, drawn)
    ProductFiles(tmp_path, front.products, drawn, overwrite=True).close()


def test_a_run_that_goes_on_keeps_what_the_earlier_ones_added_up(bundle: Bundle, tmp_path: Any) -> None:
    for images in (1, 2, 3):
        front, _ = run_front(bundle, [start(1, images), *(image(n) for n in range(images)), end(1)])
        ProductFiles(tmp_path, front.products, drawn, append=True).close()
    counts = []
    for name in ("products-1.h5", "products-2.h5", HDF5):
        with h5py.File(tmp_path / name) as file:
            counts.append(int(file.attrs["frames_hit"] + file.attrs["frames_miss"]))
    assert counts == [1, 2, 3]


def test_a_folder_that_vanishes_costs_writings_and_nothing_else(bundle: Bundle, tmp_path: Any) -> None:
    front, _ = run_front(bundle, [start(1, 1), image(0), end(1)])
    files = ProductFiles(tmp_path / "out", front.products, drawn, every_s=0.05)
    deadline = time.monotonic() + 30
    while not (tmp_path / "out" / "hot_pixels.png").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tmp_path / "out").rename(tmp_path / "gone")
    (tmp_path / "out").write_text("a file in its place")
    front.products.added += 1
    while not files.failed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    files.close()
    assert (tmp_path / "out" / HDF5).exists()
    assert not list((tmp_path / "out").glob(".*.tmp"))
    (metric,) = files.collect()
    assert metric.samples[0].value >= 1


def test_a_run_without_a_frame_writes_nothing(tmp_path: Any) -> None:
    files = ProductFiles(tmp_path / "out", Products(), drawn)
    files.close()
    assert list((tmp_path / "out").iterdir()) == []
    assert files.failed == 0


def test_decisions_have_their_counts_from_the_start(bundle: Bundle) -> None:
    assert set(shown(gathered(bundle, [frame(water(0.2))])).frames) == {str(each) for each in Decision}
