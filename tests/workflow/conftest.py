"""A small project in a folder of its own, run by the real Snakefile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STUDY = {
    "title": "Tiny",
    "dataset": "digits",
    "protocol": "tiny",
    "seeds": [0],
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "recipes": ["standard"],
    "methods": ["scratch", "kd", "dkd"],
    "settings": {"dkd": {"beta": 2.0}},
    "curves": [{"method": "kd", "epochs": [1, 2]}],
    "metrics": ["top1", "nll", "agreement"],
}
PROTOCOL = {
    "title": "Tiny",
    "source": "these tests",
    "settings": {
        "lr": 0.05,
        "momentum": 0.9,
        "epochs": 2,
        "batch_size": 64,
        "augmentation": [{"crop": {"padding": 1}}],
    },
}


@dataclass
class Project:
    """A folder with settings and results.

    Attributes:
        root: the folder.
    """

    root: Path

    def study(self, name="tiny", **changes):
        """Write a study file: the tiny one with changes."""
        file = self.root / "config" / "studies" / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**STUDY, **changes}))
        return file

    def snakemake(self, *arguments, config=(), env=None):
        """Call Snakemake on this folder."""
        command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "--directory", self.root]
        command += ["--workflow-profile", ROOT / "workflow/profiles/local", "--cores", "2", *arguments]
        if config:
            command += ["--config", *config]
        return run(command, env)

    def kdpipe(self, *arguments, env=None):
        """Call the command line in this folder."""
        return run([sys.executable, "-m", "kdpipe", *arguments], env, cwd=self.root)

    def planned(self, *arguments, config=(), env=None):
        """What the jobs of a dry run say they do."""
        done = self.snakemake("-n", *arguments, config=config, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return jobs(done.stdout + done.stderr)


def run(command, env=None, cwd=ROOT):
    """Run a command, its output kept; data are looked for where a project has them."""
    here = {key: value for key, value in os.environ.items() if key != "KDPIPE_DATA"}
    environment = {**here, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def eventually(check, pause=0.01):
    """What a check gives once that is true; a test that waits in vain ends by pytest's own time limit."""
    while not (found := check()):
        time.sleep(pause)
    return found


def jobs(text):
    """What every job of a dry run says it does, hashes left out: `distil student_...`, sorted."""
    found = re.findall(r"^Job \d+: (.*)$", text, re.MULTILINE)
    return sorted(re.sub(r"-[0-9a-f]{12}", "", job) for job in found)


def make_project(root):
    """A new project in `root`."""
    for folder in ("studies", "protocols"):
        (root / "config" / folder).mkdir(parents=True)
    (root / "config" / "protocols" / "tiny.yaml").write_text(yaml.safe_dump(PROTOCOL))
    (root / "config" / "config.yaml").write_text(yaml.safe_dump({"studies": ["tiny"]}))
    shutil.copy(ROOT / "config" / "scales.yaml", root / "config")
    project = Project(root)
    project.study()
    return project


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Keep the tests of the finished project on one worker, so that it runs once."""
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("finished"))


@pytest.fixture
def project(tmp_path):
    """A project that has not run."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A project that has run to its end; tests must leave it as it is."""
    project = make_project(tmp_path_factory.mktemp("finished"))
    project.done = project.snakemake()
    assert project.done.returncode == 0, project.done.stdout + project.done.stderr
    return project
