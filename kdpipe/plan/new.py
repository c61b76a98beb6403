"""A new plug-in from a template that is itself a plug-in."""

from __future__ import annotations

import keyword
import re
from importlib import resources
from pathlib import Path

from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.files import write_text
from kdpipe.core.registry import REGISTRIES, plugin_files, plugin_folders

TEMPLATES = {"method": ("kdpipe.methods", "new_method", "NewMethod")}  # kind -> package, name, class
NEXT = """\
wrote {file}
next: change the line marked THE LOSS and whatever says TODO, then
{path}  pytest tests/contract/test_objectives.py -k {name}
  kdpipe show {name}
the guide: docs/guides/add-a-method.md"""


def new(kind: str, name: str, folder: Path | None) -> str:
    """Write a new plug-in and say what to do next.

    Args:
        kind: a key of `TEMPLATES`.
        name: its name and that of its file.
        folder: a plug-in folder outside kdpipe, made when missing; None is kdpipe's own.

    Raises:
        ConfigError: there is no such kind, the name cannot be used, or the file is there.
    """
    if kind not in TEMPLATES:
        raise UnknownNameError.of("template", kind, TEMPLATES)
    package, its_name, its_class = TEMPLATES[kind]
    leaf = package.rsplit(".", 1)[-1]
    file = (folder or Path(__file__).parents[1]) / leaf / f"{name}.py"
    _check(name, file, folder)
    text = resources.files(package).joinpath("_template.py").read_text(encoding="utf-8")
    own_class = "".join(word.capitalize() for word in name.split("_"))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.replace(its_name, name).replace(its_class, own_class))
    known = folder is None or folder.resolve() in [each.resolve() for each in plugin_folders()]
    return NEXT.format(file=file, name=name, path="" if known else f"  export KDPIPE_PLUGINS={folder}\n")


def _check(name: str, file: Path, folder: Path | None) -> None:
    """Refuse a name that is no module's, that something has already, or whose file is there.

    Raises:
        ConfigError: it cannot be used.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        better = re.sub(r"\W+", "_", name).strip("_0123456789").lower()
        better = f"{better}_loss" if keyword.iskeyword(better) else better or "my_method"
        raise ConfigError(
            f"'{name}' cannot be the name of a file and of what it holds: small letters, digits and _ can",
            fix=f"for example '{better}'",
        )
    for kind, registry in REGISTRIES.items():
        if name in registry.names():
            taken = str(registry.file(name))
            raise ConfigError(f"there is a {kind} '{name}' already", where=taken, fix="choose another name")
    for there in [*plugin_files(), file]:
        if there.is_file() and (there.parent.name, there.name) == (file.parent.name, file.name):
            raise ConfigError(
                "the file is there already", where=str(there), fix="choose another name, or move it away"
            )
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError("the folder is a file", where=str(folder), fix="name a folder")
