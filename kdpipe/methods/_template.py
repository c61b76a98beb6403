"""TODO the paper in a few words: what is transferred."""

from __future__ import annotations

from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Shapes, Wish, hp
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings
from kdpipe.nn.logits import full


class NewMethod(FeatureMethod):
    """TODO one line: what the student learns from the teacher.

    Loss: `gamma CE(z_s, y) + beta mean (W f_s - f_t)^2 [+ alpha T^2 KL(p_t || p_s)]`, as the terms `ce`,
    `new_method` and, with alpha > 0, `kd`. W is a trained linear map.

    Taps: `embed` of both networks, B x D_s and B x D_t.

    Deviations: TODO every one, or none.

    Reference: TODO section and equation; where the weights come from.
    """

    name = "new_method"
    paper = Paper(
        "TODO the title", "A. Author, B. Author", "TODO the venue", 2026, "https://example.org/TODO"
    )

    class Config(FeatureSettings):
        """Its weight; `gamma`, `alpha` and `temperature` are inherited."""

        beta: float = hp(1.0, ge=0, doc="weight of the distance", source="TODO paper, section, or repository")

    config: Config

    def taps(self) -> Wish:
        """The features that the classifiers read."""
        return Wish(student=("embed",), teacher=("embed",))

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The map from the student's features to the teacher's, trained with the student."""
        self.adapter = nn.Linear(student["embed"][0], teacher["embed"][0])

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The distance of the features."""
        student, teacher = full(self.adapter(s["embed"])), full(t["embed"]).detach()
        distance = (student - teacher).square().mean()  # <- THE LOSS: change this line
        return {"new_method": self.config.beta * distance}
