"""A SLURM of one's own on this machine: controller, nodes and munge in a temporary folder, gone at the end.

`python -m tests.cluster.slurm` starts one and opens a shell that talks to it, or runs a COMMAND.
"""

from __future__ import annotations

import argparse
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

NEEDED = {"munged": "munge", **dict.fromkeys(("slurmctld", "slurmd", "sbatch", "srun"), "slurm-wlm")}
FOR_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core"}
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))

# Nodes claim the processors and GPUs that they are told to have: what is tried here is the scheduling. Where
# there are no cgroups, `OverMemoryKill` kills what uses more memory than its job asked for. `cred_expire` is
# also how long a requeued job waits. On the spare node, `urgent` jobs cancel `cheap` ones.
CONTROLLER = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
SlurmctldParameters=enable_configless=no
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
KillWait=10
JobRequeue=1
GresTypes=gpu
PartitionName=DEFAULT MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=main Nodes={nodes} Default=YES
PartitionName=gpu Nodes={nodes}
PartitionName=cheap Nodes=spare PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes=spare PriorityTier=2
"""
ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
AccountingStoreFlags=job_comment
"""
DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage}
StorageUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=32000"
    " Gres=gpu:2 State=UNKNOWN\n"
)


class ClusterError(Exception):
    """The cluster cannot be started, with what is to be done."""


def missing(accounting: bool = True) -> str:
    """What has to be installed first; empty where nothing has."""
    needed = NEEDED | (FOR_ACCOUNTING if accounting else {})
    packages = {package for command, package in needed.items() if not shutil.which(command, path=PATH)}
    if not packages:
        return ""
    return f"SLURM is not installed: apt-get install --no-install-recommends {' '.join(sorted(packages))}"


class Cluster:
    """A controller and some nodes.

    Args:
        folder: for configuration, state, sockets and logs; short, since sockets lie in it.
        nodes: how many, besides a spare one; each claims two GPUs, which are `/dev/null` and `/dev/zero`.
        cpus: processors that each claims.
        accounting: whether there is a database, which `sacct` reads, with the account `lab`.
    """

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 4, accounting: bool = False) -> None:
        self.folder = folder
        self.nodes = [*(f"node{number}" for number in range(1, nodes + 1)), "spare"]
        self.cpus = cpus
        self.accounting = accounting
        self.env = {
            **os.environ,
            "PATH": f"{folder}/bin{os.pathsep}{PATH}",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start munge, the controller and the nodes, and wait until they take jobs.

        Raises:
            ClusterError: something is not installed, or does not start.
        """
        if message := missing(self.accounting):
            raise ClusterError(message)
        self._configure()
        munge = [
            f"--{kind}={self.folder}/munge.{kind}" for kind in ("socket", "key-file", "pid-file", "log-file")
        ]
        self._launch("munged", "--foreground", "--force", *munge, f"--seed-file={self.folder}/munge.seed")
        self._await("munge.socket is there", (self.folder / "munge.socket").exists)
        if self.accounting:
            self._start_accounting()
        self._launch("slurmctld", "-D", "-c")
        self._await("the controller answers", lambda: "UP" in self("scontrol", "ping", check=False))
        for node in self.nodes:
            self._launch("slurmd", "-D", "-N", node)
        self._await(
            "the nodes are idle",
            lambda: (
                {*self("sinfo", "-hN", "-o", "%N %t").splitlines()} == {f"{node} idle" for node in self.nodes}
            ),
        )

    def stop(self) -> None:
        """Cancel what runs and stop the daemons, the nodes first."""
        if self._daemons:
            self("scancel", "--signal=KILL", f"--user={getpass.getuser()}", check=False)
            self("scancel", f"--user={getpass.getuser()}", check=False)
            time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons = []

    def __call__(self, *command: str, check: bool = True) -> str:
        """What a SLURM command prints.

        Raises:
            ClusterError: it fails, and `check` is true.
        """
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=300)
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def _configure(self) -> None:
        folder, host, user = self.folder, socket.gethostname().split(".")[0], getpass.getuser()
        (folder / "state").mkdir(parents=True)
        (folder / "bin").mkdir()
        srun = folder / "bin" / "srun"  # Snakemake's job steps drop SLURM_CONF from its environment
        found = shutil.which("srun", path=PATH)
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {found} "$@"\n')
        srun.chmod(0o755)
        folder.chmod(0o755)  # munge refuses a socket that others can replace
        key = folder / "munge.key-file"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        controller, self._database, storage, *nodes = free_ports(3 + len(self.nodes))
        self._storage = storage
        known = {"folder": folder, "host": host, "user": user}
        text = CONTROLLER.format(port=controller, nodes=",".join(self.nodes[:-1]), **known)
        text += "".join(
            NODE.format(name=name, port=port, cpus=self.cpus, **known)
            for name, port in zip(self.nodes, nodes, strict=True)
        )
        if self.accounting:
            text += ACCOUNTING.format(port=self._database, **known)
            database = folder / "slurmdbd.conf"
            database.write_text(DATABASE.format(port=self._database, storage=storage, **known))
            database.chmod(0o600)
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text(
            "AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
        )

    def _start_accounting(self) -> None:
        data, user = self.folder / "mariadb", getpass.getuser()
        data.mkdir()
        self._launch(
            "mariadbd",
            "--no-defaults",
            f"--user={user}",
            f"--datadir={data}",
            f"--socket={data}/socket",
            f"--port={self._storage}",
            "--bind-address=127.0.0.1",
            "--skip-grant-tables",
            "--skip-log-bin",
        )
        self._await("the database answers", lambda: listens(self._storage))
        self._launch("slurmdbd", "-D")
        self._await("the accounting answers", lambda: listens(self._database))
        for what in ("cluster test", "account lab", f"user {user} account=lab"):
            self("sacctmgr", "--immediate", "add", *what.split())

    def _launch(self, *command: str) -> None:
        with open(self.folder / "daemons.log", "ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
            )

    def _await(self, what: str, true: Callable[[], bool], seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if true():
                return
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if dead:
                break
            time.sleep(0.2)
        logs = "".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}\n"
            for log in self.folder.glob("*.log")
        )
        raise ClusterError(f"the cluster did not come so far that {what}\n{logs}")


def _die_with_parent() -> None:
    """Have the kernel stop this process when the one that started it is gone, however it went."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def listens(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a cluster, run a command that talks to it, stop the cluster."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.slurm", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=4, help="processors that each node claims")
    parser.add_argument("--accounting", action="store_true", help="with a database, which sacct reads")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="default: a shell")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="kdpipe-slurm-") as folder:
        try:
            with Cluster(Path(folder), asked.nodes, asked.cpus, asked.accounting) as cluster:
                return subprocess.run(
                    asked.command or [os.environ.get("SHELL", "sh")], env=cluster.env
                ).returncode
        except ClusterError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
