"""The 2024 paper's results by its own protocol, and what the same networks reach when nothing leaks.

Each experiment trains a published network twice by its published recipe: on images as the paper made them (frozen
water, empties that are copies of it, a random split of which the test part also steers the learning rate), and on
images that share neither noise nor orientation, all nine conditions, with a validation set of its own. The first is
then asked three times: about the paper's test images, about the same data sets with new noise, and about honest images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from analyzer.attributes import CAMERA_LENGTH, PEAK, PEAK_LOCATION, PHOTON_ENERGY, Attribute, Recipe, recipe_for
from sim_replay.detector import CONDITIONS
from streamer.files import BadInput
from training.leak_data import (
    CRYSTAL_M,
    HEADLINE,
    LOW_FLUX,
    LOW_FLUX_CRYSTAL_M,
    Counts,
    Images,
    Protocol,
    alike,
    images_of,
    only,
    paired_by_unsorted_listings,
    simulate,
    split_at_random,
    water_as_the_paper_shows,
)
from training.leak_hash import PixelHash, remember
from training.loop.judging import Judged
from training.loop.train import CHECKPOINT, Conduct, Job, evaluate, train
from training.statistics import area_under_curve

NINE = frozenset(CONDITIONS)
JITTER = 0.3
"""Standard deviation of the logarithm of pulse energy, and of thickness, in honest images."""

Data = Literal["headline", "low flux"]
Role = Literal["reproduced", "new noise", "carried over", "honest", "honest, no clean image"]
"""What an outcome is of: the paper's protocol on its own test images, the same network on the same data sets with new
noise, the same network on honest images; a network trained on honest images on others of the kind, and the same
without the image that only a simulation has."""

Step = Callable[[str, int, int], None]
"""Called with what is done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A published network for a question, and what the paper says of it.

    paper: its confusion matrix, rows truth, each row a share; None where it gives no matrix. said: what it says.
    honest_epochs: passes over the honest training set, which is larger than the paper's. fine: seen with small
    pixels. mispaired: peak images paired with overlays at random, as the program did where the network was run; such
    an experiment has no honest counterpart of its own.
    """

    name: str
    title: str
    attribute: Attribute
    network: str
    recipe: Recipe
    said: str
    honest_epochs: int
    paper: tuple[tuple[float, ...], ...] | None = None
    data: Data = "headline"
    fine: bool = False
    mispaired: bool = False


_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_DUAL = recipe_for(PEAK, "paper-dual-input")

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        name="energy", title="Photon energy, linear (Fig. 16)", attribute=PHOTON_ENERGY, network="paper-linear",
        recipe=PHOTON_ENERGY.recipe, said="100 %", paper=_IDENTITY, honest_epochs=5, fine=True,
    ),
    Experiment(
        name="camera-length", title="Camera length, linear (Fig. 17)", attribute=CAMERA_LENGTH, network="paper-linear",
        recipe=CAMERA_LENGTH.recipe, said="100 %", paper=_IDENTITY, honest_epochs=5, fine=True,
    ),
    Experiment(
        name="hit-binary", title="Hit, binary CNN (Fig. 12)", attribute=PEAK, network="paper-binary-cnn",
        recipe=PEAK.recipe, said="recall 97.5 %, false hits 0 %", paper=((1.0, 0.0), (0.025, 0.975)), honest_epochs=9,
    ),
    Experiment(
        name="hit-base", title="Hit, base CNN (Figs 20, 21)", attribute=PEAK, network="paper-base-cnn",
        recipe=PEAK.recipe, said="recall 74 %, false hits 0 %", paper=((1.0, 0.0), (0.26, 0.74)), honest_epochs=30,
    ),
    Experiment(
        name="hit-comparison", title="Hit, deeper CNN", attribute=PEAK, network="paper-comparison-cnn",
        recipe=PEAK.recipe, said="recall below 75 %", honest_epochs=9,
    ),
    Experiment(
        name="peaks", title="Peaks, heat map as published (Fig. 15)", attribute=PEAK_LOCATION,
        network="paper-heatmap-cnn", recipe=PEAK_LOCATION.recipe, said="recall 0 %", paper=((1.0, 0.0), (1.0, 0.0)),
        honest_epochs=2,
    ),
    Experiment(
        name="dual-as-run", title="Low flux: hit, dual input, wrongly paired (Fig. 13)", attribute=PEAK,
        network="paper-dual-input", recipe=_DUAL, said="recall 100 %, false hits 75 %",
        paper=((0.25, 0.75), (0.0, 1.0)), honest_epochs=0, data="low flux", mispaired=True,
    ),
    Experiment(
        name="dual", title="Low flux: hit, dual input, rightly paired", attribute=PEAK, network="paper-dual-input",
        recipe=_DUAL, said="-", honest_epochs=10, data="low flux",
    ),
    Experiment(
        name="peak-then-overlay", title="Low flux: hit, binary CNN, peak image then overlay", attribute=PEAK,
        network="paper-binary-cnn", recipe=replace(PEAK.recipe, views=("clean_image", "image")),
        said='"poor results", no figure', honest_epochs=9, data="low flux",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large all is.

    bin, fine_bin: edge of a pixel in the paper's pixels; fine for the linear networks, which can afford more of them
    and need them: what a step of their optimiser does grows with the light in the image. frozen_water: brightness of
    the paper's water in units of the true one, pixel of 75 um by pixel of 75 um. new_noise: images a data set; sides:
    honest images a condition to train, validate and test on; each for large pixels, at low flux, or for fine pixels.
    part divides the numbers of the paper's images; most_epochs cuts every training short.
    """

    seed: int = 1
    bin: int = 20
    fine_bin: int = 2
    frozen_water: float = 500.0
    new_noise: int = 100
    fine_new_noise: int = 24
    sides: tuple[int, int, int] = (120, 20, 200)
    low_flux_sides: tuple[int, int, int] = (60, 10, 100)
    fine_sides: tuple[int, int, int] = (30, 6, 36)
    part: int = 1
    most_epochs: int | None = None


QUICK = Plan(
    bin=32, fine_bin=32, new_noise=2, fine_new_noise=2, sides=(4, 2, 2), low_flux_sides=(4, 2, 2),
    fine_sides=(4, 2, 2), part=6, most_epochs=1,
)  # fmt: skip
"""Every step in seconds: says that all runs, and nothing of the networks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Decisions beside the truth: confusion counts, rows truth; for peaks those of pixels.

    classes: names of rows and columns. auc: of hits. by_condition: the confusion of each data set.
    """

    samples: int
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    auc: float | None = None
    by_condition: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What an experiment, or the look-up, came to."""

    name: str
    title: str
    said: str
    paper: tuple[tuple[float, ...], ...] | None
    shape: tuple[int, int]
    outcomes: dict[Role, Outcome]


@dataclass(frozen=True, slots=True)
class Sets:
    """The images of a kind, for one size of pixels."""

    training: Images
    test: Images
    new_noise: Images
    honest_training: Images
    honest_validation: Images
    honest_test: Images


def reproduce(plan: Plan, work: Path, step: Step) -> Iterator[Result]:
    """All experiments, one after the other, and the look-up after those whose images it shares.

    Trainings are kept in ``work`` and not done again. Raises ``BadInput``, ``Diverged``.
    """
    folder = work / f"seed{plan.seed}-bin{plan.bin}-{plan.fine_bin}-water{plan.frozen_water:g}"
    if plan.most_epochs is not None:
        folder = folder.with_name(f"{folder.name}-epochs{plan.most_epochs}")
    kinds: tuple[tuple[Data, bool], ...] = (("headline", True), ("headline", False), ("low flux", False))
    for data, fine in kinds:
        mine = [e for e in EXPERIMENTS if e.data == data and e.fine == fine]
        counts = _part(HEADLINE if data == "headline" else LOW_FLUX, plan.part)
        sets = make_sets(plan, data, counts, NINE, fine, step)
        for experiment in mine:
            yield _result(experiment, sets, plan, folder, step)
        if data == "headline" and not fine:
            yield from look_up(sets)


def make_sets(plan: Plan, data: Data, counts: Counts, datasets: frozenset[int], fine: bool, step: Step) -> Sets:
    """Simulate the images that experiments of a kind share: so many of the paper's, honest ones of ``datasets``."""
    low = data == "low flux"
    bin_px = plan.fine_bin if fine else plan.bin
    sides = plan.fine_sides if fine else plan.low_flux_sides if low else plan.sides
    each = plan.fine_new_noise if fine else plan.new_noise
    size, first = LOW_FLUX_CRYSTAL_M if low else CRYSTAL_M, 8 if low else 0
    bright = water_as_the_paper_shows(plan.frozen_water, bin_px)
    named = " at low flux" if low else ""
    protocols = [
        Protocol(
            name=f"the paper's images{named}", counts=counts, stream=first, water=bright, frozen=True,
            crystal_size_m=size,
        ),
        Protocol(
            name=f"the paper's images with new noise{named}", counts=alike(frozenset(counts), each), stream=first + 1,
            water=bright, crystal_size_m=size,
        ),
        *(
            Protocol(
                name=f"honest images to {what}{named}", counts=alike(datasets, images), stream=first + 2 + n,
                jitter=JITTER, crystal_size_m=size,
            )
            for n, (what, images) in enumerate(zip(("train", "validate", "test"), sides, strict=True))
        ),
    ]  # fmt: skip
    total, done = sum(images_of(protocol.counts) for protocol in protocols), 0

    def after_image() -> None:
        nonlocal done
        done += 1
        step(f"simulating, pixels of {bin_px} x {bin_px}", done, total)

    maps = not fine and not low
    paper, new_noise, *honest = (simulate(p, bin_px, plan.seed, after_image, maps) for p in protocols)
    return Sets(*split_at_random(paper, plan.seed), new_noise, *honest)


def look_up(sets: Sets) -> Iterator[Result]:
    """What fingerprints alone tell, by either protocol."""
    shape = _shape(sets.test)
    for name, title, attribute in (
        ("hash-hit", "Hit, by looking up pixels", PEAK),
        ("hash-energy", "Photon energy, by looking up pixels", PHOTON_ENERGY),
        ("hash-camera-length", "Camera length, by looking up pixels", CAMERA_LENGTH),
    ):
        leaky, honest = remember(sets.training), remember(sets.honest_training)
        outcomes: dict[Role, Outcome] = {
            "reproduced": _looked_up(leaky, sets.test, attribute),
            "new noise": _looked_up(leaky, sets.new_noise, attribute),
            "carried over": _looked_up(leaky, sets.honest_test, attribute),
            "honest": _looked_up(honest, sets.honest_test, attribute),
        }
        yield Result(name, title, "-", None, shape, outcomes)


@dataclass(frozen=True, slots=True)
class Figure18:
    """Photon energy on some data sets: the paper's images of them, all of them filled as the paper filled others, and
    honest images. held: images of each data set in the paper's tree; none of one is why its cells are empty."""

    held: dict[int, tuple[int, int]]
    shape: tuple[int, int]
    as_held: Outcome
    filled: Outcome
    filled_new_noise: Outcome
    honest: Outcome


def figure_18(plan: Plan, datasets: frozenset[int], work: Path, step: Step) -> Figure18:
    """The paper's Figure 18, which names data sets and shows one class. Raises ``BadInput`` where it held none."""
    held = only(HEADLINE, datasets)
    named = ", ".join(f"{number:02d}" for number in sorted(datasets))
    if not held:
        there = ", ".join(f"{number:02d}" for number in HEADLINE)
        raise BadInput(f"--conditions: the paper's headline set held no image of {named}; it held {there}")
    folder = work / f"figure18-{named.replace(', ', '-')}-seed{plan.seed}-bin{plan.fine_bin}-{plan.frozen_water:g}"
    if plan.most_epochs is not None:
        folder = folder.with_name(f"{folder.name}-epochs{plan.most_epochs}")
    experiment = EXPERIMENTS[0]
    small = replace(plan, fine_sides=(2, 2, 2), fine_new_noise=2)
    as_held = make_sets(small, "headline", _part(held, plan.part), datasets, True, step)
    full_counts = _part({number: max(HEADLINE.values()) for number in sorted(datasets)}, plan.part)
    filled = make_sets(plan, "headline", full_counts, datasets, True, step)
    network = _leaky(experiment, as_held, plan, folder / "as-held", step)
    full = _leaky(experiment, filled, plan, folder / "filled", step)
    honest = _honest(experiment, filled, plan, folder / "honest", step)
    return Figure18(
        {number: held.get(number, (0, 0)) for number in sorted(datasets)},
        _shape(as_held.test),
        _outcome(experiment, network, as_held.test),
        _outcome(experiment, full, filled.test),
        _outcome(experiment, full, filled.new_noise),
        _outcome(experiment, honest, filled.honest_test),
    )


def _result(experiment: Experiment, sets: Sets, plan: Plan, folder: Path, step: Step) -> Result:
    if experiment.mispaired:
        sets = replace(
            sets,
            training=paired_by_unsorted_listings(sets.training, plan.seed),
            test=paired_by_unsorted_listings(sets.test, plan.seed),
            new_noise=paired_by_unsorted_listings(sets.new_noise, plan.seed),
        )
    leaky = _leaky(experiment, sets, plan, folder / f"{experiment.name}-paper", step)
    outcomes: dict[Role, Outcome] = {
        "reproduced": _outcome(experiment, leaky, sets.test),
        "new noise": _outcome(experiment, leaky, sets.new_noise),
        "carried over": _outcome(experiment, leaky, sets.honest_test),
    }
    if experiment.honest_epochs:
        honest = _honest(experiment, sets, plan, folder / f"{experiment.name}-honest", step)
        outcomes["honest"] = _outcome(experiment, honest, sets.honest_test)
        if experiment.network == "paper-dual-input":
            clean = sets.honest_test.fields["clean_image"]
            blank = sets.honest_test.with_clean_image(np.zeros_like(clean), f"{sets.honest_test.name}, as a detector")
            outcomes["honest, no clean image"] = _outcome(experiment, honest, blank)
    return Result(
        experiment.name, experiment.title, experiment.said, experiment.paper, _shape(sets.test), outcomes
    )  # fmt: skip


def _leaky(experiment: Experiment, sets: Sets, plan: Plan, folder: Path, step: Step) -> nn.Module:
    """Trained as the paper did: what it is reported on also steers the learning rate and chooses the weights."""
    return _trained(experiment, sets.training, sets.test, experiment.recipe.epochs, plan, folder, step)


def _honest(experiment: Experiment, sets: Sets, plan: Plan, folder: Path, step: Step) -> nn.Module:
    epochs = experiment.honest_epochs
    return _trained(experiment, sets.honest_training, sets.honest_validation, epochs, plan, folder, step)


def _trained(
    experiment: Experiment, training: Images, validation: Images, epochs: int, plan: Plan, folder: Path, step: Step
) -> nn.Module:
    job = _job(experiment, min(epochs, plan.most_epochs or epochs), plan.seed)

    def keep_going(done: int, total: int) -> bool:
        step(folder.name, done, total)
        return True

    conduct = Conduct(folder=folder, resume=(folder / CHECKPOINT).exists(), keep_going=keep_going, draws=False)
    trained = train(job, training.source(), validation.source(), conduct)
    assert trained is not None  # keep_going never stops it
    return trained.network


def _job(experiment: Experiment, epochs: int, seed: int) -> Job:
    recipe = replace(experiment.recipe, epochs=epochs)
    return Job(attribute=experiment.attribute, network=experiment.network, recipe=recipe, seed=seed)


def _outcome(experiment: Experiment, network: nn.Module, images: Images) -> Outcome:
    with torch.inference_mode():
        judged = evaluate(_job(experiment, 1, 0), network, images.source())
    if experiment.attribute.kind == "map":
        return _outcome_of_maps(judged, images)
    auc = area_under_curve(judged.probability, judged.truth > 0.5) if experiment.attribute.kind == "yes-no" else None
    return _counted(experiment.attribute, judged.truth, judged.said, images.dataset, auc)


def _counted(
    attribute: Attribute,
    truth: NDArray[np.float64],
    said: NDArray[np.float64],
    dataset: NDArray[np.int64],
    auc: float | None,
) -> Outcome:
    values = attribute.values or (0.0, 1.0)
    names = tuple(f"{value:g}" for value in attribute.values) or ("miss", "hit")

    def confusion(places: NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
        t, s = truth[places], said[places]
        return tuple(tuple(int(((t == row) & (s == column)).sum()) for column in values) for row in values)

    of_each = {int(number): confusion(dataset == number) for number in np.unique(dataset)}
    return Outcome(len(truth), names, confusion(np.ones(len(truth), np.bool_)), auc, of_each)


def _outcome_of_maps(judged: Judged, images: Images) -> Outcome:
    """Peaks found and missed; pixels called a peak that are none, and all the others."""
    (true, found), (said, right) = judged.truth.sum(0).astype(int), judged.said.sum(0).astype(int)
    wrong = int(said - right)
    others = int(images.fields["image"].size - true - wrong)
    return Outcome(len(judged), ("none", "peak"), ((others, wrong), (int(true - found), int(found))))


def _looked_up(known: PixelHash, images: Images, attribute: Attribute) -> Outcome:
    pictures = images.fields["image"]
    if attribute is PEAK:
        said = np.array([known.is_hit(picture) for picture in pictures], np.float64)
    else:
        numbers = [known.dataset(picture) for picture in pictures]
        said = np.array([getattr(CONDITIONS[number], attribute.field) for number in numbers])
    return _counted(attribute, images.fields[attribute.field].astype(np.float64), said, images.dataset, None)


def _part(counts: Counts, part: int) -> Counts:
    return {number: (max(hits // part, 2), max(empties // part, 2)) for number, (hits, empties) in counts.items()}


def _shape(images: Images) -> tuple[int, int]:
    rows, columns = images.fields["image"].shape[-2:]
    return int(rows), int(columns)


def shares(confusion: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
    """Each row of a confusion matrix as shares of it; NaN where a class has no image."""
    return tuple(tuple(n / sum(row) if sum(row) else float("nan") for n in row) for row in confusion)
