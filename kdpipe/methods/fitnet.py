"""FitNet: a hint from the middle of the teacher."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    ModelSpec,
    Outputs,
    Paper,
    Progress,
    Shapes,
    Wish,
    hp,
)
from kdpipe.nn.adapters import connector, fits
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.logits import full


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over all elements: `mean (f_s - f_t)^2`.

    Args:
        student: B x C x H x W, after the regressor.
        teacher: B x C x H x W.

    Returns:
        A scalar >= 0.

    Source: Romero et al. 2015, Eq. 3. Deviation: the mean over elements where the paper has half the
    sum, as RepDistiller and mdistiller have it; the default weight belongs to this form.
    """
    return F.mse_loss(full(student), full(teacher).detach())


class FitNet(FeatureMethod):
    """A regressed map of the student matches a map of the teacher.

    Loss: `gamma CE(z_s, y) + beta mean (r(f_s) - f_t)^2 [+ alpha T^2 KL(p_t || p_s)]`, as the terms `ce`,
    `hint` and, with alpha > 0, `kd`. The regressor r is `kdpipe.nn.adapters.connector`. With `stages: two`
    the hint is alone in a first stage of `init_epochs` epochs, and the main stage goes without it.

    Taps: `hint` of both networks, B x C x H x W each; their sides may be equal, differ by a factor of 2, or
    the student's be larger.

    Deviations: the paper first trains the student up to the hint and the regressor, then the whole
    student by KD; `stages: two` does so, with alpha > 0 for its second stage, but for a fixed number of
    epochs in the first (theirs watches a validation error) and with a constant weight of KD (theirs
    falls). By default, as in RepDistiller and mdistiller (and so in the published tables), all terms are
    trained together from the first epoch. The regressor ends in batch norm and ReLU as theirs does,
    although a ReLU cannot match the negative values of wide resnets and linear bottlenecks: `relu:
    false` leaves it out.

    Reference: Romero et al. 2015, Eqs. 3 and 4; Dong et al. 2024 (SoTeacher), Table 5, for the
    published weights with KD.
    """

    name = "fitnet"
    paper = Paper(
        "FitNets: Hints for thin deep nets",
        "A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio",
        "ICLR",
        2015,
        "https://arxiv.org/abs/1412.6550",
    )
    published = soteacher_weights(standard=100, soteacher=50)

    class Config(FeatureSettings):
        """Weights, and which maps are compared."""

        beta: float = hp(100.0, ge=0, doc="weight of the hint", source="RepDistiller -b 100")
        hint: str = hp("stage2", doc="tap of both networks", source="RepDistiller --hint_layer 2")
        relu: bool = hp(True, doc="end the regressor in a ReLU", source="RepDistiller ConvReg")
        stages: Literal["joint", "two"] = hp(
            "joint",
            doc="the hint beside the other terms, or alone before them",
            source="RepDistiller --distill hint",
            since=2,
        )
        init_epochs: int = hp(
            30,
            epochs=True,
            ge=0,
            doc="epochs of the first of two stages",
            source="RepDistiller --init_epochs 30 (its other two-stage methods)",
            since=2,
        )

    config: Config

    def taps(self) -> Wish:
        """The hint of both networks."""
        return Wish(student=(self.config.hint,), teacher=(self.config.hint,))

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """A network without such a map, or maps that no regressor brings together."""
        hint = self.config.hint
        for model in (student, teacher):
            if hint not in model.taps:
                return f"{model.name} has no tap '{hint}'"
            if model.taps[hint].kind == "vector":
                return f"'{hint}' of {model.name} is a vector, not a map"
        s, t = student.taps[hint].stride, teacher.taps[hint].stride
        if not fits(s, t):
            return f"'{hint}' of {student.name} has stride {s}, of {teacher.name} {t}: no regressor fits"
        return None

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The regressor from the student's map to the teacher's."""
        c = self.config
        self.regressor: nn.Module = connector(student[c.hint], teacher[c.hint], relu=c.relu)

    def first_stage(self) -> int:
        """With two stages, the epochs of the hint."""
        return int(self.config.init_epochs) if self.config.stages == "two" else 0

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The hint alone in a first stage; all terms otherwise."""
        return self._hint(s, t) if at.first_stage else super().loss(s, t, batch, at)

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The hint, unless it had a stage of its own."""
        return self._hint(s, t) if self.config.stages == "joint" else {}

    def _hint(self, s: Outputs, t: Outputs) -> dict[str, Tensor]:
        c = self.config
        return {"hint": c.beta * hint_loss(self.regressor(s[c.hint]), t[c.hint])}
