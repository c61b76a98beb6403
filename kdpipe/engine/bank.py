"""Banks: a teacher's logits for each image of each epoch, computed once and read by many students.

The logits come from the same code, on the same batches, as those of a student that runs its teacher
itself, and are stored without loss: a student learns the same from either, bit for bit. They are written
epoch by epoch; after a kill the next call goes on with the epoch that was not finished.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Norms, Outputs, Shapes, Split, Wish
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, Interrupted, ResultsError, UserError
from kdpipe.core.files import read_json, write_error, write_json
from kdpipe.core.paths import BankPaths
from kdpipe.core.specs import Bank, BankSpec, Storage
from kdpipe.engine.batches import Batches, preprocessing, resident
from kdpipe.engine.predict import autocast
from kdpipe.engine.prepare import Prepared, select
from kdpipe.engine.provenance import provenance
from kdpipe.engine.state import locked
from kdpipe.engine.stop import Stop
from kdpipe.engine.teacher import Teacher
from kdpipe.engine.weights import identity

TYPES: dict[Storage, tuple[torch.dtype, Any]] = {  # in memory, and as NumPy writes them
    "float32": (torch.float32, np.float32),
    "float16": (torch.float16, np.float16),
    "bfloat16": (torch.bfloat16, np.uint16),
}
Tell = Callable[[int, float], None]
"""Is told how many epochs are there, and the seconds that the last one took (0 at the start)."""


def make_bank(
    bank: Bank,
    paths: BankPaths,
    prepared: Prepared,
    weights: Sequence[Path],
    device: torch.device,
    stop: Stop | None = None,
    tell: Tell = lambda epochs, seconds: None,
    at_once: int = 1,
) -> None:
    """Make a bank, or go on with one that a kill left; one that is there already stays.

    Of a teacher whose weights are not finite no logits are stored: its students end at once.

    Args:
        bank: what to make.
        paths: where its files go.
        prepared: the data set.
        weights: the teacher's; several files for the networks of as many folds.
        device: where the teacher runs.
        stop: asks for a clean stop.
        tell: is told how it goes.
        at_once: batches that the teacher answers side by side, each as fast as torch's threads make one; no
            number depends on it. On a GPU, and of a teacher that is compiled, it is always one.

    Raises:
        Interrupted: a stop was asked for; the finished epochs are there.
        ResultsError: there is no room for it, or another process is making it.
    """
    spec = bank.spec
    torch.backends.cudnn.benchmark = True
    with locked(paths.lock, "is making this bank"):
        made_of = _made_of(spec, weights, prepared)
        if _matching(paths.record, made_of) and _whole(paths, spec, prepared):
            return
        paths.record.unlink(missing_ok=True)
        found = _matching(paths.progress, made_of) if _whole(paths, spec, prepared) else None
        if not found:
            paths.progress.unlink(missing_ok=True)
        record: dict[str, Any] = found or {**made_of, "epochs": [], "seconds": 0.0}
        source = _Source(bank, prepared, weights, device, stop or Stop(), at_once)
        if source.teacher.finite:
            if not record["epochs"]:
                _reserve(paths.logits, spec.storage, _shape(spec, prepared))
            tell(len(record["epochs"]), 0.0)
            for epoch in range(len(record["epochs"]), spec.epochs):
                begun = time.monotonic()
                logits = source.epoch(epoch)
                _write(paths.logits, epoch, logits)
                record["epochs"].append(hashlib.sha256(logits.data).hexdigest())
                record["seconds"] += time.monotonic() - begun
                write_json(paths.progress, record)
                tell(epoch + 1, time.monotonic() - begun)
        made = {"finite": source.teacher.finite, "provenance": provenance(bank, device), "name": bank.name}
        write_json(paths.record, {**record, **made, "spec": spec.model_dump(mode="json")})
        paths.progress.unlink(missing_ok=True)


class _Source:
    """Where a bank's logits come from: a teacher, and the batches that its students see."""

    def __init__(
        self,
        bank: Bank,
        prepared: Prepared,
        weights: Sequence[Path],
        device: torch.device,
        stop: Stop,
        at_once: int,
    ) -> None:
        spec, train = bank.spec, _train(bank.spec, prepared)
        self.bank, self.device, self.stop, self.classes = bank, device, stop, prepared.num_classes
        self.at_once = at_once if device.type == "cpu" and not spec.compile else 1
        self.batches = Batches(
            train, preprocessing(prepared, device), spec, spec.seed, device, view=spec.view
        )
        self.teacher = Teacher(
            registry.models.get(bank.model),
            weights,
            prepared,
            Wish(),
            device,
            lambda: autocast(spec.precision, device),
            None,
            DataInfo(prepared.num_classes, torch.tensor(train.labels)),
            logits=spec.teacher.logits,
            compiled=spec.compile,
        )

    def epoch(self, epoch: int) -> NDArray[Any]:
        """The logits of an epoch by sample, as they are stored."""
        logits = torch.empty(self.batches.samples, self.classes, device=self.device)

        def answer(batch: Batch) -> None:
            logits[batch.index] = self.teacher([batch.images], batch.index).logits

        batches, threads = self.batches.epoch(epoch), (torch.get_num_threads(),)
        with ThreadPoolExecutor(self.at_once, "answer", torch.set_num_threads, threads) as pool:
            each = pool.map if self.at_once > 1 else map  # a thread of its own would not know the GPU
            while group := tuple(islice(batches, self.at_once)):
                list(each(answer, group))  # so that what goes wrong in one is raised here
                if self.stop.requested:
                    where = f"{self.bank.label}: stopped in epoch {epoch + 1}"
                    raise Interrupted(f"{where}; run it again to go on")
        return _stored(logits, self.bank)


class Banked:
    """A teacher that is not there: its logits are read from banks. To a training it is a `Teacher`.

    Args:
        wanted: the banks that take its place, one for each pass of the student.
        folders: of banks, in any order.
        weights: the teacher's, of which the banks must be.
        prepared: the data set.
        device: where the student trains.

    Raises:
        ResultsError: a bank is missing, damaged, or of something else.
    """

    norms: Norms = {}

    def __init__(
        self,
        wanted: Sequence[BankSpec],
        folders: Sequence[Path],
        weights: Sequence[Path],
        prepared: Prepared,
        device: torch.device,
    ) -> None:
        given = [(paths := BankPaths(folder), _record(paths)) for folder in folders]
        found = {record["bank"]: (paths, record) for paths, record in given}
        lacking = [spec for spec in wanted if spec.id not in found]
        if lacking or not wanted:
            view = lacking[0].view if lacking else "any view"
            raise ResultsError(
                f"no bank is that of this student's teacher, protocol and seed, for its stream '{view}'",
                where=", ".join(map(str, folders)),
                fix="name the student's banks (`kdpipe plan --json` lists them), or leave --bank out",
            )
        self._readers = [_Reader(*found[spec.id], spec, weights, prepared) for spec in wanted]
        self.device = device
        self.models = nn.ModuleList()
        self.shapes: Shapes = {"logits": (prepared.num_classes,)}
        self.finite = all(reader.finite for reader in self._readers)
        self._logits: list[Tensor] = []

    @property
    def names(self) -> list[str]:
        """Names of the banks' folders."""
        return [reader.paths.root.name for reader in self._readers]

    def begin(self, epoch: int) -> None:
        """Bring an epoch's logits to the device; on the CPU they stay in their file, mapped."""
        self._logits = [resident_logits(reader.epoch(epoch), self.device) for reader in self._readers]

    def __call__(self, inputs: Sequence[Tensor], index: Tensor) -> Outputs:
        """The stored logits of some samples, in float32, a view for each pass; `inputs` are not looked at."""
        first, *further = (Outputs(logits[index].float()) for logits in self._logits)
        return Outputs(first.logits, more=tuple(further))


def resident_logits(stored: NDArray[Any], device: torch.device) -> Tensor:
    """Stored logits as a tensor of their own type on the device; on the CPU it shares their memory."""
    logits = resident(stored, device)
    return logits.view(torch.bfloat16) if stored.dtype == np.uint16 else logits


class _Reader:
    """One bank, checked as it is read."""

    def __init__(
        self,
        paths: BankPaths,
        record: dict[str, Any],
        spec: BankSpec,
        weights: Sequence[Path],
        prepared: Prepared,
    ) -> None:
        self.paths, self.finite, self._hashes = paths, record["finite"], record["epochs"]
        made_of = _made_of(spec, weights, prepared)
        for key, what in (("teacher", "weights of the teacher"), ("data", "prepared data")):
            if record[key] != made_of[key]:
                raise _broken(paths.record, f"it was made from other {what}")
        if self.finite:
            self._logits = _mapped(paths, spec.storage, _shape(spec, prepared))

    def epoch(self, epoch: int) -> NDArray[Any]:
        """The logits of an epoch: samples x classes."""
        logits: NDArray[Any] = self._logits[epoch]
        if hashlib.sha256(logits.data).hexdigest() != self._hashes[epoch]:
            raise _broken(self.paths.logits, f"epoch {epoch + 1} has changed since it was written")
        return logits


def _broken(path: Path, what: str) -> ResultsError:
    return ResultsError(
        f"a bank cannot be used: {what}",
        where=str(path),
        fix=f"delete the folder {path.parent} and run Snakemake again: the bank is made again, "
        "and students go on from their saved state",
    )


def _train(spec: BankSpec, prepared: Prepared) -> Split:
    split: Split = select(prepared, spec.data)["train"]
    return split


def _shape(spec: BankSpec, prepared: Prepared) -> tuple[int, int, int]:
    return spec.epochs, len(_train(spec, prepared).labels), prepared.num_classes


def _made_of(spec: BankSpec, weights: Sequence[Path], prepared: Prepared) -> dict[str, Any]:
    """What tells whether stored logits are those of a bank."""
    return {"bank": spec.id, "teacher": [identity(file) for file in weights], "data": prepared.checksums}


def _record(paths: BankPaths) -> dict[str, Any]:
    try:
        record: dict[str, Any] = read_json(paths.record)
    except UserError as error:
        raise _broken(paths.record, error.what) from error
    return record


def _matching(path: Path, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The record at `path`, if it is there and readable and of that."""
    try:
        record: dict[str, Any] = read_json(path)
    except UserError:
        return None
    return record if made_of.items() <= record.items() else None


def _whole(paths: BankPaths, spec: BankSpec, prepared: Prepared) -> bool:
    """Whether the file of logits is there in its full size."""
    try:
        _mapped(paths, spec.storage, _shape(spec, prepared))
    except ResultsError:
        return False
    return True


def _mapped(paths: BankPaths, storage: Storage, shape: tuple[int, int, int]) -> NDArray[Any]:
    """The file of logits, mapped into memory."""
    try:
        logits: NDArray[Any] = np.load(paths.logits, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _broken(paths.logits, f"its logits cannot be read: {error}") from error
    if logits.shape != shape or logits.dtype != TYPES[storage][1] or not logits.flags.c_contiguous:
        raise _broken(paths.logits, "its logits are damaged")
    return logits


def _reserve(path: Path, storage: Storage, shape: tuple[int, int, int]) -> None:
    """Make the file of logits in its full size, so that a full disk is met before the teacher has run."""
    size = int(np.prod(shape)) * np.dtype(TYPES[storage][1]).itemsize
    try:
        path.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise ResultsError(
                f"cannot write: the bank takes {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free",
                where=str(path),
                fix="free some space, or have no banks: `bank: {use: never}` in the settings",
            )
        np.lib.format.open_memmap(path, "w+", TYPES[storage][1], shape)
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise write_error(path, error) from error


def _write(path: Path, epoch: int, logits: NDArray[Any]) -> None:
    """Put an epoch's logits in their place and have them on disk."""
    start = np.load(path, mmap_mode="r").offset
    try:
        with open(path, "rb+") as file:
            file.seek(start + epoch * logits.nbytes)
            file.write(logits.data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


def _stored(logits: Tensor, bank: Bank) -> NDArray[Any]:
    """Logits as a bank keeps them, which must not change them."""
    kept = logits.to(TYPES[bank.spec.storage][0])
    if not torch.allclose(kept.float(), logits, rtol=0, atol=0, equal_nan=True):
        raise ConfigError(
            f"{bank.model} gives logits that {bank.spec.storage} does not hold exactly",
            where=bank.label,
            fix="have no banks: `bank: {use: never}` in the settings",
        )
    kept = kept.cpu().contiguous()
    return (kept.view(torch.uint16) if kept.dtype == torch.bfloat16 else kept).numpy()
