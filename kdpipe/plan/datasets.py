"""Data sets by name: registered ones, and a user's own, described in `config/datasets/<name>.yaml`.

Asks the plug-ins, and so imports torch.
"""

from __future__ import annotations

from pathlib import Path

from kdpipe.api import Dataset, DatasetSpec, Paper, Split
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.ids import digest
from kdpipe.datasets._formats import Pixels, existing, nothing_there, parquet_files, read_parquet
from kdpipe.datasets._trees import ClassFolders
from kdpipe.plan.config import Config, DatasetFile, names, read_dataset
from kdpipe.plan.study import Study

ARRAYS = (
    "format",
    "size",
    "channels",
    "train",
    "test",
    "image",
    "label",
    "resize",
    "on_disk",
    "preprocessing",
)
"""Keys that decide what networks are given, beside mean and std; the others only describe or check."""


def find_dataset(name: str, folder: Path, where: str | None = None) -> DatasetSpec:
    """The image set called `name`.

    Args:
        name: of a plug-in or of a file in `<folder>/datasets`.
        folder: the config folder.
        where: who asks, for messages.

    Raises:
        UnknownNameError: there is none; the message names the nearest.
        ConfigError: its file is wrong, or it is a regression problem.
    """
    found = all_datasets(folder)
    if name not in found:
        raise UnknownNameError.of("dataset", name, found, where=where)
    spec = found[name]
    if not isinstance(spec, DatasetSpec):
        raise ConfigError(
            f"'{name}' is a regression problem for closed forms; networks cannot be trained on it",
            where=where,
            fix="name a set of images: kdpipe list datasets",
        )
    return spec


def stand_in(study: Study, config: Config, folder: Path, where: str) -> Study:
    """The study with the data set that it is run on: its own, or the other one where its files are absent.

    Args:
        study: the study.
        config: says where data sets are looked for.
        folder: the config folder.
        where: the study's file, for messages.
    """
    if study.otherwise is None:
        return study
    wanted = find_dataset(study.dataset, folder, f"{where}, key 'dataset'")
    other = find_dataset(study.otherwise.dataset, folder, f"{where}, key 'otherwise'")
    source = config.source(wanted.name)
    there = any(place.is_dir() for place in (source, *(source.parent / name for name in wanted.beside)))
    if there or wanted.embedded:
        return study
    more = study.otherwise.settings
    settings = {
        name: {**study.settings.get(name, {}), **more.get(name, {})} for name in study.settings | more
    }
    return study.model_copy(update={"dataset": other.name, "settings": settings})


def all_datasets(folder: Path) -> dict[str, Dataset]:
    """Every data set by name, those described in `<folder>/datasets` included.

    Raises:
        ConfigError: a file is wrong, or has the name of a plug-in.
    """
    found: dict[str, Dataset] = dict(registry.datasets.items())
    for name in names("datasets", folder):
        if name in found:
            raise ConfigError(
                f"two data sets are called '{name}': a plug-in and this file",
                where=f"{folder}/datasets/{name}.yaml",
                fix="give the file another name",
            )
        found[name] = described(name, read_dataset(name, folder))
    return dict(sorted(found.items()))


def described(name: str, file: DatasetFile) -> DatasetSpec:
    """The data set that a file describes.

    Its revision is a number made from all settings that decide what networks are given, so changing one
    makes other runs.
    """
    decisive = {key: getattr(file, key) for key in (*ARRAYS, "mean", "std", "revision")}
    reader = _Parquet(name, file) if file.format == "parquet" else _folders(name, file)
    computed = "computed from the training split"
    return DatasetSpec(
        name=name,
        num_classes=file.num_classes,
        shape=(file.channels, file.size, file.size),
        sizes=file.sizes.model_dump() if file.sizes else {},
        read=reader.read,
        licence=file.licence,
        paper=Paper(file.title, "", "", 0, file.url),
        mean=file.mean,
        std=file.std,
        stats_source=file.stats_source if file.mean else computed,
        preprocessing=file.preprocessing,
        on_disk=file.on_disk,
        layout=reader.layout,
        revision=int(digest(decisive, 8), 16),
    )


def _folders(name: str, file: DatasetFile) -> ClassFolders:
    pixels = Pixels(file.size, file.channels, file.resize)
    return ClassFolders(name, pixels, file.train, file.test, inner=name, on_disk=file.on_disk)


class _Parquet:
    """A folder of parquet files in the Hugging Face layout, as a file describes it."""

    def __init__(self, name: str, file: DatasetFile) -> None:
        self.name, self.file = name, file
        self.layout = f"*{file.train}*.parquet and *{file.test}*.parquet"

    def read(self, folder: Path | None) -> dict[str, Split]:
        """Both splits."""
        folder = existing(folder, self.name, self.layout)
        for place in (folder, folder / "data"):
            if found := parquet_files(place, self.file.train, self.file.test):
                pixels = Pixels(self.file.size, self.file.channels, self.file.resize)
                return {
                    split: read_parquet(files, self.file.label, self.file.image, pixels)
                    for split, files in found.items()
                }
        raise nothing_there(folder, self.name, self.layout)
