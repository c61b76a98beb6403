"""Plug-ins are found by walking their package; there is no list to keep.

A plug-in is one file in `kdpipe/methods`, `recipes`, `models`, `datasets` or `benches`. Folders named in the
environment variable `KDPIPE_PLUGINS` (separated like `PATH`) are walked too: `FOLDER/methods/mine.py`
becomes `kdpipe.methods.mine`, exactly as if it lay in kdpipe itself.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from kdpipe.core.errors import DataError, PluginError, UnknownNameError

KINDS = {  # kind -> (package, the base class that marks a plug-in)
    "method": ("kdpipe.methods", "kdpipe.api.objective:Method"),
    "recipe": ("kdpipe.recipes", "kdpipe.api.objective:Recipe"),
    "model": ("kdpipe.models", "kdpipe.api.model:ModelSpec"),
    "dataset": ("kdpipe.datasets", "kdpipe.api.dataset:Dataset"),
    "part": ("kdpipe.methods", "kdpipe.api.objective:TeacherPart"),  # beside the method that needs it
    "bench": ("kdpipe.benches", "kdpipe.api.bench:Bench"),
}


class Registry:
    """The plug-ins of one kind, by name.

    Methods, recipes and benches are classes; models and data sets are instances declared at module level. A
    module may also define `family(name)`, which returns a plug-in for a name outside its listed ones
    (any `wrn_<depth>_<width>`, say) or None.

    Args:
        kind: a key of `KINDS`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.package, base = KINDS[kind]
        self._base = base
        self._found: dict[str, Any] | None = None
        self._files: dict[str, Path] = {}
        self._families: list[tuple[Callable[[str], Any], Path]] = []

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._all())

    def get(self, name: str, *, where: str | None = None) -> Any:
        """The plug-in called `name`.

        Raises:
            UnknownNameError: there is none; the message names the nearest.
        """
        found = self._all()
        if name not in found:
            for member, file in self._families:
                plugin = member(name)
                if plugin is not None:
                    self._files[name] = file
                    return plugin
            raise UnknownNameError.of(self.kind, name, found, where=where)
        return found[name]

    def file(self, name: str) -> Path:
        """The file that declares the plug-in called `name`."""
        self.get(name)
        return self._files[name]

    def items(self) -> Iterator[tuple[str, Any]]:
        """(name, plug-in) pairs in order of name."""
        yield from sorted(self._all().items())

    def _all(self) -> dict[str, Any]:
        if self._found is None:
            base = _load(self._base)
            found: dict[str, Any] = {}
            for module in modules(self.package):
                declared = _declared(module, base)
                if not declared and self.kind != "part" and not hasattr(module, "family"):
                    raise PluginError(f"{module.__file__} declares no {base.__name__}")
                for name, plugin in declared:
                    if name in found:
                        raise PluginError(
                            f"two {self.kind}s are called '{name}': {self._files[name]} and {module.__file__}"
                        )
                    found[name] = plugin
                    self._files[name] = Path(module.__file__ or "")
                if hasattr(module, "family") and self.kind != "part":
                    self._families.append((module.family, Path(module.__file__ or "")))
            self._found = found
        return self._found


methods = Registry("method")
recipes = Registry("recipe")
models = Registry("model")
datasets = Registry("dataset")
parts = Registry("part")
benches = Registry("bench")
REGISTRIES = {r.kind: r for r in (methods, recipes, models, datasets, parts, benches)}


def plugin_folders() -> list[Path]:
    """The folders named in `KDPIPE_PLUGINS`, each of which must exist."""
    folders = [Path(p) for p in os.environ.get("KDPIPE_PLUGINS", "").split(os.pathsep) if p]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"the plug-in folder {folder} is not there",
                where="environment variable KDPIPE_PLUGINS",
                fix="name folders that hold methods/, recipes/, models/, datasets/ or benches/",
            )
    return folders


def plugin_files() -> list[Path]:
    """Every file that may declare a plug-in, in a fixed order."""
    here = Path(__file__).parents[1]
    return [
        file
        for root in (here, *plugin_folders())
        for folder in dict.fromkeys(package.rsplit(".", 1)[-1] for package, _ in KINDS.values())
        for file in sorted((root / folder).glob("*.py"))
    ]


def modules(package: str) -> list[ModuleType]:
    """Import every public module of a plug-in package, extra folders included."""
    home = importlib.import_module(package)
    leaf = package.rsplit(".", 1)[-1]
    for folder in plugin_folders():
        extra = str(folder / leaf)
        if os.path.isdir(extra) and extra not in home.__path__:
            home.__path__.append(extra)
    seen: dict[str, str] = {}
    for found in pkgutil.iter_modules(home.__path__):
        path = getattr(found.module_finder, "path", "")
        if found.name.startswith("_"):
            continue
        if found.name in seen:
            raise PluginError(f"two files are called {leaf}/{found.name}.py: {seen[found.name]}, {path}")
        seen[found.name] = path
    return [importlib.import_module(f"{package}.{name}") for name in sorted(seen)]


def _declared(module: ModuleType, base: Any) -> list[tuple[str, Any]]:
    """The plug-ins that `module` itself declares: subclasses of `base`, or instances of it."""
    found: dict[int, tuple[str, Any]] = {}
    for value in vars(module).values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if inspect.isclass(each):
                own = issubclass(each, base) and each.__module__ == module.__name__
            else:
                own = isinstance(each, base)
            name = getattr(each, "name", "") if own else ""
            if name:
                found[id(each)] = (name, each)
    return list(found.values())


def _load(path: str) -> Any:
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)
