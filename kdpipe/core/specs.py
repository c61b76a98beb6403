"""What a run is: frozen, fully resolved, and hashed into its id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.core.ids import digest, slug

ENGINE_REVISION = 1  # bump when the training loop itself gives other numbers
IMPORTED = "imported"  # the recipe of teachers whose weights come from a file


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
    """How a network is trained: optimiser, schedule, batches, augmentation, precision."""

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
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False


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


class TeacherRef(Frozen):
    """The teacher of a student.

    Attributes:
        run: id of its run.
        epoch: which of its epochs teaches; None is the last.
        anchors: the epochs that teach one after the other, for a method that follows its training.
        part: id of the run that trained what the method needs on top of it.
        folds: how many networks it consists of, each teaching the part of the data that it did not learn.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"anchors", "part", "folds"})

    run: str
    epoch: int | None = None
    anchors: tuple[int, ...] = ()
    part: str | None = None
    folds: int = 0


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
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"part"})

    engine: int = ENGINE_REVISION
    data: DataSpec
    model: Part
    protocol: Protocol
    recipe: Part | None = None
    method: Part | None = None
    part: Part | None = None
    teacher: TeacherRef | None = None
    seed: int = Field(ge=0)

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
        pair: teacher's and student's model names (a teacher has only the first).
        recipe: name of the recipe that made the teacher (None for scratch).
        later: names of objective settings that were added after the first release; while one of
            them is at its default it stays out of the hash, so that older ids survive.
    """

    spec: RunSpec
    label: str
    protocol: str
    scale: str = "full"
    sources: dict[str, str] = {}
    pair: tuple[str | None, str | None] = (None, None)
    recipe: str | None = None
    later: dict[str, Any] = {}

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


def identity(part: Frozen) -> dict[str, Any]:
    """`part` as plain data, less every field named in a `LATER` that is at its default."""
    plain: dict[str, Any] = part.model_dump(mode="json")
    for name, info in type(part).model_fields.items():
        value = getattr(part, name)
        if name in part.LATER and value == info.get_default(call_default_factory=True):
            del plain[name]
        elif isinstance(value, Frozen):
            plain[name] = identity(value)
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
