"""The table of methods and pairs is true: what is said to train does, for every pair of the papers.

Each network runs once, with all its taps; every method then gets the same outputs. Images have 32 pixels, or
64 for ImageNet's networks and, once more, for those of Tiny ImageNet whose maps are then of other sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Method, ModelSpec, Outputs, Progress, Trainable
from kdpipe.core.registry import methods, models
from kdpipe.nn.pair import Network, equip
from kdpipe.nn.taps import catch, extended, through, transformed
from tools import pairs

SIZE = 3


def cases() -> Iterator[object]:
    """Every pair once, with the side of its images; those that change with the side twice."""
    for name, pair in pairs.distinct().items():
        yield pytest.param(pair, 64 if pair[0].side > 64 else 32, id=name)
    for pair in pairs.pairs("tiny_imagenet"):
        if any(tap.stride_64 for spec in pair for tap in spec.taps.values()):
            yield pytest.param(pair, 64, id=f"{pair[0].name}-{pair[1].name}-64")


@pytest.mark.parametrize(("pair", "side"), [*cases()])
def test_a_pair_trains_or_the_table_says_why_not(pair: pairs.Pair, side: int) -> None:
    wrong = {}
    for name, kind in methods.items():
        reason = pairs.reason(kind, *pair)
        if reason is not None:
            assert reason.strip(), name
            continue
        try:
            Trial(kind, *pair, side).check()
        except Exception as error:  # the other methods are tried too: they share the networks' outputs
            wrong[name] = f"{type(error).__name__}: {error}"
    assert not wrong


class Seen(Network):
    """A network with random weights, and what it gives for one batch of images.

    Args:
        spec: what it declares.
        training: whether its batch norms use the batch.
        side: of the images.
    """

    def __init__(self, spec: ModelSpec, training: bool, side: int) -> None:
        torch.manual_seed(training)
        super().__init__(spec, spec.build(2 if spec.fixed else 100, 3), (3, side, side))
        self.model.train(training)
        self.images = torch.randn(SIZE, *self.image_shape)
        self._all = self.run(self.images, tuple(spec.taps))

    def run(self, images: Tensor, names: Sequence[str]) -> Outputs:
        """The outputs for other images."""
        catcher = catch(self.model, self.spec, names)
        try:
            with torch.no_grad():
                return catcher(images)
        finally:
            catcher.remove()

    def outputs(self, inputs: Sequence[Tensor], names: Sequence[str]) -> Outputs:
        """The outputs for a method's inputs; nothing is run for the images that were seen."""

        def run(images: Tensor) -> Outputs:
            if images.shape != self.images.shape or not images.equal(self.images):
                return self.run(images, names)
            taps = {name: self._all[name] for name in self.shapes(names) if name != "logits"}
            return Outputs(self._all.logits, taps)

        return through(run, inputs)


@lru_cache(maxsize=8)
def seen(name: str, training: bool, side: int) -> Seen:
    return Seen(models.get(name), training, side)


class Trial:
    """A method on a pair, for one batch.

    Args:
        kind: the method.
        teacher: the network that teaches.
        student: the network that learns.
        side: of the images.
    """

    def __init__(self, kind: type[Method], teacher: ModelSpec, student: ModelSpec, side: int) -> None:
        self.student, self.teacher = seen(student.name, True, side), seen(teacher.name, False, side)
        torch.manual_seed(2)
        classes = self.student.shapes(())["logits"][0]
        data = DataInfo(classes, torch.arange(4 * classes) % classes)
        self.method = kind()
        self.part = equip(self.method, self.student, self.teacher, data)
        self.method.train()
        images, index = self.student.images, torch.arange(SIZE)
        views = tuple(torch.randn_like(images) for _ in kind.views)
        self.batch = Batch(images, data.labels[index], index, views)

    def check(self) -> None:
        """Terms and gradients are finite in the first stage, where there is one, and after it."""
        first = [Progress(-1, 10)] if self.method.first_stage() else []
        for at in (*first, Progress(0, 10), Progress(9, 10)):
            inputs = self.method.inputs(self.batch)
            s = leaves(self.student.outputs(inputs, self.method.taps().student))
            trained = Trainable(tensors(s), [], list(self.method.parameters()))
            terms = self.method.loss(s, self._taught(s, inputs), self.batch, at)
            assert all(term.shape == () and term.isfinite() for term in terms.values()), terms
            self.method.zero_grad()
            self.method.backward(terms, trained)
            assert all(p.grad is None or p.grad.isfinite().all() for p in trained.all), "infinite gradient"
            assert any(p.grad is not None and p.grad.any() for p in trained.backbone), "no gradient"

    def _taught(self, s: Outputs, inputs: Sequence[Tensor]) -> Outputs:
        """What teaches: the teacher with its part, peers, or nothing."""
        if self.method.peers():
            peers = [leaves(transformed(s, lambda x: x.flip(0))) for _ in range(self.method.peers())]
            return replace(peers[0], more=tuple(peers[1:]))
        if not self.method.teacher:
            return Outputs(torch.empty(0))
        names = self.method.taps().teacher
        if self.part is None:
            return self.teacher.outputs(inputs, names)
        with torch.no_grad():
            return extended(self.part, self.teacher.outputs(inputs, (*names, *self.part.taps().teacher)))


def leaves(out: Outputs) -> Outputs:
    """The outputs as if they were what is trained."""
    return transformed(out, lambda x: x.detach().clone().requires_grad_())


def tensors(out: Outputs) -> list[nn.Parameter]:
    """All tensors of the outputs, in the place of parameters."""
    found = [out.logits, *out.taps.values(), *(x for other in out.more for x in tensors(other))]
    return cast("list[nn.Parameter]", found)
