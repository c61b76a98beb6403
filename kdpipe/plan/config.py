"""The settings files: the workflow's config, protocols and scales, read and checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from kdpipe.core.errors import ConfigError, DataError, UnknownNameError, nearest
from kdpipe.core.specs import Augmentation, Frozen, Precision, Protocol
from kdpipe.plan.study import Scale, Study

M = TypeVar("M", bound=BaseModel)
LARGEST = 100_000  # values in a settings file


Rule = Literal[
    "adopt_teacher",
    "bank_logits",
    "distil_student",
    "run_bench",
    "sample_checkpoint",
    "store_checkpoint_features",
    "store_features",
    "train_pack",
    "train_part",
    "train_teacher",
]


class Request(Frozen):
    """What jobs ask SLURM for, beside the GPUs, processors, memory and time that they need."""

    partition: str | None = Field(None, description="default: the cluster's own")
    account: str | None = Field(None, description="whom the hours are charged to; default: the user's own")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features that the node must have")
    gpu_model: str | None = Field(None, description="kind of GPU, as in --gpus=MODEL:COUNT")
    gres: str | None = Field(
        None, description="ask for GPUs by --gres=GRES:COUNT instead of --gpus=COUNT, e.g. gpu or gpu:a100"
    )
    mem_mb: int | None = Field(None, ge=1, description="memory of the first attempt; default: the rule's")
    minutes: int | None = Field(
        None,
        ge=1,
        description="run time of the first attempt; default: estimated for trainings, else the rule's",
    )
    extra: str | None = Field(None, description="further options of sbatch, e.g. --signal=USR1@120")


class Cluster(Frozen):
    """How jobs are sent to SLURM; the `cluster` of `workflow/profiles/slurm/site.yaml`."""

    jobs: Request = Field(Request(), description="what every job asks for")
    gpu_jobs: Request = Field(Request(), description="what jobs on GPUs ask for; wins over `jobs`")
    rules: dict[Rule, Request] = Field({}, description="what one rule's jobs ask for; wins over both")
    safety: float = Field(
        2.0, ge=1, description="a training's time limit is its estimate, of `kdpipe plan`, times this"
    )
    least_minutes: int = Field(30, ge=1, description="and no less than this")
    most_minutes: int = Field(1440, ge=1, description="a retry doubles the time limit, up to this")
    most_mem_mb: int = Field(32000, ge=1, description="and the memory, up to this")
    device: str = Field(
        "", description="estimate for this device (part of its name); see `kdpipe plan --device`"
    )


class BankSettings(Frozen):
    """When teachers' logits are stored for their students; see docs/guides/banks.md."""

    use: Literal["auto", "always", "never"] = Field(
        "auto",
        description="auto: where two or more students would read a bank, if that saves more than a job costs "
        "and it fits into `most_gb`; always: wherever a student can read one; never: each student runs its "
        "teacher itself",
    )
    precision: Precision = Field(
        "float32",
        description="float16 halves the banks of float32 trainings; logits are rounded to it, so it makes "
        "other runs. bfloat16 trainings need two bytes anyway, and lose nothing",
    )
    most_gb: float = Field(50.0, ge=0, description="auto: gigabytes that all banks together may take")


class Config(Frozen):
    """What to run and where; the workflow's `config/config.yaml`."""

    studies: tuple[str, ...] = Field((), description="names of files in config/studies")
    study: str | None = Field(None, description="one study instead of `studies`, for the command line")
    scale: str | None = Field(None, description="run every study at this scale instead of its own")
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="settings by recipe or method name; they win over the studies'"
    )
    checkpoint_precision: Precision | None = Field(
        None, description="keep every study's checkpoints in this precision instead of its own"
    )
    folder: str = Field("config", description="folder that holds studies/, protocols/ and scales.yaml")
    results: str = Field("results", description="folder for everything that runs make")
    data: str | dict[str, str] = Field(
        "data", description="folder with one folder per data set, or a folder for each data set by name"
    )
    download: bool = Field(
        False, description="let `prepare` fetch published data sets that are not there (checksums verified)"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(1, ge=1, description="processor threads of one training")
    gpus: int = Field(0, ge=0, description="GPUs that each training asks the scheduler for")
    pack: int = Field(
        1,
        ge=1,
        description="trainings that share one job, side by side as its processors allow; 1: a job each",
    )
    bank: BankSettings = Field(BankSettings(), description="a teacher's logits, stored for all its students")
    tracking: str | None = Field(
        None, description="address of an MLflow server; null is the embedded results/mlflow.db"
    )
    tracking_files: tuple[Literal["model", "predictions"], ...] = Field(
        (), description="what MLflow gets of each run beside its settings, measures and logs"
    )
    cluster: Cluster | None = Field(None, description="what jobs ask SLURM for; see docs/cluster.md")

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("a device is auto, cpu, cuda or cuda:N")
        return value

    @field_validator("folder", "results")
    @classmethod
    def _fits_into_commands(cls, value: str) -> str:
        if not value or re.search(r"[\s{}'\"$;&|<>*?`\\\0]", value):
            raise ValueError("a folder's name must not be empty or hold spaces, quotes or {}$;&|<>*?`\\")
        return value

    @property
    def wanted(self) -> tuple[str, ...]:
        """The studies to run."""
        return (self.study,) if self.study else self.studies

    def source(self, dataset: str) -> Path:
        """The folder where a data set is looked for; `KDPIPE_DATA` stands in for the default folder."""
        if isinstance(self.data, str):
            root = os.environ.get("KDPIPE_DATA", self.data) if self.data == "data" else self.data
            return Path(root) / dataset
        return Path(self.data.get(dataset, os.path.join(os.environ.get("KDPIPE_DATA", "data"), dataset)))


class Light(Frozen):
    """The rate that a protocol uses for light networks (MobileNet, ShuffleNet)."""

    lr: float = Field(gt=0)
    source: str


class Reports(Frozen):
    """Which of a run's epochs gives the number that the source prints; kdpipe itself measures the last."""

    value: Literal["last", "best-on-test", "median-of-last-5", "curve", "not-stated"]
    source: str


class ProtocolFile(Frozen):
    """A protocol as written in config/protocols: each value with its source."""

    title: str = Field(description="one line")
    source: str = Field(description="where the values come from, unless one says otherwise")
    reports: Reports | None = Field(None, description="what the source reports, for the reader")
    settings: Protocol
    gpus: int = Field(
        1, ge=1, description="GPUs that share the work on each batch; changes no number but by rounding"
    )
    sources: dict[str, str] = Field({}, description="filled in from `{value:, source:}` entries")
    light: Light | None = None

    @model_validator(mode="before")
    @classmethod
    def _split_sources(cls, data: Any) -> Any:
        """Take `key: {value: v, source: s}` apart; write augmentations `{crop: {padding: 4}}` out."""
        if not isinstance(data, dict) or not isinstance(data.get("settings"), dict):
            return data
        values, sources = {}, dict(data.get("sources") or {})
        for key, entry in data["settings"].items():
            if isinstance(entry, dict) and "value" in entry:
                unknown = entry.keys() - {"value", "source"}
                if unknown:
                    raise ValueError(f"settings.{key}: unknown key '{min(unknown)}'; use value and source")
                values[key] = entry["value"]
                if "source" in entry:
                    sources[key] = str(entry["source"])
            else:
                values[key] = entry
        steps = values.get("augmentation")
        if isinstance(steps, list):
            values["augmentation"] = [_augmentation(step) for step in steps]
        return {**data, "settings": values, "sources": sources}

    def at(self, scale: Scale, light: bool) -> Protocol:
        """The protocol at a scale: fewer epochs move the milestones in proportion.

        Args:
            scale: the reduction.
            light: whether the network is a light one, for which `light.lr` holds.
        """
        change: dict[str, Any] = {}
        if light and self.light:
            change["lr"] = self.light.lr
        if scale.precision:
            change["precision"] = scale.precision
        if scale.epochs and scale.epochs != self.settings.epochs:
            change["epochs"] = scale.epochs
            change["milestones"] = tuple(
                scale_epoch(m, self.settings.epochs, scale.epochs) for m in self.settings.milestones
            )
        return self.settings.model_copy(update=change)


class Sizes(Frozen):
    """Images per split."""

    train: int = Field(ge=1)
    test: int = Field(ge=1)


class DatasetFile(Frozen):
    """A data set of your own, as written in config/datasets."""

    title: str = Field("", description="one line")
    format: Literal["folder", "parquet"] = Field(
        description="folder: SPLIT/CLASS/IMAGE; parquet: Hugging Face files with the splits in their names"
    )
    size: int = Field(ge=1, description="height and width of what networks see of an image, in pixels")
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey; images are converted")
    train: str = Field("train", min_length=1, description="folder, or word in the names of the files")
    test: str = Field("test", min_length=1, description="the same for the test split")
    image: str | None = Field(None, description="parquet: column of the images; default: img or image")
    label: str = Field("label", description="parquet: column of the labels, whole numbers from 0")
    resize: bool = Field(
        False, description="bring images of other sizes to `size` (else they are errors): middle square"
    )
    on_disk: bool = Field(
        False, description="folder: leave the images in their files, decoded in every epoch (large sets)"
    )
    num_classes: int | None = Field(None, ge=2, description="default: counted")
    sizes: Sizes | None = Field(None, description="images per split, checked; default: counted")
    mean: tuple[float, ...] | None = Field(None, description="per channel in [0, 1]; default: computed")
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(None, description="as mean")
    stats_source: str = Field("", description="where mean and std come from")
    preprocessing: Literal["standardise", "unit-norm"] = Field(
        "standardise", description="(x - mean) / std, or each image divided by its 2-norm"
    )
    licence: str = Field("not stated", description="terms of use")
    url: str = Field("", description="where the data come from")
    revision: int = Field(1, ge=1, description="raise it when the images themselves have changed")

    @model_validator(mode="after")
    def _consistent(self) -> DatasetFile:
        given = [value for value in (self.mean, self.std) if value is not None]
        if given and (len(given) == 1 or not self.stats_source):
            raise ValueError("mean, std and stats_source go together: give all three or none")
        if any(len(value) != self.channels for value in given):
            raise ValueError(f"mean and std have {self.channels} numbers, one per channel")
        if self.on_disk and (self.format != "folder" or self.channels != 3):
            raise ValueError("on_disk goes with format: folder and channels: 3")
        if self.format == "folder" and self.model_fields_set & {"image", "label"}:
            raise ValueError("image and label are columns: they go with format: parquet")
        if self.train == self.test:
            raise ValueError("train and test are the same; the test split has to be another")
        return self


def scale_epoch(epoch: int, full: int, reduced: int) -> int:
    """An epoch of a full schedule at the same fraction of a reduced one (at least 1)."""
    return max(1, round(epoch * reduced / full))


def read_config(path: Path, override: Mapping[str, Any] | None = None) -> Config:
    """Read the workflow's config file, then let `override` win."""
    return parse(Config, {**read_yaml(path), **(override or {})}, str(path))


def check_config(values: Mapping[str, Any]) -> Config:
    """Check settings that Snakemake has read already."""
    return parse(Config, dict(values), "config")


def read_study(name: str, folder: Path) -> Study:
    """Read `studies/<name>.yaml`; a study that extends another has its keys where it has none itself.

    Keys that hold names and values (`settings`, `scales`) are joined; every other key is replaced as a whole.
    """
    return parse(Study, _extended(name, folder), f"{folder}/studies/{name}.yaml")


def _extended(name: str, folder: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A study's keys with those of the studies that it extends below them."""
    where = f"{folder}/studies/{above[-1]}.yaml, key 'extends'" if above else None
    if name in above:
        raise ConfigError(f"the studies extend each other: {' -> '.join((*above, name))}", where=where)
    values = read_yaml(_find("study", name, folder / "studies", where))
    base = values.get("extends")
    if not isinstance(base, str) or not base:
        return values
    below = _extended(base, folder, (*above, name))
    return {**below, **values, **{k: _joined(below.get(k), values.get(k)) for k in ("settings", "scales")}}


def _joined(below: Any, above: Any) -> Any:
    """Two mappings as one, the inner ones too; anything else: the upper one, if it is there."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _joined(below.get(key), value) for key, value in above.items()}}
    return (below if below is not None else {}) if above is None else above


def read_protocol(name: str, folder: Path, where: str | None = None) -> ProtocolFile:
    """Read `protocols/<name>.yaml`."""
    file = _find("protocol", name, folder / "protocols", where)
    return parse(ProtocolFile, read_yaml(file), str(file))


def read_dataset(name: str, folder: Path) -> DatasetFile:
    """Read `datasets/<name>.yaml`."""
    file = folder / "datasets" / f"{name}.yaml"
    return parse(DatasetFile, read_yaml(file), str(file))


def read_scales(folder: Path) -> dict[str, Scale]:
    """Read `scales.yaml`: the reductions that every study can be run at."""
    file = folder / "scales.yaml"
    if not file.is_file():
        return {}
    return {name: parse(Scale, value, f"{file}: {name}") for name, value in read_yaml(file).items()}


def names(kind: str, folder: Path) -> list[str]:
    """Names of the files in a part of a config folder (`studies`, `protocols` or `datasets`)."""
    return sorted(f.stem for f in (folder / kind).glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: it is missing, is not YAML, holds a key twice, or holds something else.
    """
    try:
        value = from_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError("the file is not there", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file cannot be read: {error}", where=str(path)) from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError("the file must hold keys and values", where=str(path))
    return value


def from_yaml(text: str, where: str) -> Any:
    """What YAML text holds.

    Raises:
        ConfigError: it is not YAML, holds a key twice, or would be huge.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"not valid YAML: {problem}", where=place) from None
    except (ValueError, OverflowError) as error:  # a date or a number that cannot be
        raise ConfigError(f"not valid YAML: {error}", where=where) from None
    except RecursionError:
        raise ConfigError("not valid YAML: too many brackets within each other", where=where) from None


def parse(model: type[M], value: Any, where: str) -> M:
    """Check `value` against a settings class; the first mistake becomes one clear message."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise explain(error, model, where) from None


def explain(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    """Turn pydantic's report into one message: file, key, what is wrong, nearest valid name."""
    found = error.errors()  # a misspelt key is reported twice: as unknown, and as missing
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    loc = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    key = ".".join(str(part) for part in loc)
    place = f"{where}, key '{key}'" if key else where
    if first["type"] == "extra_forbidden":
        known = _keys_beside(model, loc)
        near = nearest(str(loc[-1]), known)
        fix = f"did you mean '{near}'?" if near else f"known keys: {', '.join(known)}"
        return ConfigError(f"unknown key '{loc[-1]}'", where=place, fix=fix)
    if first["type"] == "missing":
        return ConfigError(f"the key '{key}' is missing", where=where, fix=f"add '{loc[-1]}:'")
    message = first["msg"].removeprefix("Value error, ")
    given = None if first["type"] == "json_invalid" else first.get("input")
    told = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return ConfigError(f"{message}{told}", where=place)


def _keys_beside(model: type[BaseModel], loc: list[Any]) -> list[str]:
    """The valid keys at the level where the last element of `loc` stands."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if isinstance(part, str) and inner:
            model = inner
    return sorted(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None


def _augmentation(step: Any) -> Any:
    if isinstance(step, str):
        return Augmentation(name=step)
    if isinstance(step, dict) and len(step) == 1:
        ((name, settings),) = step.items()
        return {"name": name, "settings": settings or {}}
    return step


def _find(kind: str, name: str, folder: Path, where: str | None = None) -> Path:
    file = folder / f"{name}.yaml"
    if file.is_file():
        return file
    if not folder.is_dir():
        raise DataError(f"the folder of {kind} files is not there", where=str(folder))
    raise UnknownNameError.of(kind, name, (f.stem for f in folder.glob("*.yaml")), where=where or str(folder))


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys or floods of aliases, and with `1e-5` read as a number."""

    def get_single_node(self) -> Any:
        """The document, refused where its aliases multiply it beyond measure or hold themselves."""
        node = super().get_single_node()
        if node is not None and _size(node, {}) > LARGEST:
            raise yaml.MarkedYAMLError(
                problem="its aliases (*name) make it far too large", problem_mark=node.start_mark
            )
        return node


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node holds, aliases written out; infinite where it holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is counted
        inner = [n for entry in node.value for n in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_size(n, known) for n in inner)
    return known[id(node)]


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        try:
            repeated = key in seen
        except TypeError:
            raise yaml.MarkedYAMLError(
                problem="a key must be plain text", problem_mark=key_node.start_mark
            ) from None
        if repeated:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(  # YAML 1.1 wants a dot in 1.0e-5; people write 1e-5
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
