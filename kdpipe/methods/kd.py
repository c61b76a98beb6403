"""Knowledge distillation by tempered softmax."""

from __future__ import annotations

from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Paper, Progress, Published, Settings, hp
from kdpipe.nn.logits import cross_entropy, kl

IMAGENET = {"gamma": 0.5, "alpha": 0.5, "temperature": 1}


class KD(Method):
    """The student matches the teacher's softened class probabilities.

    Loss: `gamma CE(z_s, y) + alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T))`, as the terms `ce` and
    `kd`; both are means over the batch.

    Taps: none but the logits (B x C).

    Deviations: none in form. The paper gives no weights for CIFAR; the defaults are the field's, those
    of RepDistiller and mdistiller. SoTeacher (Dong et al. 2024) uses gamma = alpha = 0.5 on CIFAR-100
    and Tiny ImageNet.

    Reference: Hinton et al. 2015, section 2.
    """

    name = "kd"
    logit_only = True
    paper = Paper(
        "Distilling the knowledge in a neural network",
        "G. Hinton, O. Vinyals, J. Dean",
        "arXiv",
        2015,
        "https://arxiv.org/abs/1503.02531",
    )
    published = tuple(
        Published(IMAGENET, "mdistiller, configs/imagenet", "imagenet", teacher, student)
        for teacher, student in (
            ("imagenet_resnet34", "imagenet_resnet18"),
            ("imagenet_resnet50", "imagenet_mobilenetv1"),
        )
    )

    class Config(Settings):
        """Weights and temperature."""

        gamma: float = hp(0.1, ge=0, doc="weight of the labels' cross entropy", source="RepDistiller -r 0.1")
        alpha: float = hp(0.9, ge=0, doc="weight of the teacher's divergence", source="RepDistiller -a 0.9")
        temperature: float = hp(
            4.0, gt=0, doc="softening T of both softmaxes", source="RepDistiller --kd_T 4"
        )

    config: Config

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy and the tempered divergence from the teacher."""
        c = self.config
        return {
            "ce": c.gamma * cross_entropy(s.logits, batch.labels),
            "kd": c.alpha * kl(s.logits, t.logits, c.temperature),
        }
