"""The interface of a recipe (how a teacher is trained) and a method (how a student is distilled).

A contributor writes one class in one file. The engine does the rest: it builds the networks, catches
the taps, draws the batches, steps the optimiser, saves and resumes. An objective never sees a path, a
device, a seed or another plug-in.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdpipe.api.batch import Batch, DataInfo, Outputs, Progress, Shapes, Trainable, Wish
from kdpipe.api.model import ModelSpec
from kdpipe.api.settings import Paper, Published, Settings
from kdpipe.core.errors import PluginError
from kdpipe.core.specs import Augmentation


class Objective(nn.Module):
    """What recipes and methods share.

    Sub-modules and parameters made in `build` are trained with the network; buffers are saved in the
    resume state. The networks themselves are never children of an objective.

    Attributes:
        name: registry name.
        paper: where it comes from.
        revision: bump when the same settings give other numbers.
        Config: its settings, a frozen `Settings` class.
        published: settings that the literature gives for some pairs.
        second_view: None, or what makes the second view that batches shall carry: the protocol's
            augmentation drawn anew, then these steps (often none).
    """

    name: ClassVar[str] = ""
    paper: ClassVar[Paper]
    revision: ClassVar[int] = 1
    published: ClassVar[tuple[Published, ...]] = ()
    second_view: ClassVar[tuple[Augmentation, ...] | None] = None

    class Config(Settings):
        """No settings."""

    config: Any

    def __init__(self, config: Settings | None = None) -> None:
        super().__init__()
        self.config = self.Config() if config is None else config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.name or inspect.isabstract(cls):
            return
        if not hasattr(cls, "paper"):
            raise PluginError(f"{cls.__module__}.{cls.__name__} declares no paper")
        if not issubclass(cls.Config, Settings):
            raise PluginError(f"{cls.__module__}.{cls.__name__}.Config is not a Settings class")
        if not (cls.__doc__ or "").strip():
            raise PluginError(f"{cls.__module__}.{cls.__name__} has no docstring")

    def taps(self) -> Wish:
        """The taps to read beside the logits."""
        return Wish()

    def backward(self, terms: dict[str, Tensor], parameters: Trainable) -> None:
        """Fill `.grad` of every parameter from the loss terms; by default of their sum."""
        total(terms).backward()  # type: ignore[no-untyped-call]


class Method(Objective):
    """A way to distil a student.

    The loss is a sum of named scalar terms, weights included; one of them is called `ce` where the
    method uses the labels.

    Attributes:
        teacher: False for a method without a teacher (`scratch`).
    """

    teacher: ClassVar[bool] = True

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """Why this pair cannot be distilled this way, or None when it can."""
        return None

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """Make adapters (trainable) and memories (buffers) from the shapes of the taps."""

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The loss terms of a step, by name.

        Args:
            s: the student's outputs.
            t: the teacher's outputs, without gradient. A method without a teacher gets no taps and
                empty logits.
            batch: the batch both saw.
            at: where the training stands.
        """
        raise NotImplementedError


class Recipe(Objective):
    """A way to train a teacher."""

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """Make what the recipe needs; per-sample state goes into buffers."""

    def loss(self, model: nn.Module, s: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The loss terms of a step, by name.

        Args:
            model: the network in training, for terms that read its weights.
            s: its outputs.
            batch: the batch it saw.
            at: where the training stands.
        """
        raise NotImplementedError


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms, a scalar."""
    return torch.stack([t.float() if t.dtype != torch.float64 else t for t in terms.values()]).sum()
