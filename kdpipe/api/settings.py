"""How a plug-in declares its settings, each default with its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

from kdpipe.core.specs import Frozen


class Settings(Frozen):
    """Base of a plug-in's nested `Config`: frozen, unknown keys forbidden, ranges declared."""


def hp(default: Any, *, doc: str, source: str, since: int = 1, epochs: bool = False, **limits: Any) -> Any:
    """A setting: its default, meaning, source and range.

    Args:
        default: the value used when nothing else is said.
        doc: what it means, with unit.
        source: where the default comes from (paper and section, or repository).
        since: the plug-in revision that added it. A setting with `since > 1` stays out of a run's
            id while at its default, so that runs made before it keep their ids.
        epochs: whether it counts epochs of training; a scale that shortens the protocol then
            shortens it alike.
        **limits: pydantic constraints (`gt`, `ge`, `lt`, `le`).
    """
    note: dict[str, Any] = {"source": source, "since": since, "epochs": epochs}
    return Field(default, description=doc, json_schema_extra=note, **limits)


def scaled(config: type[Settings], values: Mapping[str, Any], scale: Callable[[int], int]) -> dict[str, Any]:
    """The values (of all settings, as plain data) with those that count epochs scaled; 0 and None stay."""
    found = dict(values)
    for name, info in config.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            found[name] = scaled(type(default), values[name], scale)
        elif field_note(info, "epochs") and values[name]:
            found[name] = scale(values[name])
    return found


def later_settings(config: type[Settings]) -> dict[str, Any]:
    """Defaults of the settings that were added after a plug-in's first revision.

    Those of a setting that is itself a set of settings stand in a dictionary under its name.
    """
    later: dict[str, Any] = {}
    for name, info in config.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if field_note(info, "since") not in (None, 1):
            later[name] = default
        elif isinstance(default, Settings) and (inner := later_settings(type(default))):
            later[name] = inner
    return later


def field_note(info: FieldInfo, key: str) -> Any:
    """What `hp` recorded about a field under `key` (`source` or `since`)."""
    extra = info.json_schema_extra
    return extra.get(key) if isinstance(extra, dict) else None


@dataclass(frozen=True)
class Paper:
    """Where a plug-in comes from."""

    title: str
    authors: str
    venue: str
    year: int
    url: str = ""

    def __str__(self) -> str:
        return f"{self.authors}. {self.title}. {self.venue} {self.year}."


@dataclass(frozen=True)
class Published:
    """Settings that the literature gives for some data set, pair or teacher recipe.

    `*` matches anything. Of several rows that match, the one with the fewest stars wins.
    """

    settings: dict[str, Any]
    source: str
    dataset: str = "*"
    teacher: str = "*"
    student: str = "*"
    recipe: str = "*"

    def stars(self, dataset: str, teacher: str, student: str, recipe: str) -> int | None:
        """How many stars were needed to match, or None when the row does not match."""
        pairs = (
            (self.dataset, dataset),
            (self.teacher, teacher),
            (self.student, student),
            (self.recipe, recipe),
        )
        if any(mine not in ("*", theirs) for mine, theirs in pairs):
            return None
        return sum(mine == "*" for mine, _ in pairs)
