"""Auxiliary classifiers on a network's features."""

from __future__ import annotations

from torch import nn

HIDDEN = 200
MLP_PAIRS = (  # (teacher, student) of two architectures
    ("resnet32x4", "shufflenetv1"),
    ("resnet32x4", "shufflenetv2"),
    ("resnet50", "mobilenetv2"),
    ("vgg13", "mobilenetv2"),
    ("wrn_40_2", "shufflenetv1"),
)


def linear_head(width: int, classes: int) -> nn.Module:
    """A linear classifier: B x width to B x classes."""
    return nn.Linear(width, classes)


def mlp_head(width: int, classes: int) -> nn.Module:
    """A classifier with one hidden layer of 200: linear, dropout 0.1, batch norm, ReLU, linear.

    Source: 200 hidden neurons from Yang et al. 2024, Appendix F; the layers from the authors' code.
    """
    return nn.Sequential(
        nn.Linear(width, HIDDEN),
        nn.Dropout(0.1),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )


HEADS = {"linear": linear_head, "mlp": mlp_head}
