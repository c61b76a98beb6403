"""From studies to runs: every default filled in, every name checked, before any job starts.

This is the one part of the plan that asks the plug-ins (and so imports torch, through the registry);
`kdpipe.plan.load` runs it in a process of its own when a Snakefile is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdpipe.api.dataset import DatasetSpec
from kdpipe.api.model import ModelSpec
from kdpipe.api.settings import Settings, later_settings, scaled
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, PluginError, UnknownNameError, UserError
from kdpipe.core.ids import id_in
from kdpipe.core.measures import METRICS
from kdpipe.core.specs import (
    AUGMENTATION,
    IMPORTED,
    Bank,
    BankSpec,
    Choice,
    DataSpec,
    Part,
    Protocol,
    Run,
    RunSpec,
    Start,
    TeacherRef,
)
from kdpipe.engine.augment import Pipeline
from kdpipe.nn.banked import banks_for
from kdpipe.nn.taps import expand
from kdpipe.plan.benches import bench_runs, plots_of
from kdpipe.plan.chains import models_of, step_entry
from kdpipe.plan.checkpoints import TeacherEpochs, check_checkpoints
from kdpipe.plan.config import (
    Config,
    ProtocolFile,
    explain,
    parse,
    read_protocol,
    read_scales,
    read_study,
    scale_epoch,
)
from kdpipe.plan.datasets import all_datasets, find_dataset, stand_in
from kdpipe.plan.imported import Imported, import_command, imported_run
from kdpipe.plan.plan import (
    TEACHER,
    Cell,
    Plan,
    PlannedBank,
    PlannedBench,
    PlannedRun,
    PlannedStudy,
    Printed,
    Work,
)
from kdpipe.plan.reference import read_printed
from kdpipe.plan.study import Chain, Entry, Pair, Protocols, Scale, Study
from kdpipe.plan.work import forward_of, work_of

NONE: Mapping[str, Any] = {}
T = TypeVar("T")


def resolve(config: Config) -> Plan:
    """Every run that the configured studies need; runs that studies share appear once.

    Raises:
        ConfigError: a name, a setting or a combination is wrong; the message says where.
    """
    if not config.wanted:
        raise ConfigError("no study is asked for", where="key 'studies'", fix="name files of config/studies")
    folder = Path(config.folder)
    _check_setting_names(config.settings, where="settings (config or command line)")
    plans = [
        _StudyResolver(name, read_study(name, folder), config, folder).resolve()
        for name in dict.fromkeys(config.wanted)
    ]
    return _merge(plans)


@dataclass
class _Resolved:
    """An objective's settings and where each came from."""

    part: Part
    sources: dict[str, str]
    later: dict[str, Any]
    instance: Any


def _once(ask: Callable[..., T]) -> Callable[..., T]:
    """Ask a method of the resolver once for a data set and these arguments: seeds change nothing of it."""

    @wraps(ask)
    def asked(self: _StudyResolver, *given: Any) -> T:
        plain = [value.model_dump_json() if isinstance(value, BaseModel) else value for value in given]
        key = (ask.__name__, id(self.site), *plain)
        if key not in self.known:
            self.known[key] = ask(self, *given)
        known: T = self.known[key]
        return known

    return asked


@dataclass(frozen=True)
class _Site:
    """Where networks train: the data set as the study names it and as it is run on, and the protocols.

    Attributes:
        nominal: name of the data set in the study's file.
        dataset: the one that is used, at a scale that names its own another one.
        data: which of its images the trainings see.
        names: of the protocols.
        protocols: their files, by `teacher` and `student`.
    """

    nominal: str
    dataset: DatasetSpec
    data: DataSpec
    names: Protocols
    protocols: dict[str, ProtocolFile]


@dataclass
class _StudyResolver:
    """Resolves one study.

    Args:
        name: its file's name.
        study: its content.
        config: the workflow's settings.
        folder: where protocols and scales lie.
    """

    name: str
    study: Study
    config: Config
    folder: Path
    runs: dict[str, PlannedRun] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    known: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    banks: dict[str, PlannedBank] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.where = f"{self.folder}/studies/{self.name}.yaml"
        self.scale_name, self.scale = self._scale()
        self.seeds = self.study.seeds[: self.scale.seeds]
        self.precision = self.config.checkpoint_precision or self.study.checkpoint_precision
        self.study = stand_in(self.study, self.config, self.folder, self.where)
        self.sites: dict[tuple[str, str, str], _Site] = {}
        wanted = [("pairs", name) for pair in self.study.pairs for name in (pair.teacher, pair.student)]
        wanted += [("chains", name) for name in models_of(self.study)]
        self.models = {
            name: registry.models.get(name, where=f"{self.where}, key '{key}'") for key, name in wanted
        }
        for pair in self.study.pairs:
            site = self._site(pair)
            self._check_sides(site, (pair.teacher, pair.student), "pairs")
            check_checkpoints(self.study, site.protocols["teacher"].settings, self.where)
        if self.study.chains:
            site = self._site()
            self._check_sides(site, models_of(self.study), "chains")
            check_checkpoints(self.study, site.protocols["teacher"].settings, self.where)
        for metric in self.study.metrics:
            if metric not in METRICS:
                raise UnknownNameError.of("measure", metric, METRICS, where=f"{self.where}, key 'metrics'")
        _check_setting_names(self.study.settings, where=f"{self.where}, key 'settings'")
        _check_setting_names(
            self.scale.settings, where=f"{self.where}, settings of scale '{self.scale_name}'"
        )
        for pair in self.study.pairs:
            _check_setting_names(pair.settings, where=f"{self.where}, key 'pairs'")
        for key, kind, entries in (
            ("recipes", registry.recipes, self.study.recipes),
            ("methods", registry.methods, self.study.methods),
        ):
            for entry in entries:
                if kind is not registry.recipes or entry.name != IMPORTED:
                    kind.get(entry.name, where=f"{self.where}, key '{key}'")

    def _site(self, pair: Pair | None = None) -> _Site:
        """Where a pair's networks train; without one, where the study's chains do."""
        nominal = (pair.dataset if pair else "") or self.study.dataset
        names = (pair.protocol if pair else None) or self.study.protocol
        key = (nominal, names.teacher, names.student)
        if key not in self.sites:
            where = f"{self.where}, key 'dataset'"
            dataset = find_dataset(nominal, self.folder, where)
            if self.scale.dataset:
                dataset = find_dataset(self.scale.dataset, self.folder, f"{self.where}, key 'scales'")
            protocols = {kind: self._read_protocol(name) for kind, name in names}
            self.sites[key] = _Site(nominal, dataset, self._data(dataset), names, protocols)
        return self.sites[key]

    @property
    def dataset(self) -> DatasetSpec:
        """The data set at hand."""
        return self.site.dataset

    @property
    def data(self) -> DataSpec:
        """Which of its images the trainings at hand see."""
        return self.site.data

    def resolve(self) -> Plan:
        """The study's runs and cells, in the order of its table."""
        for pair in self.study.pairs:
            self.site = self._site(pair)
            for recipe in self.study.recipes:
                for seed in self.seeds:
                    teacher = self._teacher(pair, recipe, seed)
                    own_seed = self.seeds[0] if recipe.name == IMPORTED else seed  # one for all seeds
                    self._cell(TEACHER, recipe, pair, own_seed, teacher, own=True)
                    self._kept(pair, recipe, seed, teacher)
                    self._students(pair, recipe, seed, teacher)
                    self._curves(pair, recipe, seed, teacher)
        for chain in self.study.chains:
            self.site = self._site()
            for seed in self.seeds:
                for alpha in chain.alphas:
                    self._chain(chain, alpha, seed)
        cells = tuple(dict.fromkeys(self.cells))
        self._observe()
        benches, places = bench_runs(
            self.name, self.study, self.seeds, self._images(), self.config, self.where, self.scale.settings
        )
        plots = plots_of(self.study, self.where)
        study = PlannedStudy(
            self.name,
            self.study,
            self.scale_name,
            cells,
            places,
            plots,
            tuple(self._printed()),
            "" if self.study.datasets == (self.scale.dataset,) else self.scale.dataset,
        )
        return Plan(self.runs, {self.name: study}, benches, self.banks)

    def _printed(self) -> list[Printed]:
        """What the paper prints."""
        if not self.study.printed:
            return []
        known = {
            "dataset": all_datasets(self.folder),
            "model": registry.models.names(),
            "recipe": registry.recipes.names(),
            "method": registry.methods.names(),
        }
        return read_printed(self.study.printed, self.folder, known, f"{self.where}, key 'printed'")

    def _images(self) -> DatasetSpec | None:
        """What the study's benches see."""
        if not (self.study.benches and self.study.dataset):
            return None
        name = self.scale.dataset or self.study.dataset
        return find_dataset(name, self.folder, f"{self.where}, key 'dataset'")

    def _chain(self, chain: Chain, alpha: float, seed: int) -> None:
        """The runs and cells of one chain: step after step, each taught by the one before."""
        before, choice = None, None
        for step in range(1, chain.steps + 1):
            model = chain.model(step)
            entry = step_entry(chain, alpha, step)
            objective = self._objective("recipe", entry, Pair(teacher=model, student=model), entry.name)
            start = self._start(chain, model)
            before = self._one_teacher(objective, model, seed, before, step - 1, choice, start)
            if chain.pass_on != "last":
                choice = self._epochs(model).choice(chain.pass_on)
                self._keep(before, choice.epochs)
                self._choose(before, choice)
            name = choice.name if choice else None
            self.cells.append(
                Cell(
                    "chain",
                    str(step),
                    entry.label,
                    chain.label,
                    None,
                    seed,
                    run=before,
                    choice=name,
                    dataset=self.site.nominal,
                )
            )

    def _start(self, chain: Chain, model: str) -> Start | None:
        """The imported weights that a chain's network starts from, if any."""
        if chain.start is None or self.scale.new_weights:
            return None
        where = f"{self.where}, key 'chains', start of '{chain.label}'"
        channels = find_dataset(chain.start.dataset, self.folder, where).shape[0]
        if channels != self.dataset.shape[0]:
            raise ConfigError(
                f"the weights are for images of {channels} channels; those of {self.dataset.name} have "
                f"{self.dataset.shape[0]}",
                where=where,
            )
        sha256 = chain.start.files.get(model)
        if sha256 is None:
            command = import_command(chain.start.dataset, model)
            raise ConfigError(
                f"'files' names no weights of {model}", where=where, fix=f"{command} prints them"
            )
        return parse(Start, {"dataset": chain.start.dataset, "sha256": sha256}, where)

    def _observe(self) -> None:
        """Note what the study wants to see of its runs beside their predictions."""
        features = "tsne" in self.study.figures or any(METRICS[m].needs_features for m in self.study.metrics)
        for name, planned in self.runs.items():
            own = features and planned.run.kind != "part"
            self.runs[name] = replace(planned, features=own, gradients=self.study.gradients)

    def _students(self, pair: Pair, recipe: Entry, seed: int, teacher: str) -> None:
        for method in self.study.methods:
            if registry.methods.get(method.name).teacher:
                self._student_cell("table", method, pair, recipe, seed, teacher, None)
            else:
                run = self._student(method, pair, None, seed, None, None)
                self.cells.append(
                    Cell(
                        "table",
                        method.label,
                        None,
                        None,
                        pair.student,
                        seed,
                        run=run,
                        dataset=self.site.nominal,
                    )
                )

    def _kept(self, pair: Pair, recipe: Entry, seed: int, teacher: str) -> None:
        """The teacher's own numbers at the epochs that the study keeps."""
        if recipe.name == IMPORTED:
            return
        for epoch in self._epochs(pair.teacher).kept():
            self._cell(TEACHER, recipe, pair, seed, teacher, own=True, part="kept", epoch=epoch)
            self._keep(teacher, (epoch,))

    def _curves(self, pair: Pair, recipe: Entry, seed: int, teacher: str) -> None:
        by_label = {m.label: m for m in self.study.methods}
        for curve in self.study.curves:
            method = by_label[curve.method]
            for epoch in self._epochs(pair.teacher).curve(curve):
                last = epoch == self._protocol(pair.teacher, "teacher").epochs
                at = None if last else epoch
                why = self._no_epochs(recipe, teacher)
                if why and (at or recipe.name == IMPORTED):
                    self._cell(method.label, recipe, pair, seed, None, part="curve", epoch=at, skipped=why)
                    continue
                self._student_cell("curve", method, pair, recipe, seed, teacher, at)
                self._cell(TEACHER, recipe, pair, seed, teacher, own=True, part="curve", epoch=at)
                if at is not None:
                    self._keep(teacher, (epoch,))
            for rule in curve.rules:
                choice = self._epochs(pair.teacher).choice(rule)
                if why := self._no_epochs(recipe, teacher):
                    self._cell(
                        method.label, recipe, pair, seed, None, part="curve", choice=choice, skipped=why
                    )
                    continue
                self._keep(teacher, choice.epochs)
                self._choose(teacher, choice)
                self._student_cell("curve", method, pair, recipe, seed, teacher, None, choice)
                self._cell(TEACHER, recipe, pair, seed, teacher, own=True, part="curve", choice=choice)

    def _no_epochs(self, recipe: Entry, teacher: str) -> str | None:
        """Why nothing can be distilled from a teacher's earlier epochs, or None."""
        if recipe.name == IMPORTED:
            return "an imported teacher has no earlier epochs"
        if self._folds(self.runs[teacher].run):
            return "of a teacher of several networks only the last weights are kept"
        return None

    def _student_cell(
        self,
        part: str,
        method: Entry,
        pair: Pair,
        recipe: Entry,
        seed: int,
        teacher: str,
        epoch: int | None,
        choice: Choice | None = None,
    ) -> None:
        why = _not_asked(method, recipe)
        why = why or self._skip(method, pair, recipe) or self._no_route(method, pair, recipe, teacher, choice)
        run = None if why else self._student(method, pair, recipe, seed, teacher, epoch, choice)
        self._cell(method.label, recipe, pair, seed, run, part=part, epoch=epoch, choice=choice, skipped=why)

    def _no_route(
        self, method: Entry, pair: Pair, recipe: Entry, teacher: str, choice: Choice | None
    ) -> str | None:
        """Why a method that follows the teacher's training cannot follow this one's, or None."""
        epochs = self.runs[teacher].run.spec.protocol.epochs
        followed = self._objective("method", method, pair, recipe.name).instance.anchors(epochs)
        if recipe.name == IMPORTED or not followed:
            return None  # from an imported teacher, such a method makes do with the last epoch
        if choice:
            return f"{method.name} follows the teacher's training up to an epoch that has to be known"
        return self._no_epochs(recipe, teacher)

    def _cell(
        self,
        row: str,
        recipe: Entry,
        pair: Pair,
        seed: int,
        run: str | None,
        *,
        own: bool = False,
        part: str = "table",
        epoch: int | None = None,
        choice: Choice | None = None,
        skipped: str | None = None,
    ) -> None:
        student = None if own else pair.student
        chosen = choice.name if choice else None
        precision = self.precision if epoch else "float32"
        self.cells.append(
            Cell(
                part=part,
                row=row,
                recipe=recipe.label,
                teacher=pair.teacher,
                student=student,
                seed=seed,
                epoch=epoch,
                run=run,
                skipped=skipped,
                choice=chosen,
                precision=precision,
                dataset=self.site.nominal,
                full=self.site.protocols["teacher"].settings.epochs if part != "table" else None,
            )
        )

    def _imported(self, pair: Pair, recipe: Entry) -> str:
        where = f"{self.where}, settings of recipe '{recipe.label}'"
        sha256 = parse(Imported, recipe.settings, where).files.get(pair.teacher)
        if sha256 is None:
            command = import_command(self.dataset.name, pair.teacher)
            raise ConfigError(
                f"'files' names no checkpoint of {pair.teacher}",
                where=where,
                fix=f"{command} prints its entry",
            )
        run = imported_run(self.dataset, self.models[pair.teacher], sha256, self.data.test_samples)
        return self._plan(run, None, None)

    def _teacher(self, pair: Pair, recipe: Entry, seed: int) -> str:
        if recipe.name == IMPORTED:
            return self._imported(pair, recipe)
        objective = self._objective("recipe", recipe, pair, recipe.name)
        if objective.instance.needs_validation and self.data.split != "train-val":
            raise ConfigError(
                f"recipe '{recipe.name}' looks at validation images, and the study holds none out",
                where=f"{self.where}, key 'split'",
                fix="split: train-val",
            )
        generations = objective.instance.generations()
        if not generations:
            return self._one_teacher(objective, pair.teacher, seed, change=recipe.protocol)
        first, settings = objective.instance.first()
        ordinary = self._objective("recipe", Entry(name=first, settings=settings), pair, first)
        before = self._one_teacher(ordinary, pair.teacher, seed)
        for generation in range(1, generations + 1):
            settings = {**objective.part.settings, "generations": generation}
            made = replace(objective, part=objective.part.model_copy(update={"settings": settings}))
            before = self._one_teacher(made, pair.teacher, seed, before, generation, change=recipe.protocol)
        return before

    def _one_teacher(
        self,
        objective: _Resolved,
        model: str,
        seed: int,
        before: str | None = None,
        generation: int = 0,
        choice: Choice | None = None,
        start: Start | None = None,
        change: Mapping[str, Any] = NONE,
    ) -> str:
        """A teacher's run, after the teacher (or the checkpoint of it) that it learns from itself, if any."""
        ref = TeacherRef(run=id_in(before), choice=choice) if before else None
        spec = self._spec(model, seed, recipe=objective.part, teacher=ref, start=start, change=change)
        name = objective.part.name
        nth = f"_g{generation}" if generation else ""
        label = f"teacher_{self.dataset.name}_{model}_{name}{nth}_s{seed}"
        own = self.runs[before].run.spec.model.name if before else model
        networks = (model, None) if own == model else (own, model)
        return self._add(spec, label, objective, networks, name, before)

    def _student(
        self,
        method: Entry,
        pair: Pair,
        recipe: Entry | None,
        seed: int,
        teacher: str | None,
        epoch: int | None,
        choice: Choice | None = None,
    ) -> str:
        recipe_name = recipe.name if recipe else None
        objective = self._objective("method", method, pair, recipe_name or "*")
        ref, part = None, None
        if teacher:
            ref = self._reference(objective, teacher, epoch, choice)
            part = self._part(objective, pair, teacher, ref, recipe_name)
            ref = ref.model_copy(update={"part": id_in(part)}) if part else ref
        spec = self._spec(pair.student, seed, method=objective.part, teacher=ref, change=method.protocol)
        spec = self._rounded(spec, objective.instance)
        label = f"student_{self.dataset.name}_{pair.student}_{method.name}_s{seed}"
        if teacher:
            at = _at(epoch, choice)
            nets = f"{pair.teacher}-{pair.student}"
            label = f"student_{self.dataset.name}_{nets}_{method.name}_{recipe_name}{at}_s{seed}"
        networks = (pair.teacher if teacher else None, pair.student)
        return self._add(spec, label, objective, networks, recipe_name, teacher, part)

    def _rounded(self, spec: RunSpec, method: Any) -> RunSpec:
        """A student, its teacher's logits rounded where they could lie in a bank and the user wants it."""
        exact = self.config.bank.precision == "float32" or spec.protocol.taught_in == "bfloat16"
        if exact or spec.teacher is None or self.dataset.on_disk or not banks_for(spec, method):
            return spec
        rounded = spec.teacher.model_copy(update={"logits": self.config.bank.precision})
        return spec.model_copy(update={"teacher": rounded})

    def _banks(self, run: Run, method: Any, teacher: str, work: Work | None) -> tuple[str, ...]:
        """Names of the banks that a student could learn from, all of which are noted.

        None at all for images that stay in their files: the students have to decode them anyway, and such a
        data set's logits fill a disk. Nor for several GPUs, each of which sees a part of a batch.
        """
        if self.dataset.on_disk or run.gpus > 1:
            return ()
        model = self.runs[teacher].run.spec.model.name
        return tuple(self._bank(spec, run, teacher, model, work) for spec in banks_for(run.spec, method))

    def _bank(self, spec: BankSpec, run: Run, teacher: str, model: str, work: Work | None) -> str:
        """Name of a bank, which is noted; worked out once for all students that can read it."""
        key = "bank", spec.model_dump_json()
        if key not in self.known:
            at = _at(spec.teacher.epoch, spec.teacher.choice)
            view = "" if spec.view == AUGMENTATION else f"_{spec.view}"
            label = f"bank_{self.dataset.name}_{model}_{run.recipe}{at}{view}_s{spec.seed}"
            bank = Bank(spec=spec, label=label, model=model)
            forward = forward_of(model, work.classes, self.dataset.shape) if work else 0
            images, classes = (work.images, work.classes) if work else (0, 0)
            self.known[key] = bank.name
            self.banks[bank.name] = PlannedBank(bank, teacher, self.dataset.folder, images, classes, forward)
        name: str = self.known[key]
        return name

    def _reference(
        self, method: _Resolved, teacher: str, epoch: int | None, choice: Choice | None
    ) -> TeacherRef:
        """The teacher as a student's spec names it; what the method wants of its training is kept."""
        run = self.runs[teacher].run
        last = epoch or run.spec.protocol.epochs
        anchors = () if run.imported or choice else tuple(method.instance.anchors(last))
        self._keep(teacher, anchors)
        folds = 0 if epoch or anchors or run.imported else self._folds(run)
        precision = self.precision if epoch or anchors else "float32"
        return TeacherRef(
            run=id_in(teacher), epoch=epoch, anchors=anchors, folds=folds, choice=choice, precision=precision
        )

    def _folds(self, run: Run) -> int:
        """How many networks a teacher consists of, each for the data that it did not learn."""
        plugin = registry.recipes.get(run.spec.objective.name)
        folds: int = plugin(plugin.Config(**run.spec.objective.settings)).folds()
        return folds

    def _part(
        self, method: _Resolved, pair: Pair, teacher: str, ref: TeacherRef, recipe: str | None
    ) -> str | None:
        """The run of what the method needs on top of the teacher; one for all students of that teacher."""
        wanted = method.instance.part()
        if wanted is None:
            return None
        run = self.runs[teacher].run
        part = Part(
            name=wanted.name, revision=wanted.revision, settings=wanted.config.model_dump(mode="json")
        )
        protocol = self._protocol(pair.teacher, "teacher")
        protocol = Protocol.model_validate({**protocol.model_dump(), **wanted.protocol()})
        spec = RunSpec(
            data=self.data,
            model=run.spec.model,
            protocol=_in_effect(protocol, ref),
            part=part,
            teacher=ref,
            seed=run.spec.seed,
        )
        at = _at(ref.epoch, ref.choice)
        label = f"part_{self.dataset.name}_{pair.teacher}_{wanted.name}_{recipe}{at}_s{run.spec.seed}"
        made = _Resolved(
            part, dict.fromkeys(part.settings, "its method"), later_settings(wanted.Config), wanted
        )
        return self._add(spec, label, made, (pair.teacher, None), recipe, teacher)

    def _keep(self, teacher: str, epochs: tuple[int, ...]) -> None:
        """Have the weights of a teacher's epochs kept."""
        if not epochs:
            return
        planned = self.runs[teacher]
        if self.precision == "float32":
            self.runs[teacher] = replace(planned, keep=tuple(sorted({*planned.keep, *epochs})))
        else:
            self.runs[teacher] = replace(planned, keep_half=tuple(sorted({*planned.keep_half, *epochs})))

    def _choose(self, teacher: str, choice: Choice) -> None:
        """Have a rule pick one of a teacher's checkpoints."""
        planned = self.runs[teacher]
        self.runs[teacher] = replace(planned, choices={**planned.choices, choice.name: choice})

    def _parameters(self, run: Run) -> int:
        """Parameters of a run's network; 0 where the classes are counted when the data are prepared."""
        classes = self.dataset.num_classes
        return self.models[run.spec.model.name].params_at(classes) if classes else 0

    def _add(
        self,
        spec: RunSpec,
        label: str,
        objective: _Resolved,
        pair: tuple[str | None, str | None],
        recipe: str | None,
        teacher: str | None,
        part: str | None = None,
    ) -> str:
        kind = "student" if spec.method else "teacher"
        gpus = self.site.protocols[kind].gpus
        if gpus > 1 and spec.protocol.compile:
            raise ConfigError(
                f"protocol '{getattr(self.site.names, kind)}' has {gpus} GPUs share a run, "
                "which compiled networks and captured steps cannot",
                where=self.where,
                fix="set gpus to 1 or compile to false in the protocol",
            )
        run = Run(
            spec=spec,
            label=label,
            protocol=getattr(self.site.names, kind),
            scale=self.scale_name,
            sources=objective.sources,
            pair=pair,
            recipe=recipe,
            later=objective.later,
            gpus=gpus,
        )
        return self._plan(run, objective.instance, teacher, part)

    def _plan(self, run: Run, objective: Any, teacher: str | None, part: str | None = None) -> str:
        """Note that a run is wanted, unless it is already; its name."""
        name = run.name
        if name in self.runs:
            return name
        taught_by = self.runs[teacher].run.spec.model.name if teacher else None
        work = work_of(run.spec, self.dataset, objective, taught_by)
        self.runs[name] = PlannedRun(
            run,
            teacher,
            self.dataset.folder,
            studies=(self.name,),
            part=part,
            parameters=0 if run.kind == "part" else self._parameters(run),
            work=work,
            banks=self._banks(run, objective, teacher, work) if teacher else (),
        )
        return name

    def _spec(
        self,
        model: str,
        seed: int,
        *,
        recipe: Part | None = None,
        method: Part | None = None,
        teacher: TeacherRef | None = None,
        start: Start | None = None,
        change: Mapping[str, Any] = NONE,
    ) -> RunSpec:
        protocol = self._changed(self._protocol(model, "teacher" if recipe else "student"), change)
        return RunSpec(
            data=self.data,
            model=Part(name=model, revision=self.models[model].revision),
            protocol=_in_effect(protocol, teacher),
            recipe=recipe,
            method=method,
            teacher=teacher,
            seed=seed,
            start=start,
        )

    @_once
    def _objective(self, kind: str, entry: Entry, pair: Pair, recipe: str) -> _Resolved:
        """Its settings: default < published < study < pair < entry < scale < command line."""
        plugin = registry.REGISTRIES[kind].get(entry.name)
        # of the data set that the study names, also where its scale runs it on another
        published = plugin.published_for(self.site.nominal, pair.teacher, pair.student, recipe)
        layers = (
            (published.settings if published else {}, f"published: {published.source}" if published else ""),
            (self.study.settings.get(entry.name, {}), f"study {self.name}"),
            (pair.settings.get(entry.name, {}), f"study {self.name}, this pair"),
            (entry.settings, f"study {self.name}"),
            (self.scale.settings.get(entry.name, {}), f"scale {self.scale_name}"),
            (self.config.settings.get(entry.name, {}), "command line"),
        )
        values: dict[str, Any] = {}
        sources = dict.fromkeys(plugin.Config.model_fields, "default")
        for settings, source in layers:
            values = _merged(values, settings)
            sources |= dict.fromkeys(settings, source)
        try:
            settings = plugin.Config.model_validate(values).model_dump(mode="json")
        except ValidationError as error:
            key = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else ""
            origin = sources.get(key, "default")
            raise explain(
                error, plugin.Config, f"{self.where}, settings of {kind} '{entry.name}' ({origin})"
            ) from None
        settings, sources = self._scaled(kind, plugin.Config, settings, sources)
        part = Part(name=entry.name, revision=plugin.revision, settings=settings)
        instance = plugin(plugin.Config(**settings))
        return _Resolved(part, sources, later_settings(plugin.Config), instance)

    def _scaled(
        self, kind: str, config: type[Settings], settings: dict[str, Any], sources: dict[str, str]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Settings that count epochs, shortened as the study's scale shortens the protocol."""
        full = self.site.protocols["teacher" if kind == "recipe" else "student"].settings.epochs
        reduced = self.scale.epochs or full
        if reduced == full:
            return settings, sources
        shorter = scaled(config, settings, lambda epochs: scale_epoch(epochs, full, reduced))
        told = {
            name: f"{sources[name]}, {settings[name]} of {full} epochs at this scale"
            for name in settings
            if shorter[name] != settings[name]
        }
        return shorter, {**sources, **told}

    @_once
    def _skip(self, method: Entry, pair: Pair, recipe: Entry) -> str | None:
        """Why a method cannot distil a pair: its own reason, or a tap that a network lacks."""
        objective = self._objective("method", method, pair, recipe.name).instance
        teacher, student = self.models[pair.teacher], self.models[pair.student]
        wish = objective.taps()
        for spec, names in ((student, wish.student), (teacher, wish.teacher)):
            try:
                expand(spec, names)
            except PluginError as error:
                return str(error)
        reason: str | None = objective.skip(student, teacher)
        return reason

    def _check_sides(self, site: _Site, models: Iterable[str], key: str) -> None:
        """Refuse networks that take images of another size only, and those that need larger ones."""
        shape, where = site.dataset.shape, f"{self.where}, key '{key}'"
        for name in models:
            spec = self.models[name]
            if spec.fixed and spec.side != shape[1]:
                raise ConfigError(
                    f"{name} takes images of {spec.side} pixels only; "
                    f"those of {site.dataset.name} have {shape[1]}",
                    where=where,
                )
            try:
                forward_of(name, site.dataset.num_classes or 2, shape)
            except ConfigError as error:
                raise error.at(where) from None

    def _read_protocol(self, name: str) -> ProtocolFile:
        file = read_protocol(name, self.folder, f"{self.where}, key 'protocol'")
        try:
            Pipeline(file.settings.augmentation)
        except UserError as error:
            raise error.at(f"{self.folder}/protocols/{name}.yaml") from None
        return file

    @_once
    def _protocol(self, model: str, kind: str) -> Protocol:
        spec: ModelSpec = self.models[model]
        return self.site.protocols[kind].at(self.scale, spec.light)

    def _changed(self, protocol: Protocol, change: Mapping[str, Any]) -> Protocol:
        """A protocol with what an entry changes of it."""
        fixed = sorted(change.keys() & {"epochs", "milestones"})
        where = f"{self.where}, key 'protocol' of an entry"
        if fixed:
            raise ConfigError(
                f"an entry cannot change '{fixed[0]}', which the study's scale decides",
                where=where,
                fix="name another protocol, or make another study",
            )
        return parse(Protocol, {**protocol.model_dump(mode="json"), **change}, where) if change else protocol

    def _epochs(self, teacher: str) -> TeacherEpochs:
        """The epochs of a teacher that the study is after."""
        full, here = self.site.protocols["teacher"].settings, self._protocol(teacher, "teacher")
        return TeacherEpochs(self.study, full, here, self.precision, self.where)

    def _scale(self) -> tuple[str, Scale]:
        name = self.config.scale or self.study.scale
        known = {"full": Scale(), **read_scales(self.folder), **self.study.scales}
        if name not in known:
            raise UnknownNameError.of("scale", name, known, where=f"{self.where}, key 'scale'")
        return name, known[name]

    def _data(self, dataset: DatasetSpec) -> DataSpec:
        sizes = dataset.sizes

        def limit(asked: int | None, split: str) -> int | None:
            return asked if asked is not None and asked < sizes.get(split, asked + 1) else None

        return DataSpec(
            dataset=dataset.name,
            revision=dataset.revision,
            split=self.study.split,
            train_samples=limit(self.scale.train_samples, "train"),
            test_samples=limit(self.scale.test_samples, "test"),
        )


def _not_asked(method: Entry, recipe: Entry) -> str | None:
    """Why the study does not distil a recipe's teachers with a method, or None."""
    if not method.recipes or recipe.label in method.recipes:
        return None
    return f"{method.label} is asked for with {', '.join(method.recipes)} teachers only"


def _in_effect(protocol: Protocol, teacher: TeacherRef | None) -> Protocol:
    """A protocol that names a precision of the teacher only if that differs, and there is a teacher."""
    own = teacher and protocol.taught_in != protocol.precision
    return protocol if own else protocol.model_copy(update={"teacher_precision": None})


def _at(epoch: int | None, choice: Choice | None) -> str:
    """Which checkpoint of the teacher it is, for a label."""
    return f"_{choice.rule}" if choice else f"_e{epoch}" if epoch else ""


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over settings; those of a combined method's members are merged one by one."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _check_setting_names(settings: Mapping[str, Any], where: str) -> None:
    for name in settings:
        if name in registry.recipes.names():
            continue
        try:
            registry.methods.get(name, where=where)
        except UnknownNameError:
            if name in (benches := registry.benches.names()):  # which import pandas
                continue
            known = [*registry.recipes.names(), *registry.methods.names(), *benches]
            raise UnknownNameError.of("recipe, method or bench", name, known, where=where) from None


def _merge(plans: list[Plan]) -> Plan:
    """The union of the studies' plans: shared runs once, with everything that anyone wants kept."""
    runs: dict[str, PlannedRun] = {}
    studies: dict[str, PlannedStudy] = {}
    benches: dict[str, PlannedBench] = {}
    banks: dict[str, PlannedBank] = {}
    for name, planned in _all_runs(plans):
        if name in runs:
            known = runs[name]
            runs[name] = replace(
                known,
                keep=tuple(sorted({*known.keep, *planned.keep})),
                keep_half=tuple(sorted({*known.keep_half, *planned.keep_half})),
                choices={**known.choices, **planned.choices},
                studies=tuple(dict.fromkeys((*known.studies, *planned.studies))),
                features=known.features or planned.features,
                gradients=min(filter(None, (known.gradients, planned.gradients)), default=0),
            )
        else:
            runs[name] = planned
    for plan in plans:
        studies |= plan.studies
        banks |= plan.banks
        for name, bench in plan.benches.items():
            wanted = benches[name].studies if name in benches else ()
            benches[name] = replace(bench, studies=(*wanted, *bench.studies))
    return Plan(runs, studies, benches, banks)


def _all_runs(plans: list[Plan]) -> Iterator[tuple[str, PlannedRun]]:
    for plan in plans:
        yield from plan.runs.items()
