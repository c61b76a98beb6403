"""The teacher with calibrated logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdpipe.api import Batch, HeldOut, Outputs, Paper, Progress, Recipe
from kdpipe.nn.logits import cross_entropy

LOWEST, HIGHEST = 0.1, 10.0  # as in the evaluation
HALVINGS = 60  # of that interval's logarithm: down to the last digit


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in [0.1, 10] that minimises the NLL of `softmax(z / T)`.

    The NLL is convex in 1/T, with the slope `mean_i sum_c p_ic (z_ic - z_iy)`, so halving the interval
    finds the minimum.

    Args:
        logits: N x C, N >= 1.
        labels: N, int64.

    Returns:
        T; an end of the interval where the minimum lies outside; 1 where the NLL does not depend on T, or
        a logit is not finite.

    Source: Guo et al. 2017, section 4.2. Deviation: halving for the authors' L-BFGS.
    """
    z = logits.double()
    margins = z - z.gather(1, labels[:, None])

    def slope(log_t: float) -> float:
        return float(((margins / math.exp(log_t)).softmax(1) * margins).sum(1).mean())

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if not z.isfinite().all() or slope(low) == slope(high) == 0:
        return 1.0
    if slope(low) <= 0:
        return LOWEST
    if slope(high) >= 0:
        return HIGHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.exp(low)


class TemperatureScaling(Recipe):
    """The teacher trained as usual, whose logits are then divided by the temperature that calibrates them.

    Loss: `ce = CE(z, y)`. At the end T minimises the NLL of `softmax(z / T)` on the validation images, and
    the classifier's weight and bias are divided by it. What the network predicts stays; how sure it is, and
    with it what a student sees at a given temperature, changes.

    Taps: none.

    Deviations: T is sought in [0.1, 10], by halving. A teacher that a study takes at an earlier epoch is
    not scaled.

    Reference: Guo et al. 2017, section 4.2; named, without numbers, by Dong et al. 2024 (SoTeacher),
    Appendix F.
    """

    name = "temperature_scaling"
    paper = Paper(
        "On calibration of modern neural networks",
        "C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger",
        "ICML",
        2017,
        "https://arxiv.org/abs/1706.04599",
    )
    needs_validation = True

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the labels."""
        return {"ce": cross_entropy(s.logits, batch.labels)}

    @torch.no_grad()
    def finish(self, model: nn.Module, classifier: nn.Module, held_out: HeldOut | None) -> None:
        """Fit the temperature and divide the classifier by it."""
        assert held_out is not None
        temperature = fit_temperature(*held_out())
        for value in classifier.state_dict().values():
            value /= temperature
