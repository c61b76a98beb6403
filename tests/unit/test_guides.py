"""The guides work word for word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from kdpipe.plan.config import Config, read_scales
from kdpipe.plan.resolve import resolve
from kdpipe.plan.study import (
    Cells,
    Chain,
    Checkpoint,
    Claim,
    Curve,
    Entry,
    Keep,
    Otherwise,
    Pair,
    Pretrained,
    Protocols,
    Scale,
    Study,
)

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
GUIDE = (GUIDES / "add-a-model.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:`([^`\n]+)`:\n\n)?```(sh|python|yaml)\n(.*?)```", flags=re.DOTALL)


def contract(folder: Path) -> subprocess.CompletedProcess[str]:
    """Call the guide's second command."""
    (command,) = re.findall(r"^pytest (.*)$", GUIDE, flags=re.MULTILINE)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *command.split()],
        cwd=ROOT,
        env={**os.environ, "KDPIPE_PLUGINS": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_model_by_its_guide(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    (corrected,) = re.findall(r"Write `(params=[\d_]+)`", GUIDE)
    file = tmp_path / "models" / "plain.py"
    file.parent.mkdir()
    file.write_text(code)
    first = contract(tmp_path)
    assert re.findall(r"^FAILED \S+::(\w+)", first.stdout, flags=re.MULTILINE) == [
        "test_parameter_count_is_the_declared_one"
    ]
    file.write_text(code.replace("params=0", corrected))
    second = contract(tmp_path)
    assert second.returncode == 0, second.stdout


def copy_of_kdpipe(folder: Path) -> Path:
    """What the commands of a guide read and write, in a folder of its own."""
    for name in ("kdpipe", "workflow", "config", "tests", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.slow
def test_a_method_by_its_guide(tmp_path: Path) -> None:
    """Every command is called as it stands, in order; the table at the end has the new method."""
    root, exported, output = copy_of_kdpipe(tmp_path), "", ""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for name, kind, text in BLOCK.findall((GUIDES / "add-a-method.md").read_text(encoding="utf-8")):
        if kind == "python":
            file = root / "mine" / "methods" / "my_method.py"
            changed, count = re.subn(r".*THE LOSS.*\n", text, file.read_text())
            assert count == 1
            file.write_text(changed)
        elif kind == "yaml":
            (root / name).write_text(text)
        else:
            done = subprocess.run(
                ["bash", "-ec", exported + text],
                cwd=root,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            exported += "".join(re.findall(r"^export .*\n", text, flags=re.MULTILINE))
            output = done.stdout
    assert re.search(r"^.*my_method.*\d", output, flags=re.MULTILINE), output


STUDIES = (GUIDES / "studies.md").read_text(encoding="utf-8")
PARTS = [
    Study,
    Pair,
    Entry,
    Protocols,
    Otherwise,
    Keep,
    Checkpoint,
    Curve,
    Chain,
    Pretrained,
    Cells,
    Claim,
    Scale,
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_guide_to_studies_names_every_key(part: type[BaseModel]) -> None:
    named = set(re.findall(r"`(\w+)`", STUDIES)) | set(re.findall(r"(\w+): ", STUDIES))
    assert not part.model_fields.keys() - named


def test_the_guide_to_studies_names_every_kind_and_figure() -> None:
    for part, key in (
        (Study, "figures"),
        (Claim, "kind"),
        (Claim, "along"),
        (Chain, "loss"),
        (Study, "split"),
    ):
        values = re.findall(r"'([\w-]+)'", str(part.model_fields[key].annotation))
        assert values
        assert not {value for value in values if f"`{value}`" not in STUDIES}


def test_the_guide_to_studies_names_every_scale() -> None:
    assert not {name for name in read_scales(ROOT / "config") if f"`{name}`" not in STUDIES}


def test_studies_by_their_guide(tmp_path: Path) -> None:
    """The guide's whole studies plan as they stand, and the second has the keys of the first."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    blocks = [text for _, kind, text in BLOCK.findall(STUDIES) if kind == "yaml"]
    mine, other = (text for text in blocks if "title:" in text)
    for name, text in (("mine", mine), ("other", other)):
        (tmp_path / "config" / "studies" / f"{name}.yaml").write_text(text)
    plan = resolve(Config(studies=("mine", "other"), folder=str(tmp_path / "config")))
    assert [c.row for c in plan.studies["other"].cells if c.seed == 0] == [
        "teacher",
        "scratch",
        "kd",
        "kd, T=1",
    ]
    assert plan.studies["other"].study.baseline == "kd"
    assert plan.studies["mine"].runs() != plan.studies["other"].runs()


def test_fragments_of_the_guide_are_keys_of_a_study() -> None:
    for _, kind, text in BLOCK.findall(STUDIES):
        if kind == "yaml":
            assert yaml.safe_load(text).keys() <= Study.model_fields.keys()
