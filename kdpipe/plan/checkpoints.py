"""Which epochs of its teachers a study keeps, distils from, or lets a rule choose among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdpipe.core.errors import ConfigError
from kdpipe.core.specs import Choice, Precision, Protocol, Rule
from kdpipe.plan.config import scale_epoch
from kdpipe.plan.study import Curve, Study


@dataclass(frozen=True)
class TeacherEpochs:
    """The epochs of one teacher, at the study's scale.

    Args:
        study: what asks for them.
        full: the teacher's protocol at full scale, which the study's epochs count by.
        here: the same at the study's scale.
        precision: how their weights are kept.
        where: the study's file, for messages.
    """

    study: Study
    full: Protocol
    here: Protocol
    precision: Precision
    where: str

    def kept(self) -> list[int]:
        """Those that the study keeps, the last left out.

        Raises:
            ConfigError: the protocol has fewer epochs.
        """
        keep, last = self.study.keep, self.full.epochs
        wanted = [*keep.epochs, *(range(keep.every, last + 1, keep.every) if keep.every else ())]
        drops = before_drops(self.here) if keep.before_drops else []
        found = {*self._scaled(wanted, "'keep'", "keep"), *drops}
        return sorted(epoch for epoch in found if epoch < self.here.epochs)

    def curve(self, curve: Curve) -> list[int]:
        """Those of a curve that are known beforehand.

        Raises:
            ConfigError: the protocol has fewer epochs.
        """
        shares = [max(1, round(fraction * self.here.epochs)) for fraction in curve.fractions]
        return sorted({*self._scaled(curve.epochs, "a curve", "curves"), *shares})

    def choice(self, rule: Rule) -> Choice:
        """What a rule chooses among: the kept epochs, beside the last.

        Raises:
            ConfigError: none is kept.
        """
        among = self.kept()
        if not among:
            raise ConfigError(
                f"the rule '{rule}' has only the last epoch to choose from",
                where=f"{self.where}, key 'keep'",
                fix="keep: {every: 10}",
            )
        return Choice(rule=rule, epochs=tuple(among), precision=self.precision)

    def _scaled(self, epochs: Sequence[int], who: str, key: str) -> set[int]:
        if max(epochs, default=0) > self.full.epochs:
            raise ConfigError(
                f"{who} asks for teacher epoch {max(epochs)}; the protocol has {self.full.epochs}",
                where=f"{self.where}, key '{key}'",
            )
        return {scale_epoch(epoch, self.full.epochs, self.here.epochs) for epoch in epochs}


def before_drops(protocol: Protocol) -> list[int]:
    """The last epochs before the learning rate falls, counted from 1."""
    if protocol.schedule != "step":
        return []
    last = [m if protocol.drop == "after" else m - 1 for m in protocol.milestones]
    return [epoch for epoch in last if epoch]


def check_checkpoints(study: Study, teacher: Protocol, where: str) -> None:
    """Refuse rules where no validation images are held out, and drops where the rate never falls.

    Raises:
        ConfigError: one of the two.
    """
    rules = [rule for curve in study.curves for rule in curve.rules]
    rules += [chain.pass_on for chain in study.chains if chain.pass_on != "last"]
    if rules and study.split != "train-val":
        raise ConfigError(
            f"the rule '{rules[0]}' looks at validation images, and the study holds none out",
            where=f"{where}, key 'split'",
            fix="split: train-val",
        )
    if study.keep.before_drops and not before_drops(teacher):
        raise ConfigError(
            f"the learning rate of protocol '{study.protocol.teacher}' never drops",
            where=f"{where}, key 'keep'",
            fix="keep: {every: 10}",
        )
