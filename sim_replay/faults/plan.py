"""Which faults happen where: drawn from a seed, series by series, so far apart that their effects add up.

Between two faults of a series lies an image to which nothing happens. Without it the account could not be
told in advance: two lost images in a row, the second of them the last, are one gap and one tail or two tails.
"""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sim_replay.faults.kinds import KINDS, Kind, Where
from streamer.files import BadInput

ALL = "all"
_LISTED = "`cxls replay --list-faults` lists them"


@dataclass(frozen=True, slots=True)
class Spec:
    """A fault as asked for: with a chance for each image or series, or at one image of every series."""

    kind: Kind
    chance: float = 0.0
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """What decides which faults a series can have. ``images`` are played; ``announced`` is what its start tells.

    ``known_shape``: whether its start tells the shape. ``resettable``: whether ids can count from 1 again and the
    consumer tell. ``rearms``: whether the replay begins series of its own. ``fresh``: whether no series had this id
    before, as far as the consumer can tell.
    """

    protocol: str
    images: int
    announced: int | None
    known_shape: bool = True
    resettable: bool = True
    rearms: bool = True
    fresh: bool = True

    def suits(self, kind: Kind) -> bool:
        if self.protocol not in kind.streams or kind.images > self.images:
            return False
        if kind.name == "reboot":
            return self.rearms and self.resettable
        if kind.name == "rearm_without_end":
            return self.rearms
        # Of an id that is over, images without a start are late ones.
        return kind.name != "drop_start" or (self.fresh and self.images >= 3)


@dataclass(frozen=True, slots=True)
class SeriesFaults:
    """The faults of one series: at its start, at its end, by image id, and what was asked for and had no place."""

    start: Kind | None = None
    end: Kind | None = None
    images: Mapping[int, Kind] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What is asked for, and the seed. The same plan gives the same faults for the same series."""

    specs: tuple[Spec, ...]
    seed: int = 0

    def chance_source(self, ordinal: int) -> random.Random:
        """What draws the bytes of the faults of the series that is the ``ordinal``-th played."""
        return random.Random(f"faults {self.seed} {ordinal}")

    def series(self, ordinal: int, stream: Stream) -> SeriesFaults:
        """The faults of the ``ordinal``-th series played."""
        rng = random.Random(f"plan {self.seed} {ordinal}")
        specs = [spec for spec in self.specs if stream.suits(spec.kind)]
        left_out = [
            f"{spec.kind.name}@{spec.at}: not in this series of {stream.images} images over stream {stream.protocol}"
            for spec in self.specs
            if spec.at is not None and not stream.suits(spec.kind)
        ]
        start = _drawn(rng, specs, Where.START)
        if start is not None:
            return SeriesFaults(start=start, left_out=tuple(left_out))
        places = _Places(stream.images)
        for spec in sorted((s for s in specs if s.at is not None), key=lambda spec: spec.at or 0):
            if not places.take(spec.at or 0, spec.kind):
                left_out.append(f"{spec.kind.name}@{spec.at}: no room at that image")
        whole = places.end_of_images == stream.images
        if whole and stream.images > 1 and (rest := _drawn(rng, specs, Where.REST)) is not None:
            whole = not places.take(rng.randrange(1, stream.images), rest)
        end = _drawn(rng, specs, Where.END) if whole and places.last_is_free else None
        places.last_stays_free = end is not None or not whole
        _draw_images(rng, specs, places)
        return SeriesFaults(end=end, images=places.taken, left_out=tuple(left_out))


class _Places:
    """Images of a series and what happens to them. From ``end_of_images`` on none is sent."""

    def __init__(self, images: int) -> None:
        self.taken: dict[int, Kind] = {}
        self.end_of_images = images
        self.last_stays_free = False

    @property
    def last_is_free(self) -> bool:
        return all(first + kind.images < self.end_of_images for first, kind in self.taken.items())

    def take(self, first: int, kind: Kind) -> bool:
        """Whether the fault has room there, which is then its own."""
        end = first + kind.images
        if not 0 <= first < end <= self.end_of_images:
            return False
        if any(first <= other + theirs.images and other <= end for other, theirs in self.taken.items()):
            return False
        if kind.where == Where.REST:
            if any(other > first for other in self.taken):
                return False
            self.end_of_images, self.last_stays_free = first, True
        elif end == self.end_of_images and (self.last_stays_free or kind.name == "second_puller"):
            # Images that a second puller took are a gap, so one that it did not take comes after them.
            return False
        self.taken[first] = kind
        return True


def _pick(rng: random.Random, specs: list[Spec]) -> Kind | None:
    """One of the faults by their chances, or none; no more likely than the sum of them."""
    none = math.prod(1 - spec.chance for spec in specs)
    if rng.random() < none:
        return None
    return rng.choices([spec.kind for spec in specs], [spec.chance for spec in specs])[0]


def _drawn(rng: random.Random, specs: list[Spec], where: Where) -> Kind | None:
    chances = [spec for spec in specs if spec.kind.where == where and spec.chance > 0]
    return _pick(rng, chances) if chances else None


def _draw_images(rng: random.Random, specs: list[Spec], places: _Places) -> None:
    chances = [spec for spec in specs if spec.kind.where == Where.IMAGE and spec.chance > 0]
    image = 0
    while chances and image < places.end_of_images:
        kind = _pick(rng, chances)
        image += 1 + (kind.images if kind is not None and places.take(image, kind) else 0)


def parse_specs(texts: Iterable[str]) -> tuple[Spec, ...]:
    """``KIND=PROBABILITY``, ``KIND@IMAGE_ID`` and ``all=PROBABILITY``, commas between several. Raises ``BadInput``.

    Of two probabilities of a kind the later one holds.
    """
    chances: dict[str, Spec] = {}
    places: list[Spec] = []
    for text in (part.strip() for given in texts for part in given.split(",") if part.strip()):
        name, sign, value = text.partition("=") if "=" in text else text.partition("@")
        if name != ALL and name not in KINDS:
            raise BadInput(f"fault {name[:40]!r} is not known; {_LISTED}")
        if sign == "@" and name != ALL:
            places.append(_at(KINDS[name], value, text))
        elif sign == "=":
            chance = _chance(value, text)
            chances |= {kind: Spec(KINDS[kind], chance) for kind in (KINDS if name == ALL else (name,))}
        else:
            raise BadInput(f"fault {text[:60]!r} says not how often; write {name}=0.01{_example(name)}")
    return (*chances.values(), *places)


def _example(name: str) -> str:
    return f", or {name}@5" if name != ALL and KINDS[name].where in (Where.IMAGE, Where.REST) else ""


def _at(kind: Kind, value: str, text: str) -> Spec:
    if kind.where in (Where.START, Where.END):
        raise BadInput(f"fault {text[:60]!r}: it happens to a whole series; write {kind.name}=1 for every one")
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise BadInput(f"fault {text[:60]!r}: {value[:20]!r} is no image id; write {kind.name}@5")
    return Spec(kind, at=int(value))


def _chance(value: str, text: str) -> float:
    try:
        chance = float(value)
    except ValueError:
        chance = -1.0
    if not 0 <= chance <= 1:
        raise BadInput(f"fault {text[:60]!r}: {value[:20]!r} is no probability; give a number from 0 to 1")
    return chance
