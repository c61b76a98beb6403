"""A protocol that asks for several GPUs: what it changes in a plan, and what it leaves alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from kdpipe.core.errors import ConfigError
from kdpipe.core.fingerprint import code_of
from kdpipe.plan.cards import card
from kdpipe.plan.config import read_protocol
from kdpipe.plan.cost import Rates, bill, estimate
from kdpipe.plan.resolve import resolve

SMALL = {"seeds": [0], "methods": ["kd", "sskd"], "recipes": ["standard"]}
RATES = Rates("a device", 1e12, "stated")


@pytest.fixture
def planned(config, tmp_path):
    """Makes a plan whose protocol is crd240 with changes."""

    def make(settings=None, entry=None, **changes):
        made = config(a={**SMALL, **({"recipes": [entry]} if entry else {})})
        folder = tmp_path / "protocols"
        if folder.is_symlink():
            real = folder.resolve()
            folder.unlink()
            shutil.copytree(real, folder)
        file = folder / "crd240.yaml"
        values = yaml.safe_load(Path("config/protocols/crd240.yaml").read_text()) | changes
        values["settings"] |= settings or {}
        file.write_text(yaml.safe_dump(values))
        return resolve(made)

    return make


def test_runs_are_the_same_and_know_how_many_they_ask_for(planned):
    one, four = planned(), planned(gpus=4)
    assert one.runs.keys() == four.runs.keys()
    for name, run in one.runs.items():
        assert (run.run.gpus, four.runs[name].run.gpus) == (1, 4)
        assert run.run.spec == four.runs[name].run.spec
    assert {p.run.kind for p in four.runs.values()} == {"teacher", "student", "part"}


def test_the_code_of_a_shared_run_is_more(planned):
    one, four = (next(iter(p.runs.values())).run for p in (planned(), planned(gpus=4)))
    assert {f.name for f in code_of(four)} - {f.name for f in code_of(one)} == {"several.py"}


def test_time_is_shared_and_work_is_not(planned):
    one, four = planned(), planned(gpus=4)
    for name in one.runs:
        assert estimate(four.runs[name], RATES).seconds == pytest.approx(
            estimate(one.runs[name], RATES).seconds / 4
        )
    made = dict.fromkeys(one.runs, False)
    assert bill(four, four.runs, RATES, made).hours == pytest.approx(bill(one, one.runs, RATES, made).hours)


def test_compiled_networks_are_refused_before_anything_runs(planned):
    with pytest.raises(ConfigError, match="'crd240' has 2 GPUs share a run") as told:
        planned(gpus=2, settings={"compile": True})
    with pytest.raises(ConfigError, match="'crd240' has 2 GPUs share a run"):
        planned(gpus=2, settings={"compile": "graphs"})
    assert "compile to false" in str(told.value)
    with pytest.raises(ConfigError, match="has 2 GPUs share a run"):
        planned(gpus=2, entry={"name": "standard", "protocol": {"compile": True}})
    planned(gpus=1, settings={"compile": True})


@pytest.mark.parametrize("gpus", [0, -1, 1.5, "two"])
def test_no_number_of_gpus(planned, gpus):
    with pytest.raises(ConfigError, match="key 'gpus'"):
        planned(gpus=gpus)


def test_the_card_tells_it(planned, tmp_path):
    planned(gpus=4)
    assert read_protocol("crd240", tmp_path).gpus == 4
    assert "GPUs: 4" in card("crd240", tmp_path)
    assert "GPUs" not in card("crd240", Path("config"))
