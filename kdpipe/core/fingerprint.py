"""Which code made a result: a hash of the syntax trees of the modules it used.

Comments, docstrings and formatting do not change it. It is recorded with each run, not part of its id:
plug-in revisions are.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from kdpipe.core import registry
from kdpipe.core.specs import Bank, BenchRun, Run

ROOT = Path(__file__).parents[1]


def fingerprint(files: Iterable[Path]) -> str:
    """Hash of `files` and of every kdpipe module that they import, directly or not.

    Args:
        files: Python files, plug-ins included (they are found by name, which no import shows).
    """
    seen: dict[Path, str] = {}
    queue = [Path(f).resolve() for f in files]
    while queue:
        file = queue.pop()
        if file in seen:
            continue
        seen[file], imports = _summary(file)
        queue += [path for name in imports if (path := _module_file(name))]
    listed = sorted((path.name, summary) for path, summary in seen.items())
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:12]


def code_of(run: Run | BenchRun | Bank) -> list[Path]:
    """The files that the numbers of a run or a bank depend on: the engine and the plug-ins it names."""
    if isinstance(run, BenchRun):
        data = [_reader(run.spec.data.name)] if run.spec.data else []
        return [ROOT / "engine" / "bench.py", registry.benches.file(run.spec.bench.name), *data]
    if isinstance(run, Bank):
        data = [_reader(run.spec.data.dataset)]
        return [ROOT / "engine" / "bank.py", registry.models.file(run.model), *data]
    spec = run.spec
    plugins = [_reader(spec.data.dataset), registry.models.file(spec.model.name)]
    if run.imported:
        return [ROOT / "engine" / "importing.py", *plugins]
    objective = registry.REGISTRIES[spec.kind].file(spec.objective.name)
    shared = [ROOT / "engine" / "several.py"] if run.gpus > 1 else []
    return [ROOT / "engine" / "train.py", *shared, *plugins, objective]


def _reader(dataset: str) -> Path:
    """The file that declares a data set; for one described in the settings, the file that reads it."""
    if dataset in registry.datasets.names():
        return registry.datasets.file(dataset)
    return ROOT / "datasets" / "_trees.py"


@cache
def _summary(file: Path) -> tuple[str, tuple[str, ...]]:
    """Hash of one file's syntax tree without docstrings, and the kdpipe modules it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports: list[str] = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body.pop(0)
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    ours = tuple(sorted(name for name in imports if name.split(".")[0] == "kdpipe"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), ours


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _module_file(name: str) -> Path | None:
    stem = ROOT.joinpath(*name.split(".")[1:])
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path.resolve()
    return None
