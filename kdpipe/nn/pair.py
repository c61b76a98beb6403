"""A method on a pair of networks without an engine: for its card, for the table of pairs, for the tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kdpipe.api import DataInfo, Method, ModelSpec, Norms, Shapes, TeacherPart
from kdpipe.nn.taps import expand, extended_shapes, norms, shapes


class Network:
    """A network and the shapes of all its taps, from one forward pass.

    Args:
        spec: what it declares.
        model: the network; it stays as it is.
        image_shape: (C, H, W).
    """

    def __init__(self, spec: ModelSpec, model: nn.Module, image_shape: Sequence[int]) -> None:
        self.spec, self.model, self.image_shape = spec, model, tuple(image_shape)
        self._shapes = shapes(model, spec, tuple(spec.taps), image_shape)

    @classmethod
    def fresh(cls, spec: ModelSpec, classes: int, side: int) -> Network:
        """The network with random weights, for colour images; the random generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            return cls(spec, spec.build(classes, 3), (3, side, side))

    def shapes(self, names: Sequence[str]) -> Shapes:
        """Shapes of the named taps (groups allowed), in the order of the network, `logits` last."""
        return {name: self._shapes[name] for name in (*expand(self.spec, names), "logits")}

    def norms(self, names: Sequence[str]) -> Norms:
        """Weights and biases of the batch norms in front of the named taps."""
        return norms(self.model, self.spec, names)


def equip(method: Method, student: Network, teacher: Network, data: DataInfo) -> TeacherPart | None:
    """Build a method for two networks, as the engine does.

    Returns:
        What the method needs on top of the teacher: built, untrained, frozen; None where that is nothing.
    """
    wish, part = method.taps(), method.part()
    mine = student.shapes(wish.student)
    if not method.teacher:
        method.build(mine, {}, data)
        method.read_norms({})
        return None
    names = (*wish.teacher, *(part.taps().teacher if part is not None else ()))
    theirs = teacher.shapes(names)
    if part is not None:
        part.build(theirs, data)
        theirs = extended_shapes(part.eval().requires_grad_(False), theirs)
    method.build(mine, theirs, data)
    method.read_norms(teacher.norms(names))
    return part
