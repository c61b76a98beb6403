"""Grids of several data sets, entries that change a protocol, scales that swap the data, extended studies."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.specs import Protocol, identity
from kdpipe.plan.config import read_study
from kdpipe.plan.plan import Plan
from kdpipe.plan.resolve import resolve

TWO = {
    "pairs": [
        {"teacher": "wrn_40_2", "student": "wrn_16_2"},
        {
            "teacher": "wrn_40_2",
            "student": "wrn_16_2",
            "dataset": "cifar10",
            "settings": {"dkd": {"beta": 5}},
        },
    ],
    "recipes": ["standard"],
    "seeds": [0],
}


def cells(plan, **values):
    return [
        c
        for study in plan.studies.values()
        for c in study.cells
        if all(getattr(c, key) == value for key, value in values.items())
    ]


def spec_of(plan, **values):
    (cell,) = cells(plan, **values)
    return plan.runs[cell.run].run.spec


def test_a_pair_may_have_a_data_set_of_its_own(config):
    plan = resolve(config(a=TWO))
    for name in ("cifar100", "cifar10"):
        assert spec_of(plan, row="dkd", dataset=name).data.dataset == name
        assert spec_of(plan, row="teacher", dataset=name).data.dataset == name
        assert spec_of(plan, row="scratch", dataset=name).data.dataset == name
    assert len(plan.runs) == 2 * 4
    assert Plan.from_json(plan.to_json()) == plan


def test_the_settings_of_a_pair_are_its_own_and_an_entrys_win(config):
    plan = resolve(config(a=TWO))
    assert spec_of(plan, row="dkd", dataset="cifar10").method.settings["beta"] == 5.0
    assert spec_of(plan, row="dkd", dataset="cifar100").method.settings["beta"] == 6.0  # published
    entry = {"methods": ["scratch", {"name": "dkd", "settings": {"beta": 7}}]}
    plan = resolve(config(a=TWO | entry))
    for name in ("cifar10", "cifar100"):
        assert spec_of(plan, row="dkd", dataset=name).method.settings["beta"] == 7.0


def test_one_pair_on_two_data_sets_is_not_one_pair_twice(config):
    twice = {**TWO, "pairs": [TWO["pairs"][0], {**TWO["pairs"][0], "dataset": "cifar100"}]}
    with pytest.raises(ConfigError, match="wrn_40_2 -> wrn_16_2 is listed twice for cifar100"):
        resolve(config(a=twice))


def test_an_entry_changes_the_protocol_of_its_own_runs(config):
    methods = ["kd", {"name": "kd", "label": "slow", "protocol": {"lr": 0.01, "max_grad_norm": 0.5}}]
    plan = resolve(config(a={**TWO, "methods": methods, "pairs": TWO["pairs"][:1]}))
    slow, kd = spec_of(plan, row="slow").protocol, spec_of(plan, row="kd").protocol
    assert (slow.lr, slow.max_grad_norm) == (0.01, 0.5)
    assert kd == slow.model_copy(update={"lr": kd.lr, "max_grad_norm": 0.0})
    assert spec_of(plan, row="teacher").protocol.max_grad_norm == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "cannot change 'epochs'"),
        ({"momentun": 0.1}, "unknown key 'momentun'"),
        ({"lr": -1}, "greater than 0"),
    ],
)
def test_a_wrong_change_of_the_protocol_is_refused(config, change, message):
    study = {**TWO, "methods": [{"name": "kd", "protocol": change}]}
    with pytest.raises(ConfigError, match=message):
        resolve(config(a=study))


def test_an_unbounded_gradient_leaves_ids_alone():
    protocol = Protocol(lr=0.1, epochs=1, batch_size=2)
    assert "max_grad_norm" not in identity(protocol)
    assert "max_grad_norm" in identity(protocol.model_copy(update={"max_grad_norm": 1.0}))


def test_a_method_may_be_for_some_recipes(config):
    study = {"methods": ["kd", {"name": "dkd", "recipes": ["standard"]}], "seeds": [0]}
    plan = resolve(config(a=study))
    (asked,) = {c.skipped for c in cells(plan, row="dkd", recipe="soteacher")}
    assert asked == "dkd is asked for with standard teachers only"
    assert all(c.run for c in cells(plan, row="dkd", recipe="standard"))
    assert all(c.run for c in cells(plan, row="kd"))
    with pytest.raises(ConfigError, match="'dkd': no recipe of the study is called 'micc'"):
        resolve(config(a={"methods": [{"name": "dkd", "recipes": ["micc"]}]}))


def test_a_scale_may_swap_the_data_and_win_over_settings(config):
    scales = {"tiny": {"dataset": "digits", "settings": {"dkd": {"beta": 1}}, "precision": "bfloat16"}}
    plan = resolve(config(a={**TWO, "scales": scales}, scale="tiny"))
    assert {p.run.spec.data.dataset for p in plan.runs.values()} == {"digits"}
    assert {p.run.spec.protocol.precision for p in plan.runs.values()} == {"bfloat16"}
    assert {c.dataset for c in cells(plan, row="kd")} == {"cifar100", "cifar10"}  # the grid stays
    assert spec_of(plan, row="dkd", dataset="cifar10").method.settings["beta"] == 1.0
    assert plan.studies["a"].ran_on == "digits"
    assert len(plan.runs) == 4  # what differed in the data set alone is one run now


def test_a_scale_that_names_the_studys_own_data_swaps_none(config):
    study = {"dataset": "digits", "scales": {"tiny": {"dataset": "digits", "epochs": 1}}}
    assert resolve(config(a=study, scale="tiny")).studies["a"].ran_on == ""


def test_a_study_extends_another(config):
    base = {"seeds": [0], "settings": {"dkd": {"beta": 3}}, "scales": {"tiny": {"epochs": 24}}}
    more = {"extends": "a", "title": "more", "methods": ["dkd"], "settings": {"dkd": {"alpha": 2}}}
    settings = config(a=base)
    folder = settings.folder
    with open(f"{folder}/studies/b.yaml", "w") as file:
        yaml.safe_dump(more, file)
    study = read_study("b", Path(folder))
    assert (study.title, study.seeds, [m.name for m in study.methods]) == ("more", (0,), ["dkd"])
    assert study.settings == {"dkd": {"beta": 3, "alpha": 2}}
    assert study.scales["tiny"].epochs == 24
    with open(f"{folder}/studies/c.yaml", "w") as file:
        yaml.safe_dump({"extends": "c", "title": "round"}, file)
    with pytest.raises(ConfigError, match="extend each other: c -> c"):
        read_study("c", Path(folder))
    with open(f"{folder}/studies/d.yaml", "w") as file:
        yaml.safe_dump({"extends": "bb", "title": "nobody"}, file)
    with pytest.raises(UnknownNameError, match="did you mean 'b'"):
        read_study("d", Path(folder))
