"""Logit standardisation: KD on z-scores, and `logit_std_<method>` for every other method on logits.

KD is the listed one. `logit_std_dkd`, `logit_std_mlld` and so on are members of its family: the named
method, told standardised logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, cast

from pydantic import create_model
from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Paper, Progress, Published, Settings, hp
from kdpipe.core.errors import UnknownNameError
from kdpipe.core.registry import methods
from kdpipe.nn.logits import cross_entropy, full, kl

PREFIX = "logit_std_"
EPS = 1e-7  # of the authors' code
FLAGS = "authors' code, --base-temp 2 --kd-weight 9"
KD_LOGS = {  # (teacher, student) -> temperature and weight on CIFAR-100
    ("resnet56", "resnet20"): (2, 9),
    ("resnet110", "resnet32"): (2, 9),
    ("resnet32x4", "resnet8x4"): (2, 9),
    ("vgg13", "vgg8"): (3, 9),
    ("wrn_40_2", "wrn_40_1"): (2, 9),
    ("wrn_40_2", "wrn_16_2"): (2, 9),
    ("wrn_40_2", "resnet8x4"): (2, 9),
    ("wrn_40_2", "mobilenetv2"): (3, 9),
    ("resnet32x4", "shufflenetv2"): (2, 9),
    ("resnet32x4", "wrn_16_2"): (3, 9),
    ("resnet32x4", "wrn_40_2"): (3, 9),
    ("vgg13", "mobilenetv2"): (3, 9),
    ("resnet50", "mobilenetv2"): (3, 1),
}


def standardise(logits: Tensor) -> Tensor:
    """Z-score of each sample's logits: `(z - mean_c z) / (std_c z + 1e-7)`, the deviation with C - 1.

    Args:
        logits: B x C.

    Returns:
        B x C of mean 0 and deviation 1; zeros for equal logits, where the gradient is large, of the
        order of 1e7, but finite.

    Source: Sun et al. 2024 (Z-score pre-process); the 1e-7 from the authors' code.
    """
    z = full(logits)
    std, mean = z.std(1, keepdim=True), z.mean(1, keepdim=True)
    return (z - mean) / (std + EPS)


def standardised(out: Outputs) -> Outputs:
    """Outputs with standardised logits, those in `more` as well."""
    return replace(out, logits=standardise(out.logits), more=tuple(map(standardised, out.more)))


class LogitStdKD(Method):
    """KD on standardised logits: the student matches the teacher's logits up to their shift and scale.

    Loss: `gamma CE(z_s, y) + alpha T^2 KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T))`, Z the z-score of each
    sample's logits, as the terms `ce` (of the raw logits) and `kd`.

    `logit_std_<method>` does the same to any other method whose terms read logits only
    (`logit_std_dkd`, `logit_std_mlld`, ...): `ce` from the raw logits, all other terms from z-scores. DKD and
    MLLD have T = 2 and weights nine times the original's (DKD) or of 9 (MLLD) there; the paper gives
    nothing for other methods, which keep their own settings.

    Taps: none but the logits (B x C).

    Deviations: none for KD and DKD. The authors' MLLD standardises the instance level alone; here the
    batch and class levels are told z-scores too.

    Reference: Sun et al. 2024 (Z-score pre-process for KD).
    """

    name = "logit_std_kd"
    logit_only = True
    paper = Paper(
        "Logit standardization in knowledge distillation",
        "S. Sun, W. Ren, J. Li, R. Wang, X. Cao",
        "CVPR",
        2024,
        "https://arxiv.org/abs/2403.01427",
    )
    published = tuple(
        Published(
            {"temperature": temperature, "alpha": alpha},
            "authors' code, logs/KD (names of the files)",
            "cifar100",
            teacher,
            student,
        )
        for (teacher, student), (temperature, alpha) in KD_LOGS.items()
    )

    class Config(Settings):
        """Weights and temperature."""

        gamma: float = hp(
            0.1, ge=0, doc="weight of the labels' cross entropy", source="mdistiller CE_WEIGHT (KD)"
        )
        alpha: float = hp(9.0, ge=0, doc="weight of the teacher's divergence", source=FLAGS)
        temperature: float = hp(2.0, gt=0, doc="base temperature T of both softmaxes", source=FLAGS)

    config: Config

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy, and the tempered divergence of z-scores."""
        c = self.config
        return {
            "ce": c.gamma * cross_entropy(s.logits, batch.labels),
            "kd": c.alpha * kl(standardise(s.logits), standardise(t.logits), c.temperature),
        }


class Standardised(Method):
    """To be mixed in before a method: all its terms but `ce` are told z-scores."""

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The method's terms of standardised logits, with the cross entropy of the raw ones."""
        raw = super().loss(s, t, batch, at)  # cheap beside the networks, and it knows the weight of `ce`
        told = super().loss(standardised(s), standardised(t), batch, at)
        return {name: raw[name] if name == "ce" else term for name, term in told.items()}


@dataclass(frozen=True)
class Rule:
    """What the paper changes in a method's settings.

    Attributes:
        defaults: other defaults.
        factor: times which published weights are taken.
        weights: their names.
    """

    defaults: dict[str, Any]
    factor: float = 1.0
    weights: tuple[str, ...] = ()


RULES = {
    "dkd": Rule({"temperature": 2.0, "alpha": 9.0, "beta": 72.0}, factor=9, weights=("alpha", "beta")),
    "mlld": Rule({"temperatures": (2.0, 3.0, 5.0, 2.0, 6.0), "alpha": 9.0, "beta": 9.0, "delta": 9.0}),
}


def family(name: str) -> type[Method] | None:
    """The method `logit_std_<method>`: standardised logits for a method that reads logits only, or None."""
    inner = name.removeprefix(PREFIX)
    if inner == name or inner.startswith(PREFIX):
        return None
    try:
        method = methods.get(inner)
    except UnknownNameError:
        return None
    return _member(method) if method.logit_only and method.teacher else None


@cache
def _member(method: type[Method]) -> type[Method]:
    """The method's class on standardised logits."""
    rule = RULES.get(method.name)
    about = f"""`{method.name}` on standardised logits: see `{PREFIX}kd`.

    Loss: as `{method.name}`, of each sample's z-scores instead of its logits but in `ce`.
    """
    body = {
        "__module__": __name__,
        "__doc__": about,
        "name": PREFIX + method.name,
        "paper": LogitStdKD.paper,
        "revision": method.revision + LogitStdKD.revision - 1,
        "Config": _settings(method, rule) if rule else method.Config,
        "published": tuple(_scaled(method.published, rule)) if rule else (),
    }
    return type(f"LogitStd{method.__name__}", (Standardised, method), body)


def _settings(method: type[Method], rule: Rule) -> type[Settings]:
    """The method's settings with other defaults."""
    fields: dict[str, Any] = {}
    for key, default in rule.defaults.items():
        info = method.Config.model_fields[key]
        known: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        fields[key] = (known, hp(default, doc=info.description or "", source=FLAGS))
    base: Any = method.Config
    made = create_model("Config", __base__=base, __doc__=base.__doc__, __module__=__name__, **fields)
    return cast("type[Settings]", made)


def _scaled(rows: Iterable[Published], rule: Rule) -> Iterable[Published]:
    """The method's published settings on CIFAR-100, weights multiplied."""
    for row in rows:
        if row.dataset == "cifar100":
            settings = {k: v * rule.factor if k in rule.weights else v for k, v in row.settings.items()}
            times = f", weights times {rule.factor:g} ({FLAGS})" if rule.weights else ""
            yield replace(row, settings=settings, source=row.source + times)
