"""The tables of what scatters, as they are written into a bundle."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
from safetensors.torch import load_file

from analyzer.bundle import CARD, DEFAULT_BUNDLE, load_bundle, save_card
from analyzer.parameters.scattering import OTHER_TABLES, TABLES, scattering
from sim_replay.scatter import Q_INV_ANGSTROM, water_per_sr
from tests.analyzer.builders import write_bundle
from training.scattering import WEIGHTS, write_scattering


def test_written_tables_are_loaded_with_their_bundle(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b")
    card = load_bundle(folder).card
    save_card(msgspec.structs.replace(card, scattering=write_scattering(folder)), folder)
    loaded = load_bundle(folder)
    assert loaded.scattering is not None
    assert loaded.card.scattering is not None
    assert set(loaded.card.scattering.sources) == {"water", *OTHER_TABLES}
    water = water_per_sr(100e-6)
    np.testing.assert_allclose(loaded.scattering.tables[0], water / water[0])
    assert loaded.scattering.q_step_inv_angstrom == Q_INV_ANGSTROM[1]


def test_the_same_tables_are_written_twice(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = write_scattering(tmp_path / "a"), write_scattering(tmp_path / "b")
    assert one == other
    assert one.sha256 == hashlib.sha256((tmp_path / "a" / WEIGHTS).read_bytes()).hexdigest()


def test_the_default_bundle_has_the_tables_that_are_written_now(tmp_path: Path) -> None:
    write_scattering(tmp_path)
    shipped = load_file(DEFAULT_BUNDLE / load_bundle(DEFAULT_BUNDLE).card.scattering.weights)  # type: ignore[union-attr]
    written = load_file(tmp_path / WEIGHTS)
    assert set(shipped) == set(written)
    for name, table in written.items():
        np.testing.assert_allclose(shipped[name], table, rtol=1e-9, atol=1e-12 * float(table.abs().max()))
    assert (DEFAULT_BUNDLE / CARD).exists()


def test_warmer_water_is_between_the_tables(tmp_path: Path) -> None:
    """w + t w1 + t^2 w2 at t = -1, 0.5, 1 of 10 K."""
    write_scattering(tmp_path)
    tables = scattering(load_file(tmp_path / WEIGHTS)).tables[: len(TABLES)]
    water = water_per_sr(100e-6)
    for warmer in (-1.0, 0.5, 1.0):
        mixed = tables[0] + warmer * tables[1] + warmer**2 * tables[2]
        np.testing.assert_allclose(mixed, water_per_sr(100e-6, 298.15 + 10 * warmer) / water[0], rtol=5e-3)
