"""The benchmark of tables and report: a small study through all of it."""

from __future__ import annotations

import json
import sys

from benchmarks import tables


def test_every_part_is_timed(tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["tables", "--runs", "10", "--out", str(out)])
    tables.main()
    found = json.loads(out.read_text())
    runs = len(tables.SEEDS) * (len(tables.RECIPES) * len(tables.METHODS) + 1)
    assert found["runs"] == runs
    assert found["report_files"] > runs
    assert all(found[part]["seconds"] > 0 for part in ("read the plan", "table files", "report", "all"))
    assert "peak memory" in capsys.readouterr().out
