"""What it takes to bring the journals of parallel runs to each store, and what writing them costs a training.

`python -m benchmarks.tracking` writes the journals of some runs at once, each in a process of its own, and
then sends them to the embedded store, to a server on SQLite and, where it is installed, to one on PostgreSQL.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdpipe.core.files import write_json
from kdpipe.core.paths import Results
from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec
from kdpipe.tracking.journal import Journal
from kdpipe.tracking.server import _lacks_postgresql
from kdpipe.tracking.sync import sync
from tests.tracking.lab import ENVIRONMENT, Server


def made(seed: int, epochs: int) -> Run:
    """The settings of a run."""
    spec = RunSpec(
        data=DataSpec(dataset="digits", revision=1),
        model=Part(name="resnet8", revision=1),
        protocol=Protocol(lr=0.1, epochs=epochs, batch_size=64),
        recipe=Part(name="standard", revision=1),
        seed=seed,
    )
    return Run(spec=spec, label=f"t_s{seed}", protocol="p", pair=("resnet8", None), recipe="standard")


def write(root: Path, seed: int, epochs: int, metrics: int) -> None:
    """Write one run's journal, and print the milliseconds of processor time that an epoch's line took."""
    run = made(seed, epochs)
    paths = Results(root).run(run.name)
    write_json(paths.spec, {**run.model_dump(mode="json"), "id": run.id, "name": run.name})
    journal = Journal(paths.journal)
    journal.append("status", status="running")
    begun = time.process_time()
    for epoch in range(1, epochs + 1):
        journal.append("metrics", step=epoch, values={f"metric_{n}": n / epoch for n in range(metrics)})
    print(1000 * (time.process_time() - begun) / epochs)
    journal.append("status", status="finished")


def measured(name: str, root: Path, uri: str | None, points: int) -> None:
    """Sync once with everything to send and once with nothing, and print how long each took."""
    for file in root.glob("runs/*/.synced.json"):
        file.unlink()
    took = []
    for expected in (points, 0):
        wall, processor = time.monotonic(), time.process_time()
        report = sync(Results(root), None, uri, quiet=True)
        assert (report.metrics, report.failed) == (expected, {}), str(report)
        took += [time.monotonic() - wall, time.process_time() - processor]
    print(f"| {name} | {took[0]:.1f} | {points / took[0]:,.0f} | {took[1]:.1f} | {took[2]:.2f} |", flush=True)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--metrics", type=int, default=10)
    parser.add_argument("--write", nargs=2, metavar=("FOLDER", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        write(Path(asked.write[0]), int(asked.write[1]), asked.epochs, asked.metrics)
        return
    points = asked.runs * asked.epochs * asked.metrics
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        command = [sys.executable, "-m", "benchmarks.tracking", "--epochs", str(asked.epochs)]
        command += ["--metrics", str(asked.metrics), "--write", str(root)]
        begun = time.monotonic()
        writers = [
            subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
            for seed in range(asked.runs)
        ]
        costs = [float(writer.communicate()[0]) for writer in writers]
        print(
            f"{asked.runs} runs of {asked.epochs} epochs with {asked.metrics} metrics each: {points} points."
        )
        print(f"Journals: {statistics.median(costs):.3f} ms of the processor per epoch and run", end="")
        print(f" ({time.monotonic() - begun:.1f} s for all, the start of their processes included).\n")
        print("| store | seconds | points/s | client's processor, s | nothing new, s |")
        print("|---|---:|---:|---:|---:|", flush=True)
        sync(Results(root / "warm"), None, f"sqlite:///{root}/warm.db", quiet=True)  # imports, first tables
        shutil.copy(root / "warm.db", root / "mlflow.db")
        measured("embedded SQLite", root, None, points)
        for database in ("sqlite", "postgresql"):
            if database == "postgresql" and (missing := _lacks_postgresql()):
                print(f"\nNot measured: {missing}.")
                continue
            root.chmod(0o711)  # PostgreSQL has an account of its own where root runs this
            server = Server(root / database, database).start()
            try:
                measured(f"MLflow server on {database}", root, server.uri, points)
            finally:
                server.stop()


if __name__ == "__main__":
    main()
