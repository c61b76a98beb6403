"""The training loop: one for teachers and students, every recipe and every method."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdpipe.api import Batch, DataInfo, ModelSpec, Outputs, Progress, Recipe, Split, Trainable
from kdpipe.core import registry
from kdpipe.core.errors import Interrupted
from kdpipe.core.files import sha256, write_json, write_text
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Run
from kdpipe.engine.batches import Batches, preprocessing
from kdpipe.engine.observe import Observer, Row
from kdpipe.engine.optimise import optimizer, rate
from kdpipe.engine.predict import autocast, predict, save_predictions
from kdpipe.engine.prepare import Prepared, select
from kdpipe.engine.provenance import provenance
from kdpipe.engine.state import StateStore
from kdpipe.engine.streams import seeded, stream_seed
from kdpipe.engine.teacher import Teacher
from kdpipe.engine.weights import save_weights
from kdpipe.nn.cost import cost
from kdpipe.nn.taps import catch, expand, shapes


@dataclass
class Stop:
    """Set by a signal handler; the loop saves its state and raises `Interrupted` after the step at hand."""

    requested: bool = False


@dataclass
class Trainer:
    """One run in training.

    Args:
        run: what to train.
        paths: where its files go.
        prepared: the data set.
        teacher_weights: weights of the teacher, for a method that has one.
        device: where to train.
        keep: epochs whose weights are kept.
        observers: who is told how it goes.
        stop: asks for a clean stop.
    """

    run: Run
    paths: RunPaths
    prepared: Prepared
    teacher_weights: Path | None
    device: torch.device
    keep: Sequence[int] = ()
    observers: Sequence[Observer] = ()
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        spec, protocol = self.run.spec, self.run.spec.protocol
        torch.backends.cudnn.benchmark = True
        self.splits: dict[str, Split] = select(self.prepared, spec.data)
        self.monitored = "val" if "val" in self.splits else "test"
        channels, classes = self.prepared.shape[0], self.prepared.num_classes
        self.normalise = preprocessing(self.prepared, self.device)

        model_spec: ModelSpec = registry.models.get(spec.model.name)
        kind = registry.recipes if spec.recipe else registry.methods
        objective = kind.get(spec.objective.name)
        self.objective = objective(objective.Config(**spec.objective.settings))
        self.batches = Batches(
            self.splits["train"],
            self.normalise,
            protocol,
            spec.seed,
            self.device,
            second=self.objective.second_view,
        )
        wish = self.objective.taps()
        info = DataInfo(classes, torch.tensor(self.splits["train"].labels))

        with seeded(spec.seed, "init"):
            self.model = model_spec.build(classes, channels)
        self.cost = cost(self.model, self.prepared.shape)
        student_taps = expand(model_spec, wish.student)
        student_shapes = shapes(self.model, model_spec, student_taps, self.prepared.shape)
        self.teacher = self._load_teacher(expand_for=wish.teacher, classes=classes, channels=channels)
        with seeded(spec.seed, "objective"):
            if isinstance(self.objective, Recipe):
                self.objective.build(self.model, student_shapes, info)
            else:
                self.objective.build(student_shapes, self._teacher_shapes, info)
        self.model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective.to(self.device)

        head = self.model.get_submodule(model_spec.classifier)
        in_head = {id(p) for p in head.parameters()}
        self.trainable = Trainable(
            backbone=[p for p in self.model.parameters() if id(p) not in in_head],
            classifier=list(head.parameters()),
            extra=list(self.objective.parameters()),
        )
        self.optimizer = optimizer(protocol, self.trainable.all)
        self.catch = catch(self.model, model_spec, student_taps)
        if protocol.compile:  # after the hooks, which a compiled network would otherwise not call
            self.model.compile()
            if self.teacher:
                self.teacher.model.compile()
        self.history: list[Row] = []
        self.meter = Meter(self.device)
        self.seconds = 0.0

    def train(self, until: int | None = None) -> None:
        """Train to the end (or through epoch `until`), from the saved state if there is one.

        Every epoch ends with the state on disk. A non-finite loss ends the run as `collapsed`: a
        result like any other.

        Raises:
            Interrupted: a stop was asked for; the state is saved.
        """
        store = StateStore(self.paths.state, self.run.id)
        with store.lock():
            epochs = self.run.spec.protocol.epochs
            epoch, step = self._restore(store.load())
            self._tell(lambda o: o.started(epoch))
            started = time.time()
            try:
                while epoch < min(epochs, until or epochs) and not self._collapsed:
                    self._epoch(epoch, step, store)
                    epoch, step = epoch + 1, 0
                    if epoch in self.keep or epoch == until:
                        save_weights(self.model, self.paths.checkpoint(epoch))
                    self._tell(lambda o: o.epoch_done(self.history[-1]))  # first: a resume may repeat it
                    store.save(self._state(epoch, 0))
            except BaseException as error:
                asked = isinstance(error, Interrupted | KeyboardInterrupt)
                self._tell(lambda o: o.ended("interrupted" if asked else "failed"))
                raise
            if until is None:
                self._finish(epoch, started)
                self._tell(lambda o: o.ended("collapsed" if self._collapsed else "finished"))
            store.remove()

    def step(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """One step of the optimiser; the loss terms, and the meter's sums, stay on the device."""
        with self._autocast():
            out = self.catch(batch.images)
        s = Outputs(out.logits.float(), {k: v.float() for k, v in out.taps.items()})
        if isinstance(self.objective, Recipe):
            terms = self.objective.loss(self.model, s, batch, at)
        else:
            t = self.teacher(batch.images) if self.teacher else Outputs(s.logits.new_empty(0))
            terms = self.objective.loss(s, t, batch, at)
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.backward(terms, self.trainable)
        self.optimizer.step()
        self.meter.add(terms, s.logits, batch.labels)
        return terms

    def _epoch(self, epoch: int, start: int, store: StateStore) -> None:
        """Train one epoch from batch `start` on and append its row to the history."""
        spec = self.run.spec
        begun = time.monotonic() - self.seconds
        lr = rate(spec.protocol, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not start:
            self.meter.reset()
            torch.manual_seed(stream_seed(spec.seed, "method", epoch))
        self.model.train()
        self.objective.train()
        for step, batch in enumerate(self.batches.epoch(epoch, start), start):
            self.step(batch, Progress(epoch, spec.protocol.epochs, step, self.batches.steps))
            if self.stop.requested:
                self.seconds = time.monotonic() - begun
                store.save(self._state(epoch, step + 1))
                raise Interrupted(f"{self.run.label}: stopped in epoch {epoch + 1}; run it again to go on")
        row: Row = {"epoch": epoch + 1, "lr": lr, **self.meter.means()}
        row[f"{self.monitored}_top1"] = self._accuracy(self.monitored)
        row["seconds"] = time.monotonic() - begun
        self.history.append(row)
        self.seconds = 0.0

    @property
    def _collapsed(self) -> bool:
        if self.teacher is not None and not self.teacher.finite:
            return True
        return bool(self.history) and not np.isfinite(self.history[-1]["loss"])

    def _accuracy(self, split: str) -> float:
        data = self.splits[split]
        logits = predict(self.model, data.images, self.normalise, self.run.spec.protocol, self.device)
        return float(100 * np.mean(logits.argmax(1) == data.labels))

    def _autocast(self) -> torch.autocast:
        return autocast(self.run.spec.protocol, self.device)

    def _load_teacher(self, expand_for: Sequence[str], classes: int, channels: int) -> Teacher | None:
        self._teacher_shapes: dict[str, tuple[int, ...]] = {}
        if self.teacher_weights is None:
            return None
        spec: ModelSpec = registry.models.get(self.run.pair[0] or "")
        names = expand(spec, expand_for)
        teacher = Teacher(spec, self.teacher_weights, classes, channels, names, self.device, self._autocast)
        self._teacher_shapes = teacher.shapes(self.prepared.shape)
        return teacher

    def _state(self, epoch: int, step: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "step": step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "meter": self.meter.sums,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def _restore(self, state: dict[str, Any] | None) -> tuple[int, int]:
        if state is None:
            return 0, 0
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        self.seconds = state["seconds"]
        self.meter.sums = {k: v.to(self.device) for k, v in state["meter"].items()}
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        return state["epoch"], state["step"]

    def _finish(self, epoch: int, started: float) -> None:
        """Write the run's results; the status comes last."""
        record = provenance(self.run, self.device)
        record |= {
            "started": started,
            "finished": time.time(),
            "seconds": sum(row["seconds"] for row in self.history),
            "model": asdict(self.cost),
            "data": self.prepared.checksums,
            "teacher": sha256(self.teacher_weights) if self.teacher_weights else None,
        }
        save_weights(self.model, self.paths.model)
        save_predictions(self.paths.predictions, self.model, self.prepared, self.run.spec, self.device)
        write_text(self.paths.history, history_csv(self.history))
        record["outputs"] = {
            "model": sha256(self.paths.model),
            "predictions": sha256(self.paths.predictions),
        }
        write_json(self.paths.provenance, record)
        reason = ""
        if self._collapsed:
            reason = "the loss is not finite" if self.history else "its teacher collapsed"
        write_json(
            self.paths.status,
            {"status": "collapsed" if reason else "finished", "epoch": epoch, "reason": reason},
        )

    def _tell(self, what: Callable[[Observer], None]) -> None:
        for observer in self.observers:
            what(observer)


class Meter:
    """Running sums of an epoch, kept on the device so that no step waits for it.

    Args:
        device: where the sums live.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Start a new epoch."""
        self.sums = {}

    @torch.no_grad()
    def add(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its loss terms (scalars), logits (B x C) and labels (B)."""
        seen = {"samples": torch.tensor(float(len(labels))), "correct": (logits.argmax(1) == labels).sum()}
        seen |= {f"loss_{name}": term.detach() * len(labels) for name, term in terms.items()}
        for name, value in seen.items():
            value = value.to(self.device, torch.float64 if self.device.type == "cpu" else torch.float32)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> Row:
        """Loss, loss per term, and training accuracy (%) of the epoch."""
        sums = {name: float(value) for name, value in self.sums.items()}
        samples = sums.pop("samples")
        correct = sums.pop("correct")
        losses = {name: value / samples for name, value in sums.items()}
        return {"loss": sum(losses.values()), **losses, "train_top1": 100 * correct / samples}


def history_csv(history: Sequence[Row]) -> str:
    """The history as CSV; a term that some epochs lack is left empty there."""
    columns = list(dict.fromkeys(key for row in history for key in row)) or ["epoch"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "epoch": int(row["epoch"])} for row in history)
    return text.getvalue()
