"""docs/plugins: what `kdpipe show` says of each plug-in and protocol, an index, and a table of pairs."""

from __future__ import annotations

from pathlib import Path

from kdpipe.core.registry import REGISTRIES, methods
from kdpipe.plan.cards import PLUGINS, card_of, members
from tools import pairs

FOLDER = "docs/plugins"
MADE = "<!-- Made by `make docs`; do not edit. -->"
KINDS = {
    "methods": "Methods: ways to distil a student",
    "recipes": "Recipes: ways to train a teacher",
    "parts": "Parts: what some methods train on top of a teacher",
    "benches": "Benches: closed forms and simulations of theory",
    "models": "Models",
    "datasets": "Data sets",
    "protocols": "Protocols: optimiser, schedule, batches, augmentation",
}

PAGE = """\
# {name}

{made}

[All {kind}](../index.md#{kind}) · declared in [{file}](../../../{file}) · `kdpipe show {name}`

```text
{card}
```
"""

INDEX = """\
# What there is

{made}

One page each, with what `kdpipe show NAME` prints; `kdpipe list` prints this list.
[Which method distils which pair](pairs.md) of the papers' networks.
{sections}
"""


def files(root: Path) -> dict[str, str]:
    """The pages: path -> content."""
    config = root / "config"
    pages, sections = {}, []
    for kind, title in KINDS.items():
        places = {name: where for name in members(kind, config) if (where := place(kind, name, root))}
        lines = members(kind, config)
        rows = [f"| [{name}]({kind}/{name}.md) | {' '.join(lines[name].split())} |" for name in places]
        sections += ["", f'<a id="{kind}"></a>', "", f"## {title}", "", "| name | what |", "|---|---|", *rows]
        for name, file in places.items():
            card = card_of(kind, name, config)
            pages[f"{FOLDER}/{kind}/{name}.md"] = PAGE.format(
                name=name, made=MADE, kind=kind, file=file, card=card.rstrip()
            )
    named = [name for name in methods.names() if place("methods", name, root)]
    index = INDEX.format(made=MADE, sections="\n".join(sections))
    return {f"{FOLDER}/index.md": index, **pages, **pairs.files(MADE, named)}


def place(kind: str, name: str, root: Path) -> str | None:
    """The file of this repository that declares a member of a kind; None where it lies elsewhere."""
    settings = root / "config" / kind / f"{name}.yaml"
    file = settings if settings.is_file() else REGISTRIES[PLUGINS[kind]].file(name)
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else None


def orphans(root: Path, generated: dict[str, str]) -> list[str]:
    """Pages of what is there no more."""
    found = sorted(file.relative_to(root).as_posix() for file in (root / FOLDER).rglob("*.md"))
    return [path for path in found if path not in generated]
