"""What holds for the repository as a whole."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from kdpipe.core.registry import REGISTRIES
from kdpipe.plan.cards import PLUGINS
from tools import __main__ as tools
from tools import architecture, lock, pages

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kdpipe"
LIGHT = ["core", "plan", "tables", "tracking"]  # rooms that a Snakefile or a table needs
ASKS_PLUGINS = {  # and so imports torch; no Snakefile does
    "kdpipe/plan/resolve.py",
    "kdpipe/plan/cards.py",
    "kdpipe/plan/datasets.py",
    "kdpipe/plan/benches.py",
    "kdpipe/plan/work.py",
}


def repository_files() -> list[Path]:
    """Everything in git or on its way there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [file for name in listed.stdout.split("\0") if name and (file := ROOT / name).is_file()]


FILES = repository_files()
PAGES = [file for file in FILES if file.suffix == ".md"]
CONFIGS = [file for file in FILES if file.suffix == ".yaml" and file.is_relative_to(ROOT / "config")]


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


# generated files, dependencies


def test_generated_files_are_fresh() -> None:
    assert not tools.stale(), "`make docs` writes them"


def test_a_page_of_what_is_there_no_more_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / pages.FOLDER / "methods" / "gone.md"
    page.parent.mkdir(parents=True)
    page.touch()
    assert pages.orphans(tmp_path, {}) == [f"{pages.FOLDER}/methods/gone.md"]
    assert not pages.orphans(tmp_path, {f"{pages.FOLDER}/methods/gone.md": ""})


def test_plugins_and_protocols_have_their_pages() -> None:
    found = pages.files(ROOT)
    wanted = [f"{kind}/{name}" for kind, one in PLUGINS.items() for name in REGISTRIES[one].names()]
    wanted += [f"protocols/{file.stem}" for file in CONFIGS if file.parent.name == "protocols"]
    assert {f"{pages.FOLDER}/{name}.md" for name in [*wanted, "index"]} <= found.keys()


def test_the_lock_pins_what_pyproject_asks_for() -> None:
    assert not lock.problems(ROOT), "`make lock` mends it"


def test_the_lock_needs_no_index_of_its_own() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if re.match(r"\s*-|.*(://|file:|\+cu)", line)]


def test_the_environment_for_conda_asks_for_the_same() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    options = {"--constraint requirements.lock", "--editable ."}
    assert options < set(pip)
    assert set(pip) - options == set(lock.requirements(ROOT))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"python{project['requires-python']}" in dependencies


@pytest.mark.parametrize(
    ("pins", "problem"),
    [
        ("numpy>=2", "not one exact version"),
        ("numpy==2.1.0\ntorch==2.3.0", "outside 'torch>=2.11'"),
        ("numpy==2.1.0", "'torch' of pyproject.toml is missing"),
        ("numpy==2.1.0\ntorch==2.15.0+cu132", "not one exact version"),
    ],
)
def test_a_lock_that_disagrees_is_noticed(tmp_path: Path, pins: str, problem: str) -> None:
    (tmp_path / "requirements.lock").write_text(pins)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=2", "torch>=2.11"]\noptional-dependencies.dev = []'
    )
    assert any(problem in found for found in lock.problems(tmp_path))


# architecture


def test_a_circle_of_rooms_is_an_error() -> None:
    with pytest.raises(SystemExit, match="circle"):
        architecture.reduced({"a": ["b"], "b": ["a"]})


def test_arrows_that_follow_from_others_are_left_out() -> None:
    assert architecture.reduced({"a": ["b", "c"], "b": ["c"], "c": []}) == [("a", "b"), ("b", "c")]


def test_every_room_has_its_place_in_the_import_contract() -> None:
    rooms = {file.name for file in PACKAGE.iterdir() if (file / "__init__.py").is_file()}
    assert rooms <= set(architecture.layers(ROOT))


def test_reading_a_plan_imports_nothing_heavy() -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in LIGHT
        for file in architecture.sources(ROOT, room)
        if relative(file) not in ASKS_PLUGINS
    ]
    program = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        "print(*({'torch', 'torchvision', 'mlflow'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# documentation


def public(
    node: ast.Module | ast.ClassDef, prefix: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public classes, functions and methods below a node."""
    for child in node.body:
        if isinstance(
            child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}{child.name}.")


def inherited_docs() -> set[str]:
    """Methods that the interfaces document for the plug-ins that override them."""
    tree = ast.parse((PACKAGE / "api/objective.py").read_text(encoding="utf-8"))
    return {"forward"} | {name.split(".")[1] for name, _ in public(tree) if "." in name}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=relative)
def test_every_public_symbol_has_a_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has none"
    exempt = inherited_docs() if file.parent.name in architecture.PLUGINS else {"forward"}
    bare = [
        name
        for name, node in public(tree)
        if not ast.get_docstring(node)
        and name.rsplit(".", 1)[-1] not in exempt
        and not any("overload" in ast.unparse(d) for d in node.decorator_list)
    ]
    assert not bare


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"<!--.*?-->|```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.split("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "ARCHITECTURE.md",
        "docs/index.md",
        ".ci/run",
    ],
)
def test_what_a_repository_needs_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_the_version_is_the_changelogs() -> None:
    from kdpipe import __version__

    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1:2] in ([], [__version__])


def test_help_lists_every_target_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert {line.split()[0] for line in shown.stdout.splitlines()} == set(phony.split())
    assert set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)) == set(phony.split())


# configuration


@pytest.mark.parametrize("file", CONFIGS, ids=relative)
def test_configuration_files_name_a_schema_and_keep_to_it(file: Path) -> None:
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text(encoding="utf-8"))
    kinds = {"config.yaml": "config", "studies": "study", "protocols": "protocol", "datasets": "dataset"}
    kind = kinds.get(file.name) or kinds.get(file.parent.name)
    if kind is None:
        assert named is None, "no schema of that name is generated"
        return
    assert named
    schema = (file.parent / named[1]).resolve()
    assert relative(schema) == f"config/schemas/{kind}.json"
    jsonschema.validate(yaml.safe_load(file.read_text(encoding="utf-8")), json.loads(schema.read_text()))


def test_the_schema_of_a_study_knows_its_keys() -> None:
    schema = json.loads((ROOT / "config/schemas/study.json").read_text())
    study = yaml.safe_load((ROOT / "config/studies/digits_demo.yaml").read_text())
    jsonschema.validate(study, schema)
    with pytest.raises(jsonschema.ValidationError, match="sedes"):
        jsonschema.validate({**study, "sedes": [1]}, schema)


# what must not be in git


def test_results_are_not_in_git() -> None:
    assert [relative(f) for f in FILES if f.is_relative_to(ROOT / "results")] == ["results/README.md"]


def test_no_file_names_a_machine() -> None:
    places = [
        r"(?<![\w.~-])/(?:home|Users|root|work|mnt|scratch|opt|srv)/\w",
        r"\b[\w-]+\.(?:internal|lan|corp)\b",
    ]
    addresses = r"(?<![\w.])(?!127\.0\.0\.1|0\.0\.0\.0)\d{1,3}(?:\.\d{1,3}){3}(?![\w.])"
    found = []
    for file in FILES:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        patterns = [*places, rf"(?<![\w.]){re.escape(str(ROOT))}(?!\w)"]
        if file.name != "requirements.lock":  # some versions have four parts
            patterns.append(addresses)
        found += [f"{relative(file)}: {match[0]}" for p in patterns if (match := re.search(p, text))]
    assert not found


def test_no_file_is_large() -> None:
    assert not [relative(file) for file in FILES if file.stat().st_size > 1_000_000]
