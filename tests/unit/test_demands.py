"""What the card of a method says of a pair of networks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Method, Outputs, Paper, Progress, Shapes, TeacherPart, Wish
from kdpipe.core.errors import UserError
from kdpipe.core.registry import methods, models
from kdpipe.nn.cost import multiply_adds
from kdpipe.nn.demands import Demands, demands
from kdpipe.nn.logits import cross_entropy
from kdpipe.nn.pair import Network
from kdpipe.plan.cards import card

CONFIG = Path("config")
SAMPLES = 40
STUDENT, TEACHER = (Network.fresh(models.get(name), 10, 32) for name in ("resnet8", "resnet14"))
ONCE, TAUGHT = (multiply_adds(network.model, (3, 32, 32)) for network in (STUDENT, TEACHER))


def asked(method: Method) -> Demands:
    return demands(method, STUDENT, TEACHER, SAMPLES)


def of(name: str) -> Demands:
    return asked(methods.get(name)())


def test_the_student_alone_is_the_measure() -> None:
    found = of("scratch")
    assert found == Demands({}, {}, (1,), {}, alone=3 * ONCE, student=3 * ONCE, teacher=0, own=0)
    assert found.relative == 1


def test_a_teacher_is_one_forward_pass() -> None:
    assert of("kd") == replace(of("scratch"), teacher=TAUGHT)


def test_an_adapter_is_counted_by_hand() -> None:
    found = of("fitnet")  # a 1 x 1 convolution from 32 to 32 channels at 16 x 16, with batch norm
    assert found.parameters == {"regressor": 32 * 32 + 32 + 2 * 32}
    assert found.memory == {"regressor": 4 * 2 * 32 + 8}
    assert found.own == 3 * 32 * 32 * 16 * 16
    assert of("kd+fitnet").own == found.own


def test_a_peer_is_another_student() -> None:
    found = of("dml")
    assert (found.student, found.teacher, found.relative) == (6 * ONCE, 0, 2)


PAPER = Paper("t", "a", "v", 2026)


class Part(TeacherPart):
    """A part."""

    name = "a_part"
    paper = PAPER

    def taps(self) -> Wish:
        return Wish(teacher=("embed",))

    def build(self, teacher: Shapes, data: DataInfo) -> None:
        self.map = nn.Linear(teacher["embed"][0], 7)

    def extend(self, t: Outputs) -> dict[str, Tensor]:
        return {"mapped": self.map(t["embed"])}


class Greedy(Method):
    """Everything that a method may ask for."""

    name = "greedy"
    paper = PAPER
    views = ((),)
    bank: Tensor

    def part(self) -> Part:
        return Part()

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return torch.cat([batch.images, batch.views[0], batch.views[0]]), batch.views[0]

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        assert teacher["mapped"] == (7,)
        self.register_buffer("bank", torch.zeros(data.num_samples, 7))
        self.scale = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(10, 7, bias=False)

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        size = len(batch.labels)
        assert (len(s.logits), len(t["mapped"]), len(t.more[0]["mapped"])) == (3 * size, 3 * size, size)
        return {"ce": cross_entropy(s.logits[:size], batch.labels), "own": self.head(s.logits).mean()}


def test_all_that_a_method_may_ask_for_is_counted() -> None:
    width = models.get("resnet14").embed_dim
    state = torch.get_rng_state()
    assert asked(Greedy()) == Demands(
        parameters={"scale": 3, "head": 70},
        memory={"bank": 4 * 7 * SAMPLES},
        views=(3, 1),
        part={"a_part": 7 * width + 7},
        alone=3 * ONCE,
        student=3 * 4 * ONCE,
        teacher=4 * (TAUGHT + 7 * width),
        own=3 * 3 * 70,
    )
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("rco", [r"anchors: 24 of 240 epochs", r"buffers: 8 bytes \(position 8\)"]),
        ("dml", [r"peers: 1 like the student", r"a step: 2\.00 times"]),
        (
            "dhkd",
            [r"beside the student: 25,700 parameters \(head 25,700\)", r"not counted: a second backward"],
        ),
        ("kd+fitnet", [r"\(fitnet 16,768\)"]),
    ],
)
def test_a_card_says_what_is_asked_for(name: str, lines: list[str]) -> None:
    text = card(name, CONFIG)
    assert "\nOn resnet32x4 -> resnet8x4, 100 classes, 50,000 images of 3 x 32 x 32" in text
    assert all(re.search(line, text) for line in lines), text
    assert "first stage" not in text


def test_a_card_for_another_pair() -> None:
    assert "On vgg13 -> mobilenetv2, 10 classes" in card("fitnet", CONFIG, "vgg13/mobilenetv2", 10)
    reason = "On two_layer_100 -> two_layer_20: not possible, two_layer_20 has no tap 'stage2'"
    assert card("fitnet", CONFIG, "two_layer_100/two_layer_20").endswith(reason)


@pytest.mark.parametrize(
    ("name", "pair", "words"),
    [
        ("kd", "resnet8", ["'resnet8' is no pair", "TEACHER/STUDENT"]),
        ("kd", "resnet8/resnett14", ["no model 'resnett14'", "--pair", "did you mean 'resnet14'"]),
        ("resnet8", "resnet14/resnet8", ["'resnet8' is no method", "--pair"]),
    ],
)
def test_a_wrong_pair_is_one_clear_error(name: str, pair: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        card(name, CONFIG, pair)
    assert all(word in str(caught.value) for word in words), str(caught.value)
