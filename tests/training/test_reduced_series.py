"""Series on disk become what the network sees live: same input, bad frames counted, memory bounded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyzer.bundle import Bundle, load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.zones import CELL_COLUMNS, COLUMNS, STRONGEST, ZONES
from streamer.files import BadInput
from streamer.validity import Validity
from tests.analyzer.builders import SHAPE, frame, frames_of_a_run, metadata, series, water, write_bundle, write_series
from training import reduced_series
from training.hit import batch_of
from training.reduced_series import reduce_series


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(write_bundle(tmp_path_factory.mktemp("bundle")))


class Spy(nn.Module):
    """A hit network that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, *given: Tensor) -> Tensor:
        self.seen.append(tuple(each.clone() for each in given))
        return torch.zeros(1)


def damage(master: Path, position: int) -> None:
    """Bytes that are no bitshuffle-LZ4 in the place of an image."""
    with h5py.File(master.with_name(master.name.replace("master", "data_000001")), "r+") as file:
        file["entry/data/data"].id.write_direct_chunk((position, 0, 0), b"\x01" * 40)


def add_truth(master: Path, **values: Any) -> Path:
    with h5py.File(master, "r+") as file:
        for name, value in values.items():
            file[f"entry/truth/{name}"] = value
    return master


def test_frames_are_reduced_to_what_the_network_sees_live(bundle: Bundle, tmp_path: Path) -> None:
    pixels = frames_of_a_run(6)
    reduced = reduce_series([write_series(tmp_path, pixels)], bundle)
    spy = Spy()
    live = Analyser(replace(bundle, hit=spy), CascadeSettings())
    results = live.process([frame(each, n, of=series(images=6)) for n, each in enumerate(pixels)]).results
    stored = batch_of(reduced.shots, np.arange(6), 1.0, torch.device("cpu"))
    for n, live_fields in enumerate(spy.seen):
        for of_stored, of_live in zip(stored, live_fields, strict=True):
            torch.testing.assert_close(of_stored[n], of_live[0], rtol=0, atol=0)
    assert len(spy.seen) == 6
    assert reduced.peak_count.tolist() == [result.peak_count for result in results]
    assert reduced.peak_count[1::2].min() >= 5 > reduced.peak_count[::2].max()
    assert not reduced.known.any()
    assert np.isnan(reduced.shots.facts["flux_photons"]).all()
    assert reduced.shots.facts["photon_energy_eV"].tolist() == [7000.0] * 6


def test_an_undecodable_frame_and_one_without_beam_are_counted_and_left_out(bundle: Bundle, tmp_path: Path) -> None:
    pixels = frames_of_a_run(5)
    pixels[4] = 0
    master = write_series(tmp_path, pixels)
    damage(master, 2)
    reduced = reduce_series([master], bundle)
    (count,) = reduced.counts
    assert (count.frames, count.reduced, count.bad, count.no_beam) == (5, 3, 1, 1)
    assert count.problem
    assert reduced.position.tolist() == [0, 1, 3]


def test_a_series_without_a_good_frame_is_refused_with_the_reason(bundle: Bundle, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(1))
    damage(master, 0)
    with pytest.raises(BadInput, match=r"1 undecodable, 0 without beam \(.*run_master\.h5: "):
        reduce_series([master], bundle)


def test_truth_labels_frames_and_tells_which_show_one_crystal(bundle: Bundle, tmp_path: Path) -> None:
    turn = np.eye(3)
    orientation = np.full((6, 3, 3), np.nan)
    orientation[[1, 3]] = turn
    orientation[5] = turn[[1, 2, 0]]
    hit = np.arange(6) % 2 == 1
    told = add_truth(
        write_series(tmp_path, frames_of_a_run(6)), hit=hit, orientation=orientation, bragg_photons=hit * 480.0
    )
    silent = write_series(tmp_path, frames_of_a_run(2), "other")
    reduced = reduce_series([told, silent], bundle)
    assert reduced.known.tolist() == [True] * 6 + [False] * 2
    assert reduced.shots.hit.tolist() == [*hit.tolist(), False, False]
    assert reduced.crystal[1] == reduced.crystal[3]
    assert len(set(reduced.crystal.tolist())) == 7
    assert reduced.shots.facts["bragg_photons"][:2].tolist() == [0.0, 480.0]
    assert np.isnan(reduced.shots.facts["bragg_photons"][6:]).all()
    assert reduced.shots.group.tolist() == [0] * 6 + [1] * 2


def test_so_many_frames_are_taken_evenly_over_all_series(bundle: Bundle, tmp_path: Path) -> None:
    masters = [write_series(tmp_path, frames_of_a_run(6), name) for name in ("a", "b")]
    seen: list[tuple[int, int]] = []
    reduced = reduce_series(masters, bundle, frames=4, progress=lambda done, total: seen.append((done, total)))
    assert reduced.position.tolist() == [0, 4, 1, 5]
    assert reduced.shots.group.tolist() == [0, 0, 1, 1]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(reduce_series(masters, bundle, frames=10**6)) == 12


def test_more_frames_than_memory_allows_are_refused_with_how_many_fit(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = write_series(tmp_path, frames_of_a_run(6))
    monkeypatch.setattr(reduced_series, "MOST_BYTES", 4 * 4 * (ZONES * COLUMNS + STRONGEST * CELL_COLUMNS) + 10)
    with pytest.raises(BadInput, match=r"6 frames take more than .* take 4 or fewer"):
        reduce_series([master], bundle)
    assert len(reduce_series([master], bundle, frames=4)) == 4


def test_series_of_two_detectors_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    small = write_series(tmp_path, frames_of_a_run(1), "small")
    large = write_series(tmp_path, water(0.2, (80, 90))[None], "large")
    with pytest.raises(BadInput, match=r"large_master\.h5: images of \(80, 90\), .*small_master\.h5 has \(61, 75\)"):
        reduce_series([small, large], bundle)


def test_an_extra_mask_is_left_out_and_one_of_another_shape_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(2))
    valid = np.ones(SHAPE, np.uint8)
    valid[:16, :24] = 0
    reduced = reduce_series([master], bundle, mask=Validity("mask.npy", valid))
    whole = reduce_series([master], bundle)
    counted = [each.shots.zones[0, :, 2].sum() for each in (whole, reduced)]
    assert counted[0] - counted[1] == 16 * 24, "the first frame has no spots, whose pixels are left out too"
    with pytest.raises(BadInput, match=r"mask\.npy is for images of 5 x 5 pixels, the images are 61 x 75"):
        reduce_series([master], bundle, mask=Validity("mask.npy", np.ones((5, 5), np.uint8)))


def test_a_header_outside_of_what_networks_know_is_no_header(bundle: Bundle, tmp_path: Path) -> None:
    reduced = reduce_series([write_series(tmp_path, frames_of_a_run(1), detector_distance=3.0)], bundle)
    assert not reduced.shots.header.any()
    assert metadata().camera_length_m == 0.15, "the other tests' series have a header"
