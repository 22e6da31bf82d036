"""``cxls worker``: frames of a front on this or another machine."""

import logging
import os
import re
import socket
import threading

import click
import torch

from analyzer.cascade import MOST_FRAMES
from analyzer.crew.curve import WorkerKeys
from analyzer.crew.worker import Refused, Worker
from analyzer.web.worker_server import WorkerServer
from cxls import allocator
from cxls.cli import Failed, Interrupted, listening, stop_on_signals
from cxls.commands.analyze import CPU_BATCH, DEVICE_WORKERS, bind_or_refuse, choose_device
from cxls.compilation import compilation
from cxls.crew import LocalWorkers
from cxls.key_files import read_worker_keys
from cxls.makers import Makers
from cxls.open_files import raise_limit
from cxls.service import open_notifier
from cxls.settings import BadSettings, Resolved, WorkerSettings

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"tcp://[^/\s:]+:(?P<port>[0-9]{1,5})|tcp://\[[0-9a-fA-F:]+\]:(?P<port6>[0-9]{1,5})|ipc://.+")

_LOOK_S = 0.5


def run(resolved: Resolved[WorkerSettings], address: str) -> None:
    """Work until a signal comes, or with ``once`` until the front's run is over."""
    raise_limit()
    settings = resolved.settings
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"] or found["port6"] or 1) < 65536:
        raise BadSettings(f"{address}: give the front's address for workers, for instance tcp://front:31100")
    device = choose_device(settings.device)
    alone = device == "cuda" or settings.once
    keys = _keys_of(settings)
    processes = settings.processes or (1 if alone else len(os.sched_getaffinity(0)))
    stop = threading.Event()
    interrupted = stop_on_signals(stop)
    if processes > 1:
        _supervise(settings, address, processes, stop)
    else:
        _work(settings, address, device, stop, keys)
    if interrupted:
        raise Interrupted(interrupted[0])


def _supervise(settings: WorkerSettings, address: str, processes: int, stop: threading.Event) -> None:
    """Processes of one worker each, started again when they end."""
    if settings.once:
        raise BadSettings("--once: with --processes 1 only; several are started again when they end")
    arguments = ["--device", settings.device, "--processes", "1", "--threads", str(settings.threads)]
    arguments += ["--batch", str(settings.batch)]
    for option, path in (("--worker-key", settings.worker_key), ("--front-key", settings.front_key)):
        arguments += [] if path is None else [option, str(path)]
    workers = LocalWorkers(address, processes, arguments, name=settings.name, listen=settings.listen)
    workers.start()
    click.echo(f"{processes} workers for {address}; Ctrl-C ends them", err=True)
    notifier = open_notifier(
        lambda: not stop.is_set(),
        workers.pulse.longest,
        lambda: f"{workers.running} of {processes} workers for {address}, {workers.restarts} started again",
    )
    try:
        while not stop.wait(_LOOK_S) and not workers.refused.is_set():
            pass
    finally:
        workers.close()
        if notifier is not None:
            notifier.close()
    if workers.refused.is_set():
        raise BadSettings("a worker refuses these settings; it says above why")


def _keys_of(settings: WorkerSettings) -> WorkerKeys | None:
    if settings.worker_key is None and settings.front_key is None:
        return None
    if settings.worker_key is None or settings.front_key is None:
        raise BadSettings(
            "--worker-key and --front-key: give both, this worker's secret key and the front's public one"
        )
    return read_worker_keys(settings.worker_key, settings.front_key)


def _work(settings: WorkerSettings, address: str, device: str, stop: threading.Event, keys: WorkerKeys | None) -> None:
    bound = bind_or_refuse(settings.listen) if settings.listen else None
    allocator.settle()
    torch.set_num_threads(1)
    makers = Makers(device, (), ())
    worker = Worker(
        address,
        makers.make,
        name=settings.name or f"{socket.gethostname()}-{os.getpid()}",
        threads=settings.threads or (DEVICE_WORKERS if device == "cuda" else 1),
        batch_frames=settings.batch or (MOST_FRAMES if device == "cuda" else CPU_BATCH),
        once=settings.once,
        keys=keys,
    )
    server = None
    if bound is not None:
        server = WorkerServer(bound, worker)
        listening("http", server.address)
    notifier = open_notifier(
        # It serves whether or not there is a front yet.
        lambda: not stop.is_set(),
        worker.pulse.longest,
        lambda: f"{'ready for' if worker.ready else 'not ready for'} {address}, {worker.load.frames} images analysed",
    )
    try:
        worker.run(stop)
    except OSError as error:
        raise BadSettings(f"{error}; give the front's address for workers") from None
    except Refused as error:
        raise Failed(str(error)) from None
    finally:
        compilation.done()
        if notifier is not None:
            notifier.close()
        if server is not None:
            server.close()
    log.info("%d images analysed in %.0f s of work", worker.load.frames, worker.load.seconds)
