"""The plan, and look-ups into it; everything else is in the package."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kdpipe.core.errors import KdpipeError
from kdpipe.core.ids import canonical
from kdpipe.core.paths import Results
from kdpipe.plan.config import check_config
from kdpipe.plan.imported import store_of
from kdpipe.plan.load import load_plan, study_digest

# jobs run the `kdpipe` of the environment that runs Snakemake
shell.prefix(f"export PATH={os.path.dirname(sys.executable)}:$PATH; ")

try:
    CONFIG = check_config(config)
    PLAN, PLAN_FILE = load_plan(CONFIG)
except KdpipeError as error:
    raise WorkflowError(f"{error}") from None

RESULTS = CONFIG.results
TRACKING = f"--uri {CONFIG.tracking}" if CONFIG.tracking else ""


wildcard_constraints:
    teacher=r"teacher_[^/]+",
    student=r"student_[^/]+",
    imported=r"imported_[^/]+",
    part=r"part_[^/]+",
    run=r"(teacher|student|imported)_[^/]+",
    epoch=r"\d{4}",
    study=r"[^/]+",
    data=r"[^/]+",
    diagram=r"reliability|tsne|correlation|gradients",


# Snakemake compares `params` between calls, except those of functions that read `input`. So the settings
# that make the numbers are tracked (`spec`), and what only says how to make them is not (`input` is read).


def spec(name):
    return canonical(PLAN.runs[name].run.spec.model_dump(mode="json"))


def run_json(name):
    return canonical(PLAN.runs[name].run.model_dump(mode="json"))


def data_of(name):
    return f"{RESULTS}/data/{PLAN.runs[name].data}"


def teacher_of(name):
    return f"{RESULTS}/{PLAN.teacher_place(name)}"


def taught_by(name):
    """The options of `kdpipe train` that name the weights of a run's teacher, and of the part on top of it."""
    options = [f"--teacher {RESULTS}/{file}" for file in PLAN.teacher_weights(name)]
    part = PLAN.runs[name].part
    return " ".join([*options, *([f"--part {RESULTS}/runs/{part}/model.safetensors"] if part else [])])


def teacher_stamps(name):
    """What must exist before a run with a teacher trains."""
    return [f"{RESULTS}/{file}" for file in PLAN.teacher_stamps(name)]


def imported_weights(wildcards):
    return str(store_of(PLAN.runs[wildcards.imported].run, Results(Path(RESULTS))).model)


def teacher_predictions(wildcards):
    """The teacher's predictions, for agreement; nothing for a run without a teacher."""
    if PLAN.runs[wildcards.run].teacher is None:
        return []
    return f"{teacher_of(wildcards.run)}/predictions.npz"


def features_of(run, epoch=None):
    """The features that the measures of a run or sampled checkpoint need, and those of its teacher."""
    if not PLAN.runs[run].features:
        return []
    places = [PLAN.place(run, epoch)]
    if epoch is None and PLAN.runs[run].teacher is not None:
        places.append(PLAN.teacher_place(run))
    return [f"{RESULTS}/{place}/features.npz" for place in places]


def measures_of(study):
    """The metrics files that fill a study's cells."""
    return [f"{RESULTS}/{place}/metrics.json" for place in PLAN.studies[study].places()]


def diagrams():
    """The figures that the studies name."""
    return [f"{RESULTS}/studies/{name}/{d}.svg" for name, s in PLAN.studies.items() for d in s.study.figures]


def diagram_inputs(study, diagram):
    """What a study's figure is drawn from: measured runs, and their features where it shows those."""
    runs = PLAN.studies[study].runs() if diagram == "tsne" else []
    return [*measures_of(study), *(f"{RESULTS}/runs/{run}/features.npz" for run in runs)]
