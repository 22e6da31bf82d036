"""What the ideal observer is told of a set, from pattern_sim's patterns and from the scene of a simulation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_replay.cells import ready_crystal
from sim_replay.crystfel import Pattern, write_sparse_patterns
from sim_replay.detector import CONDITIONS, plain_panel
from sim_replay.diffraction import Sample
from sim_replay.response import Response
from sim_replay.scene import Jitter, Scene
from sim_replay.simulation import Plan, simulate_series
from streamer.files import BadInput
from tests.training.dataset.builders import SHAPE, build_series, rotation
from tests.training.evaluation.builders import facts_of
from training.evaluation.library import SIMULATED_CRYSTALS, Unknown, library_of
from training.evaluation.reference import refer

TRUTH: dict[str, Any] = {
    "hit": np.array([True, True, False, False]),
    "frame_crystal": np.array([0, 2, -1, -1]),
    "photon_energy_eV": 6000,
    "camera_length_m": 0.15,
    "flux": 3e6,
    "water_scale": 2.0,
    "response": "integrating",
    "pulses": 1,
    "flux_factor": np.exp(np.array([0.3, -0.3, 0.3, -0.3])),
    "peak_frame": np.array([0]),
    "peak_ss": np.array([5.0]),
    "peak_fs": np.array([5.0]),
    "peak_photons": np.array([5.0]),
}


def numbered(folder: Path, **truth: Any) -> Path:
    """A series whose frames name crystals by number, as the table beside it has them."""
    master = build_series(folder, truth={})
    np.savez(folder / "run_truth.npz", **{k: v for k, v in (TRUTH | truth).items() if v is not None})
    return master


def patterns(folder: Path, count: int = 3, energy: float = 6000.0, water: bool = True) -> Path:
    """A file of sparse patterns, one pixel more each way than the frames."""
    folder.mkdir(exist_ok=True)
    rows, columns = SHAPE[0] + 1, SHAPE[1] + 1
    rng = np.random.default_rng(1)
    made = [
        Pattern(
            np.sort(rng.choice(rows * columns, 30, replace=False)).astype(np.int64),
            rng.lognormal(2.0, 1.5, 30),
            (rows, columns),
            rotation(n),
            *(np.empty(0),) * 3,
            photon_energy_eV=energy,
            camera_length_m=0.15,
            flux_photons=3e8,
            beam_center_x_px=columns / 2,
            beam_center_y_px=rows / 2,
            pixel_size_m=75e-6,
        )
        for n in range(count)
    ]
    path = folder / f"{energy:.0f}.npz"
    write_sparse_patterns(path, made)
    if water:
        with np.load(path) as table:
            kept = dict(table)
        level = np.full((rows, columns), 0.5, np.float32)
        np.savez(path, **kept, water_f32_high16=(level.view(np.uint32) >> 16).astype(np.uint16))
    return path


def test_patterns_are_scaled_to_the_series(tmp_path: Path) -> None:
    patterns(tmp_path / "crystals", energy=7000.0)
    path = patterns(tmp_path / "crystals")
    library = library_of(facts_of(numbered(tmp_path)), SHAPE, tmp_path / "crystals")
    assert library.background.shape == SHAPE
    assert np.allclose(library.background, 0.5 * 2.0 / 100.0)
    assert len(library.crystals) == 3
    assert library.numbered
    assert library.spread.pulse_sigma == library.spread.water_sigma == pytest.approx(0.3)
    with np.load(path) as table:
        ss, fs = np.divmod(table["index"][:30].astype(int), SHAPE[1] + 1)
        inside = (ss < SHAPE[0]) & (fs < SHAPE[1])
        assert library.crystals[0][0].tolist() == (ss * SHAPE[1] + fs)[inside].tolist()
        assert np.allclose(library.crystals[0][1], table["photons"][:30][inside] / 100.0)


def test_water_that_the_patterns_lack_is_our_own(tmp_path: Path) -> None:
    patterns(tmp_path / "crystals", water=False)
    library = library_of(facts_of(numbered(tmp_path)), SHAPE, tmp_path / "crystals")
    assert (library.background > 0.0).all()


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ({"response": None}, "response is missing"),
        ({"flux": None}, "flux is missing"),
        ({"flux_factor": None}, "flux_factor is missing"),
        ({"frame_crystal": None}, "frame_crystal is missing"),
        ({"response": "retrigger"}, "response 'retrigger' is not known"),
        ({"photon_energy_eV": 9000}, "no patterns of 0.15 m and 9000 eV"),
    ],
)
def test_what_is_not_known_is_named(tmp_path: Path, lacking: dict[str, Any], told: str) -> None:
    patterns(tmp_path / "crystals")
    with pytest.raises(Unknown, match=told):
        library_of(facts_of(numbered(tmp_path, **lacking)), SHAPE, tmp_path / "crystals")


def test_numbered_crystals_need_their_folder(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="--crystfel"):
        library_of(facts_of(numbered(tmp_path)), SHAPE, None)


def test_a_crystal_that_is_not_among_the_patterns_is_refused(tmp_path: Path) -> None:
    patterns(tmp_path / "crystals", count=2)
    with pytest.raises(BadInput, match="2 crystals"):
        library_of(facts_of(numbered(tmp_path)), SHAPE, tmp_path / "crystals")


def test_a_damaged_file_of_patterns_is_refused_by_name(tmp_path: Path) -> None:
    path = patterns(tmp_path / "crystals")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BadInput, match=r"6000\.npz"):
        library_of(facts_of(numbered(tmp_path)), SHAPE, tmp_path / "crystals")


def test_hits_are_held_to_crystals_other_than_their_own(tmp_path: Path) -> None:
    patterns(tmp_path / "crystals")
    referred = refer([facts_of(numbered(tmp_path))], tmp_path / "crystals")[0]
    assert referred.why_not == ""
    assert np.isfinite(referred.blocks).all()
    assert np.isfinite(referred.pixels).all()
    assert (referred.total > 0.0).all()


def test_without_a_reference_the_total_count_is_left(tmp_path: Path) -> None:
    referred = refer([facts_of(numbered(tmp_path, response=None))], None)[0]
    assert "response is missing" in referred.why_not
    assert np.isnan(referred.blocks).all()
    assert (referred.total > 0.0).all()


# --- scenes -----------------------------------------------------------------------------


def simulated(folder: Path, response: Response | None = None, crystal: str = "lysozyme") -> Path:
    scene = Scene(
        Sample(ready_crystal(crystal, 5, 4.0)),
        replace(CONDITIONS[1], flux_photons=1e8),
        plain_panel((160, 160)),
        jitter=Jitter(pulse_energy=0.2, thickness=0.3),
        response=response or Response(),
    )
    return simulate_series(folder / "own", scene, Plan(4, seed=3, workers=1))


def test_the_scene_of_a_simulation_is_made_anew(tmp_path: Path) -> None:
    facts = facts_of(simulated(tmp_path))
    library = library_of(facts, (160, 160), None)
    assert (len(library.crystals), library.numbered, library.pulses) == (SIMULATED_CRYSTALS, False, None)
    assert (library.spread.pulse_sigma, library.spread.water_sigma) == (0.2, 0.3)
    assert library.spread.pulse_mean == pytest.approx(-0.02)
    told = facts.truth.per_frame("background_photons")
    flux = facts.truth.per_frame("flux_photons")
    water = facts.truth.per_frame("water_thickness_m")
    assert told is not None
    assert flux is not None
    assert water is not None
    assert np.allclose(told, library.background.sum() * flux / 1e8 * water / 1e-4, rtol=1e-4)


def test_a_simulation_that_counts_once_a_pulse_is_followed(tmp_path: Path) -> None:
    facts = facts_of(simulated(tmp_path, Response("one_per_pulse", pulses=3)))
    library = library_of(facts, (160, 160), None)
    assert library.pulses == 3
    facts = facts_of(simulated(tmp_path / "shared", Response("one_per_pulse", charge_sigma_m=8e-6)))
    with pytest.raises(Unknown, match="share charge"):
        library_of(facts, (160, 160), None)


def test_a_scene_that_is_none_is_refused(tmp_path: Path) -> None:
    facts = facts_of(simulated(tmp_path))
    for scene in ('{"sample": 3}', "[[[", '{"condition": {"camera_length_m": -1}}'):
        with pytest.raises(BadInput, match="no scene"):
            library_of(replace(facts, scene=scene), (160, 160), None)
    with pytest.raises(Unknown, match="cannot be made anew"):
        library_of(replace(facts, crystal_name="a structure of mine"), (160, 160), None)
