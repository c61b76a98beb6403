"""Runs that several processes share: the numbers of one process, one writer, stopped and resumed together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe.api import ImageFiles, Split
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, DeviceError, Interrupted
from kdpipe.core.files import read_json
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Augmentation, DataSpec, Protocol
from kdpipe.engine.batches import Batches, Normalise
from kdpipe.engine.launch import launch
from kdpipe.engine.prepare import prepare
from kdpipe.engine.processes import ALONE, Processes
from kdpipe.engine.sample import sample
from kdpipe.engine.state import StateStore
from kdpipe.engine.stop import Stop
from kdpipe.engine.weights import read_weights
from tests.engine.test_ondisk import picture
from tests.engine.tiny import PLAIN, SPEC, history, make_run
from tests.engine.together import CPU, Together, make_teacher, train, trainer
from tests.pausing import Pauses, asked_to_stop
from tests.workflow.conftest import eventually

ROOT = Path(__file__).parents[2]
KINDS = {"recipe": registry.recipes, "method": registry.methods, "part": registry.parts}
UNEVEN = {"batch_size": 29, "epochs": 2, "lr": 0.001}  # parts of 14 and 15 images
OBJECTIVES = [(kind, name) for kind, found in KINDS.items() for name in found.names()]
NETWORKS = {  # the smallest of each file
    registry.models.file(name): name
    for name, _ in sorted(registry.models.items(), key=lambda m: -m[1].params_at(10))
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The prepared data set, and a trained teacher."""
    root = tmp_path_factory.mktemp("several")
    prepare(SPEC, None, root / SPEC.folder)
    make_teacher(root / "teacher", root / SPEC.folder)
    return root / SPEC.folder, root / "teacher"


def bits(root):
    return {k: v.numpy().tobytes() for k, v in read_weights(RunPaths(root).model).items()}


# --- the numbers of one process -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    """Two processes that wait for work."""
    with Together(2) as together:
        yield together


@pytest.fixture(scope="module")
def three():
    """Three of them."""
    with Together(3) as together:
        yield together


@pytest.mark.parametrize(("kind", "name"), OBJECTIVES)
def test_two_processes_train_what_one_does(kind, name, places, two, tmp_path):
    one, both = (RunPaths(tmp_path / which) for which in ("one", "both"))
    train(ALONE, (kind, name, UNEVEN), one.root, *places)
    two(train, (kind, name, UNEVEN), both.root, *places)
    rows, theirs = history(one), history(both)
    assert len(rows) == len(theirs)
    for row, other in zip(rows, theirs, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"seconds"}:
            assert float(other[key] or 0) == pytest.approx(float(row[key] or 0), rel=2e-3, abs=1e-5), key
    shares = [torch.load(p.root / "gradients.pt") for p in (one, both)]
    for number, grads in enumerate(zip(*shares, strict=True)):
        # rounding moves an activation past the kink of a ReLU now and then, and later steps start from there
        close(*grads, 1e-2 if number else 2e-3, largest(grads[0]))
    close(read_weights(one.model), read_weights(both.model), 1e-2)
    if kind != "part":
        with np.load(one.predictions) as mine, np.load(both.predictions) as its:
            assert mine.keys() == its.keys()
            close(*({k: torch.from_numpy(found[k]) for k in found} for found in (mine, its)), 1e-3)
    assert [read_json(p.provenance)["processes"] for p in (one, both)] == [1, 2]
    assert not both.state.exists()


def largest(tensors):
    """The largest number of all, which those that ought to be zero are held against too."""
    return max(float(t.abs().max()) for t in tensors.values())


def close(tensors, others, tolerance, scale=None):
    """Whether tensors agree, as a share of `scale`, or of the largest number in each."""
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        far = (tensor.double() - others[name].double()).abs().max()
        assert far <= tolerance * (scale or tensor.double().abs().max()), name


def two_steps(processes, name, root):
    """Two steps of a network, in float64 and by a loss that relates the samples of a batch."""
    torch.manual_seed(0)
    spec = registry.models.get(name)
    side = spec.side if spec.fixed else 16
    model = processes.shared(spec.build(5, 3)).double()
    images, labels = torch.randn(7, 3, side, side, dtype=torch.float64), torch.arange(7) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    for step in range(2):
        optimizer.zero_grad()
        logits = processes.whole(model(processes.mine(images, 7)), 7)
        related = F.normalize(logits) @ F.normalize(logits).T
        loss = F.cross_entropy(logits, labels) + (related - torch.eye(7)).square().mean()
        loss.backward()
        processes.average([p.grad for p in model.parameters()])
        if not step:
            first = {n: p.grad.clone() for n, p in model.named_parameters()} | {"loss": loss.detach()}
        optimizer.step()
    if processes.first:
        torch.save((first, model.state_dict()), root / str(processes.size))


@pytest.mark.parametrize("name", sorted(NETWORKS.values()))
def test_gradients_and_steps_agree_in_float64(name, three, tmp_path):
    """Batch norms and dropout included; 7 samples are 2 + 2 + 3."""
    two_steps(ALONE, name, tmp_path)
    three(two_steps, name, tmp_path)
    (gradients, weights), (theirs, its) = (torch.load(tmp_path / count) for count in ("1", "3"))
    close(gradients, theirs, 1e-10, largest(gradients))
    close(weights, its, 1e-7, largest(weights))  # after steps that rounding has gone through


# --- what the processes exchange ----------------------------------------------------------------------


def exchange(processes, root):
    """Rows, several times over; means; agreement."""
    rows = torch.arange(10.0)[:, None]
    twice = torch.cat([rows, rows + 100])
    assert torch.equal(processes.whole(processes.mine(rows, 10), 10), rows)
    assert torch.equal(processes.whole(processes.mine(twice, 10), 10), twice)
    pixels = rows.to(torch.uint8)
    assert torch.equal(processes.whole(processes.mine(pixels, 10), 10), pixels)
    half = rows.to(torch.bfloat16)
    assert torch.equal(processes.whole(processes.mine(half, 10), 10), half)
    rank = float(processes.rank)
    tensors = [torch.full((2, 3), rank), torch.full((1,), 10 * rank)]
    mean, nothing = processes.mean([tensors[0], None])
    assert nothing is None
    assert torch.equal(mean, torch.ones(2, 3))
    assert torch.equal(tensors[0], torch.full((2, 3), rank)), "what was given stays as it is"
    processes.average(tensors)
    assert torch.equal(tensors[1], torch.tensor([10.0]))
    assert processes.any(processes.rank == 1)
    assert not processes.any(False)
    found = processes.in_turn(lambda: (root / "made").exists() or (root / "made").touch())
    assert found is (None if processes.first else True)


def test_exchange(three, tmp_path):
    three(exchange, tmp_path)


def deal(processes, names, root):
    """Batches of images that lie in files."""
    protocol = Protocol(lr=0.1, epochs=1, batch_size=3, augmentation=(Augmentation(name="resized_crop"),))
    files = ImageFiles(root, np.array([os.fsencode(n) for n in names]), side=16)
    normalise = Normalise((0.5,) * 3, (0.25,) * 3, CPU)
    dealt = Batches(
        Split(files, np.arange(7)), normalise, protocol, 7, CPU, [()], workers=0, processes=processes
    )
    torch.save([(b.images, *b.views, b.index) for b in dealt.epoch(1)], root / f"dealt-{processes.size}")


def test_images_in_files_are_decoded_by_all_and_dealt_whole(two, tmp_path):
    names = [f"{number}.png" for number in range(7)]
    for number, name in enumerate(names):
        picture(number, 20 + number, 30).save(tmp_path / name)
    deal(ALONE, names, tmp_path)
    two(deal, names, tmp_path)
    for one, two in zip(*(torch.load(tmp_path / f"dealt-{count}") for count in (1, 2)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# --- stopped, resumed, one writer ---------------------------------------------------------------------


RESUMED = ["standard", "soteacher", "swa"]  # weights; a memory of each sample; averages


def stop_and_resume(processes, root, places):
    """Train in one go; and stopped after 6 batches, by a sign to the second process alone."""
    for name in RESUMED:
        _stop_and_resume(processes, name, root / name, places)


def _stop_and_resume(processes, name, root, places):
    trainer("recipe", name, root / "whole", *places, processes, epochs=3).train()
    stopped = trainer("recipe", name, root / "parts", *places, processes, Stop(), epochs=3)
    step, left = stopped.step, [6]

    def counted(batch, at):
        left[0] -= 1
        stopped.stop.requested = not processes.first and left[0] == 0
        return step(batch, at)

    stopped.step = counted
    with pytest.raises(Interrupted):
        stopped.train()
    assert left == [0]
    assert (root / "parts" / "state").is_dir()
    trainer("recipe", name, root / "parts", *places, processes, epochs=3).train()


def test_all_stop_at_the_same_step_and_resume_to_the_same_bits(places, two, tmp_path):
    two(stop_and_resume, tmp_path, places)
    for root in (tmp_path / name for name in RESUMED):
        assert bits(root / "whole") == bits(root / "parts")
        whole, parts = (
            [{**r, "seconds": 0} for r in history(RunPaths(root / w))] for w in ("whole", "parts")
        )
        assert whole == parts


def replay(processes, root, places):
    """A teacher's epoch whose weights were not kept."""
    run, paths = make_run("recipe", "standard", epochs=3, **PLAIN), RunPaths(root)
    taught = trainer("recipe", "standard", root, *places, processes, epochs=3)
    taught.keep = (2,)
    taught.train()
    processes.wait()
    kept = paths.checkpoint(2)
    before = kept.read_bytes()
    processes.wait()
    if processes.first:
        kept.unlink()
    processes.wait()
    sample(run, paths, taught.prepared, 2, CPU, processes=processes)
    processes.wait()
    assert kept.read_bytes() == before


def test_an_epoch_is_replayed_together(places, two, tmp_path):
    two(replay, tmp_path, places)
    assert RunPaths(tmp_path).sampled("epoch-0002").predictions.is_file()


def test_a_batch_smaller_than_the_processes_is_one_message(places, tmp_path):
    class Many(Processes):
        size = 11

    with pytest.raises(ConfigError, match="last batch holds 10 images for 11 processes"):
        trainer("recipe", "standard", tmp_path, *places, Many(CPU))


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Scikit-learn's digits, prepared: the processes look the data set up by themselves."""
    spec = registry.datasets.get("digits")
    folder = tmp_path_factory.mktemp("digits") / spec.folder
    prepare(spec, None, folder)
    return folder


def digits_run(**changes):
    run = make_run("recipe", "standard", **PLAIN, **changes)
    data = DataSpec(dataset="digits", revision=registry.datasets.get("digits").revision, train_samples=200)
    return run.model_copy(update={"spec": run.spec.model_copy(update={"data": data}), "gpus": 2})


def command(run, folder, data, *more, path=str(ROOT)):
    """Start `kdpipe train`; modules are looked for in `path` first."""
    words = ["train", "--run", run.model_dump_json(), "--data", str(data), "--out", str(folder)]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kdpipe",
            *words,
            "--log",
            str(folder / "train.log"),
            "--device",
            "cpu",
            *more,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def journalled(folder):
    """Epochs of the metrics that the journal holds."""
    journal = RunPaths(folder).journal
    return journal.read_text().count('"metrics"') if journal.is_file() else 0


def waiting(run, folder, data):
    """Start a training; it, and its first process, which waits after an epoch."""
    pauses = Pauses(folder.with_name("pauses"), {folder.name: 0})
    started = command(run, folder, data, path=pauses.path)
    process, _ = eventually(lambda: pauses.waiting(folder.name) or started.poll())
    return started, process


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run that two processes have trained without a break."""
    folder = tmp_path_factory.mktemp("whole")
    done = command(digits_run(epochs=4), folder, digits)
    told = done.communicate()[1]
    assert done.returncode == 0, told
    return folder


def test_one_process_writes(whole):
    assert (whole / "train.log").read_text().count("epoch 1/4") == 1
    assert journalled(whole) == 4
    assert read_json(RunPaths(whole).provenance)["processes"] == 2
    assert read_json(RunPaths(whole).spec)["id"] == digits_run(epochs=4).id
    assert not list(whole.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_the_state_and_the_same_command_goes_on(number, whole, digits, tmp_path):
    run, folder = digits_run(epochs=4), tmp_path / "run"
    stopped, waits = waiting(run, folder, digits)
    stopped.send_signal(number)
    eventually(lambda: asked_to_stop(waits))
    os.kill(waits, signal.SIGCONT)
    told = stopped.communicate()[1]
    assert stopped.returncode == 75, told
    assert told.count("error: ") == 1
    assert "run it again" in told
    assert "Traceback" not in told
    assert RunPaths(folder).state.is_dir()
    assert not RunPaths(folder).status.exists()
    again = command(run, folder, digits)
    told = again.communicate()[1]
    assert again.returncode == 0, told
    assert bits(whole) == bits(folder)
    assert "goes on after epoch" in (folder / "train.log").read_text()


def test_processes_stop_when_the_one_that_started_them_is_killed(digits, tmp_path):
    folder = tmp_path / "run"
    started, waits = waiting(digits_run(epochs=500), folder, digits)
    started.kill()
    os.kill(waits, signal.SIGCONT)
    started.communicate()  # to the end of the others, which write there too
    with StateStore(RunPaths(folder).state, "any").lock(0):  # they held it until their state was saved
        assert "interrupted" in (folder / "train.log").read_text()


def test_an_error_is_told_once(digits, tmp_path):
    run = digits_run(epochs=1)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    done = command(run, tmp_path / "run", digits, "--start", str(broken))
    told = done.communicate()[1]
    assert done.returncode == 2, told
    assert told.count("error: ") == 1
    assert str(broken) in told
    assert "Traceback" not in told
    assert "torch" not in told


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_fewer_gpus_than_asked_for_are_one_message(device, tmp_path):
    run = digits_run().model_copy(update={"gpus": 4096})
    with pytest.raises(DeviceError, match="asks for 4096 GPUs, and there are") as told:
        launch(run, device, None)
    assert "set gpus to" in str(told.value)
    assert "protocol 'test'" in str(told.value)
