"""`kdpipe pack`: its members fail, are killed and are stopped each for itself, and give undisturbed bits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kdpipe.core.paths import Results
from kdpipe.engine.kept import Kept
from kdpipe.engine.prepare import load, prepare
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import read_weights
from kdpipe.plan.plan import Plan, PlannedRun
from tests.engine.tiny import SPEC, make_run
from tests.pausing import Pauses, asked_to_stop, state_of
from tests.workflow.conftest import ROOT, eventually

pytestmark = pytest.mark.slow

EPOCHS = 8

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


def journalled(paths):
    """How many epochs the journal knows."""
    return paths.journal.read_text().count('"metrics"') if paths.journal.is_file() else 0


@dataclass
class Packed:
    """Some runs of the tiny data set, their plan, and an undisturbed copy of each.

    Attributes:
        root: an empty folder.
        whole: results of the same runs, each trained alone and undisturbed.
    """

    root: Path
    whole: Results

    def __post_init__(self):
        self.results = Results(self.root / "results")
        prepare(SPEC, None, self.results.data(SPEC.folder))
        self.runs = {run.name: run for run in RUNS}
        planned = {name: PlannedRun(run, None, SPEC.folder) for name, run in self.runs.items()}
        lost = PlannedRun(TAUGHT, teacher="lost", data=SPEC.folder)  # its teacher's weights are not there
        self.plan = self.root / "plan.json"
        self.plan.write_text(json.dumps(Plan({**planned, TAUGHT.name: lost}).to_json()))
        self.marker = self.results.packs / "p.done"
        self.marked = ["--marker", str(self.marker), "--attempts", "2"]

    def start(self, *options, names=(), cpus=3, waiting=()):
        """Start a pack, of which some members wait after an epoch."""
        self.pauses = Pauses(Path(tempfile.mkdtemp(dir=self.root), "pauses"), dict.fromkeys(waiting, 0))
        command = [sys.executable, "-c", TRAIN, "pack", *(names or self.runs), "--plan", str(self.plan)]
        command += ["--results", str(self.results.root), "--device", "cpu", "--cpus", str(cpus), *options]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": self.pauses.path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def waiting(self, pack, names):
        """The processes of members that wait, once all of them do."""

        def found():
            assert pack.poll() is None, pack.communicate()[0]
            processes = [self.pauses.waiting(name) for name in names]
            return all(processes) and [process for process, _ in processes]

        return eventually(found)

    def stop(self, pack, names, number):
        """Ask a pack to stop whose members wait; what it prints."""
        members = self.waiting(pack, names)
        pack.send_signal(number)
        eventually(lambda: all(map(asked_to_stop, members)))
        go_on(members)
        return pack.communicate()[0]

    def same_bits(self, name):
        """Whether a member's weights are those of the undisturbed training."""
        ours, theirs = (
            read_weights(place.run(name).finished / "model.safetensors")
            for place in (self.results, self.whole)
        )
        return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)

    def resumed(self, name):
        """Whether a member went on from its saved state."""
        return "goes on after epoch" in self.results.run(name).log.read_text()


RUNS = [make_run("recipe", "standard", epochs=EPOCHS, seed=seed) for seed in range(3)]
TAUGHT = make_run("method", "kd", epochs=EPOCHS)


def go_on(processes):
    """End their waiting."""
    for process in processes:
        os.kill(process, signal.SIGCONT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    results = Results(tmp_path_factory.mktemp("whole"))
    prepare(SPEC, None, results.data(SPEC.folder))
    data = load(results.data(SPEC.folder))
    for run in RUNS:
        kept = Kept(run, results.run(run.name), [])
        Trainer(run, kept.paths, data, [], torch.device("cpu"), observers=[kept]).train()
    return results


@pytest.fixture
def packed(tmp_path, whole):
    return Packed(tmp_path, whole)


def test_undisturbed(packed):
    """Two at a time: the bits of runs that are trained alone, in place, each with its own log."""
    pack = packed.start(cpus=2)
    told, _ = pack.communicate()
    assert pack.returncode == 0, told
    assert told.count(": finished\n") == 3
    for name in packed.runs:
        paths = packed.results.run(name)
        assert packed.same_bits(name)
        assert json.loads(paths.status.read_text())["status"] == "finished"
        assert json.loads(paths.spec.read_text())["name"] == name
        assert json.loads(paths.provenance.read_text())["threads"] == 1
        assert journalled(paths) == EPOCHS
        log = paths.log.read_text()
        assert log.count(": epoch ") == EPOCHS
        lines = [line for line in log.splitlines() if not re.match(r"W\d{4} ", line)]  # PyTorch's, compiling
        assert all(line.startswith(packed.runs[name].label) for line in lines)
    again = packed.start()
    told, _ = again.communicate()
    assert again.returncode == 0
    assert told.count(": finished before\n") == 3


def test_one_is_killed_and_one_fails(packed):
    """Neighbours finish; the pack comes back for the killed one, and leaves the one that cannot mend."""
    names = [*packed.runs, TAUGHT.name]
    victim = list(packed.runs)[1]
    pack = packed.start(*packed.marked, names=names, cpus=4, waiting=packed.runs)
    first, killed, third = packed.waiting(pack, packed.runs)
    os.kill(killed, signal.SIGKILL)
    go_on([first, third])
    told, _ = pack.communicate()
    assert pack.returncode == 1, told
    assert f"{victim}: killed by signal 9" in told
    assert f"{TAUGHT.name}: failed, as it will again" in told
    assert "error: " in packed.results.run(TAUGHT.name).log.read_text()
    assert not packed.marker.exists()
    for name in packed.runs.keys() - {victim}:
        assert packed.same_bits(name)
        assert not packed.results.run(name).status.exists()  # left to the job that puts it in place

    again = packed.start(*packed.marked, names=names)
    told, _ = again.communicate()
    assert again.returncode == 0, told  # what is left cannot be mended by another attempt
    assert told.count(": finished before") == 2
    assert packed.resumed(victim)
    assert all(map(packed.same_bits, packed.runs))
    assert f"{victim}: finished\n" in packed.marker.read_text()


def test_a_stop_is_passed_on(packed):
    """Running members save their state, waiting ones are not started; the same command goes on."""
    first, second, third = packed.runs
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        pack = packed.start(*packed.marked, cpus=2, waiting=[first, second])
        told = packed.stop(pack, [first, second], number)
        assert pack.returncode == 75, told
        assert told.count(": interrupted\n") == 3
        assert packed.results.run(first).state.is_dir()
        assert not packed.results.run(third).root.exists()
        assert not packed.marker.exists()
    again = packed.start(*packed.marked)
    told, _ = again.communicate()
    assert again.returncode == 0, told
    assert packed.resumed(first)
    assert packed.resumed(second)
    assert all(map(packed.same_bits, packed.runs))


def test_the_last_attempt_passes_on_what_is_finished(packed):
    first, *others = packed.runs
    pack = packed.start(names=[first])
    told, _ = pack.communicate()
    assert pack.returncode == 0, told
    pack = packed.start(*packed.marked, "--attempt", "2", waiting=others)
    told = packed.stop(pack, others, signal.SIGTERM)
    assert pack.returncode == 0, told
    assert f"{first}: finished before" in packed.marker.read_text()
    assert packed.marker.read_text().count(": interrupted") == 2


def test_members_do_not_outlive_their_pack(packed):
    pack = packed.start(waiting=packed.runs)
    members = packed.waiting(pack, packed.runs)
    pack.kill()
    pack.wait()
    go_on(members)
    eventually(lambda: all(state_of(member) in ("", "Z") for member in members))
    pack.communicate()
    again = packed.start()
    told, _ = again.communicate()
    assert again.returncode == 0, told
    assert all(map(packed.resumed, packed.runs))
    assert all(map(packed.same_bits, packed.runs))


def test_an_unknown_run_is_one_message(packed):
    pack = packed.start(names=[f"{RUNS[0].name}x"])
    told, _ = pack.communicate()
    assert pack.returncode == 2
    assert "did you mean" in told
    assert "Traceback" not in told


def test_what_is_forked_has_one_thread_and_no_gpu():
    """A fork copies the calling thread alone, and whoever used a GPU cannot be forked and use it."""
    code = """
import os
import kdpipe.plan.load, kdpipe.plan.imported, kdpipe.engine.kept, kdpipe.engine.pack
from kdpipe.cli import _import_training
_import_training()
import torch
print(len(os.listdir("/proc/self/task")), torch.cuda.is_initialized())
"""
    env = {key: value for key, value in os.environ.items() if not key.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "False"], done.stderr
