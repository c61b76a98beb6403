"""Plug-ins are found by walking; clashes and unknown names are said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.core import registry
from kdpipe.core.errors import UnknownNameError

METHOD = '''"""A method."""
from kdpipe.api import Method, Paper


class Mine(Method):
    """Mine."""

    name = "{name}"
    paper = Paper("t", "a", "v", 2026)
'''


def names_with(folder: Path, kind: str = "method") -> subprocess.CompletedProcess[str]:
    code = f"from kdpipe.core.registry import REGISTRIES; print(*REGISTRIES['{kind}'].names())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KDPIPE_PLUGINS": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_message_lists_a_screenful_of_names_at_most():
    few = str(UnknownNameError.of("run", "xyz", [f"r{i}" for i in range(60)]))
    assert "r59" in few
    assert "more" not in few
    assert "and 940 more" in str(UnknownNameError.of("run", "xyz", [f"r{i}" for i in range(1000)]))


def test_unknown_name_answers_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no method 'dkdd'.*\n.*did you mean 'dkd'"):
        registry.methods.get("dkdd")


def test_a_file_in_another_folder_is_a_plugin(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(METHOD.format(name="mine"))
    done = names_with(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout.split()
    assert "kd" in done.stdout.split()


def test_a_name_used_twice_is_an_error(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "again.py").write_text(METHOD.format(name="kd"))
    done = names_with(tmp_path)
    assert done.returncode != 0
    assert "two methods are called 'kd'" in done.stderr


def test_a_missing_plugin_folder_is_an_error(tmp_path):
    done = names_with(tmp_path / "nowhere")
    assert "KDPIPE_PLUGINS" in done.stderr


def test_a_family_gives_members_that_are_not_listed():
    assert registry.models.get("wrn_22_3").name == "wrn_22_3"
    with pytest.raises(UnknownNameError):
        registry.models.get("wrn_23_3")


@pytest.mark.parametrize("kind", sorted(registry.REGISTRIES))
def test_every_file_of_a_plugin_package_declares_something(kind):
    assert registry.REGISTRIES[kind].names()


def test_no_recipe_and_method_share_a_name():
    assert not set(registry.recipes.names()) & set(registry.methods.names())
