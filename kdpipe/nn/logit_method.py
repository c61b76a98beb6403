"""What the methods that match logits share: the labels' term beside their own."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Progress, Settings, hp
from kdpipe.nn.logits import cross_entropy


class LogitSettings(Settings):
    """The weight of the labels."""

    gamma: float = hp(1.0, ge=0, doc="weight of the labels' cross entropy", source="RepDistiller -r 1")


class LogitMethod(Method):
    """A method whose own terms compare the logits of one head with the teacher's.

    Loss: `[gamma CE(z_s, y)] + the method's own terms`, as `ce` (with gamma > 0) and the names that
    `terms` gives.
    """

    logit_only = True

    class Config(LogitSettings):
        """No settings of its own."""

    config: LogitSettings

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy, where it has a weight, and the method's terms."""
        gamma, own = self.config.gamma, self.terms(s.logits, t.logits)
        return {"ce": gamma * cross_entropy(s.logits, batch.labels), **own} if gamma else own

    @abstractmethod
    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The method's own terms by name, weights included, from logits (B x C each)."""
