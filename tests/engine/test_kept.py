"""Finished results survive the deletion of a job's outputs, and come back only where they still hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from kdpipe.core import fingerprint
from kdpipe.core.files import read_json
from kdpipe.core.paths import RunPaths
from kdpipe.engine import kept as module
from kdpipe.engine.kept import Kept
from kdpipe.engine.train import Trainer
from tests.engine.tiny import make_run
from tests.workflow.conftest import ROOT

RUN = make_run("recipe", "standard", epochs=1)


@pytest.fixture
def trained(prepared, tmp_path):
    """A finished run whose kept results are watched over, and what it was made from."""
    meta = tmp_path / "data" / "meta.json"
    meta.parent.mkdir()
    meta.write_text("{}")
    kept = Kept(RUN, RunPaths(tmp_path / "run"), [meta])
    Trainer(RUN, kept.paths, prepared, [], torch.device("cpu"), observers=[kept]).train()
    return kept


def test_second_links_take_no_room_and_outlive_the_first(trained):
    before = {file: file.read_bytes() for file in trained.results}
    assert {file.name for file in before} > {"model.safetensors", "predictions.npz", "status.json"}
    assert all(file.stat().st_nlink == 2 for file in before)
    for file in before:
        os.utime(file, (1, 1))
    trained.withdraw()
    assert not any(file.exists() for file in before)
    assert trained.usable()
    trained.paths.state.mkdir()  # as a kill leaves it that comes when all else is done
    trained.put_back()
    assert not trained.paths.state.exists()
    assert {file: file.read_bytes() for file in trained.results} == before
    assert min(file.stat().st_mtime for file in before) > time.time() - 60  # newer than any input


def test_copies_where_there_are_no_hard_links(trained, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(module.os, "link", refuse)
    before = trained.paths.model.read_bytes()
    trained.ended("finished")
    assert trained.paths.model.stat().st_nlink == 1
    trained.withdraw()
    assert trained.usable()
    trained.put_back()
    assert trained.paths.model.read_bytes() == before


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_what_did_not_finish_is_not_kept(trained, status):
    kept = Kept(RUN, RunPaths(trained.paths.root.parent / "other"), [])
    kept.ended(status)
    assert not kept.usable()
    assert not kept.paths.finished.exists()


def test_a_failure_to_keep_is_a_warning(trained, capsys):
    trained.paths.history.unlink()
    trained.ended("finished")
    assert "warning" in capsys.readouterr().err
    assert not trained.usable()


@pytest.mark.parametrize("name", ["model.safetensors", "predictions.npz", "history.csv", "status.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "lose"])
def test_damage_is_noticed(trained, name, harm, capsys):
    file = trained.paths.finished / name
    content = bytearray(file.read_bytes())
    if harm == "lose":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert not trained.usable()
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run": 1}'])
def test_a_damaged_record_is_noticed(trained, text, capsys):
    (trained.paths.finished / "record.json").write_text(text)
    assert not trained.usable()
    assert "not used" in capsys.readouterr().err


def test_other_code_another_run_and_other_inputs_are_noticed(trained, monkeypatch, capsys):
    other = make_run("recipe", "standard", epochs=1, seed=1)
    assert not Kept(other, trained.paths, trained.inputs).usable()
    assert "another run" in capsys.readouterr().err
    trained.inputs[0].write_text('{"other": 1}')
    assert not trained.usable()
    assert "data or its teacher" in capsys.readouterr().err
    trained.inputs[0].write_text("{}")
    assert trained.usable()
    record = trained.paths.finished / "record.json"
    values = read_json(record)
    assert values["code"] == fingerprint.fingerprint(fingerprint.code_of(RUN))
    for change in ({"code": "0" * 12}, {"sources": ["kdpipe/engine/gone.py"]}, {"sources": []}):
        record.write_text(json.dumps({**values, **change}))
        assert not trained.usable()
        assert "other code" in capsys.readouterr().err


def test_a_finished_run_is_put_back_without_torch(trained, tmp_path):
    """`kdpipe train` on it: the same files, no torch, and a spec written anew."""
    model = trained.paths.model.read_bytes()
    trained.withdraw()
    command = ["train", "--run", RUN.model_dump_json(), "--out", str(trained.paths.root)]
    command += ["--data", str(trained.inputs[0].parent)]
    code = "import sys\nfrom kdpipe.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "put back" in done.stderr
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert trained.paths.model.read_bytes() == model
    assert read_json(trained.paths.spec)["id"] == RUN.id


def test_a_run_that_its_pack_did_not_finish_is_an_error_with_its_log(tmp_path):
    kept = Kept(RUN, RunPaths(tmp_path), [])
    assert "not trained" in str(kept.unfinished())
    kept.paths.log.write_text("".join(f"line {n}\n" for n in range(99)) + "error: the cause\n")
    told = str(kept.unfinished())
    assert "error: the cause" in told
    assert "line 50" not in told
    assert kept.unfinished().exit_code == 2
