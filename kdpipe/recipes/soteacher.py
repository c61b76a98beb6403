"""SoTeacher: a teacher regularised towards the true label distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Published, Recipe, Settings, Shapes, hp
from kdpipe.core.errors import ConfigError
from kdpipe.nn.logits import cross_entropy, full

SCHEDULES: dict[str, Callable[[float], float]] = {  # t / T in [0, 1) -> weight / maximum
    "linear": lambda x: x,
    "cosine": lambda x: math.cos((1 - x) * math.pi / 2),
    "cyclic": lambda x: math.sqrt(1 - (1 - x) ** 2),
    "piecewise": lambda x: 0.0 if x <= 1 / 3 else 0.5 if x <= 2 / 3 else 1.0,
}
"""Schedules of the consistency weight over epoch t of T: SoTeacher, section 4 and Appendix D.1."""


def conv_lipschitz(conv: nn.Conv2d) -> Tensor:
    """Lipschitz constant of a convolution in the 1-norm.

    It is the largest absolute column sum of the operator's matrix. A column belongs to an input pixel;
    the kernel places k that meet it are those of its phase r modulo the stride:

        max over input channels i and phases r of  sum over outputs o and k in r of |K[o, i, k]|

    Args:
        conv: any stride, dilation and groups; zero padding. Its bias does not matter.

    Returns:
        A scalar. It is attained when the map has a pixel of each phase that the whole kernel passes
        over, and an upper bound on smaller maps.

    Source: Gouk et al. 2021, section 3, there for stride 1.
    """
    by_group = full(conv.weight).abs().view(conv.groups, -1, *conv.weight.shape[1:])
    met = by_group.sum(1).flatten(0, 1)  # input channel x kernel place
    rows, columns = (s // math.gcd(s, d) for s, d in zip(conv.stride, conv.dilation, strict=True))
    phases = [met[:, r::rows, c::columns].sum((1, 2)) for r in range(rows) for c in range(columns)]
    return torch.stack(phases).amax()


def linear_lipschitz(linear: nn.Linear) -> Tensor:
    """Lipschitz constant of a linear layer in the 1-norm: `max_j sum_i |W_ij|`, W of outputs x inputs.

    Source: Gouk et al. 2021, section 3.
    """
    return full(linear.weight).abs().sum(0).amax()


def norm_lipschitz(norm: _BatchNorm) -> Tensor:
    """Lipschitz constant of a batch norm with fixed statistics: `max_c |gamma_c| / sqrt(var_c + eps)`.

    The running variance stands for the batch's, also during training, as in the authors' code; no
    gradient passes through it.

    Source: Gouk et al. 2021, section 3.
    """
    assert norm.running_var is not None
    return (full(norm.weight).abs() / (full(norm.running_var) + norm.eps).sqrt()).amax()


def entrywise(conv: nn.Conv2d) -> Tensor:
    """Sum of a kernel's absolute values: an upper bound of `conv_lipschitz`, which the authors' code uses."""
    return full(conv.weight).abs().sum()


CONVOLUTIONS = {"induced": conv_lipschitz, "entrywise": entrywise}


def lipschitz_loss(model: nn.Module, conv: Callable[[nn.Conv2d], Tensor] = conv_lipschitz) -> Tensor:
    """Sum of the 1-norm Lipschitz constants of a network's convolutions, linear layers and batch norms.

    Args:
        model: the network.
        conv: the constant of a convolution.

    Returns:
        A scalar, differentiable in the weights.

    Source: Dong et al. 2024, Appendix C.
    """
    constants = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            constants.append(conv(module))
        elif isinstance(module, nn.Linear):
            constants.append(linear_lipschitz(module))
        elif _trainable_norm(module):
            constants.append(norm_lipschitz(module))
    return torch.stack(constants).sum()


def consistency_loss(probabilities: Tensor, average: Tensor) -> Tensor:
    """Squared 2-norm of the change in predictions: `mean_i sum_c (p_ic - m_ic)^2`.

    Args:
        probabilities: softmax, B x C.
        average: B x C, a constant.

    Returns:
        A scalar in [0, 2].

    Source: Dong et al. 2024, Appendix C.
    """
    return (probabilities - average.detach()).square().sum(1).mean()


class SoTeacher(Recipe):
    """A teacher held smooth and consistent over its own past, so that it teaches better.

    Loss: `CE(z, y) + lambda_lr sum_f Lip_1(f) + lambda_cr w(t / T) mean_i |p_i - m_i|_2^2`, as the terms
    `ce`, `lipschitz` and `consistency`. f runs over convolutions, linear layers and batch norms; p is the
    softmax of sample i (which each epoch augments anew), m the average of its softmax in all earlier
    epochs, constant for the gradient. In the first epoch there is no average and no consistency.
    lambda_lr = 0 and lambda_cr = 0 are the ablations no-LR and no-CR.

    State: the average of each sample's predictions (samples x classes, float32), in a memory-mapped file.

    Taps: none.

    Deviations: the mean over the batch of the squared 2-norm is the paper's; it equals the authors' MSE
    times the number of classes. The paper states the Lipschitz constant in the 1-norm, and so `conv:
    induced` computes it for convolutions; the authors' code sums all their weights' absolute values
    instead, which is far larger at the same lambda_lr: `conv: entrywise` does as the code.

    Reference: Dong et al. 2024, section 4, Appendices C and D.1; Gouk et al. 2021, section 3, for the
    constants; Laine and Aila 2017 for the average.
    """

    name = "soteacher"
    paper = Paper(
        "Toward student-oriented teacher network training for knowledge distillation",
        "C. Dong, L. Liu, J. Shang",
        "ICLR",
        2024,
        "https://arxiv.org/abs/2206.06661",
    )
    published = (Published({"lambda_lr": 1e-6}, "Section 5.1", dataset="tiny_imagenet"),)

    class Config(Settings):
        """Weights of the two regularisers."""

        lambda_lr: float = hp(
            1e-5, ge=0, doc="weight of the Lipschitz constants", source="Section 5.1 (CIFAR-100)"
        )
        lambda_cr: float = hp(1.0, ge=0, doc="largest weight of the consistency", source="Section 5.1")
        schedule: Literal["linear", "cosine", "cyclic", "piecewise"] = hp(
            "linear", doc="growth of the consistency's weight over the epochs", source="Section 4"
        )
        conv: Literal["induced", "entrywise"] = hp(
            "induced",
            doc="convolutions: their Lipschitz constant, or the sum of their weights' absolute values",
            source="Appendix C (induced); authors' code (entrywise)",
        )

    config: Config

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """Check that the network's layers have known constants."""
        if self.config.lambda_lr:
            _check_components(model)

    def per_sample(self, data: DataInfo) -> dict[str, tuple[int, ...]]:
        """The average of each sample's predictions."""
        return {"average": (data.num_classes,)} if self.config.lambda_cr else {}

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy and the two regularisers; then the averages take in this step."""
        c = self.config
        terms = {"ce": cross_entropy(s.logits, batch.labels)}
        if c.lambda_lr:
            terms["lipschitz"] = c.lambda_lr * lipschitz_loss(model, CONVOLUTIONS[c.conv])
        if c.lambda_cr:
            weight = c.lambda_cr * SCHEDULES[c.schedule](at.epoch / at.epochs)
            terms["consistency"] = weight * self._consistency(
                F.softmax(full(s.logits), 1), batch.index, at.epoch
            )
        return terms

    def _consistency(self, probabilities: Tensor, index: Tensor, epochs: int) -> Tensor:
        """Distance from the samples' averages over `epochs` epochs, which then take in this prediction."""
        average = self.memory["average"][index]
        self.memory["average"][index] = average + (probabilities - average) / (epochs + 1)
        return consistency_loss(probabilities, average if epochs else probabilities)


def _trainable_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.affine


def _check_components(model: nn.Module) -> None:
    for name, module in model.named_modules():
        known = isinstance(module, nn.Conv2d | nn.Linear) or (
            _trainable_norm(module) and module.running_var is not None
        )
        if not known and any(True for _ in module.parameters(recurse=False)):
            raise ConfigError(
                f"soteacher knows no Lipschitz constant for '{name}' ({type(module).__name__})",
                fix="choose another network, or set lambda_lr to 0",
            )
