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
from kdpipe.core.specs import Run
from kdpipe.engine.observe import Observer
from kdpipe.engine.predict import save_predictions
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.train import Stop, Trainer
from kdpipe.engine.weights import load_weights, read_weights


def sample(
    run: Run,
    paths: RunPaths,
    prepared: Prepared,
    epoch: int,
    device: torch.device,
    observers: Sequence[Observer] = (),
    stop: Stop | None = None,
    teachers: Sequence[Path] = (),
) -> None:
    """Check a finished teacher's weights at `epoch` and store their predictions.

    Weights that were not kept (a later study asked for the epoch) or are damaged are made again by
    replaying the training up to that epoch: the same bits on the same kind of processor. A teacher
    that collapsed before the epoch gives its last, collapsed weights.

    Args:
        run: the teacher.
        paths: its folder.
        prepared: the data set.
        epoch: which epoch, counted from 1.
        device: where to predict (and replay).
        observers: who is told how a replay goes.
        stop: asks a replay for a clean stop.
        teachers: weights of its own teacher, for one that was taught.
    """
    status = read_json(paths.status)
    collapsed = status["status"] == "collapsed" and status["epoch"] <= epoch
    weights = paths.checkpoint(epoch)
    try:
        read_weights(weights)
    except CheckpointError:
        if collapsed:
            weights.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths.model, weights)
        else:
            _replay(run, paths, prepared, epoch, device, observers, stop or Stop(), teachers)

    spec = registry.models.get(run.spec.model.name)
    model = spec.build(prepared.num_classes, prepared.shape[0])
    load_weights(model, weights)
    model.to(device=device, memory_format=torch.channels_last)
    out = paths.sampled(epoch)
    save_predictions(out.predictions, model, prepared, run.spec, device)
    write_json(out.provenance, read_json(paths.provenance))  # its network and code are the run's
    write_json(
        out.status,
        {**status, "epoch": min(epoch, status["epoch"])}
        if collapsed
        else {"status": "finished", "epoch": epoch, "reason": ""},
    )
    write_json(out.root / "checkpoint.json", {"run": run.id, "epoch": epoch, "sha256": sha256(weights)})


def _replay(
    run: Run,
    paths: RunPaths,
    prepared: Prepared,
    epoch: int,
    device: torch.device,
    observers: Sequence[Observer],
    stop: Stop,
    teachers: Sequence[Path],
) -> None:
    scratch = RunPaths(paths.root / "state" / "replay")
    trainer = Trainer(run, scratch, prepared, teachers, device, (), observers, stop)
    trainer.train(until=epoch)
    paths.checkpoint(epoch).parent.mkdir(parents=True, exist_ok=True)
    scratch.checkpoint(epoch).replace(paths.checkpoint(epoch))
    shutil.rmtree(paths.state, ignore_errors=True)
