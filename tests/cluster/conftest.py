"""A cluster on this machine, and projects that send their jobs to it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import InitVar, dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.slurm import Cluster, missing
from tests.pausing import Pauses
from tests.workflow.conftest import PROTOCOL, ROOT, Project, make_project, run

TABLE = "results/studies/tiny/table.html"
SOON = Path(__file__).with_name("snakemake_soon.py")
# What a job on a node must not do; what it tries all the same is kept.
OFFLINE = """
import os, socket

def refuse(*asked, **_):
    with open({attempts!r}, "a") as file:
        print(os.environ["SLURM_JOB_ID"], asked, file=file)
    raise OSError("compute jobs have no network")

if "SLURM_JOB_ID" in os.environ:
    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""
SITE = {
    "gpus": 1,
    "device": "cpu",  # the cluster's GPUs are none
    "cluster": {
        "jobs": {"account": "lab"},
        "gpu_jobs": {"partition": "gpu"},
        "least_minutes": 5,
        "most_mem_mb": 24000,
    },
}


@dataclass
class ClusterProject(Project):
    """A project whose jobs go to SLURM.

    Attributes:
        cluster: where they go.
        site: what the site file says.
        pauses: trainings that wait to be disturbed; Pauses' `parts`.
    """

    cluster: Cluster
    site: dict
    pauses: InitVar[dict]

    def __post_init__(self, pauses):
        offline = OFFLINE.format(attempts=str(self.root / "network.txt"))
        self.paused = Pauses(self.root / "guard", pauses, offline)

    def slurm(self, *arguments, config=()):
        """Call Snakemake with the profile for SLURM."""
        site = self.root / "site.yaml"
        site.write_text(yaml.safe_dump(self.site))
        command = [sys.executable, SOON, "-s", ROOT / "Snakefile", "--directory", self.root]
        command += ["--workflow-profile", ROOT / "workflow/profiles/slurm", "--configfile", site]
        command += ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10", *arguments]
        if config:
            command += ["--config", *config]
        return run(command, {**self.cluster.env, "PYTHONPATH": self.paused.path})

    def network(self):
        """What jobs asked of the network."""
        file = self.root / "network.txt"
        return file.read_text() if file.exists() else ""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Keep the tests of the cluster on one worker, so that it starts once."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(scope="session")
def cluster():
    """A controller and two nodes, with accounting."""
    if message := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="kdpipe-slurm-"))  # sockets lie in it: pytest's own are too deep
    try:
        with Cluster(folder, accounting=True) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """The tables that the same study has on one machine."""
    return trained(make_long(tmp_path_factory.mktemp("local")))


def trained(project):
    """A project that has run to its end on this machine."""
    done = project.snakemake(TABLE)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def make_long(root):
    """A project with five trainings that are long enough to be disturbed."""
    project = make_project(root)
    project.study(curves=[{"method": "kd", "epochs": [1]}], settings={"dkd": {"beta": 2.0, "warmup": 1}})
    settings = {**PROTOCOL["settings"], "epochs": 4}
    file = root / "config" / "protocols" / "tiny.yaml"
    file.write_text(yaml.safe_dump({**PROTOCOL, "settings": settings}))
    shutil.copy(ROOT / "config" / "throughput.yaml", root / "config")
    return project


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the tests that take many minutes")


@pytest.fixture
def long(request):
    """Skips a test that takes many minutes, unless it is asked for."""
    if not request.config.getoption("--long", default=False):
        pytest.skip("many minutes: make cluster-test ARGS=--long")
