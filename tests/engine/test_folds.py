"""Cross-fitting from the networks to the student: who teaches which sample, and through a kill."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdpipe.api import DataInfo, Wish
from kdpipe.core import registry
from kdpipe.core.errors import Interrupted
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import TeacherRef
from kdpipe.engine.predict import autocast
from kdpipe.engine.prepare import select
from kdpipe.engine.stop import Stop
from kdpipe.engine.teacher import Teacher
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import read_weights
from kdpipe.nn.folds import folds
from kdpipe.nn.mixing import four_rotations
from tests.engine.test_train import CPU, StopAfter, bits
from tests.engine.tiny import history, make_run

FOLDS = 3
LOGITS = Wish()


@pytest.fixture(scope="module")
def networks(prepared, tmp_path_factory):
    """The weights of a cross-fitted teacher's networks."""
    paths = RunPaths(tmp_path_factory.mktemp("folds"))
    run = make_run("recipe", "cross_fitting", settings={"folds": FOLDS})
    Trainer(run, paths, prepared, (), CPU).train()
    assert {"loss_ce", "loss_peer1_ce", "loss_peer2_ce"} <= set(history(paths)[0])
    return [paths.model, *(paths.peer(number) for number in range(1, FOLDS))]


def labels_of(prepared):
    return torch.tensor(select(prepared, make_run("recipe", "standard").spec.data)["train"].labels)


def teacher_of(weights, prepared, wish=LOGITS):
    protocol = make_run("recipe", "standard").spec.protocol
    data = DataInfo(prepared.num_classes, labels_of(prepared))
    spec = registry.models.get("resnet8")
    return Teacher(spec, weights, prepared, wish, CPU, lambda: autocast(protocol.precision, CPU), None, data)


def taught(kind, name, root, networks, prepared, part=None, **changes):
    """A student of all networks, or a part on top of them."""
    run = make_run(kind, name, **changes)
    spec = run.spec.model_copy(update={"teacher": TeacherRef(run="t", folds=FOLDS)})
    run = run.model_copy(update={"spec": spec})
    return Trainer(run, RunPaths(root), prepared, networks, CPU, stop=Stop(), part=part)


@pytest.mark.parametrize("index", [[5, 0, 30, 17, 2, 57, 9], [0], [3, 3]], ids=len)
def test_each_sample_is_taught_by_the_network_that_left_it_out(index, networks, prepared):
    chosen = torch.tensor(index)
    images = torch.randn(len(index), 1, 8, 8)
    wish = Wish(teacher=("stage2", "embed"))
    out = teacher_of(networks, prepared, wish)([images], chosen)
    fold = folds(labels_of(prepared), FOLDS)[chosen]
    for number, file in enumerate(networks):
        alone = teacher_of([file], prepared, wish)([images], chosen)
        mine = fold == number
        torch.testing.assert_close(out.logits[mine], alone.logits[mine])
        for tap, value in alone.taps.items():
            torch.testing.assert_close(out[tap][mine], value[mine])


def test_rotations_of_a_sample_have_its_teacher(networks, prepared):
    chosen = torch.tensor([4, 40, 21, 7, 33])
    images = torch.randn(5, 1, 8, 8)
    out = teacher_of(networks, prepared)([images, four_rotations(images)], chosen)
    fold = folds(labels_of(prepared), FOLDS)[chosen]
    assert fold.unique().numel() > 1
    for number, file in enumerate(networks):
        alone = teacher_of([file], prepared)([four_rotations(images)], chosen)
        mine = (fold == number).repeat(4)
        torch.testing.assert_close(out.more[0].logits[mine], alone.logits[mine])
    torch.testing.assert_close(out.logits, out.more[0].logits[:5])


def test_the_networks_differ(networks, prepared):
    images = torch.randn(4, 1, 8, 8)
    alone = [teacher_of([file], prepared)([images], torch.arange(4)).logits for file in networks]
    assert not torch.allclose(alone[0], alone[1])
    assert not torch.allclose(alone[1], alone[2])


@pytest.mark.parametrize("name", ["kd", "sskd"])
def test_a_student_of_several_networks_resumes_bit_for_bit(name, networks, prepared, tmp_path):
    part, wanted = None, registry.methods.get(name)().part()
    if wanted is not None:
        taught("part", wanted.name, tmp_path / "part", networks, prepared, epochs=1).train()
        part = RunPaths(tmp_path / "part").model
    taught("method", name, tmp_path / "whole", networks, prepared, part).train()
    stopped = taught("method", name, tmp_path / "parts", networks, prepared, part)
    StopAfter(stopped, 6)
    with pytest.raises(Interrupted):
        stopped.train()
    taught("method", name, tmp_path / "parts", networks, prepared, part).train()
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")
    taught("method", name, tmp_path / "one", networks[:1] * FOLDS, prepared, part).train()
    assert bits(tmp_path / "one") != bits(tmp_path / "whole")


def test_the_batch_norms_of_a_network_leave_their_start(networks):
    means = [read_weights(file)["bn1.running_mean"].numpy() for file in networks]
    assert all(np.abs(mean).max() > 0 for mean in means)
