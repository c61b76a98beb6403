"""What every protocol promises: each value with its source, a schedule that runs, the published facts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec
from kdpipe.engine.augment import Pipeline
from kdpipe.engine.optimise import optimizer, rate
from kdpipe.plan.cards import card
from kdpipe.plan.config import names, read_protocol
from kdpipe.plan.study import Scale

CONFIG = Path("config")
SEP = {"drop": "after", "gamma": 0.1, "optimizer": "sgd", "decay_on": "all", "precision": "float32"}
STEP = {**SEP, "schedule": "step", "momentum": 0.9}
CRD = {**STEP, "weight_decay": 5e-4, "epochs": 240, "batch_size": 64, "milestones": (150, 180, 210)}
MICC = {**STEP, "epochs": 90, "milestones": (30, 60)}
TINY = {**STEP, "lr": 0.1, "weight_decay": 5e-4, "batch_size": 128}
CONSTANT = {**SEP, "schedule": "constant", "milestones": ()}
ADAM = {**CONSTANT, "optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-4}

PUBLISHED: dict[str, dict[str, Any]] = {
    "crd240": {**CRD, "lr": 0.05, "light": 0.01, "nesterov": False, "reports": "last"},
    "reviewkd240": {
        **CRD,
        "lr": 0.1,
        "light": 0.02,
        "batch_size": 128,
        "nesterov": True,
        "reports": "best-on-test",
    },
    "micc90_teacher": {**MICC, "lr": 0.5, "batch_size": 256, "reports": "not-stated"},
    "micc90_student": {**MICC, "lr": 0.05, "batch_size": 128, "reports": "not-stated"},
    "soteacher_tiny90": {**TINY, "epochs": 90, "milestones": (30, 60)},
    "soteacher_tiny100": {**TINY, "epochs": 100, "milestones": (30, 60, 90)},
    "dhkd_imagenet100": {
        **STEP,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "epochs": 100,
        "batch_size": 256,
        "milestones": (30, 60, 90),
    },
    "selfdistill75": {**ADAM, "epochs": 75, "reports": "last"},
    "selfdistill100": {**ADAM, "epochs": 100, "reports": "last"},
    "ofd200": {
        **STEP,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "epochs": 200,
        "batch_size": 128,
        "milestones": (100, 150),
        "nesterov": True,
        "reports": "median-of-last-5",
    },
    "sskd240": {**CRD, "lr": 0.05, "light": 0.01, "reports": "best-on-test"},
    "mlld240": {**CRD, "lr": 0.025, "light": 0.01, "reports": "best-on-test"},
    "mlld480": {**CRD, "lr": 0.01, "epochs": 480},
    "mlld960": {**CRD, "lr": 0.01, "epochs": 960},
    "crl300": {
        **STEP,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "epochs": 300,
        "batch_size": 128,
        "milestones": (150, 250),
        "drop": "at",
        "nesterov": False,
    },
    "kernelregime_gd": {
        **CONSTANT,
        "lr": 2e-4,
        "momentum": 0,
        "weight_decay": 0,
        "augmentation": (),
    },
}
ASSUMED = {  # what the papers do not state
    "micc90_teacher": {"momentum", "nesterov", "weight_decay", "decay_on", "gamma", "augmentation"},
    "micc90_student": {"momentum", "nesterov", "weight_decay", "decay_on", "gamma", "augmentation"},
    "selfdistill75": {"batch_size", "schedule", "weight_decay"},
    "selfdistill100": {"batch_size", "schedule", "weight_decay"},
    "kernelregime_gd": {"epochs"},
}
STATED = set(Protocol.model_fields) - Protocol.LATER - {"compile"}  # `compile` is kdpipe's own business

every = pytest.mark.parametrize("name", names("protocols", CONFIG))


def test_all_that_the_papers_use_are_there() -> None:
    assert set(PUBLISHED) <= set(names("protocols", CONFIG))


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones(name: str) -> None:
    file = read_protocol(name, CONFIG)
    for key, value in PUBLISHED[name].items():
        if key == "reports":
            assert file.reports is not None
            assert file.reports.value == value
        elif key == "light":
            assert file.light is not None
            assert file.light.lr == value
        else:
            assert getattr(file.settings, key) == value, key
    assert (file.light is None) == ("light" not in PUBLISHED[name])


@every
def test_every_value_is_stated_with_its_own_source(name: str) -> None:
    file = read_protocol(name, CONFIG)
    written = yaml.safe_load((CONFIG / "protocols" / f"{name}.yaml").read_text())["settings"]
    assert set(written) == STATED
    assert set(file.sources) == STATED
    assert all(source.strip() for source in file.sources.values())
    assert file.source
    assert file.reports is not None
    assert file.reports.source


@pytest.mark.parametrize("name", ASSUMED)
def test_what_a_paper_does_not_state_is_called_an_assumption(name: str) -> None:
    sources = read_protocol(name, CONFIG).sources
    assert ASSUMED[name] <= {key for key, source in sources.items() if "assumption" in source.lower()}


def test_doubts_are_said() -> None:
    assert "doubtful" in read_protocol("micc90_teacher", CONFIG).sources["milestones"]
    assert "doubtful" in read_protocol("reviewkd240", CONFIG).sources["drop"]


@every
@pytest.mark.parametrize("epochs", [None, 3, 12])
def test_the_rate_falls_when_it_is_said_to(name: str, epochs: int | None) -> None:
    protocol = read_protocol(name, CONFIG).at(Scale(epochs=epochs), light=False)
    rates = [rate(protocol, epoch) for epoch in range(protocol.epochs)]
    if protocol.schedule == "cosine":
        assert rates[0] == protocol.lr
        assert all(a > b > 0 for a, b in itertools.pairwise(rates))
        return
    assert rates[0] == protocol.lr or protocol.milestones[0] == 1  # a reduction may start with a drop
    first = {m + (protocol.drop == "after") for m in protocol.milestones}  # counted from 1
    falls = {epoch + 1 for epoch in range(1, protocol.epochs) if rates[epoch] < rates[epoch - 1]}
    assert falls == {epoch for epoch in first if 1 < epoch <= protocol.epochs}
    assert list(protocol.milestones) == sorted(protocol.milestones)
    if epochs is None:
        assert len(first) == len(protocol.milestones)
        assert max(first, default=1) <= protocol.epochs
        assert rates[-1] == pytest.approx(protocol.lr * protocol.gamma ** len(first))


@every
def test_a_step_can_be_taken(name: str) -> None:
    protocol = read_protocol(name, CONFIG).settings
    layer = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    step = optimizer(protocol, list(layer.parameters()))
    decays = [group["weight_decay"] for group in step.param_groups]
    assert decays == [protocol.weight_decay]  # every one covers all parameters
    assert not isinstance(step, torch.optim.AdamW)  # weight decay inside Adam is L2
    before = [p.clone() for p in layer.parameters()]
    layer(torch.randn(5, 4)).square().sum().backward()
    step.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


@every
def test_its_augmentation_runs(name: str) -> None:
    pipeline = Pipeline(read_protocol(name, CONFIG).settings.augmentation)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    drawn = pipeline.draw(3, torch.Generator().manual_seed(0))
    out = pipeline.apply(images, drawn, torch.arange(3))
    assert (out.shape, out.dtype) == (images.shape, images.dtype)


@every
def test_its_card_shows_every_value_and_source(name: str) -> None:
    file, shown = read_protocol(name, CONFIG), " ".join(card(name, CONFIG).split())
    for key, source in file.sources.items():
        assert f" {key} = " in shown
        assert " ".join(source.split()) in shown
    assert file.reports is not None
    assert f"reports: {file.reports.value}" in shown.lower()


@pytest.mark.parametrize(("name", "wanted"), [("crd240", "7a2b18914444"), ("digits_quick", "b4394cad101e")])
def test_ids_of_the_first_release_stand(name: str, wanted: str) -> None:
    spec = RunSpec(
        engine=1,
        data=DataSpec(dataset="cifar100", revision=1, split="train-val", train_samples=1000),
        model=Part(name="resnet8", revision=1),
        protocol=read_protocol(name, CONFIG).settings,
        recipe=Part(name="standard", revision=1),
        seed=0,
    )
    assert Run(spec=spec, label="x", protocol=name).id == wanted
