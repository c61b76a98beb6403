"""The connector's rule, its published sizes, and what FitNet says when no connector fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.core.errors import ConfigError
from kdpipe.methods.fitnet import FitNet
from kdpipe.nn.adapters import connector, fits

SIZES = [  # student's and teacher's second stage, extra parameters
    ((128, 16, 16), (128, 16, 16), 16_768),  # resnet32x4 -> resnet8x4
    ((32, 16, 16), (32, 16, 16), 1_120),  # resnet56 -> resnet20
    ((64, 16, 16), (64, 16, 16), 4_288),  # wrn_40_2 -> wrn_16_2
    ((256, 8, 8), (256, 8, 8), 66_304),  # vgg13 -> vgg8
    ((256, 8, 8), (512, 16, 16), 2_098_688),  # ResNet50 -> vgg8
    ((16, 8, 8), (256, 8, 8), 4_864),  # vgg13 -> MobileNetV2
    ((16, 8, 8), (512, 16, 16), 132_608),  # ResNet50 -> MobileNetV2
    ((480, 8, 8), (128, 16, 16), 983_424),  # resnet32x4 -> ShuffleNetV1
    ((232, 8, 8), (128, 16, 16), 475_520),  # resnet32x4 -> ShuffleNetV2
    ((128, 16, 16), (512, 16, 16), 67_072),  # ResNet50 -> ResNet18
]


@pytest.mark.parametrize(("student", "teacher", "extra"), SIZES)
def test_connector_has_the_published_size(
    student: tuple[int, ...], teacher: tuple[int, ...], extra: int
) -> None:
    made = connector(student, teacher)
    assert made(torch.zeros(2, *student)).shape == (2, *teacher)
    assert sum(p.numel() for p in made.parameters()) == extra


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 8, 8), (3, 4, 4)), ((2, 9, 7), (3, 4, 4)), ((2, 3, 6), (3, 6, 12))]
)
def test_connector_reaches_the_teachers_size(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    assert connector(student, teacher)(torch.zeros(2, *student)).shape == (2, *teacher)


def test_connector_ends_in_a_relu_only_when_asked() -> None:
    assert isinstance(connector((1, 2, 2), (1, 2, 2))[-1], nn.ReLU)
    assert isinstance(connector((1, 2, 2), (1, 2, 2), relu=False)[-1], nn.BatchNorm2d)


def test_connector_refuses_a_map_that_is_much_smaller() -> None:
    with pytest.raises(ConfigError, match="2 x 2 to 8 x 8"):
        connector((1, 2, 2), (1, 8, 8))


@pytest.mark.parametrize("student", [1, 2, 4, 8])
@pytest.mark.parametrize("teacher", [1, 2, 4, 8])
def test_strides_fit_exactly_where_the_sizes_do(student: int, teacher: int) -> None:
    shapes = (2, 32 // student, 32 // student), (2, 32 // teacher, 32 // teacher)
    if fits(student, teacher):
        connector(*shapes)
    else:
        with pytest.raises(ConfigError):
            connector(*shapes)


PAPER = Paper("", "", "", 2000)
TEACHER = ModelSpec(
    "wide", nn.Identity, {"stage2": Tap("2", 8, 2, "relu"), "embed": Tap("3", 8, 0, "vector")}, "fc", 0, PAPER
)
STUDENT = replace(TEACHER, name="slim")


@pytest.mark.parametrize(
    ("hint", "student", "reason"),
    [
        ("stage2", STUDENT, None),
        ("stage3", STUDENT, "slim has no tap 'stage3'"),
        ("embed", STUDENT, "'embed' of slim is a vector, not a map"),
        (
            "stage2",
            replace(STUDENT, taps={"stage2": Tap("2", 8, 8, "relu")}),
            "'stage2' of slim has stride 8, of wide 2: no regressor fits",
        ),
    ],
)
def test_fitnet_says_why_a_pair_is_skipped(hint: str, student: ModelSpec, reason: str | None) -> None:
    assert FitNet(FitNet.Config(hint=hint)).skip(student, TEACHER) == reason
