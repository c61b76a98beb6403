"""The interface of a recipe (how a teacher is trained) and a method (how a student is distilled).

A contributor writes one class in one file. The engine does the rest: it builds the networks, catches
the taps, draws the batches, steps the optimiser, saves and resumes. An objective never sees a path, a
device, a seed or another plug-in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdpipe.api.batch import Batch, DataInfo, HeldOut, Norms, Outputs, Progress, Shapes, Trainable, Wish
from kdpipe.api.memory import Memory
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
        unsettled: what of it could not be checked against its source; empty where all was.
        Config: its settings, a frozen `Settings` class.
        published: settings that the literature gives for some pairs.
        views: what makes the further views that batches shall carry: for each, the protocol's augmentation
            drawn anew, then these steps (often none). An instance may set its own, as its settings say.
        memory: what `per_sample` asked for, by name.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[Paper]
    revision: ClassVar[int] = 1
    unsettled: ClassVar[str] = ""
    published: ClassVar[tuple[Published, ...]] = ()
    views: tuple[tuple[Augmentation, ...], ...] = ()
    memory: dict[str, Memory]

    class Config(Settings):
        """No settings."""

    config: Any

    def __init__(self, config: Settings | None = None) -> None:
        super().__init__()
        self.config = self.Config() if config is None else config
        self.memory = {}

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

    @classmethod
    def published_for(cls, dataset: str, teacher: str, student: str, recipe: str) -> Published | None:
        """The most specific published row that matches, or None."""
        matches = [
            (stars, order, row)
            for order, row in enumerate(cls.published)
            if (stars := row.stars(dataset, teacher, student, recipe)) is not None
        ]
        return min(matches, key=lambda m: m[:2])[2] if matches else None

    def taps(self) -> Wish:
        """The taps to read beside the logits."""
        return Wish()

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The images of each forward pass of the networks; those after the first fill `Outputs.more`."""
        return (batch.images,)

    def peers(self) -> int:
        """How many untrained copies of the network are trained beside it.

        Their outputs are `t` (the first) and `t.more` (the others), with gradient.
        """
        return 0

    def per_sample(self, data: DataInfo) -> dict[str, tuple[int, ...]]:
        """What is remembered of each training sample: name -> shape; see `Memory`."""
        return {}

    def backward(self, terms: dict[str, Tensor], parameters: Trainable) -> None:
        """Fill `.grad` of every parameter from the loss terms; by default of their sum."""
        total(terms).backward()  # type: ignore[no-untyped-call]


class Method(Objective):
    """A way to distil a student.

    The loss is a sum of named scalar terms, weights included; one of them is called `ce` where the
    method uses the labels.

    Attributes:
        teacher: False for a method without a teacher (`scratch`, `dml`).
        logit_only: besides `ce`, its terms read the logits of both networks and nothing else.
    """

    teacher: ClassVar[bool] = True
    logit_only: ClassVar[bool] = False

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """Why this pair cannot be distilled this way, or None when it can."""
        return None

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """Make adapters (trainable) and memories (buffers) from the shapes of the taps."""

    def read_norms(self, teacher: Norms) -> None:
        """Take what is needed of the teacher's batch norms; called after `build`."""

    def first_stage(self) -> int:
        """Epochs of a first stage before the protocol's own; there `at.epoch` counts -n, ..., -1.

        What the loss does not reach there is not trained. The rate is the protocol's first; the main
        stage starts with a fresh optimiser.
        """
        return 0

    def part(self) -> TeacherPart | None:
        """What must be trained on top of the teacher beforehand; its taps are then the teacher's."""
        return None

    def anchors(self, epochs: int) -> tuple[int, ...]:
        """Epochs of a teacher's training (of `epochs`) whose checkpoints teach; none means the last only."""
        return ()

    def anchor(self, at: Progress, count: int, gaps: Callable[[], list[float]]) -> int:
        """Which of `anchors` teaches this epoch, as a position among them.

        Args:
            at: where the training stands, at the start of an epoch.
            count: how many anchors there are, 2 or more.
            gaps: measures the mean divergence of each anchor from the student, in nats, on training
                images (at most 1,000 of them, without augmentation).
        """
        return 0

    def auxiliary(self) -> nn.Module | None:
        """A second classifier, which reads the student's tap `embed` and is dropped after training.

        The tap must be among `taps`. Its predictions are stored beside the network's own.
        """
        return None

    def schedule_epoch(self, at: Progress) -> int:
        """The epoch of the protocol's schedule whose learning rate holds now."""
        return at.epoch

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


class TeacherPart(Objective):
    """What is trained on top of a frozen teacher, once, and then belongs to it.

    A run of its own that the teacher's students share (a paraphraser, a projection head). It is
    declared in the file of the method that needs it. It trains as the teacher's protocol says, but for
    what its `protocol` changes.
    """

    def protocol(self) -> dict[str, Any]:
        """Fields of the teacher's protocol that are replaced: `epochs`, `lr`, a schedule."""
        return {}

    def build(self, teacher: Shapes, data: DataInfo) -> None:
        """Make the trainable modules from the shapes of the teacher's taps."""

    def extend(self, t: Outputs) -> dict[str, Tensor]:
        """The taps that it adds to the teacher, by name."""
        raise NotImplementedError

    def loss(self, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The loss terms of a step, by name.

        Args:
            t: the teacher's outputs, without gradient.
            batch: the batch it saw.
            at: where the training stands.
        """
        raise NotImplementedError


class Recipe(Objective):
    """A way to train a teacher.

    Attributes:
        needs_validation: it reads held-out images, so the study must hold some out.
        recalibrate: the batch norms' statistics are measured anew, over one epoch, when `finish` is done.
    """

    needs_validation: ClassVar[bool] = False
    recalibrate: ClassVar[bool] = False

    def generations(self) -> int:
        """How many teachers are trained one after the other before this one, each taught by the last.

        Such a recipe has a setting `generations` that says so; the k-th teacher after the first is a run
        with that setting at k.
        """
        return 0

    def first(self) -> tuple[str, dict[str, Any]]:
        """The recipe of the first of those teachers, and its settings that are not at their defaults."""
        return "standard", {}

    def draw(self) -> int:
        """Which draw of the seed's initial weights the network starts from: by default each its own."""
        return self.generations()

    def folds(self) -> int:
        """How many parts the training set has, of which network i never learns the i-th; 0 is none.

        Such a recipe has one peer less than folds. A student learns each sample from the network that did
        not (`kdpipe.nn.folds`).
        """
        return 0

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """Make what the recipe needs."""

    def transform(self, batch: Batch, at: Progress) -> Batch:
        """The batch as it is trained on (mixed, say)."""
        return batch

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The loss terms of a step, by name.

        Args:
            model: the network in training, for terms that read its weights.
            s: its outputs.
            t: the outputs of its own teacher (`generations`) or its peers; empty logits without either.
            batch: the batch it saw.
            at: where the training stands.
        """
        raise NotImplementedError

    def after_epoch(self, model: nn.Module, held_out: HeldOut | None, at: Progress) -> bool:
        """Look at the network after an epoch; True ends the training here.

        Args:
            model: the network.
            held_out: measures the validation images, where the study holds any out.
            at: the epoch that has ended.
        """
        return False

    def rate(self, at: Progress, planned: Callable[[int], float]) -> float:
        """The learning rate of an epoch.

        Args:
            at: the epoch that begins.
            planned: the protocol's rate in each epoch, from 0.
        """
        return planned(at.epoch)

    def finish(self, model: nn.Module, classifier: nn.Module, held_out: HeldOut | None) -> None:
        """Change the trained network's weights, in place, into those that are kept.

        Checkpoints of epochs stay as they were.

        Args:
            model: the network.
            classifier: its last linear layer.
            held_out: measures the validation images, where the study holds any out.
        """


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms, a scalar."""
    return torch.stack([t.float() if t.dtype != torch.float64 else t for t in terms.values()]).sum()
