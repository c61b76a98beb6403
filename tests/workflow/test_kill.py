"""kill -9 at several moments, then the same command: the bits of an undisturbed run."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from kdpipe.core.paths import RunPaths
from kdpipe.engine.weights import read_weights
from tests.engine.tiny import SPEC, make_run
from tests.workflow.conftest import ROOT

pytestmark = pytest.mark.slow

TRAIN = """
import sys
from pathlib import Path
from kdpipe.core import registry
from kdpipe.cli import main
from tests.engine.tiny import SPEC
registry.datasets.names()
registry.datasets._found["corners"] = SPEC
registry.datasets._files["corners"] = Path(sys.modules[SPEC.read.__module__].__file__)
main()
"""


def start(run, folder, data):
    """Start `kdpipe train` in a process of its own."""
    command = [sys.executable, "-c", TRAIN, "train", "--run", run.model_dump_json(), "--data", str(data)]
    return subprocess.Popen(
        [*command, "--out", str(folder), "--log", str(folder / "train.log")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def journalled(paths):
    """How many epochs the journal knows."""
    return paths.journal.read_text().count('"metrics"') if paths.journal.is_file() else 0


def test_killed_again_and_again(prepared_folder, tmp_path):
    run = make_run("recipe", "soteacher", epochs=6)
    whole, parts = RunPaths(tmp_path / "whole"), RunPaths(tmp_path / "parts")
    for paths in (whole, parts):
        paths.root.mkdir()
    assert start(run, whole.root, prepared_folder).wait() == 0
    for moment in ("started", 1, 2, 4):
        training = start(run, parts.root, prepared_folder)
        while training.poll() is None:
            begun = parts.journal.is_file()
            if (begun and journalled(parts) >= moment) if isinstance(moment, int) else begun:
                break
            time.sleep(0.002)
        assert training.poll() is None, "it ended before it could be killed"
        training.kill()
        training.wait()
        assert not parts.status.exists()
    assert start(run, parts.root, prepared_folder).wait() == 0
    ours, theirs = read_weights(parts.model), read_weights(whole.model)
    assert ours.keys() == theirs.keys()
    assert all(ours[k].numpy().tobytes() == theirs[k].numpy().tobytes() for k in ours)
    assert journalled(parts) == 6
    assert "goes on after epoch" in (parts.root / "train.log").read_text()
    assert not parts.state.exists()


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory):
    from kdpipe.engine.prepare import prepare

    folder = tmp_path_factory.mktemp("data") / SPEC.folder
    prepare(SPEC, None, folder)
    return folder
