"""Series with truth: labels, sources, counts, and trees made of them."""

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest

from streamer.files import BadInput, FileSource
from streamer.messages import ImageMessage
from tests.training.dataset.builders import SHAPE, build_series, build_tree, change, good_truth
from training.dataset.check_tree import check_tree
from training.dataset.counts import count_series, count_tree
from training.dataset.export import export_tree
from training.dataset.images import read_image
from training.dataset.paper import ImageId
from training.dataset.series import label_path, label_series, open_series
from training.dataset.sources import find_sources
from training.dataset.tree import Tree


@pytest.fixture
def master(tmp_path: Path) -> Path:
    return build_series(tmp_path)


def labels(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with h5py.File(path) as file:
        return file["entry/labels/data"][()]  # type: ignore[no-any-return]


# --- labels -----------------------------------------------------------------------------


def test_the_signal_holds_the_photons_of_its_spots_where_they_are(master: Path) -> None:
    with open_series(master) as series:
        assert series.truth is not None
        signal = series.truth.signal(0, SHAPE)
        assert not series.truth.signal(1, SHAPE).any()
    assert signal.sum() == pytest.approx(100.0, rel=1e-5)
    ss, fs = np.mgrid[: SHAPE[0], : SHAPE[1]]
    first = signal[:10]
    assert (first * ss[:10]).sum() / first.sum() == pytest.approx(4.0, abs=1e-3)
    second = signal[10:]
    assert second.sum() == pytest.approx(40.0, rel=1e-5)
    assert (second * fs[10:]).sum() / second.sum() == pytest.approx(20.7, abs=1e-3)


def test_a_spot_at_the_edge_leaves_its_rest_outside(tmp_path: Path) -> None:
    truth = good_truth() | {"spot_ss": np.full(4, -0.5), "spot_fs": np.full(4, 29.4)}
    with open_series(build_series(tmp_path, truth=truth)) as series:
        assert series.truth is not None
        signal = series.truth.signal(0, SHAPE)
    assert 0.4 * 100 * 0.5 < signal.sum() < 100 * 0.5
    assert not signal[5:].any()


def test_a_series_label_marks_one_pixel_a_spot(master: Path) -> None:
    path = label_series(master, "maxima")
    assert path == label_path(master) == master.with_name("run_labels.h5")
    marks = labels(path)
    assert (marks.shape, marks.dtype) == ((4, *SHAPE), np.float32)
    assert [tuple(place) for place in np.argwhere(marks)] == [(0, 4, 5), (0, 15, 21), (2, 4, 5), (2, 15, 21)]
    with h5py.File(path) as file:
        said = dict(file["entry/labels/data"].attrs)
    assert (said["kind"], said["threshold"], said["min_distance"], said["series"]) == (
        "maxima",
        1.0,
        3,
        "run_master.h5",
    )


def test_a_series_mask_is_wider_than_its_maxima_and_blank_in_gaps(tmp_path: Path) -> None:
    truth = good_truth() | {"spot_fs": np.tile([5.0, 11.0], 2)}  # beside the bad column 10
    marks = labels(label_series(build_series(tmp_path, truth=truth), "threshold", 0.5))
    assert marks[0].sum() > 10
    assert not marks[1].any()
    assert not marks[:, :, 10].any()
    assert marks[0, 15, 11] == 1


def test_labels_that_are_there_are_not_replaced_unasked(master: Path) -> None:
    label_series(master, "maxima")
    with pytest.raises(FileExistsError, match=r"run_labels\.h5 exists already"):
        label_series(master, "threshold")
    label_series(master, "threshold", force=True)
    assert labels(label_path(master)).sum() > 4


def test_interrupted_labels_leave_no_file(master: Path) -> None:
    def stop(done: int, total: int) -> None:
        del total
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_series(master, "maxima", after_image=stop)
    assert not list(master.parent.glob("*labels*"))
    assert not list(master.parent.glob(".*"))


def test_a_series_without_truth_or_spots_is_refused(master: Path, tmp_path: Path) -> None:
    change(master, "entry/truth/spot_photons", None)
    with pytest.raises(BadInput, match=r"run_master\.h5:/entry/truth/spot_photons is missing$"):
        label_series(master, "maxima")
    change(master, "entry/truth", None)
    with pytest.raises(BadInput, match=r"run_master\.h5: no truth in /entry/truth or beside it"):
        label_series(master, "maxima")


def test_a_truth_names_what_it_lacks_and_only_that(master: Path, tmp_path: Path) -> None:
    change(master, "entry/truth/hit", None)
    with open_series(master) as series:
        assert len(series.need_truth("spot_ss", "orientation").values["spot_ss"]) == 4
        with pytest.raises(BadInput) as caught:
            series.need_truth("spot_ss", "hit")
    assert str(caught.value) == f"{master}:/entry/truth/hit is missing"
    assert labels(label_series(master, "maxima")).sum() == 4, "labels need no hits"
    with pytest.raises(BadInput, match=r"/entry/truth/hit is missing"):
        export_tree([master], tmp_path / "set")
    for name in ("spot_ss", "spot_photons"):
        change(master, f"entry/truth/{name}", None)
    where = "/entry/truth/hit, /entry/truth/spot_ss, /entry/truth/spot_photons are missing"
    with pytest.raises(BadInput, match=f"{where}$"):
        export_tree([master], tmp_path / "set")


def test_a_table_of_truth_names_what_it_lacks_in_its_own_words(master: Path) -> None:
    change(master, "entry/truth", None)
    beside = master.with_name("run_truth.npz")
    np.savez(beside, hit=np.ones(4, bool), peak_frame=np.arange(4), spot_fs=np.zeros(4))
    with pytest.raises(BadInput) as caught:
        label_series(master, "maxima")
    assert str(caught.value) == f"{beside}:peak_ss, peak_photons are missing"


# --- sources and counts -----------------------------------------------------------------


def test_paths_name_trees_masters_and_globs(tmp_path: Path) -> None:
    images = build_tree(tmp_path / "tree")
    runs = [build_series(tmp_path / "runs", name) for name in ("b", "a")]
    assert find_sources([str(tmp_path / "tree"), str(images)]) == [Tree(images)]
    assert find_sources([str(tmp_path / "runs")]) == sorted(runs)
    assert find_sources([str(tmp_path / "runs" / "*.h5")]) == sorted(runs), "data files come with their masters"
    runs[0].unlink()
    assert [p.name for p in find_sources([str(tmp_path / "runs" / "*.h5")]) if isinstance(p, Path)] == [
        "a_master.h5", "b_data_000001.h5", "b_data_000002.h5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [("gone.h5", "no such file or folder"), ("*.h5", "no file matches"), (".", "neither a tree")],
)
def test_paths_that_name_nothing_are_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        find_sources([str(tmp_path / name)])


def test_a_tree_is_counted_by_data_set(tmp_path: Path) -> None:
    images = build_tree(tmp_path, (2, 9), hits=4, empties=3)
    (images / "labels/09/empty_label_09_00003.h5").unlink()
    counts = count_tree(Tree(images))
    assert [(c.dataset, c.total, c.hits, c.empties, c.labels, c.overlays, c.water) for c in counts] == [
        (2, 7, 4, 3, 7, 7, 1),
        (9, 7, 4, 3, 6, 7, 1),
    ]
    assert [c.dataset for c in count_tree(Tree(images), {9, 1})] == [9]


def test_a_series_is_counted_by_class(tmp_path: Path) -> None:
    truth = good_truth() | {"class": np.array([b"protein", b"salt", b"protein", b"water"])}
    with open_series(build_series(tmp_path, truth=truth)) as series:
        count = count_series(series)
    assert (count.dataset, count.total, count.hits, count.empties) == (1, 4, 2, 2)
    assert count.classes == {"protein": 2, "salt": 1, "water": 1}


def test_a_series_without_truth_or_at_another_condition_is_counted(tmp_path: Path) -> None:
    master = build_series(tmp_path, condition=(0.2, 9000.0))
    change(master, "entry/truth", None)
    with open_series(master) as series:
        count = count_series(series)
    assert (count.dataset, count.camera_length_m, count.total, count.hits, count.classes) == (None, 0.2, 4, None, {})


# --- a series as a tree -----------------------------------------------------------------


def test_an_exported_series_is_a_good_tree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def run(name: str, frames: int, **options: Any) -> Path:
        truth = good_truth(frames) | {"spot_photons": rng.uniform(20, 60, 2 * ((frames + 1) // 2))}
        return build_series(tmp_path / "runs", name, frames, truth=truth, **options)

    runs = [run("a", 4), run("b", 6, seed=1), run("c", 4, seed=2, condition=(0.25, 7000.0))]
    tree, frames = export_tree(runs, tmp_path / "set")
    assert frames == 14
    assert list(check_tree(tree)) == []
    assert [(c.dataset, c.hits, c.empties, c.water) for c in count_tree(tree)] == [(1, 5, 5, 1), (5, 2, 2, 1)]


def test_an_exported_overlay_is_the_frame_with_masked_pixels_at_0(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).poisson(2.0, (4, *SHAPE)).astype("u2")
    pixels[:, :, 10] = 65535
    tree, _ = export_tree([build_series(tmp_path, pixels=pixels)], tmp_path / "set")
    overlay = read_image(tree.path("peaks_water_overlay", ImageId(1, False, 2)))  # frame 2, the second hit
    expected = pixels[2].copy()
    expected[:, 10] = 0
    np.testing.assert_array_equal(overlay.pixels, expected)
    peaks = read_image(tree.path("peaks", ImageId(1, False, 2)))
    assert peaks.is_expectation
    assert peaks.pixels.sum() == pytest.approx(100.0, rel=1e-3)


def test_a_tree_is_not_exported_over_another_unasked(master: Path, tmp_path: Path) -> None:
    export_tree([master], tmp_path / "set")
    with pytest.raises(FileExistsError, match="exist already"):
        export_tree([master], tmp_path / "set")
    shorter = build_series(tmp_path / "short", frames=2)
    tree, _ = export_tree([shorter], tmp_path / "set", force=True)
    assert [(c.hits, c.empties) for c in count_tree(tree)] == [(1, 1)]


def test_a_series_at_none_of_the_nine_conditions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"0\.2 m and 9000\.0 eV are none of the paper's nine conditions"):
        export_tree([build_series(tmp_path, condition=(0.2, 9000.0))], tmp_path / "set")


def test_nothing_chosen_is_nothing_to_export(master: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing to export"):
        export_tree([master], tmp_path / "set", datasets={9})


def test_the_overlays_of_a_tree_are_read_as_frames_of_one_series_a_data_set(master: Path, tmp_path: Path) -> None:
    tree, _ = export_tree([master], tmp_path / "set")
    source = FileSource([str(tree.images / "peaks_water_overlay/01/*.h5")])
    images = []
    while (received := source.receive(0)) is not None:
        if isinstance(received.message, ImageMessage):
            images.append(received.message.channels["threshold_1"])
    assert len(images) == 4
    shapes = {image.shape for image in images}  # type: ignore[union-attr]
    assert shapes == {SHAPE}
