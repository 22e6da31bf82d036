"""The loop: any registered network, any attribute, any source of samples.

A run is a function of what is trained, the data and the seed: killed anywhere and resumed it ends at the same weights,
bit for bit on one machine, and with more ranks at the same weights but for rounding.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analyzer.architectures import Architecture, architecture, names
from analyzer.attributes import Attribute, Recipe
from analyzer.weights import save_tensors
from streamer.errors import first_line
from streamer.files import BadInput
from training.loop import checkpoint as checkpoints
from training.loop import plots
from training.loop.checkpoint import Position
from training.loop.distributed import Ranks
from training.loop.judging import Judged, from_rows, metric_name, rows
from training.loop.losses import per_sample_loss
from training.loop.optimising import Descent
from training.loop.order import as_tensors, batches, in_turn, load, seed_everything
from training.loop.record import Epoch, surroundings, write_history, write_run
from training.loop.samples import Source, require_fields

CHECKPOINT, BEST, NONFINITE = "checkpoint.safetensors", "best.safetensors", "nonfinite_batch.safetensors"
_COUNTED_MAPS = 64
"""Maps of the training set whose pixels are counted for the weight of positives."""


class Diverged(ArithmeticError):
    """The loss is no number any more; the message says when, and where the batch is saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is trained: a network of the registry with its settings, for an attribute, by a recipe, from a seed."""

    attribute: Attribute
    network: str
    recipe: Recipe
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a run is carried out; nothing here changes what it ends at, but for rounding.

    folder: of the run. micro_batch: most samples in memory at once; a batch may be larger. A network that normalises
    over a batch does so over these then, which does change what it ends at. workers: processes that read
    ahead. checkpoint_s: seconds between checkpoints inside an epoch; there is always one after it. keep_going is called
    with (steps done, steps in all) after each, and while samples are judged after each batch of them; False ends the
    run at a checkpoint. on_begin is called on every rank with what `run.json` holds before the first step, on_epoch
    after each epoch; it may raise. draws: whether plots are wanted. note: what the record is to say besides.
    """

    folder: Path
    ranks: Ranks = field(default_factory=lambda: Ranks(torch.device("cpu")))
    resume: bool = False
    micro_batch: int | None = None
    workers: int = 0
    checkpoint_s: float = 300.0
    keep_going: Callable[[int, int], bool] = lambda done, total: True
    on_begin: Callable[[dict[str, Any]], None] = lambda facts: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    draws: bool = True
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The network with its best weights, what it was built with, and how it came to be; best_epoch counts from 1."""

    network: nn.Module
    settings: dict[str, Any]
    history: tuple[Epoch, ...]
    best_epoch: int
    validation: Judged
    test: Judged | None
    stopped_early: bool


def train(
    job: Job, training: Source, validation: Source, conduct: Conduct, test: Source | None = None
) -> Trained | None:
    """Train, keep the weights of the best validation loss, write the run folder; None when told to stop before the end.

    The test set, where there is one, is looked at once, when the weights are chosen; plots are of it, else of the
    validation set.

    Raises ``BadInput`` before anything is written: an unknown network, settings it does not have, a source that lacks
    a field (named with its file), a network whose output the attribute or the loss cannot take, a checkpoint of another
    training; later for a truth without a target. ``Diverged`` when a loss is not finite, with the batch saved in the
    run folder.
    """
    return _Run(job, training, validation, test, conduct).run()


def started_from(network: str, settings: dict[str, Any]) -> str | dict[str, Any] | None:
    """Where a network that can start from ready weights starts: these settings, or "from scratch"; None for others."""
    possible = architecture(network).start_only
    given = {name: settings[name] for name in possible if settings.get(name) is not None}
    return (given or "from scratch") if possible else None


def save_batch(
    folder: Path,
    batch: dict[str, Tensor],
    target: Tensor,
    where: dict[str, int],
    places: NDArray[np.intp] | None = None,
) -> Path:
    """Save a batch whose loss is no number, where in the run it came, and its samples' places; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"inputs.{name}": values for name, values in batch.items()} | {"target": target}
    if places is not None:
        tensors |= as_tensors({"places": places})
    tensors = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    save_tensors(tensors, folder / NONFINITE, {name: str(value) for name, value in where.items()})
    return folder / NONFINITE


def evaluate(job: Job, network: nn.Module, source: Source, ranks: Ranks | None = None, workers: int = 0) -> Judged:
    """What a network says of a source, its losses by the job's recipe with positives weighted 1."""
    ranks = ranks or Ranks(next(network.parameters()).device)
    found = _architecture(job.network)
    _require(job, found, source, job.recipe.views[-1:])
    judged = _Judge(job, found, ranks, workers, 1.0, job.recipe.batch).judge(network, source)
    assert judged is not None  # nothing tells it to stop
    return judged


class _Judge:
    """Feeds batches to a network; what training and evaluation share. most: samples judged at once."""

    def __init__(self, job: Job, found: Architecture, ranks: Ranks, workers: int, pos_weight: float, most: int) -> None:
        self.job, self.ranks, self.workers, self.most = job, ranks, workers, most
        self.inputs = found.inputs
        self.loss = per_sample_loss(job.recipe, pos_weight)
        self.mixed = job.recipe.mixed_precision and ranks.device.type == "cuda"

    def fields(self, views: tuple[str, ...]) -> list[str]:
        """What a batch needs to have."""
        return _needed(self.inputs, self.job.attribute, views)

    def target(self, batch: dict[str, Tensor], name: str) -> Tensor:
        try:
            return self.job.attribute.target(batch[self.job.attribute.field].numpy())
        except ValueError as error:
            raise BadInput(f"{name}: {self.job.attribute.field}: {error}") from None

    def outputs(self, network: nn.Module, batch: dict[str, Tensor], view: str) -> Tensor:
        inputs = [
            batch[view if name == "image" else name].to(self.ranks.device, torch.float32, non_blocking=True)
            for name in self.inputs
        ]
        with torch.autocast(self.ranks.device.type, torch.float16, enabled=self.mixed):
            out: Tensor = network(*inputs)
        return out

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        try:
            return self.loss(outputs, target.to(outputs.device))
        except ValueError as error:
            raise BadInput(f"network {self.job.network!r} for {self.job.attribute.name!r}: {error}") from None

    @torch.no_grad()
    def judge(
        self,
        network: nn.Module,
        source: Source,
        keep_batch: Callable[..., None] | None = None,
        keep_going: Callable[[], bool] = lambda: True,
    ) -> Judged | None:
        """Loss and decisions of every sample of a source, the same on every rank; None when one is told to stop."""
        view = self.job.recipe.views[-1]
        network.eval()
        mine = in_turn(self.ranks.share(np.arange(len(source))), self.most)
        kept: list[NDArray[np.float64]] = []
        going = True
        for places, batch in zip(mine, load(source, mine, self.fields((view,)), self.workers), strict=True):
            target = self.target(batch, source.name)
            outputs = self.outputs(network, batch, view)
            losses = self.losses(outputs, target).double().cpu().numpy()
            if keep_batch is not None and not np.isfinite(losses).all():
                keep_batch(batch, target, places)
            truth = batch[self.job.attribute.field].numpy()
            kept.append(np.column_stack([losses, rows(self.job.attribute, outputs.float(), target, truth)]))
            going = keep_going()
            if not going:
                break
        (stops,) = self.ranks.total([not going])
        if stops:
            return None
        columns = 5 if self.job.attribute.kind == "map" else 4
        table = np.concatenate(kept) if kept else np.zeros((0, columns))
        table = self.ranks.gather(table, len(source))
        return from_rows(self.job.attribute, table[:, 0], table[:, 1:])

    @torch.no_grad()
    def try_one(self, network: nn.Module, source: Source) -> None:
        """Judge the first sample of a source. Raises ``BadInput`` for an output that cannot be learnt from or read."""
        view = self.job.recipe.views[-1]
        batch = as_tensors(source.batch(np.array([0]), self.fields((view,))))
        target = self.target(batch, source.name)
        attribute, name = self.job.attribute, self.job.network
        network.eval()
        try:
            outputs = self.outputs(network, batch, view)
        except RuntimeError as error:
            said = ", ".join(f"{each} {tuple(values.shape[1:])}" for each, values in batch.items())
            raise BadInput(f"network {name!r} does not take a sample of {said}: {first_line(error)}") from None
        if attribute.values and outputs.shape[1:] != (len(attribute.values),):
            raise BadInput(
                f"network {name!r} for {attribute.name!r}: outputs of shape {tuple(outputs.shape)} for "
                f"{len(attribute.values)} classes; take a network that fits, `cxls models list` names them"
            )
        self.losses(outputs, target)
        try:
            rows(attribute, outputs.float(), target, batch[attribute.field].numpy())
        except (ValueError, IndexError, RuntimeError) as error:
            raise BadInput(
                f"network {name!r}: attribute {attribute.name!r} cannot decide from outputs of shape "
                f"{tuple(outputs.shape)}: {first_line(error)}"
            ) from None


class _Run:
    """A training from its first step, or the one its checkpoint stands at, to its last."""

    def __init__(self, job: Job, training: Source, validation: Source, test: Source | None, conduct: Conduct) -> None:
        self.job, self.training, self.validation, self.test, self.conduct = job, training, validation, test, conduct
        self.ranks, self.folder, recipe = conduct.ranks, conduct.folder, job.recipe
        for side, source in (("train", training), ("validate", validation), ("test", test)):
            if source is not None and not len(source):
                raise BadInput(f"{source.name}: no sample to {side} on")
        found = _architecture(job.network)
        _require(job, found, training, recipe.views)
        for source in (validation, *([] if test is None else [test])):
            _require(job, found, source, recipe.views[-1:])
        self.settings = _settings(job, found, training)
        self.steps = len(batches(len(training), recipe.batch, job.seed, 0))
        if min(len(places) for places in batches(len(training), recipe.batch, job.seed, 0)) < self.ranks.world:
            raise BadInput(
                f"batches of {recipe.batch} of {len(training)} samples cannot be shared by {self.ranks.world} ranks; "
                "give a larger --batch or fewer processes"
            )
        self.pos_weight = _pos_weight(job, training)
        most = min(recipe.batch, conduct.micro_batch or recipe.batch)
        self.judge = _Judge(job, found, self.ranks, conduct.workers, self.pos_weight, most)
        seed_everything(job.seed)
        self.network = self.ranks.synchronised(_build(job, found, self.settings).to(self.ranks.device))
        self.judge.try_one(self.network, validation)
        self.descent = Descent(recipe, self.network, recipe.epochs * self.steps * len(recipe.views), self.judge.mixed)
        self.what = _what(job, self.settings, training, validation)
        self.normalised_over: int | None = None
        if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in self.network.modules()):
            # Over fewer samples it is another training; every other network adds up to the same gradients.
            self.normalised_over = most if most < recipe.batch else None
            self.what["micro_batch"] = self.normalised_over
        self.position, self.history, self.best_epoch = Position(), list[Epoch](), 0
        self.loss_sum, self.seen, self.spent_s = 0.0, 0, 0.0
        begun = (self.folder / CHECKPOINT).exists()
        if begun and not conduct.resume:
            raise BadInput(f"{self.folder}: holds a run; give --resume to go on with it, or another --run-folder")
        if conduct.resume and not self.folder.is_dir():
            raise BadInput(f"{self.folder}: no such run to go on with; leave out --resume to begin it")
        if begun:
            self._resume()

    def run(self) -> Trained | None:
        self._agree()
        facts = self._facts()
        if self.ranks.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_run(self.folder, facts)
        self.conduct.on_begin(facts)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            wrapped = self.ranks.wrap(self.network)
            while self.position.epoch < self.job.recipe.epochs and not self._stale:
                if not self._epoch(wrapped):
                    return None
            return self._end()

    def _agree(self) -> None:
        """Raises ``BadInput`` where ranks stand at different steps: a node may see a checkpoint before the last."""
        here = self.position.epoch * self.steps + self.position.step
        everywhere = self.ranks.gather(np.array([here], np.int64), self.ranks.world)
        if (everywhere != here).any():
            raise BadInput(
                f"{self.folder / CHECKPOINT}: ranks read it at different steps, {sorted(set(everywhere.tolist()))}; "
                "put the run folder on storage that shows all nodes the same, and start again"
            )

    @property
    def _stale(self) -> bool:
        patience = self.job.recipe.patience
        return patience is not None and len(self.history) - self.best_epoch >= patience

    def _epoch(self, network: nn.Module) -> bool:
        """The rest of the epoch that the position is in; False when told to stop."""
        epoch, seed, recipe = self.position.epoch, self.job.seed, self.job.recipe
        source = self.training.at_epoch(epoch)
        plan = batches(len(source), recipe.batch, seed, epoch)[self.position.step :]
        mine = [self.ranks.share(places) for places in plan]
        began = last_written = time.monotonic()
        before_s = self.spent_s
        loaded = load(source, mine, self.judge.fields(recipe.views), self.conduct.workers)
        for whole, places, batch in zip(plan, mine, loaded, strict=True):
            network.train()
            step = self.position.step
            seed_everything(seed, epoch, step, self.ranks.rank)
            target = self.judge.target(batch, source.name)
            for view in recipe.views:
                self._step(network, batch, target, places, view, len(whole))
            self.position = Position(epoch, step + 1)
            self.spent_s = before_s + time.monotonic() - began
            (stops,) = self.ranks.total([not self._going()])
            if stops or time.monotonic() - last_written >= self.conduct.checkpoint_s:
                self._checkpoint()
                last_written = time.monotonic()
            if stops:
                return False
        trained_s = max(self.spent_s, 1e-9)
        judged = self._judge_validation()
        if judged is None:
            self._checkpoint()
            return False
        validation_loss = float(judged.loss.mean())
        rate = self.descent.learning_rate
        self.descent.after_epoch(validation_loss)
        row = Epoch(
            epoch + 1,
            self.loss_sum / self.seen,
            validation_loss,
            judged.metric,
            rate,
            before_s + time.monotonic() - began,
            self.seen / len(recipe.views) / trained_s,
        )
        is_best = not self.history or validation_loss < self.history[self.best_epoch - 1].validation_loss
        self.history.append(row)
        if is_best:
            self.best_epoch = epoch + 1
        self.position, self.loss_sum, self.seen, self.spent_s = Position(epoch + 1), 0.0, 0, 0.0
        if self.ranks.writes:
            if is_best:
                state = checkpoints.network_state(self.network)
                checkpoints.write(self.folder / BEST, state, self.what, {"epoch": epoch + 1})
            write_history(self.folder, self.history, metric_name(self.job.attribute))
            self._checkpoint()
        self.conduct.on_epoch(row)
        return True

    def _step(
        self,
        network: nn.Module,
        batch: dict[str, Tensor],
        target: Tensor,
        places: NDArray[np.intp],
        view: str,
        whole: int,
    ) -> None:
        """One step of the optimiser on this rank's part of a batch of ``whole`` samples."""
        self.descent.optimiser.zero_grad()
        pieces = in_turn(np.arange(len(places)), self.conduct.micro_batch or len(places))
        loss_sum = 0.0
        for number, piece in enumerate(pieces):
            part = torch.from_numpy(piece)
            sample = batch if len(pieces) == 1 else {name: values[part] for name, values in batch.items()}
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last or self.ranks.world == 1 else network.no_sync():  # type: ignore[operator]
                losses = self.judge.losses(self.judge.outputs(network, sample, view), target[part])
                # The mean over ranks is taken of gradients; of the whole batch it is the sum of these.
                self.descent.backward(losses.sum() / whole * self.ranks.world)
            loss_sum += float(losses.detach().sum())
        total, bad = self.ranks.total([loss_sum, not math.isfinite(loss_sum)])
        if bad:
            if not math.isfinite(loss_sum):
                self._keep(batch, target, places)
            rate = self.descent.learning_rate
            raise self._diverged(f"the loss is {total} in step {self.position.step + 1} at a learning rate of {rate:g}")
        self.descent.step(self.network)
        self.loss_sum += total
        self.seen += whole

    def _going(self) -> bool:
        done = self.position.epoch * self.steps + self.position.step
        return self.conduct.keep_going(done, self.job.recipe.epochs * self.steps)

    def _judge_validation(self) -> Judged | None:
        judged = self.judge.judge(self.network, self.validation, self._keep, self._going)
        if judged is not None and not np.isfinite(judged.loss).all():
            raise self._diverged(f"the validation loss is {judged.loss.mean()} after {self.position.step} steps")
        return judged

    def _diverged(self, text: str) -> Diverged:
        kept = f", the weights before it in {CHECKPOINT}" if (self.folder / CHECKPOINT).exists() else ""
        return Diverged(
            f"epoch {self.position.epoch + 1}: {text}; its batch is in {self.folder / NONFINITE}{kept}; lower the "
            "learning rate or clip the gradient"
        )

    def _keep(self, batch: dict[str, Tensor], target: Tensor, places: NDArray[np.intp]) -> None:
        """Save a batch whose loss is no number."""
        where = {"epoch": self.position.epoch, "step": self.position.step, "rank": self.ranks.rank}
        save_batch(self.folder, batch, target, where, places)

    def _checkpoint(self) -> None:
        if not self.ranks.writes:
            return
        tensors, optimiser = checkpoints.optimiser_state(self.descent.optimiser)
        state = {
            "position": [self.position.epoch, self.position.step],
            "loss_sum": self.loss_sum,
            "seen": self.seen,
            "spent_s": self.spent_s,
            "best_epoch": self.best_epoch,
            "history": [asdict(row) for row in self.history],
            "optimiser": optimiser,
            "descent": self.descent.state(),
        }
        path = self.folder / CHECKPOINT
        checkpoints.write(path, checkpoints.network_state(self.network) | tensors, self.what, state)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        kept = checkpoints.read(path, self.what)
        checkpoints.restore_network(self.network, kept.tensors, path)
        checkpoints.restore_optimiser(self.descent.optimiser, kept, path)
        state = kept.state
        try:
            self.descent.restore(state["descent"])
            self.position = Position(*state["position"])
            self.loss_sum, self.seen, self.spent_s = state["loss_sum"], state["seen"], state["spent_s"]
            self.best_epoch, self.history = state["best_epoch"], [Epoch(**row) for row in state["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: damaged, its position cannot be read: {error}; begin anew elsewhere") from None

    def _end(self) -> Trained | None:
        # Other ranks wait here until the first has written the best weights: they gather the losses first.
        path = self.folder / BEST
        self.ranks.total([0.0])
        checkpoints.restore_network(self.network, checkpoints.read(path, self.what).tensors, path)
        judged = self._judge_validation()
        if judged is None:
            return None
        tested = None
        if self.test is not None:
            tested = self.judge.judge(self.network, self.test, keep_going=self._going)
            if tested is None:
                return None
        if self.ranks.writes:
            write_history(self.folder, self.history, metric_name(self.job.attribute))
            write_run(self.folder, self._facts() | self._results(judged, tested))
            if self.conduct.draws:
                shown = (judged, "validation set") if tested is None else (tested, "test set")
                plots.draw(self.folder, self.history, *shown)
        self.network.requires_grad_(False)
        return Trained(self.network, self.settings, tuple(self.history), self.best_epoch, judged, tested, self._stale)

    def _facts(self) -> dict[str, Any]:
        """What the run's record says before it has begun."""
        start = started_from(self.job.network, self.settings)
        return {
            **self.conduct.note,
            **self.what,
            **({} if start is None else {"start": start}),
            "epochs": self.job.recipe.epochs,
            "patience": self.job.recipe.patience,
            "pos_weight": self.pos_weight,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "samples": {"training": len(self.training), "validation": len(self.validation)},
            "sources": {"training": self.training.name, "validation": self.validation.name},
            "device": str(self.ranks.device),
            "ranks": self.ranks.world,
            "micro_batch": self.conduct.micro_batch,
            **({} if self.normalised_over is None else {"normalised_over": self.normalised_over}),
            **surroundings(),
        }

    def _results(self, judged: Judged, tested: Judged | None) -> dict[str, Any]:
        """And what it says besides at the end."""
        return {
            "best_epoch": self.best_epoch,
            "epochs_done": len(self.history),
            "validation": judged.summary(),
            **({} if tested is None else {"test": tested.summary()}),
        }


def _what(job: Job, settings: dict[str, Any], training: Source, validation: Source) -> dict[str, Any]:
    """What a checkpoint must be of to be gone on with."""
    recipe = asdict(job.recipe)
    if job.recipe.schedule != "one-cycle":  # whose learning rate depends on the number of steps
        recipe.pop("epochs")
    recipe.pop("patience")
    return {
        "attribute": job.attribute.name,
        "values": list(job.attribute.values),
        "network": job.network,
        "settings": settings,
        "recipe": recipe,
        "seed": job.seed,
        "training_data": training.identity,
        "validation_data": validation.identity,
    }


def _architecture(name: str) -> Architecture:
    try:
        return architecture(name)
    except KeyError:
        raise BadInput(f"network {name!r} is not known; known: {', '.join(names())}") from None
    except TypeError as error:
        raise BadInput(f"network {name!r}: {error}") from None


def _needed(inputs: tuple[str, ...], attribute: Attribute, views: tuple[str, ...]) -> list[str]:
    fed = [view for view in views if "image" in inputs]
    return list(dict.fromkeys([*fed, *(name for name in inputs if name != "image"), attribute.field]))


def _require(job: Job, found: Architecture, source: Source, views: tuple[str, ...]) -> None:
    require_fields(source, [job.attribute.field], f"attribute {job.attribute.name!r}")
    require_fields(source, _needed(found.inputs, job.attribute, views), f"network {job.network!r}")


def _settings(job: Job, found: Architecture, training: Source) -> dict[str, Any]:
    """The job's settings, with what follows from data and attribute where they are silent."""
    settings = dict(job.settings)
    if found.sized and "shape" not in settings:
        first = training.batch(np.array([0]), [found.inputs[0]])
        settings["shape"] = [int(length) for length in first[found.inputs[0]].shape[-2:]]
    if found.classes and "classes" not in settings:
        outputs = 2 if job.recipe.loss == "gaussian-nll" else 1
        settings["classes"] = len(job.attribute.values) or outputs
    return settings


def _build(job: Job, found: Architecture, settings: dict[str, Any]) -> nn.Module:
    try:
        return found.build(**settings)
    except (TypeError, ValueError) as error:
        said = ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"
        raise BadInput(f"network {job.network!r} cannot be built with {said}: {error}") from None


def _pos_weight(job: Job, training: Source) -> float:
    """The weight of positives: negatives over positives of the training set, where the recipe counts them."""
    wanted = job.recipe.pos_weight
    if wanted != "counts":
        return float(wanted)
    places = np.arange(len(training))
    if job.attribute.kind == "map":
        places = places[:_COUNTED_MAPS]
    truth = training.batch(places, [job.attribute.field])[job.attribute.field]
    positives = int(np.count_nonzero(truth))
    if not 0 < positives < truth.size:
        raise BadInput(
            f"{training.name}: {positives} of {truth.size} are positive, so that no weight of positives can be "
            "counted; give data with both, or another pos_weight"
        )
    return (truth.size - positives) / positives
