"""A run that was cut short ends where it would have ended."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from analyzer.attributes import Recipe
from streamer.files import BadInput
from tests.support import REPOSITORY
from tests.training.loop.builders import DROPOUT_JOB, PEAK_TINY, SGD_JOB, images_with_spots, spots
from training.loop.arrays import ArraySource
from training.loop.train import BEST, CHECKPOINT, Conduct, Job, Trained, train


def run(job: Job, folder: Path, *, resume: bool = False, stop_after: int | None = None) -> Trained | None:
    def keep_going(done: int, total: int) -> bool:
        assert done <= total
        return stop_after is None or done < stop_after

    return train(job, spots(), spots(21, 2), Conduct(draws=False, folder=folder, resume=resume, keep_going=keep_going))


def same_bits(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def losses(trained: Trained) -> list[tuple[float, float, float]]:
    return [(row.train_loss, row.validation_loss, row.learning_rate) for row in trained.history]


def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "tests.training.loop.train_child", str(killed), "8"]
    child = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    straight = run(DROPOUT_JOB, whole)
    assert child.stdout is not None
    assert child.stdout.readline() == b"waiting\n"  # in the third step of the second epoch of six steps each
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not same_bits(whole / CHECKPOINT, killed / CHECKPOINT)
    resumed = run(DROPOUT_JOB, killed, resume=True)
    assert straight is not None
    assert resumed is not None
    assert losses(resumed) == losses(straight)
    assert same_bits(whole / CHECKPOINT, killed / CHECKPOINT)
    assert same_bits(whole / BEST, killed / BEST)


@pytest.mark.parametrize("stop_after", [1, 6, 13])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(loss="bce", optimiser="adamw", learning_rate=0.01, epochs=3, batch=8, schedule="one-cycle"),
        Recipe(loss="focal", optimiser="sgd", learning_rate=0.05, momentum=0.9, epochs=3, batch=8, clip_norm=0.1),
        Recipe(loss="bce", optimiser="adam", learning_rate=0.1, epochs=3, batch=8, plateau_patience=0),
    ],
    ids=["one-cycle", "momentum", "plateau"],
)
def test_a_run_that_is_told_to_stop_resumes_to_the_same_bits(tmp_path: Path, recipe: Recipe, stop_after: int) -> None:
    job = replace(DROPOUT_JOB, recipe=recipe)
    straight = run(job, tmp_path / "whole")
    assert run(job, tmp_path / "cut", stop_after=stop_after) is None
    resumed = run(job, tmp_path / "cut", resume=True)
    assert straight is not None
    assert resumed is not None
    assert losses(resumed) == losses(straight)
    assert same_bits(tmp_path / "whole" / CHECKPOINT, tmp_path / "cut" / CHECKPOINT)


@pytest.mark.parametrize("stop_at", ["first", "last", "test"])
def test_a_run_that_is_told_to_stop_while_it_validates_resumes_to_the_same_bits(tmp_path: Path, stop_at: str) -> None:
    straight = train(DROPOUT_JOB, spots(), spots(21, 2), Conduct(draws=False, folder=tmp_path / "whole"), spots(9, 3))
    calls: list[int] = []
    # 6 steps, then 3 batches to validate on; at the end the best weights are judged on these, and on 2 to test.
    last = {"first": 8, "last": 3 * 9 + 2, "test": 3 * 9 + 4}[stop_at]

    def keep_going(done: int, total: int) -> bool:
        calls.append(done)
        return len(calls) < last

    conduct = Conduct(draws=False, folder=tmp_path / "cut", keep_going=keep_going)
    assert train(DROPOUT_JOB, spots(), spots(21, 2), conduct, spots(9, 3)) is None
    assert calls[-2:] == ([6, 6] if stop_at == "first" else [18, 18])
    conduct = replace(conduct, resume=True, keep_going=lambda done, total: True)
    resumed = train(DROPOUT_JOB, spots(), spots(21, 2), conduct, spots(9, 3))
    assert straight is not None
    assert resumed is not None
    assert losses(resumed) == losses(straight)
    assert same_bits(tmp_path / "whole" / CHECKPOINT, tmp_path / "cut" / CHECKPOINT)
    assert same_bits(tmp_path / "whole" / BEST, tmp_path / "cut" / BEST)


def test_gradients_added_up_over_small_parts_are_those_of_the_batch(tmp_path: Path) -> None:
    whole = train(SGD_JOB, spots(), spots(21, 2), Conduct(draws=False, folder=tmp_path / "whole"))
    parts = train(SGD_JOB, spots(), spots(21, 2), Conduct(draws=False, folder=tmp_path / "parts", micro_batch=2))
    assert whole is not None
    assert parts is not None
    for name, weights in whole.network.state_dict().items():
        torch.testing.assert_close(parts.network.state_dict()[name], weights, rtol=1e-5, atol=1e-6)


def test_a_micro_batch_is_part_of_a_training_that_normalises_over_a_batch_and_of_no_other(tmp_path: Path) -> None:
    normalised = replace(SGD_JOB, settings={**SGD_JOB.settings, "normalised": True})
    for name, job in (("with", normalised), ("without", SGD_JOB)):
        said: list[dict[str, object]] = []
        conduct = Conduct(draws=False, folder=tmp_path / name, micro_batch=2, on_begin=said.append)
        train(replace(job, recipe=replace(job.recipe, epochs=1)), spots(), spots(21, 2), conduct)
        assert said[0].get("normalised_over") == (2 if name == "with" else None)
        more = replace(job, recipe=replace(job.recipe, epochs=2))
        again = replace(conduct, resume=True, micro_batch=None)
        if name == "with":
            with pytest.raises(BadInput, match="its micro_batch is 2, here it is null"):
                train(more, spots(), spots(21, 2), again)
        assert train(more, spots(), spots(21, 2), replace(again, micro_batch=2) if name == "with" else again)


def test_more_epochs_go_on_from_where_a_run_ended(tmp_path: Path) -> None:
    straight = run(DROPOUT_JOB, tmp_path / "whole")
    run(replace(DROPOUT_JOB, recipe=replace(DROPOUT_JOB.recipe, epochs=2)), tmp_path / "more")
    more = run(DROPOUT_JOB, tmp_path / "more", resume=True)
    assert straight is not None
    assert more is not None
    assert losses(more) == losses(straight)


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    run(DROPOUT_JOB, tmp_path, stop_after=2)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(BadInput, match="holds a run; give --resume"):
        run(DROPOUT_JOB, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    with pytest.raises(BadInput, match="no such run"):
        run(DROPOUT_JOB, tmp_path / "other", resume=True)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(DROPOUT_JOB, seed=6), "seed is 5, here it is 6"),
        (replace(DROPOUT_JOB, recipe=replace(DROPOUT_JOB.recipe, learning_rate=0.5)), "recipe.learning_rate is 0.01"),
        (replace(DROPOUT_JOB, settings={"normalised": False}), "settings.normalised is true, here it is false"),
        (
            Job(attribute=replace(PEAK_TINY, name="other"), network="tiny-hit", recipe=PEAK_TINY.recipe),
            'attribute is "peak"',
        ),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_by_what_differs(tmp_path: Path, other: Job, named: str) -> None:
    run(DROPOUT_JOB, tmp_path, stop_after=2)
    with pytest.raises(BadInput, match=f"checkpoint.safetensors: of another training: its {named}"):
        run(other, tmp_path, resume=True)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run(DROPOUT_JOB, tmp_path, stop_after=2)
    changed = images_with_spots(48, 1)
    changed["image"][3, 0, 2, 2] += 1
    with pytest.raises(BadInput, match="its training_data is"):
        train(
            DROPOUT_JOB,
            ArraySource(changed, name="spots 1"),
            spots(21, 2),
            Conduct(draws=False, folder=tmp_path, resume=True),
        )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged, not a checkpoint"),
        (lambda raw: b"", "damaged, not a checkpoint"),
        (lambda raw: raw[:8] + b"[" + raw[9:], "damaged, not a checkpoint"),
        (lambda raw: b"\xff" * 7 + b"\x7f" + raw[8:], "damaged, not a checkpoint"),
        (lambda raw: b"\x80\x04\x95" + raw, "a pickle, which can execute code"),
        (lambda raw: b"PK\x03\x04" + raw, "a pickle, which can execute code"),
        (lambda raw: raw.replace(b"cxls-checkpoint-1", b"cxls-checkpoint-9"), "not a checkpoint of this program"),
        (lambda raw: raw.replace(b'\\"position\\": [', b'\\"positron\\": ['), "its position cannot be read"),
    ],
    ids=["truncated", "empty", "no header", "huge header", "pickle", "zipped pickle", "other format", "no position"],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, damage, said: str) -> None:
    run(DROPOUT_JOB, tmp_path, stop_after=2)
    path = tmp_path / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=f"checkpoint.safetensors: .*{said}"):
        run(DROPOUT_JOB, tmp_path, resume=True)
