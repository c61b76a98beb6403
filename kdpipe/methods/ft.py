"""Factor transfer: the student translates its last map into the factors of the teacher's."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    ModelSpec,
    Outputs,
    Paper,
    Progress,
    Published,
    Settings,
    Shapes,
    TeacherPart,
    Wish,
    hp,
)
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.logits import full

PAPER = Paper(
    "Paraphrasing complex network: Network compression via factor transfer",
    "J. Kim, S. Park, N. Kwak",
    "NeurIPS",
    2018,
    "https://arxiv.org/abs/1802.04977",
)
SLOPE = 0.1  # of the leaky ReLUs, in the authors' code and RepDistiller
FAST = (
    "vgg8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "resnet50",
)  # RepDistiller: paraphraser at the student's rate


def factor_loss(student: Tensor, teacher: Tensor, form: Literal["field", "paper"]) -> Tensor:
    """Mean absolute difference of normalised factors: `mean |Q(F_s) - Q(F_t)|`.

    Q is `L2norm(mean_c F^2)`, one value per place (`field`), or `L2norm(F)` of the whole tensor
    (`paper`), with the norm taken over each sample. The larger of two maps is first pooled to the
    smaller one's size.

    Args:
        student: factors, B x K x H x W.
        teacher: factors, B x K' x H' x W', K' = K in the form `paper`.
        form: which Q.

    Returns:
        A scalar >= 0.

    Source: `paper`: Kim et al. 2018, Eq. 2 with p = 1, and the authors' code, which takes the mean over
    elements where the equation prints a norm; `field`: RepDistiller.
    """
    s, t = _same_size(full(student), full(teacher).detach())
    if form == "field":
        s, t = s.square().mean(1), t.square().mean(1)
    return (F.normalize(s.flatten(1)) - F.normalize(t.flatten(1))).abs().mean()


class Paraphraser(TeacherPart):
    """An autoencoder of the teacher's last map; its code are the factors.

    Loss: `mean (D(E(f_t)) - f_t)^2`, as the term `reconstruction`. E: three 3 x 3 convolutions from C to C,
    to kC and to kC channels; D: three transposed ones back; each followed by a leaky ReLU.

    Taps: the last stage of the teacher, B x C x H x W. It adds `factor`, B x kC x H x W.

    Deviations: squared error at a rate of 0.01, in 30 epochs, as in RepDistiller; the authors' code has the
    absolute error, 0.1 and 6 epochs. The rate is constant, as in both.

    Reference: Kim et al. 2018, section 3.1 and Eq. 1; code: Jangho-Kim/Factor-Transfer-pytorch,
    train_Paraphraser.py.
    """

    name = "ft_paraphraser"
    paper = PAPER

    class Config(Settings):
        """Width of the code, and the length and rate of the training."""

        rate: float = hp(0.5, gt=0, doc="factors per channel, k", source="RepDistiller Paraphraser k=0.5")
        epochs: int = hp(30, ge=1, doc="epochs of training", source="RepDistiller --init_epochs 30")
        lr: float = hp(0.01, gt=0, doc="learning rate", source="RepDistiller helper/pretrain.py")

    config: Config

    def protocol(self) -> dict[str, Any]:
        """Its own epochs and rate, which stays constant."""
        return {"epochs": self.config.epochs, "lr": self.config.lr, "schedule": "constant", "milestones": []}

    def taps(self) -> Wish:
        """The teacher's stages, the last of which it reads."""
        return Wish(teacher=("stages",))

    def build(self, teacher: Shapes, data: DataInfo) -> None:
        """The encoder and the decoder."""
        self.tap = last_stage(teacher)
        channels = teacher[self.tap][0]
        factors = max(1, int(channels * self.config.rate))
        self.encoder = nn.Sequential(
            *_layer(nn.Conv2d(channels, channels, 3, padding=1)),
            *_layer(nn.Conv2d(channels, factors, 3, padding=1)),
            *_layer(nn.Conv2d(factors, factors, 3, padding=1)),
        )
        self.decoder = nn.Sequential(
            *_layer(nn.ConvTranspose2d(factors, factors, 3, padding=1)),
            *_layer(nn.ConvTranspose2d(factors, channels, 3, padding=1)),
            *_layer(nn.ConvTranspose2d(channels, channels, 3, padding=1)),
        )

    def extend(self, t: Outputs) -> dict[str, Tensor]:
        """The factors."""
        return {"factor": self.encoder(t[self.tap])}

    def loss(self, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """How far the decoded factors are from the map."""
        found = t[self.tap].detach()
        return {"reconstruction": F.mse_loss(full(self.decoder(self.encoder(found))), full(found))}


class FT(FeatureMethod):
    """A translator turns the student's last map into the factors that a paraphraser found in the teacher's.

    Loss: `gamma CE(z_s, y) + beta mean |Q(T(f_s)) - Q(F_t)| [+ alpha T^2 KL(p_t || p_s)]`, as the terms `ce`,
    `factor` and, with alpha > 0, `kd`; Q is that of `factor_loss`. The translator T is three 3 x 3
    convolutions, each with batch norm and a leaky ReLU.

    Taps: the last stage of the student, B x C x H x W, and `factor` of the teacher, B x K x H' x W', which
    the part `ft_paraphraser` adds; the larger map is pooled to the smaller.

    Deviations: the default `form: field` averages the squared factors over the channels and its weight is
    200, as in RepDistiller and the published tables; the paper compares whole factor tensors (`form:
    paper`), with a weight of 500 in the authors' code. Batch norm in the translator is
    RepDistiller's; the authors' translator has none. RepDistiller trains one paraphraser per student,
    at 0.05 where the student is a vgg or resnet50 and at 0.01 otherwise (published here); ours
    belongs to the teacher, and students with equal settings share it.

    Reference: Kim et al. 2018, Eqs. 2 and 3; code: Jangho-Kim/Factor-Transfer-pytorch, train_student.py;
    Dong et al. 2024 (SoTeacher), Table 5, for the published weights with KD.
    """

    name = "ft"
    paper = PAPER
    published = (
        *soteacher_weights(standard=200, soteacher=100),
        *(
            Published({"part_lr": 0.05}, "RepDistiller helper/pretrain.py", "cifar100", student=student)
            for student in FAST
        ),
    )

    class Config(FeatureSettings):
        """Weights, the form of the loss, and how the teacher's paraphraser is made."""

        beta: float = hp(200.0, ge=0, doc="weight of the factors", source="RepDistiller -b 200")
        form: Literal["field", "paper"] = hp(
            "field",
            doc="compare factors averaged over channels, or whole",
            source="RepDistiller FactorTransfer",
        )
        rate: float = hp(0.5, gt=0, doc="factors per channel, k", source="RepDistiller Paraphraser k=0.5")
        part_epochs: int = hp(
            30, epochs=True, ge=1, doc="epochs of the paraphraser", source="RepDistiller --init_epochs 30"
        )
        part_lr: float = hp(
            0.01, gt=0, doc="learning rate of the paraphraser", source="RepDistiller helper/pretrain.py"
        )

    config: Config

    def taps(self) -> Wish:
        """The student's stages, the last of which it reads; the teacher's factors come with its part."""
        return Wish(student=("stages",))

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """A network without maps."""
        for model in (student, teacher):
            if not model.stages:
                return f"{model.name} has no stage whose map could be paraphrased"
        return None

    def part(self) -> Paraphraser:
        """The teacher's paraphraser."""
        c = self.config
        return Paraphraser(Paraphraser.Config(rate=c.rate, epochs=c.part_epochs, lr=c.part_lr))

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The translator from the student's channels to the number of factors."""
        self.tap = last_stage(student)
        channels, factors = student[self.tap][0], teacher["factor"][0]
        self.translator = nn.Sequential(
            *_layer(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)),
            *_layer(nn.Conv2d(channels, factors, 3, padding=1), nn.BatchNorm2d(factors)),
            *_layer(nn.Conv2d(factors, factors, 3, padding=1), nn.BatchNorm2d(factors)),
        )

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The factors."""
        c = self.config
        return {"factor": c.beta * factor_loss(self.translator(s[self.tap]), t["factor"], c.form)}


def last_stage(shapes: Shapes) -> str:
    """Name of the deepest stage among the taps."""
    numbers = [int(tap.removeprefix("stage")) for tap in shapes if re.fullmatch(r"stage\d+", tap)]
    return f"stage{max(numbers)}"


def _layer(*modules: nn.Module) -> tuple[nn.Module, ...]:
    return (*modules, nn.LeakyReLU(SLOPE))


def _same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller one's size in either direction."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)
