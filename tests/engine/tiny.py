"""A tiny data set, and runs on it."""

from __future__ import annotations

import csv

import numpy as np

from kdpipe.api import DatasetSpec, Paper, Split
from kdpipe.core import registry
from kdpipe.core.specs import Augmentation, DataSpec, Part, Protocol, Run, RunSpec, TeacherRef

CLASSES, SIZE = 4, 8
LEVERS = {}  # settings of every protocol, as `pytest tests/engine --protocol` names them
PLAIN = {  # for tests that compare numbers of different computations
    "compile": False,
    "precision": "float32",
    "teacher_precision": None,
}


def read(folder):
    """Images whose class shows in their brightest corner."""
    rng = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n, dtype=np.int64) % CLASSES
        images = rng.integers(0, 120, (n, SIZE, SIZE, 1), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4, 0] += 100
        return Split(images, labels)

    return {"train": split(58), "test": split(20)}


SPEC = DatasetSpec(
    name="corners",
    num_classes=CLASSES,
    shape=(1, SIZE, SIZE),
    sizes={"train": 58, "test": 20},
    read=read,
    licence="none",
    paper=Paper("none", "none", "none", 2026),
    embedded=True,
)


def quick(plugin):
    """Settings that make stages before the protocol's own epochs short."""
    fields = plugin.Config.model_fields.items()
    return {
        n: 2
        for n, info in fields
        if n.endswith("epochs") and isinstance(info.default, int) and info.default > 2
    }


def make_run(kind, name, *, seed=0, epochs=3, student="resnet8", settings=None, split=None, **protocol):
    """A run of a recipe, a method or a teacher's part on the tiny data set."""
    plugin = registry.REGISTRIES[kind].get(name)
    split = split or ("train-val" if getattr(plugin, "needs_validation", False) else "full-train")
    objective = plugin(plugin.Config(**{**quick(plugin), **(settings or {})}))
    config = objective.config.model_dump(mode="json")
    part = Part(name=name, revision=plugin.revision, settings=config)
    values = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 16, "milestones": (2,)}
    taught = kind == "part" or (plugin.teacher if kind == "method" else objective.generations())
    anchors = objective.anchors(6) if kind == "method" else ()
    spec = RunSpec(
        data=DataSpec(dataset="corners", revision=1, split=split, val_fraction=0.12),
        model=Part(name=student, revision=1),
        protocol=Protocol(
            epochs=epochs,
            augmentation=(Augmentation(name="crop", settings={"padding": 1}),),
            **{**values, **LEVERS, **protocol},
        ),
        **{kind: part},
        teacher=TeacherRef(run="t", anchors=anchors) if taught else None,
        seed=seed,
    )
    pair = ("resnet8" if taught else None, student) if kind == "method" else ("resnet8", None)
    if kind == "recipe":
        pair = (student, None)
    return Run(spec=spec, label=f"{kind}_{name}_s{seed}", protocol="test", pair=pair)


def history(paths):
    """The rows of a run's history, as text."""
    with open(paths.history) as file:
        return list(csv.DictReader(file))
