"""MICC: a teacher that keeps samples of a class apart, once it knows their class."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Recipe, Settings, Shapes, Wish, hp
from kdpipe.nn.logits import cross_entropy, full
from kdpipe.nn.relations import inner, unit

NONE = -1  # label and index of an empty place


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the label's probability is ahead: `rho_i = p_i[y_i] - max_{c != y_i} p_i[c]`, `p = softmax(z)`.

    Args:
        logits: B x C.
        labels: B, int64.

    Returns:
        B numbers in [-1, 1] without gradient, above 0 where the label is predicted.

    Source: Yuan et al. 2025, Eq. 6.
    """
    p = F.softmax(full(logits).detach(), 1)
    return (p.gather(1, labels[:, None]) - p.scatter(1, labels[:, None], 0).amax(1, keepdim=True))[:, 0]


def intra_class_losses(anchors: Tensor, positives: Tensor, labels: Tensor, index: Tensor) -> Tensor:
    """Each anchor against the others of its class: `-log(e^{x.x+} / (e^{x.x+} + sum_k e^{x.x_k}))`.

    Args:
        anchors: x, N x D; those of equal label and other index are the negatives x_k.
        positives: x+, N x D: another view of each anchor.
        labels: N, int64.
        index: N, int64: which sample each anchor shows.

    Returns:
        N numbers >= 0, in nats; 0 without negatives. Of vectors of length 1, with m negatives, they lie
        in [log(1 + m e^-2), log(1 + m e^2)].

    Source: Yuan et al. 2025, Eq. 4. Deviation: none in value; as `log(1 + sum_k e^{x.x_k - x.x+})`, so that
    it is finite at any product.
    """
    gaps = inner(anchors, anchors) - (full(anchors) * full(positives)).sum(1, keepdim=True)
    negative = (labels[:, None] == labels) & (index[:, None] != index)
    gaps = gaps.masked_fill(~negative, -torch.inf)
    return torch.cat([torch.zeros_like(gaps[:, :1]), gaps], 1).logsumexp(1)


class MICC(Recipe):
    """A teacher whose samples of one class stay apart, so that its soft labels tell them apart too.

    Loss: `CE(z, y) + lambda_intra / B sum_i L_i`, `L_i = -log(e^{x_i.x_i+} / (e^{x_i.x_i+} + sum_k
    e^{x_i.x_k}))`, as the terms `ce` and `intra`. x_i+ belongs to a second view of the image, augmented
    independently, and x_k to other samples of the class. Anchors are samples whose margin
    `rho_i = p_i[y_i] - max_{c != y_i} p_i[c]` exceeds delta; the others have L_i = 0. With `pipeline`, an
    anchor waits for others of its class, from batch to batch. Once `enough` of them are there, counting
    all of the current batch, each of them is contrasted with the others, and the class begins anew: so
    each anchor counts once. Without it, the negatives are all samples of the class in the batch (Eq. 7 as
    printed). `margin: false`, `pipeline: false` and lambda_intra = 0 are the ablations.

    Gradient: through x_i, x_i+ and x_k of the current batch. What waits from earlier batches is constant,
    as anchor, positive and negative: its graph belongs to weights that have changed since, and would hold
    the memory that the pipeline is there to save. The margin has no gradient.

    State: the waiting vectors with labels and indices: at most 2 C (enough - 1) D float32, 11 MB for 100
    classes of 2,048 numbers. All products between them and the batch are taken, 4 MB for 256 samples.

    Taps: `embed`, B x D; none for `vectors: logits`.

    Deviations: the paper gives the idea of the pipeline only. That it holds vectors, the condition to
    empty it, and the second view as a forward pass of its own (with batch statistics of its own, so that
    the first learns as under `standard`) are choices. An image that waits is no negative of itself when it
    comes again. The paper writes `p = softmax(f(x))` in Algorithm 1, but speaks of embeddings (more numbers
    than classes) elsewhere; it assumes length 1 in its theory, and says nothing of it for the loss: `vectors`
    and `normalise` choose.

    Weights: lambda_intra lies "in the range of 0.01 to 0.03" for all data sets and networks; which value
    belongs to which table is not said. Neither are delta (above 0) and the length of the pipeline.

    Reference: Yuan et al. 2025, section 3, Algorithm 1 and section 5.1; Sohn 2016 for the tuplet loss.
    """

    name = "micc"
    unsettled = "the paper gives a range for lambda, and no delta or length of the pipeline"
    paper = Paper(
        "Enriching knowledge distillation with intra-class contrastive learning",
        "H. Yuan, N. Xu, X. Geng, Y. Rui",
        "arXiv",
        2025,
        "https://arxiv.org/abs/2509.22053",
    )
    views = ((),)

    class Config(Settings):
        """Weight, and which samples are contrasted."""

        lambda_intra: float = hp(
            0.02,
            ge=0,
            doc="weight of the intra-class loss",
            source="Section 5.1: 0.01 to 0.03; the middle is an assumption",
        )
        margin: bool = hp(True, doc="anchors need a margin above delta", source="Section 3.3, Eq. 7")
        delta: float = hp(
            0.5,
            gt=0,
            lt=1,
            doc="margin that anchors exceed",
            source="assumption: section 3.3 says delta > 0; above 0.5 the label has most of the probability",
        )
        pipeline: bool = hp(True, doc="anchors wait for others of their class", source="Section 3.3")
        enough: int = hp(
            8, ge=2, doc="anchors of a class that are contrasted (pipeline)", source="assumption: not stated"
        )
        vectors: Literal["embed", "logits"] = hp(
            "embed",
            doc="what is contrasted",
            source="Sections 3.2 and 4.1 (embed); Algorithm 1, line 4 (logits)",
        )
        normalise: bool = hp(
            True,
            doc="vectors of length 1",
            source="Section 4.1, where the theory assumes it; not stated for the loss",
        )

    config: Config
    waiting: Tensor
    waiting_labels: Tensor
    waiting_index: Tensor

    def taps(self) -> Wish:
        """The vectors to contrast."""
        return Wish(student=("embed",)) if self.config.vectors == "embed" else Wish()

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Both views."""
        return (batch.images, *batch.views) if self.config.lambda_intra else (batch.images,)

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """An empty pipeline: fewer than `enough` places for each class."""
        c = self.config
        if c.lambda_intra and c.pipeline:
            places = data.num_classes * (c.enough - 1)
            self.register_buffer("waiting", torch.zeros(2, places, *shapes[c.vectors]))
            for name in ("waiting_labels", "waiting_index"):
                self.register_buffer(name, torch.full((places,), NONE))

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the first view, and the contrast of both."""
        terms = {"ce": cross_entropy(s.logits, batch.labels)}
        if self.config.lambda_intra:
            losses = self._contrasts(s, batch)
            terms["intra"] = self.config.lambda_intra * losses.sum() / len(batch.labels)
        return terms

    def _contrasts(self, s: Outputs, batch: Batch) -> Tensor:
        """Losses of the anchors whose turn it is, zeros for the others."""
        c = self.config
        vectors = torch.stack([self._vectors(s), self._vectors(s.more[0])])
        chosen = torch.ones_like(batch.labels, dtype=torch.bool)
        if c.margin:
            chosen = margins(s.logits, batch.labels) > c.delta
        if c.pipeline:
            return self._through_pipeline(vectors, batch.labels.where(chosen, NONE), batch.index)
        return intra_class_losses(vectors[0], vectors[1], batch.labels, batch.index) * chosen

    def _through_pipeline(self, vectors: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Losses of the classes that now have enough anchors; those of the other classes wait on.

        Args:
            vectors: of both views, 2 x B x D.
            labels: B, NONE for samples that are no anchors.
            index: B.
        """
        vectors = torch.cat([self.waiting, vectors], 1)
        labels = torch.cat([self.waiting_labels, labels])
        index = torch.cat([self.waiting_index, index])
        anchors = labels != NONE
        ready = (labels[:, None] == labels).sum(1) >= self.config.enough
        wait = anchors & ~ready
        first = wait.to(torch.int8).argsort(descending=True, stable=True)[: len(self.waiting_labels)]
        self.waiting = vectors[:, first].detach()
        self.waiting_labels = labels.where(wait, NONE)[first]
        self.waiting_index = index[first]
        return intra_class_losses(vectors[0], vectors[1], labels, index) * (anchors & ready)

    def _vectors(self, out: Outputs) -> Tensor:
        found = full(out.logits if self.config.vectors == "logits" else out["embed"])
        return unit(found) if self.config.normalise else found
