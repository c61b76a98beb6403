"""`kdpipe new`: a method from the template, or one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.core.errors import UserError
from kdpipe.plan import new as module
from kdpipe.plan.new import new

TEMPLATE = Path(module.__file__).parents[1] / "methods" / "_template.py"


def test_the_file_is_the_template_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = new("method", "angle_2", tmp_path / "mine")
    file = tmp_path / "mine" / "methods" / "angle_2.py"
    text = file.read_text()
    assert 'name = "angle_2"' in text
    assert "class Angle2(FeatureMethod)" in text
    assert text.replace("angle_2", "new_method").replace("Angle2", "NewMethod") == TEMPLATE.read_text()
    assert text.count("THE LOSS") == 1
    assert str(file) in said
    assert f"export KDPIPE_PLUGINS={tmp_path / 'mine'}" in said
    monkeypatch.setenv("KDPIPE_PLUGINS", str(tmp_path / "mine"))
    assert "export" not in new("method", "angle_3", tmp_path / "mine")


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("metod", "mine", ["no template 'metod'", "did you mean 'method'"]),
        ("method", "My-Loss", ["'My-Loss' cannot be", "'my_loss'"]),
        ("method", "2fast", ["'2fast' cannot be", "'fast'"]),
        ("method", "lambda", ["'lambda' cannot be", "'lambda_loss'"]),
        ("method", "_mine", ["'_mine' cannot be", "'mine'"]),
        ("method", "--", ["'--' cannot be", "'my_method'"]),
        ("method", "../x", ["'../x' cannot be", "'x'"]),
        ("method", "dkd", ["there is a method 'dkd' already", "dkd.py"]),
        ("method", "resnet8", ["there is a model 'resnet8' already", "resnet_cifar.py"]),
        ("method", "combined", ["the file is there already", "combined.py"]),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, kind: str, name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        new(kind, name, tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_file_is_written_over(tmp_path: Path) -> None:
    new("method", "angle", tmp_path)
    file = tmp_path / "methods" / "angle.py"
    file.write_text("mine")
    with pytest.raises(UserError, match="already"):
        new("method", "angle", tmp_path)
    assert file.read_text() == "mine"
    with pytest.raises(UserError, match="the folder is a file"):
        new("method", "angles", file)
