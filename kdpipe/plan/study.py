"""The study file: one printed table or figure as a grid of runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from kdpipe.core.errors import nearest
from kdpipe.core.specs import Frozen, Passes, Precision, Rule

Seed = Annotated[int, Field(ge=0)]
Epoch = Annotated[int, Field(ge=1)]


def _or_bare_name(schema: dict[str, Any]) -> None:
    """Let the JSON schema allow what the class allows: a name alone."""
    full = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string"}, full]


def _or_one(schema: dict[str, Any]) -> None:
    """Let the JSON schema of a list allow what the class allows: one name alone."""
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems")}
    schema["anyOf"] = [{"type": "string"}, listed]


def _no_label(kind: str, label: str, known: Collection[str]) -> str:
    """What to say of a label that no entry has."""
    near = nearest(label, known)
    hint = f"did you mean '{near}'?" if near else f"there are {', '.join(sorted(known)) or 'none'}"
    return f"no {kind} of the study is called '{label}'; {hint}"


class Protocols(Frozen):
    """The protocols of teachers and of students; a bare name stands for both."""

    model_config = ConfigDict(json_schema_extra=_or_bare_name)

    teacher: str = Field(description="name of a file in config/protocols")
    student: str = Field(description="name of a file in config/protocols")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"teacher": value, "student": value} if isinstance(value, str) else value

    def __str__(self) -> str:
        if self.teacher == self.student:
            return self.teacher
        return f"{self.teacher} (teachers), {self.student} (students)"


class Pair(Frozen):
    """A teacher network and a student network, by name, and what holds for this pair alone."""

    teacher: str = Field(description="name of the teacher's network")
    student: str = Field(description="name of the student's network")
    dataset: str = Field("", description="data set of this pair; default: the study's")
    protocol: Protocols | None = Field(None, description="protocols of this pair; default: the study's")
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="settings by recipe or method name for this pair; an entry's own win over them"
    )


class Entry(Frozen):
    """A recipe or method as one row or column; a bare name stands for `{name: NAME}`."""

    model_config = ConfigDict(json_schema_extra=_or_bare_name)

    name: str = Field(description="registered name of the recipe or method")
    label: str = Field("", description="how the table calls it; default: its name")
    settings: dict[str, Any] = Field({}, description="settings of this entry alone")
    protocol: dict[str, Any] = Field(
        {}, description="settings of the protocol that differ for this entry; the epochs cannot"
    )
    recipes: tuple[str, ...] = Field(
        (), description="of a method: labels of the recipes whose teachers it is distilled from; default: all"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and not value.get("label"):
            value = {**value, "label": value.get("name", "")}
        return value


class Otherwise(Frozen):
    """What stands in where a data set's files are absent; a bare name stands for `{dataset: NAME}`."""

    model_config = ConfigDict(json_schema_extra=_or_bare_name)

    dataset: str = Field(description="name of the other data set")
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="settings by recipe, method or bench name that it needs beside the study's"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"dataset": value} if isinstance(value, str) else value


class Keep(Frozen):
    """Epochs of every teacher whose weights are kept and measured, beside the last."""

    every: int | None = Field(None, ge=1, description="every so many epochs, in full-scale epochs")
    before_drops: bool = Field(False, description="the last epoch before each fall of the learning rate")
    epochs: tuple[Epoch, ...] = Field((), description="these epochs, in full-scale epochs")


class Checkpoint(Frozen):
    """A checkpoint by its place in the training, or by a rule that reads validation predictions only."""

    rule: Rule | None = Field(
        None, description="chosen among the epochs in `keep` and the last, by validation images (train-val)"
    )
    fraction: float | None = Field(None, gt=0, le=1, description="share of the teacher's epochs")

    @model_validator(mode="after")
    def _one_of_both(self) -> Checkpoint:
        if (self.rule is None) == (self.fraction is None):
            raise ValueError("a checkpoint is named by a rule or by a fraction: give one of the two")
        return self


class Curve(Frozen):
    """Students of a teacher's sampled checkpoints: accuracy against the teacher's epoch."""

    method: str = Field("kd", description="label of one of the study's methods")
    epochs: tuple[Epoch, ...] = Field((), description="teacher epochs to distil from, in full-scale epochs")
    checkpoints: tuple[Checkpoint, ...] = Field((), description="further ones, named by rule or fraction")

    @field_validator("epochs")
    @classmethod
    def _sorted(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _some(self) -> Curve:
        if not (self.epochs or self.checkpoints):
            raise ValueError("a curve without 'epochs' and 'checkpoints' has no points")
        return self

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules among its checkpoints."""
        return tuple(dict.fromkeys(c.rule for c in self.checkpoints if c.rule))

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions among its checkpoints."""
        return tuple(c.fraction for c in self.checkpoints if c.fraction)


class Pretrained(Frozen):
    """Imported weights that the networks of a chain start from."""

    dataset: str = Field(description="data set that they were trained on")
    files: dict[str, str] = Field(
        description="network -> SHA-256 of its file, as `kdpipe import-teacher` prints it"
    )


class Chain(Frozen):
    """Self-distillation: networks in a row, each taught by the labels and the one before."""

    models: tuple[str, ...] = Field(
        min_length=1,
        description="network of each step; the last holds for all further steps",
        json_schema_extra=_or_one,
    )
    label: str = Field("", description="how tables and figures call it; default: its networks")
    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        min_length=1, description="weights of the labels; each is a chain, and all share the first step"
    )
    steps: int = Field(5, ge=2, description="networks in a row, the first one (labels alone) included")
    loss: Literal["mse", "kl"] = Field("mse", description="distance of probabilities, or divergence")
    weights: Literal["new", "same"] = Field(
        "new", description="initial weights: a new draw for each step, or one for all; equal for all alphas"
    )
    pass_on: Literal["last"] | Rule = Field(
        "last",
        description="weights that teach the next step: the last, or those that a rule picks among the epochs "
        "in `keep`, by validation images (train-val)",
    )
    start: Pretrained | None = Field(None, description="imported weights that every step starts from")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("models"), str):
            value = {**value, "models": (value["models"],)}
        if isinstance(value, dict) and value.get("models") and not value.get("label"):
            value = {**value, "label": ", ".join(map(str, value["models"]))}
        return value

    @model_validator(mode="after")
    def _check(self) -> Chain:
        if len(set(self.alphas)) != len(self.alphas):
            raise ValueError("an alpha is listed twice")
        if len(self.models) > self.steps:
            raise ValueError(f"{len(self.models)} networks are named for {self.steps} steps")
        return self

    def model(self, step: int) -> str:
        """The network of a step, counted from 1."""
        return self.models[min(step, len(self.models)) - 1]


class Cells(Frozen):
    """Cells of a study's tables, by what they are about; what is left out may be anything."""

    row: str = Field("", description="label of a method, teacher, or step of a chain")
    recipe: str = Field("", description="label of a recipe, or weight of the labels of a chain: α = 0.3")
    teacher: str = Field("", description="network of the teacher")
    student: str = Field("", description="network of the student")
    dataset: str = Field("", description="data set of the pair")
    epoch: int | Literal["last"] | None = Field(
        None, description="on a checkpoint-sampling curve: the teacher's epoch, in full-scale epochs"
    )


class Claim(Frozen):
    """A statement of a paper that the tables decide: it holds, it fails, or they cannot tell."""

    says: str = Field(description="the statement, in a sentence of our own")
    source: str = Field(description="where the paper makes it: Table 1, Sec. 5.2")
    metric: str = Field("", description="which of the study's measures; default: the first")
    kind: Literal["above", "below", "near", "rising", "falling", "best", "collapses"] = Field(
        description="above or below: `cells` against `than`, seed by seed in every column; near: `cells` "
        "within `tolerance` of the printed numbers; rising or falling: `cells` along `order`; best: which "
        "label of `order` is best lies in `among`; collapses: the runs of `cells` diverge"
    )
    cells: Cells = Field(description="what it is about")
    than: Cells | None = Field(None, description="above and below: what it is compared with")
    margin: float = Field(0.0, ge=0, description="above and below: by at least so much")
    tolerance: float = Field(1.0, ge=0, description="near: in the measure's unit")
    order: tuple[str, ...] = Field((), description="rising, falling, best: labels in order")
    along: Literal["row", "recipe", "epoch"] = Field("row", description="what the labels of `order` name")
    among: tuple[str, ...] = Field((), description="best: the labels that the paper names")

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        needs = {"above": "than", "below": "than", "rising": "order", "falling": "order", "best": "among"}
        key = needs.get(self.kind)
        if key and not getattr(self, key):
            raise ValueError(f"a claim of kind '{self.kind}' needs '{key}'")
        if self.kind in ("rising", "falling", "best") and len(self.order) < 2:
            raise ValueError(f"a claim of kind '{self.kind}' needs at least two labels in 'order'")
        return self


class Scale(Frozen):
    """A named reduction that any study can be run at."""

    epochs: int | None = Field(None, ge=1, description="epochs; milestones move in proportion")
    train_samples: int | None = Field(None, ge=1, description="stratified subset of the training set")
    test_samples: int | None = Field(None, ge=1, description="stratified subset of the test set")
    seeds: int | None = Field(None, ge=1, description="only the first so many seeds")
    dataset: str = Field("", description="run on this data set instead of those that the study names")
    precision: Passes | None = Field(None, description="numbers of the trainings; default: the protocol's")
    new_weights: bool = Field(
        False, description="chains that start from imported weights start from new ones instead"
    )
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="settings by recipe, method or bench name; they win over the entries' own"
    )


class Study(Frozen):
    """A grid of runs and how it is shown."""

    extends: str = Field("", description="name of another study: its keys hold where this file has none")
    title: str = Field(description="one line, shown above the table")
    paper: str = Field("", description="short name of the paper it reproduces, if any")
    about: str = Field("", description="what the study asks, in a sentence or two")
    printed: str = Field(
        "", description="name of the file in config/reference that holds the printed numbers"
    )
    assumptions: tuple[str, ...] = Field(
        (), description="what the paper leaves open and this study had to decide; shown under the tables"
    )
    claims: tuple[Claim, ...] = Field((), description="statements of the paper that the tables decide")
    baseline: str = Field(
        "", description="label of the method that all others are compared with, seed by seed"
    )
    bootstrap: int = Field(
        0, ge=0, description="resamples of the test images for intervals beside those over seeds; 0 is none"
    )
    dataset: str = Field("", description="name of the data set; only a study of benches can do without")
    otherwise: Otherwise | None = Field(
        None, description="data set that stands in where the files of `dataset` are absent"
    )
    protocol: Protocols = Field(
        Protocols(teacher="", student=""),
        description="name of a file in config/protocols, or one for the teacher and one for the student",
    )
    split: Literal["full-train", "train-val"] = Field(
        "full-train", description="train on everything, or hold out a validation set"
    )
    scale: str = Field("full", description="full, or the name of a reduction")
    scales: dict[str, Scale] = Field({}, description="this study's own reductions by name")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="one run per seed")
    pairs: tuple[Pair, ...] = Field((), description="teacher and student networks")
    recipes: tuple[Entry, ...] = Field((), description="ways to train the teacher")
    methods: tuple[Entry, ...] = Field((), description="ways to distil the student")
    chains: tuple[Chain, ...] = Field((), description="chains of self-distillation")
    benches: tuple[Entry, ...] = Field(
        (), description="theory benches; entries of one bench with other labels and settings are its variants"
    )
    plots: tuple[str, ...] = Field((), description="figures of the benches that are drawn; default: all")
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="settings by recipe, method or bench name, for all its entries"
    )
    curves: tuple[Curve, ...] = Field((), description="checkpoint-sampling curves")
    keep: Keep = Field(Keep(), description="further epochs of the teachers that are kept and measured")
    checkpoint_precision: Precision = Field(
        "float32",
        description="of kept epochs; float16 halves the files and rounds weights to 11 bits, and predictions "
        "and students of these epochs are made from the rounded ones (never the last epoch's)",
    )
    figures: tuple[
        Literal["loss_curves", "sensitivity", "cost", "reliability", "tsne", "correlation", "gradients"],
        ...,
    ] = Field(
        (),
        description="figures beside the learning curves: loss after each epoch; accuracy against the setting "
        "in which entries differ, or against time and parameters; the last four show networks of the first "
        "pair and seed (12 at most)",
    )
    gradients: int = Field(
        0, ge=0, description="compare the loss terms' gradients every so many epochs; 0 is never"
    )
    metrics: tuple[str, ...] = Field(
        ("top1",), min_length=1, description="measures shown; the first ranks the rows"
    )

    @field_validator("seeds")
    @classmethod
    def _unique_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a seed is listed twice")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Study:
        grid = {"pairs": self.pairs, "recipes": self.recipes, "methods": self.methods}
        lacks = [key for key, value in grid.items() if not value]
        if lacks and len(lacks) < len(grid):
            raise ValueError(f"'{lacks[0]}' is missing: pairs, recipes and methods go together")
        if lacks and not (self.chains or self.benches):
            raise ValueError(
                "the study asks for nothing: give pairs, recipes and methods, or chains, or benches"
            )
        trained = [key for key in ("pairs", "chains") if getattr(self, key)]
        alone = [p for p in self.pairs if not (p.dataset and p.protocol)] or self.chains
        if trained and alone and not (self.dataset and self.protocol.teacher):
            what = "protocol" if self.dataset else "dataset"
            raise ValueError(f"the key '{what}' is missing: networks in '{trained[0]}' cannot train without")
        if self.plots and not self.benches:
            raise ValueError(
                "plots: only benches have plots; the figures of other studies go under 'figures'"
            )
        return self

    @model_validator(mode="after")
    def _unique_labels(self) -> Study:
        if any(method.label == "teacher" for method in self.methods):
            raise ValueError("methods: 'teacher' is the name of the teachers' own row; use another label")
        for key, entries in (
            ("recipes", self.recipes),
            ("methods", self.methods),
            ("benches", self.benches),
            ("chains", self.chains),
        ):
            labels = [e.label for e in entries]
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise ValueError(f"{key}: '{twice[0]}' is listed twice; give each entry its own label")
        places = [(p.dataset or self.dataset, p.teacher, p.student) for p in self.pairs]
        double = next((place for place in places if places.count(place) > 1), None)
        if double:
            raise ValueError(f"pairs: {double[1]} -> {double[2]} is listed twice for {double[0]}")
        methods, recipes = {e.label for e in self.methods}, {e.label for e in self.recipes}
        for curve in self.curves:
            if curve.method not in methods:
                raise ValueError(f"curves: {_no_label('method', curve.method, methods)}")
        if self.baseline and self.baseline not in methods:
            raise ValueError(f"baseline: {_no_label('method', self.baseline, methods)}")
        for entry in self.methods:
            strange = [label for label in entry.recipes if label not in recipes]
            if strange:
                raise ValueError(f"methods: '{entry.label}': {_no_label('recipe', strange[0], recipes)}")
        if any(entry.recipes for entry in self.recipes):
            raise ValueError("recipes: 'recipes' is a key of methods")
        return self

    @model_validator(mode="after")
    def _claims_name_what_is_there(self) -> Study:
        steps = {str(step) for chain in self.chains for step in range(1, chain.steps + 1)}
        known: dict[str, set[str]] = {
            "row": {"teacher", *(entry.label for entry in self.methods), *steps},
            "recipe": {entry.label for entry in self.recipes},
            "teacher": {pair.teacher for pair in self.pairs} | {chain.label for chain in self.chains},
            "student": {pair.student for pair in self.pairs},
            "dataset": set(self.datasets),
        }
        if self.chains:
            del known["recipe"]  # there, it is a weight of the labels
        for claim in self.claims:
            asked = [(key, getattr(c, key)) for c in (claim.cells, claim.than) if c for key in known]
            asked += [(claim.along, label) for label in (*claim.order, *claim.among) if claim.along in known]
            asked += [("metric", claim.metric)]
            for key, name in asked:
                names = known.get(key, set(self.metrics))
                if name and name not in names:
                    near = nearest(name, names)
                    fix = (
                        f"did you mean '{near}'?" if near else f"known: {', '.join(sorted(names)) or 'none'}"
                    )
                    raise ValueError(f"claims: the study has no {key} '{name}': {fix}")
        return self

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that it names, each once."""
        named = (*(pair.dataset or self.dataset for pair in self.pairs), self.dataset)
        used = named[:-1] if self.pairs and not (self.chains or self.benches) else named
        return tuple(dict.fromkeys(name for name in used if name))
