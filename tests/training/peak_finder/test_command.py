"""``cxls train peak-finder`` and ``cxls bench peak-finders``, small but real: shots, training, threshold, card."""

import dataclasses
import json
import sys
from pathlib import Path

import msgspec
import pytest

from analyzer.bundle import CARD, DEFAULT_BUNDLE, load_bundle
from analyzer.learned_finder import learned_finder
from cxls.cli import main
from cxls.commands import train_peak_finder
from training.peak_finder.tiles import FINDER_SHOTS, TileRecipe

SMALL = TileRecipe(
    shots=dataclasses.replace(FINDER_SHOTS, groups_per_shard=4, flux_photons=(2e8, 1e9), water_scale=(0.5, 2.0))
)


def cxls(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["cxls", *arguments])
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_finder_is_trained_into_a_copy_of_the_shipped_bundle_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_peak_finder, "TILING", SMALL)
    order = ("train", "peak-finder", "--out", "mine", "--work", "work", "--shards", "1", "--steps", "40")
    assert cxls(monkeypatch, *order, "--workers", "1") == 0
    said = capsys.readouterr()
    assert "mine: bundle default, peaks from a heat of" in said.out
    assert "40/40 loss" in said.err
    shipped = msgspec.json.decode((DEFAULT_BUNDLE / CARD).read_bytes())
    bundle = load_bundle(tmp_path / "mine")
    card = bundle.card.peaks
    assert card is not None
    assert bundle.card.hit.sha256 == shipped["hit"]["sha256"]
    assert card.training["seeds"] == {"training": 1, "validation": 2, "test": 3}
    assert card.performance["from_counts"][0]["finder"] == "classical"
    assert learned_finder(bundle) is not None
    # The same call again does nothing anew and ends at the same weights.
    assert cxls(monkeypatch, *order, "--workers", "1") == 0
    again = load_bundle(tmp_path / "mine").card.peaks
    assert again is not None
    assert again.sha256 == card.sha256

    report = tmp_path / "figures.json"
    capsys.readouterr()
    assert (
        cxls(monkeypatch, "bench", "peak-finders", "--bundle", "mine", "--frames", "4", "--json-file", str(report)) == 0
    )
    assert "6 simulated EIGER2 4M shots of seed" in capsys.readouterr().out
    assert {row["finder"] for row in json.loads(report.read_text())["samples"]["from_counts"]} == {
        "classical",
        "learned",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "peak-finder", "some_data"], "a bundle is trained on simulated shots"),
        (["train", "peak-finder", "--epochs", "3"], "cxls train peak-finder: counts steps"),
        (
            ["train", "peak-finder", "--network", "x"],
            "cxls train peak-finder: of a bundle; --network is for attributes",
        ),
        (
            ["bench", "peak-finders", "--series", "absent_master.h5", "--bundle", "BUNDLE"],
            "absent_master.h5: no such file",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "BUNDLE" in arguments and load_bundle(DEFAULT_BUNDLE).peaks is None:
        arguments, said = arguments[:2], "has no learned peak finder; `cxls train peak-finder` adds one"
    else:
        arguments = [str(DEFAULT_BUNDLE) if each == "BUNDLE" else each for each in arguments]
    assert cxls(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
