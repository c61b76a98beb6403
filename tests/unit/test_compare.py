"""Two runs beside each other: what differs, where it comes from, and how they went."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from kdpipe.core.errors import ResultsError, UnknownNameError
from kdpipe.tables.compare import compare_runs, draw_comparison
from tests.unit.synthetic import EPOCHS, Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path).finish()
    for name, planned in made.plan.runs.items():
        run = planned.run.model_dump(mode="json")
        if "_dkd_" in name:
            run["spec"]["method"]["settings"]["beta"] = 8.0
            run["spec"]["protocol"]["lr"] = 0.05
        made.results.run(name).spec.write_text(json.dumps(run))
    return made


def compared(made: Made) -> list[str]:
    kd, dkd = (made.run(row, "standard", 0) for row in ("kd", "dkd"))
    return compare_runs(kd, dkd, made.results.root).splitlines()


def test_settings_that_differ_name_their_source(made: Made) -> None:
    text = compared(made)
    (line,) = (x for x in text if x.lstrip().startswith("method.settings.beta"))
    assert line.split() == ["method.settings.beta", "2.0", "[study", "demo]", "8.0", "[study", "demo]"]
    (line,) = (x for x in text if x.lstrip().startswith("protocol.lr"))
    assert line.split() == ["protocol.lr", "0.1", "[protocol", "quick]", "0.05", "[protocol", "quick]"]
    assert not [x for x in text if "warmup" in x]  # it is the same


def test_curves_have_their_last_and_best_epochs(made: Made) -> None:
    text = compared(made)
    at = text.index("test top-1 (%):")
    epochs, a, b, *_ = (x.split() for x in text[at + 1 :])
    assert epochs[0] == "epoch"
    assert epochs[-3:] == [str(EPOCHS), "last", "best"]
    assert (a[0], a[-2], b[0], b[-2]) == ("A", "96.00", "B", "97.00")
    bars = [x.split()[1] for x in text[at + 4 : at + 6]]
    assert [len(x) for x in bars] == [EPOCHS, EPOCHS]
    assert (bars[0][0], bars[1][-1]) == ("▁", "█")


def test_measures_have_their_difference_and_unit(made: Made) -> None:
    (line,) = (x for x in compared(made) if x.split()[:1] == ["top1"])
    assert line.split() == ["top1", "96.00", "97.00", "+1.00", "%"]


def test_a_run_beside_itself_differs_in_nothing(made: Made) -> None:
    run = made.run("kd", "standard", 0)
    assert "settings that differ:\n  none" in compare_runs(run, run, made.results.root)


def test_a_run_without_results_is_compared_by_its_settings(made: Made) -> None:
    kd, dkd = (made.run(row, "standard", 0) for row in ("kd", "dkd"))
    made.lose(dkd)
    text = compare_runs(kd, dkd, made.results.root)
    assert "method.settings.beta" in text
    made.lose(kd)
    text = compare_runs(kd, dkd, made.results.root)
    assert "top-1" not in text
    with pytest.raises(ResultsError, match="neither run has a history"):
        draw_comparison(kd, dkd, made.results.root, made.root / "out")


def test_both_curves_are_drawn(made: Made) -> None:
    kd, dkd = (made.run(row, "standard", 0) for row in ("kd", "dkd"))
    files = draw_comparison(kd, dkd, made.results.root, made.root / "out")
    assert [f.name for f in files] == ["compare.svg", "compare.png", "compare.csv"]
    data = pd.read_csv(files[2])
    last = data[(data["panel"] == "test top-1") & (data["x"] == EPOCHS)].set_index("line")["y"]
    assert (last["A"], last["B"]) == (96.0, 97.0)


def test_a_name_must_mean_one_run(made: Made) -> None:
    with pytest.raises(UnknownNameError, match="'kd_standard' is part of"):
        compare_runs("kd_standard", "dkd_standard_s0", made.results.root)
    with pytest.raises(UnknownNameError, match="no run 'nothing'"):
        compare_runs("nothing", "dkd_standard_s0", made.results.root)
    with pytest.raises(ResultsError, match="there are no runs"):
        compare_runs("a", "b", made.root / "nowhere")
