"""The resume state survives damage, and one run is trained by one process."""

import subprocess
import sys

import pytest
import torch

from kdpipe.core.errors import CheckpointError, DeviceError, ResultsError
from kdpipe.engine.device import pick_device
from kdpipe.engine.state import StateStore
from kdpipe.engine.weights import load_weights, save_weights


def state(epoch, step=0):
    return {"epoch": epoch, "step": step, "x": torch.full((3,), float(epoch))}


def test_the_newest_state_is_loaded(tmp_path):
    store = StateStore(tmp_path / "state", "id")
    assert store.load() is None
    for epoch in (1, 2, 3):
        store.save(state(epoch))
    assert StateStore(tmp_path / "state", "id").load()["epoch"] == 3


def test_steps_within_an_epoch_are_newer(tmp_path):
    store = StateStore(tmp_path / "state", "id")
    store.save(state(2))
    store.save(state(2, step=5))
    assert StateStore(tmp_path / "state", "id").load()["step"] == 5


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, damage):
    store = StateStore(tmp_path / "state", "id")
    store.save(state(1))
    store.save(state(2))
    newest = tmp_path / "state" / "b.state"
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncate": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    again = StateStore(tmp_path / "state", "id")
    assert again.load()["epoch"] == 1
    again.save(state(2))  # overwrites the damaged one, not the good one
    assert StateStore(tmp_path / "state", "id").load()["epoch"] == 2


def test_another_runs_state_is_ignored(tmp_path):
    StateStore(tmp_path / "state", "id").save(state(1))
    assert StateStore(tmp_path / "state", "other").load() is None


def test_a_second_process_is_turned_away(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from kdpipe.engine.state import StateStore\n"
        f"with StateStore(Path({str(tmp_path / 'state')!r}), 'id').lock():\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                ResultsError, match=rf"another process is training this run: process {holder.pid} on \S"
            ),
            StateStore(tmp_path / "state", "id").lock(0.3),
        ):
            pass
        holder.kill()
    with StateStore(tmp_path / "state", "id").lock(0):  # a dead holder holds nothing
        pass


def test_weights_round_trip_and_refuse_what_does_not_fit(tmp_path):
    path = tmp_path / "m.safetensors"
    layer, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_weights(layer, path)
    load_weights(other, path)
    assert torch.equal(layer.weight, other.weight)
    with pytest.raises(CheckpointError, match=r"another network: .*weight"):
        load_weights(torch.nn.Linear(4, 2), path)
    with pytest.raises(CheckpointError, match="another network"):
        load_weights(torch.nn.BatchNorm1d(3), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(other, path)
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(other, tmp_path / "nothing")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "tpu:0", ""])
def test_a_device_that_is_none_is_refused(name):
    with pytest.raises(DeviceError):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_one_message():
    with pytest.raises(DeviceError, match="GPU was asked for and none was found"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"
