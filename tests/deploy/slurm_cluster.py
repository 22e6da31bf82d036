"""A SLURM of two nodes on this machine's loopback: munged, slurmctld and two slurmd of Debian's packages, as root.

    python -m tests.deploy.slurm_cluster          start one, print what a shell needs to use it, stop on Ctrl-C

Everything lies in a temporary folder and ends with it. Packages: slurmctld slurmd slurm-client munge.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "scancel", "squeue", "scontrol")
READY_S = 60.0

_CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
InactiveLimit=0
KillWait=5
MessageTimeout=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


@dataclass(frozen=True)
class Cluster:
    """A running one. Its commands need ``environment``."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: object, timeout_s: float = 120) -> str:
        """What a command says. Raises ``RuntimeError`` with its errors where it fails."""
        words = [str(word) for word in command]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=timeout_s)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def wait(self, job: str, timeout_s: float = 120) -> dict[str, str]:
        """Facts of a job, of an array's last task, once it and all its tasks are over."""
        deadline = time.monotonic() + timeout_s
        while self.run("squeue", "--noheader", "--jobs", job, "--states", "PENDING,RUNNING,COMPLETING").strip():
            if time.monotonic() > deadline:
                raise RuntimeError(f"job {job} is not over:\n{self.run('scontrol', 'show', 'job', job)}")
            time.sleep(0.2)
        words = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[-1].split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def cluster(cpus: int = 8) -> Iterator[Cluster]:
    """Start one, each node with so many CPUs, whatever this machine has, and stop it. Raises ``RuntimeError``."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    # Daemons of another one on this machine keep their ports.
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=64000 State=UNKNOWN"
        for name, port in zip(NODES, ports, strict=True)
    )
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(host=host, controller=controller, folder=folder, nodes=nodes, names=",".join(NODES))
    )
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "CXLS_", "SBATCH_"))
    }
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "LC_ALL": "C.UTF-8"}
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def daemon(*command: str) -> None:
            log = stack.enter_context((folder / f"{command[0]}-{command[-1]}.out".replace("/", "_")).open("wb"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.callback(_end, process)

        daemon(*munged)
        _wait(lambda: (folder / "munge.socket").exists(), folder)
        daemon("slurmctld", "-D")
        for name in NODES:
            daemon("slurmd", "-D", "-N", name)
        ours = Cluster(folder, environment)
        _wait(lambda: _idle(ours), folder)
        stack.callback(_cancel, ours)
        yield ours


def _cancel(ours: Cluster) -> None:
    """End what still runs, while there are daemons to end it."""
    with contextlib.suppress(RuntimeError, subprocess.SubprocessError):
        ours.run("scancel", "--signal=KILL", "--full", "--user", "root", timeout_s=10)
        ours.run("scancel", "--user", "root", timeout_s=10)
        deadline = time.monotonic() + 10
        while ours.run("squeue", "--noheader", timeout_s=10).strip() and time.monotonic() < deadline:
            time.sleep(0.1)


def _idle(ours: Cluster) -> bool:
    with contextlib.suppress(RuntimeError):
        return ours.run("sinfo", "--noheader", "--format", "%T", "--Node").split() == ["idle"] * len(NODES)
    return False


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if time.monotonic() > deadline:
            logs = [f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}" for path in folder.glob("*.[lo][ou]*")]
            raise RuntimeError("SLURM did not start:\n" + "\n".join(logs))
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> Sequence[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main() -> None:
    """Start one and say how to use it, until a signal comes."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with cluster() as ours:
        print(f"export SLURM_CONF={ours.folder}/slurm.conf", flush=True)
        print("two nodes are idle; Ctrl-C ends them", file=sys.stderr)
        stop.wait()


if __name__ == "__main__":
    main()
