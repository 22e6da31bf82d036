"""Settings of every command, and where each value came from.

A setting has one name everywhere: ``--hit-rule`` on the command line, ``CXLS_HIT_RULE`` in
the environment, ``hit_rule`` in the TOML file that ``--config`` names. The command line wins
over the environment, the environment over the file, the file over the default. A name that no
command knows is refused, wherever it stands.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from streamer.text_files import read_text

ENVIRONMENT_PREFIX = "CXLS_"
RESERVED_PREFIX = "CXLS_TEST_"
RESERVED = ("CXLS_CRYSTALS", "CXLS_CONFIG")
"""Names of the environment that are not settings: where tests find CrystFEL crystals, and ``--config``."""

Protocol = Literal["v1", "v2"]
OnFull = Literal["drop", "block"]
Device = Literal["auto", "cpu", "cuda"]
LogFormat = Literal["text", "json"]
FinderName = Literal["bundle", "poisson", "learned", "peakfinder8", "peakfinder8-poisson"]


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
    crystal_size: float = Field(10e-6, ge=1e-8, le=1e-2, description="edge of the crystal, m")
    seed: int = Field(0, ge=0, lt=1 << 63, description="same seed, same frames")


def _several(given: Any) -> Any:
    """One text, as the environment has it, is several with commas between."""
    return tuple(part for part in given.split(",") if part) if isinstance(given, str) else given


Several = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""A setting that may be given again and again."""


def _sample(given: Any) -> Any:
    try:
        every = given if given == "auto" else int(str(given))
    except ValueError:
        every = 0
    if every != "auto" and not 1 <= every <= 1_000_000:
        raise ValueError("give a number from 1 to 1000000, or auto")
    return every


Sample = Annotated[int | Literal["auto"], BeforeValidator(_sample)]
"""Every so manieth image, or as many as the machine keeps up with."""


_UNITS_S = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}
_LONGEST_S = 30 * 86400.0


def _duration(given: Any) -> Any:
    found = re.fullmatch(r"(\d+(?:\.\d*)?) ?([a-z]*)", str(given).strip())
    seconds = float(found[1]) * _UNITS_S[found[2]] if found and found[2] in _UNITS_S else 0.0
    if given is not None and not 0.0 < seconds <= _LONGEST_S:
        raise ValueError("give a time such as 90s, 10min or 1h, 30 days at most")
    return given if given is None else seconds


Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds, given with or without a unit: 90, 90s, 10min, 1h."""


def _rate(given: Any) -> Any:
    return None if given == "max" else given


def _in(group: str, default: Any, description: str, **limits: Any) -> Any:
    """A setting that ``--help`` lists under its group."""
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


class SceneOptions(SimulationOptions):
    """Everything that stands in the beam, and the detector."""

    crystal: str = _in("Crystal", "proteinase-k", "ready cell with random intensities; `cxls crystals` lists them")
    pdb: Path | None = _in("Crystal", None, "structure of the crystal, PDB or mmCIF, plain or gzip")
    bulk_solvent: bool = _in("Crystal", True, "flat bulk solvent around the --pdb structure")
    hkl: Path | None = _in("Crystal", None, "CrystFEL reflection list of the crystal")
    cell: Path | None = _in("Crystal", None, "cell of --hkl: CrystFEL .cell or PDB file (default: proteinase K's)")
    d_min: float | None = _in(
        "Crystal", None, "finest spacing simulated, angstrom (default: 1.8, or what the cell allows)", ge=0.5, le=20
    )
    crystal_seed: int = _in("Crystal", 1, "seed of the random intensities of --crystal", ge=0, lt=1 << 32)
    crystals: int = _in("Crystal", 1, "crystals in a hit, each with its own orientation", ge=1, le=16)
    orientation: str = _in(
        "Crystal", "", "rotation matrix of every hit, 9 numbers row by row (default: random); a along x, b in xy"
    )
    mosaicity: float = _in("Crystal", 0.05, "full width at half maximum of the blocks' turn, degrees", ge=0, le=3)
    strain: float = _in("Crystal", 0.0, "standard deviation of the relative lattice spacing", ge=0, le=0.05)
    crystal_offset: float = _in("Crystal", 0.0, "crystal's centre off the beam, m")

    bandwidth: float = _in(
        "Beam", 0.01, "relative width of the spectrum: full (tophat), half maximum (gaussian)", gt=0, lt=0.5
    )
    spectrum: Literal["tophat", "gaussian"] = _in("Beam", "tophat", "shape of the spectrum")
    spectrum_file: Path | None = _in("Beam", None, "measured spectrum: photon energy in eV and photons a line")
    divergence: float = _in("Beam", 0.0, "standard deviation of the direction, rad", ge=0, le=0.05)
    polarisation: float = _in("Beam", 1.0, "degree of linear polarisation", ge=0, le=1)
    polarisation_angle: float = _in("Beam", 0.0, "electric field's angle from fs towards ss, degrees", ge=-360, le=360)
    beam_radius: float = _in("Beam", 5e-6, "radius of the disc, half FWHM of the Gaussian, m", ge=1e-9, le=1e-2)
    beam_profile: Literal["disc", "gaussian"] = _in("Beam", "disc", "fluence across the beam")
    crystfel_fluence: bool = _in("Beam", False, "the disc's fluence over the whole crystal, as pattern_sim has it")

    water_temperature: float = _in("Surroundings", 298.15, "temperature of the water, K", ge=274.15, le=350.15)
    air: float = _in("Surroundings", 0.0, "path of the direct beam through air behind the sample, m", ge=0, le=10)
    helium: float = _in("Surroundings", 0.0, "the same through helium, m", ge=0, le=10)
    capillary: float = _in("Surroundings", 0.0, "glass in the beam, both walls, m", ge=0, le=1e-2)
    beam_stop: float = _in("Surroundings", 0.0, "radius of the beam stop, m", ge=0, le=0.05)
    beam_stop_distance: float = _in("Surroundings", 0.03, "from the sample to the beam stop, m", gt=0, le=10)
    beam_stop_arm: float = _in("Surroundings", 0.0, "width of the beam stop's holder, m", ge=0, le=0.05)
    film: float = _in("Surroundings", 0.0, "polyimide in the beam, m", ge=0, le=1e-2)
    stray: float = _in("Surroundings", 0.0, "stray photons a pixel at 3e8 photons a pulse", ge=0, le=1e3)

    jitter_pulse_energy: float = _in("Jitter", 0.0, "relative spread of the pulse energy (log-normal)", ge=0, le=2)
    jitter_thickness: float = _in("Jitter", 0.0, "relative spread of the water's thickness (log-normal)", ge=0, le=2)
    jitter_center: float = _in("Jitter", 0.0, "spread of the beam centre on each axis, pixels", ge=0, le=100)
    jitter_energy: float = _in("Jitter", 0.0, "spread of the photon energy, eV", ge=0)
    jitter_distance: float = _in("Jitter", 0.0, "spread of the camera length, m", ge=0)
    jitter_crystal: float = _in("Jitter", 0.0, "spread of the crystals' place on each axis, m", ge=0, le=1e-2)

    salt: float = _in("Distractors", 0.0, "share of frames with salt crystals", ge=0, le=1)
    ice: float = _in("Distractors", 0.0, "share of frames with ice rings", ge=0, le=1)
    lipid: float = _in("Distractors", 0.0, "share of frames with rings of a lipidic phase", ge=0, le=1)
    polymer: float = _in("Distractors", 0.0, "share of frames with spotty rings of PEG", ge=0, le=1)
    no_beam: float = _in("Distractors", 0.0, "share of frames without a pulse", ge=0, le=1)

    detector: Literal["eiger2-4m", "eiger1-4m", "paper"] = _in(
        "Detector", "eiger2-4m", "paper is the gapless 2163 x 2069 panel of the 2024 study"
    )
    geometry: Path | None = _in("Detector", None, "CrystFEL .geom of one flat panel grid, instead of --detector")
    dtype: Literal["uint16", "uint32"] = _in("Detector", "uint16", "pixel type")
    point_spread: float = _in("Detector", 0.4, "standard deviation of the sensor's blur, pixels", ge=0.01, le=10)
    response: Literal["integrating", "one_per_pulse", "retrigger"] = _in(
        "Detector", "integrating", "what a pixel counts of the photons that one pulse puts into it"
    )
    pulses_per_frame: int = _in("Detector", 1, "pulses in a frame", ge=1, le=1000)
    pixel_threshold: float = _in("Detector", 0.5, "threshold as a part of the photon energy", ge=0.1, lt=1)
    charge_sigma: float = _in("Detector", 0.0, "size of the charge cloud, m; 8e-6 is usual in 450 um of silicon", ge=0)
    retrigger_ratio: float = _in("Detector", 1.0, "shaper's decay time over the retrigger time", ge=0.1, le=10)
    dead_pixels: int = _in("Detector", 0, "pixels that never count", ge=0, le=1_000_000)
    hot_pixels: int = _in("Detector", 0, "pixels that count in every frame", ge=0, le=100_000)
    flicker_pixels: int = _in("Detector", 0, "pixels that count in some frames", ge=0, le=100_000)
    cosmic_rate: float = _in("Detector", 0.0, "cosmic hits a frame", ge=0, le=1000)
    dark_counts: float = _in("Detector", 0.0, "noise counts a pixel and frame", ge=0, le=1)
    edge_glow: float = _in("Detector", 0.0, "share of frames in which a module edge glows", ge=0, le=1)


class SimulateSettings(SceneOptions):
    """Write a simulated Eiger series with its truth."""

    frames: int = Field(100, ge=1, le=10**9, description="frames to write")
    shard: str = Field(
        "0/1",
        pattern=r"^[0-9]{1,10}/[0-9]{1,10}$",
        description="write part i of n, i/n counting from 0; same frames as one run",
    )
    workers: int = Field(0, ge=0, le=256, description="processes; 0 takes one a core. The frames do not depend on it")
    overwrite: bool = Field(False, description="replace files that are there")


class CrystfelGeometrySettings(SceneOptions):
    """Write a CrystFEL .geom of the detector where the settings put it."""

    mask_file: Path | None = Field(None, description="HDF5 master whose pixel mask the geometry is to name")
    overwrite: bool = Field(False, description="replace files that are there")


class CrystfelInputsSettings(SceneOptions):
    """Write what CrystFEL 0.10.2's pattern_sim needs: .geom, .cell, .hkl, orientations and the command."""

    patterns: int = Field(10, ge=1, le=100_000, description="patterns, each in a random orientation")
    point_group: str = Field("4/mmm", description="symmetry of the intensities, as CrystFEL writes it")
    overwrite: bool = Field(False, description="replace files that are there")


class CrystfelImportSettings(SceneOptions):
    """Turn noise-free patterns of pattern_sim into a series with water, noise and truth."""

    repeat: int = Field(1, ge=1, le=1_000_000, description="frames of each pattern, each with its own noise")
    overwrite: bool = Field(False, description="replace files that are there")


class ReplaySettings(_Settings):
    """Be an Eiger on the wire: send files as stream v1 or v2."""

    bind: str = Field("tcp://127.0.0.1:31001", description="address to bind; port 0 takes a free one")
    stream: Protocol = Field("v2", description="protocol to speak")
    rate: float | None = Field(None, gt=0, description="frames a second (default: as fast as they are taken)")
    loop: bool = Field(False, description="start over at the end, with rising series ids")
    time: Annotated[float | None, BeforeValidator(_duration)] = Field(
        None, description="start over for so long, such as 90s, 10min or 1h, then end with everything handed over"
    )
    header_detail: Literal["none", "basic", "all"] = Field("basic", description="how much the start message tells")
    on_full: OnFull = Field("block", description="when the consumer is behind: wait, or drop as a detector does")
    series_id: int = Field(1, ge=1, description="id of the first series")
    rest: str | None = Field(
        None, description="serve SIMPLON here, for instance 127.0.0.1:8000, and wait for arm and trigger"
    )
    fault: Several = _in(
        "Faults (docs/faults.md)",
        (),
        "commit a fault: KIND=PROBABILITY, KIND@IMAGE_ID in every series, all=PROBABILITY; again for more",
    )
    fault_seed: int = _in("Faults (docs/faults.md)", 0, "same seed, same faults in the same series", ge=0, lt=1 << 63)
    fault_report: Path | None = _in(
        "Faults (docs/faults.md)", None, "write a JSON line for each fault committed, with what an account must show"
    )
    log_format: LogFormat = Field("text", description="lines of the log: for a person, or a JSON object each")


_WATCHING = "Watching"
_ELSEWHERE = "Workers of other processes and hosts"
_INDEXING = "Indexing and others that listen"
_RUN = "Runs and reports"
_CELL = "Known crystal"
_EPICS = "Control system"
_CHECKING = "Site check"
_PEAKS = "Peak finder (pf8: as CrystFEL's options of these names)"


class JudgeSettings(_Settings):
    """What frames are judged with: all that a record depends on besides its frame."""

    channel: str | None = Field(None, description="channel to analyse (default: the first threshold)")
    device: Device = Field("auto", description="where the networks run")
    bundle: Path | None = Field(None, description="model bundle folder (default: the one shipped)")
    model: Several = Field(
        (), description="folder of a single model that says an attribute of each frame; again for more, in this order"
    )
    geometry: Path | None = Field(
        None, description="CrystFEL .geom of the detector: panels, bad regions, masks (default: the header's geometry)"
    )
    mask: Path | None = Field(None, description="extra mask, .npy or HDF5 dataset FILE:PATH, nonzero where bad")
    hit_rule: Literal["network", "peaks", "either", "both"] = Field("network", description="what makes a hit")
    min_peaks: int = Field(5, ge=1, description="peaks that make a hit under the peaks rules")
    indexable_peaks: int = Field(10, ge=1, description="peaks that make a frame indexable")
    peak_finder: FinderName = _in(
        _PEAKS,
        "bundle",
        "who finds the peaks of records: whom the bundle chooses, the built-in finder, the bundle's network, or "
        "peakfinder8 with the settings here",
    )
    pf8_threshold: float | None = _in(
        _PEAKS, None, "counts that a pixel of a peak exceeds (default: 3, with poisson tails 0)", ge=0, le=1e6
    )
    pf8_min_snr: float | None = _in(
        _PEAKS, None, "least signal, in standard deviations of the background (default: 5, with poisson tails 6)",
        ge=0.01, le=30,
    )  # fmt: skip
    pf8_min_pix_count: int = _in(_PEAKS, 1, "fewest pixels of a peak over its ring's threshold", ge=1, le=1000)
    pf8_max_pix_count: int = _in(_PEAKS, 200, "most pixels of a peak over its ring's threshold", ge=1, le=1000)
    pf8_local_bg_radius: int = _in(
        _PEAKS, 3, "local background is taken from twice so many pixels around a peak", ge=1, le=20
    )
    pf8_min_res: float = _in(_PEAKS, 0.0, "least distance of a peak from the beam, pixels", ge=0)
    pf8_max_res: float | None = _in(
        _PEAKS, None, "largest distance of a peak from the beam, pixels (default: the corners')", gt=0
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="hit probability that makes a hit (default: the calibration's or the bundle's)"
    )
    calibration: Path | None = Field(
        None, description="what `cxls calibrate` wrote of a blank run: threshold, false-hit rate, score distribution"
    )


class AnalyzeSettings(JudgeSettings):
    """Analyse a live stream or files: hits, peaks, photon energy, camera length."""

    stream: Literal["auto", "v1", "v2"] = Field("auto", description="protocol of the live stream")
    shadow_finder: FinderName | None = _in(
        _PEAKS, None, "another finder that sees the same frames; only how the two differ is reported, in metrics"
    )
    cell: str | None = _in(
        _CELL,
        None,
        "unit cell, edges in angstrom and angles in degrees, such as '67.3 67.3 106.6 90 90 90', or a CrystFEL .cell "
        "or PDB file: Bragg spots then tell photon energy and camera length too",
    )
    space_group: str | None = _in(_CELL, None, "space group of --cell, such as 'P 43 21 2'")
    tags: str = Field("", description="keys of user data or image appendix to keep in records, comma separated")
    split_tag: str | None = _in(
        _WATCHING, None, "tag that splits the hit ratio on the live page, such as laser; kept in records too"
    )
    map_tags: str | None = _in(
        _WATCHING,
        None,
        "two tags, such as stage_x,stage_y: the hit ratio as a map on the live page; kept in records too",
    )
    target_hits: int | None = _in(_WATCHING, None, "hits to collect; the live page shows the time left", ge=1)
    target_indexed: int | None = _in(_WATCHING, None, "indexed patterns to collect, as the indexer says", ge=1)
    results: Path | None = Field(None, description="write a record a frame to this .jsonl file or .parquet folder")
    hits: Path | None = Field(None, description="write hits into this folder: HDF5, CXI peaks, hits.lst and .geom")
    hits_file_mib: int = Field(512, ge=1, description="begin a new file of hits at this size, MiB")
    hits_queue_mib: int = Field(512, ge=16, description="most hits in memory while the disk is behind, MiB")
    append: bool = Field(False, description="add to existing results; no record is repeated")
    overwrite: bool = Field(False, description="replace existing results")
    products: Path | None = Field(
        None,
        description="keep powder, peakogram, histograms, hot pixels in this folder, every minute and at the end",
    )
    on_full: OnFull | None = Field(
        None, description="when analysis is behind: drop and count (live), or let the sender wait (files)"
    )
    sample: Sample = Field(
        1,
        description="analyse only images whose id is a multiple of this; auto: of the least number that keeps images "
        "from waiting, as the load goes. The others are recorded as dropped (sampled)",
    )
    listen: str | None = Field(
        None, description="serve metrics and the live page here (default: 127.0.0.1:8080 for a live stream)"
    )
    control_token: Path | None = Field(
        None, description="file of mode 0600 whose token allows POST /control/... (default: no control)"
    )
    reports: Path | None = _in(
        _RUN, None, "write run-0012.html and a row of runs.csv into this folder when a run ends, and at the end"
    )
    run_number: int | None = _in(
        _RUN, None, "number to begin with; the page and POST /control/run change it", ge=0, le=999_999_999
    )
    sample_name: str = _in(_RUN, "", "what is measured, to begin with", max_length=200)
    index_listen: str | None = _in(
        _INDEXING,
        None,
        "hand hits to indexamajig --zmq-input here, for instance tcp://127.0.0.1:12322",
    )
    index_images: bool = _in(_INDEXING, False, "hand out the image too, not the peaks alone: 18 MB a hit of a 4M")
    index_indexable: bool = _in(_INDEXING, False, "hand out only hits with at least --indexable-peaks peaks")
    index_queue: int = _in(
        _INDEXING,
        1000,
        "most hits that wait for an indexer; the oldest give way to newer ones",
        ge=1,
        le=1_000_000,
    )
    index_geometry: Path | None = _in(
        _INDEXING,
        None,
        "write the .geom for indexamajig -g here with the first hit; a file that is there stays",
    )
    index_stream: Path | None = _in(
        _INDEXING, None, "follow this file that indexamajig -o writes: indexed fraction, cell, resolution"
    )
    broadcast: str | None = _in(
        _INDEXING, None, "publish every record here, for instance tcp://127.0.0.1:12321 (docs/broadcast.md)"
    )
    epics: str | None = _in(
        _EPICS, None, "serve values as process variables PREFIX:HitRate100 and so on over PVAccess (docs/epics.md)"
    )
    epics_interface: str = _in(
        _EPICS, "127.0.0.1", "address of this machine to serve them on, with :PORT where 5075 is not meant"
    )
    epics_reset: bool = _in(_EPICS, False, "a put of 1 to PREFIX:Reset begins windows and profiles anew")
    series: int | None = Field(None, ge=1, description="end after so many series")
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="analysis threads; 0 takes one a core, three for a GPU, none with --processes or --worker-listen",
    )
    processes: int = _in(
        _ELSEWHERE,
        0,
        "worker processes on this machine, started again when they end: a crash of one costs no frame",
        ge=0,
        le=256,
    )
    worker_listen: str | None = _in(
        _ELSEWHERE,
        None,
        "let workers of other hosts attach here (`cxls worker`), for instance tcp://0.0.0.0:31100",
    )
    worker_key: Path | None = _in(
        _ELSEWHERE, None, "secret key of this front (`cxls worker-keys`): workers attach encrypted, by key"
    )
    worker_keys: Path | None = _in(
        _ELSEWHERE, None, "public keys of the workers that may attach, one a line; read again when it changes"
    )
    batch: int = Field(0, ge=0, le=256, description="most frames judged at once; 0 takes 8, or 32 for a GPU")
    queue_mib: int = Field(512, ge=16, description="most compressed frames held in memory, MiB")
    max_message_mib: int = Field(512, ge=1, description="largest message part accepted, MiB")
    log_format: LogFormat = Field("text", description="lines of the log: for a person, or a JSON object each")


class DoctorSettings(AnalyzeSettings):
    """Check this machine, and the detector, for what `cxls analyze` with the same settings needs.

    A line a check: ok, warn, or FAIL with what to do. Nothing is changed anywhere; the detector hands us no image.
    """

    rest: str | None = _in(
        _CHECKING, None, "ask the detector's control unit what it is set to, for instance http://192.0.2.10 (SIMPLON)"
    )
    rehearse: float | None = _in(
        _CHECKING, None, "replay simulated frames over loopback into an analysis for so many seconds", gt=0, le=600
    )
    rate: float | None = _in(
        _CHECKING, None, "frames a second of --rehearse (default: the detector's, by --rest)", gt=0, le=100_000
    )


class WorkerSettings(_Settings):
    """Analyse frames for a front on this or another machine: cxls analyze --worker-listen."""

    name: str = Field("", max_length=100, description="what the front calls it (default: this host and process)")
    device: Device = Field("auto", description="where frames are analysed")
    processes: int = Field(0, ge=0, le=256, description="worker processes; 0 takes one a core, one for a GPU")
    threads: int = Field(0, ge=0, le=64, description="analysis threads of each; 0 takes one, or three for a GPU")
    batch: int = Field(0, ge=0, le=256, description="most frames judged at once; 0 takes 8, or 32 for a GPU")
    listen: str | None = Field(
        None, description="serve /metrics, /healthz and /readyz here; further processes at the ports after it"
    )
    worker_key: Path | None = Field(None, description="secret key of this worker (`cxls worker-keys`)")
    front_key: Path | None = Field(None, description="public key of the front: no other is served")
    once: bool = Field(False, description="end with the front's run; else wait for the next front at the same address")


class ViewSettings(_Settings):
    """Show files on the live page: every frame analysed, hits to click through; stays until Ctrl-C."""

    listen: str = Field("127.0.0.1:8080", description="serve the page here")
    bundle: Path | None = Field(None, description="model bundle folder (default: the one shipped)")
    device: Device = Field("auto", description="where the networks run")
    geometry: Path | None = Field(None, description="CrystFEL .geom of the detector (default: the header's geometry)")
    mask: Path | None = Field(None, description="extra mask, .npy or HDF5 dataset FILE:PATH, nonzero where bad")
    threshold: float | None = Field(None, ge=0, le=1, description="hit probability that makes a hit")
    calibration: Path | None = Field(None, description="what `cxls calibrate` wrote of a blank run")
    tags: str = Field("", description="keys of user data or image appendix to keep, comma separated")
    split_tag: str | None = Field(None, description="tag that splits the hit ratio")
    map_tags: str | None = Field(None, description="two tags, such as stage_x,stage_y: the hit ratio as a map")
    log_format: LogFormat = Field("text", description="lines of the log: for a person, or a JSON object each")


class BatchSettings(JudgeSettings):
    """Analyse many files again: one shard of them, in a process of its own.

    All shards write into one folder, each chunk of frames when it is finished; a shard that was killed goes on where
    it was when it is started again. cxls batch merge DIR makes one table and one report of them.
    """

    out: Path = Field(Path("runs/batch"), description="folder of the batch, the same for every shard")
    shard: str = Field(
        "auto",
        pattern=r"^([0-9]{1,6}/[0-9]{1,6}|auto)$",
        description="work on part i of n, i/n counting from 0; auto: the task of a SLURM job array, else 0/1",
    )
    by: Literal["frames", "files"] = Field(
        "frames", description="give shards equal ranges of frames, or whole files so that frames come out about equal"
    )
    chunk: int = Field(500, ge=1, le=1 << 20, description="most frames that are finished, or done again, together")
    workers: int = Field(0, ge=0, le=256, description="analysis threads; 0 takes one a core, or three for a GPU")
    batch: int = Field(0, ge=0, le=256, description="most frames judged at once; 0 takes 8, or 32 for a GPU")


class BatchMergeSettings(_Settings):
    """Make one Parquet table and one report of the shards of a batch.

    Refused while shards are missing, which are named.
    """

    partial: bool = Field(False, description="merge what there is")


class DemoSettings(SimulationOptions):
    """Simulate, replay over ZeroMQ, analyse, and show it: the whole path on one machine."""

    frames: int = Field(200, ge=1, description="frames in the simulated series")
    rate: float = Field(20.0, gt=0, description="frames a second")
    exit: bool = Field(False, description="end with the series instead of looping until Ctrl-C")
    listen: str = Field("127.0.0.1:8080", description="where metrics and the live page are served")
    stream: Protocol = Field("v2", description="protocol between the parts")
    log_format: LogFormat = Field("text", description="lines of the log: for a person, or a JSON object each")


_FINETUNE = "Adaptation (hit --finetune)"
_BUNDLE = "Bundle (hit, parameters, all, peak-finder)"


class TrainSettings(_Settings):
    """Train a network for an attribute, or the models of a bundle.

    \b
    TASK is an attribute, of this or another package,
      peak           whether a frame has a crystal: yes or no
      peaks          where its Bragg peaks are: yes or no for each pixel
      energy         its photon energy: 6, 7 or 8 keV
      camera-length  its camera length: 0.15, 0.25 or 0.35 m
    or what is trained of a bundle, on shots that are simulated for it,
      hit            the network that says hit or empty
      parameters     the network that measures photon energy and camera length
      all            both, into a bundle of their own
      peak-finder    the network that says where peaks are, into the bundle in --out or a copy of the one shipped

    PATHs are as --data. Ctrl-C ends a run at a checkpoint. That of an attribute lies in its run folder, and --resume
    goes on to the same weights; hit, parameters, all and peak-finder go on by themselves, given the same --work and
    options.
    """

    epochs: int | None = Field(
        None, ge=1, description="passes over the data (default: the recipe's; for hit 8, fine-tuned 5)"
    )
    seed: int = Field(1, ge=0, lt=1 << 31, description="seed of weights and order, and of shots that are simulated")
    workers: int = Field(0, ge=0, le=256, description="processes that simulate or read ahead; 0 takes one a core")
    device: Device = Field("auto", description="where training runs")

    network: str | None = _in("Attribute", None, "network to train (default: the attribute's); see `cxls models list`")
    network_setting: Several = _in("Attribute", (), "a setting of the network, KEY=VALUE; again, or commas between")
    run_folder: Path | None = _in("Attribute", None, "folder of the run (default: runs/train/TASK-NETWORK)")
    resume: bool = _in("Attribute", False, "go on with the run in --run-folder where it was cut short")
    tune: int = _in("Attribute", 0, "search hyper-parameters in so many trials; the validation loss decides", ge=0)
    checkpoint_s: float = _in("Attribute", 300.0, "between checkpoints inside an epoch, s", ge=0)

    data: Several = _in("Data", (), "tree or series with truth; again for more (default: simulate on the fly)")
    split: Path | None = _in("Data", None, "sides that `cxls data split` chose, of --data or of all it has")
    validation_fraction: float = _in("Data", 0.2, "share to validate on where there is no --split", gt=0, lt=1)
    datasets: str | None = _in("Data", None, "numbers of the paper's nine data sets, as in 1,5-9 (default: all)")
    size: str | None = _in("Data", None, "cut frames to so many pixels about the middle, N or ROWSxCOLUMNS")
    bin: int = _in("Data", 1, "then add up squares of so many pixels an edge", ge=1, le=64)
    frames: int = _in("Data", 2000, "simulated frames an epoch", ge=1, le=10**9)
    flux: float = _in("Data", 3e8, "photons a pulse of simulated frames", gt=0, le=1e15)
    water_scale: float = _in("Data", 1.0, "water of simulated frames, in units of 100 micrometres", ge=0, le=1e4)
    hit_fraction: float = _in("Data", 0.5, "share of simulated frames with a crystal", ge=0, le=1)

    batch: int | None = _in("Recipe (default: as published)", None, "samples a step, over all ranks", ge=1)
    micro_batch: int | None = _in(
        "Recipe (default: as published)",
        None,
        "most samples in memory at once; gradients add up to a batch's, but a network that normalises over a batch "
        "(heat map, ResNet-50, comparison CNN) does so over these",
        ge=1,
    )
    learning_rate: float | None = _in(
        "Recipe (default: as published)", None, "largest learning rate; --schedule says how it falls", gt=0
    )
    optimiser: Literal["adam", "adamw", "sgd"] | None = _in(
        "Recipe (default: as published)",
        None,
        "adam, adamw (its weight decay apart from the gradient) or sgd; --recipe sets weight_decay and momentum",
    )
    loss: Literal["bce", "cross-entropy", "focal", "mse", "gaussian-nll"] | None = _in(
        "Recipe (default: as published)",
        None,
        "bce or focal for a yes or no, of a frame or its pixels; cross-entropy for classes; mse, or gaussian-nll with "
        "an uncertainty, for a number",
    )
    schedule: Literal["plateau", "one-cycle", "constant"] | None = _in(
        "Recipe (default: as published)",
        None,
        "learning rate over the run: plateau falls when the validation loss stands still, one-cycle rises and falls, "
        "constant stays",
    )
    patience: int | None = _in(
        "Recipe (default: as published)", None, "end after so many epochs without a better validation loss", ge=1
    )
    recipe: Several = _in(
        "Recipe (default: as published)", (), "any other part of the recipe, KEY=VALUE, as in pos_weight=counts"
    )

    out: Path = _in(_BUNDLE, Path("runs/bundle"), "folder of the bundle to write")
    work: Path = _in(_BUNDLE, Path("runs/shots"), "folder for simulated shots; what is there is used again")
    shards: int = _in(_BUNDLE, 60, "training shards of 512 shots (adaptation: 6; peak-finder: 40 of 96)", ge=1)
    steps: int = _in(_BUNDLE, 6000, "steps of the parameter network (peak-finder: 12000)", ge=1)

    finetune: bool = _in(_FINETUNE, False, "adapt a bundle's hit network to the series that PATHs name")
    bundle: Path | None = _in(_FINETUNE, None, "bundle to start from (default: the one shipped)")
    labels: Literal["auto", "truth", "peaks"] = _in(
        _FINETUNE, "auto", "what tells hits: truth, peak counts, or auto, truth where a series has it"
    )
    label_peaks: int = _in(_FINETUNE, 10, "peaks from which a frame is labelled a hit", ge=1)
    label_empty_peaks: int = _in(_FINETUNE, 0, "most peaks of a frame labelled empty; between has no label", ge=0)
    mix: float = _in(_FINETUNE, 0.5, "simulated share of each batch; keeps faint hits", ge=0, lt=1)
    real_frames: int | None = _in(_FINETUNE, None, "take so many frames, evenly over the series (default: all)", ge=1)
    mask: Path | None = _in(_FINETUNE, None, "extra mask, .npy or HDF5 dataset FILE:PATH, nonzero where bad")


class ModelsUseSettings(_Settings):
    """Give a running analysis another model bundle; it loses no frame. The bundle is checked here first."""

    at: str = Field("http://127.0.0.1:8080", description="address of the analysis, as it said after: listening http")
    token: Path | None = Field(None, description="file of mode 0600 with the token of its --control-token")


class ControlSettings(_Settings):
    """Change a running analysis; it loses no frame.

    \b
    ACTION and VALUE are one of
      threshold   a hit probability from 0 to 1, or none for the calibration's or the bundle's own
      peaks       KEY=VALUE..., keys of min_peaks indexable_peaks hit_rule finder pf8_threshold pf8_min_snr
                  pf8_min_pix_count pf8_max_pix_count pf8_local_bg_radius pf8_min_res pf8_max_res
      channel     a channel of the series, or none for the first threshold
      mask        a mask file on the analyser's machine, hot-pixels for the running map, or none
      reset       nothing: running sums, windows and history begin anew
      run         KEY=VALUE..., keys of number sample notes; the word new ends the run and begins another
      target      KEY=VALUE..., hits and indexed patterns to collect; none for no target
    """

    at: str = Field("http://127.0.0.1:8080", description="address of the analysis, as it said after: listening http")
    token: Path | None = Field(None, description="file of mode 0600 with the token of its --control-token")


class WatchSettings(_Settings):
    """Show a running analysis in a terminal: hit rate, frame rate, energy, camera length, account, alarms."""

    interval: float = Field(1.0, ge=0.2, le=60, description="between two looks, s")
    once: bool = Field(False, description="print what there is once, and end; exit code 1 without an answer")


class CalibrateSettings(_Settings):
    """Calibrate on a blank run (jet, no crystals): false-hit rate, threshold, mask.

    Writes OUT.json for `cxls analyze --calibration`, OUT_mask.npy and OUT_mask.h5 for --mask, and OUT.png.
    """

    out: Path = Field(Path("calibration"), description="what the names of the files that are written begin with")
    false_hits: float = Field(0.005, gt=0, le=0.5, description="share of empty frames that may be called hits")
    frames: int | None = Field(
        None, ge=30, le=1_000_000, description="blank frames to take (default: all of files, 1000 of a live stream)"
    )
    min_peaks: int = Field(5, ge=1, description="peaks that keep no place from which a blank frame is suspect")
    bundle: Path | None = Field(None, description="model bundle folder (default: the one shipped)")
    geometry: Path | None = Field(None, description="CrystFEL .geom of the detector (default: the header's geometry)")
    mask: Path | None = Field(None, description="extra mask, .npy or HDF5 dataset FILE:PATH, nonzero where bad")
    stream: Literal["auto", "v1", "v2"] = Field("auto", description="protocol of the live stream")
    channel: str | None = Field(None, description="channel to analyse (default: the first threshold)")
    max_message_mib: int = Field(512, ge=1, description="largest message part accepted, MiB")
    overwrite: bool = Field(False, description="replace files that are there")


class EvaluateSettings(_Settings):
    """Hold a bundle against the truth of series: ROC, recall, calibration, peaks, photon energy, camera length.

    Intervals count crystals, not frames. --ideal shows what the light itself allows, --peers what OM's peakfinder8
    finds. A metric that the truth does not allow is named with what is missing; hits, and one that --metrics asks for,
    are an error then. --model evaluates a single model for its attribute: figures with intervals, confusion.
    """

    bundle: Path | None = Field(None, description="model bundle folder (default: the one shipped)")
    model: Path | None = Field(
        None, description="evaluate this single model of `cxls train` or `cxls models import` instead, on trees too"
    )
    results: Path | None = Field(
        None, description="take the records of this .jsonl of cxls analyze on the same series instead of judging anew"
    )
    metrics: str | None = Field(
        None, description="hits, calibration, no-beam, peaks, photon-energy, camera-length; commas (default: all)"
    )
    ideal: bool = Field(False, description="score the ideal observers and the total count on the same frames; slow")
    crystfel: Path | None = Field(None, description="folder of combo*.npz patterns that series were made from")
    peers: bool = Field(False, description="run OM's peakfinder8 on the same frames (`make peers` installs it)")
    show: int = Field(0, ge=0, le=100_000, description="print truth beside result for so many frames, peaks included")
    show_which: Literal["wrong", "first", "hits", "missed", "false"] = Field(
        "wrong",
        description="which frames those are: wrong ones before the others, or in order all, hits, missed or false hits",
    )
    report: Path | None = Field(None, description="folder for report.html, report.md and plots, which are replaced")
    workers: int = Field(0, ge=0, le=256, description="analysis threads; 0 takes one a core")
    datasets: str | None = Field(
        None, description="with --model: numbers of the paper's nine data sets in a tree, as in 1,5-9 (default: all)"
    )
    device: Device = Field("auto", description="with --model: where its network runs")


class EvaluateParametersSettings(_Settings):
    """How well photon energy and camera length come out of diffuse scattering, beside what its photons allow at best.

    Profiles of the simulation's images are drawn again and again, a frame's and those of sums of frames, and fitted as
    frames and runs are. For each condition, flux and number of frames: error, bias and stated uncertainty, against the
    bound of Cramer and Rao; what the 95 % intervals cover; pulls; how often the nearest keV and cm are right. Then with
    water, surroundings and detectors that the fit was not made for; and how two conditions that look alike part.
    """

    bundle: Path | None = Field(None, description="model bundle folder (default: the one shipped)")
    conditions: str | None = Field(None, description="of the paper's nine, as in 1,5-9 (default: all)")
    fluxes: str = Field("3e8", description="photons a pulse; commas")
    sums: str = Field("1,10,100,1000,200000", description="numbers of frames added up; commas")
    scenarios: str = Field(
        "all", description="cold, warm, structure, film25, film50, glass10, air1, air3, once, columns, rows, no-water, "
        "stray, empty; commas, or all or none",
    )  # fmt: skip
    repeats: int = Field(200, ge=2, le=100_000, description="draws of a cell; a scenario has a fifth of it")
    alarm_frames: int = Field(
        0, ge=0, le=1_000_000_000, description="look for false alarms of the header's check in so many frames, too"
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="same seed, same draws")
    report: Path | None = Field(None, description="folder for report.html, report.md and plots, which are replaced")


class BenchSettings(_Settings):
    """Measure against peers, in one run."""

    frames: int = Field(60, ge=4, description="frames to measure on")
    seconds: float = Field(60.0, gt=0, description="length of a load test, s")
    rate: float | None = Field(
        None, gt=0, lt=1e6, description="end-to-end: frames/s at which latency is seen, for --seconds (default: parts "
        "of the highest)"
    )  # fmt: skip
    device: Device = Field("auto", description="where end-to-end's networks and start run; for start auto is the CPU")
    json_file: Path | None = Field(None, description="write the figures here as JSON too")
    tables: Several = Field(
        (), description="docs: JSON files of benchmarks, again for more (default: runs/bench-*.json)"
    )
    page: Path = Field(Path("docs/performance.md"), description="docs: page whose marked tables are replaced")
    bundle: Path | None = Field(None, description="bundle that hits judges with (default: the one shipped)")
    scenarios: str = Field("", description="scenarios of hits, with commas (default: all)")
    masters: Several = Field(
        (), description="series with truth for peakfinder8, NAME=GLOB of masters, again for more (default: simulated)"
    )
    series: Several = Field(
        (),
        description="series with truth for peak-finders, --frames of each; again for more (default: simulated shots)",
    )
    work: Path = Field(Path("runs/shots"), description="folder for simulated shots, used again when there")
    parts: Path = Field(Path("runs/gpu"), description="gpu: folder for what each part finds; what is there is done")
    minutes: float = Field(9.0, gt=0, description="gpu: time for all; the same command goes on with the rest")


class SoakSettings(_Settings):
    """Replay into an analysis for a stated time, with faults, and check that it lost, leaked and slowed nothing.

    Replay and analysis are processes of their own. At the end: the account closes exactly, one record an image, memory,
    descriptors, threads and latency as they were, every output readable. Results and hits are read and deleted as they
    are finished, so that little disk is needed. Exit code 0: all of it holds, 1: something does not.
    """

    time: Duration = Field(60.0, description="how long to replay, such as 90s, 10min or 1h")
    rate: Annotated[float | None, BeforeValidator(_rate)] = Field(
        None, gt=0, lt=1e6, description="frames a second, or max: as fast as they are analysed (default)"
    )
    stream: Literal["v1", "v2", "both"] = Field("v2", description="protocol to speak; both: in turns")
    faults: str = Field(
        "all", description="faults of the replay: all, none, or KIND=P,... as cxls replay --fault has them; with all "
        "each kind has a chance of 0.0002 an image, or 0.02 a series",
    )  # fmt: skip
    processes: int = Field(0, ge=0, le=256, description="analyse in so many worker processes (default: in threads)")
    kills: Annotated[float | None, BeforeValidator(_duration)] = Field(
        None, description="kill -9 a random worker process every so often; needs --processes"
    )
    on_full: OnFull = Field("block", description="when analysis is behind: let the sender wait, or drop and count")
    format: Literal["parquet", "jsonl"] = Field(
        "parquet", description="of the results; .jsonl is kept whole and takes a few kilobytes an image"
    )
    hit_fraction: float = Field(0.05, ge=0, le=1, description="share of simulated frames with a crystal")
    bundle: Path | None = Field(None, description="model bundle folder (default: the one shipped)")
    seed: int = Field(1, ge=0, lt=1 << 31, description="same seed, same frames, faults and victims")
    work: Path | None = Field(
        None, description="folder for all that is written, which stays (default: a temporary one)"
    )
    report: Path = Field(Path("runs/soak.json"), description="figures, checks and samples as JSON; a plot beside it")


class FiguresSettings(_Settings):
    """Draw figures of the documentation and print their tables.

    simulation: those of docs/simulation.md, with the simulator as it is. paper: the 2024 paper's results by its own
    protocol and by an honest one (docs/paper.md); it trains every published network twice, in about ten minutes.
    """

    out: Path = Field(Path("docs/images"), description="folder for the PNG files; those of the same name are replaced")
    only: str | None = Field(
        None, description="conditions, response, distractors, background, spot, powder, crystfel; commas (default: all)"
    )
    orientations: int = Field(4000, ge=2, le=1_000_000, description="random crystals a condition for powder")
    crystfel: Path | None = Field(None, description="folder of combo*.npz patterns of pattern_sim, for crystfel")
    hkl: Path | None = Field(None, description="CrystFEL reflection list that those patterns were made with")
    cell: Path | None = Field(None, description="cell of --hkl: CrystFEL .cell or PDB file (default: proteinase K's)")
    conditions: str | None = Field(
        None, description="paper: its Figure 18 instead, photon energy on these of its data sets, as in 1,2"
    )
    quick: bool = Field(False, description="paper: every step at a toy's size, to see that it runs")
    bin: int = Field(20, ge=1, le=32, description="paper: edge of a pixel for the convolutions, in pixels of 75 um")
    frozen_water: float = Field(
        500.0, ge=0, le=1500, description="paper: brightness of its frozen water, in units of the true one"
    )
    seed: int = Field(1, ge=0, lt=1 << 63, description="paper: of images, splits and weights")
    work: Path = Field(Path("runs/paper"), description="paper: folder of its trainings, which are not done again")


class DataSettings(_Settings):
    """What every command on data sets has."""

    datasets: str | None = Field(None, description="numbers of the paper's nine data sets, as in 1,5-9 (default: all)")


class DataCheckSettings(DataSettings):
    """Say everything that is wrong with data sets: files, attributes, pairs, truth, leaks.

    All problems are printed, each with its file and dataset. Exit code 0: none, 1: some, 2: bad usage.
    """


class DataCountsSettings(DataSettings):
    """Count images by data set: hits, empty images, classes."""


class DataLabelSettings(DataSettings):
    """Mark the peaks of noise-free images: labels/NN/label_*.h5 of a tree, PREFIX_labels.h5 of a series."""

    kind: Literal["threshold", "maxima"] = Field(
        "maxima", description="every pixel above the threshold, or one pixel a local maximum above it"
    )
    label_threshold: float = Field(1.0, ge=0, description="photons that a peak's pixel exceeds")
    min_distance: int = Field(3, ge=1, le=100, description="least distance of two local maxima, pixels")
    force: bool = Field(False, description="replace files that are there")


class DataOverlaySettings(DataSettings):
    """Add water to a tree's peak images, with fresh noise in each, and make its empty images."""

    percent_empty: float = Field(0.3, ge=0, le=10, description="empty images for each peak image, a fraction")
    seed: int = Field(0, ge=0, lt=1 << 63, description="same seed, same noise")
    flux_scale: float = Field(1.0, gt=0, le=1e6, description="factor on the photons of peaks and water alike")
    frozen_noise: bool = Field(
        False, description="one draw of the water for a whole data set, the paper's way: shows why it misled"
    )
    new_water: bool = Field(False, description="put the simulator's expectation in place of the tree's water")
    flux: float = Field(3e8, gt=0, le=1e15, description="photons a pulse, for water that is made")
    water_scale: float = Field(1.0, ge=0, le=1e4, description="water that is made, in units of 100 micrometres")
    force: bool = Field(False, description="replace files that are there")


class DataMakeTreeSettings(DataSettings):
    """Simulate a tree of the paper's kind: peaks, labels, water, overlays and empty images."""

    per_dataset: int = Field(10, ge=1, le=99_999, description="peak images a data set")
    percent_empty: float = Field(0.3, ge=0, le=10, description="empty images for each peak image, a fraction")
    seed: int = Field(0, ge=0, lt=1 << 63, description="same seed, same images")
    flux: float = Field(3e8, gt=0, le=1e15, description="photons a pulse at the sample")
    water_scale: float = Field(1.0, ge=0, le=1e4, description="water in the beam, in units of 100 micrometres")
    crystal_size: float = Field(10e-6, ge=1e-8, le=1e-2, description="edge of the crystal, m")
    hkl: Path | None = Field(
        None, description="CrystFEL reflection list of the crystal (default: a proteinase K stand-in)"
    )
    panel: str = Field("2163x2069", pattern=r"^[1-9]\d{1,3}x[1-9]\d{1,3}$", description="rows x columns of the panel")
    force: bool = Field(False, description="replace files that are there")


class DataSplitSettings(DataSettings):
    """Split data sets into train, validation and test so that nothing is on two sides.

    Images that share a crystal orientation, a draw of the background or random numbers stay together.
    """

    out: Path = Field(Path("split.json"), description="where the split is written")
    train: float = Field(0.8, ge=0, le=1, description="share of the images to train on")
    validation: float = Field(0.1, ge=0, le=1, description="share to choose and calibrate on")
    test: float = Field(0.1, ge=0, le=1, description="share to report on")
    seed: int = Field(0, ge=0, lt=1 << 63, description="same seed, same split")
    force: bool = Field(False, description="replace a split that is there")


class DataExportTreeSettings(DataSettings):
    """Write simulated series as a tree of the paper's kind."""

    force: bool = Field(False, description="replace files that are there")


class DataRecoverSettings(_Settings):
    """Finish what killed runs left in folders of hits, and look through all their files.

    Files are made of every journal that no running analysis holds; hits.lst and the geometries are written anew. Doing
    it twice is as doing it once.
    """

    verify: bool = Field(True, description="decode every image of every file, which takes long for a large folder")


COMMANDS: dict[str, type[_Settings]] = {
    "demo": DemoSettings,
    "simulate": SimulateSettings,
    "crystfel geometry": CrystfelGeometrySettings,
    "crystfel inputs": CrystfelInputsSettings,
    "crystfel import": CrystfelImportSettings,
    "replay": ReplaySettings,
    "analyze": AnalyzeSettings,
    "doctor": DoctorSettings,
    "view": ViewSettings,
    "worker": WorkerSettings,
    "batch": BatchSettings,
    "batch merge": BatchMergeSettings,
    "train": TrainSettings,
    "models use": ModelsUseSettings,
    "control": ControlSettings,
    "watch": WatchSettings,
    "calibrate": CalibrateSettings,
    "evaluate": EvaluateSettings,
    "evaluate parameters": EvaluateParametersSettings,
    "bench": BenchSettings,
    "soak": SoakSettings,
    "figures": FiguresSettings,
    "data check": DataCheckSettings,
    "data counts": DataCountsSettings,
    "data label": DataLabelSettings,
    "data overlay": DataOverlaySettings,
    "data make-tree": DataMakeTreeSettings,
    "data split": DataSplitSettings,
    "data export-tree": DataExportTreeSettings,
    "data recover": DataRecoverSettings,
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
        wrong = repr(first.get("input"))[:80]
        name = _spelling(key, origin.get(key, ""))
        raise BadSettings(f"{name} = {wrong} ({origin.get(key, '?')}): {first['msg']}", key) from None


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


MAX_CONFIG_BYTES = 64 << 10
"""All settings there are take 33 kB. A key of many dots takes tomllib time by the square of their number."""


def _from_file(path: Path) -> dict[str, Any]:
    try:
        raw = read_text(path, "TOML file", MAX_CONFIG_BYTES)
    except OSError as error:
        raise BadSettings(f"{path}: {error.strerror or error}; --config names a TOML file") from None
    except ValueError as error:
        raise BadSettings(f"--config {error}") from None
    try:
        values = tomllib.loads(raw.decode("utf-8"))
    except RecursionError:
        raise BadSettings(f"{path}: not TOML: nested too deep") from None
    except ValueError as error:  # also a number of too many digits, which is none of tomllib's own errors
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
