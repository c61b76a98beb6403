"""A study through SLURM, its jobs stopped in every way there is: the table of one machine, undisturbed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kdpipe.core.paths import RunPaths
from kdpipe.plan.config import Config
from tests.cluster.conftest import SITE, SOON, TABLE, ClusterProject, make_long
from tests.workflow.conftest import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Disturber(threading.Thread):
    """Does something to the job of each run once it has trained an epoch; until then, the training waits.

    Args:
        project: whose jobs.
        harm: part of a run's name -> what is done to its job.
    """

    def __init__(self, project, harm):
        super().__init__(daemon=True)
        self.project, self.harm, self.left, self.over = project, harm, set(harm), threading.Event()
        self.jobs, self.error = {}, None

    def run(self):
        try:
            while self.left and not self.over.wait(0.05):
                for part in list(self.left):
                    self.look_at(part)
        except Exception as error:  # for the test to show
            self.error = error

    def look_at(self, part):
        for folder in (self.project.root / "results" / "runs").glob(f"*_{part}-*"):
            paths = RunPaths(folder)
            if paths.status.exists() or not list(paths.state.glob("*.state")):
                continue
            if found := training(folder):
                process, self.jobs[part] = found
                os.kill(process, signal.SIGSTOP)
                self.harm[part](self.project.cluster, self.jobs[part], process)
                self.left.discard(part)


def training(folder):
    """The process that trains a run, known by the lock that it holds, and the job that it belongs to."""
    lock = str(folder.resolve() / ".lock")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(file) == lock for file in (process / "fd").iterdir()):
                variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
                return int(process.name), dict(v.split("=", 1) for v in variables if "=" in v)["SLURM_JOB_ID"]
        except OSError:
            continue
    return None


def preempt(cluster, job, process):
    cluster("scontrol", "requeue", job)


def warn(cluster, job, process):
    """SLURM's early signal, as `--signal=USR1@120` sends it."""
    cluster("scancel", "--signal=USR1", job)
    os.kill(process, signal.SIGCONT)


def time_out(cluster, job, process):
    """The end of its time: SLURM looks every half minute, and sends SIGCONT and SIGTERM."""
    soon = datetime.now() + timedelta(seconds=1)
    cluster("scontrol", "update", f"JobId={job}", f"EndTime={soon:%Y-%m-%dT%H:%M:%S}")


def kill(cluster, job, process):
    os.kill(process, signal.SIGKILL)


def tables(project):
    """The bytes of a project's tables, and of what each run left."""
    results = project.root / "results"
    files = [*(results / "studies").glob("*/table.*"), *(results / "runs").glob("*/model.safetensors")]
    files += (results / "runs").glob("*/predictions.npz")
    return {file.relative_to(results): file.read_bytes() for file in files}


def states(cluster):
    """Job -> the states that the accounting has, one for each time that it ran."""
    listed = cluster(
        "sacct", "-nX", "--starttime=now-1day", "--parsable2", "--duplicates", "--format=JobIDRaw,State"
    )
    found = {}
    for line in listed.splitlines():
        job, state = line.split("|")
        found.setdefault(job, []).append(state.split()[0])
    return found


HARM = {
    1: {
        "scratch_s0": (preempt, ["REQUEUED", "COMPLETED"]),
        "kd_standard_s0": (time_out, ["TIMEOUT"]),
        "dkd_standard_s0": (kill, ["FAILED"]),
        "kd_standard_e1_s0": (warn, ["FAILED"]),
    },
    3: {"scratch_s0": (preempt, ["REQUEUED", "COMPLETED"]), "dkd_standard_s0": (kill, ["FAILED"])},
}


@pytest.mark.parametrize("pack", [size for size in HARM if size == 1 or "pack" in Config.model_fields])
def test_whatever_happens_to_its_jobs_the_table_is_that_of_one_machine(cluster, local, tmp_path, pack):
    rules = {"train_teacher" if pack == 1 else "train_pack": {"mem_mb": 300 * pack}}
    site = {**SITE, "cluster": {**SITE["cluster"], "rules": rules}}
    if pack > 1:
        site["pack"] = pack
    project = ClusterProject(make_long(tmp_path).root, cluster, site)
    before = states(cluster)
    disturber = Disturber(project, {part: harm for part, (harm, _) in HARM[pack].items()})
    disturber.start()
    done = project.slurm(TABLE)
    disturber.over.set()
    disturber.join()
    assert disturber.error is None
    assert done.returncode == 0, done.stdout + done.stderr
    assert not disturber.left, "a training ended before it could be disturbed"
    assert tables(project) == tables(local)
    ended = {job: how for job, how in states(cluster).items() if job not in before}
    for part, (_, outcome) in HARM[pack].items():
        (folder,) = (tmp_path / "results" / "runs").glob(f"*_{part}-*")
        assert "goes on after epoch" in (folder / "train.log").read_text(), part
        assert not RunPaths(folder).state.exists()
        assert ended[disturber.jobs[part]] == outcome, part
    logs = [file.read_text() for file in (tmp_path / "results/logs/slurm").rglob("*.log")]
    assert len(logs) == sum("COMPLETED" not in how for how in ended.values())  # those of failed jobs are kept
    assert any("exceeded memory limit" in log for log in logs)
    assert list((tmp_path / "results/logs/slurm").glob("efficiency_report*"))
    assert not project.network()


MANY = """
rule all:
    input:
        expand("out/{n}", n=range(200)),
    localrule: True


rule one:
    output:
        "out/{n}",
    resources:
        mem_mb=300,  # Snakemake's own process in the job takes 110
        runtime=5,
    shell:
        "echo {wildcards.n} >> started.txt && touch {output}"
"""


@pytest.mark.timeout(3600)
def test_two_hundred_jobs_and_none_is_stuck_or_doubled(cluster, long, tmp_path):
    (tmp_path / "Snakefile").write_text(MANY)
    command = [sys.executable, SOON, "--directory", tmp_path, "-s", tmp_path / "Snakefile"]
    command += ["--workflow-profile", ROOT / "workflow/profiles/slurm", "--latency-wait", "10"]
    done = run([*command, "--slurm-init-seconds-before-status-checks", "1"], cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    started = (tmp_path / "started.txt").read_text().split()
    assert sorted(started, key=int) == [str(n) for n in range(200)]
