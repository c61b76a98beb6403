"""What a method costs on a pair of networks, beside the student that it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.api import Batch, DataInfo, Method, Objective, Outputs, Progress, TeacherPart
from kdpipe.nn.cost import counted, multiply_adds
from kdpipe.nn.pair import Network, equip
from kdpipe.nn.taps import catch, extended, through

EPOCHS = 240  # of CRD's protocol, for methods that look at the teacher's epochs
SIZE = 4  # images of the batch that is tried
BACKWARD = 2  # what a backward pass is taken to cost, in forward passes


@dataclass(frozen=True)
class Demands:
    """Sizes, and multiply-adds of a training step for one image of the batch.

    Attributes:
        parameters: trainable ones beside the student's, by module.
        memory: bytes of buffers, by module.
        views: for each forward pass, how many images the networks see for one of the batch.
        part: parameters of what is trained on the teacher beforehand, by module.
        alone: multiply-adds of the student trained without a teacher, forward and backward.
        student: multiply-adds of the student and its peers, forward and backward.
        teacher: multiply-adds of the teacher and its part, forward.
        own: multiply-adds of the method's own layers, forward and backward.
    """

    parameters: dict[str, int]
    memory: dict[str, int]
    views: tuple[float, ...]
    part: dict[str, int]
    alone: int
    student: int
    teacher: int
    own: int

    @property
    def relative(self) -> float:
        """The cost of a step in steps of the student alone."""
        return (self.student + self.teacher + self.own) / self.alone


def demands(method: Method, student: Network, teacher: Network, samples: int) -> Demands:
    """Build a method for two networks and try one step on random images, in the middle of the training.

    Counted are convolutions and linear layers, as in `multiply_adds`; a backward pass counts as two forward
    passes. Other operations of the loss and the optimiser's step are not counted.

    Args:
        method: not built yet.
        student: the network that learns.
        teacher: the network that teaches.
        samples: how many there are to train on, in classes of equal sizes.
    """
    classes = student.shapes(())["logits"][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = DataInfo(classes, torch.arange(samples) % classes)
        part = equip(method, student, teacher, data)
        batch = _batch(method, student, data)
        seen = tuple(len(images) / SIZE for images in method.inputs(batch))
        own, added = _own(method, part, student, teacher, batch)
    once = multiply_adds(student.model, student.image_shape)
    taught = multiply_adds(teacher.model, teacher.image_shape) if method.teacher else 0
    return Demands(
        parameters=_by_module((name, p.numel()) for name, p in method.named_parameters()),
        memory=_by_module((name, b.numel() * b.element_size()) for name, b in method.named_buffers()),
        views=seen,
        part={part.name: sum(p.numel() for p in part.parameters())} if part is not None else {},
        alone=(1 + BACKWARD) * once,
        student=round((1 + BACKWARD) * once * sum(seen) * (1 + method.peers())),
        teacher=round(taught * sum(seen)) + added,
        own=(1 + BACKWARD) * own,
    )


def views(objective: Objective, image_shape: tuple[int, int, int]) -> int:
    """How many images the networks see in a step for one (C x H x W) of the batch, before it is built."""
    image, place = torch.zeros(1, *image_shape), torch.zeros(1, dtype=torch.int64)
    try:
        passes = objective.inputs(Batch(image, place, place, tuple(image for _ in objective.views)))
    except AttributeError:  # it reads what only its `build` makes
        return 1
    return sum(len(images) for images in passes)


def _batch(method: Method, student: Network, data: DataInfo) -> Batch:
    images, index = torch.randn(SIZE, *student.image_shape), torch.arange(SIZE)
    views = tuple(torch.randn_like(images) for _ in method.views)
    return Batch(images, data.labels[index], index, views)


def _own(
    method: Method, part: TeacherPart | None, student: Network, teacher: Network, batch: Batch
) -> tuple[int, int]:
    """Multiply-adds, for one image, of the method's layers and of its part's, both forward."""
    inputs, wish = method.inputs(batch), method.taps()
    s = _outputs(student, wish.student, inputs)
    t = Outputs(batch.images.new_empty(0))
    added: list[int] = []
    if method.peers():
        t = Outputs(s.logits, s.taps, (s,) * (method.peers() - 1))
    elif method.teacher:
        names = (*wish.teacher, *(part.taps().teacher if part is not None else ()))
        t = _outputs(teacher, names, inputs)
    if part is not None:
        with counted(part) as added, torch.no_grad():
            t = extended(part, t)
    with counted(method.train()) as own, torch.no_grad():
        method.loss(s, t, batch, Progress(EPOCHS // 2, EPOCHS))
    return sum(own) // SIZE, sum(added) // SIZE


def _outputs(network: Network, names: Iterable[str], inputs: tuple[Tensor, ...]) -> Outputs:
    catcher = catch(network.model.eval(), network.spec, tuple(names))
    try:
        with torch.no_grad():
            return through(catcher, inputs)
    finally:
        catcher.remove()


def _by_module(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sums over each of the top-level modules (or tensors) that the dotted names begin with."""
    found: Counter[str] = Counter()
    for name, size in sizes:
        found[name.split(".")[0]] += size
    return dict(found)
