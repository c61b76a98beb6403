"""Settings files: what is wrong is said with file, key and the nearest valid name."""

from pathlib import Path

import pytest

from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.plan.config import (
    Config,
    ProtocolFile,
    names,
    parse,
    read_config,
    read_protocol,
    read_scales,
    read_study,
    read_yaml,
    scale_epoch,
)
from kdpipe.plan.study import Scale, Study

CONFIG = Path("config")
STUDY = {
    "title": "t",
    "dataset": "digits",
    "protocol": "p",
    "pairs": [{"teacher": "resnet20", "student": "resnet8"}],
    "recipes": ["standard"],
    "methods": ["scratch", "kd"],
}


def study(**changes):
    return parse(Study, {**STUDY, **changes}, "s.yaml")


@pytest.mark.parametrize("name", names("studies", CONFIG))
def test_every_study_file_loads(name):
    assert read_study(name, CONFIG).title


@pytest.mark.parametrize("name", names("protocols", CONFIG))
def test_every_protocol_file_loads(name):
    file = read_protocol(name, CONFIG)
    assert file.source


def test_scales_load():
    assert {"smoke", "short"} <= read_scales(CONFIG).keys()


def test_crd240_is_the_published_protocol():
    protocol = read_protocol("crd240", CONFIG).settings
    assert (protocol.lr, protocol.epochs, protocol.batch_size) == (0.05, 240, 64)
    assert protocol.milestones == (150, 180, 210)
    assert (protocol.momentum, protocol.nesterov, protocol.weight_decay) == (0.9, False, 5e-4)
    assert [a.name for a in protocol.augmentation] == ["crop", "flip"]


def test_light_networks_get_their_rate():
    file = read_protocol("crd240", CONFIG)
    assert file.at(Scale(), light=True).lr == 0.01
    assert file.at(Scale(), light=False).lr == 0.05


def test_a_scale_moves_milestones_in_proportion():
    reduced = read_protocol("crd240", CONFIG).at(Scale(epochs=24), light=False)
    assert (reduced.epochs, reduced.milestones) == (24, (15, 18, 21))
    assert scale_epoch(1, 240, 2) == 1


def test_bare_names_become_entries():
    entry = study(methods=["kd", {"name": "dhkd", "label": "dhkd, no GA", "settings": {"align": False}}])
    assert [m.label for m in entry.methods] == ["kd", "dhkd, no GA"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": []}, r"unknown key 'metods'.*\n.*s\.yaml.*\n.*did you mean 'methods'"),
        ({"seeds": [0, 0]}, "a seed is listed twice"),
        ({"seeds": []}, "at least 1 item"),
        ({"seeds": [-1]}, r"key 'seeds\.0'"),
        ({"methods": ["kd", "kd"]}, "'kd' is listed twice"),
        ({"methods": [{"name": "kd", "label": "teacher"}]}, "use another label"),
        (
            {"curves": [{"method": "dkd", "epochs": [1]}]},
            "no method of the study is called 'dkd'; did you mean 'kd'",
        ),
        ({"pairs": [{"teacher": "a", "studnet": "b"}]}, "unknown key 'studnet'"),
        ({"pairs": [{"teacher": "a"}]}, r"pairs\.0\.student' is missing"),
        ({"dataset": 3}, r"valid string \(got 3\)"),
        ({"protocol": {"techer": "p", "student": "p"}}, "did you mean 'teacher'"),
        ({"protocol": {"teacher": "p"}}, r"'protocol\.student' is missing"),
    ],
)
def test_a_wrong_study_is_one_message(changes, message):
    with pytest.raises(ConfigError, match=message):
        study(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("- 1", "must hold keys and values"),
        ("? [1, 2]\n: 3", "not valid YAML|unhashable|key"),
    ],
)
def test_broken_yaml_is_one_message(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "x.yaml")


def test_a_number_without_a_dot_is_a_number(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1e-5\nb: 2.0e-3\nc: name")
    assert read_yaml(tmp_path / "x.yaml") == {"a": 1e-5, "b": 2e-3, "c": "name"}


def test_an_unknown_study_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'digits_demo'") as caught:
        read_study("digit_demo", CONFIG)
    assert str(CONFIG / "studies") in str(caught.value)


def test_value_and_source_are_taken_apart():
    file = parse(
        ProtocolFile,
        {
            "title": "t",
            "source": "s",
            "settings": {
                "lr": {"value": 0.1, "source": "Sec. 3"},
                "epochs": 2,
                "batch_size": 4,
                "augmentation": ["flip", {"crop": {"padding": 2}}],
            },
        },
        "p.yaml",
    )
    assert file.settings.lr == 0.1
    assert file.sources == {"lr": "Sec. 3"}
    assert [a.name for a in file.settings.augmentation] == ["flip", "crop"]


def test_the_command_line_wins_over_the_file():
    assert read_config(CONFIG / "config.yaml", {"scale": "smoke"}).scale == "smoke"


def test_where_data_are_looked_for(monkeypatch):
    monkeypatch.delenv("KDPIPE_DATA", raising=False)
    assert Config().source("cifar100") == Path("data/cifar100")
    assert Config(data={"cifar100": "x"}).source("cifar100") == Path("x")
    monkeypatch.setenv("KDPIPE_DATA", "elsewhere")
    assert Config().source("cifar100") == Path("elsewhere/cifar100")
    assert Config(data="given").source("cifar100") == Path("given/cifar100")
