"""The plan, and look-ups into it; everything else is in the package."""

import atexit
import gc
import inspect
import os
import shlex
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

from snakemake.common import FUNC_OVERWRITE_PARAMS_ATTR, overwrite_function_params
from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile
from snakemake.resources import Resource

from kdpipe.core import measures
from kdpipe.core.errors import KdpipeError
from kdpipe.core.ids import canonical
from kdpipe.core.paths import Results
from kdpipe.core.specs import point
from kdpipe.plan.banks import bank_marker, make_banks, read_banks
from kdpipe.plan.config import check_config
from kdpipe.plan.imported import start_of as starting_weights
from kdpipe.plan.imported import store_of
from kdpipe.plan.jobs import Jobs
from kdpipe.plan.load import load_plan, study_digest
from kdpipe.plan.packs import make_packs, marker, read_packs
from kdpipe.plan.preempted import notice_preempted

# jobs are many small objects that stay: looking through them for rubbish again and again is a tenth of a dry run
gc.set_threshold(5_000_000, 50, 100)
atexit.register(gc.freeze)  # nor at the very end

# SLURM's early warning (`--signal=USR1@120`) is for the trainings; the Snakemake around them would die of it
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

notice_preempted()

# a prefix takes the place of Snakemake's own, which this begins with; jobs run the `kdpipe` of this environment
shell.prefix(f"set -euo pipefail; export PATH={os.path.dirname(sys.executable)}:$PATH; ")

try:
    CONFIG = check_config(config)
    PLAN, PLAN_FILE = load_plan(CONFIG)
except KdpipeError as error:
    raise WorkflowError(f"{error}") from None

RESULTS = CONFIG.results
# students read their teachers' logits from banks where that pays; decided for those that are still to be trained
BANKS = (
    make_banks(PLAN, Results(Path(RESULTS)), CONFIG.bank)
    if workflow.is_main_process
    else read_banks(Results(Path(RESULTS)))
)
jobs = Jobs(PLAN, CONFIG, estimated=workflow.is_main_process, banks=BANKS)
# with packs, `train_pack` trains, and the runs' own rules put in place what it kept
PACKED = CONFIG.pack > 1
PACKS = (
    make_packs(PLAN, Results(Path(RESULTS)), CONFIG.pack)
    if workflow.is_main_process
    else read_packs(Results(Path(RESULTS)))
)
# the report's pages beside the first; whatever else lies there, as Snakemake's own report, stays
REPORT_FOLDERS = ["studies", "runs", "methods", "recipes", "data", "figures", "parts"]
TRACKING = f"--uri {CONFIG.tracking}" if CONFIG.tracking else ""
SEND = " ".join(f"--send {name}" for name in CONFIG.tracking_files)
SYNC = f"kdpipe sync --lenient --plan {PLAN_FILE} --results {RESULTS} {TRACKING} {SEND}"


def follow():
    """Send the runs' news to the MLflow server while they train: one process for all jobs, wherever they run.

    It goes on while its input is open, which closes with this process even if that is killed.
    """
    if CONFIG.tracking:
        log = Path(RESULTS, "logs", "sync.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = ["nice", sys.executable, "-m", *shlex.split(SYNC), "--follow"]
        with open(log, "a") as out:
            follow.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
            )


wildcard_constraints:
    teacher=r"teacher_[^/]+",
    student=r"student_[^/]+",
    imported=r"imported_[^/]+",
    part=r"part_[^/]+",
    bench=r"bench_[^/]+",
    run=r"(teacher|student|imported)_[^/]+",
    pack="|".join(PACKS.members) or "none",
    bank="|".join(BANKS.marked) or "none",
    point=r"epoch-\d{4}(-float16)?",
    choice=r"[a-z_]+-[0-9a-f]{8}",
    checkpoint=r"(epoch-\d{4}(-float16)?|[a-z_]+-[0-9a-f]{8})",
    study=r"[^/]+",
    data=r"[^/]+",
    diagram="|".join(sorted({name for study in PLAN.studies.values() for name in study.figures})) or "none",
    plot="|".join(sorted({plot for study in PLAN.studies.values() for plot in study.plots})) or "none",


# Snakemake compares `params` between calls, except those of functions that read `input`. The settings that
# make a run's numbers are in its name, by their hash; what only says how to make them reads `input`.


def run_json(name):
    return PLAN.runs[name].run.model_dump_json()


def gpus_of(name):
    """The GPUs that a training asks the scheduler for."""
    asked = PLAN.runs[name].run.gpus
    return CONFIG.gpus if asked == 1 or CONFIG.device == "cpu" else asked


def threads_of(name):
    """The processor threads of a training: those of each of its processes, one for a GPU."""
    return CONFIG.threads * PLAN.runs[name].run.gpus


def each(function, wildcard):
    """What a function says of the run that a job's wildcard names; at once, where it says the same of all.

    Asking a function takes time for each of thousands of jobs.
    """
    values = {function(name) for name in PLAN.runs}
    return values.pop() if len(values) == 1 else lambda w: function(getattr(w, wildcard))


def data_of(name):
    return f"{RESULTS}/data/{PLAN.runs[name].data}"


def training(name):
    """The options of `kdpipe train`, but for how many threads there are and where the job's log lies."""
    planned, start = PLAN.runs[name], start_of(name)
    options = ["--run", run_json(name), "--out", f"{RESULTS}/runs/{name}", "--data", data_of(name)]
    options += ["--device", CONFIG.device, *taught_by(name)]
    options += ["--compared", f"{RESULTS}/{compared}"] if (compared := PLAN.teacher_place(name)) else []
    options += ["--keep", kept_epochs(name)] if kept_epochs(name) else []
    options += ["--start", start] if start else []
    options += ["--gradients", str(planned.gradients)] if planned.gradients else []
    options += [f"--bank={RESULTS}/banks/{bank}" for bank in BANKS.of.get(name, ())]
    return shlex.join([*options, "--finished-only"] if PACKED else options)


def taught_by(name):
    """The options that name the weights of a run's teacher, and of the part on top of it."""
    part = PLAN.runs[name].part
    options = weights_of_teacher(name)
    return [*options, *(["--part", f"{RESULTS}/runs/{part}/model.safetensors"] if part else [])]


def weights_of_teacher(name):
    """The options that name the weights of the teacher of a run, or of a bank."""
    return [option for file in PLAN.teacher_weights(name) for option in ("--teacher", f"{RESULTS}/{file}")]


def teacher_stamps(name):
    """What must exist before a run with a teacher trains."""
    return [f"{RESULTS}/{file}" for file in PLAN.teacher_stamps(name)]


def needs_of(name):
    """What must exist before a run trains: its data, its teacher, and the weights that it starts from."""
    start = start_of(name)
    return [f"{data_of(name)}/meta.json", *teacher_stamps(name), *([start] if start else [])]


def made_for(name):
    """What says that a run's pack is done, or that the banks are made that it reads.

    Of a finished run it is what said so back then: Snakemake compares the names of a job's inputs.
    """
    if name in PACKS.of:  # which waits for the banks
        return [marker(RESULTS, PACKS.of[name])]
    if name in BANKS.of:
        return bank_markers(name)
    found = workflow.persistence.input(IOFile(f"{RESULTS}/runs/{name}/status.json")) or []
    folders = f"{RESULTS}/packs/", f"{RESULTS}/banks/"
    return [file for file in found if file.startswith(folders) and os.path.exists(file)]


def inputs_of(name):
    """What a run's rule waits for; what only says that it may begin does not make it again."""
    return [*needs_of(name), *map(ancient, made_for(name))]


def bank_markers(name):
    return [bank_marker(RESULTS, BANKS.markers[bank]) for bank in BANKS.of.get(name, ())]


def bank_of(wildcards):
    return PLAN.banks[BANKS.marked[wildcards.bank]]


def batches_at_once(wildcards):
    """How many batches of a bank are answered side by side: on processors, as many as readers will train."""
    return 1 if CONFIG.gpus else min(CONFIG.pack, BANKS.readers[BANKS.marked[wildcards.bank]])


def needs_of_pack(wildcards):
    """What must exist before the runs of a pack train."""
    runs = PACKS.members[wildcards.pack]
    needed = [file for name in runs for file in (*needs_of(name), *bank_markers(name))]
    return list(dict.fromkeys(needed))


def attempts():
    """How often a job is tried at most; only the main process knows, and not before it runs jobs."""
    settings = workflow.execution_settings if workflow.is_main_process else PACKS
    return 1 + settings.retries if settings else 1


def start_of(name):
    """The imported weights that a run's network starts from; nothing for one that is drawn."""
    file = starting_weights(PLAN.runs[name].run, Results(Path(RESULTS)))
    return str(file) if file else []


def kept_epochs(name):
    """The epochs of a teacher whose weights are kept, as `kdpipe train` reads them."""
    planned = PLAN.runs[name]
    return ",".join([*map(str, planned.keep), *(f"{epoch}:float16" for epoch in planned.keep_half)])


def epoch_of(point):
    """A checkpoint's epoch as `kdpipe sample` reads it: `3`, or `3:float16`."""
    _, epoch, *precision = point.split("-")
    return f"{int(epoch)}:{precision[0]}" if precision else int(epoch)


def choice_of(wildcards):
    return PLAN.runs[wildcards.teacher].choices[wildcards.choice]


def candidates(wildcards):
    """The sampled checkpoints that a rule chooses among."""
    choice, sampled = choice_of(wildcards), f"{RESULTS}/runs/{wildcards.teacher}/sampled"
    return [f"{sampled}/{point(epoch, choice.precision)}/checkpoint.json" for epoch in choice.epochs]


def imported_weights(wildcards):
    return str(store_of(PLAN.runs[wildcards.imported].run, Results(Path(RESULTS))).model)


def checkpoint_weights(wildcards):
    """The weights of a sampled checkpoint: its own where a rule chose it, else the kept ones."""
    run, name = f"{RESULTS}/runs/{wildcards.teacher}", wildcards.checkpoint
    return (
        f"{run}/checkpoints/{name}.safetensors"
        if name.startswith("epoch")
        else f"{run}/sampled/{name}/model.safetensors"
    )


def results_of(wildcards):
    """What says that each result of a study is there, and the features that its measures need."""
    wanted = PLAN.to_measure(wildcards.study)
    stamps = [
        f"{RESULTS}/{place}/{'checkpoint' if 'sampled/' in place else 'status'}.json" for place in wanted
    ]
    seen = [place for place in wanted if PLAN.runs[place.split("/")[1]].features]
    places = dict.fromkeys(p for place in seen for p in (place, wanted[place]) if p)
    return [*stamps, *(f"{RESULTS}/{place}/features.npz" for place in places)]


@cache
def digest_of(study):
    """What the tables and figures of a study are made anew for."""
    return study_digest(PLAN.studies[study])


def measures_of(study):
    """What says that a study's results are measured; nothing for one without trainings."""
    return [f"{RESULTS}/studies/{study}/measures.json"] if PLAN.studies[study].cells else []


def plot_records(study):
    """What is told of each figure of a study's benches; its images are made with it."""
    return [f"{RESULTS}/studies/{study}/{plot}.json" for plot in PLAN.studies[study].plots]


def bench_tables(study):
    """The runs of a study's benches."""
    return [f"{RESULTS}/runs/{cell.run}/status.json" for cell in PLAN.studies[study].benches]


def diagrams():
    """The figures of the studies' trainings."""
    return [f"{RESULTS}/studies/{name}/{d}.svg" for name, s in PLAN.studies.items() for d in s.figures]


def diagram_inputs(study, diagram):
    """What a study's figure is drawn from: measured runs, and their features where it shows those."""
    runs = PLAN.studies[study].runs() if diagram == "tsne" else []
    return [*measures_of(study), *(f"{RESULTS}/runs/{run}/features.npz" for run in runs)]
