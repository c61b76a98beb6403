"""What the methods that match features share: the labels' and the logits' terms beside their own."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Progress, Published, Settings, hp
from kdpipe.nn.logits import cross_entropy, kl

SOTEACHER_PAIRS = (("wrn_40_2", "wrn_40_1"), ("wrn_40_2", "wrn_16_2"), ("resnet32x4", "shufflenetv2"))


class FeatureSettings(Settings):
    """Weights of the terms that every feature method may have beside its own."""

    gamma: float = hp(1.0, ge=0, doc="weight of the labels' cross entropy", source="RepDistiller -r 1")
    alpha: float = hp(0.0, ge=0, doc="weight of an added KD term", source="RepDistiller -a 0")
    temperature: float = hp(4.0, gt=0, doc="T of the added KD term", source="RepDistiller --kd_T 4")


class FeatureMethod(Method):
    """A method whose own terms may stand beside the labels' cross entropy and a KD term.

    Loss: `gamma CE(z_s, y) [+ alpha T^2 KL(p_t || p_s)] + the method's own terms`, as `ce`, `kd` (with
    alpha > 0) and the names that `terms` gives.
    """

    class Config(FeatureSettings):
        """No settings of its own."""

    config: FeatureSettings

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy, the method's terms, and the divergence from the teacher where it has a weight."""
        c = self.config
        found = {"ce": c.gamma * cross_entropy(s.logits, batch.labels), **self.terms(s, t, batch, at)}
        if c.alpha:
            found["kd"] = c.alpha * kl(s.logits, t.logits, c.temperature)
        return found

    @abstractmethod
    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The method's own terms by name, weights included."""


def soteacher_weights(standard: float, soteacher: float) -> tuple[Published, ...]:
    """The weights that SoTeacher's students had on CIFAR-100, with KD beside them.

    Args:
        standard: beta for a standard teacher.
        soteacher: beta for a SoTeacher teacher.

    Source: Dong et al. 2024 (SoTeacher), Table 5 and Appendix D.2.
    """
    return tuple(
        Published(
            {"gamma": 1, "alpha": 1, "beta": beta},
            "SoTeacher (Dong et al. 2024), Table 5 and Appendix D.2",
            "cifar100",
            teacher,
            student,
            recipe,
        )
        for teacher, student in SOTEACHER_PAIRS
        for recipe, beta in (("standard", standard), ("soteacher", soteacher))
    )
