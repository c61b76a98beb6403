"""Checkpoint sampling: a teacher's weights at an epoch become an artifact of their own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from kdpipe.core import registry
from kdpipe.core.errors import CheckpointError
from kdpipe.core.files import read_json, sha256, write_json
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Precision, Run, point
from kdpipe.engine.observe import Observer
from kdpipe.engine.predict import save_predictions
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.processes import ALONE, Processes
from kdpipe.engine.stop import Stop
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import load_weights, read_weights, save_weights


def sample(
    run: Run,
    paths: RunPaths,
    prepared: Prepared,
    epoch: int,
    device: torch.device,
    observers: Sequence[Observer] = (),
    stop: Stop | None = None,
    teachers: Sequence[Path] = (),
    precision: Precision = "float32",
    processes: Processes = ALONE,
) -> None:
    """Check a finished teacher's weights at `epoch` and store their predictions.

    Weights that were not kept (a later study asked for the epoch) or are damaged are made again by
    replaying the training up to that epoch: the same bits on the same kind of processor. A teacher
    that collapsed or stopped before the epoch gives the weights it ended with.

    Args:
        run: the teacher.
        paths: its folder.
        prepared: the data set.
        epoch: which epoch, counted from 1.
        device: where to predict (and replay).
        observers: who is told how a replay goes.
        stop: asks a replay for a clean stop.
        teachers: weights of its own teacher, for one that was taught.
        precision: how the weights are kept; they predict as they are kept.
        processes: which share a replay; the first alone does the rest.
    """
    status = read_json(paths.status)
    collapsed = status["status"] == "collapsed" and status["epoch"] <= epoch
    over = collapsed or status["epoch"] < epoch
    weights = paths.checkpoint(epoch, precision)
    spec = registry.models.get(run.spec.model.name)
    model = spec.build(prepared.num_classes, prepared.shape[0])
    exact = paths.model if over else paths.checkpoint(epoch)
    missing = not _whole(weights)
    if processes.any(missing and not _whole(exact)):
        exact = _replay(run, paths, prepared, epoch, device, observers, stop or Stop(), teachers, processes)
    if not processes.first:
        return
    if missing:
        load_weights(model, exact)
        save_weights(model, weights, precision)
        if exact.is_relative_to(paths.state):
            shutil.rmtree(paths.state, ignore_errors=True)
    load_weights(model, weights)
    model.to(device=device, memory_format=torch.channels_last)
    out = paths.sampled(point(epoch, precision))
    save_predictions(out.predictions, model, prepared, run.spec, device)
    record = read_json(paths.provenance)  # its network and code are the run's
    write_json(out.provenance, {**record, "outputs": {"predictions": sha256(out.predictions)}})
    write_json(
        out.status,
        {**status, "epoch": min(epoch, status["epoch"])}
        if over
        else {"status": "finished", "epoch": epoch, "reason": ""},
    )
    write_json(out.checkpoint_record, {"run": run.id, "epoch": epoch, "sha256": sha256(weights)})


def _whole(weights: Path) -> bool:
    try:
        read_weights(weights)
    except CheckpointError:
        return False
    return True


def _replay(
    run: Run,
    paths: RunPaths,
    prepared: Prepared,
    epoch: int,
    device: torch.device,
    observers: Sequence[Observer],
    stop: Stop,
    teachers: Sequence[Path],
    processes: Processes,
) -> Path:
    """Train again up to the epoch; where its weights then lie."""
    scratch = RunPaths(paths.state / "replay")
    trainer = Trainer(run, scratch, prepared, teachers, device, (), observers, stop, processes=processes)
    trainer.train(until=epoch)
    return scratch.checkpoint(epoch)
