"""Two or more methods together: `crd+kd`, `rkd+pkt`."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import create_model
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    Method,
    ModelSpec,
    Norms,
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
from kdpipe.core.errors import ConfigError
from kdpipe.core.registry import methods

ALONE = (
    "backward",
    "inputs",
    "peers",
    "anchors",
    "per_sample",
)  # who changes these changes the whole step


class Combined(Method):
    """The terms of several methods, added; `ce` once, as the first of them has it.

    Loss: `ce of the first + all other terms of each`, named `<method>_<term>` (or `<method>` alone where the
    two are the same word).

    Taps: those of every method.

    Deviations: none; the field combines CRD with KD so (Tian et al. 2020, Table 5).

    Reference: each method's own.
    """

    parts: tuple[type[Method], ...] = ()

    def __init__(self, config: Settings | None = None) -> None:
        super().__init__(config)
        for kind in self.parts:
            self.add_module(kind.name, kind(getattr(self.config, kind.name)))

    @property
    def members(self) -> list[Method]:
        """The methods, in order."""
        return [m for kind in self.parts if isinstance(m := self.get_submodule(kind.name), Method)]

    @classmethod
    def published_for(cls, dataset: str, teacher: str, student: str, recipe: str) -> Published | None:
        """What the literature gives for each method, under its name."""
        rows = {kind.name: kind.published_for(dataset, teacher, student, recipe) for kind in cls.parts}
        found = {name: row for name, row in rows.items() if row}
        if not found:
            return None
        settings = {name: row.settings for name, row in found.items()}
        return Published(settings, "; ".join(dict.fromkeys(row.source for row in found.values())))

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """The first reason that one of the methods has."""
        return next((why for m in self.members if (why := m.skip(student, teacher))), None)

    def taps(self) -> Wish:
        """The taps of all methods."""
        wishes = [m.taps() for m in self.members]
        return Wish(
            tuple(dict.fromkeys(name for w in wishes for name in w.student)),
            tuple(dict.fromkeys(name for w in wishes for name in w.teacher)),
            any(w.batch_statistics for w in wishes),
        )

    def part(self) -> TeacherPart | None:
        """What one of the methods needs on top of the teacher."""
        return next((part for m in self.members if (part := m.part())), None)

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """What each method makes."""
        for m in self.members:
            m.build(student, teacher, data)

    def read_norms(self, teacher: Norms) -> None:
        """Give each method the teacher's batch norms."""
        for m in self.members:
            m.read_norms(teacher)

    def auxiliary(self) -> nn.Module | None:
        """The auxiliary head of the first method that has one."""
        heads = (m.auxiliary() for m in self.members)
        return next((head for head in heads if head is not None), None)

    def first_stage(self) -> int:
        """The longest first stage of any; a method with a shorter one, or none, joins later."""
        return max(m.first_stage() for m in self.members)

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Every method's terms under its own name, and the first one's cross entropy."""
        terms: dict[str, Tensor] = {}
        for number, m in enumerate(self.members):
            if at.epoch < -m.first_stage():
                continue
            for term, value in m.loss(s, t, batch, at).items():
                if term != "ce":
                    terms[m.name if term == m.name else f"{m.name}_{term}"] = value
                elif number == 0:
                    terms[term] = value
        return terms


@cache
def family(name: str) -> type[Method] | None:
    """The combination called `<method>+<method>[+...]`, or None for a name without `+`.

    Raises:
        ConfigError: a method is named twice, or cannot share a step with another.
    """
    if "+" not in name:
        return None
    parts = tuple(methods.get(part) for part in name.split("+"))
    if len(set(parts)) < len(parts):
        raise ConfigError(f"'{name}' names a method twice", fix="name each once")
    for part in parts:
        changed = [hook for hook in ALONE if getattr(part, hook) is not getattr(Method, hook)]
        if changed or part.views or not part.teacher:
            raise ConfigError(
                f"{part.name} cannot be combined with another method: it decides the whole step"
            )
    fields: dict[str, Any] = {
        part.name: (part.Config, hp(part.Config(), doc=f"settings of {part.name}", source=f"{part.name}"))
        for part in parts
    }
    about = " and ".join(part.name for part in parts)
    body = {
        "name": name,
        "paper": Paper(
            " + ".join(part.paper.title for part in parts),
            "; ".join(part.paper.authors for part in parts),
            "; ".join(dict.fromkeys(part.paper.venue for part in parts)),
            max(part.paper.year for part in parts),
            parts[0].paper.url,
        ),
        "revision": sum(part.revision for part in parts),  # a change of any part is a change of the whole
        "parts": parts,
        "logit_only": all(part.logit_only for part in parts),
        "Config": create_model("Config", __base__=Settings, __doc__=f"Settings of {about}.", **fields),
        "__doc__": (Combined.__doc__ or "").replace("several methods", about),
        "__module__": __name__,
    }
    return type("Combined", (Combined,), body)
