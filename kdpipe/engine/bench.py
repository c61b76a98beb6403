"""A bench's run: the desk it works at, and the files it leaves."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from kdpipe.api import Arrays, Bench, ImageFiles, Images, Split
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, Interrupted, ResultsError
from kdpipe.core.files import atomic, read_json, sha256, write_json
from kdpipe.core.fingerprint import code_of, fingerprint
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import BenchRun
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.provenance import provenance
from kdpipe.engine.stop import Stop


def run_bench(
    run: BenchRun,
    paths: RunPaths,
    prepared: Prepared | None,
    threads: int,
    stop: Stop,
    out: TextIO = sys.stderr,
) -> None:
    """Run a bench, from the parts that a killed run left if there are any, and write its tables.

    Args:
        run: what to run.
        paths: where its files go: `tables/<name>.csv`, then `provenance.json`, and `status.json` last.
        prepared: the data set, for a bench that needs images.
        threads: processor threads of NumPy's libraries.
        stop: asks for a clean stop.
        out: where it says how far it is.

    Raises:
        Interrupted: a stop was asked for; what is finished is kept.
    """
    kind = registry.benches.get(run.spec.bench.name)
    bench: Bench = kind(kind.Config(**run.spec.bench.settings))
    desk = DeskOnDisk(paths.state, fingerprint(code_of(run)), run.name, stop, out)
    started = time.time()
    with threadpool_limits(threads):
        tables = bench.run(run.spec.seed, None if prepared is None else images(prepared), desk)
    for name, table in tables.items():
        with atomic(paths.table(name)) as file:
            table.to_csv(file, index=False, lineterminator="\n")
    record = provenance(run, threads=threads)
    record |= {"started": started, "finished": time.time(), "seconds": desk.seconds + time.time() - started}
    record["data"] = prepared.checksums if prepared else {}
    record["outputs"] = {name: sha256(paths.table(name)) for name in tables}
    write_json(paths.provenance, record)
    write_json(paths.status, {"status": "finished", "epoch": 0, "reason": ""})
    shutil.rmtree(paths.state, ignore_errors=True)


def images(prepared: Prepared) -> Images:
    """A data set as benches see it.

    Raises:
        ConfigError: its images stay in their files.
    """
    return Images(
        prepared.name,
        _flat(prepared, prepared.train),
        np.asarray(prepared.train.labels),
        _flat(prepared, prepared.test),
        np.asarray(prepared.test.labels),
    )


def _flat(prepared: Prepared, split: Split) -> NDArray[np.float64]:
    if isinstance(split.images, ImageFiles):
        raise ConfigError(
            f"the images of {prepared.name} stay in their files, and a bench needs them in memory",
            where="key 'dataset'",
            fix="name a smaller data set: digits, cifar10_two_class",
        )
    return split.images.reshape(len(split.images), -1) / 255.0


def _part(file: Path) -> tuple[dict[str, NDArray[Any]], float]:
    """The arrays of a part that a killed run left, and the seconds that they took.

    Raises:
        ResultsError: it is damaged.
    """
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = {key: stored[f"own_{key}"] for key in stored["keys"].tolist()}
            return arrays, float(stored["seconds"])
    except Exception as error:  # a damaged archive makes its reader raise almost anything
        raise ResultsError(f"a part cannot be read: {error}", where=str(file), fix="delete it") from error


@dataclass
class DeskOnDisk:
    """A bench's desk: parts are kept as `<folder>/<name>.npz` until the run is done.

    Args:
        folder: where.
        code: hash of the code at hand; parts that other code made are thrown away.
        name: of the run, for its lines.
        threads: processor threads of NumPy's libraries.
        stop: asks for a clean stop.
        out: where lines go.
    """

    folder: Path
    code: str
    name: str
    stop: Stop
    out: TextIO

    def __post_init__(self) -> None:
        self.seconds = 0.0  # that earlier attempts spent on the parts
        stamp = self.folder / "code.json"
        try:
            if read_json(stamp).get("code") != self.code:
                raise ResultsError("other code made these parts", where=str(stamp))
            self.seconds = sum(_part(part)[1] for part in self.folder.glob("*.npz"))
        except ResultsError:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(stamp, {"code": self.code})
        self.begun = time.monotonic()

    def once(self, name: str, make: Callable[[], Arrays]) -> dict[str, NDArray[np.float64]]:
        """The arrays called `name`: from disk where a killed run left them, else made now and kept."""
        part = self.folder / f"{name}.npz"
        if part.is_file():
            return _part(part)[0]
        if self.stop.requested:
            raise Interrupted(f"{self.name}: stopped before '{name}'; run it again to go on")
        begun = time.monotonic()
        made = {key: np.asarray(value) for key, value in make().items()}
        with atomic(part) as file, open(file, "wb") as stream:
            named = {f"own_{key}": value for key, value in made.items()}
            np.savez(stream, keys=list(made), seconds=time.monotonic() - begun, **named)  # type: ignore[arg-type]
        return made

    def tell(self, done: float, what: str) -> None:
        """Say how much of the run is done (0 to 1), and what comes next."""
        if self.stop.requested:
            raise Interrupted(f"{self.name}: stopped before '{what}'; run it again to go on")
        spent = time.monotonic() - self.begun
        left = f", {spent * (1 - done) / done:.0f} s left" if 0 < done < 1 else ""
        print(f"{self.name}: {100 * done:.0f} %, {what}{left}", file=self.out, flush=True)
