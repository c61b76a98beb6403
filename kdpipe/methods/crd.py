"""Contrastive representation distillation (CRD)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Shapes, Wish, hp
from kdpipe.core.errors import ConfigError
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.logits import full

EPS = 1e-7  # in the denominators of the estimate, as in RepDistiller
BLOCK = 2**24  # similarities that are held at a time: 64 MiB


def nce_loss(log_ratios: Tensor, samples: int) -> Tensor:
    """Noise-contrastive estimate: `-1/B sum_i (log h(p_i0) + sum_{k=1..K} log (1 - h(p_ik)))`.

    Here `h(p) = p / (p + K/N)`; both denominators carry an added 1e-7, as in the published code.

    Args:
        log_ratios: log p, B x (1 + K): of the positive, then of the K negatives.
        samples: N, the size of the training set.

    Returns:
        A scalar >= 0, in nats.

    Source: Tian et al. 2020, section 3.1, Eqs. 18 and 19; the denominators from RepDistiller. Deviation: in
    terms of log p and softplus, so that it is finite at any similarity.
    """
    log_p = full(log_ratios)
    noise = (log_p.shape[1] - 1) / samples
    log_noise = math.log(noise + EPS)
    positive = F.softplus(log_noise - log_p[:, 0])
    negative = F.softplus(log_p[:, 1:] - log_noise) - math.log(noise / (noise + EPS))
    return (positive + negative.sum(1)).mean()


def similarities(anchors: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Inner products of vectors with some rows of a memory: `v_i . m[index_ij]`.

    The products with all rows are taken, a block of anchors at a time, and the wanted ones are kept: for
    K samples of N this moves B N numbers instead of B K d.

    Args:
        anchors: v, B x d.
        bank: m, N x d; without gradient.
        index: B x (1 + K), int64 in [0, N).

    Returns:
        B x (1 + K). Besides it and `index`, no more than 2^24 products (but at least N) are held at once.

    Source: Tian et al. 2020, section 3.1 (without temperature and normaliser).
    """
    rows = max(1, BLOCK // len(bank))
    with torch.autocast(anchors.device.type, enabled=False):
        memory = full(bank).T.to(full(anchors).dtype).detach()
        blocks = zip(torch.split(full(anchors), rows), torch.split(index, rows), strict=True)
        return torch.cat([(block @ memory).gather(1, wanted) for block, wanted in blocks])


class ClassDraw(nn.Module):
    """Draws samples of an anchor's own class or of all other classes, uniformly and with replacement.

    The samples are kept sorted by class, so that classes of any sizes need no padding: one of the others
    is a number below N - n_y, moved past the block of class y.

    Args:
        labels: N, int64: the label of each sample.
        num_classes: C.
    """

    order: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        super().__init__()
        count = labels.bincount(minlength=num_classes)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("start", count.cumsum(0) - count, persistent=False)

    def others(self, labels: Tensor, size: int) -> Tensor:
        """Samples of other classes, B x size, for labels B."""
        start, count = self.start[labels][:, None], self.count[labels][:, None]
        place = _below(len(self.order) - count, size)
        return self.order[place + count * (place >= start)]

    def own(self, labels: Tensor) -> Tensor:
        """A sample of the same class (perhaps the anchor itself), B x 1, for labels B."""
        return self.order[self.start[labels][:, None] + _below(self.count[labels][:, None], 1)]


class CRD(FeatureMethod):
    """The student's vector of a sample is close to the teacher's of it, far from those of other classes.

    Loss: `gamma CE(z_s, y) + beta (NCE(v_s, m_t) + NCE(v_t, m_s)) [+ alpha T^2 KL(p_t || p_s)]`, as the terms
    `ce`, `crd` and, with alpha > 0, `kd`; `p = exp(v . m / tau) / Z` and NCE is `nce_loss`. v are linear
    maps of `embed` to `dim` numbers, scaled to length 1; both maps are trained. m_s and m_t are memories of
    the vectors of all training samples, updated after use: `m <- momentum m + (1 - momentum) v`, scaled to
    length 1. Z, one for each direction, is N times the mean of exp(v . m / tau) in the first batch, and
    stays so.

    Taps: `embed` of both networks, B x D.

    Deviations: negatives are drawn on the device, with replacement; RepDistiller draws them in its data
    loader, without replacement where the other classes hold K samples. The paper's N (negatives) and M
    (samples) are K and N here, as in the code.

    Memory: both banks take 8 N dim bytes (51 MB for 50,000 samples, 1.3 GB for ImageNet), twice that during
    a step, because the gradient needs the old ones. The B x (1 + K) indices take 8.4 MB at B = 64 and 34 MB
    at B = 256. Gathering the vectors of 16,384 negatives, as the published code does, would take 0.54 GB at
    B = 64 and 2.1 GB at B = 256 for each direction; here 64 MB of products with the memory are held at a
    time (see `similarities`).

    Weights: 0.8 alone, or with alpha = 1 ("CRD+KD" of RepDistiller), for all pairs alike. On ImageNet
    mdistiller has the same weight.

    Reference: Tian et al. 2020, section 3.1; Dong et al. 2024 (SoTeacher), Table 5, for the published
    weights with KD.
    """

    name = "crd"
    paper = Paper(
        "Contrastive representation distillation",
        "Y. Tian, D. Krishnan, P. Isola",
        "ICLR",
        2020,
        "https://arxiv.org/abs/1910.10699",
    )
    published = soteacher_weights(standard=0.8, soteacher=0.5)

    class Config(FeatureSettings):
        """Weight, memories and samples."""

        beta: float = hp(0.8, ge=0, doc="weight of both directions", source="RepDistiller -b 0.8")
        dim: int = hp(128, gt=0, doc="length of the compared vectors", source="RepDistiller --feat_dim 128")
        negatives: int = hp(
            16384, gt=0, doc="samples of other classes for each anchor", source="RepDistiller --nce_k 16384"
        )
        tau: float = hp(0.07, gt=0, doc="temperature of the similarities", source="RepDistiller --nce_t 0.07")
        momentum: float = hp(
            0.5, ge=0, lt=1, doc="share of the old vector in the memory", source="RepDistiller --nce_m 0.5"
        )
        positives: Literal["exact", "relaxed"] = hp(
            "exact",
            doc="the positive: the same sample, or a random one of its class",
            source="RepDistiller --mode exact",
        )

    config: Config
    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor
    started: Tensor

    def taps(self) -> Wish:
        """The features of both networks."""
        return Wish(student=("embed",), teacher=("embed",))

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The linear maps, the memories and the order of the samples by class.

        Raises:
            ConfigError: all samples have one label, so that there are no negatives.
        """
        dim, samples = self.config.dim, data.num_samples
        if (data.labels == data.labels[0]).all():
            raise ConfigError(
                "crd contrasts classes, but all training samples have one label",
                fix="train on two classes or more, or use another method",
            )
        self.student_map = nn.Linear(student["embed"][0], dim)
        self.teacher_map = nn.Linear(teacher["embed"][0], dim)
        self.draw = ClassDraw(data.labels, data.num_classes)
        bound = (3 / dim) ** 0.5  # rows have length 1 on average
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, bound * (2 * torch.rand(samples, dim) - 1))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("started", torch.tensor(False))

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Both directions; in training the memories take in the batch."""
        c = self.config
        v_s = _unit(self.student_map(full(s["embed"])))
        v_t = _unit(self.teacher_map(full(t["embed"]).detach()))
        index = self._candidates(batch)
        scores = [
            similarities(anchors, bank, index) / c.tau
            for anchors, bank in ((v_s, self.teacher_bank), (v_t, self.student_bank))
        ]
        log_z = self._normalisers(scores)
        if self.training:
            self.student_bank = self._updated(self.student_bank, v_s, batch.index)
            self.teacher_bank = self._updated(self.teacher_bank, v_t, batch.index)
        samples = len(self.student_bank)
        losses = [nce_loss(score - z, samples) for score, z in zip(scores, log_z, strict=True)]
        return {"crd": c.beta * (losses[0] + losses[1])}

    def _candidates(self, batch: Batch) -> Tensor:
        """Indices of the positive and of the negatives of each anchor: B x (1 + K)."""
        exact = self.config.positives == "exact"
        positive = batch.index[:, None] if exact else self.draw.own(batch.labels)
        return torch.cat([positive, self.draw.others(batch.labels, self.config.negatives)], 1)

    @torch.no_grad()
    def _normalisers(self, scores: list[Tensor]) -> Tensor:
        """The log of Z for each direction, from the first batch that was trained on."""
        samples = len(self.student_bank)
        now = torch.stack([x.flatten().logsumexp(0) - math.log(x.numel() / samples) for x in scores])
        log_z = torch.where(self.started, self.log_z, now)
        if self.training:
            self.log_z.copy_(log_z)
            self.started.fill_(True)
        return log_z

    @torch.no_grad()
    def _updated(self, bank: Tensor, vectors: Tensor, index: Tensor) -> Tensor:
        """A bank with the vectors at `index` moved; a new one, because the gradient needs the old."""
        m = self.config.momentum
        return bank.index_copy(0, index, _unit(m * bank[index] + (1 - m) * vectors.to(bank.dtype)))


def _unit(vectors: Tensor) -> Tensor:
    """Rows at length 1 (zero rows stay zero), in float32 at least."""
    return F.normalize(full(vectors), eps=1e-6)


def _below(bounds: Tensor, size: int) -> Tensor:
    """Integers drawn uniformly from [0, bound) for each bound (B x 1): B x size."""
    # The remainder of 62 random bits is uniform up to one part in 10^12; a product with a float32 is not.
    bits = torch.randint(2**62, (len(bounds), size), device=bounds.device)
    return bits % bounds
