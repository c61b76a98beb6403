"""What a run is: frozen, fully resolved, and hashed into its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.core.ids import digest, slug

ENGINE_REVISION = 1  # bump when the training loop itself gives other numbers
IMPORTED = "imported"  # the recipe of teachers whose weights come from a file
AUGMENTATION = "augmentation"  # stream of the first view of a batch
FURTHER = "view"  # start of the streams' names of the other, independent ones

Rule = Literal["lowest_nll", "lowest_ece", "best_accuracy"]
Precision = Literal["float32", "float16"]
Storage = Literal["float32", "float16", "bfloat16"]
Compile = Literal[False, True, "graphs"]
Passes = Literal["float32", "bfloat16"]


class Frozen(BaseModel):
    """Base of every settings object: immutable, unknown keys forbidden, values checked.

    Attributes:
        LATER: names of fields that were added after the first release; while one of them is at its
            default it stays out of a run's id, so that older ids survive.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Augmentation(Frozen):
    """One step of a training set's augmentation: a registered name and its settings."""

    name: str
    settings: dict[str, Any] = {}


class Protocol(Frozen):
    """How a network is trained: optimiser, schedule, batches, augmentation, precision.

    `max_grad_norm` bounds the 2-norm of all gradients of a step together; 0 does not bound it.
    `compile: true` compiles the networks; `graphs` has a GPU capture whole steps and replay them.
    `teacher_precision` is that of the teacher's passes, where it is another than `precision`.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"max_grad_norm", "teacher_precision"})

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)
    decay_on: Literal["all", "weights"] = "all"
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    drop: Literal["after", "at"] = "after"
    gamma: float = Field(0.1, gt=0, le=1)
    augmentation: tuple[Augmentation, ...] = ()
    precision: Passes = "float32"
    teacher_precision: Passes | None = None
    compile: Compile = False
    max_grad_norm: float = Field(0.0, ge=0)

    @property
    def taught_in(self) -> Passes:
        """The precision of the teacher's passes."""
        return self.teacher_precision or self.precision


Steps = tuple[Augmentation, ...]


def streams(
    augmentation: Steps, further: Sequence[Steps] = (), first: str = AUGMENTATION
) -> dict[str, Steps]:
    """The streams of views that batches carry, by name, and what makes each.

    Args:
        augmentation: the protocol's steps.
        further: for each further view, steps that follow the protocol's own, which are drawn anew for it.
        first: name of the first stream.
    """
    others = {f"{FURTHER} {number}": (*augmentation, *steps) for number, steps in enumerate(further, 2)}
    return {first: augmentation, **others}


class DataSpec(Frozen):
    """Which images a run sees.

    Attributes:
        dataset: name of the data set.
        revision: the data set plug-in's revision.
        split: `full-train` trains on all training images (the papers' way); `train-val` holds out
            a stratified `val_fraction` of them.
        val_fraction: share held out under `train-val`.
        train_samples, test_samples: a stratified subset of that size; None is everything.
        split_seed: seed of the hold-out and of the subsets (not of the run: all seeds see the same).
    """

    dataset: str
    revision: int
    split: Literal["full-train", "train-val"] = "full-train"
    val_fraction: float = Field(0.1, gt=0, lt=1)
    train_samples: int | None = Field(None, ge=1)
    test_samples: int | None = Field(None, ge=1)
    split_seed: int = 0


class Part(Frozen):
    """A plug-in as used by one run: its name, its revision and every setting."""

    name: str
    revision: int
    settings: dict[str, Any] = {}


def point(epoch: int, precision: Precision = "float32") -> str:
    """Name of a teacher's checkpoint: `epoch-0010`, or `epoch-0010-float16` where it is kept in that."""
    return f"epoch-{epoch:04d}" + ("" if precision == "float32" else f"-{precision}")


class Choice(Frozen):
    """One of a teacher's checkpoints, picked by its predictions of the validation images.

    Attributes:
        rule: what decides: the least negative log-likelihood or calibration error, or the best accuracy.
        epochs: among which; the end of the training is always one more.
        precision: how their weights are kept.
    """

    rule: Rule
    epochs: tuple[int, ...]
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        """Name of the chosen checkpoint's folder: the rule, and a hash of what it chooses among."""
        return f"{self.rule}-{digest(self.model_dump(mode='json'), 8)}"


class TeacherRef(Frozen):
    """The teacher of a student.

    Attributes:
        run: id of its run.
        epoch: which of its epochs teaches; None is the last.
        anchors: the epochs that teach one after the other, for a method that follows its training.
        part: id of the run that trained what the method needs on top of it.
        folds: how many networks it consists of, each teaching the part of the data that it did not learn.
        choice: the rule that picks the epoch, once the teacher is trained.
        precision: how the weights of `epoch` or `anchors` are kept.
        logits: what its logits are rounded to before a student reads them, from a bank or not.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"anchors", "part", "folds", "choice", "precision", "logits"})

    run: str
    epoch: int | None = None
    anchors: tuple[int, ...] = ()
    part: str | None = None
    folds: int = 0
    choice: Choice | None = None
    precision: Precision = "float32"
    logits: Precision = "float32"

    @property
    def checkpoints(self) -> tuple[str | None, ...]:
        """Names of the checkpoints that teach, of every anchor."""
        return tuple(point(epoch, self.precision) for epoch in self.anchors) or (self.checkpoint,)

    @property
    def checkpoint(self) -> str | None:
        """Name of the checkpoint that teaches; None for the end of the training."""
        if self.choice:
            return self.choice.name
        return point(self.epoch, self.precision) if self.epoch else None


class Start(Frozen):
    """Weights that a network starts from, in place of random ones; its classifier is drawn all the same.

    Attributes:
        dataset: what they were trained on.
        sha256: of the file that they were imported from.
    """

    dataset: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class RunSpec(Frozen):
    """One training, fully specified; two runs with equal specs are the same run.

    Attributes:
        engine: revision of the training loop.
        data: what it sees.
        model: the network in training; of a teacher's part, the teacher's network.
        protocol: how it is trained.
        recipe, method, part: the objective, one of the three: a teacher's, a student's, or that of what
            is trained on top of a teacher.
        teacher: of a student, a part, or a teacher that was itself taught.
        seed: of everything random.
        start: imported weights that the network starts from; None draws them all.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"part", "start"})

    engine: int = ENGINE_REVISION
    data: DataSpec
    model: Part
    protocol: Protocol
    recipe: Part | None = None
    method: Part | None = None
    part: Part | None = None
    teacher: TeacherRef | None = None
    seed: int = Field(ge=0)
    start: Start | None = None

    @property
    def kind(self) -> Literal["recipe", "method", "part"]:
        """Which kind of objective it has."""
        return "recipe" if self.recipe else "method" if self.method else "part"

    @property
    def objective(self) -> Part:
        """The recipe of a teacher, the method of a student, or what is trained on top of a teacher."""
        part = getattr(self, self.kind)
        assert isinstance(part, Part)
        return part


class Run(Frozen):
    """A run with what a reader wants to know about it; only `spec` and `later` make its id.

    Attributes:
        spec: the resolved settings.
        label: readable start of its folder's name; never parsed.
        protocol, scale: names that the protocol's values came from.
        sources: where each objective setting came from: default, published, study or command line.
        pair: teacher's and student's model names; of a teacher, its own or that of what taught it.
        recipe: name of the recipe that made the teacher (None for scratch).
        later: names of objective settings that were added after the first release; while one of
            them is at its default it stays out of the hash, so that older ids survive.
        gpus: how many share the work on each batch. They give the numbers that one gives, but for
            rounding, as another device does; so it is no part of the id (docs/adr/0007-several-gpus.md).
    """

    spec: RunSpec
    label: str
    protocol: str
    scale: str = "full"
    sources: dict[str, str] = {}
    pair: tuple[str | None, str | None] = (None, None)
    recipe: str | None = None
    later: dict[str, Any] = {}
    gpus: int = Field(1, ge=1)

    @property
    def id(self) -> str:
        """Hash of the canonical spec; see `design` in docs/adr/0002-identity.md."""
        spec = identity(self.spec)
        objective = spec[self.spec.kind]
        objective["settings"] = without_defaults(objective["settings"], self.later)
        return digest(spec)

    @property
    def name(self) -> str:
        """Name of the run's folder: `<label>-<id>`."""
        return f"{slug(self.label)}-{self.id}"

    @property
    def kind(self) -> str:
        """`teacher`, `student` or `part`."""
        return {"recipe": "teacher", "method": "student", "part": "part"}[self.spec.kind]

    @property
    def imported(self) -> str | None:
        """SHA-256 of the file that the weights come from; None for a run that is trained."""
        recipe = self.spec.recipe
        return recipe.settings["sha256"] if recipe and recipe.name == IMPORTED else None


class BankSpec(Frozen):
    """A teacher's logits for one view of every training image in every epoch, fully specified.

    Students with equal specs read the same numbers, whatever their methods make of them.

    Attributes:
        engine: revision of the training loop.
        data: what the students see.
        teacher: whose logits they are.
        view: name of the stream of views.
        augmentation: everything that makes the views, in order.
        batch_size, epochs: as the students' protocol states them.
        precision: of the teacher's passes, which is no other than beside its students.
        compile: whether their networks are compiled.
        seed: of order and augmentation, which is the students'.
    """

    engine: int = ENGINE_REVISION
    data: DataSpec
    teacher: TeacherRef
    view: str
    augmentation: Steps
    batch_size: int
    epochs: int
    precision: Passes
    compile: bool
    seed: int

    @property
    def id(self) -> str:
        """Hash of the canonical spec."""
        return digest(identity(self))

    @property
    def storage(self) -> Storage:
        """The smallest type that holds the logits as the students are given them."""
        return "bfloat16" if self.precision == "bfloat16" else self.teacher.logits


class Bank(Frozen):
    """A bank with what a reader wants to know about it; only `spec` makes its id.

    Attributes:
        spec: the resolved settings.
        label: readable start of its folder's name; never parsed.
        model: the teacher's network.
    """

    spec: BankSpec
    label: str
    model: str

    @property
    def id(self) -> str:
        """Hash of the canonical spec."""
        return self.spec.id

    @property
    def name(self) -> str:
        """Name of the bank's folder: `<label>-<id>`."""
        return f"{slug(self.label)}-{self.id}"


class BenchSpec(Frozen):
    """One run of a bench, fully specified.

    Attributes:
        bench: the bench: name, revision, every setting.
        data: the data set it sees, by name and revision; None for one that needs none.
        seed: of everything random.
    """

    bench: Part
    data: Part | None = None
    seed: int = Field(ge=0)


class BenchRun(Frozen):
    """A run of a bench with what a reader wants to know about it; only `spec` and `later` make its id.

    Attributes:
        spec: the resolved settings.
        sources, later: as in `Run`.
    """

    spec: BenchSpec
    sources: dict[str, str] = {}
    later: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """Hash of the canonical spec."""
        spec = identity(self.spec)
        spec["bench"]["settings"] = without_defaults(spec["bench"]["settings"], self.later)
        return digest(spec)

    @property
    def name(self) -> str:
        """Name of the run's folder: `bench_<bench>[_<data set>]_s<seed>-<id>`."""
        spec = self.spec
        data = f"_{spec.data.name}" if spec.data else ""
        return f"{slug(f'bench_{spec.bench.name}{data}_s{spec.seed}')}-{self.id}"


def identity(part: Frozen) -> dict[str, Any]:
    """`part` as plain data, less every field named in a `LATER` that is at its default."""
    nested = {name: value for name, value in part if isinstance(value, Frozen)}
    plain: dict[str, Any] = part.model_dump(mode="json", exclude=set(nested))
    plain |= {name: identity(value) for name, value in nested.items()}
    for name in part.LATER:
        if getattr(part, name) == type(part).model_fields[name].get_default(call_default_factory=True):
            del plain[name]
    return plain


def without_defaults(settings: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` less those named in `later` that equal the default given there, at any depth."""
    kept = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and isinstance(later.get(key), Mapping):
            kept[key] = without_defaults(value, later[key])
        elif not (key in later and later[key] == value):
            kept[key] = value
    return kept
