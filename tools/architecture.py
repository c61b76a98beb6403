"""ARCHITECTURE.md from the package's docstrings and its real imports."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PLUGINS = ("methods", "recipes", "models", "datasets")

PAGE = """\
# Architecture

<!-- Made by `make docs` from docstrings and imports; do not edit. -->

A study (YAML) names a grid of runs. The plan works them out, Snakemake trains what is missing, the tables
read what the runs left behind. Why it is built this way stands in [docs/adr](docs/adr).

## Rooms

The package `kdpipe`, from the user's side inwards. A room may import those below it, never those above;
`make lint` holds it to that.

| room | what it holds | imports |
|---|---|---|
{rooms}

## Who imports whom

What follows from other arrows is left out. The registry in `core` loads plug-ins by walking their folders:
no room imports them by name.

```mermaid
graph TD
{edges}
```

## The way of the data

```
study -> plan -> prepared data -> teacher -> sampled checkpoints
      -> student -> predictions -> metrics -> table -> report
```

Nothing downstream writes upstream. A method sees batches and taps, never a path, a device or a seed; a table
reads files, never a model.

## Around the package

| place | what it holds |
|---|---|
| `Snakefile`, `workflow/` | rules, profiles with a machine's facts, captions of the workflow report |
| `config/` | the studies, the protocols, the printed numbers, the schemas of these files |
| `tests/` | tests; `contract/` runs over every registered plug-in |
| `benchmarks/` | speed, beside the field's usual loop |
| `tools/` | the generators of this page, the schemas and the lock |
| `results/` | everything that runs make; not in git |

## Modules

Plug-ins are not listed: `kdpipe list` does.

{modules}
"""


def files(root: Path) -> dict[str, str]:
    """The page."""
    rooms = layers(root)
    imports = {room: room_imports(root, room, rooms) for room in rooms}
    return {
        "ARCHITECTURE.md": PAGE.format(
            rooms="\n".join(
                f"| `{room}` | {purpose(root, room)} | {', '.join(f'`{i}`' for i in imports[room])} |"
                for room in rooms
            ),
            edges="\n".join(f"  {room} --> {other}" for room, other in reduced(imports)),
            modules="\n\n".join(module_list(root, room) for room in rooms if room not in PLUGINS).rstrip(),
        )
    }


def layers(root: Path) -> list[str]:
    """The rooms from top to bottom, as the import contract in pyproject.toml orders them."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    stacks = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    rooms = [room for layer in stacks for room in re.split(r"\s*[|:]\s*", layer)]
    return [room for room in rooms if sources(root, room)]


def sources(root: Path, room: str) -> list[Path]:
    """The Python files of a room, which is a package or a single module."""
    package = root / "kdpipe"
    return sorted((package / room).rglob("*.py")) or list(package.glob(f"{room}.py"))


def purpose(root: Path, room: str) -> str:
    """First line of the room's docstring."""
    return summary(min(sources(root, room), key=lambda file: (file.stem != "__init__", len(file.parts))))


def summary(file: Path) -> str:
    """First line of a file's docstring, without its full stop.

    Raises:
        SystemExit: the file has none.
    """
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not text:
        raise SystemExit(f"{file} has no docstring: say in one line what it is for")
    return text.splitlines()[0].rstrip(".")


def room_imports(root: Path, room: str, rooms: list[str]) -> list[str]:
    """The other rooms that a room imports, in order."""
    names = {name for file in sources(root, room) for name in imported(file)}
    found = {name.split(".")[1] for name in names if name.startswith("kdpipe.")}
    return [other for other in rooms if other in found and other != room]


def imported(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it; not those for type checking alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reduced(imports: dict[str, list[str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others.

    Raises:
        SystemExit: rooms import each other in a circle.
    """
    try:
        order = list(graphlib.TopologicalSorter(imports).static_order())
    except graphlib.CycleError as error:
        raise SystemExit(f"rooms import each other in a circle: {' -> '.join(error.args[1])}") from None
    reach: dict[str, set[str]] = {}
    for room in order:
        reach[room] = set().union(*({i} | reach[i] for i in imports[room]))
    return [
        (room, other)
        for room, others in imports.items()
        for other in others
        if not any(other in reach[via] for via in others)
    ]


def module_list(root: Path, room: str) -> str:
    """A room's modules with their purpose."""
    found = [file for file in sources(root, room) if file.stem != "__init__"]
    lines = [f"- `{file.relative_to(root).as_posix()}`: {summary(file)}" for file in found]
    return "\n".join([f"### {room}", "", *(lines or ["- (empty)"])])
