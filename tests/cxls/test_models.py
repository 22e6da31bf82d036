"""The pages about models say what the shipped bundle's card says."""

from pathlib import Path

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from cxls.commands.models import model_page

ROOT = Path(__file__).parents[2]


def test_the_page_on_the_shipped_models_is_generated_from_its_card() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    assert page == model_page(load_bundle(DEFAULT_BUNDLE)), "run: cxls models show --markdown > docs/models.md"


def test_the_shipped_bundle_states_what_it_was_measured_on() -> None:
    card = load_bundle(DEFAULT_BUNDLE).card
    seeds = card.hit.training["seeds"]
    assert len(set(seeds.values())) == 3
    rows = card.hit.performance["rows"]
    assert rows[0]["hits_found"] + rows[0]["hits_missed"] > 1000
    assert all(len(row["recall_interval"]) == 2 for row in rows)
