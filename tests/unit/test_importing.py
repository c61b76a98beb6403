"""Checkpoints of other projects: each format gives the same logits, each malformed one its own message."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdpipe.core.errors import CheckpointError
from kdpipe.core.files import sha256
from kdpipe.core.paths import ImportPaths, RunPaths
from kdpipe.core.registry import datasets, models
from kdpipe.engine.batches import preprocessing
from kdpipe.engine.importing import Inert, adopt, import_checkpoint, read_checkpoint
from kdpipe.engine.predict import predict
from kdpipe.engine.prepare import Prepared, load, prepare, select
from kdpipe.engine.weights import identity, load_weights
from kdpipe.evaluation.evaluate import evaluate, load_predictions
from kdpipe.plan.imported import imported_run

State = dict[str, Tensor]
CLASSES, CHANNELS = 10, 1
SETTINGS = argparse.Namespace(
    model="resnet8", learning_rate=0.05, epochs=[150, 180], folder=Path("save"), rates=np.ones(2)
)


def network(name: str = "resnet8", classes: int = CLASSES, seed: int = 0) -> nn.Module:
    """A network with random weights and batch-norm statistics, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = models.get(name).build(classes, CHANNELS)
        for key, value in model.state_dict().items():
            if "running" in key or ("bn" in key and value.is_floating_point()):
                value.copy_(0.5 + torch.rand(value.shape))
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    images = torch.randn(4, CHANNELS, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out: Tensor = model(images)
    return out


def under(prefix: str, state: State) -> State:
    return OrderedDict((prefix + key, value) for key, value in state.items())


def optimizer(model: nn.Module) -> dict[str, Any]:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9).state_dict()


def renamed(state: State, old: str, new: str) -> State:
    return OrderedDict((key.replace(old, new), value) for key, value in state.items())


def without_counters(state: State) -> State:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def rep_epoch(state: State) -> Any:
    return {"epoch": 240, "model": state, "accuracy": torch.tensor(79.4), "optimizer": optimizer(network())}


def rep_last(state: State) -> Any:
    return {"opt": SETTINGS, "model": state, "optimizer": optimizer(network())}


def md_distiller(state: State) -> Any:
    inside = under("student.", state) | under("teacher.", network("resnet14").state_dict())
    inside |= {"crd_loss.memory": torch.zeros(3)}
    return {"epoch": 240, "model": under("module.", inside), "best_acc": np.float64(79.4)}


def sskd_student(state: State) -> Any:
    inside = under("backbone.", state) | {"proj_head.0.weight": torch.zeros(2, 2)}
    return {"epoch": 200, "state_dict": inside, "best_acc": 75.0}


FORMATS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "RepDistiller, an epoch": rep_epoch,
    "RepDistiller, the last epoch": rep_last,
    "mdistiller, a student": lambda state: {"model": state},
    "mdistiller, a distiller": md_distiller,
    "DHKD, a teacher": lambda state: {"args": SETTINGS, "model": under("module.", state), "optimizer": {}},
    "SSKD, a teacher": lambda state: {"epoch": 240, "state_dict": state, "acc": 79.6},
    "SSKD, a student": sskd_student,
    "SSKD, a teacher with its head": lambda state: sskd_student(state)["state_dict"],
    "OFD": lambda state: {"state_dict": under("module.", state), "epoch": 200},
    "ReviewKD": lambda state: under("student.", state) | {"abfs.0.conv1.weight": torch.zeros(1)},
    "compiled": lambda state: {"net": under("_orig_mod.", state)},
    "of an old PyTorch": lambda state: {"model": without_counters(state)},
}


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., tuple[nn.Module, dict[str, Any]]]:
    """Imports a file; gives the network with the stored weights, and the origin."""

    def run(file: Path, name: str = "resnet8", **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        store = ImportPaths(tmp_path / "store" / name)
        spec = models.get(name)
        try:
            origin = import_checkpoint(
                file, spec, "digits", CLASSES, CHANNELS, store, file_hash=identity(file), **options
            )
        except CheckpointError:
            assert not store.root.exists(), "something was stored"
            raise
        model = network(name, seed=1)
        load_weights(model, store.model)
        return model.eval(), origin

    return run


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old file format"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_logits(tmp_path: Path, bring: Any, form: str, old: bool) -> None:
    model = network()
    content = FORMATS[form](model.state_dict())
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=not old)
    imported, origin = bring(tmp_path / "file")
    assert torch.equal(logits(imported), logits(model))
    assert origin["sha256"] == sha256(tmp_path / "file")
    assert origin["file"] == "file"


def test_where_in_the_file_it_lay_is_recorded(tmp_path: Path, bring: Any) -> None:
    torch.save(md_distiller(network().state_dict()), tmp_path / "file")
    _, origin = bring(tmp_path / "file")
    assert (origin["container"], origin["part"]) == ("model", "student.")
    _, origin = bring(tmp_path / "file", "resnet14")
    assert origin["part"] == "teacher."


def test_safetensors(tmp_path: Path, bring: Any) -> None:
    model = network()
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    assert torch.equal(logits(bring(tmp_path / "file.safetensors")[0]), logits(model))


@pytest.mark.parametrize("name", ["file.pth", "file.SafeTensors"])
def test_safetensors_of_another_name(tmp_path: Path, bring: Any, name: str) -> None:
    model = network()
    save_file(model.state_dict(), tmp_path / name)
    assert torch.equal(logits(bring(tmp_path / name)[0]), logits(model))


def test_half_precision_is_widened(tmp_path: Path, bring: Any) -> None:
    model = network().half()
    torch.save(model.state_dict(), tmp_path / "file")
    imported, _ = bring(tmp_path / "file")
    assert torch.equal(logits(imported), logits(model.float()))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("resnet8", "fc.", "linear."),
        ("mobilenetv2", "classifier.0.", "classifier."),  # DHKD, SSKD
        ("vgg8", "classifier.", "classifier.0."),
        ("resnet8", "downsample", "shortcut"),
    ],
)
def test_other_names_are_translated(tmp_path: Path, bring: Any, name: str, old: str, new: str) -> None:
    model = network(name)
    torch.save({"model": renamed(model.state_dict(), old, new)}, tmp_path / "file")
    imported, origin = bring(tmp_path / "file", name)
    assert torch.equal(logits(imported), logits(model))
    assert origin["renamed"]
    assert all(theirs.replace(new, old) == ours for theirs, ours in origin["renamed"].items())


@pytest.mark.slow
def test_torchvisions_own_network(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=CLASSES).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    spec, store = models.get("imagenet_resnet18"), ImportPaths(tmp_path / "store")
    import_checkpoint(
        tmp_path / "resnet18-f37072fd.pth", spec, "digits", CLASSES, 3, store, file_hash="a" * 64
    )
    ours = spec.build(CLASSES, 3).eval()
    load_weights(ours, store.model)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_a_second_import_leaves_the_stored_weights_alone(tmp_path: Path, bring: Any) -> None:
    torch.save(network().state_dict(), tmp_path / "file")
    first = bring(tmp_path / "file")[1]
    stored = tmp_path / "store" / "resnet8" / "model.safetensors"
    before = stored.stat().st_mtime_ns
    assert bring(tmp_path / "file", label="other")[1] == first
    assert stored.stat().st_mtime_ns == before
    stored.write_bytes(stored.read_bytes()[:100])
    bring(tmp_path / "file")  # damaged since: made again
    assert stored.stat().st_mtime_ns != before


def saved(content: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(content, file)


def cut(save: Callable[[Path], None], keep: float) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        save(file)
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * keep)])

    return write


def old_format(file: Path) -> None:
    torch.save(network().state_dict(), file, _use_new_zipfile_serialization=False)


def with_nan() -> State:
    state = network().state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    return state


MALFORMED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a deeper network": (
        saved(network("resnet14").state_dict()),
        "another network: its keys are not those of resnet8: it has besides layer1.1.conv1.weight, "
        "layer1.1.bn1.weight, layer1.1.bn1.bias and 33 more",
    ),
    "a network of another kind": (
        saved(network("wrn_16_1").state_dict()),
        "it lacks bn1.weight|it lacks layer1.0.conv1.weight",
    ),
    "a wider layer": (
        saved(network().state_dict() | {"conv1.weight": torch.zeros(32, 1, 3, 3)}),
        "its shapes are not those of resnet8: conv1.weight is 32 x 1 x 3 x 3 instead of 16 x 1 x 3 x 3",
    ),
    "other classes": (
        saved(network(classes=100).state_dict()),
        r"its classifier \(fc\) has 100 classes, the data set has 10",
    ),
    "a foreign key": (
        saved({"model": network().state_dict() | {"fc2.weight": torch.zeros(1)}}),
        "it has besides fc2.weight",
    ),
    "a key missing": (
        saved({k: v for k, v in network().state_dict().items() if k != "bn1.bias"}),
        "it lacks bn1.bias",
    ),
    "two that fit": (
        saved(under("student.", network().state_dict()) | under("teacher.", network(seed=2).state_dict())),
        r"several networks in the file are a resnet8: 'student' and 'teacher'",
    ),
    "not finite": (saved(with_nan()), "the weights are not finite: layer2.0.conv1.weight"),
    "truncated": (cut(saved(network().state_dict()), 0.7), "truncated or no checkpoint"),
    "truncated, old format": (cut(old_format, 0.7), "truncated or no checkpoint"),
    "empty": (lambda file: file.write_bytes(b""), "the file is empty"),
    "a folder": (Path.mkdir, "it is a folder"),
    "text": (lambda file: file.write_text("version https://git-lfs"), "truncated or no checkpoint\n"),
    "an image": (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n"), "truncated or no checkpoint\n"),
    "a pickle": (lambda file: file.write_bytes(pickle.dumps({"a": 1})), "truncated or no checkpoint\n"),
    "two heads": (
        saved(renamed(network().state_dict(), "fc.", "linear.") | {"head.weight": torch.zeros(10, 64)}),
        "it has besides linear.weight, head.weight",
    ),
    "no tensors": (saved({"epoch": 3, "lr": 0.1}), "holds no state dict: its keys are epoch, lr"),
    "a list": (saved([1, 2]), "holds no state dict: it is a list"),
    "a whole module": (saved(network()), r"asks for 'kdpipe.models.resnet_cifar.ResNet', which may run code"),
    "not there": (lambda file: None, "there is no such file"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_has_its_own_message(tmp_path: Path, bring: Any, case: str) -> None:
    write, message = MALFORMED[case]
    write(tmp_path / "file")
    with pytest.raises(CheckpointError, match=message) as caught:
        bring(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def test_truncated_safetensors(tmp_path: Path, bring: Any) -> None:
    file = tmp_path / "file.safetensors"
    cut(lambda path: save_file(network().state_dict(), path), 0.7)(file)
    with pytest.raises(CheckpointError, match="truncated or no checkpoint"):
        bring(file)


def test_a_part_can_be_chosen(tmp_path: Path, bring: Any) -> None:
    student, teacher = network(), network(seed=2)
    both = under("student.", student.state_dict()) | under("teacher.", teacher.state_dict())
    torch.save({"model": under("module.", both)}, tmp_path / "file")
    imported, _ = bring(tmp_path / "file", part="teacher")
    assert torch.equal(logits(imported), logits(teacher))


def test_a_file_is_one_teacher(tmp_path: Path, bring: Any) -> None:
    both = under("student.", network().state_dict()) | under("teacher.", network(seed=2).state_dict())
    torch.save(both, tmp_path / "file")
    _, origin = bring(tmp_path / "file", part="teacher")
    store = ImportPaths(tmp_path / "store" / "resnet8")
    import_again = (tmp_path / "file", models.get("resnet8"), "digits", CLASSES, CHANNELS, store)
    for part in (None, "teacher"):
        assert import_checkpoint(*import_again, file_hash="", part=part) == origin
    with pytest.raises(CheckpointError, match="one teacher, and of this one the part 'teacher' was imported"):
        import_checkpoint(*import_again, file_hash="", part="student")


def test_a_part_that_is_not_there(tmp_path: Path, bring: Any) -> None:
    torch.save(under("student.", network().state_dict()), tmp_path / "file")
    with pytest.raises(CheckpointError, match="no part 'teacher'; its parts: student"):
        bring(tmp_path / "file", part="teacher")


class Evil:
    """Unpickled, it calls `function`, which would leave a file behind."""

    def __init__(self, function: Any, argument: str) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> Any:
        return self.function, (self.argument,)


class EvilSettings(argparse.Namespace):
    """Pickled as settings whose content would run code when it is set."""

    def __reduce__(self) -> Any:
        return argparse.Namespace, (), {"x": self.x}


@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
@pytest.mark.parametrize("hidden", [False, True], ids=["bare", "within settings"])
@pytest.mark.parametrize("function", [os.system, exec, eval, os.mkdir], ids=lambda f: f.__name__)
def test_code_in_a_file_is_refused_and_nothing_runs(
    tmp_path: Path, bring: Any, function: Any, hidden: bool, save: Any
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "file"
    calls = {os.system: f"touch {marker}", os.mkdir: str(marker)}
    evil = Evil(function, calls.get(function, f"open({str(marker)!r}, 'w').close()"))
    content = {"model": network().state_dict(), "opt": EvilSettings(x=evil) if hidden else evil}
    save(content, file)
    with pytest.raises(CheckpointError) as caught:
        bring(file)
    assert not marker.exists()
    if save is torch.save:
        assert "may run code; nothing of it was loaded" in str(caught.value)


def test_settings_in_a_file_are_inert(tmp_path: Path) -> None:
    torch.save({"opt": SETTINGS, "best": np.float32(0.5)}, tmp_path / "file")
    content = read_checkpoint(tmp_path / "file")
    assert type(content["opt"]) is Inert
    assert type(content["best"]) is Inert
    assert not vars(content["opt"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(datasets.get("digits"), None, folder)
    return load(folder)


def test_an_adopted_teacher_predicts_as_the_file_does(tmp_path: Path, bring: Any, prepared: Prepared) -> None:
    model = network()
    torch.save({"model": model.state_dict()}, tmp_path / "file")
    _, origin = bring(tmp_path / "file")
    run = imported_run(datasets.get("digits"), models.get("resnet8"), origin["sha256"], test_samples=100)
    paths, stored = RunPaths(tmp_path / "run"), tmp_path / "store" / "resnet8" / "model.safetensors"
    adopt(run, paths, prepared, stored, torch.device("cpu"))
    found = load_predictions(paths.predictions)
    splits, normalise = select(prepared, run.spec.data), preprocessing(prepared, torch.device("cpu"))
    wanted = predict(model, splits["test"].images, normalise, run.spec.protocol, torch.device("cpu"))
    assert found.logits.shape == (100, CLASSES)
    assert np.allclose(found.logits, wanted, rtol=1e-4, atol=1e-5)
    assert json.loads(paths.provenance.read_text())["origin"] == origin
    assert json.loads(paths.status.read_text())["status"] == "finished"
    assert 0 <= evaluate(paths)["values"]["top1"] <= 100


def test_weights_that_have_changed_since_are_not_adopted(
    tmp_path: Path, bring: Any, prepared: Prepared
) -> None:
    torch.save(network().state_dict(), tmp_path / "file")
    _, origin = bring(tmp_path / "file")
    run = imported_run(datasets.get("digits"), models.get("resnet8"), origin["sha256"])
    stored = tmp_path / "store" / "resnet8" / "model.safetensors"
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="imported weights are missing or have changed"):
        adopt(run, RunPaths(tmp_path / "run"), prepared, stored, torch.device("cpu"))
    assert not (tmp_path / "run").exists()


def test_the_id_of_an_imported_teacher_follows_the_file_and_the_test_images() -> None:
    data, model = datasets.get("digits"), models.get("resnet8")
    ids = [imported_run(data, model, *rest).id for rest in (("a" * 64,), ("b" * 64,), ("a" * 64, 100))]
    assert len(set(ids)) == 3
    assert imported_run(data, model, "a" * 64).imported == "a" * 64
