"""A bundle's hit network adapted to a beam line: trained on with real frames, and kept only if it is no worse.

Each batch is part simulated, so that what the labels of real frames do not hold (faint hits, distractors, other
conditions) is not forgotten. The real part is half hits, half empties, whatever the hit rate of the run.
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from analyzer.attributes import Recipe
from analyzer.bundle import CARD, BadBundle, Bundle, BundleCard, save_card, save_weights
from analyzer.drift import score_histogram
from analyzer.networks import HitNetwork
from streamer.errors import first_line
from streamer.files import BadInput
from training.guard import Compared, compare
from training.hit import NETWORK, THRESHOLDS, TrainedHit, batch_of, calibrate, of_bundle, predict
from training.hit_performance import count_row, mix_rows
from training.loop import checkpoint as checkpoints
from training.loop.optimising import Descent
from training.loop.order import seed_everything
from training.loop.samples import digest
from training.loop.train import Diverged, save_batch
from training.real_labels import Labels, class_counts
from training.reduced_series import ReducedSeries
from training.shots import ShotRecipe, ShotSet, make_shots, take

Progress = Callable[[int, int], None]
"""Called with (done, total); may raise to end the work."""

_REPEATS = 4
"""Most times that a frame of the rarer class is seen in an epoch."""

_SEEDS = 1 << 32
"""Seeds of simulated shots start here, beyond any that `cxls train` takes: no parent was trained on them."""

REFERENCE_SEED = _SEEDS - 1
_REFERENCE_SHARDS = 4

CHECKPOINT_S = 30.0
"""A step takes tens of milliseconds, a checkpoint as long."""

_VALIDATION_SHARE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRecipe:
    """Hyper-parameters.

    mix: simulated share of each batch. false_hits: the false-hit rate on empties that sets the threshold. header_known:
    share of the frames that show the network their header, which then is wrong by header_error (standard deviation,
    relative). averaged_from: share of the steps after which the weights are averaged.
    """

    epochs: int = 5
    batch: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 1e-3
    mix: float = 0.5
    false_hits: float = 0.004
    header_known: float = 0.5
    header_error: float = 0.005
    averaged_from: float = 0.5
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class RealFrames:
    """Reduced frames with labels, and the places (n,) of those to train on and to validate on."""

    reduced: ReducedSeries
    labels: Labels
    train: npt.NDArray[np.intp]
    validation: npt.NDArray[np.intp]

    @property
    def shots(self) -> ShotSet:
        """All frames with their labels for truth."""
        return replace(self.reduced.shots, hit=self.labels.hit)

    @property
    def held_out(self) -> ShotSet:
        """The frames to validate on (a copy)."""
        return take(self.shots, self.validation)


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedShots:
    """To train on, to calibrate on, and the reference that bundles are compared on."""

    train: ShotSet
    validation: ShotSet
    reference: ShotSet


@dataclass(frozen=True, slots=True, eq=False)
class Finetuned:
    """The adapted network beside its parent: figures compared, and rows at each bundle's own threshold.

    ``checkpoint``: where the training stands, of no use once the bundle is written.
    """

    trained: TrainedHit
    compared: tuple[Compared, ...]
    at_threshold: tuple[dict[str, Any], ...]
    reference_rows: tuple[dict[str, Any], ...]
    reference_probability: npt.NDArray[np.float64]
    checkpoint: Path | None = None

    @property
    def failures(self) -> tuple[Compared, ...]:
        """What the new network is worse at; none where it may take its parent's place."""
        return tuple(each for each in self.compared if each.worse)


def require_trainable(bundle: Bundle, folder: Path) -> None:
    """Raises BadBundle for a hit network that is not trained on reduced frames as they are here."""
    found = bundle.card.hit.network
    if found != NETWORK:
        raise BadBundle(
            f"{folder}: hit network {found!r} cannot be fine-tuned, {NETWORK!r} can; `cxls train hit` makes such a "
            "bundle, --bundle names it"
        )


def shot_seeds(seed: int) -> dict[str, int]:
    """Seeds of the simulated shots; the reference's is always the same."""
    return {"training": _SEEDS + 2 * seed, "validation": _SEEDS + 2 * seed + 1, "reference": REFERENCE_SEED}


def simulate_shots(
    seed: int, shards: int, work: Path, workers: int, progress: Progress | None = None
) -> SimulatedShots:
    """The simulated shots of the default recipe, from `work` where they are there already."""
    sizes = {"training": shards, "validation": max(2, shards // _VALIDATION_SHARE), "reference": _REFERENCE_SHARDS}
    done, total, made = 0, sum(sizes.values()), []
    for name, number in shot_seeds(seed).items():
        before = done

        def advance(finished: int, of: int, before: int = before) -> None:
            del of
            if progress is not None:
                progress(before + finished, total)

        made.append(make_shots(ShotRecipe(), number, range(sizes[name]), work, workers, advance))
        done += sizes[name]
    return SimulatedShots(*made)


def finetune(
    parent: Bundle,
    real: RealFrames,
    simulated: SimulatedShots,
    recipe: FinetuneRecipe,
    device: torch.device,
    folder: Path,
    progress: Progress | None = None,
    checkpoint_s: float = CHECKPOINT_S,
) -> Finetuned:
    """Train on from the parent's weights, calibrate, set the threshold, compare with the parent (`training.guard`).

    The training keeps a checkpoint in `folder` every checkpoint_s seconds, and when `progress` ends it; the same
    training goes on there and ends at the same weights. Raises ``Diverged`` when the loss is no number, with its batch
    saved in `folder`, and ``BadInput`` for a damaged checkpoint.
    """
    what = _what(parent, real, simulated, recipe)
    network = copy.deepcopy(cast(HitNetwork, parent.hit)).to(device).requires_grad_(True)
    history = _train(network, real, simulated, recipe, device, folder, what, progress, checkpoint_s)
    held_out = real.held_out
    trained = _calibrated(network, simulated.validation, held_out, recipe, device, history)
    made = judge(parent, trained, simulated.reference, held_out, real.reduced.crystal[real.validation], device)
    return replace(made, checkpoint=checkpoint_path(folder, what))


@dataclass(frozen=True, slots=True)
class _Part:
    """So many of a batch's frames: of a set, those at ``places``, each once before any comes again.

    Which they are follows from seed, number of the part and step alone, so that a training goes on anywhere.
    """

    number: int
    shots: ShotSet
    places: npt.NDArray[np.intp]
    count: int

    def at(self, step: int, seed: int) -> npt.NDArray[np.intp]:
        """Places (count,) of a step, from 0, in order."""
        size, first = len(self.places), step * self.count
        passes = range(first // size, (first + self.count - 1) // size + 1)
        order = np.concatenate([np.random.default_rng([seed, 0, self.number, n]).permutation(size) for n in passes])
        begin = first - passes[0] * size
        return np.sort(self.places[order[begin : begin + self.count]])


def _parts(real: RealFrames, simulated: SimulatedShots, recipe: FinetuneRecipe) -> tuple[list[_Part], int]:
    """What each batch is made of, and the steps of an epoch."""
    shots, made = real.shots, simulated.train
    of_real = max(2, round(recipe.batch * (1.0 - recipe.mix)))
    hits, empties = real.train[shots.hit[real.train]], real.train[~shots.hit[real.train]]
    parts = [_Part(0, shots, hits, of_real // 2), _Part(1, shots, empties, of_real - of_real // 2)]
    if recipe.batch > of_real:
        parts.append(_Part(2, made, np.arange(len(made)), recipe.batch - of_real))
    rarer = min(max(len(hits), len(empties)), _REPEATS * min(len(hits), len(empties)))
    return parts, math.ceil(rarer / (of_real // 2))


def _what(parent: Bundle, real: RealFrames, simulated: SimulatedShots, recipe: FinetuneRecipe) -> dict[str, Any]:
    """What a checkpoint must be of to be gone on with."""
    shots, made = real.shots, simulated.train
    return {
        "network": NETWORK,
        "parent": parent.label,
        "recipe": asdict(recipe),
        "real_frames": digest(shots.hit, shots.zones, shots.header, real.train, real.validation),
        "simulated_shots": digest(made.hit, made.zones, made.header),
    }


def checkpoint_path(folder: Path, what: dict[str, Any]) -> Path:
    """The checkpoint of one training: another one has another name, so neither is in the other's way."""
    text = json.dumps(what, sort_keys=True).encode()
    return folder / f"finetune-{hashlib.blake2b(text, digest_size=6).hexdigest()}.safetensors"


class _Training:
    """The weights on their way, and where the training stands: ``step`` steps are done."""

    def __init__(self, network: nn.Module, recipe: FinetuneRecipe, steps: int, path: Path, what: dict[str, Any]):
        self.network, self.path, self._what = network, path, what
        loop = Recipe(
            loss="bce", optimiser="adamw", learning_rate=recipe.learning_rate, epochs=recipe.epochs,
            batch=recipe.batch, schedule="one-cycle", weight_decay=recipe.weight_decay, clip_norm=1.0,
        )  # fmt: skip
        self.descent = Descent(loop, network, steps, mixed=False)
        self.averaged = torch.optim.swa_utils.AveragedModel(network)
        self.step, self.total, self.history = 0, 0.0, list[dict[str, float]]()
        if path.exists():
            self._resume()

    def checkpoint(self) -> None:
        """Keep all of it, in the place of what was kept before."""
        optimiser, rest = checkpoints.optimiser_state(self.descent.optimiser)
        averaged = {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        state = {
            "step": self.step,
            "total": self.total,
            "history": self.history,
            "optimiser": rest,
            "descent": self.descent.state(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = checkpoints.network_state(self.network) | averaged | optimiser
        checkpoints.write(self.path, tensors, self._what, state)

    def _resume(self) -> None:
        """Raises ``BadInput`` for a checkpoint that is damaged."""
        kept = checkpoints.read(self.path, self._what)
        checkpoints.restore_network(self.network, kept.tensors, self.path)
        checkpoints.restore_optimiser(self.descent.optimiser, kept, self.path)
        try:
            self.averaged.load_state_dict(
                {n.removeprefix("averaged."): t for n, t in kept.tensors.items() if n.startswith("averaged.")}
            )
            self.descent.restore(kept.state["descent"])
            self.step, self.total, self.history = (kept.state[name] for name in ("step", "total", "history"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"{self.path}: damaged, {first_line(error)}; remove it to begin anew") from None


def _train(
    network: nn.Module,
    real: RealFrames,
    simulated: SimulatedShots,
    recipe: FinetuneRecipe,
    device: torch.device,
    folder: Path,
    what: dict[str, Any],
    progress: Progress | None,
    checkpoint_s: float = CHECKPOINT_S,
) -> list[dict[str, float]]:
    """Train in place; the weights averaged over the last steps are left.

    What was cut short in ``folder`` goes on where its checkpoint stands, and ends at the same weights.
    """
    parts, per_epoch = _parts(real, simulated, recipe)
    steps = per_epoch * recipe.epochs
    run = _Training(network, recipe, steps, checkpoint_path(folder, what), what)
    loss_of, last_written = nn.BCEWithLogitsLoss(), time.monotonic()
    network.train()
    while run.step < steps:
        seed_everything(recipe.seed, run.step)
        drawn = []
        for part in parts:
            rng = np.random.default_rng([recipe.seed, 1, part.number, run.step])
            drawn.append(_batch(part.shots, part.at(run.step, recipe.seed), recipe, rng, device))
        truth = torch.cat([truth for _, truth in drawn])
        loss = loss_of(torch.cat([network(*inputs) for inputs, _ in drawn]), truth)
        if not torch.isfinite(loss):
            fields = (torch.cat(field) for field in zip(*(inputs for inputs, _ in drawn), strict=True))
            batch = dict(zip(("zones", "cells", "header"), fields, strict=True))
            path = save_batch(folder, batch, truth, {"step": run.step + 1})
            raise Diverged(
                f"the loss of step {run.step + 1} is {loss.item()}; its batch is in {path}; start from another bundle, "
                "or leave out the series whose frames are no numbers there"
            )
        run.descent.optimiser.zero_grad()
        run.descent.backward(loss)
        run.descent.step(network)
        run.step += 1
        if run.step > recipe.averaged_from * steps or run.step == steps:
            run.averaged.update_parameters(network)
        run.total += loss.item()
        if run.step % per_epoch == 0:
            run.history.append({"train_loss": run.total / per_epoch})
            run.total = 0.0
        if run.step == steps or time.monotonic() - last_written >= checkpoint_s:
            run.checkpoint()
            last_written = time.monotonic()
        if progress is not None:
            try:
                progress(run.step, steps)
            except BaseException:  # a signal ends it at a checkpoint
                run.checkpoint()
                raise
    network.load_state_dict(run.averaged.module.state_dict())
    return run.history


def _batch(
    shots: ShotSet,
    places: npt.NDArray[np.intp],
    recipe: FinetuneRecipe,
    rng: np.random.Generator,
    device: torch.device,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """What the network takes and the truth (n,) of some shots, with headers hidden or slightly wrong at random."""
    known = rng.random((len(places), 1)) < recipe.header_known
    shown = (known * (1 + recipe.header_error * rng.standard_normal((len(places), 2)))).astype(np.float32)
    truth = torch.from_numpy(shots.hit[places].astype(np.float32)).to(device)
    return batch_of(shots, places, shown, device), truth


def _calibrated(
    network: HitNetwork,
    validation: ShotSet,
    held_out: ShotSet,
    recipe: FinetuneRecipe,
    device: torch.device,
    history: list[dict[str, float]],
) -> TrainedHit:
    """Temperature and bias from simulated shots, whose labels are true and half hits; the threshold from the
    empties of these and of the real frames together."""
    logits = predict(network, validation, device)
    made = TrainedHit(network, *calibrate(logits, validation.hit), 0.5, history)
    scores = [made.probability(logits)[~validation.hit]]
    scores.append(made.probability(predict(network, held_out, device, known=True))[~held_out.hit])
    # A network that gives no numbers is refused by the guard, which kept frames are then to show.
    threshold = float(np.quantile(np.nan_to_num(np.concatenate(scores)), 1.0 - recipe.false_hits))
    return replace(made, threshold=float(np.clip(threshold, *THRESHOLDS)))


def judge(
    parent: Bundle,
    trained: TrainedHit,
    reference: ShotSet,
    held_out: ShotSet,
    crystal: npt.NDArray[np.int64],
    device: torch.device,
) -> Finetuned:
    """Parent and new network on the same frames; crystal (n,) of the real ones held out."""
    old = of_bundle(parent)
    compared: list[Compared] = []
    rows, probabilities = [], {}
    sets = (
        ("simulated shots", reference, reference.group, None),
        ("real frames", held_out, crystal, True),
    )
    for frames, shots, group, known in sets:
        logits = [predict(each.network.to(device), shots, device, known=known) for each in (old, trained)]
        compared += compare(frames, shots.hit, group, *logits)
        for name, network, logit in zip(("before", "after"), (old, trained), logits, strict=True):
            probability = probabilities[frames, name] = network.probability(np.nan_to_num(logit))
            rows.append(count_row(f"{frames}, {name}", probability, shots.hit, network.threshold))
    after = probabilities["simulated shots", "after"]
    return Finetuned(trained, tuple(compared), tuple(rows), tuple(mix_rows(after, reference, trained.threshold)), after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a card says of how it came to be."""

    command: str
    folder: Path
    seed: int


def make_card(
    out: Path, parent: Bundle, made: Finetuned, real: RealFrames, simulated: SimulatedShots, recipe: FinetuneRecipe,
    origin: Origin,
) -> BundleCard:  # fmt: skip
    """The card of the adapted bundle, the hash of its weights still to be filled in (`write_bundle`)."""
    reduced, reference = real.reduced, simulated.reference
    shots = {"training": len(simulated.train), "validation": len(simulated.validation), "test": len(reference)}
    hit = msgspec.structs.replace(
        parent.card.hit,
        threshold=round(made.trained.threshold, 6),
        temperature=made.trained.temperature,
        bias=made.trained.bias,
        prior=0.5,
        score_reference_empties=score_histogram(made.reference_probability[~reference.hit]),
        score_reference_hits=score_histogram(made.reference_probability[reference.hit]),
        training={
            "command": origin.command,
            "parent": {"bundle": parent.label, "folder": str(origin.folder)},
            "series": [{**asdict(count), "path": count.path.name} for count in reduced.counts],
            "labels": {
                "kind": real.labels.kind,
                "by_truth": real.labels.by_truth,
                "by_peaks": real.labels.by_peaks,
                "training": class_counts(real.labels.hit, real.train),
                "validation": class_counts(real.labels.hit, real.validation),
            },
            "shots": shots,
            "seeds": {"weights": origin.seed, **shot_seeds(origin.seed)},
            "recipe": asdict(recipe),
            "history": made.trained.history,
        },
        performance={
            "frames": len(reference),
            "rows": list(made.reference_rows),
            "false_hit_rate": [
                made.reference_rows[0]["false_hits"], *made.reference_rows[0]["false_hits_interval"]
            ],
            "compared": [each.row() for each in made.compared],
            "at_threshold": list(made.at_threshold),
        },
    )  # fmt: skip
    return msgspec.structs.replace(
        parent.card,
        name=out.name,
        description=f"{parent.label} with its hit network fine-tuned on {len(real.train)} real frames",
        hit=hit,
    )


def write_bundle(card: BundleCard, made: Finetuned, parent_folder: Path, out: Path) -> BundleCard:
    """Write weights, the parent's other models, and last the card, which makes the folder a bundle."""
    out.mkdir(parents=True, exist_ok=True)
    (out / CARD).unlink(missing_ok=True)
    digest = save_weights(made.trained.network, out / "hit.safetensors")
    (out / "parameters.safetensors").write_bytes((parent_folder / card.parameters.weights).read_bytes())
    if card.peaks is not None:
        (out / "peaks.safetensors").write_bytes((parent_folder / card.peaks.weights).read_bytes())
        card = msgspec.structs.replace(card, peaks=msgspec.structs.replace(card.peaks, weights="peaks.safetensors"))
    if card.scattering is not None:
        (out / "scattering.safetensors").write_bytes((parent_folder / card.scattering.weights).read_bytes())
        scattering = msgspec.structs.replace(card.scattering, weights="scattering.safetensors")
        card = msgspec.structs.replace(card, scattering=scattering)
    card = msgspec.structs.replace(
        card,
        hit=msgspec.structs.replace(card.hit, weights="hit.safetensors", sha256=digest),
        parameters=msgspec.structs.replace(card.parameters, weights="parameters.safetensors"),
    )
    save_card(card, out)
    return card


def rejected_folder(out: Path) -> Path:
    """Where a bundle that is worse is kept."""
    return out.with_name(f"{out.name}.rejected")


def rejection(failures: Sequence[Compared]) -> str:
    """One line: what is worse, with the numbers."""
    return "worse than its parent: " + "; ".join(map(str, failures))
