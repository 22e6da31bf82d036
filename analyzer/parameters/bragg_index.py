"""How a crystal of a known cell stands, from the spots of one frame.

Two spots of little |q| are taken for every two reflections that have their lengths and the angle between them. Each
such pair fixes the orientation, under which the other spots either lie near reflections or do not. A match counts by
how unlikely it is by chance: with the share p of reciprocal space that lies near enough to some reflection, a spot's
match has the likelihood ratio ``_MATCHED``/p, its failure (1 - ``_MATCHED``)/(1 - p). The mean of the product over
spots thrown at random is at most 1, so that a product above e^s comes by chance with a probability below e^-s, times
the orientations tried (Markov's inequality).
"""

import math
from dataclasses import dataclass

import numba
import numpy as np

from analyzer.parameters.lattice import Floats, Lattice

_MATCHED = 0.6
_MOST_PAIRS = 60
_MOST_TRIED = 3000
"""Orientations that are scored for a frame, at most."""

_MOST_SCORED_SPOTS = 80
_SURE = 25.0
"""With this many nats beyond the price of the search, no other pair is tried."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a spot may lie off a reflection: along q relatively, turned in the plane of scattering and about the
    beam, in radians; each besides ``place_px`` of the detector."""

    along: float
    rocking_rad: float
    about_rad: float
    place_px: float

    def of(self, q: Floats, radius_px: Floats) -> Floats:
        """Half widths (n, 3) relative to |q|: along q, in the scattering plane, about the beam."""
        place = self.place_px / radius_px
        sine = np.abs(q[:, 2]) / np.sqrt((q * q).sum(1))
        return np.stack([self.along + place, self.rocking_rad + place * sine, self.about_rad + place], 1)


@dataclass(frozen=True, slots=True, eq=False)
class Directory:
    """Reflections of a lattice to look up by length: vectors in the crystal's frame, 1/angstrom."""

    lattice: Lattice
    inverse: Floats
    lengths: Floats
    vectors: Floats
    lone_lengths: Floats
    lone_vectors: Floats


def directory(lattice: Lattice, q_max_per_angstrom: float) -> Directory:
    """``lone``: one of each set that the lattice's turns join."""
    hkl = lattice.reflections(q_max_per_angstrom)
    lone = lattice.one_of_each(hkl)
    return Directory(
        lattice,
        np.asarray(np.linalg.inv(lattice.basis), np.float64),
        lattice.lengths(hkl),
        hkl @ lattice.basis.T,
        lattice.lengths(lone),
        lone @ lattice.basis.T,
    )


def find_orientation(q: Floats, radius_px: Floats, tolerance: Tolerance, known: Directory) -> tuple[Floats, float]:
    """The orientation (3, 3) that most spots agree with, and its score: nats beyond what the search costs.

    q (n, 3): 1/angstrom, beam along z. A score above some 8 is no chance; without any, the score is -inf.
    """
    length = np.sqrt((q * q).sum(1))
    width = tolerance.of(q, radius_px)
    chance = np.minimum(8.0 * width.prod(1) * length**3 * known.lattice.volume_angstrom3, 0.99)
    use = np.argsort(length)[:_MOST_SCORED_SPOTS]
    use = use[chance[use] < 0.5]
    if len(use) < 4:
        return np.eye(3), -math.inf
    q, length, width, chance = q[use], length[use], width[use], chance[use]
    turn = np.zeros((3, 3))
    best, tried = _search(
        np.ascontiguousarray(q), length, width, chance, known.lattice.basis, known.inverse, known.lengths,
        known.vectors, known.lone_lengths, known.lone_vectors, _MOST_PAIRS, _MOST_TRIED, _MATCHED, _SURE, turn,
    )  # fmt: skip
    return turn, best - math.log(max(tried, 1)) if tried else -math.inf


@numba.njit(nogil=True, cache=True)
def _search(  # type: ignore[no-untyped-def]
    q, length, width, chance, basis, inverse, lengths, vectors, lone_lengths, lone_vectors, most_pairs, most_tried,
    matched, sure, turn,
):  # fmt: skip
    n = q.shape[0]
    gain, loss = np.log(matched / chance), np.log((1.0 - matched) / (1.0 - chance))
    low, high = np.empty(n, np.int64), np.empty(n, np.int64)
    lone_low, lone_high = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        near, far = length[i] * (1.0 - width[i, 0]), length[i] * (1.0 + width[i, 0])
        low[i], high[i] = np.searchsorted(lengths, near), np.searchsorted(lengths, far)
        lone_low[i], lone_high[i] = np.searchsorted(lone_lengths, near), np.searchsorted(lone_lengths, far)
    pairs = n * (n - 1)
    cost, first, second = np.empty(pairs), np.empty(pairs, np.int64), np.empty(pairs, np.int64)
    count = 0
    for i in range(n):
        for j in range(n):
            work = float((lone_high[i] - lone_low[i]) * (high[j] - low[j]))
            if i == j or work == 0.0:
                continue
            cosine = (q[i, 0] * q[j, 0] + q[i, 1] * q[j, 1] + q[i, 2] * q[j, 2]) / (length[i] * length[j])
            if abs(cosine) > 0.95:
                continue
            # A pair is dear by the orientations it lets through; narrow ones tell the turn best.
            cost[count] = work * (width[i, 1] + width[j, 1] + 1e-3)
            first[count], second[count] = i, j
            count += 1
    order = np.argsort(cost[:count])
    best, tried = -np.inf, 0
    frame, other, trial = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    for p in range(min(most_pairs, count)):
        i, j = first[order[p]], second[order[p]]
        cosine = (q[i, 0] * q[j, 0] + q[i, 1] * q[j, 1] + q[i, 2] * q[j, 2]) / (length[i] * length[j])
        angle = math.acos(min(1.0, max(-1.0, cosine)))
        slack = 0.7 * (max(width[i, 1], width[i, 2]) + max(width[j, 1], width[j, 2]))
        least, most = math.cos(min(math.pi, angle + slack)), math.cos(max(0.0, angle - slack))
        _triad(q[i], q[j], frame)
        for a in range(lone_low[i], lone_high[i]):
            for b in range(low[j], high[j]):
                inner = (
                    lone_vectors[a, 0] * vectors[b, 0]
                    + lone_vectors[a, 1] * vectors[b, 1]
                    + lone_vectors[a, 2] * vectors[b, 2]
                ) / (lone_lengths[a] * lengths[b])
                if inner < least or inner > most or abs(inner) > 0.999:
                    continue
                _triad(lone_vectors[a], vectors[b], other)
                for r in range(3):
                    for c in range(3):
                        trial[r, c] = frame[0, r] * other[0, c] + frame[1, r] * other[1, c] + frame[2, r] * other[2, c]
                score = _score(q, length, width, gain, loss, basis, inverse, trial, best)
                tried += 1
                if score > best:
                    best = score
                    turn[:] = trial
                if tried >= most_tried:
                    return best, tried
        if best > sure + math.log(tried + 1.0):
            break
    return best, tried


@numba.njit(nogil=True, cache=True)
def _triad(u, v, out):  # type: ignore[no-untyped-def]
    """Rows of a right-handed frame: between the two directions, across them, and the third."""
    ul, vl = math.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2), math.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2)
    total = 0.0
    for k in range(3):
        out[0, k] = u[k] / ul + v[k] / vl
        total += out[0, k] ** 2
    total = math.sqrt(total)
    for k in range(3):
        out[0, k] /= total
    out[2, 0], out[2, 1], out[2, 2] = u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]
    total = math.sqrt(out[2, 0] ** 2 + out[2, 1] ** 2 + out[2, 2] ** 2)
    for k in range(3):
        out[2, k] /= total
    out[1, 0] = out[2, 1] * out[0, 2] - out[2, 2] * out[0, 1]
    out[1, 1] = out[2, 2] * out[0, 0] - out[2, 0] * out[0, 2]
    out[1, 2] = out[2, 0] * out[0, 1] - out[2, 1] * out[0, 0]


@numba.njit(nogil=True, cache=True)
def _score(q, length, width, gain, loss, basis, inverse, turn, enough):  # type: ignore[no-untyped-def]
    """Log likelihood ratio of an orientation."""
    total = 0.0
    hkl, off = np.empty(3), np.empty(3)
    for n in range(q.shape[0]):
        x = turn[0, 0] * q[n, 0] + turn[1, 0] * q[n, 1] + turn[2, 0] * q[n, 2]
        y = turn[0, 1] * q[n, 0] + turn[1, 1] * q[n, 1] + turn[2, 1] * q[n, 2]
        z = turn[0, 2] * q[n, 0] + turn[1, 2] * q[n, 1] + turn[2, 2] * q[n, 2]
        for k in range(3):
            hkl[k] = np.rint(inverse[k, 0] * x + inverse[k, 1] * y + inverse[k, 2] * z)
        for k in range(3):
            off[k] = basis[k, 0] * hkl[0] + basis[k, 1] * hkl[1] + basis[k, 2] * hkl[2]
        x, y, z = off[0] - x, off[1] - y, off[2] - z
        for k in range(3):
            off[k] = turn[k, 0] * x + turn[k, 1] * y + turn[k, 2] * z
        across = math.sqrt(q[n, 0] ** 2 + q[n, 1] ** 2)
        along = (off[0] * q[n, 0] + off[1] * q[n, 1] + off[2] * q[n, 2]) / length[n]
        about = (off[1] * q[n, 0] - off[0] * q[n, 1]) / across
        rocking2 = off[0] ** 2 + off[1] ** 2 + off[2] ** 2 - along**2 - about**2
        if (
            abs(along) < width[n, 0] * length[n]
            and abs(about) < width[n, 2] * length[n]
            and rocking2 < (width[n, 1] * length[n]) ** 2
        ):
            total += gain[n]
        else:
            total += loss[n]
    return total
