"""The guides work word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "add-a-model.md").read_text(encoding="utf-8")


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
