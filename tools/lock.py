"""Dependencies in three places: pyproject.toml says ranges, the other two follow from it.

`python -m tools.lock [--upgrade]` resolves requirements.lock; environment.yml is a generated file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# Every version pinned, for Python 3.11 or newer. Made by `make lock` from pyproject.toml.
"""

ENVIRONMENT = """\
# For conda users: conda env create --file environment.yml
# Made by `make docs` from pyproject.toml; the versions are those of requirements.lock.
name: kdpipe
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python{python}
  - pip
  - make
  - pip:
      - --constraint requirements.lock
{pip}
      - --editable .
"""


def requirements(root: Path) -> list[str]:
    """Everything pyproject.toml asks for, its extras included."""
    project = _project(root)
    return [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]


def files(root: Path) -> dict[str, str]:
    """The environment for conda."""
    pip = "\n".join(
        f'      - "{requirement}"' for requirement in sorted(requirements(root), key=str.casefold)
    )
    return {"environment.yml": ENVIRONMENT.format(python=_project(root)["requires-python"], pip=pip)}


def pins(root: Path) -> dict[str, list[Requirement]]:
    """Package -> its lines in requirements.lock (several where Python versions differ)."""
    found: dict[str, list[Requirement]] = {}
    for line in (root / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def problems(root: Path) -> list[str]:
    """Where requirements.lock pins nothing, pins loosely, or disagrees with pyproject.toml."""
    locked = pins(root)
    found = [
        f"requirements.lock: '{pin}' is not one exact version"
        for lines in locked.values()
        for pin in lines
        if exact(pin) is None
    ]
    for text in requirements(root):
        wanted = Requirement(text)
        lines = locked.get(canonicalize_name(wanted.name), [])
        if not lines:
            found.append(f"requirements.lock: '{wanted.name}' of pyproject.toml is missing")
        found += [
            f"requirements.lock: '{pin}' is outside '{text}' of pyproject.toml"
            for pin in lines
            if (version := exact(pin)) and not wanted.specifier.contains(version, prereleases=True)
        ]
    return found


def exact(pin: Requirement) -> str | None:
    """The one version a line allows, or None; a local version (`+cu132`) is on no index."""
    match = re.fullmatch(r"==([^,*+]+)", str(pin.specifier))
    return match[1] if match and not pin.url else None


def resolve(root: Path, *, upgrade: bool) -> None:
    """Write requirements.lock, keeping the versions it has unless `upgrade`."""
    target = root / "requirements.lock"
    options = ["--all-extras", "--universal", "--python-version", "3.11", "--no-header", "--quiet"]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *options, "-o", target.name]
    subprocess.run([*command, "--upgrade"] if upgrade else command, cwd=root, check=True)
    target.write_text(HEADER + target.read_text(encoding="utf-8"), encoding="utf-8")


def _project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


if __name__ == "__main__":
    resolve(Path(__file__).parents[1], upgrade="--upgrade" in sys.argv[1:])
