"""Search for hyper-parameters with Optuna: the validation loss decides, an SQLite file in the run folder remembers.

A trial that was cut short is done again with its own values, from its checkpoint.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.attributes import Optimiser, Recipe
from streamer.files import BadInput
from training.loop.checkpoint import refuse_other
from training.loop.opening import Sides
from training.loop.record import Epoch
from training.loop.train import Conduct, Diverged, Job, Trained, train

if TYPE_CHECKING:
    import optuna

STUDY, BEST, TRIALS = "study.db", "best.json", "trials"
_RATE_FACTOR = 30.0
_DECAYS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_OPTIMISERS: tuple[Optimiser, ...] = ("adam", "adamw", "sgd")


class _ToldToStop(Exception):
    """The run was ended from outside, at a checkpoint."""


def tune(
    job: Job, sides: Sides, conduct: Conduct, trials: int, say: Callable[[str], None] = lambda text: None
) -> tuple[Recipe, Trained] | None:
    """Do trials until there are so many in the study of the run folder; the best recipe and what it trained.

    None when told to stop. Raises ``BadInput`` without Optuna, for a study of another job, and when no trial ended
    well; else as ``train``.
    """
    try:
        import optuna
    except ImportError:
        raise BadInput("--tune: Optuna is not installed; pip install 'cxls-analyzer[tune]'") from None
    if conduct.ranks.world > 1:
        raise BadInput("--tune: one process searches; leave out torchrun, or give each search its own --run-folder")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    conduct.folder.mkdir(parents=True, exist_ok=True)
    path = conduct.folder / STUDY
    if path.exists() and not conduct.resume:
        raise BadInput(f"{conduct.folder}: holds a study; give --resume to go on with it, or another --run-folder")
    study = optuna.create_study(
        storage=f"sqlite:///{path.resolve()}",
        study_name="cxls",
        direction="minimize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    what = _what(job, sides)
    if "what" in study.user_attrs:
        refuse_other(path, study.user_attrs["what"], what)
    else:
        study.set_user_attr("what", json.loads(json.dumps(what)))
    _take_up(study)
    # Seeded by what is there already: a search that goes on would else draw its first values again.
    study.sampler = optuna.samplers.TPESampler(seed=job.seed + 1000 * len(study.trials))

    def objective(trial: optuna.Trial) -> float:
        chosen = replace(job, recipe=_suggest(trial, job.recipe))

        def on_epoch(row: Epoch) -> None:
            trial.report(row.validation_loss, row.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            trained = _trial(chosen, sides, replace(conduct, on_epoch=on_epoch), trial.params)
        except Diverged as error:
            say(f"trial {trial.number}: {error}")
            raise optuna.TrialPruned from None
        if trained is None:
            raise _ToldToStop
        loss = trained.history[trained.best_epoch - 1].validation_loss
        values = ", ".join(f"{key} {value}" for key, value in trial.params.items())
        say(f"trial {trial.number}: validation loss {loss:.5g} with {values}")
        return loss

    try:
        if (missing := trials - _done(study)) > 0:
            study.optimize(objective, n_trials=missing)
    except _ToldToStop:
        return None
    if not any(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials):
        raise BadInput(f"{path}: none of {len(study.trials)} trials ended well; begin from a lower --learning-rate")
    best = study.best_trial
    recipe = _suggest(optuna.trial.FixedTrial(best.params), job.recipe)
    facts = {"trial": best.number, "validation_loss": best.value, "values": best.params, "recipe": asdict(recipe)}
    (conduct.folder / BEST).write_text(json.dumps(facts, indent=1) + "\n")
    trained = _trial(replace(job, recipe=recipe), sides, conduct, best.params, is_last=True)
    return None if trained is None else (recipe, trained)


def _what(job: Job, sides: Sides) -> dict[str, Any]:
    return {
        "attribute": job.attribute.name,
        "network": job.network,
        "settings": job.settings,
        "recipe": asdict(job.recipe),
        "seed": job.seed,
        "training_data": sides.training.identity,
        "validation_data": sides.validation.identity,
    }


def _suggest(trial: "optuna.Trial | optuna.trial.FixedTrial", recipe: Recipe) -> Recipe:
    """The recipe with what a trial draws: learning rate, optimiser, weight decay, batch."""
    rate = recipe.learning_rate
    sizes = sorted({max(1, recipe.batch // 2), recipe.batch, recipe.batch * 2})
    return replace(
        recipe,
        learning_rate=trial.suggest_float("learning_rate", rate / _RATE_FACTOR, rate * _RATE_FACTOR, log=True),
        optimiser=_OPTIMISERS[_OPTIMISERS.index(trial.suggest_categorical("optimiser", _OPTIMISERS))],
        weight_decay=trial.suggest_categorical("weight_decay", _DECAYS),
        batch=trial.suggest_categorical("batch", sizes),
    )


def _trial(job: Job, sides: Sides, conduct: Conduct, values: dict[str, Any], is_last: bool = False) -> Trained | None:
    """Train in the folder of these values, from the checkpoint there, where there is one; the last is reported on."""
    name = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()
    folder: Path = conduct.folder / TRIALS / name
    on_begin = conduct.on_begin if is_last else _unsaid
    here = replace(conduct, folder=folder, resume=folder.is_dir(), draws=is_last, on_begin=on_begin)
    return train(job, sides.training, sides.validation, here, sides.test if is_last else None)


def _unsaid(facts: dict[str, Any]) -> None:
    del facts


def _done(study: "optuna.Study") -> int:
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)


def _take_up(study: "optuna.Study") -> None:
    """Enqueue again what was cut short: trials that a killed process left running, or that a signal ended."""
    import optuna

    states = optuna.trial.TrialState
    for trial in study.trials:
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
    kept = [t.params for t in study.trials if t.state in (states.COMPLETE, states.PRUNED)]
    waiting = [t.system_attrs.get("fixed_params") for t in study.trials if t.state == states.WAITING]
    for trial in study.trials:
        complete = len(trial.params) == 4
        if trial.state == states.FAIL and complete and trial.params not in kept and trial.params not in waiting:
            study.enqueue_trial(trial.params)
            waiting.append(trial.params)
