"""What the loop does with good samples and with bad ones."""

import csv
import itertools
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from analyzer import architectures
from analyzer.architectures import Architecture
from analyzer.attributes import PEAK_LOCATION, Attribute, Decided, Recipe, binary_target, decide_binary
from streamer.files import BadInput
from tests.training.loop.builders import (
    DROPOUT_JOB,
    PEAK_TINY,
    SGD_JOB,
    SPECTRUM_LINE,
    THICKNESS,
    TinyHit,
    images_with_spots,
    spectra,
    spots,
)
from training.loop.arrays import ArraySource
from training.loop.record import HISTORY, RUN
from training.loop.samples import Source
from training.loop.train import CHECKPOINT, NONFINITE, Conduct, Diverged, Job, Trained, evaluate, train


def done(trained: Trained | None) -> Trained:
    assert trained is not None
    return trained


def quiet(folder: Path) -> Conduct:
    return Conduct(folder=folder, draws=False)


def job_of(attribute: Attribute, **recipe: object) -> Job:
    return Job(attribute=attribute, network=attribute.network, recipe=replace(attribute.recipe, **recipe))


def test_an_attribute_of_another_package_trains_on_spectra_and_beats_chance(tmp_path: Path) -> None:
    job = job_of(SPECTRUM_LINE)
    trained = done(train(job, spectra(300, 1), spectra(150, 2), quiet(tmp_path), spectra(150, 3)))
    assert trained.settings == {"classes": 3}
    assert trained.test is not None
    low, high = trained.test.summary()["accuracy_interval"]
    assert 1 / 3 < 0.9 < low < high
    assert set(trained.test.said) <= set(SPECTRUM_LINE.values)
    assert evaluate(job, trained.network, spectra(150, 3)).summary() == trained.test.summary()


def test_a_value_with_its_uncertainty_is_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(400, 3)).astype(np.float32)
    truth = features @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=400)
    sides = [ArraySource({"features": features[s], "thickness": truth[s]}) for s in (slice(300), slice(300, 400))]
    trained = done(train(job_of(THICKNESS), *sides, Conduct(folder=tmp_path)))
    assert trained.validation.summary()["mean_absolute_error"] < 0.2
    assert (tmp_path / "values.png").stat().st_size > 5000


def test_a_run_leaves_history_record_and_plots(tmp_path: Path) -> None:
    conduct = Conduct(folder=tmp_path, note={"command": "cxls train peak"})
    trained = done(train(job_of(PEAK_TINY, epochs=4), spots(), spots(21, 2), conduct, spots(24, 3)))
    with (tmp_path / HISTORY).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert list(rows[0])[1:5] == ["train_loss", "validation_loss", "accuracy", "learning_rate"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[0]["samples_per_s"]) > 0
    facts = json.loads((tmp_path / RUN).read_text())
    assert facts["command"] == "cxls train peak"
    assert facts["versions"]["torch"] == version("torch")
    assert facts["samples"] == {"training": 48, "validation": 21}
    assert facts["pos_weight"] == 0.5  # every third image is empty
    assert facts["validation"]["samples"] == 21
    assert facts["test"]["samples"] == 24
    assert facts["best_epoch"] == trained.best_epoch
    for name in ("loss", "roc", "confusion", "reliability"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_weights_of_the_best_validation_loss_are_kept(tmp_path: Path) -> None:
    # A step so large that the loss swings.
    trained = done(train(job_of(PEAK_TINY, learning_rate=0.3, epochs=8), spots(), spots(21, 2), quiet(tmp_path)))
    losses = [row.validation_loss for row in trained.history]
    assert trained.best_epoch == 1 + int(np.argmin(losses))
    assert float(trained.validation.loss.mean()) == min(losses)


def test_training_ends_early_when_the_validation_loss_stands_still(tmp_path: Path) -> None:
    # Validated against the wrong answers: the better on the training set, the worse here.
    wrong = images_with_spots(24, 2)
    wrong["hit"] = ~wrong["hit"]
    job = job_of(PEAK_TINY, epochs=50, patience=2, schedule="constant")
    trained = done(train(job, spots(), ArraySource(wrong), quiet(tmp_path)))
    assert trained.stopped_early
    assert len(trained.history) == trained.best_epoch + 2 < 50
    again = done(train(job, spots(), ArraySource(wrong), replace(quiet(tmp_path), resume=True)))
    assert again.history == trained.history


def test_the_plateau_looks_at_the_validation_loss(tmp_path: Path) -> None:
    wrong = images_with_spots(24, 2)
    wrong["hit"] = ~wrong["hit"]
    job = job_of(PEAK_TINY, epochs=5, plateau_patience=0, plateau_threshold=0.0)
    rates = [row.learning_rate for row in done(train(job, spots(), ArraySource(wrong), quiet(tmp_path / "w"))).history]
    assert min(rates) < 0.01  # although the training loss falls
    good = done(train(job, spots(), spots(48, 1), quiet(tmp_path / "g")))
    falling = np.diff([row.validation_loss for row in good.history]) < 0
    assert falling.all()
    assert {row.learning_rate for row in good.history} == {0.01}


def test_every_epoch_has_an_order_of_its_own_and_every_sample_once(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Watched(ArraySource):
        def batch(self, places, names):  # type: ignore[no-untyped-def]
            if "image" in names:
                seen.append(places.tolist())
            return super().batch(places, names)

    train(job_of(PEAK_TINY, epochs=2, batch=10), Watched(images_with_spots(48, 1)), spots(6, 2), quiet(tmp_path))
    epochs = [[*itertools.chain(*part)] for part in (seen[:5], seen[5:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(48))] * 2
    assert epochs[0] != epochs[1]
    assert sorted(len(batch) for batch in seen) == [9] * 4 + [10] * 6


def test_views_are_fed_as_the_image_one_after_the_other(tmp_path: Path) -> None:
    # The peak images alone, then the overlays, as the 2024 paper tried; dropping the second changes the weights.
    both = done(train(job_of(PEAK_TINY, views=("clean_image", "image")), spots(), spots(9, 2), quiet(tmp_path / "2")))
    one = done(train(job_of(PEAK_TINY, views=("image",)), spots(), spots(9, 2), quiet(tmp_path / "1")))
    assert any(not torch.equal(a, b) for a, b in zip(both.network.parameters(), one.network.parameters(), strict=True))
    unseen = ArraySource({key: value for key, value in images_with_spots(9, 1).items() if key != "clean_image"})
    with pytest.raises(BadInput, match="'clean_image'"):
        train(job_of(PEAK_TINY, views=("clean_image", "image")), unseen, spots(9, 2), quiet(tmp_path / "3"))


def test_a_map_is_learnt_and_judged_by_its_peaks(tmp_path: Path) -> None:
    recipe = Recipe(loss="bce", optimiser="adam", learning_rate=0.2, epochs=30, batch=8, pos_weight="counts")
    job = Job(attribute=PEAK_LOCATION, network="tiny-heat", recipe=recipe)
    summary = done(train(job, spots(), spots(21, 2), quiet(tmp_path))).validation.summary()
    assert summary["true_peaks"] == 42
    assert summary["recall"] == 1.0
    assert summary["precision"] > 0.9


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_no_number_stops_with_the_batch_saved(tmp_path: Path, value: float) -> None:
    images = images_with_spots(24, 1)
    images["image"][7, 0, 3, 4] = value
    with pytest.raises(Diverged, match=r"^epoch 1: the loss is nan in step [1-3] .*nonfinite_batch.safetensors"):
        train(job_of(PEAK_TINY), ArraySource(images), spots(9, 2), quiet(tmp_path))
    saved = load_file(tmp_path / NONFINITE)
    place = saved["places"].tolist().index(7)
    assert not torch.isfinite(saved["inputs.image"][place, 0, 3, 4])
    assert saved["target"].shape == (8,)
    assert not (tmp_path / CHECKPOINT).exists()  # no weights of the step that failed


def test_a_validation_loss_that_is_no_number_stops_too(tmp_path: Path) -> None:
    images = images_with_spots(9, 2)
    images["image"][4] = np.nan
    with pytest.raises(Diverged, match="the validation loss is nan"):
        train(job_of(PEAK_TINY), spots(), ArraySource(images), quiet(tmp_path))
    assert torch.isnan(load_file(tmp_path / NONFINITE)["inputs.image"]).any()


def test_weights_before_a_loss_that_is_no_number_are_named_only_where_there_are_some(tmp_path: Path) -> None:
    class Spoiled(ArraySource):
        def at_epoch(self, epoch: int) -> ArraySource:
            images = images_with_spots(24, 1)
            images["image"][3] = np.nan if epoch else 1.0
            return ArraySource(images, name="spots 1")

    with pytest.raises(Diverged, match=r"^epoch 1: ") as at_once:
        train(job_of(PEAK_TINY), Spoiled(images_with_spots(24, 1)).at_epoch(1), spots(9, 2), quiet(tmp_path / "1"))
    assert CHECKPOINT not in str(at_once.value)
    with pytest.raises(Diverged, match=rf"^epoch 2: .*, the weights before it in {CHECKPOINT}; lower the") as later:
        train(job_of(PEAK_TINY), Spoiled(images_with_spots(24, 1)), spots(9, 2), quiet(tmp_path / "2"))
    assert str(tmp_path / "2" / NONFINITE) in str(later.value)
    assert (tmp_path / "2" / CHECKPOINT).exists()


def test_no_more_samples_are_judged_at_once_than_a_micro_batch(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watched(ArraySource):
        def batch(self, places, names):  # type: ignore[no-untyped-def]
            seen.append(len(places))
            return super().batch(places, names)

    conduct = replace(quiet(tmp_path / "parts"), micro_batch=4)
    parts = done(train(job_of(PEAK_TINY, epochs=1), spots(), Watched(images_with_spots(21, 2)), conduct))
    assert max(seen) == 4
    whole = done(train(job_of(PEAK_TINY, epochs=1), spots(), spots(21, 2), quiet(tmp_path / "whole")))
    np.testing.assert_allclose(parts.validation.loss, whole.validation.loss, rtol=1e-4)


def test_the_record_before_the_first_step_is_handed_out_once(tmp_path: Path) -> None:
    begun: list[dict[str, object]] = []
    job = job_of(PEAK_TINY, epochs=2)
    train(job, spots(), spots(21, 2), replace(quiet(tmp_path), on_begin=begun.append))
    (facts,) = begun
    assert facts["parameters"] == 45
    assert facts["samples"] == {"training": 48, "validation": 21}
    assert facts["device"] == "cpu"
    assert "start" not in facts
    assert json.loads((tmp_path / RUN).read_text())["best_epoch"] in (1, 2)


def test_a_network_that_could_start_from_ready_weights_says_where_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(weights: str | None = None) -> TinyHit:
        del weights
        return TinyHit()

    startable = Architecture(build=build, inputs=("image",), start_only=("weights",))
    monkeypatch.setitem(architectures.OWN, "tiny-hit", startable)
    for settings, start in (
        ({}, "from scratch"), ({"weights": None}, "from scratch"), ({"weights": "a.file"}, {"weights": "a.file"})
    ):  # fmt: skip
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        train(replace(job_of(PEAK_TINY, epochs=1), settings=settings), spots(), spots(9, 2), quiet(folder))
        assert json.loads((folder / RUN).read_text())["start"] == start


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job(attribute=PEAK_TINY, network="nothing", recipe=PEAK_TINY.recipe), "network 'nothing' is not known; known"),
        (replace(DROPOUT_JOB, settings={"layers": 3}), "network 'tiny-hit' cannot be built with layers=3"),
        (replace(SGD_JOB, attribute=SPECTRUM_LINE), "^spots 1: no field 'line_eV'; attribute 'line' needs 'line_eV'"),
        (replace(SGD_JOB, network="tiny-spectrum"), "no field 'spectrum'; network 'tiny-spectrum' needs 'spectrum'"),
        (replace(SGD_JOB, network="tiny-heat"), r"network 'tiny-heat' for 'peak': outputs of shape \(1, 12, 14\)"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path: Path, job: Job, said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        train(job, spots(), spots(21, 2), quiet(tmp_path / "run"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def thicknesses(count: int) -> Source:
    rng = np.random.default_rng(count)
    return ArraySource(
        {"features": rng.normal(size=(count, 3)).astype(np.float32), "thickness": rng.normal(size=count)}
    )


@pytest.mark.parametrize(
    ("job", "source", "said"),
    [
        (
            replace(job_of(SPECTRUM_LINE), settings={"classes": 4}), spectra(9, 1),
            r"network 'tiny-spectrum' for 'line': outputs of shape \(1, 4\) for 3 classes; take a network that fits",
        ),
        (
            replace(job_of(SPECTRUM_LINE), settings={"bins": 9}), spectra(9, 1),
            r"network 'tiny-spectrum' does not take a sample of spectrum \(64,\), line_eV \(\): mat1 and mat2",
        ),
        (
            job_of(THICKNESS, loss="mse"), thicknesses(9),
            r"network 'tiny-straight' for 'thickness': outputs of shape \(1, 2\) for a target of shape \(1,\)",
        ),
        (
            job_of(replace(THICKNESS, decide=lambda outputs: Decided(outputs.numpy(), None))), thicknesses(9),
            r"network 'tiny-straight': attribute 'thickness' cannot decide from outputs of shape \(1, 2\)",
        ),
    ],
    ids=["classes", "input", "loss", "decision"],
)  # fmt: skip
def test_a_network_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, job: Job, source: Source, said: str
) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        train(job, source, source, quiet(tmp_path / "run"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_value_that_is_no_class_is_refused_by_its_source(tmp_path: Path) -> None:
    odd = ArraySource({"spectrum": np.ones((4, 64), np.float32), "line_eV": np.array([6400.0, 7050, 7480, 5000])})
    with pytest.raises(BadInput, match="arrays: line_eV: 5000 is none of the classes 6400, 7050, 7480"):
        train(job_of(SPECTRUM_LINE), odd, odd, quiet(tmp_path))


def test_weights_of_positives_cannot_be_counted_where_all_are(tmp_path: Path) -> None:
    images = images_with_spots(9, 1) | {"hit": np.ones(9, bool)}
    with pytest.raises(BadInput, match="9 of 9 are positive"):
        train(job_of(PEAK_TINY), ArraySource(images), spots(9, 2), quiet(tmp_path))


def test_an_empty_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no sample to validate on"):
        train(SGD_JOB, spots(), ArraySource(images_with_spots(0, 1), name="none"), quiet(tmp_path))


def test_processes_that_read_ahead_change_nothing(tmp_path: Path) -> None:
    alone = done(train(SGD_JOB, spots(), spots(21, 2), quiet(tmp_path / "alone")))
    ahead = done(train(SGD_JOB, spots(), spots(21, 2), replace(quiet(tmp_path / "ahead"), workers=2)))
    assert [row.train_loss for row in ahead.history] == [row.train_loss for row in alone.history]


def test_a_sample_that_cannot_be_read_ahead_is_told_in_one_line(tmp_path: Path) -> None:
    class Broken(ArraySource):
        def batch(self, places, names):  # type: ignore[no-untyped-def]
            if len(places) > 1 and "image" in names:
                raise BadInput("frame 7 cannot be read")
            return super().batch(places, names)

    with pytest.raises(BadInput, match=r"^frame 7 cannot be read$"):
        train(SGD_JOB, Broken(images_with_spots(48, 1)), spots(9, 2), replace(quiet(tmp_path), workers=1))


def test_a_decision_is_made_from_the_probability() -> None:
    decided = decide_binary(torch.tensor([[-2.0], [0.0], [3.0]]))
    assert decided.value.tolist() == [False, False, True]
    assert binary_target(np.array([True, False])).tolist() == [1.0, 0.0]
