"""Drill 6: settings that nobody should write: a plan, or one message that says where and what is wrong.

Studies, protocols, scales, data sets of one's own, the workflow's settings, values on the command line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdpipe.cli import _config, _epoch, app
from kdpipe.core.errors import ConfigError, UserError
from kdpipe.plan.config import Config, check_config, read_config
from kdpipe.plan.plan import Plan
from kdpipe.plan.resolve import resolve
from tests.reliability.conftest import Outcome, cases

STUDY: dict[str, Any] = {
    "title": "Hostile",
    "about": "?",
    "dataset": "digits",
    "protocol": {"teacher": "digits_quick", "student": "digits_quick"},
    "split": "train-val",
    "scale": "own",
    "scales": {"own": {"epochs": 4, "seeds": 2, "settings": {"kd": {"alpha": 0.5}}}},
    "seeds": [0, 1],
    "pairs": [
        {"teacher": "resnet14", "student": "resnet8", "settings": {"dkd": {"beta": 2.0}}},
        {"teacher": "resnet14", "student": "resnet8x4", "dataset": "cifar10", "protocol": "cpu6"},
    ],
    "recipes": ["standard", {"name": "soteacher", "label": "so", "settings": {"lambda_lr": 1e-5}}],
    "methods": [
        "scratch",
        {"name": "kd", "protocol": {"lr": 0.01}},
        {"name": "dkd", "label": "dkd", "recipes": ["standard"]},
    ],
    "chains": [{"models": ["resnet8"], "alphas": [0.0, 0.3], "steps": 3, "pass_on": "lowest_nll"}],
    "settings": {"kd": {"temperature": 4.0}},
    "curves": [{"method": "kd", "epochs": [2], "checkpoints": [{"rule": "lowest_nll"}, {"fraction": 0.5}]}],
    "keep": {"every": 2, "epochs": [1]},
    "checkpoint_precision": "float16",
    "figures": ["loss_curves", "sensitivity"],
    "metrics": ["top1", "nll"],
    "baseline": "kd",
    "claims": [
        {"says": "s", "source": "Table 1", "kind": "above", "cells": {"row": "kd"}, "than": {"row": "dkd"}}
    ],
}
CONFIG = Path("config")
SETTINGS: dict[str, Any] = {
    **{"studies": ["a"], "scale": "smoke", "settings": {"kd": {"alpha": 0.5}}, "device": "cpu"},
    **{"checkpoint_precision": "float16", "data": "data", "download": False, "threads": 1, "gpus": 0},
    **{"tracking": None},
}
DATASET: dict[str, Any] = {
    **{"title": "Own", "format": "folder", "size": 8, "channels": 1, "train": "train", "test": "test"},
    **{"resize": True, "num_classes": 4, "sizes": {"train": 40, "test": 20}, "mean": [0.5], "std": [0.2]},
    **{"stats_source": "these tests", "preprocessing": "standardise", "revision": 2},
}
FILES: dict[str, Any] = {
    "studies/a.yaml": STUDY,
    "protocols/digits_quick.yaml": yaml.safe_load((CONFIG / "protocols/digits_quick.yaml").read_text()),
    "scales.yaml": yaml.safe_load((CONFIG / "scales.yaml").read_text()),
    "datasets/own.yaml": DATASET,
    "config.yaml": SETTINGS,
}
NAMES = ["digits", "cifar100", "imagenet", "sine", "resnet8", "vgg13", "two_layer_100", "imagenet_resnet50"]
NAMES += [
    "kd",
    "dkd",
    "kd+fitnet",
    "rco",
    "sskd",
    "born_again",
    "cross_fitting",
    "imported",
    "micc",
    "crd240",
]
NAMES += [
    "teacher",
    "full",
    "own",
    "standard",
    "last",
    "lowest_nll",
    "float16",
    "kernel_ridge_sine",
    "kdd",
    "",
]

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats()
    | st.sampled_from(NAMES)
    | st.text(max_size=8)
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*STUDY, "name", "label", "rule"]) | st.text(max_size=4), inner)
    ),
    max_leaves=5,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a study."""
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [*([at] if at else []), *(path for key, child in inner for path in places(child, (*at, key)))]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The content of a file with up to three things in it lost, replaced, misnamed or doubled."""
    study = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(study) or [("title",)]))
        holder: Any = study
        for key in path[:-1]:
            holder = holder[key]
        key = path[-1]
        if key not in holder and isinstance(holder, dict):
            continue
        match draw(st.sampled_from(["lose", "replace", "replace", "misname", "double", "add"])):
            case "lose":
                del holder[key]
            case "replace":
                holder[key] = draw(junk)
            case "misname" if isinstance(holder, dict):
                holder[draw(st.sampled_from([*STUDY, f"{key}s"]) | st.integers(0, 3))] = holder.pop(key)
            case "double" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from([*STUDY, "name", "label", "start", "models"]))] = draw(junk)
    return study


@st.composite
def texts(draw: st.DrawFn, value: Any) -> str:
    """The content of a file as YAML with some characters or lines changed."""
    text = yaml.safe_dump(value, sort_keys=False)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(text) - 1, 0)))
        end = at + draw(st.integers(0, 12))
        mark = draw(
            st.sampled_from(["", "\n", "  ", ":", "- ", "[", "]", "{", "}", "'", '"', "&a ", "*a", "!!"])
        )
        text = text[:at] + draw(st.just(mark) | st.text(max_size=3)) + text[end:]
    return text


@pytest.fixture
def attempt(tmp_path: Path, outcome: Outcome) -> Callable[..., Plan | None]:
    """Resolves the settings with one file's text changed; a mistake must be one message."""
    folder = tmp_path / "config"
    for name in ("studies", "protocols", "datasets"):
        (folder / name).mkdir(parents=True)
    (folder / "protocols/cpu6.yaml").symlink_to((CONFIG / "protocols/cpu6.yaml").resolve())

    def go(text: str, name: str = "studies/a.yaml") -> Plan | None:
        for other, value in FILES.items():
            (folder / other).write_text(yaml.safe_dump(value))
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        own = {"studies": ["a"], "folder": str(folder), "results": str(folder / "results")}
        if name == "datasets/own.yaml":
            used = {**STUDY, "dataset": "own", "pairs": STUDY["pairs"][:1]}
            (folder / "studies/a.yaml").write_text(yaml.safe_dump(used))
        if name in ("config.yaml", "scales.yaml"):
            own = {"folder": str(folder), "results": str(folder / "results"), "scale": "smoke"}
        return checked(lambda: resolve(read_config(folder / "config.yaml", own)), str(folder))

    def checked(make: Callable[[], Plan], where: str) -> Plan | None:
        try:
            return make()
        except UserError as error:
            message = str(error)
            assert where in message or "config" in message, message
            assert "\n\n" not in message
            assert "For further information visit" not in message
            outcome.passed += 1
            return None

    go.checked = checked  # type: ignore[attr-defined]
    return go


EXAMPLES = settings(
    max_examples=cases(12, 80),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def test_the_settings_themselves_are_right(attempt: Callable[..., Plan | None], outcome: Outcome) -> None:
    for name, value in FILES.items():
        plan = attempt(yaml.safe_dump(value), name)
        assert plan, name
        assert Plan.from_json(plan.to_json()) == plan
        outcome.passed += 1


@pytest.mark.parametrize("name", FILES)
@EXAMPLES
@given(data=st.data())
def test_a_changed_file_gives_a_plan_or_one_message(
    attempt: Callable[..., Plan | None], name: str, data: st.DataObject
) -> None:
    plan = attempt(yaml.safe_dump(data.draw(changed(FILES[name]))), name)
    assert plan is None or Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", FILES)
@EXAMPLES
@given(data=st.data())
def test_what_is_no_such_file_at_all_gives_one_message(
    attempt: Callable[..., Plan | None], name: str, data: st.DataObject
) -> None:
    keys = st.sampled_from(list(FILES[name]))
    attempt(yaml.safe_dump(data.draw(st.dictionaries(keys, junk, max_size=8) | junk)), name)


@pytest.mark.parametrize("name", FILES)
@EXAMPLES
@given(data=st.data())
def test_a_damaged_file_gives_a_plan_or_one_message(
    attempt: Callable[..., Plan | None], name: str, data: st.DataObject
) -> None:
    attempt(data.draw(texts(FILES[name])), name)


@EXAMPLES
@given(values=changed(SETTINGS))
def test_values_on_snakemakes_command_line(attempt: Any, tmp_path: Path, values: Any) -> None:
    """`--config key=value`, as Snakemake hands them on."""
    (tmp_path / "config/studies/a.yaml").write_text(yaml.safe_dump(STUDY))
    own = {"folder": str(tmp_path / "config")}
    attempt.checked(lambda: resolve(check_config({**values, **own})), "config")


@EXAMPLES
@given(
    key=st.sampled_from([*SETTINGS, "results", "studies.a", ""]), value=st.text(max_size=12) | texts([1, "a"])
)
def test_values_on_kdpipes_command_line(attempt: Any, tmp_path: Path, key: str, value: str) -> None:
    """`--set key=value`."""
    for name, content in FILES.items():
        (tmp_path / "config" / name).write_text(yaml.safe_dump(content))
    own = [f"{key}={value}", f"folder={tmp_path / 'config'}"]
    attempt.checked(lambda: resolve(_config(tmp_path / "config/config.yaml", own)), "--set")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: " + "[" * 5000, "too many brackets"),
        ("a: &a [*a]", "far too large"),
        ("a: &a {b: *a}", "far too large"),
        ("x: !!python/object/apply:os.system [touch /tmp/x]", "not valid YAML: could not determine"),
        ("a: 1\na: 2", "stands twice"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_yaml_that_no_reader_likes(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_config(tmp_path / "c.yaml")
    assert str(tmp_path / "c.yaml") in str(caught.value)


def wrong(**changes: Any) -> dict[str, Any]:
    """The study with other values of some keys."""
    return {**STUDY, **changes}


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (
            wrong(methods=["scratch", "kd", "dkdd"], curves=[], claims=[]),
            ["method 'dkdd'", "'methods'", "'dkd'"],
        ),
        (
            wrong(pairs=[{"teacher": "resnet14", "student": "resnett8"}]),
            ["no model 'resnett8'", "'pairs'", "did you mean 'resnet8'"],
        ),
        (
            wrong(pairs=[{"teacher": "two_layer_100", "student": "resnet8"}]),
            ["two_layer_100 takes images of 32 pixels only; those of digits have 8", "'pairs'"],
        ),
        (wrong(baseline="kdd"), ["baseline", "'kdd'", "did you mean 'kd'"]),
        (
            wrong(pairs=[*STUDY["pairs"], STUDY["pairs"][0]]),
            ["pairs: ", "resnet14", "listed twice for digits"],
        ),
        (wrong(methods=["scratch", "kd", "dkd", "kd"]), ["methods: 'kd' is listed twice"]),
    ],
)
def test_a_wrong_study_names_file_key_and_the_nearest(tmp_path: Path, study: Any, words: list[str]) -> None:
    (tmp_path / "studies").mkdir()
    for name in ("protocols", "scales.yaml"):
        (tmp_path / name).symlink_to(Path("config").resolve() / name)
    (tmp_path / "studies" / "a.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(ConfigError) as caught:
        resolve(Config(studies=("a",), folder=str(tmp_path)))
    message = str(caught.value)
    assert all(word in message for word in [*words, "studies/a.yaml"]), message


def test_bad_yaml_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "a.yaml").write_text("title: a\npairs: [\ndataset: digits\n")
    with pytest.raises(ConfigError, match=r"not valid YAML: .*\n.*studies/a\.yaml, line 4"):
        resolve(Config(studies=("a",), folder=str(tmp_path)))


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--run", "?", "--out", "out", "--data", "data"),
        ("bank", "--bank", "?", "--out", "out", "--data", "data", "--teacher", "weights"),
        ("sample", "--run", "?", "--out", "out", "--data", "data", "--epoch", "1"),
        ("features", "--run", "?", "--out", "out", "--data", "data", "--weights", "weights"),
        ("bench", "--run", "?", "--out", "out"),
        ("choose", "--choice", "?", "--run", "out"),
        ("resolve", "--config-json", "?", "--out", "out"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("text", "words"), [('{"sp', "Invalid JSON"), ('{"spek": {}}', "unknown key 'spek'")]
)
def test_options_that_hold_no_run(command: tuple[str, ...], text: str, words: str) -> None:
    option = command[command.index("?") - 1]
    with pytest.raises(ConfigError, match=words) as told:
        app([text if word == "?" else word for word in command], standalone_mode=False)
    assert option in str(told.value)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "1.5", "10:float8", "10:float16:"])
def test_what_is_no_epoch(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' is no epoch"):
        _epoch(text)
