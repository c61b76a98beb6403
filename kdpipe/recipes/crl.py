"""CRL: a teacher whose confidence ranks samples by how often it was right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Recipe, Settings, hp
from kdpipe.nn.logits import cross_entropy, full


def largest(logits: Tensor) -> Tensor:
    """Confidence as the largest probability: `max_c p_c`.

    Args:
        logits: B x C.

    Returns:
        B, in [1 / C, 1].

    Source: Moon et al. 2020, section 3.
    """
    return F.softmax(full(logits), 1).amax(1)


def lead(logits: Tensor) -> Tensor:
    """Confidence as the lead of the first class over the second: `p_(1) - p_(2)`.

    Args:
        logits: B x C, C >= 2.

    Returns:
        B, in [0, 1].

    Source: Moon et al. 2020, section 3.
    """
    first, second = F.softmax(full(logits), 1).topk(2, 1).values.unbind(1)
    return first - second


def negative_entropy(logits: Tensor) -> Tensor:
    """Confidence as negative entropy, in units of its range: `sum_c p_c log p_c / log C`.

    Args:
        logits: B x C, C >= 2.

    Returns:
        B, in [-1, 0].

    Source: Moon et al. 2020, section 3. Deviation: divided by log C for any number of classes (the authors'
    code states it for 10 and 100).
    """
    log_p = F.log_softmax(full(logits), 1)
    return (log_p.exp() * log_p).sum(1) / math.log(logits.shape[1])


CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": largest,
    "margin": lead,
    "entropy": negative_entropy,
}


def ranking_loss(confidence: Tensor, correctness: Tensor) -> Tensor:
    """Margin ranking of neighbours: `mean_i max(0, |c_i - c_j| - sign(c_i - c_j) (k_i - k_j))`, `j = i + 1`.

    The last sample's neighbour is the first. Pairs of equal correctness give nothing.

    Args:
        confidence: k, B.
        correctness: c, B, a constant in [0, 1].

    Returns:
        A scalar >= 0; it is 0 where each pair's confidences are in the order of its correctness and at least
        as far apart.

    Source: Moon et al. 2020, section 3. Deviation: the mean over the pairs, as in the authors' code.
    """
    gap = full(correctness).detach()
    gap = gap - gap.roll(-1)
    ahead = full(confidence) - full(confidence).roll(-1)
    return F.relu(gap.abs() - gap.sign() * ahead).mean()


def scaled_counts(counts: Tensor, low: Tensor | float, epochs: int) -> Tensor:
    """Counts of right predictions as shares of their range: `(n - low) / (epochs - low)`.

    Args:
        counts: B, each from `low` to `epochs`.
        low: the least count of any training sample, or 0.
        epochs: how often each sample was predicted.

    Returns:
        B, in [0, 1]; zeros where the range is empty.

    Source: Moon et al. 2020, section 3 (`low` = 0); the authors' code (`low` = the least count).
    """
    span = torch.as_tensor(epochs - low, dtype=counts.dtype, device=counts.device)
    return (counts - low) / span.clamp_min(1)


class CRL(Recipe):
    """A teacher whose confidence in a sample follows how often it was right about it.

    Loss: `CE(z, y) + lambda mean_i max(0, |c_i - c_j| - sign(c_i - c_j) (k_i - k_j))`, as the terms `ce` and
    `ranking`. j is the next sample of the batch, and the first for the last; k is the confidence in the
    prediction, c the share of earlier epochs in which the sample was classified correctly while it was
    trained on, constant for the gradient. In the first epoch there is no history and no ranking.

    State: how often each sample was classified correctly (one number per sample), in a memory-mapped file.

    Taps: none.

    Deviations: `correctness: min-max` (the default) sets the least count of any sample to 0, as the authors'
    code does, where the paper states the plain share (`correctness: share`); the two are equal as long as
    one sample was never classified correctly. The least count is that of the last epoch's end, where the code
    follows it within an epoch. Where every sample was always right, the code divides 0 by 0 and this
    recipe has nothing to rank.

    Reference: Moon et al. 2020, section 3 (also SoTeacher, Eq. 31); daintlab/confidence-aware-learning.
    """

    name = "crl"
    paper = Paper(
        "Confidence-aware learning for deep neural networks",
        "J. Moon, J. Kim, Y. Shin, S. Hwang",
        "ICML",
        2020,
        "https://arxiv.org/abs/2007.01458",
    )

    class Config(Settings):
        """Weight of the ranking, and what is ranked."""

        weight: float = hp(
            1.0,
            ge=0,
            doc="lambda, weight of the ranking",
            source="authors' code, rank_weight; SoTeacher, App. D.1",
        )
        confidence: Literal["softmax", "margin", "entropy"] = hp(
            "softmax",
            doc="largest probability, lead of the first over the second, or normalised negative entropy",
            source="authors' code, rank_target; Section 3 (all three)",
        )
        correctness: Literal["min-max", "share"] = hp(
            "min-max",
            doc="counts of right predictions from the least of all samples on, or from 0 on",
            source="authors' code (min-max); Section 3 (share)",
        )

    config: Config

    def per_sample(self, data: DataInfo) -> dict[str, tuple[int, ...]]:
        """How often each sample was classified correctly."""
        return {"correct": ()} if self.config.weight else {}

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy and ranking; then the counts take in this step."""
        c = self.config
        terms = {"ce": cross_entropy(s.logits, batch.labels)}
        if c.weight:
            confidence = CONFIDENCES[c.confidence](s.logits)
            terms["ranking"] = c.weight * ranking_loss(confidence, self._correctness(batch.index, at.epoch))
            right = s.logits.argmax(1) == batch.labels
            self.memory["correct"][batch.index] = self.memory["correct"][batch.index] + right
        return terms

    def _correctness(self, index: Tensor, epochs: int) -> Tensor:
        """The share of the last `epochs` epochs in which each sample was right."""
        counts = self.memory["correct"]
        low = counts.past.min().to(index.device) if self.config.correctness == "min-max" else 0.0
        return scaled_counts(counts[index], low, epochs)
