"""Settings of every command, and where each value came from.

A setting has one name everywhere: ``--hit-rule`` on the command line, ``CXLS_HIT_RULE`` in
the environment, ``hit_rule`` in the TOML file that ``--config`` names. The command line wins
over the environment, the environment over the file, the file over the default. A name that no
command knows is refused, wherever it stands.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

ENVIRONMENT_PREFIX = "CXLS_"
RESERVED_PREFIX = "CXLS_TEST_"
RESERVED = ("CXLS_CRYSTALS", "CXLS_CONFIG")
"""Names of the environment that are not settings: where tests find CrystFEL crystals, and ``--config``."""

Protocol = Literal["v1", "v2"]
OnFull = Literal["drop", "block"]
Device = Literal["auto", "cpu", "cuda"]


class BadSettings(ValueError):
    """A setting that is unknown or has no sense: one line with what, where and what to do.

    ``key`` is the setting, where one is to blame.
    """

    def __init__(self, text: str, key: str | None = None) -> None:
        super().__init__(text)
        self.key = key


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulationOptions(_Settings):
    """What is simulated; shared by simulate and demo."""

    condition: int | None = Field(
        None, ge=1, le=9, description="one of the paper's nine: 0.15, 0.25, 0.35 m by 6, 7, 8 keV"
    )
    camera_length: float | None = Field(None, gt=0, le=10, description="camera length, m (instead of a condition)")
    energy: float | None = Field(None, ge=1000, le=100_000, description="photon energy, eV (instead of a condition)")
    flux: float = Field(3e8, gt=0, le=1e15, description="photons a pulse at the sample")
    water_scale: float = Field(1.0, ge=0, le=1e4, description="water in the beam, in units of 100 micrometres")
    hit_fraction: float = Field(0.5, ge=0, le=1, description="share of frames with a crystal")
    crystal_size: float = Field(10e-6, gt=0, lt=1e-2, description="edge of the crystal, m")
    seed: int = Field(0, ge=0, lt=1 << 63, description="same seed, same frames")


class SimulateSettings(SimulationOptions):
    """Write a simulated Eiger series with its truth."""

    frames: int = Field(100, ge=1, description="frames to write")
    hkl: Path | None = Field(
        None, description="CrystFEL reflection list of the crystal (default: a proteinase K stand-in)"
    )
    dtype: Literal["uint16", "uint32"] = Field("uint16", description="pixel type")
    shard: str = Field(
        "0/1", pattern=r"^\d+/\d+$", description="write part i of n, i/n counting from 0; same frames as one run"
    )
    overwrite: bool = Field(False, description="replace files that are there")


class ReplaySettings(_Settings):
    """Be an Eiger on the wire: send files as stream v1 or v2."""

    bind: str = Field("tcp://127.0.0.1:31001", description="address to bind; port 0 takes a free one")
    stream: Protocol = Field("v2", description="protocol to speak")
    rate: float | None = Field(None, gt=0, description="frames a second (default: as fast as they are taken)")
    loop: bool = Field(False, description="start over at the end, with rising series ids")
    header_detail: Literal["none", "basic", "all"] = Field("basic", description="how much the start message tells")
    on_full: OnFull = Field("block", description="when the consumer is behind: wait, or drop as a detector does")
    series_id: int = Field(1, ge=1, description="id of the first series")
    rest: str | None = Field(
        None, description="serve SIMPLON here, for instance 127.0.0.1:8000, and wait for arm and trigger"
    )


class AnalyzeSettings(_Settings):
    """Analyse a live stream or files: hits, peaks, photon energy, camera length."""

    stream: Literal["auto", "v1", "v2"] = Field("auto", description="protocol of the live stream")
    channel: str | None = Field(None, description="channel to analyse (default: the first threshold)")
    device: Device = Field("auto", description="where the networks run")
    bundle: Path | None = Field(None, description="model bundle folder (default: the one shipped)")
    mask: Path | None = Field(None, description="extra mask, .npy or HDF5 dataset FILE:PATH, nonzero where bad")
    hit_rule: Literal["network", "peaks", "either", "both"] = Field("network", description="what makes a hit")
    min_peaks: int = Field(5, ge=1, description="peaks that make a hit under the peaks rules")
    indexable_peaks: int = Field(10, ge=1, description="peaks that make a frame indexable")
    threshold: float | None = Field(
        None, ge=0, le=1, description="hit probability that makes a hit (default: the bundle's)"
    )
    tags: str = Field("", description="keys of user data or image appendix to keep in records, comma separated")
    results: Path | None = Field(None, description="write a record a frame to this .jsonl file or .parquet folder")
    append: bool = Field(False, description="add to existing results; no record is repeated")
    overwrite: bool = Field(False, description="replace existing results")
    on_full: OnFull | None = Field(
        None, description="when analysis is behind: drop and count (live), or let the sender wait (files)"
    )
    listen: str | None = Field(
        None, description="serve metrics and the live page here (default: 127.0.0.1:8080 for a live stream)"
    )
    series: int | None = Field(None, ge=1, description="end after so many series")
    workers: int = Field(0, ge=0, le=256, description="analysis threads; 0 takes one a core")
    batch: int = Field(8, ge=1, le=256, description="most frames judged at once")
    queue_mib: int = Field(512, ge=16, description="most compressed frames held in memory, MiB")
    max_message_mib: int = Field(512, ge=1, description="largest message part accepted, MiB")


class DemoSettings(SimulationOptions):
    """Simulate, replay over ZeroMQ, analyse, and show it: the whole path on one machine."""

    frames: int = Field(200, ge=1, description="frames in the simulated series")
    rate: float = Field(20.0, gt=0, description="frames a second")
    exit: bool = Field(False, description="end with the series instead of looping until Ctrl-C")
    listen: str = Field("127.0.0.1:8080", description="where metrics and the live page are served")
    stream: Protocol = Field("v2", description="protocol between the parts")


class TrainSettings(_Settings):
    """Train the models of a bundle on simulated shots."""

    out: Path = Field(Path("runs/bundle"), description="folder of the bundle to write")
    work: Path = Field(Path("runs/shots"), description="folder for simulated shots; what is there is used again")
    shards: int = Field(24, ge=1, description="training shards of 512 shots")
    epochs: int = Field(12, ge=1, description="passes over the training shots")
    steps: int = Field(6000, ge=1, description="steps of the parameter network")
    seed: int = Field(1, ge=0, description="seed of shots and weights; validation and test take the next two")
    workers: int = Field(0, ge=0, description="simulation processes; 0 takes one a core")
    device: Device = Field("auto", description="where training runs")


class BenchSettings(_Settings):
    """Measure against peers, in one run."""

    frames: int = Field(60, ge=4, description="frames to measure on")
    seconds: float = Field(60.0, gt=0, description="length of a load test, s")
    json_file: Path | None = Field(None, description="write the figures here as JSON too")


COMMANDS: dict[str, type[_Settings]] = {
    "demo": DemoSettings,
    "simulate": SimulateSettings,
    "replay": ReplaySettings,
    "analyze": AnalyzeSettings,
    "train": TrainSettings,
    "bench": BenchSettings,
}


S = TypeVar("S", bound=_Settings)


@dataclass(frozen=True, slots=True)
class Resolved(Generic[S]):
    """Settings of a command, and for each where it came from."""

    settings: S
    origin: dict[str, str]


def known_names() -> set[str]:
    """Every setting of every command."""
    return {name for model in COMMANDS.values() for name in model.model_fields}


def resolve(
    model: type[S], given: Mapping[str, Any], config: Path | None, environment: Mapping[str, str] | None = None
) -> Resolved[S]:
    """Layer command line over environment over file over defaults. Raises ``BadSettings``."""
    environment = os.environ if environment is None else environment
    if config is None and environment.get("CXLS_CONFIG"):
        config = Path(environment["CXLS_CONFIG"])
    layers = [
        ("default", {}),
        (f"file {config}", _from_file(config) if config else {}),
        ("environment", _from_environment(environment)),
        ("command line", {name: value for name, value in given.items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    origin = dict.fromkeys(model.model_fields, "default")
    for name, layer in layers:
        for key, value in layer.items():
            if key in model.model_fields:
                values[key], origin[key] = value, name
    try:
        return Resolved(model.model_validate(values), origin)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else "?"
        raise BadSettings(
            f"{_spelling(key, origin.get(key, ''))} = {first.get('input')!r} ({origin.get(key, '?')}): {first['msg']}",
            key,
        ) from None


def resolve_all(config: Path | None) -> list[tuple[str, Resolved[Any] | BadSettings]]:
    """Settings of every command, or what is wrong with them.

    A value is wrong only if no command that has the setting takes it. Raises ``BadSettings``.
    """
    found: list[tuple[str, Resolved[Any] | BadSettings]] = []
    for name, model in COMMANDS.items():
        try:
            found.append((name, resolve(model, {}, config)))
        except BadSettings as error:
            if error.key is None:
                raise
            found.append((name, error))
    for _, outcome in found:
        if isinstance(outcome, BadSettings):
            takers = (r for _, r in found if isinstance(r, Resolved) and outcome.key in r.origin)
            if next(takers, None) is None:
                raise outcome
    return found


def _spelling(key: str, origin: str) -> str:
    if origin == "command line":
        return "--" + key.replace("_", "-")
    return ENVIRONMENT_PREFIX + key.upper() if origin == "environment" else key


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadSettings(f"{path}: {error.strerror or error}; --config names a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path}: not TOML: {error}") from None
    for key in values:
        if key not in known_names():
            raise BadSettings(f"{path}: unknown setting {key!r}; `cxls config show` lists the known ones")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable.startswith(RESERVED_PREFIX) or variable in RESERVED:
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key not in known_names():
            raise BadSettings(f"environment: unknown setting {variable}; `cxls config show` lists the known ones")
        values[key] = value
    return values
