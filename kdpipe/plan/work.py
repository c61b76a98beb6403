"""What runs take, from the shapes of networks and images; asks the plug-ins, and so imports torch."""

from __future__ import annotations

from functools import cache
from typing import Any

from kdpipe.api import Method, ModelSpec, TeacherPart
from kdpipe.api.dataset import DatasetSpec
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError
from kdpipe.core.specs import RunSpec
from kdpipe.nn.cost import forward_cost
from kdpipe.nn.demands import BACKWARD, views
from kdpipe.plan.plan import Work

INDEX = 8  # bytes of a label


def work_of(spec: RunSpec, dataset: DatasetSpec, objective: Any, teacher: str | None) -> Work | None:
    """What a run takes; None where images or classes are counted when the data are prepared.

    The layers that an objective adds are not counted (`kdpipe show METHOD` tells them for a pair).

    Args:
        spec: the run.
        dataset: what it trains on.
        objective: its recipe, method or part, with its settings; None for an imported network.
        teacher: the network that it learns from, if any.

    Raises:
        ConfigError: the images are too small for a network.
    """
    classes, data = dataset.num_classes, spec.data
    if not (classes and dataset.sizes):
        return None
    forward = forward_of(spec.model.name, classes, dataset.shape)
    train = data.train_samples or dataset.sizes["train"]
    held_out = round(train * data.val_fraction) if data.split == "train-val" else 0
    test = data.test_samples or dataset.sizes["test"]
    part, trained = isinstance(objective, TeacherPart), objective is not None
    peers = objective.peers() if trained else 0
    learns = 0 if part else (1 + BACKWARD) * forward * (1 + peers)
    taught = forward_of(teacher, classes, dataset.shape) if teacher and trained else 0
    seen = views(objective, dataset.shape) if trained else 0
    first = objective.first_stage() if isinstance(objective, Method) else 0
    network: ModelSpec = registry.models.get(spec.model.name)
    return Work(
        epochs=spec.protocol.epochs + first if trained else 0,
        images=train - held_out,
        step=(learns + taught) * seen,
        watched=0 if part else held_out or test,
        forward=forward,
        stored=0 if part else held_out + test,
        classes=classes,
        width=network.embed_dim,
        networks=1 + peers,
        data=_prepared(dataset),
        taught=taught * seen,
    )


@cache
def forward_of(model: str, classes: int, shape: tuple[int, int, int]) -> int:
    """Multiply-adds of a network's forward pass for one image (C x H x W).

    Raises:
        ConfigError: the network cannot take such an image.
    """
    try:
        return forward_cost(registry.models.get(model), classes, shape)
    except RuntimeError as error:
        raise ConfigError(
            f"{model} cannot take images of {shape[1]} x {shape[2]} pixels: {str(error).splitlines()[0]}",
            fix="name a network for smaller images, or another data set",
        ) from error


def _prepared(dataset: DatasetSpec) -> int:
    """Bytes of the prepared data set; of one whose images stay in their files, only those of the labels."""
    images = sum(dataset.sizes.values())
    channels, height, width = dataset.shape
    return images * (INDEX + (0 if dataset.on_disk else channels * height * width))
