"""Studies that nobody should write: each gives a plan, or one message that says where and what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdpipe.core.errors import ConfigError, UserError
from kdpipe.plan.config import Config
from kdpipe.plan.plan import Plan
from kdpipe.plan.resolve import resolve

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
def studies(draw: st.DrawFn) -> Any:
    """The study with up to three things in it lost, replaced, misnamed or doubled."""
    study = copy.deepcopy(STUDY)
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
def texts(draw: st.DrawFn) -> str:
    """The study as YAML with some characters or lines changed."""
    text = yaml.safe_dump(STUDY, sort_keys=False)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(text) - 1, 0)))
        end = at + draw(st.integers(0, 12))
        mark = draw(
            st.sampled_from(["", "\n", "  ", ":", "- ", "[", "]", "{", "}", "'", '"', "&a ", "*a", "!!"])
        )
        text = text[:at] + draw(st.just(mark) | st.text(max_size=3)) + text[end:]
    return text


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plan | None]:
    """Resolves a study's text; a mistake must be one message that names the file."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "studies").mkdir()
    real = Path("config").resolve()
    for name in ("protocols", "scales.yaml"):
        (folder / name).symlink_to(real / name)

    def go(text: str) -> Plan | None:
        (folder / "studies" / "a.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            return resolve(Config(studies=("a",), folder=str(folder), results=str(folder / "results")))
        except UserError as error:
            message = str(error)
            assert str(folder) in message, message
            assert "\n\n" not in message
            assert "For further information visit" not in message
            return None

    return go


EXAMPLES = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def test_the_study_itself_is_right(attempt: Callable[[str], Plan | None]) -> None:
    plan = attempt(yaml.safe_dump(STUDY))
    assert plan
    assert Plan.from_json(plan.to_json()) == plan


@EXAMPLES
@given(study=studies())
def test_a_changed_study_gives_a_plan_or_one_message(
    attempt: Callable[[str], Plan | None], study: Any
) -> None:
    plan = attempt(yaml.safe_dump(study))
    assert plan is None or Plan.from_json(plan.to_json()) == plan


@EXAMPLES
@given(study=st.dictionaries(st.sampled_from(list(STUDY)), junk, max_size=8) | junk)
def test_what_is_no_study_at_all_gives_one_message(attempt: Callable[[str], Plan | None], study: Any) -> None:
    attempt(yaml.safe_dump(study))


@EXAMPLES
@given(text=texts())
def test_a_damaged_file_gives_a_plan_or_one_message(attempt: Callable[[str], Plan | None], text: str) -> None:
    attempt(text)


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
