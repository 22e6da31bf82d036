"""What stays of a run besides weights: `run.json`, and `history.csv` with a line an epoch."""

import csv
import io
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HISTORY, RUN = "history.csv", "run.json"


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass: losses a sample, the metric of `judging.metric_name` on validation, seconds with the validation.

    learning_rate is that of the epoch's last step; samples_per_s counts training samples by the seconds they took.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    metric: float
    learning_rate: float
    seconds: float
    samples_per_s: float


def write_history(folder: Path, history: Sequence[Epoch], metric: str) -> None:
    """Write the history anew; the column of the metric bears its name."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = ("epoch", "train_loss", "validation_loss", metric, "learning_rate", "seconds", "samples_per_s")
    table.writerow(names)
    for row in history:
        table.writerow([f"{value:.8g}" for value in asdict(row).values()])
    _replace(folder / HISTORY, text.getvalue())


def write_run(folder: Path, facts: dict[str, Any]) -> None:
    """Write the record of a run."""
    _replace(folder / RUN, json.dumps(facts, indent=1, default=str) + "\n")


def job_of(folder: Path) -> str | None:
    """The job that began the run in a folder, where its record names one."""
    try:
        record = json.loads((folder / RUN).read_bytes())
    except (OSError, ValueError):
        return None
    return record.get("job") if isinstance(record, dict) else None


def surroundings() -> dict[str, Any]:
    """Versions and the time, for the record."""
    packages = ("cxls-analyzer", "torch", "numpy", "safetensors")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
