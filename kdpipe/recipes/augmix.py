"""The teacher held consistent over AugMix's views of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, Outputs, Paper, Progress, Recipe, Settings, hp
from kdpipe.core.specs import Augmentation
from kdpipe.nn.logits import cross_entropy, full


def jensen_shannon(views: Sequence[Tensor]) -> Tensor:
    """Jensen-Shannon divergence of several predictions: `1/V sum_v mean_i sum_c p_v (log p_v - log m)`.

    m is the mean of the V predictions p_v, the softmaxes of the logits.

    Args:
        views: logits of each view, B x C.

    Returns:
        A scalar in [0, log V], in nats; every view gets a gradient.

    Source: Hendrycks et al. 2020, section 3. Deviation: m from log-probabilities, where the authors' code
    clamps its probabilities at 1e-7.
    """
    log_p = torch.stack([F.log_softmax(full(logits), 1) for logits in views])
    log_m = torch.logsumexp(log_p, 0) - math.log(len(views))
    return (log_p.exp() * (log_p - log_m)).sum(2).mean()


class AugMix(Recipe):
    """Images mixed from chains of random operations, and one prediction wanted for all views of an image.

    Loss: `CE(f(x), y) + lambda_js JS(f(x), f(x'), f(x''))`, as the terms `ce` and `js`. x is the image as
    the protocol augments it, x' and x'' are augmented and then mixed: `m x + (1 - m) sum_i w_i chain_i(x)`,
    w ~ Dirichlet(alpha, ..., alpha), m ~ Beta(alpha, alpha), a chain being one to three operations. With
    lambda_js = 0 there is but one mixed view, and `ce = CE(f(x'), y)`.

    Taps: none but the logits (B x C each) of the three views.

    Deviations: the protocol's augmentation (the crop, say) is drawn anew for each view, where the authors
    mix one crop twice; the views pass the network one after the other, so that a batch norm sees each by
    itself, where the authors join them. Dong et al. print alpha and k alone: the consistency, which belongs
    to the method, and the severity are the authors'.

    Reference: Hendrycks et al. 2020, section 3 and Algorithm 1; Dong et al. 2024 (SoTeacher), Appendix F and
    Table 7.
    """

    name = "augmix"
    paper = Paper(
        "AugMix: a simple data processing method to improve robustness and uncertainty",
        "D. Hendrycks, N. Mu, E. D. Cubuk, B. Zoph, J. Gilmer, B. Lakshminarayanan",
        "ICLR",
        2020,
        "https://arxiv.org/abs/1912.02781",
    )

    class Config(Settings):
        """How images are mixed, and the weight of the consistency."""

        alpha: float = hp(
            1.0,
            gt=0,
            doc="of the Dirichlet and Beta distributions of the shares",
            source="Dong et al. 2024, Table 7; Hendrycks et al. 2020, section 3",
        )
        k: int = hp(
            3, ge=1, doc="chains", source="Dong et al. 2024, Table 7; Hendrycks et al. 2020, section 3"
        )
        severity: int = hp(
            3, ge=1, le=10, doc="largest magnitude of an operation", source="google-research/augmix: 3"
        )
        lambda_js: float = hp(
            12.0,
            ge=0,
            doc="weight of the consistency; 0: one mixed view and no consistency",
            source="Hendrycks et al. 2020, Algorithm 1; google-research/augmix: 12",
        )

    config: Config

    def __init__(self, config: Settings | None = None) -> None:
        super().__init__(config)
        c = self.config
        mixed = Augmentation(name="augmix", settings={"alpha": c.alpha, "width": c.k, "severity": c.severity})
        self.views = ((mixed,), (mixed,)) if c.lambda_js else ((mixed,),)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """All views, or the mixed one alone."""
        return (batch.images, *batch.views) if self.config.lambda_js else batch.views

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the first view, and the consistency of all."""
        terms = {"ce": cross_entropy(s.logits, batch.labels)}
        if self.config.lambda_js:
            views = (s.logits, *(view.logits for view in s.more))
            terms["js"] = self.config.lambda_js * jensen_shannon(views)
        return terms
