"""What a detector is expected to count of diffuse scattering, and the likelihood fit of it; compiled.

A pixel at 2 theta and azimuth phi from the beam expects D = s {cos^3(2 theta) P [w(q) + t w1(q) + t^2 w2(q) +
sum_j rho_j t_j(q)] + f}: w is water at 25 C, t how much warmer it is, t_j the other scatterers and smooth errors of w,
f stray light that is the same everywhere. The dipole's polarisation is P = 1 - sin^2(2 theta) (pxx cos^2 phi +
2 pxy cos phi sin phi + pyy sin^2 phi) (Jackson, Classical Electrodynamics, 14.2), cos^3(2 theta) the solid angle of a
pixel of a plane. A pixel that counts once a pulse sees (1 - exp(-eta D))/eta, with 1/eta pulses a frame.

Unknown are u = ln(L/E), v = ln E, the beam centre's error in pixels, ln s, eta, f, t and the rho. L/E comes first
because the data fix it better than either.
"""

from typing import Any

import numba
import numpy as np

from streamer.messages import HC_EV_ANGSTROM

RATIO, ENERGY, CENTER_X, CENTER_Y, SCALE, PILE_UP, FLAT, WARMER, OTHERS = range(9)
"""Places of the unknowns: ln(L/E in m/eV), ln(E/eV), the beam's shift in pixels, ln s, eta, f, t, then each rho."""

WATER, WARMED, WARMED_TWICE, OTHER_TABLES = range(4)
"""Rows of the tables: w, w1, w2, then each t_j."""

RADIUS, COS, SIN, COS2, COSSIN, SIN2 = range(6)
"""Rows of a bin's shape: mean distance from the nominal centre in pixels, means of cos phi, sin phi, their products."""

LOWEST_LOG_ENERGY, HIGHEST_LOG_ENERGY = np.log(4e3), np.log(12e3)
LOWEST_LOG_LENGTH, HIGHEST_LOG_LENGTH = np.log(0.07), np.log(0.65)
_WALL = 0.03
"""Beyond these the prior falls as a normal distribution of this width: no beamline is there, no fit may run away."""

SAME = (0.015, 0.05)
"""Differences in u and v within which two maxima are one."""

_SMALLEST = 1e-12
_LINEAR = 1e-6
_PATIENCE = 5
_SWEEPS = 20
_GAIN = 3e-2
"""A fit ends at a step that gains less log-likelihood."""


@numba.njit(nogil=True, cache=True)
def expect(
    x: Any, shape: Any, pixel_m: float, polarisation: Any, tables: Any, q_step: float, mean: Any, slopes: Any
) -> None:
    """Expected counts a pixel ``mean`` (bins,) and ``slopes`` (unknowns, bins) by each of the unknowns ``x``.

    ``shape`` (6, bins); ``tables`` (3 + n, samples) every ``q_step`` 1/angstrom, n of the unknowns' rho.
    """
    energy = np.exp(x[ENERGY])
    length_px = np.exp(x[RATIO]) * energy / pixel_m
    wave_number = 4.0 * np.pi * energy / HC_EV_ANGSTROM
    scale, last = np.exp(x[SCALE]), tables.shape[1] - 2
    pxx, pxy, pyy = polarisation[0], polarisation[1], polarisation[2]
    dx, dy, warmer, eta = x[CENTER_X], x[CENTER_Y], x[WARMER], x[PILE_UP]
    others = tables.shape[0] - OTHER_TABLES
    for b in range(mean.size):
        r, c, s = shape[RADIUS, b], shape[COS, b], shape[SIN, b]
        cc, cs, ss = shape[COS2, b], shape[COSSIN, b], shape[SIN2, b]
        # Distance from the shifted centre, to second order, averaged over the bin's azimuths.
        across = (dx * dx * ss - 2.0 * dx * dy * cs + dy * dy * cc) / (2.0 * r)
        radius = max(r - dx * c - dy * s + across, 1.0)
        along = (
            pxx * (r * r * cc - 2.0 * dx * r * c + dx * dx)
            + 2.0 * pxy * (r * r * cs - r * (dx * s + dy * c) + dx * dy)
            + pyy * (r * r * ss - 2.0 * dy * r * s + dy * dy)
        ) / (radius * radius)
        tangent = radius / length_px
        cosine = 1.0 / np.sqrt(1.0 + tangent * tangent)
        sine = tangent * cosine
        # sin(theta), written so that it keeps its digits near the beam
        half = sine / np.sqrt(2.0 * (1.0 + cosine))
        q = wave_number * half
        dipole = max(1.0 - along * sine * sine, 1e-3)
        factor = scale * cosine**3 * dipole
        place = min(q / q_step, float(last))
        low = int(place)
        beyond = place - low
        total, slope, by_warmth = 0.0, 0.0, 0.0
        for j in range(tables.shape[0]):
            step = tables[j, low + 1] - tables[j, low]
            value = tables[j, low] + beyond * step
            if j == WATER:
                rho = 1.0
            elif j == WARMED:
                rho = warmer
                by_warmth += value
            elif j == WARMED_TWICE:
                rho = warmer * warmer
                by_warmth += 2.0 * warmer * value
            else:
                rho = x[OTHERS + j - OTHER_TABLES]
                slopes[OTHERS + j - OTHER_TABLES, b] = factor * value
            total += rho * value
            slope += rho * step
        slope /= q_step
        diffuse = factor * total
        # q moves with 2 theta as cos(theta)/2 wave numbers, and 2 theta with ln r as sine times cosine.
        q_by_radius = wave_number * 0.5 * np.sqrt((1.0 + cosine) / 2.0) * sine * cosine
        by_radius = diffuse * (-3.0 * sine * sine - 2.0 * along * (sine * cosine) ** 2 / dipole)
        by_radius += factor * slope * q_by_radius
        seen = max(diffuse + scale * x[FLAT], _SMALLEST)
        if abs(eta * seen) < _LINEAR:
            mean[b], kept, by_eta = seen, 1.0, -0.5 * seen * seen
        else:
            kept = np.exp(-eta * seen)
            mean[b] = (1.0 - kept) / eta
            by_eta = (kept * (1.0 + eta * seen) - 1.0) / (eta * eta)
        slopes[RATIO, b] = -by_radius * kept
        slopes[ENERGY, b] = (factor * slope * q - by_radius) * kept
        slopes[CENTER_X, b] = -by_radius * c / radius * kept
        slopes[CENTER_Y, b] = -by_radius * s / radius * kept
        slopes[SCALE, b] = seen * kept
        slopes[PILE_UP, b] = by_eta
        slopes[FLAT, b] = scale * kept
        slopes[WARMER, b] = factor * by_warmth * kept
        for j in range(others):
            slopes[OTHERS + j, b] *= kept


@numba.njit(nogil=True, cache=True, fastmath=True)
def _inner(rows: Any, weights: Any, products: Any) -> None:
    """``products`` (n, n): of the ``rows`` (n, bins) with each other, bins weighted."""
    count, bins = rows.shape
    scaled = np.empty(bins)
    for i in range(count):
        here = rows[i]
        for b in range(bins):
            scaled[b] = here[b] * weights[b]
        for j in range(i + 1):
            there, total = rows[j], 0.0
            for b in range(bins):
                total += scaled[b] * there[b]
            products[i, j] = total
            products[j, i] = total


@numba.njit(nogil=True, cache=True)
def curvature(photons: Any, pixels: Any, mean: Any, slopes: Any, free: Any, hessian: Any, gradient: Any) -> float:
    """Fisher information ``hessian`` and score ``gradient`` of Poisson counts; returns their log-likelihood.

    ``photons``, ``pixels`` (bins,); the likelihood is against that of a perfect fit: minus half the deviance.
    """
    bins, total = mean.size, 0.0
    pull, weights, rows = np.zeros(bins), np.zeros(bins), np.empty((free.size, bins))
    for b in range(bins):
        if pixels[b] <= 0.0:
            continue
        expected, counted = pixels[b] * mean[b], photons[b]
        total -= expected - counted
        if counted > 0.0:
            total -= counted * np.log(counted / expected)
        pull[b] = counted / mean[b] - pixels[b]
        weights[b] = pixels[b] / mean[b]
    for i in range(free.size):
        rows[i] = slopes[free[i]]
        gradient[i] = 0.0
        for b in range(bins):
            gradient[i] += rows[i, b] * pull[b]
    _inner(rows, weights, hessian)
    return total


@numba.njit(nogil=True, cache=True)
def wall(x: Any, pull: Any) -> float:
    """The log prior of energy and length, 0 where a beamline may be; its score by (u, v) and the negative curvature.

    ``pull`` (5,) becomes the score by u and v and the curvature by uu, uv and vv.
    """
    pull[:] = 0.0
    total = 0.0
    length = x[RATIO] + x[ENERGY]
    beyond = max(x[ENERGY] - HIGHEST_LOG_ENERGY, 0.0) + min(x[ENERGY] - LOWEST_LOG_ENERGY, 0.0)
    if beyond != 0.0:
        total -= 0.5 * (beyond / _WALL) ** 2
        pull[1] -= beyond / _WALL**2
        pull[4] += 1.0 / _WALL**2
    beyond = max(length - HIGHEST_LOG_LENGTH, 0.0) + min(length - LOWEST_LOG_LENGTH, 0.0)
    if beyond != 0.0:
        total -= 0.5 * (beyond / _WALL) ** 2
        pull[0] -= beyond / _WALL**2
        pull[1] -= beyond / _WALL**2
        for place in range(2, 5):
            pull[place] += 1.0 / _WALL**2
    return total


@numba.njit(nogil=True, cache=True)
def factorised(matrix: Any, lower: Any) -> bool:
    """Cholesky's factor ``lower`` of a small symmetric matrix; False where it is not positive definite.

    At a dozen unknowns a library's call costs more than its work.
    """
    for i in range(len(matrix)):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                lower[i, i] = np.sqrt(total)
            else:
                lower[i, j] = total / lower[j, j]
    return True


@numba.njit(nogil=True, cache=True)
def solve_factored(lower: Any, right: Any, solved: Any) -> None:
    """``solved`` (n,) of the matrix that ``factorised`` took and ``right`` (n,)."""
    count = len(right)
    for i in range(count):
        total = right[i]
        for k in range(i):
            total -= lower[i, k] * solved[k]
        solved[i] = total / lower[i, i]
    for i in range(count - 1, -1, -1):
        total = solved[i]
        for k in range(i + 1, count):
            total -= lower[k, i] * solved[k]
        solved[i] = total / lower[i, i]


@numba.njit(nogil=True, cache=True)
def climb(
    x: Any, free: Any, prior: Any, precision: Any, photons: Any, pixels: Any, shape: Any, pixel_m: float,
    polarisation: Any, tables: Any, q_step: float, mean: Any, slopes: Any, most_steps: int, hopeless: float,
    known: Any,
) -> tuple[float, int]:  # fmt: skip
    """The most probable unknowns by Fisher scoring (Levenberg-Marquardt), from ``x`` on, which is overwritten.

    ``free`` names the unknowns that are fitted, RATIO and ENERGY first, with the normal ``prior`` (its middle) and its
    ``precision`` (free, free), and ``wall``. Given up when it is still below ``hopeless`` after some steps, or comes to
    one of the maxima ``known`` (n, 2), u and v. Returns the log posterior against a perfect fit and the steps taken.
    """
    count = free.size
    information, score, pull = np.zeros((count, count)), np.zeros(count), np.zeros(5)
    hessian, gradient, off = np.zeros((count, count)), np.zeros(count), np.zeros(count)
    lower, step, damped = np.zeros((count, count)), np.zeros(count), np.zeros((count, count))
    trial, best = x.copy(), -np.inf
    damping, taken = 1e-3, 0
    for step_number in range(most_steps):
        taken = step_number + 1
        expect(trial, shape, pixel_m, polarisation, tables, q_step, mean, slopes)
        here = curvature(photons, pixels, mean, slopes, free, information, score)
        for i in range(count):
            off[i] = trial[free[i]] - prior[i]
        pulled = precision @ off
        here += wall(trial, pull) - 0.5 * (off @ pulled)
        if np.isfinite(here) and here >= best - 1e-9:
            gained, best = here - best, here
            x[:] = trial
            hessian[:] = information + precision
            gradient[:] = score - pulled
            gradient[0] += pull[0]
            gradient[1] += pull[1]
            hessian[0, 0] += pull[2]
            hessian[0, 1] += pull[3]
            hessian[1, 0] += pull[3]
            hessian[1, 1] += pull[4]
            damping = max(damping * 0.1, 1e-9)
            if gained < _GAIN:
                break
        else:
            damping *= 10.0
            if damping > 1e9:
                break
        if taken >= _PATIENCE and best < hopeless:
            break
        for n in range(len(known)):
            if abs(x[RATIO] - known[n, 0]) < SAME[0] and abs(x[ENERGY] - known[n, 1]) < SAME[1]:
                return best, taken
        damped[:] = hessian
        for i in range(count):
            damped[i, i] += damping * hessian[i, i] + 1e-12
        if factorised(damped, lower):
            solve_factored(lower, gradient, step)
        else:
            step[:] = np.linalg.solve(damped, gradient)
        # No step leaves the region in which the linearisation means anything.
        limit = 1.0
        for i in range(count):
            most = 0.4 if free[i] <= ENERGY else (8.0 if free[i] <= CENTER_Y else 3.0)
            if abs(step[i]) > most:
                limit = min(limit, most / abs(step[i]))
        trial[:] = x
        for i in range(count):
            trial[free[i]] += limit * step[i]
    return best, taken


@numba.njit(nogil=True, cache=True, fastmath=True)
def mix(
    parts: Any, share: Any, counts: Any, weight: Any, ridge: Any, simple: int, design: Any, mixed: Any, gains: Any
) -> None:
    """How well each point's ``parts`` (points, n, bins), none negative, add up to ``counts``, least squares.

    ``weight`` (bins,): inverse standard deviations; a bin sees ``share`` of the parts; ``ridge`` (n,): precision of
    each amount over the first. Sets the amounts ``mixed`` (2, points, n), with the first ``simple`` parts alone and
    with all, and the ``gains`` (2, points) in log-likelihood. ``design`` (n, bins) is used up.
    """
    points, all_parts, bins = parts.shape
    normal, right = np.zeros((all_parts, all_parts)), np.zeros(all_parts)
    for point in range(points):
        for i in range(all_parts):
            right[i] = 0.0
            for b in range(bins):
                design[i, b] = parts[point, i, b] * share[b] * weight[b]
                right[i] += design[i, b] * counts[b] * weight[b]
            for j in range(i + 1):
                total = 0.0
                for b in range(bins):
                    total += design[i, b] * design[j, b]
                normal[i, j] = total
                normal[j, i] = total
        amount = right[0] / max(normal[0, 0], 1e-300)
        for i in range(1, all_parts):
            normal[i, i] += ridge[i] / max(amount, 1e-300) ** 2
        for kind in range(2):
            used = simple if kind == 0 else all_parts
            found = mixed[kind, point]
            found[:] = 0.0
            for _ in range(_SWEEPS):
                for i in range(used):
                    rest = right[i]
                    for j in range(used):
                        if j != i:
                            rest -= normal[i, j] * found[j]
                    found[i] = max(rest / max(normal[i, i], 1e-300), 0.0)
            gain = 0.0
            for i in range(used):
                gain += found[i] * right[i]
                for j in range(used):
                    gain -= 0.5 * found[i] * found[j] * normal[i, j]
            gains[kind, point] = gain if found[0] > 0.0 else -1e300


@numba.njit(nogil=True, cache=True)
def weigh(
    information: Any, bound: Any, score: Any, off: Any, precisions: Any, errors: Any, sizes: Any, logs: Any, steps: Any,
    covariances: Any,
) -> None:  # fmt: skip
    """Evidence of each prior and the posterior under it, by the likelihood's expansion about a point.

    ``information`` (free, free) and ``score`` there; ``bound`` (2, 2): what bounds u and v adds; ``off`` (free,): the
    point less the priors' middle. Hypotheses are every one of the ``precisions`` (n, first, first) of the first
    unknowns with every one of the ``sizes`` (m,) of the rest, whose precision is ``errors`` over the size squared; the
    rest is integrated out once a size. Sets ``logs`` (n, m), the ``steps`` to the most probable place (n, m, 4) and
    ``covariances`` (n, m, 4, 4) of the first four unknowns. A flat prior has no normalisation; it is the same under
    every one. Source: Laplace's approximation.
    """
    first = precisions.shape[1]
    curved, lower = np.zeros((first, first)), np.zeros((first, first))
    unit, solved = np.zeros(first), np.zeros(first)
    across = np.ascontiguousarray(information[first:, :first])
    for m in range(sizes.size):
        prior = errors / sizes[m] ** 2
        held = prior @ off[first:]
        rest = information[first:, first:] + prior
        factor = np.linalg.cholesky(rest)
        inverse = np.linalg.inv(factor)
        pulled_rest = score[first:] - held
        half_rest = inverse @ pulled_rest
        turned = inverse @ across
        reduced = information[:first, :first] - turned.T @ turned
        reduced_score = score[:first] - turned.T @ half_rest
        base = 0.5 * (half_rest @ half_rest) - 0.5 * (off[first:] @ held) - np.log(np.diag(factor)).sum()
        for n in range(len(precisions)):
            precision = np.ascontiguousarray(precisions[n])
            held_first = precision @ off[:first]
            pulled = reduced_score - held_first
            curved[:] = reduced + precision
            # Without the bounds, else a posterior that leans on one would look sure.
            if not factorised(curved, lower):
                raise np.linalg.LinAlgError("the posterior has no maximum here")
            for column in range(4):
                unit[:] = 0.0
                unit[column] = 1.0
                solve_factored(lower, unit, solved)
                covariances[n, m, column] = solved[:4]
            if bound.any():
                curved[:2, :2] += bound
                if not factorised(curved, lower):
                    raise np.linalg.LinAlgError("the posterior has no maximum here")
            solve_factored(lower, pulled, solved)
            logs[n, m] = base + 0.5 * (pulled @ solved) - 0.5 * (off[:first] @ held_first)
            logs[n, m] -= np.log(np.diag(lower)).sum()
            steps[n, m] = solved[:4]
