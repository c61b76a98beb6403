"""What the drills share: a small project, processes to kill in it, and the table of outcomes.

`make drills` runs the long form (KDPIPE_DRILLS=long) and writes the table; `make test` the quick one.
KDPIPE_DRILL_SEED repeats the random choices of an earlier call, which prints its seed.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdpipe.core.paths import Results, RunPaths
from kdpipe.engine.weights import read_weights
from kdpipe.plan.load import load_plan
from tests.workflow.conftest import ROOT, Project, eventually, make_project

LONG = os.environ.get("KDPIPE_DRILLS") == "long"
SEED = int(os.environ.get("KDPIPE_DRILL_SEED") or random.SystemRandom().randrange(10**6))
TABLE = ROOT / "results" / "drills.md"
STUDY = {
    "pairs": [{"teacher": "resnet8", "student": "resnet8"}],
    "recipes": ["soteacher"],
    "methods": ["scratch", "kd", "ft", "ab"],
    "settings": {"ft": {"part_epochs": 2}, "ab": {"init_epochs": 2}},
    "curves": [{"method": "kd", "epochs": [1]}],
    "chains": [{"models": ["resnet8"], "alphas": [0.3], "steps": 2}],
    "scale": "own",
    "scales": {"own": {"epochs": 3, "train_samples": 200, "test_samples": 100}},
    "metrics": ["top1", "nll", "agreement"],
}


def cases(quick: int, long: int) -> int:
    """How many cases a drill runs: in every test run, and in `make drills`."""
    return long if LONG else quick


# --- outcomes ---------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """The cases of one test: all are run, and the failed ones reported together.

    Attributes:
        rng: where its random choices come from.
    """

    rng: random.Random
    passed: int = 0
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def case(self, what: str) -> Iterator[None]:
        """Count what the block checks."""
        try:
            yield
            self.passed += 1
        except Exception as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")


@pytest.fixture
def outcome(request) -> Iterator[Outcome]:
    """Counts cases; fails when one did, or none was run."""
    found = Outcome(random.Random(f"{SEED} {request.node.name}"))
    yield found
    request.node.user_properties += [("passed", found.passed), ("failed", len(found.failures))]
    told = "\n\n".join(found.failures[:5])
    assert not found.failures, f"seed {SEED}: {len(found.failures)} cases failed\n{told}"
    assert found.passed, "no case was run"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items) -> None:
    """Keep the tests of the finished project on one worker, so that it is made once."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("lab"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    (yield).get_result().fixtures = item.fixturenames


_rows: dict[str, list[float]] = {}  # file -> passed, failed, skipped, seconds


def pytest_report_header() -> str:
    return f"drills: {'long' if LONG else 'quick'}, KDPIPE_DRILL_SEED={SEED}"


def pytest_runtest_logreport(report) -> None:
    if "tests/reliability/" not in report.nodeid:
        return
    row = _rows.setdefault(report.nodeid.split("::")[0], [0, 0, 0, 0.0])
    row[3] += report.duration
    row[2] += report.skipped
    counted = dict(report.user_properties)  # of a test with many cases, known when it is torn down
    if report.when == "teardown" and counted:
        row[0] += counted["passed"]
        row[1] += counted["failed"]
    elif report.failed:
        row[1] += 1
    elif report.when == "call" and "outcome" not in report.fixtures:
        row[0] += report.passed


def pytest_terminal_summary(terminalreporter) -> None:
    if not _rows:
        return
    lines = ["| drill | cases | passed | failed | not run here | seconds |", "|---|---|---|---|---|---|"]
    for file, (passed, failed, skipped, seconds) in _rows.items():
        title = (ROOT / file).read_text().split('"""')[1].split("\n")[0].rstrip(".")
        cells = (title, passed + failed, passed, failed, skipped, f"{seconds:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    terminalreporter.section(f"drills ({'long' if LONG else 'quick'}, seed {SEED})")
    terminalreporter.write_line("\n".join(lines))
    if LONG:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text("\n".join([f"Seed {SEED}.", "", *lines, ""]))


def needs(there: bool, what: str) -> None:
    """Skip where something is absent; in continuous integration, fail."""
    if not there:
        if os.environ.get("CI") == "true":
            pytest.fail(what)
        pytest.skip(what)


# --- processes --------------------------------------------------------------------------------------


@dataclass
class Done:
    """How a command ended; a negative code is the signal that ended it."""

    code: int
    seconds: float
    killed: bool
    text: str


class Driver:
    """Starts kdpipe's commands as forks of one process (`driver.py`)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs = folder, {}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.reliability.driver"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert json.loads(self.process.stdout.readline())["ready"]

    def start(self, argv: list[str], cwd: Path, **how: Any) -> int:
        """Start `kdpipe ARGV` in a folder; its process id."""
        log = self.folder / f"{len(self.logs)}.log"
        log.touch()
        pid = self._ask({"start": [str(a) for a in argv], "cwd": str(cwd), "log": str(log), **how})["pid"]
        self.logs[pid] = log
        return pid

    def wait(self, pid: int, kill_after: float | None = None) -> Done:
        """Wait for a command, or kill it so many seconds after its start."""
        return Done(**self._ask({"wait": pid, "kill_after": kill_after}), text=self.logs[pid].read_text())

    def call(self, argv: list[str], cwd: Path, kill_after: float | None = None, **how: Any) -> Done:
        """Run a command."""
        return self.wait(self.start(argv, cwd, **how), kill_after)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def driver(tmp_path_factory) -> Iterator[Driver]:
    made = Driver(tmp_path_factory.mktemp("driver"))
    yield made
    made.close()


# --- the project ------------------------------------------------------------------------------------


class Lab:
    """A small project with finished runs of each kind, and the commands that make them.

    Args:
        project: its settings.
        driver: runs commands.

    Attributes:
        kinds: what a run is an example of -> its name.
        kept: the epoch whose weights the teacher keeps.
    """

    def __init__(self, project: Project, driver: Driver) -> None:
        self.project, self.driver, self.root = project, driver, project.root
        cwd = Path.cwd()
        os.chdir(self.root)
        try:
            from kdpipe.plan.config import read_config

            self.plan, self.plan_file = load_plan(read_config(Path("config/config.yaml")))
        finally:
            os.chdir(cwd)
        named = {name: p.run for name, p in self.plan.runs.items()}

        def one(word: str, **where: Any) -> str:
            return next(
                n
                for n, run in named.items()
                if word in n and all(getattr(run.spec.teacher, k, None) == v for k, v in where.items())
            )

        teacher = one("teacher_digits_resnet8_soteacher")
        (self.kept,) = self.plan.runs[teacher].keep
        self.kinds = {
            "teacher": teacher,
            "student": one("_kd_", epoch=None),
            "two-stage, a part first": one("_ft_"),
            "two-stage in one run": one("_ab_"),
            "chain": next(n for n, p in self.plan.runs.items() if "self_distillation" in n and p.teacher),
        }

    def at(self, root: Path) -> Lab:
        """The same in another folder, where a copy of it lies."""
        other = copy(self)
        other.root = root
        return other

    def train(self, name: str, out: str | Path | None = None) -> list[str]:
        """`kdpipe train` for a run, as its rule calls it, in this or another folder."""
        planned = self.plan.runs[name]
        argv = ["train", "--run", planned.run.model_dump_json(), "--out", out or f"results/runs/{name}"]
        argv += ["--data", f"results/data/{planned.data}"]
        for file in self.plan.teacher_weights(name):
            argv += ["--teacher", f"results/{file}"]
        if planned.part:
            argv += ["--part", f"results/runs/{planned.part}/model.safetensors"]
        argv += ["--keep", ",".join(map(str, planned.keep)), "--device", "cpu"]
        return [*argv, "--log", f"{out or f'results/runs/{name}'}/train.log"]

    def sample(self, name: str, epoch: int, out: str | Path | None = None) -> list[str]:
        """`kdpipe sample` for a teacher."""
        planned = self.plan.runs[name]
        argv = ["sample", "--run", planned.run.model_dump_json(), "--epoch", str(epoch), "--device", "cpu"]
        return [*argv, "--out", out or f"results/runs/{name}", "--data", f"results/data/{planned.data}"]

    def call(self, argv: list[str], **how: Any) -> Done:
        """Run a kdpipe command in the project."""
        return self.driver.call(argv, self.root, **how)

    def paused(self, argv: list[str], states: int = 1) -> int:
        """A training that has saved so many states and goes no further; its process id."""
        pid = self.driver.start(argv, self.root, pause=states)
        stat = Path(f"/proc/{pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] in "TZ")
        return pid

    def killed(self, argv: list[str], states: int = 1) -> None:
        """Start a training and kill it once it has saved so many states."""
        pid = self.paused(argv, states)
        os.kill(pid, signal.SIGKILL)
        assert self.driver.wait(pid).code == -9

    def made(self, argv: list[str], **how: Any) -> Done:
        """Run a command that has to succeed."""
        done = self.call(argv, **how)
        assert done.code == 0, done.text
        return done

    def finish(self) -> None:
        """Make every run of the plan, teachers first, and its measures."""
        data = next(iter(self.plan.runs.values())).data
        self.made(["prepare", "digits", "--out", f"results/data/{data}"])
        left = list(self.plan.runs)
        while left:
            name = next(n for n in left if self._ready(n))
            left.remove(name)
            self.made(self.train(name))
            for epoch in self.plan.runs[name].keep:
                self.made(self.sample(name, epoch))
                self.made(["evaluate", "--run", f"results/runs/{name}/sampled/epoch-{epoch:04d}"])
            if self.plan.runs[name].run.kind != "part":
                place = self.plan.teacher_place(name)
                teacher = ["--teacher", f"results/{place}"] if place else []
                self.made(["evaluate", "--run", f"results/runs/{name}", *teacher])

    def _ready(self, name: str) -> bool:
        return all((self.root / "results" / stamp).is_file() for stamp in self.plan.teacher_stamps(name))

    @property
    def results(self) -> Results:
        """The results folder."""
        return Results(self.root / "results")


@pytest.fixture(scope="session")
def lab(tmp_path_factory, driver) -> Lab:
    """A finished project; tests must leave its files as they are."""
    project = make_project(tmp_path_factory.mktemp("lab"))
    project.study(**STUDY)
    made = Lab(project, driver)
    made.finish()
    return made


def result(paths: RunPaths) -> dict[str, Any]:
    """What a run is, without the times: weights, kept weights, predictions, history, journal, status."""
    files = [paths.model, *sorted(paths.root.glob("checkpoints/*.safetensors"))]
    found: dict[str, Any] = {
        file.name: {k: v.numpy().tobytes() for k, v in read_weights(file).items()} for file in files
    }
    found["predictions"] = paths.predictions.read_bytes() if paths.predictions.is_file() else None
    with open(paths.history) as file:
        rows = list(csv.DictReader(file))
    found["history"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    from kdpipe.tracking.journal import read

    told = [e.data for e in read(paths.journal) if e.kind == "metrics"]
    found["journal"] = [
        (e["step"], {k: repr(v) for k, v in e["values"].items() if k != "seconds"}) for e in told
    ]
    found["status"] = json.loads(paths.status.read_text())["status"]
    return found


def same(ours: RunPaths, theirs: RunPaths) -> None:
    """Fail unless two runs are the same, bit for bit, and nothing is left over in the first."""
    a, b = result(ours), result(theirs)
    assert a.keys() == b.keys()
    differ = [key for key in b if a[key] != b[key]]
    assert not differ, f"other {', '.join(differ)}"
    left = [str(f) for f in ours.root.rglob("*") if f.suffix == ".tmp" or "state" in f.parts]
    assert not left, f"left over: {left}"


def one_message(text: str, *words: str) -> None:
    """Fail unless a command ended in one clear message with these words."""
    assert "Traceback" not in text, text
    assert len(re.findall(r"^error: ", text, re.MULTILINE)) == 1, text
    for word in words:
        assert word in text, f"'{word}' is not in\n{text}"


def write_yaml(path: Path, value: Any) -> None:
    path.write_text(yaml.safe_dump(value))
