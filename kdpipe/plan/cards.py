"""Cards: everything there is to know about a plug-in, a protocol or a study, as text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdpipe.api.dataset import DatasetSpec
from kdpipe.api.model import ModelSpec
from kdpipe.api.settings import field_note
from kdpipe.core.errors import UnknownNameError
from kdpipe.core.registry import REGISTRIES
from kdpipe.plan.config import names, read_protocol, read_study


def card(name: str, folder: Path) -> str:
    """The card of whatever is called `name`.

    Args:
        name: a plug-in, protocol or study.
        folder: the config folder.

    Raises:
        UnknownNameError: nothing has that name.
    """
    for kind, registered in REGISTRIES.items():
        if name in registered.names() or (kind == "model" and _is_family(name)):
            return _WRITERS[kind](registered.get(name))
    if name in names("protocols", folder):
        return _protocol(name, folder)
    if name in names("studies", folder):
        return _study(name, folder)
    known = [n for r in REGISTRIES.values() for n in r.names()]
    known += [*names("protocols", folder), *names("studies", folder)]
    raise UnknownNameError.of("card", name, known)


def one_line(plugin: Any) -> str:
    """A plug-in in one line."""
    if isinstance(plugin, ModelSpec):
        return f"{plugin.params:>12,} parameters  {plugin.paper.authors} {plugin.paper.year}"
    if isinstance(plugin, DatasetSpec):
        shape = "x".join(map(str, plugin.shape))
        sizes = f"{plugin.sizes['train']:,} + {plugin.sizes['test']:,} images"
        return f"{plugin.num_classes} classes, {shape}, {sizes}"
    return (inspect.getdoc(plugin) or "").splitlines()[0]


def _is_family(name: str) -> bool:
    try:
        REGISTRIES["model"].get(name)
    except UnknownNameError:
        return False
    return True


def _objective(plugin: Any) -> str:
    lines = [f"{plugin.name} (revision {plugin.revision})", "", inspect.getdoc(plugin) or "", ""]
    fields = plugin.Config.model_fields
    if fields:
        lines.append("Settings:")
    for key, info in fields.items():
        lines.append(f"  {key} = {info.default!r}: {info.description}")
        lines.append(f"      source: {field_note(info, 'source')}")
    if plugin.published:
        lines += ["", "Published values (data set, teacher -> student, recipe):"]
        lines += [
            f"  {p.dataset}, {p.teacher} -> {p.student}, {p.recipe}: "
            + ", ".join(f"{k} = {v}" for k, v in p.settings.items())
            + f"  [{p.source}]"
            for p in plugin.published
        ]
    wish = plugin().taps()
    taps = ", ".join([*(f"student {t}" for t in wish.student), *(f"teacher {t}" for t in wish.teacher)])
    return "\n".join([*lines, "", f"Taps beside the logits: {taps or 'none'}", f"Paper: {plugin.paper}"])


def _model(spec: ModelSpec) -> str:
    lines = [
        f"{spec.name} (revision {spec.revision})",
        "",
        f"Parameters: {spec.params:,} (100 classes), {spec.params_at(10):,} (10 classes)",
        f"Classifier: {spec.classifier}, from {spec.embed_dim} features",
        "Taps:",
        *(
            f"  {name:<12}{tap.side} of {tap.module}: "
            f"{tap.channels} channels, stride {tap.stride}, {tap.kind}"
            for name, tap in spec.taps.items()
        ),
        f"Paper: {spec.paper}",
    ]
    return "\n".join(lines)


def _dataset(spec: DatasetSpec) -> str:
    stats = f"mean {spec.mean}, std {spec.std}" if spec.mean else "mean and std"
    lines = [
        f"{spec.name} (revision {spec.revision})",
        "",
        one_line(spec),
        f"Normalisation: {stats} ({spec.stats_source})",
        f"Licence: {spec.licence}",
        f"Paper: {spec.paper}",
    ]
    if spec.layout:
        lines.append(f"Folder: {spec.layout}")
    return "\n".join(lines)


def _protocol(name: str, folder: Path) -> str:
    file = read_protocol(name, folder)
    lines = [name, "", file.title, f"Source: {file.source}", "", "Settings:"]
    for key, value in file.settings.model_dump(mode="json").items():
        source = f"  [{file.sources[key]}]" if key in file.sources else ""
        lines.append(f"  {key} = {value}{source}")
    if file.light:
        lines.append(f"  lr = {file.light.lr} for light networks  [{file.light.source}]")
    return "\n".join(lines)


def _study(name: str, folder: Path) -> str:
    study = read_study(name, folder)
    lines = [name, "", study.title, study.about, ""]
    lines += [
        f"Data set {study.dataset}, protocol {study.protocol}, scale {study.scale}",
        f"Seeds: {', '.join(map(str, study.seeds))}",
        "Pairs: " + ", ".join(f"{p.teacher} -> {p.student}" for p in study.pairs),
        "Recipes: " + ", ".join(r.label for r in study.recipes),
        "Methods: " + ", ".join(m.label for m in study.methods),
        "Measures: " + ", ".join(study.metrics),
    ]
    return "\n".join(lines)


_WRITERS: dict[str, Callable[[Any], str]] = {
    "method": _objective,
    "recipe": _objective,
    "model": _model,
    "dataset": _dataset,
}
