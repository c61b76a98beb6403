"""Seconds to plan a large study and to work out its jobs: `kdpipe plan`, and `snakemake -n` by profile.

The study is made up (no training, no data), its names are not: CIFAR-100, real networks, recipes and
methods, as many pairs and seeds as it takes. With `--finished` every file that the jobs would write is made
up too, and Snakemake records it as up to date; then there is nothing to do, and it is measured how soon a
call knows that.

    python -m benchmarks orchestration --runs 10000 --finished
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Took, call, python
from benchmarks.project import START, Project

TEACHERS = ("resnet32x4", "wrn_40_2", "resnet110", "resnet56", "vgg13")
STUDENTS = ("resnet8x4", "wrn_16_2", "resnet20", "resnet32", "vgg8")
RECIPES = ("standard", "soteacher", "mixup", "label_smoothing")
LOGITS = ("scratch", "kd", "dkd", "mlld", "ttm", "wttm", "dist", "mse", "binarykl", "dhkd", "dml")
FEATURES = ("at", "cc", "crd", "fitnet", "nst", "ofd", "pkt", "reviewkd", "rkd", "sp", "vid")
METHODS = (*LOGITS, *FEATURES)
PROFILES = ("local", "slurm")
# before that, for `--touch` to take no 0.1 s for each job, and for nothing to follow: no tables, no tracking
TOUCH = (
    "import snakemake.api; from snakemake.executors.touch import Executor; Executor.SLEEPING_TIME = 0; "
    "from snakemake.workflow import Workflow; Workflow.onsuccess = lambda self, after: after; "
)


def grid(runs: int) -> dict[str, list[Any]]:
    """Pairs and seeds with which a study has about so many runs."""
    per_pair = len(RECIPES) * len(METHODS)
    pairs = [{"teacher": t, "student": s} for t in TEACHERS for s in STUDENTS][: max(1, runs // per_pair)]
    return {"pairs": pairs, "seeds": list(range(max(1, round(runs / (per_pair * len(pairs))))))}


def made_up(root: Path, runs: int) -> Project:
    """A project with one study of about `runs` runs."""
    project = Project(root)
    study = {
        "title": "Many runs",
        "dataset": "cifar100",
        "protocol": "crd240",
        **grid(runs),
        "recipes": RECIPES,
        "methods": METHODS,
        "metrics": ["top1", "nll", "agreement"],
    }
    project.write({"many": study})
    return project


def finish(project: Project) -> None:
    """Make up every output of a project's jobs, and let Snakemake record that they are up to date."""
    _header, *files = project.snakemake("local", "--summary").output.splitlines()
    for line in files:
        name, *rest = line.split("\t")
        file = project.root / name
        if rest and file.suffix:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"status": "finished"}')
        elif rest:
            file.mkdir(parents=True, exist_ok=True)
    project.snakemake("local", "--touch", "--forceall", "--quiet", "all", start=TOUCH + START)


def measure(runs: int, *, finished: bool = False, profiles: tuple[str, ...] = PROFILES) -> Iterator[Figure]:
    """Processor seconds for a study of about `runs` runs, and how many times that imports torch."""
    import_torch = call(python("-c", "import torch")).processor

    def figure(name: str, took: Took) -> Figure:
        return Figure(
            "orchestration", f"{name}, {planned} runs", took.processor, "s", took.processor / import_torch
        )

    with tempfile.TemporaryDirectory() as folder:
        project = made_up(Path(folder), runs)
        cold, warm = project.kdpipe("plan"), project.kdpipe("plan")
        planned = _runs(warm)
        yield figure("kdpipe plan, new", cold)
        yield figure("kdpipe plan, again", warm)
        for profile in profiles:
            dry = project.snakemake(profile, "-n")
            yield figure(f"snakemake -n, profile {profile}", dry)
        if finished:
            finish(project)
            yield figure("snakemake -n, all finished", _nothing_to_do(project))
            yield figure("kdpipe plan, all finished", project.kdpipe("plan"))


def _runs(plan: Took) -> int:
    """How many runs `kdpipe plan` speaks of."""
    found = re.search(r"^  ([\d,]+) runs? ", plan.output, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"kdpipe plan names no number of runs:\n{plan.output[:2000]}")
    return int(found[1].replace(",", ""))


def _nothing_to_do(project: Project) -> Took:
    took = project.snakemake("local", "-n")
    if "Nothing to be done" not in took.output:
        raise RuntimeError(f"a finished study still has jobs:\n{took.output[-2000:]}")
    return took
