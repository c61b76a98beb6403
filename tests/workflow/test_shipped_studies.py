"""Shipped studies at their smallest, one of each kind: networks, checkpoint sampling, chain, bench."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from tests.workflow.conftest import ROOT

pytestmark = pytest.mark.slow

STUDIES = {  # each with the figures that it must leave
    "dhkd_figure6": ("correlation", "learning_curves"),
    "soteacher_figure1": ("sampling",),
    "selfdistill_digits": ("accuracy", "best_alpha", "chains_by_alpha"),
    "kernelregime_figure1": ("figure1",),
}


def test_one_study_of_each_kind_at_smoke(project):
    shutil.rmtree(project.root / "config")
    shutil.copytree(ROOT / "config", project.root / "config")
    config = ["scale=smoke", "pack=8", f"studies=[{','.join(STUDIES)}]"]
    done = project.snakemake(config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    for study, figures in STUDIES.items():
        folder = project.root / "results" / "studies" / study
        for figure in figures:
            assert all((folder / f"{figure}.{kind}").stat().st_size for kind in ("svg", "png", "csv"))
        page = (folder / "table.html").read_text()
        assert "smoke" in page
        assert "not to be compared" in page
        assert "this table is not complete" not in page
    table = pd.read_csv(project.root / "results" / "studies" / "dhkd_figure6" / "table.csv")
    scores = table[table["metric"] == "top1"]
    assert len(scores) == len(set(scores["row"])) == 4  # the teacher and three students
    assert (scores["n"] == 1).all()
    assert scores["mean"].between(0, 100).all()
    again = project.snakemake(config=config)
    assert "Nothing to be done" in again.stdout + again.stderr
