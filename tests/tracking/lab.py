"""Real trainings beside a real MLflow server: what the drill of the outage and the benchmark share."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from kdpipe.core.files import write_json
from kdpipe.core.paths import Results, RunPaths
from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec
from kdpipe.plan.plan import Plan, PlannedRun
from kdpipe.tracking.journal import CURVES, read

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Server:
    """`kdpipe serve` at a port of its own, to be started, killed and started again.

    Args:
        folder: its results folder.
        database: sqlite or postgresql.
        options: more of its options.
    """

    def __init__(self, folder: Path, database: str = "sqlite", *options: str, **environment: str) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "kdpipe", "serve", "--results", str(folder), "--database"]
        self.command += [database, "--port", str(self.port), *options]
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        """Start it, and wait until it says that it serves."""
        self.process = subprocess.Popen(
            self.command,
            env={**ENVIRONMENT, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        said = self.process.stdout.readline()
        assert "serves" in said, said
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; with SIGKILL also what it started, which it then cannot stop itself."""
        process, self.process = self.process, None
        if process is None:
            return 0
        children = _children(process.pid) if number == signal.SIGKILL else []
        process.send_signal(number)
        for child in children:
            os.kill(child, number)
        process.stdout.close()
        return process.wait(300)


def _children(parent: int) -> list[int]:
    """The processes below one, all the way down."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in found.stdout.splitlines()]
    below = [pid for pid, above in pairs if above == parent]
    return [*below, *(far for pid in below for far in _children(pid))]


def twin(results: Results, run: Run) -> RunPaths:
    """The folder of the run without a journal."""
    return Results(results.root / "twins").run(run.name)


@contextmanager
def following(results: Results, plan: Path, uri: str | None, every: float = 1.0) -> Iterator[None]:
    """A process that follows the runs, as the workflow starts it; it has ended when the block has."""
    command = ["nice", sys.executable, "-m", "kdpipe", "sync", "--lenient", "--plan", plan, "--follow"]
    command += ["--results", results.root, "--every", str(every), *(["--uri", uri] if uri else [])]
    with open(results.root / "sync.log", "a") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=log, stderr=log, env=ENVIRONMENT
        )
    try:
        yield
    finally:
        process.stdin.close()
        process.wait(300)


@dataclass(frozen=True)
class Cost:
    """What a training took, and what the same one took that ran beside it without a journal.

    Attributes:
        processor: seconds of the processor, of both.
        own: the seconds that each counted itself, as in its history.
    """

    processor: tuple[float, float]
    own: tuple[float, float]


def slower(costs: Sequence[Cost], kind: str) -> float:
    """How many times as long trainings took as those without a journal: the median of the pairs."""
    pairs = [getattr(cost, kind) for cost in costs]
    return statistics.median(tracked / alone for tracked, alone in pairs)


class Lab:
    """Small trainings that differ in their seeds, and their plan.

    Args:
        root: where everything goes.
        runs: how many.
        epochs: of each.
    """

    def __init__(self, root: Path, runs: int, epochs: int) -> None:
        from kdpipe.engine.prepare import load, prepare
        from kdpipe.plan.datasets import find_dataset

        self.root, self.epochs = root, epochs
        digits = find_dataset("digits", ROOT / "config")
        if not (root / "data" / "meta.json").exists():
            prepare(digits, None, root / "data")
        self.data = load(root / "data")
        spec = DataSpec(dataset="digits", revision=digits.revision, train_samples=256, test_samples=128)
        self.runs = [
            Run(
                spec=RunSpec(
                    data=spec,
                    model=Part(name="resnet8", revision=1),
                    protocol=Protocol(lr=0.05, epochs=epochs, batch_size=64),
                    recipe=Part(name="standard", revision=1),
                    seed=seed,
                ),
                label=f"teacher_digits_resnet8_standard_s{seed}",
                protocol="drill",
                pair=("resnet8", None),
                recipe="standard",
            )
            for seed in range(runs)
        ]

    def world(self, name: str) -> tuple[Results, Path]:
        """A new results folder, with the plan in it."""
        results = Results(self.root / name)
        plan = results.plans / "plan.json"
        planned = {run.name: PlannedRun(run, None, "data", studies=("drill",)) for run in self.runs}
        write_json(plan, Plan(planned).to_json())
        return results, plan

    def train(self, results: Results, meanwhile: Callable[[float], None] = lambda _: None) -> list[Cost]:
        """Train all at once, each in a process of its own, and each beside its twin without a journal.

        The twins have the machine's other work in common, so that what differs is the journal's doing.

        Args:
            results: where.
            meanwhile: called again and again with the part of all epochs that is done.
        """
        # a fork of this process could not go back through a network once one was gone back through here
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            trained = fresh.submit(self._train, results)
            while not trained.done():
                meanwhile(self.done(results))
                time.sleep(0.1)
            return trained.result()

    def _train(self, results: Results) -> list[Cost]:
        places = [(run, paths) for run in self.runs for paths in (results.run(run.name), twin(results, run))]
        children = {
            self._fork(run, paths, number % 2 == 0): number for number, (run, paths) in enumerate(places)
        }
        processor = [0.0] * len(places)
        while children:
            pid, status, used = os.wait4(-1, 0)
            number = children.pop(pid)
            assert status == 0, (places[number][1].root / "output.log").read_text()
            processor[number] = used.ru_utime + used.ru_stime
        own = [
            sum(float(line.split(",")[-1]) for line in paths.history.read_text().splitlines()[1:])
            for _, paths in places
        ]
        both = range(0, len(places), 2)
        return [Cost((processor[n], processor[n + 1]), (own[n], own[n + 1])) for n in both]

    def done(self, results: Results) -> float:
        """The part of all epochs that is done."""
        told = sum(
            sum(entry.kind == "metrics" for entry in read(results.run(run.name).journal)) for run in self.runs
        )
        return told / (len(self.runs) * self.epochs)

    def _fork(self, run: Run, paths: RunPaths, tracked: bool) -> int:
        import torch

        from kdpipe.cli import _watchers, _write_spec
        from kdpipe.engine.train import Trainer
        from kdpipe.tracking.observer import JournalObserver

        torch.set_num_threads(1)
        if pid := os.fork():
            return pid
        code = 1
        try:
            paths.root.mkdir(parents=True, exist_ok=True)
            with open(paths.root / "output.log", "w") as log:
                os.dup2(log.fileno(), 2)
                device = torch.device("cpu")
                _write_spec(run, paths)
                with _watchers(run, paths, paths.log, device) as watchers:
                    told = [w for w in watchers if tracked or not isinstance(w, JournalObserver)]
                    Trainer(run, paths, self.data, [], device, observers=told).train()
            code = 0
        finally:
            os._exit(code)

    def stored(self, results: Results, uri: str | None) -> list[str]:
        """What the store has otherwise than the journals say: empty where it has all, and each once."""
        from mlflow import MlflowClient

        client = MlflowClient(uri or f"sqlite:///{results.mlflow}")
        experiment = client.get_experiment_by_name("kdpipe/digits")
        found = client.search_runs([experiment.experiment_id])
        names = sorted(r.data.tags["kdpipe.run"] for r in found)
        wrong = [] if names == sorted(run.name for run in self.runs) else [f"runs: {names}"]
        for run in found:
            wanted: dict[str, list[tuple[int, int, float]]] = {}
            for entry in read(results.run(run.info.run_name).journal):
                for key, value in entry.data["values"].items() if entry.kind in CURVES else ():
                    wanted.setdefault(key, []).append((entry.data["step"], entry.time, value))
            if run.data.metrics.keys() != wanted.keys():
                wrong.append(f"{run.info.run_name}: {sorted(run.data.metrics.keys() ^ wanted.keys())}")
            for key, points in wanted.items():
                held = client.get_metric_history(run.info.run_id, key)
                if sorted((m.step, m.timestamp, m.value) for m in held) != sorted(points):
                    wrong.append(f"{run.info.run_name}: {key}")
            if run.info.status != "FINISHED":
                wrong.append(f"{run.info.run_name}: {run.info.status}")
        return wrong
