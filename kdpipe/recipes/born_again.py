"""Born-again networks: a teacher taught by a teacher of its own kind, over generations."""

from __future__ import annotations

from torch import Tensor, nn

from kdpipe.api import Batch, Outputs, Paper, Progress, Recipe, Settings, hp
from kdpipe.nn.logits import cross_entropy, kl


class BornAgain(Recipe):
    """A teacher distilled from one of the same architecture, which was itself distilled, and so on.

    Loss: `gamma CE(z, y) + alpha T^2 KL(p_t || p)` with `p = softmax(z / T)`, as the terms `ce` and `kd`; t
    is the generation before, whose last weights are frozen. The first of all is an ordinary teacher
    (`standard`). `gamma: 0` learns from the generation before alone.

    Each generation is a run of its own, which studies share, and starts from other random weights.

    Taps: the logits of both networks (B x C each).

    Deviations: the generations see the batches of one seed in the same order; only the initial weights are
    drawn anew. The paper's ensembles of generations are not made.

    Reference: Furlanello et al. 2018, section 3; with labels it is their BAN+L, without them their BAN.
    """

    name = "born_again"
    unsettled = "its defaults could not be checked against the paper"
    paper = Paper(
        "Born-again neural networks",
        "T. Furlanello, Z. C. Lipton, M. Tschannen, L. Itti, A. Anandkumar",
        "ICML",
        2018,
        "https://arxiv.org/abs/1805.04770",
    )

    class Config(Settings):
        """How many generations, and what each learns from."""

        generations: int = hp(
            1,
            ge=1,
            doc="generations after the ordinary teacher",
            source="Section 4 (BAN-1; up to 3 are shown)",
        )
        gamma: float = hp(1.0, ge=0, doc="weight of the labels", source="Section 3; BAN+L of the results")
        alpha: float = hp(1.0, gt=0, doc="weight of the generation before", source="Section 3")
        temperature: float = hp(1.0, gt=0, doc="T of the divergence", source="Section 3: plain softmax")

    config: Config

    def generations(self) -> int:
        return self.config.generations

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the labels, and divergence from the generation before."""
        c = self.config
        terms = {"kd": c.alpha * kl(s.logits, t.logits, c.temperature)}
        return {"ce": c.gamma * cross_entropy(s.logits, batch.labels), **terms} if c.gamma else terms
