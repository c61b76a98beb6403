"""The report's pages of methods and recipes: what each is, and its numbers in every study."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kdpipe.core.ids import canonical, digest, slug
from kdpipe.core.registry import plugin_files
from kdpipe.plan.plan import Plan, PlannedStudy
from kdpipe.tables.beside import beside_text
from kdpipe.tables.blocks import Entry, measure, pair_title
from kdpipe.tables.layout import Layout
from kdpipe.tables.pages import Site, page

KINDS = {"method": "methods", "recipe": "recipes"}


@dataclass(frozen=True)
class Setting:
    """A setting as its plug-in declares it: name, default, what it means, where the default is from."""

    name: str
    default: str
    about: str
    source: str


@dataclass(frozen=True)
class Card:
    """What a plug-in's file says of it: one line, the paper and its address, and its settings."""

    about: str = ""
    paper: str = ""
    url: str = ""
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True)
class Found:
    """One number of a plug-in in a study."""

    study: str
    title: str
    scale: str
    pair: str
    recipe: str
    row: str
    measure: str
    entry: Entry
    beside: str

    @property
    def run(self) -> str | None:
        """The run behind it, where it is one."""
        return self.entry.summary.runs[0] if len(self.entry.summary.runs) == 1 else None


def plugin_page(kind: str, name: str) -> str | None:
    """The page of a method or recipe within the report; None for what has none."""
    safe = name if slug(name) == name else f"{slug(name)}-{digest(name, 8)}"
    return f"{KINDS[kind]}/{safe}.html" if kind in KINDS else None


def write_plugins(
    site: Site, plan: Plan, layouts: Mapping[str, Layout]
) -> dict[str, list[tuple[str, str, int]]]:
    """Write a page for each method and recipe of a plan.

    Returns:
        By kind, each one's name, page and number of runs.
    """
    runs = Counter((p.run.spec.kind, p.run.spec.objective.name) for p in plan.runs.values())
    used = _used(plan)
    listed: dict[str, list[tuple[str, str, int]]] = {kind: [] for kind in KINDS}
    numbers = _numbers(plan, layouts)
    for (kind, name), count in sorted(runs.items()):
        target = plugin_page(kind, name)
        if target is None:
            continue
        listed[kind].append((name, target, count))
        text = page(
            "report_plugin.html",
            kind=kind,
            name=name,
            card=_cards(kind).get(name, Card()),
            used=used[kind, name],
            runs=count,
            found=numbers.get((kind, name), []),
        )
        site.write(target, text)
    return listed


def _used(plan: Plan) -> dict[tuple[str, str], list[tuple[str, str, str, int]]]:
    """Of each plug-in: every value that its settings have in the plan, its source, and in how many runs."""
    counts: dict[tuple[str, str], Counter[tuple[str, str, str]]] = {}
    for planned in plan.runs.values():
        spec = planned.run.spec
        own = counts.setdefault((spec.kind, spec.objective.name), Counter())
        own.update(
            (key, value if isinstance(value, str) else canonical(value), planned.run.sources.get(key, ""))
            for key, value in spec.objective.settings.items()
        )
    return {key: [(*row, n) for row, n in sorted(own.items())] for key, own in counts.items()}


def _numbers(plan: Plan, layouts: Mapping[str, Layout]) -> dict[tuple[str, str], list[Found]]:
    """The main measure's numbers, study by study: a method's rows, a recipe's columns, steps of chains."""
    found: dict[tuple[str, str], list[Found]] = {}
    for name, layout in layouts.items():
        planned = plan.studies[name]
        about = planned.study
        methods = {entry.label: ("method", entry.name) for entry in about.methods}
        recipes = {entry.label: ("recipe", entry.name) for entry in about.recipes}
        for one in _main(planned, layout):
            keys = [methods.get(one.row), recipes.get(one.recipe)]
            if one.entry.place.part == "chain" and one.entry.summary.runs:
                spec = plan.runs[one.entry.summary.runs[0]].run.spec
                keys = [(spec.kind, spec.objective.name)]
            for key in filter(None, keys):
                found.setdefault(key, []).append(one)
    return found


def _main(planned: PlannedStudy, layout: Layout) -> Iterator[Found]:
    """Every number of a study's main measure but those of checkpoints."""
    metric = planned.study.metrics[0]
    several = len(planned.study.datasets) > 1
    for shown, entry in layout.entries:
        p = entry.place
        if shown == metric and p.part in ("table", "chain") and entry.text != "–":
            yield Found(
                planned.name,
                planned.study.title,
                planned.scale,
                pair_title(p.teacher, p.student, p.dataset if several else ""),
                p.recipe,
                p.row if p.part == "table" else f"step {p.row}",
                measure(metric).title,
                entry,
                f"printed {beside_text(entry, measure(metric))}" if entry.printed else "",
            )


@cache
def _cards(kind: str) -> dict[str, Card]:
    """What the files of all plug-ins of a kind say, read as text: to import them would import torch."""
    files = [file for file in plugin_files() if file.parent.name == KINDS[kind]]
    return {name: card for file in files for name, card in _declared(file)}


def _declared(file: Path) -> Iterator[tuple[str, Card]]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return  # whoever needs the plug-in itself is told what is wrong with it
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            values = _assigned(node.body)
            name = _constant(values.get("name"))
            if name:
                about = (ast.get_docstring(node) or "").partition("\n")[0]
                configs = [c.body for c in node.body if isinstance(c, ast.ClassDef) and c.name == "Config"]
                settings = tuple(s for body in configs for s in _settings(body))
                yield name, Card(about, *_paper(values.get("paper")), settings)


def _assigned(body: Iterable[ast.stmt]) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _paper(node: ast.expr | None) -> tuple[str, str]:
    """A paper as its card cites it, and its address."""
    if not isinstance(node, ast.Call):
        return "", ""
    words = ("title", "authors", "venue", "year", "url")
    given: dict[str, Any] = dict(zip(words, map(_constant, node.args), strict=False))
    given |= {k.arg: _constant(k.value) for k in node.keywords if k.arg}
    cited = f"{given.get('authors', '')}. {given.get('title', '')}. {given.get('venue', '')}"
    return f"{cited} {given.get('year', '')}.", str(given.get("url") or "")


def _settings(body: Iterable[ast.stmt]) -> Iterator[Setting]:
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            call = node.value if isinstance(node.value, ast.Call) else None
            words = {k.arg: _constant(k.value) for k in call.keywords if k.arg} if call else {}
            default = call.args[0] if call and call.args else node.value
            shown = _constant(default) or (ast.unparse(default) if default is not None else "")
            yield Setting(node.target.id, str(shown), str(words.get("doc", "")), str(words.get("source", "")))


def _constant(node: ast.expr | None) -> Any:
    return node.value if isinstance(node, ast.Constant) else ""
