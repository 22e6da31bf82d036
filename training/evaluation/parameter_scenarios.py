"""What may be otherwise than the fit has it: water of another structure, things in the beam, other detectors.

None of it was used to choose anything of the estimator. Each must be covered by the stated intervals, or not be
determined.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sim_replay.background import WATER_REFERENCE_THICKNESS_M, Surroundings
from sim_replay.detector import Detector
from sim_replay.scatter import Q_INV_ANGSTROM, ROOM_TEMPERATURE_K, water_per_sr

Floats = npt.NDArray[np.float64]

DISTORTION = 0.03
"""R.m.s. relative error of the structure factor."""

_LARGEST_Q = 4.0
_WAVES = 6
_SHORTEST, _LONGEST = 1.0, 5.0
_ZERO_CELSIUS_K = 273.15


def distorted_water(rng: np.random.Generator) -> Floats:
    """Water at room temperature whose structure factor is wrong by a smooth random curve, on the twin's grid of q.

    The curve is a sum of waves of q, 1 to 5 per angstrom long, with an r.m.s. of ``DISTORTION`` up to 4 per angstrom.
    """
    lengths = np.exp(rng.uniform(math.log(_SHORTEST), math.log(_LONGEST), _WAVES))
    phases, heights = rng.uniform(0.0, 2.0 * np.pi, _WAVES), rng.normal(size=_WAVES)
    curve = heights @ np.cos(2.0 * np.pi * Q_INV_ANGSTROM / lengths[:, None] + phases[:, None])
    seen = Q_INV_ANGSTROM <= _LARGEST_Q
    curve *= DISTORTION / math.sqrt(float(np.mean(curve[seen] ** 2)))
    whole: Floats = water_per_sr(WATER_REFERENCE_THICKNESS_M, ROOM_TEMPERATURE_K) * np.maximum(1.0 + curve, 0.1)
    return whole


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """``text`` says what it is. ``extra`` makes further scattering, another each time, where there is some;
    ``detector`` changes the detector; ``water``: whether there is any, so that something can be determined."""

    text: str
    surroundings: Surroundings = field(default_factory=Surroundings)
    extra: Callable[[np.random.Generator], Floats] | None = None
    once: bool = False
    detector: Callable[[Detector], Detector] | None = None
    water: bool = True


def _masked(across: bool) -> Callable[[Detector], Detector]:
    """Half the panel masked: columns up to the middle, else rows."""

    def made(detector: Detector) -> Detector:
        rows, columns = detector.shape
        half = (0, rows, 0, columns // 2) if across else (0, rows // 2, 0, columns)
        return replace(detector, bad=(*detector.bad, half))

    return made


SCENARIOS: dict[str, Scenario] = {
    "cold": Scenario("water at 4 C", Surroundings(water_temperature_K=_ZERO_CELSIUS_K + 4.0)),
    "warm": Scenario("water at 40 C", Surroundings(water_temperature_K=_ZERO_CELSIUS_K + 40.0)),
    "structure": Scenario(
        "water's structure factor wrong by 3 % r.m.s., another way each time",
        Surroundings(water_thickness_m=0.0),
        distorted_water,
    ),
    "film25": Scenario("25 um of polyimide", Surroundings(film_thickness_m=25e-6)),
    "film50": Scenario("50 um of polyimide", Surroundings(film_thickness_m=50e-6)),
    "glass10": Scenario("10 um of glass", Surroundings(capillary_wall_m=10e-6)),
    "air1": Scenario("1 cm of air", Surroundings(air_path_m=0.01)),
    "air3": Scenario("3 cm of air", Surroundings(air_path_m=0.03)),
    "once": Scenario("a pixel counts once a pulse", once=True),
    "columns": Scenario("half the columns masked", detector=_masked(True)),
    "rows": Scenario("half the rows masked", detector=_masked(False)),
    "no-water": Scenario("2 cm of air, no water", Surroundings(water_thickness_m=0.0, air_path_m=0.02), water=False),
    "stray": Scenario(
        "stray light only, 0.01 photons a pixel",
        Surroundings(water_thickness_m=0.0, flat_photons_per_pixel=0.01),
        water=False,
    ),
    "empty": Scenario("nothing at all", Surroundings(water_thickness_m=0.0), water=False),
}
