"""The search for hyper-parameters: by the validation loss, kept on disk, taken up again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamer.files import BadInput
from tests.support import require
from tests.training.loop.builders import SPECTRUM_LINE, spectra
from training.loop.distributed import Ranks
from training.loop.opening import Sides
from training.loop.train import Conduct, Job
from training.loop.tune import BEST, STUDY, tune

JOB = Job(
    attribute=SPECTRUM_LINE, network="tiny-spectrum", recipe=replace(SPECTRUM_LINE.recipe, epochs=2, learning_rate=1e-3)
)


@pytest.fixture(autouse=True)
def _optuna() -> None:
    require("optuna")


@pytest.fixture
def sides() -> Sides:
    return Sides(spectra(120, 1), spectra(60, 2), spectra(60, 3))


def states(folder: Path) -> list[str]:
    import optuna

    study = optuna.load_study(study_name="cxls", storage=f"sqlite:///{folder / STUDY}")
    return [trial.state.name for trial in study.trials]


def test_a_search_ends_with_the_recipe_of_the_least_validation_loss(tmp_path: Path, sides: Sides) -> None:
    said: list[str] = []
    found = tune(JOB, sides, Conduct(folder=tmp_path, draws=False), 3, said.append)
    assert found is not None
    recipe, trained = found
    best = json.loads((tmp_path / BEST).read_text())
    assert best["validation_loss"] == pytest.approx(min(float(text.split()[4]) for text in said), rel=1e-4)
    assert best["recipe"]["learning_rate"] == recipe.learning_rate
    assert trained.test is not None
    assert min(row.validation_loss for row in trained.history) == best["validation_loss"]
    assert len(states(tmp_path)) == 3


def test_a_search_that_was_stopped_goes_on_with_the_trial_it_was_in(tmp_path: Path, sides: Sides) -> None:
    steps = []

    def keep_going(done: int, total: int) -> bool:
        steps.append(done)
        return len(steps) < 13  # in the second trial

    conduct = Conduct(folder=tmp_path, draws=False)
    assert tune(JOB, sides, replace(conduct, keep_going=keep_going), 3) is None
    assert states(tmp_path)[-1] == "FAIL"
    assert not (tmp_path / BEST).exists()
    with pytest.raises(BadInput, match="holds a study; give --resume"):
        tune(JOB, sides, conduct, 3)
    assert tune(JOB, sides, replace(conduct, resume=True), 3) is not None
    import optuna

    study = optuna.load_study(study_name="cxls", storage=f"sqlite:///{tmp_path / STUDY}")
    cut, again = [trial for trial in study.trials if trial.state.name == "FAIL"], study.trials
    assert [t.state.name for t in again].count("COMPLETE") + [t.state.name for t in again].count("PRUNED") == 3
    assert any(trial.params == cut[0].params for trial in again if trial.state.name != "FAIL")
    everything = len(again)
    assert tune(JOB, sides, replace(conduct, resume=True), 3) is not None  # nothing is left to do
    assert len(states(tmp_path)) == everything


def test_a_trial_whose_loss_is_no_number_is_no_end_of_the_search(tmp_path: Path, sides: Sides) -> None:
    wild = replace(JOB, recipe=replace(JOB.recipe, loss="mse", learning_rate=1e-3))
    with pytest.raises(BadInput):  # a loss that does not fit is one, and it says so
        tune(wild, sides, Conduct(folder=tmp_path / "misfit", draws=False), 2)
    hot = replace(JOB, recipe=replace(JOB.recipe, learning_rate=1e30))
    with pytest.raises(BadInput, match="none of 2 trials ended well; begin from a lower --learning-rate"):
        tune(hot, sides, Conduct(folder=tmp_path / "hot", draws=False), 2)


def test_a_study_of_another_job_is_refused(tmp_path: Path, sides: Sides) -> None:
    conduct = Conduct(folder=tmp_path, draws=False)
    tune(JOB, sides, conduct, 1)
    with pytest.raises(BadInput, match=r"study.db: of another training: its seed is 1, here it is 2"):
        tune(replace(JOB, seed=2), sides, replace(conduct, resume=True), 2)


def test_several_processes_do_not_search_together(tmp_path: Path, sides: Sides) -> None:
    with pytest.raises(BadInput, match="one process searches"):
        tune(JOB, sides, Conduct(folder=tmp_path, ranks=Ranks(torch.device("cpu"), 0, 2)), 2)
