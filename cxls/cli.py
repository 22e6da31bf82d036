"""The command tree. Each command's options are its settings; its work is imported when it runs."""

import importlib
import io
import logging
import signal
import sys
import threading
import time
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from pydantic.fields import FieldInfo

from analyzer import logs
from cxls.settings import COMMANDS, BadSettings, resolve, resolve_all

log = logging.getLogger(__name__)

EXIT_FAILED, EXIT_USAGE = 1, 2


class Failed(Exception):
    """The work failed while running; the message says what and what to do."""


class Interrupted(BaseException):
    """The work was stopped by a signal, with everything received written; no ``except Exception`` is to hold it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def _parameter(name: str, field: FieldInfo) -> click.Option:
    flag = "--" + name.replace("_", "-")
    default = field.default
    text = field.description or ""
    if default is not None and default is not False and default not in ("", ()):
        text += f"  [default: {default:g}]" if isinstance(default, float) else f"  [default: {default}]"
    annotation = field.annotation
    if annotation is bool:
        return click.Option([f"{flag}/--no-{name.replace('_', '-')}"], default=None, help=text)
    if typing.get_origin(annotation) is tuple:
        return click.Option([flag], multiple=True, callback=_given, help=text, metavar=_metavar(str))
    return click.Option([flag], default=None, help=text, metavar=_metavar(annotation))


def _given(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """What was given again and again; None, so that other layers count, when it was not."""
    del ctx, param
    return value or None


def _metavar(annotation: Any) -> str:
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    option = next(o for o in options if o is not type(None))
    if typing.get_origin(option) is typing.Literal:
        return "|".join(map(str, typing.get_args(option)))
    return {int: "N", float: "X", Path: "PATH"}.get(option, "TEXT")


def _command(
    name: str,
    run: str,
    arguments: list[click.Parameter] | None = None,
    epilog: str = "",
    branches: dict[str, click.Command] | None = None,
    compiles: bool = False,
) -> click.Command:
    """A command whose options are the settings of ``name``; ``run`` is ``module:function``.

    Of a name such as ``data check`` the last word is the command's, in the group of the first. ``branches``: commands
    that the first argument names. ``compiles``: it says so when it has to compile first.
    """
    model = COMMANDS[name]
    own = [argument.name for argument in arguments or [] if argument.expose_value]

    def callback(**given: Any) -> None:
        config = given.pop("config")
        positional = {key: given.pop(key) for key in own if key is not None}
        resolved = resolve(model, given, config)
        if log_format := getattr(resolved.settings, "log_format", None):
            logs.configure(log_format, detached=True)
        module, function = run.split(":")
        if compiles:
            # Before the kernels are imported, which compiles them where they never were.
            importlib.import_module("cxls.compilation").announce()
        work: Callable[..., None] = getattr(importlib.import_module(module), function)
        work(resolved, **positional)

    options: list[click.Parameter] = [_parameter(key, field) for key, field in model.model_fields.items()]
    config_option = click.Option(["--config"], type=click.Path(path_type=Path), help="TOML file of settings")
    params = [*(arguments or []), *options, config_option]
    command = _Grouped(name.split()[-1], callback=callback, params=params, help=model.__doc__, epilog=epilog)
    command.groups = {key: _group_of(field) for key, field in model.model_fields.items()}
    command.branches = branches or {}
    return command


def _list_faults(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value and not ctx.resilient_parsing:
        importlib.import_module("cxls.commands.replay").list_faults()
        ctx.exit()


def _json_option() -> click.Option:
    return click.Option(
        ["--json", "json_path"],
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="write all figures here as JSON too",
    )


_OPTIONS = "Options"


def _group_of(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("group", _OPTIONS)) if isinstance(extra, dict) else _OPTIONS


class _Grouped(click.Command):
    """A command whose help lists its options by group; what it is for may branch by the first argument."""

    groups: dict[str, str]
    branches: dict[str, click.Command]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        branch = self.branches.get(args[0]) if args else None
        if branch is not None:
            return branch.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(self.groups.get(str(parameter.name), _OPTIONS), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cxls-analyzer", prog_name="cxls")
def cli() -> None:
    """Live analysis for serial crystallography: hits, peaks, photon energy and camera length.

    Every option is also an environment variable (--hit-rule is CXLS_HIT_RULE) and a key of the
    TOML file that --config names (hit_rule).
    """


cli.add_command(
    _command(
        "demo",
        "cxls.commands.demo:run",
        epilog="Open http://127.0.0.1:8080 while it runs; Ctrl-C ends it.",
        compiles=True,
    )
)
cli.add_command(
    _command(
        "simulate",
        "cxls.commands.simulate:run",
        [click.Argument(["out"], type=click.Path(path_type=Path))],
        "Writes OUT_master.h5 and OUT_data_000001.h5. Example, photons counted as a pulsed source lets a pixel count "
        "them, some frames with salt: cxls simulate runs/test --crystal lysozyme --response one_per_pulse --salt 0.1",
    )
)


@cli.command("crystals")
def crystals() -> None:
    """Ready crystals for ``cxls simulate --crystal``."""
    importlib.import_module("cxls.commands.crystals").run()


@cli.group("crystfel")
def crystfel() -> None:
    """Hand geometry to CrystFEL, and take patterns from its pattern_sim."""


crystfel.add_command(
    _command(
        "crystfel geometry",
        "cxls.commands.crystfel:geometry",
        [click.Argument(["out"], type=click.Path(path_type=Path))],
        "Example: cxls crystfel geometry eiger.geom --condition 5 --mask-file runs/test_master.h5",
    )
)
crystfel.add_command(
    _command(
        "crystfel inputs",
        "cxls.commands.crystfel:inputs",
        [click.Argument(["folder"], type=click.Path(path_type=Path))],
        "Example: cxls crystfel inputs lyso --crystal lysozyme --condition 2 --patterns 30 && sh lyso/run.sh",
    )
)
crystfel.add_command(
    _command(
        "crystfel import",
        "cxls.commands.crystfel:import_",
        [
            click.Argument(["out"], type=click.Path(path_type=Path)),
            click.Argument(["sources"], nargs=-1, required=True, metavar="SOURCE..."),
        ],
        "SOURCE is a folder of pattern_sim's output or a .npz of sparse patterns. Example: cxls crystfel import "
        "runs/crystfel lyso --flux 3e7 --repeat 3 --hit-fraction 0.5",
    )
)
cli.add_command(
    _command(
        "replay",
        "cxls.commands.replay:run",
        [
            click.Argument(["files"], nargs=-1, required=True),
            click.Option(
                ["--list-faults"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_list_faults,
                help="print the faults that --fault knows, and where an account shows each",
            ),
        ],
        "Examples: cxls replay runs/test_master.h5 --rate 100 --stream v2; and as a detector that misbehaves: cxls "
        "replay runs/test_master.h5 --fault all=0.002 --fault drop_image@7 --fault-report faults.jsonl",
    )
)
cli.add_command(
    _command(
        "analyze",
        "cxls.commands.analyze:run",
        [click.Argument(["source"], nargs=-1, required=True)],
        "SOURCE is tcp://HOST:PORT of a detector (v2: 31001, v1: 9999), or Eiger master, data, CXI or single-image "
        "HDF5 files, globs and .lst lists. Example: cxls analyze tcp://detector:31001 --results run12.jsonl",
        compiles=True,
    )
)
cli.add_command(
    _command(
        "doctor",
        "cxls.commands.doctor:run",
        [click.Argument(["source"], required=False), _json_option()],
        "SOURCE is tcp://HOST:PORT of a detector. Exit code 0 when nothing failed, 1 otherwise. Examples: cxls doctor "
        "--config /etc/cxls/cxls.toml tcp://192.0.2.10:31001 --rest http://192.0.2.10; cxls doctor --rehearse 10 "
        "--rate 100",
        compiles=True,
    )
)
cli.add_command(
    _command(
        "watch",
        "cxls.commands.watch:run",
        [click.Argument(["address"], metavar="http://HOST:PORT", default="http://127.0.0.1:8080")],
        "The address is what the analysis said after: listening http. Without a terminal each look is a line. "
        "Example: ssh -t beamline cxls watch http://127.0.0.1:8080",
    )
)
cli.add_command(
    _command(
        "worker",
        "cxls.commands.worker:run",
        [click.Argument(["address"])],
        "ADDRESS is where the front listens for workers. Nothing is needed on this machine's disk: bundle, mask and "
        "geometry come from the front. Example: cxls analyze tcp://detector:31001 --worker-listen tcp://0.0.0.0:31100 "
        "on one host, cxls worker tcp://FRONT:31100 on others",
        compiles=True,
    )
)


@cli.command("worker-keys")
@click.argument("name", type=click.Path(path_type=Path))
def worker_keys(name: Path) -> None:
    """A pair of keys for the link between a front and workers on other hosts: NAME.secret and NAME.public.

    The secret one stays on this machine, in a file of mode 0600. Example: cxls worker-keys front on the front's host,
    cxls worker-keys worker1 on a worker's; docs/workers.md says who needs which.
    """
    importlib.import_module("cxls.commands.worker_keys").run(name)


cli.add_command(
    _command(
        "view",
        "cxls.commands.view:run",
        [click.Argument(["files"], nargs=-1, required=True)],
        "FILE is an Eiger master, data, CXI or single-image HDF5 file, a glob or a .lst list. Nothing is written. "
        "Example: cxls view run12_master.h5, then open http://127.0.0.1:8080",
        compiles=True,
    )
)
cli.add_command(
    _command(
        "batch",
        "cxls.commands.batch:run",
        [click.Argument(["source"], nargs=-1, required=True)],
        "SOURCE is files, globs and .lst lists, as for cxls analyze. Example: cxls batch 'runs/*_master.h5' --out again"
        " --shard 0/2; cxls batch 'runs/*_master.h5' --out again --shard 1/2; cxls batch merge again",
        {
            "merge": _command(
                "batch merge",
                "cxls.commands.batch:merge",
                [click.Argument(["folder"], type=click.Path(path_type=Path), metavar="DIR")],
                "DIR is what cxls batch --out was given. Writes records.parquet, report.json and report.md into it.",
            )
        },
        compiles=True,
    )
)
cli.add_command(
    _command(
        "train",
        "cxls.commands.train:run",
        [click.Argument(["task"]), click.Argument(["paths"], nargs=-1, metavar="[PATH]...")],
        "Examples. The paper's hit network on a tree, cut to a quarter: cxls train peak --data my_set --split "
        "my_set/split.json --size 1024. The same on two GPUs: torchrun --nproc-per-node 2 -m cxls train peak --data "
        "my_set. Better hyper-parameters: cxls train energy --size 512 --tune 30. A bundle: cxls train all --out mine. "
        "A bundle adapted to a run: cxls train hit --finetune run12_master.h5 --bundle mine --out mine-run12",
    )
)
cli.add_command(
    _command(
        "calibrate",
        "cxls.commands.calibrate:run",
        [click.Argument(["source"], nargs=-1, required=True)],
        "SOURCE is as for cxls analyze; the jet runs, no crystals in it. Example: cxls calibrate tcp://detector:31001 "
        "--frames 2000 --out blank && cxls analyze tcp://detector:31001 --calibration blank.json --mask blank_mask.npy",
        compiles=True,
    )
)
cli.add_command(
    _command(
        "evaluate",
        "cxls.commands.evaluate:run",
        [
            click.Argument(["sources"], nargs=-1, required=True, metavar="SOURCE..."),
            _json_option(),
        ],
        "SOURCE is an Eiger master with truth (/entry/truth, or X_truth.npz beside it), a folder of masters or a glob. "
        "Example: cxls simulate runs/test --flux 3e6 --frames 200 && cxls evaluate runs/test_master.h5 --ideal "
        "--report runs/report. How well photon energy and camera length come out needs no series: cxls evaluate "
        "parameters --help",
        {
            "parameters": _command(
                "evaluate parameters",
                "cxls.commands.evaluate_parameters:run",
                [_json_option()],
                "The same seed gives the same figures. Examples: cxls evaluate parameters --conditions 5 --sums 1,1000 "
                "--scenarios none --repeats 20; cxls evaluate parameters --report runs/parameters",
            )
        },
    )
)
cli.add_command(_command("bench", "cxls.commands.bench:run", [click.Argument(["name"])], "cxls bench list names them."))
cli.add_command(
    _command(
        "soak",
        "cxls.commands.soak:run",
        [click.Argument(["files"], nargs=-1, metavar="[FILE]...")],
        "FILE is what to replay, as for cxls replay (default: 100 simulated frames). Examples: cxls soak --time 1h "
        "--rate max; cxls soak --time 10min --rate 100 --processes 2 --kills 20s",
    )
)
cli.add_command(
    _command(
        "figures",
        "cxls.commands.figures:run",
        [click.Argument(["topic"], type=click.Choice(["simulation", "paper"]))],
        "Examples: cxls figures simulation --only spot,powder --out /tmp/figures; cxls figures paper --conditions 1,2",
    )
)


@cli.group(
    epilog="Example, from nothing to a split: cxls data make-tree my_set --per-dataset 20 && cxls data check my_set && "
    "cxls data split my_set --out my_set/split.json"
)
def data() -> None:
    """Data sets to train on: check, count, label, overlay, split, simulate, convert.

    A PATH is a tree of the 2024 paper (images/{peaks,labels,peaks_water_overlay,water}/01 to 09), a series with
    truth (Eiger master), a folder of masters, or a glob of any.
    """


def _data_command(name: str, arguments: list[click.Parameter], epilog: str) -> None:
    function = name.replace("-", "_")
    data.add_command(_command(f"data {name}", f"cxls.commands.data:{function}", arguments, epilog))


def _paths() -> click.Argument:
    return click.Argument(["paths"], nargs=-1, required=True, metavar="PATH...")


_data_command("check", [_paths()], "A split is a PATH too. Example: cxls data check my_set runs/*_master.h5 split.json")
_data_command(
    "counts",
    [_paths(), click.Option(["--json", "as_json"], is_flag=True, help="as JSON")],
    "A tree is counted by the names of its files. Example: cxls data counts my_set --datasets 1,5-9 --json",
)
_data_command(
    "label",
    [_paths()],
    "A series is labelled from the true spots in its master. Example: cxls data label my_set --kind threshold --force",
)
_data_command(
    "overlay",
    [click.Argument(["tree"], type=click.Path(path_type=Path))],
    "Example, the paper's mistake beside the right way: cxls data overlay my_set --frozen-noise --force; "
    "cxls data check my_set; cxls data overlay my_set --force",
)
_data_command(
    "make-tree",
    [click.Argument(["out"], type=click.Path(path_type=Path))],
    "Writes OUT/images/... Example: cxls data make-tree my_set --per-dataset 30 --datasets 1,5",
)
_data_command(
    "split",
    [_paths()],
    "Example, the paper's shares: cxls data split my_set --train 0.8 --validation 0 --test 0.2 --out split.json",
)
_data_command(
    "export-tree",
    [
        click.Argument(["series"], nargs=-1, required=True, metavar="SERIES..."),
        click.Argument(["out"], type=click.Path(path_type=Path)),
    ],
    "Writes OUT/images/... Example: cxls data export-tree runs/*_master.h5 my_set",
)
data.add_command(
    _command(
        "data recover",
        "cxls.commands.recover:run",
        [click.Argument(["folders"], nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))],
        "DIR is what cxls analyze --hits was given. Example: cxls data recover runs/hits12",
    )
)


@cli.group()
def config() -> None:
    """Effective settings and where each came from."""


_config_option = click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file of settings")


@config.command("show")
@_config_option
def config_show(config_file: Path | None) -> None:
    """Print every setting of every command with its value and origin."""
    for name, outcome in resolve_all(config_file):
        click.echo(f"# cxls {name}")
        if isinstance(outcome, BadSettings):
            click.echo(f"  # not for this command: {outcome}")
            continue
        for key, origin in outcome.origin.items():
            click.echo(f"  {key} = {getattr(outcome.settings, key)!s:<28} # {origin}")


@config.command("check")
@_config_option
def config_check(config_file: Path | None) -> None:
    """Exit 0 when file and environment are good, 2 with one line when not."""
    resolve_all(config_file)
    click.echo("settings are good")


@cli.group()
def models() -> None:
    """Model bundles, single models, and the networks they are built from."""


class _FrameShape(click.ParamType[tuple[int, int]]):
    """A frame's slow and fast scan, as in 2162x2068."""

    name = "SSxFS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        sides = str(value).split("x")
        if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
            self.fail(f"{value!r} is no frame size; give slow scan x fast scan, for instance 2162x2068", param, ctx)
        return int(sides[0]), int(sides[1])


_shape_option = click.option("--shape", type=_FrameShape(), help="frame size, slow x fast scan  [default: 2163x2069]")
_set_option = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="a setting of the network, for instance variant=code"
)


@models.command("list")
def models_list() -> None:
    """Bundles that come with the program, and every network with its parameters, inputs and source."""
    importlib.import_module("cxls.commands.models").list_models()


@models.command(
    "show",
    epilog="Example: cxls models show paper-binary-cnn --shape 2162x2068; without WHAT, the default bundle's card.",
)
@click.argument("what", required=False)
@click.option("--markdown", is_flag=True, help="a bundle's card as a page to read")
@click.option("--json", "as_json", is_flag=True, help="a network's table as JSON; cards are JSON anyway")
@_shape_option
@_set_option
def models_show(
    what: str | None, markdown: bool, as_json: bool, shape: tuple[int, int] | None, settings: tuple[str, ...]
) -> None:
    """What a model is: WHAT is the folder of a bundle or of a single model, or the name of a network.

    Of a folder its card: how it was trained, how it performs. Of a network its layers, what leaves them, parameters and
    multiply-adds for one frame; this takes no memory, however large the network.
    """
    importlib.import_module("cxls.commands.models").show(what, markdown, as_json, shape, list(settings))


@models.command(
    "import",
    epilog="Example: cxls models import binary.pt --network paper-binary-cnn --out models/peak. FILE is what "
    "torch.save(network.state_dict(), FILE) wrote, or safetensors; nothing in it is run.",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--network", required=True, help="its name; `cxls models list` has them")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="folder to write the model to")
@click.option("--attribute", help="what it says of a frame: peak, energy, camera-length, peaks or a package's own")
@_shape_option
@click.option("--size", help="the middle of the frame that it was trained on, N or ROWSxCOLUMNS  [default: all of it]")
@click.option("--bin", type=click.IntRange(1, 64), default=1, help="edge of the squares of pixels added up, after that")
@_set_option
@click.option("--force", is_flag=True, help="replace the model that is there")
def models_import(
    file: Path,
    network: str,
    out: Path,
    attribute: str | None,
    shape: tuple[int, int] | None,
    size: str | None,
    bin: int,
    settings: tuple[str, ...],
    force: bool,
) -> None:
    """Weights of another program, such as those of the 2024 paper's authors, as a single model.

    Layers are told by their parameters' names where all are ours, otherwise by order and shape. --size and --bin say
    how frames were cut and binned for training, so that the model can be used on whole frames; --shape is what was
    left of them, which follows from --size where that is given.
    """
    framing = importlib.import_module("analyzer.framing")
    importlib.import_module("cxls.commands.networks").import_weights(
        file,
        network,
        out,
        attribute,
        shape,
        list(settings),
        force,
        framing.Framing(None if size is None else framing.parse_size(size), bin),
    )


models.add_command(
    _command(
        "models use",
        "cxls.commands.control:use",
        [click.Argument(["folder"], type=click.Path(path_type=Path), metavar="DIR")],
        "The analysis reads DIR itself: it has to be there under the same absolute path. Example: cxls models use "
        "runs/bundle --at http://127.0.0.1:8080 --token ~/.cxls-token",
    )
)


cli.add_command(
    _command(
        "control",
        "cxls.commands.control:change",
        [click.Argument(["action"]), click.Argument(["values"], nargs=-1, metavar="[VALUE]...")],
        "Examples, all with --token ~/.cxls-token and --at http://127.0.0.1:8080: cxls control threshold 0.6; cxls "
        "control peaks min_peaks=8 finder=peakfinder8 pf8_min_snr=5.5; cxls control channel threshold_2; cxls control "
        "mask hot-pixels; cxls control reset; cxls control run number=13 sample='lysozyme, batch 4'; cxls control run "
        "new notes='jet moved'; cxls control target hits=5000 indexed=none. A bundle: cxls models use --help",
    )
)


def listening(name: str, address: str) -> None:
    """Say on stderr where something can be reached; HOST:PORT, as the option has it, for HTTP."""
    where = address.removeprefix("http://")
    if logs.as_json():
        log.info("listening %s %s", name, where, extra=logs.event("listening", name=name, address=where))
    else:
        click.echo(f"listening {name} {where}", err=True)


REPEAT_S = 1.0
"""A signal so soon behind the first is the same one: `timeout` sends it to its child and then to the child's group."""


def stop_on_signals(*stops: threading.Event) -> list[int]:
    """Set these events on Ctrl-C or SIGTERM; the list then holds the signal's number.

    One that comes more than ``REPEAT_S`` after the first ends the process at once.
    """
    received: list[int] = []
    since = 0.0

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal since
        del frame
        if received:
            if time.monotonic() - since > REPEAT_S:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        since = time.monotonic()
        received.append(number)
        for event in stops:
            event.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return received


def _end(text: str, code: int) -> NoReturn:
    if logs.as_json():
        log.error("%s", text, extra=logs.event("ended", code=code))
    logs.settle()
    if not logs.as_json():
        click.echo(f"cxls: {text}", err=True)
    sys.exit(code)


def _terminated(number: int, frame: types.FrameType | None) -> NoReturn:
    del frame
    raise Interrupted(number)


def main() -> None:
    """Run the program; exit codes as documented in the README."""
    try:
        _main()
    except BaseException as error:
        # Told by the module that a device needs, as the commands' work is imported lazily.
        device = sys.modules.get("analyzer.cuda.device")
        if device is None or not device.any_lost():
            raise
        code: object = EXIT_FAILED
        if isinstance(error, SystemExit):
            code = error.code
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        logs.settle()
        device.leave(code if isinstance(code, int) else int(code is not None))
    device = sys.modules.get("analyzer.cuda.device")
    if device is not None and device.any_lost():
        logs.settle()
        device.leave(0)


def _main() -> None:
    logs.configure()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name in any language, a terminal of few letters
    try:
        # A shell that starts us in the background leaves SIGINT ignored; we still answer to it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _terminated)
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "cxls"
        message = error.format_message().rstrip(".")
        _end(f"{message}; see `{command} --help`", EXIT_USAGE)
    except BadSettings as error:
        _end(str(error), EXIT_USAGE)
    except Interrupted as error:
        sys.exit(128 + error.signal_number)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(128 + signal.SIGINT)
    except Failed as error:
        _end(str(error), EXIT_FAILED)
    except Exception as error:
        if _is_bad_input(error):
            _end(str(error), EXIT_USAGE)
        raise


def _is_bad_input(error: Exception) -> bool:
    """Whether an error of the packages is the user's input; told by name, as they are imported lazily."""
    return type(error).__name__ in ("BadInput", "BadBundle", "ResultsExist")
