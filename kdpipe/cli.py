"""The command line: thin verbs; the Snakemake rules call the same ones a person can."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeVar

import typer

from kdpipe import __version__
from kdpipe.core.errors import ConfigError, KdpipeError, UserError
from kdpipe.core.garbage import no_search

if TYPE_CHECKING:
    from pydantic import BaseModel

    from kdpipe.core.paths import Results, RunPaths
    from kdpipe.core.specs import BenchRun, Precision, Run
    from kdpipe.engine.kept import Kept
    from kdpipe.engine.observe import Observer
    from kdpipe.engine.prepare import Prepared
    from kdpipe.engine.processes import Processes
    from kdpipe.engine.stop import Stop
    from kdpipe.plan.config import Config
    from kdpipe.plan.plan import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A benchmarking pipeline for knowledge distillation.\n\n"
    "Examples: kdpipe plan; kdpipe list methods; kdpipe show dkd; kdpipe table --show digits_demo",
)

ConfigFile = Annotated[Path, typer.Option("--config", help="the workflow's settings file")]
Override = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="override a setting, e.g. --set scale=smoke")
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="a resolved plan instead of the settings")]
ResultsFolder = Annotated[Path | None, typer.Option("--results", help="results folder")]
CONFIG = Path("config/config.yaml")
M = TypeVar("M", bound="BaseModel")


def main() -> None:
    """Run the command line; a foreseen error ends in one message and its exit code."""
    atexit.register(gc.freeze)  # or all that is left is searched for cycles: half a second, where torch is
    try:
        app(standalone_mode=True)
    except KdpipeError as error:
        if not os.environ.get("TORCHELASTIC_RUN_ID"):  # one of several processes: who started them tells it
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    pass


def _config(file: Path, override: list[str]) -> Config:
    from kdpipe.plan.config import from_yaml, read_config

    values: dict[str, Any] = {}
    for item in override:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"'--set {item}' lacks a value", fix="write --set KEY=VALUE")
        values[key] = from_yaml(value, f"--set {key}")
    return read_config(file, values)


# --- looking around ---------------------------------------------------------------------------------


@app.command("list")
def list_(
    kind: Annotated[
        str, typer.Argument(help="methods, recipes, parts, models, datasets, benches, protocols or studies")
    ] = "all",
    folder: Annotated[Path, typer.Option(help="config folder, for protocols and studies")] = Path("config"),
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """List what there is.

    Example: kdpipe list methods
    """
    from kdpipe.core.errors import UnknownNameError
    from kdpipe.plan.cards import KINDS, members

    if kind != "all" and kind not in KINDS:
        raise UnknownNameError.of("kind", kind, [*KINDS, "all"])
    listed = {name: members(name, folder) for name in (KINDS if kind == "all" else [kind])}
    if as_json:
        print(json.dumps(listed, indent=1))
        return
    for name, found in listed.items():
        print(f"{name} ({len(found)})")
        for member, line in found.items():
            print(f"  {member:<24}{line}".rstrip())


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a method, recipe, model, data set, protocol or study")],
    folder: Annotated[Path, typer.Option(help="config folder, for protocols and studies")] = Path("config"),
    pair: Annotated[
        str | None,
        typer.Option(metavar="TEACHER/STUDENT", help="networks for which a method's costs are shown"),
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="classes for which they are shown")] = 100,
) -> None:
    """Show a card: what it is, its settings with sources, its taps, its paper, what it costs.

    Example: kdpipe show fitnet --pair wrn_40_2/wrn_16_2
    """
    from kdpipe.plan.cards import card

    print(card(name, folder, pair, classes))


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="method")],
    name: Annotated[str, typer.Argument(help="its name: small letters, digits and _")],
    folder: Annotated[
        Path | None, typer.Option(help="a plug-in folder of your own, instead of kdpipe itself")
    ] = None,
) -> None:
    """Write a new plug-in that works at once, to be changed.

    Example: kdpipe new method my_method --folder mine
    """
    from kdpipe.plan.new import new as write_new

    print(write_new(kind, name, folder))


@app.command()
def plan(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY]...", help="these instead of the configured ones")
    ] = None,
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006 (typer reads the default once)
    scale: Annotated[str | None, typer.Option(help="full, or the name of a reduction")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every study of the config folder")] = False,
    runs: Annotated[bool, typer.Option("--runs", help="list every run")] = False,
    device: Annotated[str, typer.Option(help="part of the name of the device to plan for")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
) -> None:
    """Show what is wanted, what is made, shared or skipped and why, and what it costs in hours and room.

    Example: kdpipe plan digits_demo --scale smoke
    """
    from kdpipe.core.paths import Results
    from kdpipe.plan.banks import make_banks
    from kdpipe.plan.config import names
    from kdpipe.plan.load import load_plan
    from kdpipe.plan.overview import overview

    if everything and studies:
        raise ConfigError("--all names every study already", fix="leave out --all, or the studies")
    settings = _config(config, override)
    change: dict[str, Any] = {"scale": scale} if scale else {}
    if everything or studies:
        wanted = names("studies", Path(settings.folder)) if everything else studies
        change |= {"studies": tuple(wanted or ()), "study": None}
    settings = settings.model_copy(update=change)
    resolved, _ = load_plan(settings, imports=not everything)
    root, folder = Path(settings.results), Path(settings.folder)
    banks = make_banks(resolved, Results(root), settings.bank)
    print(overview(resolved, root, folder, as_json=as_json, runs=runs, device=device, banks=banks))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="a run's folder name, or a unique part of it")],
    b: Annotated[str, typer.Argument(help="another")],
    results: Annotated[Path, typer.Option(help="results folder")] = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="folder for a figure of both learning curves, with its data")
    ] = None,
) -> None:
    """Show how two runs differ: settings and where they come from, learning curves, measures.

    Example: kdpipe compare dkd_standard_s0 kd_standard_s0
    """
    from kdpipe.tables.compare import compare_runs, draw_comparison

    print(compare_runs(a, b, results))
    if out:
        print("\n".join(map(str, draw_comparison(a, b, results, out))))


@app.command()
def verify(
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
) -> None:
    """Check stored results: other code, damaged files, missing parts; exit code 2 if anything is found."""
    from kdpipe.plan.verify import verify_results

    resolved, root, _ = _planned(config, override, None, None)
    found = verify_results(resolved, root)
    print("\n".join(found) or "every stored result is whole and made by the code at hand")
    if found:
        raise typer.Exit(2)


@app.command("import-teacher")
def import_teacher(
    file: Annotated[Path, typer.Argument(help="checkpoint: .safetensors, or what torch.save wrote")],
    model: Annotated[str, typer.Option(help="its network, by kdpipe's name")],
    dataset: Annotated[str, typer.Option(help="the data set it was trained on")],
    label: Annotated[str, typer.Option(help="how tables call it")] = "imported",
    part: Annotated[
        str | None, typer.Option(help="student or teacher, where the file holds both and both fit")
    ] = None,
    results: Annotated[Path, typer.Option(help="results folder")] = Path("results"),
    folder: Annotated[Path, typer.Option(help="config folder, for data sets of your own")] = Path("config"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Bring in a teacher that another project trained; no code in the file is run.

    Example: kdpipe import-teacher ckpt_epoch_240.pth --model resnet32x4 --dataset cifar100
    """
    from kdpipe.core import registry
    from kdpipe.core.files import read_json
    from kdpipe.core.paths import Results
    from kdpipe.engine.importing import import_checkpoint
    from kdpipe.engine.prepare import load
    from kdpipe.engine.weights import identity
    from kdpipe.evaluation.evaluate import evaluate as evaluate_run
    from kdpipe.plan.datasets import find_dataset
    from kdpipe.plan.imported import imported_run

    spec, data = registry.models.get(model, where="--model"), find_dataset(dataset, folder, "--dataset")
    root = Results(results)
    prepared = load(root.data(data.folder)) if (root.data(data.folder) / "meta.json").is_file() else None
    classes = prepared.num_classes if prepared else data.num_classes
    if classes is None:
        raise ConfigError(
            f"{dataset} is not prepared, and how many classes it has is counted when it is",
            fix=f"kdpipe prepare {dataset} --out {root.data(data.folder)}",
        )
    file_hash = identity(file)
    store = root.imported(dataset, model, file_hash)
    import_checkpoint(
        file, spec, dataset, classes, data.shape[0], store, file_hash=file_hash, part=part, label=label
    )
    print(f"imported {model} for {dataset} from {file.name} into {store.root}")
    if prepared:
        run = imported_run(data, spec, file_hash)
        paths = root.run(run.name)
        if not paths.status.is_file():
            _adopt(run, paths, prepared, store.model, _machine(device, 1))
        measured = read_json(paths.metrics) if paths.metrics.is_file() else evaluate_run(paths)
        print(f"test accuracy: {measured['values']['top1']:.2f} %")
    else:
        print(f"test accuracy: measured when {dataset} is prepared, at the first run of a study")
    files = f"{{files: {{{model}: {file_hash}}}}}"
    print("in a study:\nrecipes:")
    print(f"  - {{name: imported, label: {json.dumps(label)}, settings: {files}}}")


# --- what the rules call ----------------------------------------------------------------------------


@app.command(hidden=True)
def resolve(
    config_json: Annotated[str, typer.Option(help="settings as JSON")],
    out: Annotated[Path, typer.Option(help="plan file to write")],
) -> None:
    """Resolve a plan and write it (called by the Snakefile in a process of its own)."""
    with no_search():
        from kdpipe.plan.config import Config
        from kdpipe.plan.load import write_plan
        from kdpipe.plan.resolve import resolve as resolve_plan

        write_plan(resolve_plan(_given(Config, config_json, "--config-json")), out)


@app.command()
def prepare(
    dataset: Annotated[str, typer.Argument(help="name of the data set")],
    out: Annotated[Path, typer.Option(help="folder to make")],
    source: Annotated[Path | None, typer.Option(help="folder that holds the data set")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="fetch published files that are not in the source folder")
    ] = False,
    folder: Annotated[Path, typer.Option(help="config folder, for data sets of your own")] = Path("config"),
) -> None:
    """Prepare a data set once: checked arrays (or an index of files) that every run maps into memory.

    Example: kdpipe prepare cifar100 --source data/cifar100 --download --out results/data/cifar100
    """
    from kdpipe.engine.prepare import fetch
    from kdpipe.engine.prepare import prepare as prepare_data
    from kdpipe.plan.datasets import find_dataset

    spec = find_dataset(dataset, folder)
    if download:
        fetch(spec, source)
    prepare_data(spec, None if spec.embedded else source, out)


@app.command()
def train(
    run: Annotated[str, typer.Option(help="the run as JSON, as the plan holds it")],
    out: Annotated[Path, typer.Option(help="the run's folder")],
    data: Annotated[Path, typer.Option(help="the prepared data set")],
    teacher: Annotated[
        list[Path], typer.Option(help="the teacher's weights; once for each anchor that a method follows")
    ] = [],  # noqa: B006 (typer reads the default once)
    part: Annotated[Path | None, typer.Option(help="weights of what was trained on the teacher")] = None,
    keep: Annotated[str, typer.Option(help="epochs whose weights are kept, e.g. 10,20:float16")] = "",
    start: Annotated[Path | None, typer.Option(help="weights that the network starts from")] = None,
    gradients: Annotated[
        int, typer.Option(help="compare the loss terms' gradients every so many epochs")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="processor threads")] = 1,
    log: Annotated[Path | None, typer.Option(help="a file for every epoch's line, beside train.log")] = None,
    finished_only: Annotated[
        bool, typer.Option("--finished-only", help="put results in place that a pack made; do not train")
    ] = False,
    save_minutes: Annotated[
        float, typer.Option(min=0, help="save the state within an epoch that takes longer than this")
    ] = 10.0,
    compared: Annotated[
        Path | None, typer.Option(help="folder of the teacher that the trained network is compared with")
    ] = None,
    bank: Annotated[
        list[Path],
        typer.Option(help="a bank that takes the teacher's place; one for each view of an image"),
    ] = [],  # noqa: B006 (typer reads the default once)
) -> None:
    """Train a teacher, a part of one, or a student, from its saved state if there is one; then measure it.

    A run whose protocol asks for several GPUs is trained by as many processes, which this one starts.

    A run that was finished before, by the same code, is put back in place instead; to train it again, delete
    `.finished` in its folder.
    """
    kept = _kept(run, out, data, teacher, part, start)
    planned, paths = kept.run, kept.paths
    if kept.restored():
        _write_spec(planned, paths)
        _measure(planned, paths, compared)
        return
    if finished_only:
        with _logged([log] if log else []):
            raise kept.unfinished()

    with no_search():
        from kdpipe.engine.prepare import load
        from kdpipe.engine.train import Trainer

    points = [_epoch(text) for text in keep.split(",") if text]
    epochs, half = ([e for e, p in points if p == asked] for asked in ("float32", "float16"))
    with _processes(planned, device, threads, log) as processes:
        if processes is None:
            return
        if processes.first:
            _write_spec(planned, paths)
        watching: AbstractContextManager[list[Observer]] = (
            _watchers(planned, paths, log, processes.device) if processes.first else nullcontext([])
        )
        with watching as watchers:
            Trainer(
                planned,
                paths,
                load(data),
                teacher,
                processes.device,
                epochs,
                [*watchers, kept] if processes.first else [],
                _stop_on_signal(),
                part,
                half,
                gradients,
                start,
                60 * save_minutes,
                processes,
                kept.restored if processes.first else lambda: False,
                bank,
            ).train()
            if processes.first:
                _measure(planned, paths, compared)


@app.command()
def bank(
    bank: Annotated[str, typer.Option(help="the bank as JSON, as the plan holds it")],
    out: Annotated[Path, typer.Option(help="the bank's folder")],
    data: Annotated[Path, typer.Option(help="the prepared data set")],
    teacher: Annotated[list[Path], typer.Option(help="the teacher's weights; once for each fold")],
    marker: Annotated[Path | None, typer.Option(help="file that says that the bank was made")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="processor threads that answer a batch")] = 1,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="processors; more than `threads` answer several batches"),
    ] = None,
) -> None:
    """Store a teacher's logits for each image of each epoch, from the epochs that a killed call left if any.

    Students of the same teacher, protocol and seed learn from them the same numbers as from the teacher.
    """
    from kdpipe.core.files import write_text
    from kdpipe.core.paths import BankPaths
    from kdpipe.core.specs import Bank

    with no_search():
        from kdpipe.engine.bank import make_bank
        from kdpipe.engine.observe import Count
        from kdpipe.engine.prepare import load

    cpus = cpus or threads
    planned, place = _given(Bank, bank, "--bank"), _machine(device, min(threads, cpus))
    at_once, stop = max(1, cpus // threads), _stop_on_signal()
    with Count(planned.label, planned.spec.epochs) as told:
        make_bank(planned, BankPaths(out), load(data), teacher, place, stop, told, at_once)
    if marker:
        write_text(marker, f"{planned.name}\n")


@app.command()
def banks(
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
    plan_file: PlanFile = None,
    results: ResultsFolder = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="delete those that no unfinished student of the plan can read")
    ] = False,
) -> None:
    """List the banks that are there and how many unfinished students of the plan can read each.

    Example: kdpipe banks --remove
    """
    from kdpipe.plan.banks import remove as remove_banks
    from kdpipe.plan.banks import stored_banks

    resolved, root, _ = _planned(config, override, plan_file, results)
    found = stored_banks(resolved, root)
    for stored in found:
        state = "whole" if stored.whole else "unfinished"
        print(f"{stored.bytes / 1e9:9.3f} GB  {state:<11}{stored.unread:4} to read it  {stored.name}")
    spare = [stored for stored in found if not stored.unread]
    if remove:
        remove_banks(spare, root)
        print(f"{sum(stored.bytes for stored in spare) / 1e9:.3f} GB freed")


@app.command()
def pack(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="names of runs, as `kdpipe plan --runs` lists them")
    ],
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
    plan_file: PlanFile = None,
    results: ResultsFolder = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="processor threads of one training")] = 1,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="processors to share; by default all of this job's")
    ] = None,
    marker: Annotated[
        Path | None,
        typer.Option(help="file that says that the pack is done; results are then left to be put in place"),
    ] = None,
    attempt: Annotated[int, typer.Option(min=1, help="which attempt at this pack it is")] = 1,
    attempts: Annotated[
        int, typer.Option(min=1, help="how many there are; after the last, one finished run makes the marker")
    ] = 1,
) -> None:
    """Train several runs in one job, side by side as the processors allow; each has its own log and state.

    What they need (data, teachers) must be there. The exit code is 75 if any was interrupted, else 1 if any
    failed, else 0.

    Example: kdpipe pack student_digits_resnet8x4_resnet8_kd_standard_s0-0123456789ab --device cpu
    """
    from functools import partial

    from kdpipe.core.errors import Interrupted, UnknownNameError
    from kdpipe.core.files import write_text
    from kdpipe.engine.pack import Member, outcome, side_by_side, will_not_mend

    plan, root, _ = _planned(config, override, plan_file, results)
    for name in runs:
        if name not in plan.runs:
            raise UnknownNameError.of("run", name, plan.runs, where="kdpipe pack")
    cpus = cpus or len(os.sched_getaffinity(0))
    orders = {name: _order(plan, root, name) for name in dict.fromkeys(runs)}
    codes = {name: 0 for name, order in orders.items() if _kept(**order).usable()}
    before = list(codes)
    if todo := [name for name in orders if name not in codes]:
        _import_training()
        each = partial(_train_member, device=device, threads=min(threads, cpus), placed=marker is None)
        members = {name: Member(partial(each, orders[name]), root.run(name).log) for name in todo}
        codes |= side_by_side(members, max(1, cpus // threads))
    for name, order in orders.items():
        if name in before or (
            plan.runs[name].run.gpus > 1 and not codes[name]
        ):  # the others did so themselves
            _place(order, placed=marker is None)
    lines = [f"{name}: {'finished before' if name in before else outcome(codes[name])}" for name in orders]
    print("\n".join(lines))
    done = all(map(will_not_mend, codes.values())) or (attempt >= attempts and 0 in codes.values())
    if marker and done:
        write_text(marker, "\n".join(lines) + "\n")
    elif any(codes.values()):
        raise typer.Exit(75 if Interrupted.exit_code in codes.values() else 1)


@app.command()
def bench(
    run: Annotated[str, typer.Option(help="the bench's run as JSON, as the plan holds it")],
    out: Annotated[Path, typer.Option(help="the run's folder")],
    data: Annotated[Path | None, typer.Option(help="the prepared data set, if it needs one")] = None,
    threads: Annotated[int, typer.Option(min=1, help="processor threads")] = 1,
) -> None:
    """Run a theory bench, from the parts that a killed run left if there are any."""
    from kdpipe.core.paths import RunPaths
    from kdpipe.core.specs import BenchRun
    from kdpipe.engine.bench import run_bench
    from kdpipe.engine.prepare import load

    planned, paths = _given(BenchRun, run, "--run"), RunPaths(out)
    _write_spec(planned, paths)
    run_bench(planned, paths, load(data) if data else None, threads, _stop_on_signal())


@app.command()
def adopt(
    run: Annotated[str, typer.Option(help="the run as JSON, as the plan holds it")],
    out: Annotated[Path, typer.Option(help="the run's folder")],
    data: Annotated[Path, typer.Option(help="the prepared data set")],
    weights: Annotated[Path, typer.Option(help="the imported weights")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="processor threads")] = 1,
) -> None:
    """Make the run of an imported teacher: its weights and its predictions, without training."""
    from kdpipe.core.paths import RunPaths
    from kdpipe.core.specs import Run
    from kdpipe.engine.prepare import load

    planned = _given(Run, run, "--run")
    _adopt(planned, RunPaths(out), load(data), weights, _machine(device, threads))
    _measure(planned, RunPaths(out), None)


@app.command()
def sample(
    run: Annotated[str, typer.Option(help="the teacher's run as JSON")],
    out: Annotated[Path, typer.Option(help="the teacher's folder")],
    data: Annotated[Path, typer.Option(help="the prepared data set")],
    epoch: Annotated[str, typer.Option(help="which epoch, counted from 1, e.g. 10 or 10:float16")],
    teacher: Annotated[list[Path], typer.Option(help="weights of the teacher's own teacher")] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="processor threads")] = 1,
) -> None:
    """Make a teacher's weights at an epoch an artifact that students can name."""
    from kdpipe.core.paths import RunPaths
    from kdpipe.core.specs import Run, point
    from kdpipe.engine.observe import Lines
    from kdpipe.engine.prepare import load
    from kdpipe.engine.sample import sample as sample_checkpoint

    planned = _given(Run, run, "--run")
    number, precision = _epoch(epoch)
    with _processes(planned, device, threads) as processes:
        if processes is None:
            return
        watchers = [Lines(planned)] if processes.first else []
        sample_checkpoint(
            planned,
            RunPaths(out),
            load(data),
            number,
            processes.device,
            watchers,
            _stop_on_signal(),
            teacher,
            precision,
            processes,
        )
        if processes.first:
            _measure(planned, RunPaths(out).sampled(point(number, precision)), None)


@app.command()
def choose(
    run: Annotated[Path, typer.Option(help="folder of the teacher, its checkpoints sampled")],
    choice: Annotated[str, typer.Option(help="the rule and the epochs as JSON, as the plan holds them")],
) -> None:
    """Pick one of a teacher's checkpoints by its predictions of the validation images."""
    from kdpipe.core.paths import RunPaths
    from kdpipe.core.specs import Choice
    from kdpipe.evaluation.choose import choose as choose_checkpoint
    from kdpipe.evaluation.evaluate import measure

    asked = _given(Choice, choice, "--choice")
    chosen = choose_checkpoint(RunPaths(run), asked)
    measure(RunPaths(run).sampled(asked.name))
    print(f"{chosen['rule']}: epoch {chosen['epoch']}")


@app.command()
def features(
    run: Annotated[str, typer.Option(help="the run as JSON")],
    weights: Annotated[Path, typer.Option(help="its weights, or those of one of its epochs")],
    data: Annotated[Path, typer.Option(help="the prepared data set")],
    out: Annotated[Path, typer.Option(help="file to write")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="processor threads")] = 1,
) -> None:
    """Store a network's features, for the measures that need them."""
    from kdpipe.core.specs import Run
    from kdpipe.engine.features import save_features
    from kdpipe.engine.prepare import load

    save_features(out, _given(Run, run, "--run"), weights, load(data), _machine(device, threads))


@app.command()
def evaluate(
    study: Annotated[str | None, typer.Argument(help="name of a study: all of its results")] = None,
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
    plan_file: PlanFile = None,
    results: ResultsFolder = None,
    processes: Annotated[int, typer.Option(min=1, help="of a study: results measured at a time")] = 1,
    run: Annotated[Path | None, typer.Option(help="folder of one run or sampled checkpoint")] = None,
    teacher: Annotated[Path | None, typer.Option(help="folder of that run's teacher")] = None,
) -> None:
    """Compute every measure from stored predictions: of one run, or of a study where they are not up to date.

    Example: kdpipe evaluate digits_demo
    """
    from kdpipe.core.files import write_json
    from kdpipe.core.paths import RunPaths
    from kdpipe.evaluation.evaluate import evaluate as evaluate_run
    from kdpipe.evaluation.evaluate import measure_all

    if (study is None) == (run is None):
        raise ConfigError("what is measured is one run or a study", fix="name a study, or --run FOLDER")
    if run:
        evaluate_run(RunPaths(run), RunPaths(teacher) if teacher else None)
        return
    assert study is not None
    resolved, root = _with_study(study, config, override, plan_file, results)
    wanted = resolved.to_measure(study)
    there = [place for place in wanted if RunPaths(root.root / place).status.is_file()]
    folders = {root.root / p: root.root / t if (t := wanted[p]) else None for p in there}
    write_json(root.measures(study), dict(zip(there, measure_all(folders, processes), strict=True)))
    print(f"{study}: {len(there)} of {len(wanted)} results are measured")


@app.command()
def table(
    study: Annotated[str, typer.Argument(help="name of the study")],
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
    plan_file: PlanFile = None,
    results: ResultsFolder = None,
    show: Annotated[bool, typer.Option("--show", help="only print the table")] = False,
    form: Annotated[str, typer.Option("--format", help="only print it as csv, markdown, latex or html")] = "",
) -> None:
    """Render a study's tables from what is there.

    Example: kdpipe table --show digits_demo; kdpipe table --format latex digits_demo
    """
    from kdpipe.tables.layout import lay_out
    from kdpipe.tables.render import as_text, render, terminal_table

    resolved, root = _with_study(study, config, override, plan_file, results)
    if form:
        planned = resolved.studies[study]
        print(as_text(form, planned, lay_out(planned, resolved, root)), end="")
    elif show:
        terminal_table(resolved.studies[study], resolved, root)
    else:
        render(resolved.studies[study], resolved, root)
        print(root.study(study))


@app.command()
def figure(
    study: Annotated[str, typer.Argument(help="name of the study")],
    name: Annotated[str | None, typer.Argument(help="one figure instead of all, e.g. reliability")] = None,
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
    plan_file: PlanFile = None,
    results: ResultsFolder = None,
) -> None:
    """Draw a study's figures from what is there.

    Example: kdpipe figure digits_demo reliability
    """
    from kdpipe.tables.gallery import draw_figure

    resolved, root = _with_study(study, config, override, plan_file, results)
    planned = resolved.studies[study]
    for figure_name in [name] if name else [*planned.figures, *planned.plots]:
        print("\n".join(map(str, draw_figure(figure_name, planned, resolved, root))))


@app.command()
def report(
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
    plan_file: PlanFile = None,
    results: ResultsFolder = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow's address, to link the runs that it has; see `kdpipe sync`")
    ] = None,
) -> None:
    """Render the report of all configured studies."""
    from kdpipe.tables.report import report as render_report

    resolved, root, tracking = _planned(config, override, plan_file, results)
    print(render_report(resolved, root, uri or tracking))


@app.command()
def sync(
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
    plan_file: PlanFile = None,
    results: ResultsFolder = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow's address instead of `tracking`", envvar="MLFLOW_TRACKING_URI")
    ] = None,
    send: Annotated[
        list[str], typer.Option(help="model or predictions: send these files too, as `tracking_files` does")
    ] = [],  # noqa: B006 (typer reads the default once)
    follow: Annotated[
        bool, typer.Option("--follow", help="go on until stopped, or until an input that is a pipe ends")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="with --follow: seconds between two rounds")] = 30,
    lenient: Annotated[bool, typer.Option("--lenient", help="failing is a warning, not an error")] = False,
) -> None:
    """Bring MLflow up to date with the runs' journals; safe to repeat.

    Example: kdpipe sync; kdpipe sync --uri http://127.0.0.1:5000 --follow
    """
    from kdpipe.plan.load import plan_path
    from kdpipe.tracking.follow import alone, input_ended
    from kdpipe.tracking.follow import follow as follow_runs
    from kdpipe.tracking.sync import sync as sync_runs

    try:
        resolved, root, tracking = _planned(config, override, plan_file, results)
        if plan_file is None:
            settings = _config(config, override)
            send, plan_file = send or list(settings.tracking_files), plan_path(settings)
        if not follow:
            print(sync_runs(root, resolved, uri or tracking, more=send))
            return
        with alone(plan_file) as first:
            if first:
                follow_runs(root, resolved, uri or tracking, input_ended, more=send, every=every)
            else:
                print("another process follows these runs already", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; `kdpipe sync` sends what is missing", file=sys.stderr)
    except Exception as error:
        if not lenient:
            raise
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        print(f"warning: MLflow was not brought up to date; run `kdpipe sync` later\n{what}", file=sys.stderr)


@app.command()
def serve(
    config: ConfigFile = CONFIG,
    override: Override = [],  # noqa: B006
    results: ResultsFolder = None,
    database: Annotated[
        str, typer.Option(help="postgresql, sqlite, or auto: PostgreSQL where it is installed")
    ] = "auto",
    folder: Annotated[Path | None, typer.Option(help="where PostgreSQL keeps its data")] = None,
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen at")] = 5000,
    allowed_hosts: Annotated[
        str, typer.Option(help="more names of this server, as clients call it: login01:5000,...")
    ] = "",
    auth: Annotated[bool, typer.Option("--auth", help="ask for a user and a password")] = False,
) -> None:
    """Serve MLflow, its pages and its address for runs, until Ctrl-C.

    Example: kdpipe serve --host 0.0.0.0 --auth
    """
    from typing import get_args

    from kdpipe.core.errors import UnknownNameError
    from kdpipe.core.paths import Results
    from kdpipe.tracking.server import Database, Server

    if database not in get_args(Database):
        raise UnknownNameError.of("database", database, get_args(Database), where="--database")
    root = Results(results or Path(_config(config, override).results))
    names = tuple(name.strip() for name in allowed_hosts.split(",") if name.strip())
    Server(root, database, folder, host, port, names, auth).serve()  # type: ignore[arg-type]


def _planned(
    config: Path, override: list[str], plan_file: Path | None, results: Path | None
) -> tuple[Plan, Results, str | None]:
    """The plan, the results folder and the tracking URI: from a plan file if given, else the settings."""
    from kdpipe.core.paths import Results
    from kdpipe.plan.load import load_plan, read_plan

    if plan_file:
        return read_plan(plan_file), Results(results or Path("results")), None
    settings = _config(config, override)
    return load_plan(settings)[0], Results(results or Path(settings.results)), settings.tracking


def _with_study(
    study: str, config: Path, override: list[str], plan_file: Path | None, results: Path | None
) -> tuple[Plan, Results]:
    """A plan that holds a study, and the results folder.

    Raises:
        UnknownNameError: the plan does not hold it.
    """
    from kdpipe.core.errors import UnknownNameError

    override = override if plan_file else [*override, f"study={study}"]
    resolved, root, _ = _planned(config, override, plan_file, results)
    if study not in resolved.studies:
        raise UnknownNameError.of("study", study, resolved.studies)
    return resolved, root


def _given(kind: type[M], text: str, option: str) -> M:
    """What an option holds as JSON, as rules get it from the plan.

    Raises:
        ConfigError: it is something else.
    """
    from pydantic import ValidationError

    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        from kdpipe.plan.config import explain

        raise explain(error, kind, f"option {option}") from None


def _epoch(text: str) -> tuple[int, Precision]:
    """An epoch and how its weights are kept: `10` (float32) or `10:float16`.

    Raises:
        ConfigError: it is something else.
    """
    number, _, precision = text.partition(":")
    if not number.isdecimal() or not int(number) or precision not in ("", "float16"):
        raise ConfigError(
            f"'{text}' is no epoch", fix="count from 1: 10, or 10:float16 for weights in float16"
        )
    return int(number), "float16" if precision else "float32"


def _order(plan: Plan, root: Results, name: str) -> dict[str, Any]:
    """The options of `kdpipe train` for a run of a plan, as the rules give them."""
    from kdpipe.plan.imported import start_of

    planned = plan.runs[name]
    keep = [*map(str, planned.keep), *(f"{epoch}:float16" for epoch in planned.keep_half)]
    return {
        "run": planned.run.model_dump_json(),
        "out": root.run(name).root,
        "data": root.data(planned.data),
        "teacher": [root.root / file for file in plan.teacher_weights(name)],
        "part": root.run(planned.part).model if planned.part else None,
        "keep": ",".join(keep),
        "start": start_of(planned.run, root),
        "gradients": planned.gradients,
        "compared": root.root / place if (place := plan.teacher_place(name)) else None,
        "bank": _banks_there(root, name),
    }


def _banks_there(root: Results, name: str) -> list[Path]:
    """The banks that the workflow has chosen for a student, if they are all there."""
    from kdpipe.plan.banks import read_banks

    chosen = [root.bank(bank) for bank in read_banks(root).of.get(name, ())]
    return [paths.root for paths in chosen] if all(paths.record.is_file() for paths in chosen) else []


def _kept(
    run: str, out: Path, data: Path, teacher: list[Path], part: Path | None, start: Path | None, **_: Any
) -> Kept:
    """The kept results of a run, told by the options of `kdpipe train`."""
    from kdpipe.core.paths import RunPaths
    from kdpipe.core.specs import Run
    from kdpipe.engine.kept import Kept

    inputs = [data / "meta.json", *teacher, *filter(None, (part, start))]
    return Kept(_given(Run, run, "--run"), RunPaths(out), inputs)


def _import_training() -> None:
    """Import all that trainings use, once for every process that is forked afterwards."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's would start its threads when imported
    with no_search():
        import scipy.optimize  # noqa: F401  # measures import it when they are called

        import kdpipe.engine.train
        import kdpipe.evaluation.evaluate
        import kdpipe.tracking.observer  # noqa: F401
        from kdpipe.core import registry

        for known in (registry.models, registry.datasets, registry.recipes, registry.methods, registry.parts):
            known.names()


def _train_member(order: dict[str, Any], slot: int, *, device: str, threads: int, placed: bool) -> None:
    """Train a pack's member in its own process: the options of `kdpipe train`, and on which device."""
    if (gpus := json.loads(order["run"])["gpus"]) > 1:
        _become(order, device, threads * gpus)
    if device in ("auto", "cuda"):
        import torch

        if count := torch.cuda.device_count():
            torch.cuda.set_device(slot % count)
    train(**order, device=device, threads=threads)
    if not placed:
        _place(order, placed=False)


def _become(order: dict[str, Any], device: str, threads: int) -> NoReturn:
    """Turn this process into a `kdpipe train` of its own, whose command line its several processes repeat."""
    given = {**order, "device": device, "threads": threads}
    several = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    options = [f"--{key}={one}" for key, values in several.items() for one in values if one is not None]
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a pack holds stops back, and that would be inherited
    os.execv(sys.executable, [sys.executable, "-m", "kdpipe", "train", *options])


def _place(order: dict[str, Any], *, placed: bool) -> None:
    """Leave a finished run's results in place, or only the kept ones, for the job that places them."""
    kept = _kept(**order)
    if placed:
        _write_spec(kept.run, kept.paths)
        kept.put_back()
    elif kept.usable():
        kept.withdraw()


def _measure(run: Run, paths: RunPaths, teacher: Path | None) -> None:
    """Measure what a job has made, unless that is a part of a teacher, which predicts nothing."""
    from kdpipe.core.paths import RunPaths
    from kdpipe.evaluation.evaluate import measure

    if run.kind != "part":
        measure(paths, RunPaths(teacher) if teacher else None)


def _write_spec(run: Run | BenchRun, paths: RunPaths) -> None:
    from kdpipe.core.files import write_json

    write_json(paths.spec, {**run.model_dump(mode="json"), "id": run.id, "name": run.name})


def _adopt(run: Run, paths: RunPaths, prepared: Prepared, weights: Path, device: Any) -> None:
    from kdpipe.engine.importing import adopt as adopt_run

    _write_spec(run, paths)
    adopt_run(run, paths, prepared, weights, device)


def _machine(device: str, threads: int) -> Any:
    import torch

    from kdpipe.engine.allocator import keep_freed_memory
    from kdpipe.engine.device import pick_device

    torch.set_num_threads(threads)
    keep_freed_memory()
    return pick_device(device)


@contextmanager
def _processes(run: Run, device: str, threads: int, log: Path | None = None) -> Iterator[Processes | None]:
    """The processes that train a run, this one among them; None where it has started others that did it."""
    if run.gpus == 1:
        from kdpipe.engine.processes import Processes

        yield Processes(_machine(device, threads))
        return
    from kdpipe.engine.launch import join, joined, launch

    if joined():
        with join(device, threads) as processes:
            yield processes
    else:
        launch(run, device, log)
        yield None


def _stop_on_signal() -> Stop:
    from kdpipe.engine.stop import Stop

    stop = Stop()

    def ask(*_: object) -> None:
        stop.requested = True

    numbers = signal.SIGTERM, signal.SIGUSR1
    for number in numbers:
        signal.signal(number, ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # a pack holds them back until here
    return stop


@contextmanager
def _watchers(run: Run, paths: RunPaths, log: Path | None, device: Any) -> Iterator[list[Observer]]:
    """Who watches a training: the terminal, the journal, and the logs, which also get what goes wrong.

    `train.log` has every attempt. Snakemake deletes `log` at each.
    """
    from kdpipe.engine.machine import Machine
    from kdpipe.engine.observe import Bar, Lines
    from kdpipe.tracking.observer import JournalObserver

    wanted = dict.fromkeys(path.resolve() for path in (paths.log, log) if path)
    with _logged([*wanted]) as logs:
        watchers: list[Observer] = [JournalObserver(paths.journal, Machine(device).used)]
        watchers += [Lines(run, file, every=0) for file in logs]
        if not _in_log(paths.log):
            watchers.append(Bar(run) if log is None and sys.stderr.isatty() else Lines(run))
        yield watchers


@contextmanager
def _logged(logs: list[Path]) -> Iterator[Sequence[TextIO]]:
    """Files to append to; an error within the block is told in each, unless stderr goes there already."""
    with ExitStack() as stack:
        files = [stack.enter_context(_appended(log)) for log in logs]
        try:
            yield files
        except BaseException as error:
            told = f"error: {error}\n" if isinstance(error, KdpipeError) else traceback.format_exc()
            for log, file in zip(logs, files, strict=True):
                if not _in_log(log):
                    with suppress(OSError):
                        file.write(told)
            raise


def _appended(log: Path) -> TextIO:
    """A log to append to; unbuffered, so that nothing is left for a full disk to refuse again at the end."""
    from kdpipe.core.files import write_error

    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return io.TextIOWrapper(open(log, "ab", buffering=0), "utf-8", write_through=True)
    except OSError as error:
        raise write_error(log, error) from error


def _in_log(log: Path) -> bool:
    """Whether stderr goes to a log, as it does in a pack."""
    return os.path.samestat(os.fstat(2), os.stat(log))
