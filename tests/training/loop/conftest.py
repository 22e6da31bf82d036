import pytest
import torch

from analyzer import architectures
from tests.training.loop.builders import NETWORKS


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, architecture in NETWORKS.items():
        monkeypatch.setitem(architectures.OWN, name, architecture)
    torch.set_num_threads(1)
