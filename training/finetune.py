"""A bundle's hit network adapted to a beam line: trained on with real frames, and kept only if it is no worse.

Each batch is part simulated, so that what the labels of real frames do not hold (faint hits, distractors, other
conditions) is not forgotten. The real part is half hits, half empties, whatever the hit rate of the run.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from analyzer.bundle import CARD, BadBundle, Bundle, BundleCard, save_card, save_weights
from analyzer.drift import score_histogram
from analyzer.networks import HitNetwork
from training.guard import Compared, compare
from training.hit import NETWORK, THRESHOLDS, TrainedHit, batch_of, calibrate, of_bundle, predict
from training.hit_performance import count_row, mix_rows
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
    """The adapted network beside its parent: figures compared, and rows at each bundle's own threshold."""

    trained: TrainedHit
    compared: tuple[Compared, ...]
    at_threshold: tuple[dict[str, Any], ...]
    reference_rows: tuple[dict[str, Any], ...]
    reference_probability: npt.NDArray[np.float64]

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
) -> Finetuned:
    """Train on from the parent's weights, calibrate, set the threshold, compare with the parent (`training.guard`).

    Raises ``Diverged`` when the loss is no number, with its batch saved in `folder`.
    """
    network = copy.deepcopy(cast(HitNetwork, parent.hit)).to(device).requires_grad_(True)
    history = _train(network, real, simulated, recipe, device, folder, progress)
    held_out = real.held_out
    trained = _calibrated(network, simulated.validation, held_out, recipe, device, history)
    return judge(parent, trained, simulated.reference, held_out, real.reduced.crystal[real.validation], device)


def _train(
    network: nn.Module,
    real: RealFrames,
    simulated: SimulatedShots,
    recipe: FinetuneRecipe,
    device: torch.device,
    folder: Path,
    progress: Progress | None,
) -> list[dict[str, float]]:
    """Train in place; the weights averaged over the last steps are left."""
    shots, made = real.shots, simulated.train
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    of_real = max(2, round(recipe.batch * (1.0 - recipe.mix)))
    hits, empties = real.train[shots.hit[real.train]], real.train[~shots.hit[real.train]]
    parts = [(shots, hits, of_real // 2), (shots, empties, of_real - of_real // 2)]
    per_epoch = math.ceil(min(max(len(hits), len(empties)), _REPEATS * min(len(hits), len(empties))) / (of_real // 2))
    if recipe.batch > of_real:
        parts.append((made, np.arange(len(made)), recipe.batch - of_real))
    draws = [_forever(places, count, rng) for _, places, count in parts]
    optimiser = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = per_epoch * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, steps)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    loss_of, history, total = nn.BCEWithLogitsLoss(), [], 0.0
    network.train()
    for step in range(1, steps + 1):
        drawn = [
            _batch(source, next(places), recipe, rng, device)
            for (source, _, _), places in zip(parts, draws, strict=True)
        ]
        truth = torch.cat([truth for _, truth in drawn])
        loss = loss_of(torch.cat([network(*inputs) for inputs, _ in drawn]), truth)
        if not torch.isfinite(loss):
            fields = (torch.cat(field) for field in zip(*(inputs for inputs, _ in drawn), strict=True))
            batch = dict(zip(("zones", "cells", "header"), fields, strict=True))
            path = save_batch(folder, batch, truth, {"step": step})
            raise Diverged(
                f"the loss of step {step} is {loss.item()}; its batch is in {path}; start from another bundle, or "
                "leave out the series whose frames are no numbers there"
            )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step > recipe.averaged_from * steps or step == steps:
            averaged.update_parameters(network)
        total += loss.item()
        if step % per_epoch == 0:
            history.append({"train_loss": total / per_epoch})
            total = 0.0
        if progress is not None:
            progress(step, steps)
    network.load_state_dict(averaged.module.state_dict())
    return history


def _forever(places: npt.NDArray[np.intp], count: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.intp]]:
    """So many places at a time, each once before any comes again."""
    endless = itertools.chain.from_iterable(rng.permutation(places) for _ in itertools.count())
    while True:
        yield np.sort(np.fromiter(itertools.islice(endless, count), np.intp, count))


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
    threshold = float(np.quantile(np.concatenate(scores), 1.0 - recipe.false_hits))
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
