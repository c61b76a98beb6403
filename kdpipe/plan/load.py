"""The plan as a file: resolved once, then read by the Snakefile, the tables and cluster jobs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kdpipe.core.errors import ConfigError, KdpipeError, UserError
from kdpipe.core.files import read_json, write_json
from kdpipe.core.garbage import no_search
from kdpipe.core.ids import canonical, digest
from kdpipe.core.paths import Results
from kdpipe.core.registry import plugin_files
from kdpipe.plan.config import Config
from kdpipe.plan.imported import check_imports
from kdpipe.plan.plan import Plan, PlannedStudy

PLANS_KEPT = 20
PLAN_AGE = 30 * 24 * 3600.0  # seconds; jobs that wait in a queue still read their plan
DECISIVE: dict[str, Any] = {
    **dict.fromkeys(("studies", "study", "scale", "settings", "checkpoint_precision", "folder"), True),
    "bank": {"precision"},
}
_SOURCES = ("core", "api", "nn", "plan")  # rooms whose code decides what a plan holds


def plan_path(config: Config) -> Path:
    """Where the plan of these settings lies: its name is a hash of everything that decides it."""
    head = config.model_dump(mode="json", include=DECISIVE)
    hasher = hashlib.sha256(canonical(head).encode())
    hasher.update(repr(_data_there(config)).encode())
    for file in _inputs(Path(config.folder)):
        hasher.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return Results(Path(config.results)).plans / f"{hasher.hexdigest()[:16]}.json"


def load_plan(config: Config, *, imports: bool = True) -> tuple[Plan, Path]:
    """The plan of these settings and the file that holds it; resolved in a child process when new.

    The child keeps torch, which the plug-ins import, out of the calling process.

    Args:
        config: the settings.
        imports: whether the teachers that studies import must be there.

    Raises:
        ConfigError: the settings are wrong; the child's message is passed on.
        CheckpointError: a teacher that a study names has not been imported.
    """
    path = plan_path(config)
    if not path.is_file():
        _resolve_in_child(config, path)
    try:
        plan = read_plan(path)
    except UserError as error:
        print(f"warning: the plan is resolved again\n{error}", file=sys.stderr)
        _resolve_in_child(config, path)
        plan = read_plan(path)
    if imports:
        check_imports(plan, Results(Path(config.results)))
    return plan, path


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with no_search():
            return Plan.from_json(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the plan is damaged: {error}", where=str(path), fix="delete the file") from None


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan file; beyond the newest `PLANS_KEPT`, those older than `PLAN_AGE` are dropped."""
    write_json(path, plan.to_json(), compact=True)
    ages = sorted((time.time() - p.stat().st_mtime, p) for p in path.parent.glob("*.json"))
    for age, stale in ages[PLANS_KEPT:]:
        if age > PLAN_AGE:
            stale.unlink(missing_ok=True)


def study_digest(study: PlannedStudy) -> str:
    """Hash of everything a study's tables depend on, beside the measures themselves."""
    known = {"study": study.study.model_dump(mode="json"), "cells": [vars(c) for c in study.cells]}
    known["printed"] = [vars(p) for p in study.printed]
    benches = {"benches": [vars(b) for b in study.benches], "plots": study.plots}
    return digest({**known, **(benches if study.benches else {})})


def _resolve_in_child(config: Config, path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "kdpipe",
        "resolve",
        "--config-json",
        canonical(config.model_dump(mode="json")),
    ]
    done = subprocess.run(
        [*command, "--out", str(path)], stderr=subprocess.PIPE, text=True, env=_environment()
    )
    if done.returncode == UserError.exit_code:
        raise ConfigError(done.stderr.strip().removeprefix("error: "))
    if done.returncode:
        raise KdpipeError(f"the plan could not be resolved:\n{done.stderr.strip()}")


def _environment() -> dict[str, str]:
    """The environment with this package importable, also from a checkout that is not installed."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _data_there(config: Config) -> list[str]:
    """Names of the data sets' folders that are there: studies may name another set in case theirs is not."""
    named = () if isinstance(config.data, str) else config.data
    places = [config.source(name) for name in named]
    root = config.source("")
    places += root.iterdir() if root.is_dir() else ()
    return sorted({place.name for place in places if place.is_dir()})


def _inputs(folder: Path) -> list[Path]:
    """Every file that a plan depends on: settings files, plug-ins, and the code that resolves."""
    here = Path(__file__).parents[1]
    settings: list[Any] = [
        folder / "scales.yaml",
        *folder.glob("studies/*.yaml"),
        *folder.glob("protocols/*.yaml"),
        *folder.glob("datasets/*.yaml"),
        *folder.glob("reference/*.csv"),
    ]
    code = [file for room in _SOURCES for file in (here / room).glob("*.py")]
    extra = sorted((here / "engine").glob("augment*.py"))
    return [file for file in (*sorted(settings), *sorted(code), *extra, *plugin_files()) if file.is_file()]
