"""The fingerprint follows code, not comments."""

from __future__ import annotations

import pytest

from kdpipe.core import fingerprint as module
from kdpipe.core.fingerprint import fingerprint


@pytest.fixture
def package(tmp_path, monkeypatch):
    root = tmp_path / "kdpipe"
    (root / "nn").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "nn" / "__init__.py").write_text("")
    (root / "nn" / "shared.py").write_text("def f():\n    return 1\n")
    (root / "plug.py").write_text('"""Doc."""\nfrom kdpipe.nn.shared import f\n\nX = f()\n')
    monkeypatch.setattr(module, "ROOT", root)
    yield root
    module._summary.cache_clear()


def test_comments_docstrings_and_layout_do_not_count(package):
    before = fingerprint([package / "plug.py"])
    module._summary.cache_clear()
    (package / "plug.py").write_text('"""Other."""\n# why\nfrom kdpipe.nn.shared import f\nX = (f())\n')
    assert fingerprint([package / "plug.py"]) == before


@pytest.mark.parametrize("file", ["plug.py", "nn/shared.py"])
def test_code_counts_also_of_what_is_imported(package, file):
    before = fingerprint([package / "plug.py"])
    module._summary.cache_clear()
    with open(package / file, "a") as source:
        source.write("\nY = 2\n")
    assert fingerprint([package / "plug.py"]) != before


def test_what_is_not_imported_does_not_count(package):
    before = fingerprint([package / "plug.py"])
    module._summary.cache_clear()
    (package / "nn" / "other.py").write_text("Z = 3\n")
    assert fingerprint([package / "plug.py"]) == before
