"""One training in miniature for any objective: small real networks, one batch, no engine."""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    Memory,
    Method,
    Objective,
    Outputs,
    Progress,
    Recipe,
    Settings,
    Trainable,
    total,
)
from kdpipe.core.registry import models
from kdpipe.nn.pair import Network, equip
from kdpipe.nn.taps import catch, extended, through

IMAGE = (3, 16, 16)
CLASSES = 5
SAMPLES = 20
EPOCHS = 60  # of the training whose end is looked at
PAIRS = [  # teacher, student
    ("resnet14", "resnet8"),
    ("wrn_16_1", "resnet8"),
    ("resnet8", "wrn_16_1"),
    ("resnet8x4", "resnet8"),
]
START = Progress(0, 10)
LATER = Progress(4, 10)
FIRST = Progress(-1, 10)  # the last epoch of a first stage


class Bench:
    """A network in training under an objective, with its teacher where there is one.

    Args:
        kind: the objective's class.
        config: its settings.
        pair: names of the teacher's and the student's network; a recipe trains the student's.
        seed: of everything random.
        size: of the batch.
    """

    def __init__(
        self,
        kind: type[Objective],
        config: Settings | None = None,
        pair: tuple[str, str] = PAIRS[0],
        seed: int = 0,
        size: int = 6,
    ) -> None:
        torch.manual_seed(seed)
        self.teacher_spec, self.spec = (models.get(name) for name in pair)
        self.teacher, self.model = (spec.build(CLASSES, IMAGE[0]) for spec in (self.teacher_spec, self.spec))
        self.teacher.eval()
        self.objective = kind(config)
        wish = self.objective.taps()
        data = DataInfo(CLASSES, torch.arange(SAMPLES) % CLASSES)
        student = Network(self.spec, self.model, IMAGE)
        self.part = None
        if isinstance(self.objective, Method):
            self.part = equip(self.objective, student, Network(self.teacher_spec, self.teacher, IMAGE), data)
            if self.part is not None:
                wish = replace(wish, teacher=(*wish.teacher, *self.part.taps().teacher))
        elif isinstance(self.objective, Recipe):
            self.objective.build(self.model, student.shapes(wish.student), data)
        self.objective.memory = {
            name: _remembered(shape) for name, shape in self.objective.per_sample(data).items()
        }
        self.objective.train()
        self.catch = catch(self.model, self.spec, wish.student)
        self.catch_teacher = catch(self.teacher, self.teacher_spec, wish.teacher)
        index = torch.randperm(SAMPLES)[:size]
        views = tuple(torch.randn(size, *IMAGE) for _ in self.objective.views)
        self.batch = Batch(torch.randn(size, *IMAGE), data.labels[index], index, views)
        self.peers = nn.ModuleList(self.spec.build(CLASSES, IMAGE[0]) for _ in range(self._peers()))

    @property
    def parameters(self) -> Trainable:
        classifier = list(self.model.get_submodule(self.spec.classifier).parameters())
        known = {id(p) for p in classifier}
        backbone = [p for p in self.model.parameters() if id(p) not in known]
        return Trainable(backbone, classifier, [*self.objective.parameters(), *self.peers.parameters()])

    def terms(self, at: Progress = START, batch: Batch | None = None) -> dict[str, Tensor]:
        """The loss terms; the teacher's outputs carry gradients, to show that nothing uses them."""
        batch = batch or self.batch
        if isinstance(self.objective, Recipe):
            batch = self.objective.transform(batch, at)
            student = through(self.catch, self.objective.inputs(batch))
            return self.objective.loss(self.model, student, self._taught(batch), batch, at)
        assert isinstance(self.objective, Method)
        student = through(self.catch, self.objective.inputs(batch))
        return self.objective.loss(student, self._taught(batch), batch, at)

    def sure(self) -> Bench:
        """As late in training: the network is far ahead with the labels of its batch, in various degrees."""
        with torch.no_grad():
            self.model.get_submodule(self.spec.classifier).weight.mul_(20)
            labels = self.catch(self.batch.images).logits.argmax(1)
        self.batch = replace(self.batch, labels=labels)
        return self

    @property
    def moments(self) -> list[Progress]:
        """Moments of the training: in the first stage where there is one, at the start, later."""
        staged = isinstance(self.objective, Method) and self.objective.first_stage()
        return [FIRST, START, LATER] if staged else [START, LATER]

    def step(self, optimizer: torch.optim.Optimizer, at: Progress = START) -> float:
        """One step; the sum of the terms before it."""
        optimizer.zero_grad()
        terms = self.terms(at)
        self.objective.backward(terms, self.parameters)
        optimizer.step()
        return total(terms).item()

    def steps(self, optimizer: torch.optim.Optimizer, at: Progress, count: int) -> list[float]:
        """The sums before each step, with the objective's memories held, which would move the goal."""
        held = {name: buffer.clone() for name, buffer in self.objective.named_buffers()}
        sums = []
        for _ in range(count):
            sums.append(self.step(optimizer, at))
            for name, buffer in self.objective.named_buffers():
                buffer.copy_(held[name])
        return sums

    def trace(self, seed: int = 0) -> list[Any]:
        """Terms at each moment up to the start and, on other views of the same samples, later; then what
        leads the training."""
        torch.manual_seed(seed)
        later = replace(self.batch, images=torch.randn_like(self.batch.images))
        terms = [
            {name: term.item() for name, term in self.terms(at, later if at == LATER else None).items()}
            for at in self.moments
        ]
        return [*terms, self.objective.views, self._route()]

    def _route(self) -> list[Any]:
        """Stages, anchors, schedule and cohort of a method; generations, cohort and end of a recipe."""
        if isinstance(self.objective, Recipe):
            return [self.objective.generations(), self.objective.peers(), self._end()]
        assert isinstance(self.objective, Method)
        m, epochs = deepcopy(self.objective), [Progress(e, 10) for e in range(10)]
        route = [m.anchor(at, 5, lambda: [1.5] * 5) for at in epochs] if m.anchors(100) else []
        part = m.part()
        told = (part.config.model_dump(), part.protocol()) if part else None
        return [
            m.first_stage(),
            m.anchors(100),
            route,
            [m.schedule_epoch(at) for at in epochs],
            m.peers(),
            told,
        ]

    def _end(self) -> list[Any]:
        """Rates and length of a recipe's training in which the network shrinks and gets worse, and the
        network that is left."""
        assert isinstance(self.objective, Recipe)
        recipe, model, rates = deepcopy(self.objective), self.spec.build(CLASSES, IMAGE[0]), []
        model.load_state_dict(self.model.state_dict())
        logits, labels = torch.randn(SAMPLES, CLASSES), torch.arange(SAMPLES) % CLASSES
        for epoch in range(EPOCHS):
            at = Progress(epoch, EPOCHS)
            rates.append(recipe.rate(at, lambda e: 0.1 / (1 + e)))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter *= 0.95
            if recipe.after_epoch(model, lambda e=epoch: ((1 + e) * logits, labels), at):
                break
        recipe.finish(model, model.get_submodule(self.spec.classifier), lambda: (logits, labels))
        return [rates, [p.double().sum().item() for p in model.parameters()]]

    def _taught(self, batch: Batch) -> Outputs:
        if self.peers:
            first, *others = (Outputs(peer(batch.images)) for peer in self.peers)
            return replace(first, more=tuple(others))
        taught = self.objective
        if not (taught.teacher if isinstance(taught, Method) else taught.generations()):
            return Outputs(torch.empty(0))
        out = through(self.catch_teacher, self.objective.inputs(batch))
        return out if self.part is None else extended(self.part, out)

    def _peers(self) -> int:
        return self.objective.peers()


def _remembered(shape: tuple[int, ...]) -> Memory:
    """Something to remember of each sample, the same for every bench."""
    past = torch.rand(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    return Memory(past, torch.zeros_like(past))


def variants(kind: type[Objective]) -> Iterator[tuple[str, Settings]]:
    """The default settings, each switch turned, each choice taken and each weight of 0 raised once, and
    every published row."""
    yield "default", kind.Config()
    numbers = numeric_fields(kind.Config)
    for name, info in kind.Config.model_fields.items():
        off = name in numbers and info.default == 0
        for value in [numbers[name]] if off else _choices(info.annotation):
            if value != info.default:
                try:
                    yield f"{name}={value}", kind.Config(**{name: value})
                except ValidationError:
                    continue  # a choice that needs another setting
    for settings in {str(row.settings): row.settings for row in kind.published}.values():
        yield f"published {settings}", kind.Config(**settings)


def numeric_fields(config: type[Settings]) -> dict[str, Any]:
    """Names of the numeric settings, with another legal value of each."""
    return {
        name: _other(config, name)
        for name, info in config.model_fields.items()
        if {int, float} & set(_options(info.annotation))
    }


def offences(source: str) -> list[str]:
    """What a plug-in's source must not hold: devices, printing, the global random state."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr="cuda" | "cpu" | "manual_seed" | "seed" as name):
                found.append(f".{name}")
            case ast.Call(func=ast.Name(id="print")):
                found.append("print")
            case ast.Import(names=names) if any(n.name in ("random", "numpy.random") for n in names):
                found.append("import random")
            case ast.ImportFrom(module="random" | "numpy.random"):
                found.append("import random")
            case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"):
                found.append("np.random")
            case ast.keyword(arg="device", value=ast.Constant()):
                found.append("device literal")
            case ast.Call(func=ast.Attribute(attr="to"), args=[ast.Constant(value=str()), *_]):
                found.append("device literal")
    return found


def _options(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if annotation is bool:
        return (False, True)
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def _other(config: type[Settings], name: str) -> float | int:
    default = config.model_fields[name].default
    for value in ((default or 0) * 2, (default or 0) / 2, 1, 0, 2):
        if value != default:
            try:
                config(**{name: value})
            except ValidationError:
                continue
            return value
    raise AssertionError(f"no other legal value of {name} found")
