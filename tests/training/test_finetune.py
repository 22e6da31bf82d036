"""A bundle adapted to real frames: labels, blocks, training, the guard, and the command that runs them."""

import copy
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from analyzer.bundle import CARD, BadBundle, Bundle, PeaksCard, load_bundle, save_card, save_weights
from analyzer.drift import SCORE_BINS
from analyzer.peak_network import PeakNetwork
from analyzer.zones import SCALES
from cxls.cli import Failed
from cxls.commands import finetune as command
from cxls.settings import BadSettings, TrainSettings
from streamer.files import BadInput
from tests.analyzer.builders import frames_of_a_run, write_bundle, write_series
from tests.support import REPOSITORY
from tests.training.made_shots import made_shots
from training import finetune as finetuning
from training.finetune import (
    Finetuned,
    FinetuneRecipe,
    RealFrames,
    SimulatedShots,
    _Part,
    finetune,
    rejection,
    require_trainable,
    shot_seeds,
)
from training.guard import compare
from training.hit import predict
from training.loop.train import NONFINITE, Diverged
from training.real_labels import FEWEST, LabelRule, doubts, label_frames, split_blocks
from training.reduced_series import ReducedSeries, SeriesCount
from training.scattering import WEIGHTS, write_scattering
from training.shots import ShotSet

CPU = torch.device("cpu")
QUICK = FinetuneRecipe(epochs=1, batch=16, learning_rate=1e-4)


def reduced_frames(shots: ShotSet, peaks: np.ndarray[Any, Any], known: bool = False) -> ReducedSeries:
    """Frames of one series with these peak counts."""
    count = len(shots)
    return ReducedSeries(
        replace(shots, group=np.zeros(count, np.int64)),
        np.full(count, known),
        peaks.astype(np.int64),
        np.full(count, 0.5),
        np.arange(count),
        np.arange(count),
        (SeriesCount(Path("run_master.h5"), count, count, 0, 0),),
    )


def real_frames(count: int = 160, seed: int = 5) -> RealFrames:
    shots = made_shots(count, seed)
    reduced = reduced_frames(shots, np.where(shots.hit, 12, 0))
    labels = label_frames(reduced, LabelRule())
    return RealFrames(reduced, labels, *split_blocks(reduced, labels))


@pytest.fixture(scope="module")
def simulated() -> SimulatedShots:
    return SimulatedShots(made_shots(96, 11), made_shots(96, 12), made_shots(160, 13))


@pytest.fixture(scope="module")
def parent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tells a bright cell."""
    parents = tmp_path_factory.mktemp("parents")
    folder = write_bundle(parents / "parent")
    random = load_bundle(folder)
    shots = SimulatedShots(made_shots(384, 1), made_shots(96, 2), made_shots(160, 3))
    recipe = FinetuneRecipe(epochs=6, batch=32, learning_rate=4e-3)
    trained = finetune(random, real_frames(400, 4), shots, recipe, CPU, parents).trained
    card = random.card
    hit = msgspec.structs.replace(
        card.hit,
        sha256=save_weights(trained.network, folder / "hit.safetensors"),
        threshold=trained.threshold,
        temperature=trained.temperature,
        bias=trained.bias,
    )
    digest = save_weights(PeakNetwork(), folder / "finder.safetensors")
    scattering = write_scattering(folder)
    peaks = PeaksCard(
        network="peaks-heat-tiles", weights="finder.safetensors", sha256=digest, threshold=0.5, tile_threshold=11.0
    )
    (folder / WEIGHTS).rename(folder / "waters.safetensors")
    tables = msgspec.structs.replace(scattering, weights="waters.safetensors")
    save_card(msgspec.structs.replace(card, hit=hit, peaks=peaks, scattering=tables), folder)
    return folder


@pytest.fixture(scope="module")
def parent(parent_folder: Path) -> Bundle:
    return load_bundle(parent_folder)


# --- labels -----------------------------------------------------------------------------


def test_many_peaks_are_a_hit_none_an_empty_and_between_has_no_label() -> None:
    peaks = np.tile([0, 3, 9, 10, 40], 40)
    labels = label_frames(reduced_frames(made_shots(200, 1), peaks), LabelRule())
    np.testing.assert_array_equal(labels.hit & labels.used, peaks >= 10)
    np.testing.assert_array_equal(labels.used, (peaks >= 10) | (peaks == 0))
    assert (labels.hits, labels.empties, labels.kind) == (80, 40, "peaks")
    wider = label_frames(reduced_frames(made_shots(200, 1), peaks), LabelRule(peaks=5, empty_peaks=3))
    assert (wider.hits, wider.empties) == (120, 80)


def test_truth_goes_before_peaks_unless_peaks_are_asked_for() -> None:
    shots = made_shots(100, 1)
    told = reduced_frames(shots, np.where(shots.hit, 0, 12), known=True)
    np.testing.assert_array_equal(label_frames(told, LabelRule()).hit, shots.hit)
    np.testing.assert_array_equal(label_frames(told, LabelRule(source="peaks")).hit, ~shots.hit)
    with pytest.raises(BadInput, match=r"run_master\.h5: no truth"):
        label_frames(reduced_frames(shots, np.zeros(100)), LabelRule(source="truth"))


@pytest.mark.parametrize(
    ("peaks", "advice"),
    [
        (np.zeros(100), r"0 hits and 100 empties .* label hits from fewer peaks"),
        (np.full(100, 2), r"100 frames have 1 to 9 peaks"),
        (np.where(np.arange(100) < 90, 12, 1), r"90 hits and 0 empties .* mask hot pixels"),
        (np.where(np.arange(100) < FEWEST - 1, 12, 0), rf"{FEWEST - 1} hits"),
    ],
)
def test_too_few_of_a_class_is_refused_with_what_to_do(peaks: np.ndarray[Any, Any], advice: str) -> None:
    with pytest.raises(BadInput, match=advice):
        label_frames(reduced_frames(made_shots(100, 1), peaks), LabelRule())


def test_a_rule_that_makes_a_frame_hit_and_empty_is_refused() -> None:
    with pytest.raises(BadInput, match="no frame is between"):
        label_frames(reduced_frames(made_shots(100, 1), np.zeros(100)), LabelRule(peaks=3, empty_peaks=3))


def test_weak_labels_are_doubted_and_hits_that_the_bundle_denies_are_counted() -> None:
    shots = made_shots(100, 1)
    reduced = replace(reduced_frames(shots, np.where(shots.hit, 12, 0)), probability=np.where(shots.hit, 0.1, 0.0))
    labels = label_frames(reduced, LabelRule())
    bright, denied = doubts(reduced, labels, LabelRule(), threshold=0.6, mix=0.5)
    assert "bright hits; simulated shots, 50% of each batch" in bright
    assert denied.startswith("50 of 50 frames")
    told = replace(reduced, known=np.ones(100, bool))
    assert doubts(told, label_frames(told, LabelRule()), LabelRule(), 0.6, 0.5) == []


# --- blocks -----------------------------------------------------------------------------


def test_no_neighbours_and_no_crystals_are_on_both_sides() -> None:
    shots = made_shots(600, 1)
    reduced = reduced_frames(shots, np.where(shots.hit, 12, 0))
    reduced = replace(reduced, crystal=np.where(np.arange(600) % 50 == 0, 9999, np.arange(600)))
    train, validation = split_blocks(reduced, label_frames(reduced, LabelRule()))
    assert min(len(train), len(validation)) > 80
    distance = np.abs(reduced.position[train][:, None] - reduced.position[validation][None])
    assert distance.min() > 5
    assert not set(reduced.crystal[train]) & set(reduced.crystal[validation])
    assert len(train) > 2 * len(validation)


def test_a_thinned_series_is_cut_where_the_whole_one_is() -> None:
    shots = made_shots(600, 1)
    whole = reduced_frames(shots, np.where(shots.hit, 12, 0))
    _, validation = split_blocks(whole, label_frames(whole, LabelRule()))
    kept = np.flatnonzero(np.arange(600) % 3 == 0)
    thin = ReducedSeries(
        finetuning.take(whole.shots, kept),
        whole.known[kept],
        whole.peak_count[kept],
        whole.probability[kept],
        whole.position[kept],
        whole.crystal[kept],
        whole.counts,
    )
    _, of_thin = split_blocks(thin, label_frames(thin, LabelRule()))
    assert set(thin.position[of_thin].tolist()) <= set(validation.tolist())


def joined(*parts: tuple[str, int]) -> ReducedSeries:
    """Series of these names and lengths, one after the other."""
    each = [reduced_frames(made_shots(count, 1), np.arange(count) % 2 * 12) for _, count in parts]
    shots = made_shots(sum(count for _, count in parts), 1)
    return ReducedSeries(
        replace(shots, group=np.repeat(np.arange(len(parts)), [count for _, count in parts])),
        *(
            np.concatenate([getattr(one, name) for one in each])
            for name in ("known", "peak_count", "probability", "position")
        ),
        np.arange(len(shots)),
        tuple(SeriesCount(Path(name), count, count, 0, 0) for name, count in parts),
    )


def sides(*parts: tuple[str, int]) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    reduced = joined(*parts)
    train, validation = (
        {(parts[reduced.shots.group[n]][0], int(reduced.position[n])) for n in side}
        for side in split_blocks(reduced, label_frames(reduced, LabelRule()))
    )
    return train, validation


def test_adapting_again_with_more_runs_validates_on_nothing_that_the_parent_was_trained_on() -> None:
    train, validation = sides(("a_master.h5", 600), ("b_master.h5", 250))
    for more in (
        [("a_master.h5", 600), ("b_master.h5", 250), ("c_master.h5", 1900)],
        [("c_master.h5", 130), ("b_master.h5", 250), ("a_master.h5", 600)],
        [("a_master.h5", 740), ("b_master.h5", 250)],
    ):
        train_again, validation_again = sides(*more)
        assert not validation_again & train
        assert not train_again & validation
        assert validation <= validation_again


def test_hits_that_all_lie_in_one_part_of_the_run_are_refused() -> None:
    shots = made_shots(600, 1)
    anywhere = reduced_frames(shots, np.where(shots.hit, 12, 0))
    _, validation = split_blocks(anywhere, label_frames(anywhere, LabelRule()))
    peaks = np.arange(600) % 2 * 12
    peaks[validation] = 0
    reduced = reduced_frames(shots, peaks)
    with pytest.raises(BadInput, match="0 independent hits for validation in blocks of 20 images"):
        split_blocks(reduced, label_frames(reduced, LabelRule()))


# --- guard ------------------------------------------------------------------------------


def shuffled(bundle: Bundle) -> Bundle:
    """The same bundle with the weights of each layer in random order."""
    rng = np.random.default_rng(3)
    network = copy.deepcopy(bundle.hit)
    mixed = {
        name: tensor.flatten()[torch.from_numpy(rng.permutation(tensor.numel()))].reshape(tensor.shape)
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(mixed)
    return replace(bundle, hit=network)


def compared(old: Bundle, new: Bundle, shots: ShotSet) -> list[Any]:
    scores = [predict(each.hit, shots, CPU) for each in (old, new)]
    return compare("simulated shots", shots.hit, shots.group, *scores)


def test_an_equal_bundle_passes_and_one_of_shuffled_weights_does_not(parent: Bundle, simulated: SimulatedShots) -> None:
    for each in compared(parent, parent, simulated.reference):
        assert each.old == each.new
        assert (each.low, each.high) == (0.0, 0.0)
        assert not each.worse
    area, recall = compared(parent, shuffled(parent), simulated.reference)
    assert area.old > area.new + 0.05
    assert area.worse
    assert recall.worse
    assert "before, 0." in rejection([area])


def test_a_network_that_gives_no_numbers_is_worse() -> None:
    hit = np.arange(100) % 2 == 0
    scores = hit.astype(np.float64)
    found = compare("real frames", hit, np.arange(100), scores, np.full(100, np.nan))
    assert all(each.worse for each in found)
    assert not any(each.worse for each in compare("real frames", hit, np.arange(100), np.full(100, np.nan), scores))


def test_another_order_within_hits_and_within_empties_is_no_difference() -> None:
    rng = np.random.default_rng(2)
    hit = np.arange(999) % 3 == 0
    old, new = (hit + rng.uniform(0, 0.9, 999) for _ in range(2))
    found = compare("real frames", hit, np.arange(999), old, new)
    assert not any(each.worse for each in found), "rounding errors are no evidence"


def test_a_difference_that_chance_makes_is_allowed() -> None:
    rng = np.random.default_rng(7)
    hit = np.arange(200) % 2 == 0
    light = hit * 2.0 + rng.normal(0, 1, 200)
    old, new = (light + rng.normal(0, 0.05, 200) for _ in range(2))
    found = compare("real frames", hit, np.arange(200), old, new)
    assert found[0].low < 0 < found[0].high
    assert not found[0].worse


# --- training ---------------------------------------------------------------------------


def test_training_goes_on_from_the_parent_and_leaves_it_as_it_was(
    parent: Bundle, simulated: SimulatedShots, tmp_path: Path
) -> None:
    before = predict(parent.hit, simulated.reference, CPU)
    steps: list[tuple[int, int]] = []
    made = finetune(
        parent, real_frames(), simulated, QUICK, CPU, tmp_path, lambda done, total: steps.append((done, total))
    )
    np.testing.assert_array_equal(predict(parent.hit, simulated.reference, CPU), before)
    after = predict(made.trained.network, simulated.reference, CPU)
    assert not np.array_equal(after, before)
    assert np.corrcoef(after, before)[0, 1] > 0.95, "a small learning rate from the parent's weights"
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert not made.failures
    assert [each.frames for each in made.compared] == ["simulated shots"] * 2 + ["real frames"] * 2
    assert 0.05 <= made.trained.threshold <= 0.99


def test_what_the_parent_does_not_know_is_learnt_from_real_frames(
    parent: Bundle, simulated: SimulatedShots, tmp_path: Path
) -> None:
    real = real_frames()
    # The light of this jet is bright everywhere, its hits less bright: nothing that the simulated shots show.
    cells = real.reduced.shots.cells.copy()
    cells[:, :, :SCALES] = np.random.default_rng(1).uniform(20, 90, cells[:, :, :SCALES].shape)
    cells[real.labels.hit, :, :SCALES] /= 3
    real = replace(real, reduced=replace(real.reduced, shots=replace(real.reduced.shots, cells=cells)))
    recipe = replace(QUICK, epochs=6, learning_rate=2e-3)
    made = finetune(parent, real, simulated, recipe, CPU, tmp_path)
    area = next(each for each in made.compared if (each.frames, each.figure) == ("real frames", "AUC"))
    assert area.old < 0.5
    assert area.new > 0.9


def test_a_loss_that_is_no_number_stops_the_training_with_the_batch_saved(
    parent: Bundle, simulated: SimulatedShots, tmp_path: Path
) -> None:
    broken = replace(parent, hit=copy.deepcopy(parent.hit))
    with torch.no_grad():
        next(iter(broken.hit.parameters())).fill_(float("nan"))
    with pytest.raises(Diverged, match=f"the loss of step 1 is nan; its batch is in {tmp_path / NONFINITE}; "):
        finetune(broken, real_frames(), simulated, QUICK, CPU, tmp_path)
    saved = load_file(tmp_path / NONFINITE)
    assert {name: len(values) for name, values in saved.items()} == dict.fromkeys(
        ("inputs.zones", "inputs.cells", "inputs.header", "target"), QUICK.batch
    )
    assert all(torch.isfinite(values).all() for values in saved.values())


def same_bits(one: Finetuned, other: Finetuned) -> bool:
    first, second = one.trained.network.state_dict(), other.trained.network.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def adapted(
    parent: Bundle, simulated: SimulatedShots, folder: Path, stop_after: int = 0
) -> tuple[Finetuned, list[int]]:
    """The adapted bundle and the steps that were taken for it; ``KeyboardInterrupt`` after so many."""
    steps: list[int] = []

    def progress(done: int, total: int) -> None:
        steps.append(done)
        if done == stop_after:
            raise KeyboardInterrupt

    return finetune(parent, real_frames(), simulated, QUICK, CPU, folder, progress), steps


def test_a_training_that_was_killed_goes_on_to_the_same_weights(simulated: SimulatedShots, tmp_path: Path) -> None:
    """Killed two steps after its last checkpoint, among the steps whose weights are averaged."""
    folder = write_bundle(tmp_path / "parent")
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.training.finetune_child", folder, tmp_path / "killed", "9", "11"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        straight, every = adapted(load_bundle(folder), simulated, tmp_path / "whole")
        assert child.stdout is not None
        assert child.stdout.readline() == b"waiting\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        resumed, rest = adapted(load_bundle(folder), simulated, tmp_path / "killed")
    finally:
        torch.set_num_threads(threads)
    assert every == list(range(1, every[-1] + 1))
    assert every[-1] * QUICK.averaged_from < 9
    assert rest == list(range(10, every[-1] + 1))
    assert same_bits(resumed, straight)
    assert (resumed.trained.history, resumed.trained.threshold) == (
        straight.trained.history,
        straight.trained.threshold,
    )
    assert resumed.compared == straight.compared


def test_a_training_that_was_interrupted_goes_on_and_another_one_does_not_take_its_place(
    simulated: SimulatedShots, tmp_path: Path
) -> None:
    parent = load_bundle(write_bundle(tmp_path / "parent"))
    straight, every = adapted(parent, simulated, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        adapted(parent, simulated, tmp_path / "cut", stop_after=5)
    other = replace(QUICK, learning_rate=2e-4)
    steps: list[int] = []
    finetune(
        parent, real_frames(), simulated, other, CPU, tmp_path / "cut", lambda done, total: steps.append(done)
    )  # fmt: skip
    assert steps == every
    resumed, rest = adapted(parent, simulated, tmp_path / "cut")
    assert rest == every[5:]
    assert same_bits(resumed, straight)
    # Done, and asked for again before its bundle was written: nothing is trained anew.
    again, none = adapted(parent, simulated, tmp_path / "cut")
    assert none == []
    assert same_bits(again, straight)


def test_a_damaged_checkpoint_is_refused_by_name(simulated: SimulatedShots, tmp_path: Path) -> None:
    parent = load_bundle(write_bundle(tmp_path / "parent"))
    with pytest.raises(KeyboardInterrupt):
        adapted(parent, simulated, tmp_path, stop_after=2)
    (path,) = tmp_path.glob("finetune-*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInput, match=rf"{path.name}: damaged"):
        adapted(parent, simulated, tmp_path)


def test_every_frame_comes_once_before_any_comes_again() -> None:
    part = _Part(1, made_shots(8, 1), np.arange(100, 107), 3)
    drawn = [part.at(step, seed=5).tolist() for step in range(14)]
    assert all(each == sorted(each) for each in drawn)
    flat = np.concatenate(drawn)
    assert np.bincount(flat - 100).tolist() == [6] * 7
    assert drawn[3:5] == [part.at(step, seed=5).tolist() for step in (3, 4)]
    assert drawn != [part.at(step, seed=6).tolist() for step in range(14)]


def test_simulated_shots_are_of_seeds_that_no_training_takes() -> None:
    largest = TrainSettings.model_fields["seed"].metadata
    limit = next(each.lt for each in largest if hasattr(each, "lt"))
    seeds = [*shot_seeds(0).values(), *shot_seeds(limit - 1).values()]
    assert min(seeds) > limit + 2
    assert shot_seeds(0)["reference"] == shot_seeds(7)["reference"]
    assert len({*seeds}) == 5


def test_another_network_is_refused_by_name(parent: Bundle) -> None:
    card = msgspec.structs.replace(parent.card, hit=msgspec.structs.replace(parent.card.hit, network="another-network"))
    with pytest.raises(BadBundle, match="'another-network' cannot be fine-tuned"):
        require_trainable(replace(parent, card=card), Path("old"))


# --- the command ------------------------------------------------------------------------


@pytest.fixture
def settings(
    parent_folder: Path, tmp_path: Path, simulated: SimulatedShots, monkeypatch: pytest.MonkeyPatch
) -> TrainSettings:
    """Of a run whose simulated shots are there at once."""
    monkeypatch.setattr(command, "simulate_shots", lambda *given: simulated)
    return TrainSettings(
        finetune=True, bundle=parent_folder, out=tmp_path / "adapted", work=tmp_path, epochs=1, workers=1,
        device="cpu", label_peaks=5, label_empty_peaks=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred frames, every second with spots."""
    return write_series(tmp_path_factory.mktemp("run"), frames_of_a_run(100))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_writes_a_bundle_whose_card_tells_where_it_comes_from(
    settings: TrainSettings, run_master: Path, parent: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run(settings, [str(run_master)])
    made = load_bundle(settings.out)
    assert not list(settings.work.glob("finetune-*.safetensors"))
    training, performance = made.card.hit.training, made.card.hit.performance
    assert made.card.name == "adapted"
    assert made.card.peaks is not None
    assert parent.card.peaks is not None
    assert made.card.peaks.sha256 == parent.card.peaks.sha256
    assert made.card.scattering is not None
    assert parent.card.scattering is not None
    assert made.card.scattering.sha256 == parent.card.scattering.sha256
    assert training["parent"]["bundle"] == parent.label
    assert training["series"] == [
        {"path": "run_master.h5", "frames": 100, "reduced": 100, "bad": 0, "no_beam": 0, "problem": ""}
    ]
    assert training["labels"]["kind"] == "peaks"
    assert training["seeds"]["reference"] == shot_seeds(1)["reference"]
    assert len(performance["compared"]) == 4
    assert [row["set"] for row in performance["at_threshold"]][:2] == ["simulated shots, before",
                                                                       "simulated shots, after"]  # fmt: skip
    assert len(made.card.hit.score_reference_empties) == SCORE_BINS
    assert sum(made.card.hit.score_reference_hits) == 80
    assert not settings.out.with_name("adapted.rejected").exists()
    said = capsys.readouterr()
    assert "50 hits, 50 empties by peaks" in said.out
    assert "only what the classical finder sees" in said.err


def test_a_bundle_made_worse_is_refused_with_the_numbers_and_kept_aside(
    settings: TrainSettings, run_master: Path, parent: Bundle, parent_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(parent_folder)

    def sabotage(network: torch.nn.Module, *given: Any) -> list[dict[str, float]]:
        network.load_state_dict(shuffled(parent).hit.state_dict())
        return []

    monkeypatch.setattr(finetuning, "_train", sabotage)
    with pytest.raises(
        Failed, match=r"adapted: not written, worse than its parent: AUC on simulated shots [01]\.\d+ bef"
    ):
        command.run(settings, [str(run_master)])
    assert not settings.out.exists()
    assert files_of(parent_folder) == before
    rejected = load_bundle(settings.out.with_name("adapted.rejected"))
    assert "worse" in [row["verdict"] for row in rejected.card.hit.performance["compared"]]


def test_a_bundle_that_is_there_is_never_written_over(settings: TrainSettings, run_master: Path) -> None:
    write_bundle(settings.out)
    before = files_of(settings.out)
    with pytest.raises(BadSettings, match="exists; an adapted bundle goes to a folder of its own"):
        command.run(settings, [str(run_master)])
    assert files_of(settings.out) == before
    rejected = write_bundle(settings.out.with_name("b.rejected"))
    changed = settings.model_copy(update={"bundle": rejected, "out": settings.out.with_name("b")})
    with pytest.raises(BadSettings, match="would be replaced"):
        command.run(changed, [str(run_master)])


def test_sources_that_are_no_series_are_refused(settings: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="no series given"):
        command.run(settings, [])
    with pytest.raises(BadInput, match=r"no_such\.h5: no such file"):
        command.run(settings, [str(tmp_path / "no_such.h5")])
    (tmp_path / "text_master.h5").write_text("not HDF5")
    with pytest.raises(BadInput, match=r"text_master\.h5: not an HDF5 file"):
        command.run(settings, [str(tmp_path / "text_master.h5")])


def test_an_interrupted_training_writes_nothing(
    settings: TrainSettings, run_master: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.run(settings, [str(run_master)])
    assert not settings.out.exists()
    assert not settings.out.with_name("adapted.rejected").exists()


def test_the_options_belong_to_the_adaptation_of_the_hit_network_alone() -> None:
    from cxls.commands import train
    from cxls.settings import resolve

    def refused(task: str, **given: Any) -> str:
        with pytest.raises(BadSettings) as caught:
            train.run(resolve(TrainSettings, given, None), task, [])
        return str(caught.value)

    assert "only the hit network of a bundle is adapted" in refused("parameters", finetune=True)
    assert "--steps is not for adaptation" in refused("hit", finetune=True, steps="5")
    assert "--mix is for cxls train hit --finetune" in refused("hit", mix="0.2")
    assert "--label-peaks is for cxls train hit --finetune" in refused("peak", label_peaks="3")


def test_a_folder_without_a_card_is_no_bundle_yet_and_may_be_written_to(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.out.mkdir()
    monkeypatch.setattr(command, "find_sources", lambda paths: [SimpleNamespace()])
    with pytest.raises(BadSettings, match="a tree of single images is no series"):
        command.run(settings, ["tree"])
    assert not (settings.out / CARD).exists()
