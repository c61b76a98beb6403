"""A study through SLURM, its jobs stopped in every way there is: the table of one machine, undisturbed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from kdpipe.core.paths import RunPaths
from kdpipe.plan.config import Config
from tests.cluster.conftest import SITE, SOON, TABLE, ClusterProject, make_long
from tests.workflow.conftest import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Disturber(threading.Thread):
    """Does something to the job of each run that waits for it.

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
                    if found := self.project.paused.waiting(part):
                        process, self.jobs[part] = found
                        self.left.discard(part)
                        self.harm[part](self.project.cluster, self.jobs[part], process)
        except Exception as error:  # for the test to show
            self.error = error


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


def starve(cluster, job, process):
    """Nothing to do: it seems to use more memory than its job asked for, until SLURM sees that."""


def evict(cluster, job, process):
    """A job that may take the node from it, for good."""
    cluster("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")


def tables(project):
    """The bytes of a project's tables, and of what each run left."""
    results = project.root / "results"
    files = [*(results / "studies").glob("*/table.*"), *(results / "runs").glob("*/model.safetensors")]
    files += (results / "runs").glob("*/predictions.npz")
    return {file.relative_to(results): file.read_bytes() for file in files}


@dataclass
class Record:
    """What the accounting has of a job.

    Attributes:
        states: how it ended, each time that it ran.
        megabytes: of memory that it asked for.
        what: its rule and wildcards, where it is one of Snakemake's.
    """

    states: list[str]
    megabytes: float
    what: str


def records(cluster):
    """Job -> its record."""
    command = ["sacct", "-nX", "--starttime=now-1day", "--parsable2", "--duplicates", "--units=M"]
    found = {}
    for line in cluster(*command, "--format=JobIDRaw,State,ReqMem,Comment").splitlines():
        job, state, memory, what = line.split("|")
        record = found.setdefault(job, Record([], float(memory.rstrip("M")), ""))
        record.states.append(state.split()[0])
        record.what = what
    return found


MEMORY = 5000  # megabytes, where a training's job asks for 4000
HARM = {
    1: {
        "_resnet14_standard_s0": (evict, ["PREEMPTED"]),
        "_scratch_s0": (preempt, ["REQUEUED", "COMPLETED"]),
        "_kd_standard_s0": (time_out, ["TIMEOUT"]),
        "_dkd_standard_s0": (kill, ["FAILED"]),
        "_kd_standard_e1_s0": (warn, ["FAILED"]),
    },
    3: {
        "_resnet14_standard_s0": (starve, ["FAILED"]),
        "_scratch_s0": (preempt, ["REQUEUED", "COMPLETED"]),
        "_dkd_standard_s0": (kill, ["FAILED"]),
    },
}


@pytest.mark.parametrize("pack", [size for size in HARM if size == 1 or "pack" in Config.model_fields])
def test_whatever_happens_to_its_jobs_the_table_is_that_of_one_machine(cluster, local, tmp_path, pack):
    pauses = {part: MEMORY * (harm is starve) for part, (harm, _) in HARM[pack].items()}
    rules = {"train_teacher": {"partition": "cheap"}}
    site = {**SITE, "pack": pack, "cluster": {**SITE["cluster"], "rules": rules}}
    project = ClusterProject(make_long(tmp_path).root, cluster, site, pauses)
    before = records(cluster)
    disturber = Disturber(project, {part: harm for part, (harm, _) in HARM[pack].items()})
    disturber.start()
    done = project.slurm(TABLE)
    disturber.over.set()
    disturber.join()
    assert disturber.error is None
    assert done.returncode == 0, done.stdout + done.stderr
    assert not disturber.left
    assert tables(project) == tables(local)
    ended = {job: record for job, record in records(cluster).items() if job not in before and record.what}
    for part, (harm, outcome) in HARM[pack].items():
        (folder,) = (tmp_path / "results" / "runs").glob(f"*{part}*")
        assert "goes on after epoch" in (folder / "train.log").read_text(), part
        assert not RunPaths(folder).state.exists()
        job = ended[disturber.jobs[part]]
        assert job.states == outcome, part
        asked = [other.megabytes for other in ended.values() if other.what == job.what]
        again = [] if harm is preempt else [2 * asked[0]]
        assert asked == [asked[0], *again], part
    failed = [job for job, record in ended.items() if "COMPLETED" not in record.states]
    assert len(ended) - len(failed) == len({record.what for record in ended.values()})  # none is done twice
    logs = {file.stem: file.read_text() for file in (tmp_path / "results/logs/slurm").rglob("*.log")}
    assert sorted(logs) == sorted(failed)  # those of others are deleted
    starved = [job for job, log in logs.items() if "exceeded memory limit" in log]
    assert starved == [disturber.jobs[part] for part, (harm, _) in HARM[pack].items() if harm is starve]
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


def test_two_hundred_jobs_and_none_is_stuck_or_doubled(cluster, long, tmp_path):
    (tmp_path / "Snakefile").write_text(MANY)
    command = [sys.executable, SOON, "--directory", tmp_path, "-s", tmp_path / "Snakefile"]
    command += ["--workflow-profile", ROOT / "workflow/profiles/slurm", "--latency-wait", "10"]
    done = run([*command, "--slurm-init-seconds-before-status-checks", "1"], cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    started = (tmp_path / "started.txt").read_text().split()
    assert sorted(started, key=int) == [str(n) for n in range(200)]
