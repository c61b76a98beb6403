"""The training loop: one for teachers and students, every recipe and every method."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    Method,
    ModelSpec,
    Objective,
    Outputs,
    Progress,
    Recipe,
    Split,
    TeacherPart,
    Trainable,
)
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, Interrupted
from kdpipe.core.files import read_json, sha256, write_json, write_text
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Run
from kdpipe.engine.bank import Banked
from kdpipe.engine.batches import Batches, preprocessing
from kdpipe.engine.compiled import compile_networks
from kdpipe.engine.graphs import Home, Replays, capture_on, homes_of
from kdpipe.engine.memory import MemoryFiles
from kdpipe.engine.observe import Observer, Row
from kdpipe.engine.optimise import optimizer, rate
from kdpipe.engine.predict import Headed, Scores, autocast, predict, save_predictions
from kdpipe.engine.prepare import Prepared, select
from kdpipe.engine.processes import ALONE, Processes
from kdpipe.engine.profile import Profile
from kdpipe.engine.provenance import provenance
from kdpipe.engine.state import StateStore
from kdpipe.engine.stop import Stop
from kdpipe.engine.streams import seeded, stream_seed
from kdpipe.engine.teacher import Teacher
from kdpipe.engine.weights import load_weights, save_weights, start_from
from kdpipe.nn.banked import banks_for
from kdpipe.nn.cost import cost
from kdpipe.nn.gradients import compared
from kdpipe.nn.taps import catch, expand, in_float32, shapes, through, transformed

GAP_SAMPLES = 1000  # training images on which the distance to each anchor is measured


@dataclass
class Trainer:
    """One run in training: a teacher, a student, or a part of a teacher.

    Args:
        run: what to train.
        paths: where its files go.
        prepared: the data set.
        teachers: weights of the teacher, for an objective that has one; of each of its anchors, in order,
            for a method that follows the teacher's training; of each of its networks, for one of folds.
        device: where to train.
        keep, keep_half: epochs whose weights are kept in float32, and in float16.
        observers: who is told how it goes.
        stop: asks for a clean stop.
        part: weights of what was trained on top of the teacher, for a method that needs it.
        start: weights that the network starts from, but for its classifier.
        save_every: seconds after which a long epoch saves its state, as every epoch does at its end.
        gradients: every so many epochs, compare the gradients of the loss terms (0 is never). This changes
            no number of the training.
        processes: which share the networks' passes; the first alone writes and has observers.
        finished: whether another process has finished the run by now; asked once this one holds its lock.
        banks: folders of banks that take the teacher's place. This changes no number of the training.
    """

    run: Run
    paths: RunPaths
    prepared: Prepared
    teachers: Sequence[Path]
    device: torch.device
    keep: Sequence[int] = ()
    observers: Sequence[Observer] = ()
    stop: Stop = field(default_factory=Stop)
    part: Path | None = None
    keep_half: Sequence[int] = ()
    gradients: int = 0
    start: Path | None = None
    save_every: float = 600.0
    processes: Processes = ALONE
    finished: Callable[[], bool] = lambda: False
    banks: Sequence[Path] = ()

    def __post_init__(self) -> None:
        spec, protocol = self.run.spec, self.run.spec.protocol
        torch.backends.cudnn.benchmark = True
        train: Split = select(self.prepared, spec.data)["train"]
        self.normalise = preprocessing(self.prepared, self.device)
        self.data = DataInfo(self.prepared.num_classes, torch.tensor(train.labels))
        objective = registry.REGISTRIES[spec.kind].get(spec.objective.name)
        self.objective: Objective = objective(objective.Config(**spec.objective.settings))
        self.batches = Batches(
            train,
            self.normalise,
            protocol,
            spec.seed,
            self.device,
            self.objective.views,
            processes=self.processes,
        )
        if self.batches.least < self.processes.size:
            raise ConfigError(
                f"the last batch holds {self.batches.least} images for {self.processes.size} processes",
                where=f"protocol '{self.run.protocol}', keys 'gpus' and 'batch_size'",
                fix=f"set gpus to at most {self.batches.least}, or change batch_size",
            )
        ref = spec.teacher
        asked = (ref.folds or len(ref.checkpoints)) if ref else 0
        if len(self.teachers) != asked:
            raise ConfigError(
                f"weights of {len(self.teachers)} teachers are given, and it learns from {asked}",
                where=self.run.label,
                fix="name each file with --teacher, in order",
            )
        self.anchor = 0
        self.teacher = self._load_teacher()
        draw = self.objective.draw() if isinstance(self.objective, Recipe) else 0
        with seeded(spec.seed, "init", draw):
            self._build()
        self.model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective.to(self.device)
        self.peers.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = optimizer(protocol, self.trainable.all)
        if protocol.compile is True:
            compile_networks((self.model, *self.peers))  # after the hooks
        asked = self.objective.per_sample(self.data)
        self.memory = MemoryFiles(
            self.paths.state, asked, self.data.num_samples, self.device, self.processes.first
        )
        self.scores = Scores(self.prepared, spec, self.normalise, self.device, self.processes)
        self.history: list[Row] = []
        self.meter = Meter(self.device)
        self.seconds = 0.0
        self.stopped = False  # by the objective
        self.watched: Row = {}
        self._watching = False  # whether the next step compares gradients
        self.profile = Profile(self.device)
        capture = capture_on(self.device) if protocol.compile == "graphs" else None
        self.replays = Replays(self._step, self._homes, capture) if capture else None

    def _build(self) -> None:
        """Make the network, its peers and what the objective trains beside them."""
        spec, objective = self.run.spec, self.objective
        teacher_shapes = self.teacher.shapes if self.teacher else {}
        self.peers = nn.ModuleList()
        if isinstance(objective, TeacherPart):  # the part is itself the network in training
            with seeded(spec.seed, "objective"):
                objective.build(teacher_shapes, self.data)
            self.model: nn.Module = objective
            self.cost = None
            self.trainable = Trainable([], [], list(objective.parameters()), self.processes.mean)
            return
        channels, classes = self.prepared.shape[0], self.prepared.num_classes
        model_spec: ModelSpec = registry.models.get(spec.model.name)
        self.model = self.processes.shared(model_spec.build(classes, channels))
        if self.start is not None:
            start_from(self.model, model_spec.classifier, self.start)
        self.cost = cost(self.model, self.prepared.shape)
        taps = expand(model_spec, objective.taps().student)
        found = shapes(self.model, model_spec, taps, self.prepared.shape)
        with seeded(spec.seed, "objective"):
            if isinstance(objective, Recipe):
                objective.build(self.model, found, self.data)
            else:
                assert isinstance(objective, Method)
                objective.build(found, teacher_shapes, self.data)
                objective.read_norms(self.teacher.norms if self.teacher else {})
        for number in range(objective.peers()):
            with seeded(spec.seed, "peer", number):
                self.peers.append(self.processes.shared(model_spec.build(classes, channels)))
        self.classifier = self.model.get_submodule(model_spec.classifier)
        in_head = {id(p) for p in self.classifier.parameters()}
        self.trainable = Trainable(
            backbone=[p for p in self.model.parameters() if id(p) not in in_head],
            classifier=list(self.classifier.parameters()),
            extra=[*objective.parameters(), *self.peers.parameters()],
            mean=self.processes.mean,
        )
        self.catch = catch(self.model, model_spec, taps)
        self.catch_peers = [catch(peer, model_spec, taps) for peer in self.peers]

    def train(self, until: int | None = None) -> None:
        """Train to the end (or through epoch `until`), from the saved state if there is one.

        Every epoch ends with the state on disk. A non-finite loss ends the run as `collapsed`: a
        result like any other.

        Raises:
            Interrupted: a stop was asked for; the state is saved.
        """
        store = StateStore(self.paths.state, self.run.id)
        with store.lock() if self.processes.first else nullcontext():
            if self.processes.any(until is None and self.finished()):
                return
            epochs = self.run.spec.protocol.epochs
            epoch, step = self._restore(store.load())
            self._tell(lambda o: o.started(epoch))
            started = time.time()
            try:
                while epoch < min(epochs, until or epochs) and not (self._collapsed or self.stopped):
                    self._epoch(epoch, step, store)
                    epoch, step = epoch + 1, 0
                    if isinstance(self.objective, Recipe):
                        at = Progress(epoch - 1, epochs)
                        self.stopped = self.objective.after_epoch(
                            self.model, self.scores.held_out(self.model), at
                        )
                    if epoch == 0:  # a first stage has ended
                        self.optimizer = optimizer(self.run.spec.protocol, self.trainable.all)
                    if self.processes.first:
                        self._keep(epoch, until)
                    self._tell(lambda o: o.epoch_done(self.history[-1]))  # first: a resume may repeat it
                    self._save(store, epoch, 0)
            except BaseException as error:
                asked = isinstance(error, Interrupted | KeyboardInterrupt)
                self._tell(lambda o: o.ended("interrupted" if asked else "failed"))
                raise
            if until is None:
                self._finish(epoch, started)
                self._tell(lambda o: o.ended("collapsed" if self._collapsed else "finished"))
            if self.processes.first:
                store.remove()

    def _keep(self, epoch: int, until: int | None) -> None:
        """Write the weights of an epoch that is kept."""
        if epoch in self.keep or epoch == until:
            save_weights(self.model, self.paths.checkpoint(epoch))
        if epoch in self.keep_half:
            save_weights(self.model, self.paths.checkpoint(epoch, "float16"), "float16")

    def _save(self, store: StateStore, epoch: int, step: int) -> None:
        """Write the state; no process goes on, or ends, before it is written."""
        if self.processes.first:
            store.save(self._state(epoch, step))
        self.processes.wait()

    def step(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """One step of the optimiser; the loss terms, and the meter's sums, stay on the device."""
        if isinstance(self.objective, Recipe):
            batch = self.objective.transform(batch, at)
        if self.replays is None:
            terms = self._step(batch, at)
        else:
            with self.profile.phase("replay"):
                terms = self.replays(batch, at)
        self.profile.next()
        return terms

    def _step(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """What a step does with a batch; it may be captured, and then nothing of it depends on `at.step`."""
        inputs = [self.processes.mine(images, len(batch.index)) for images in self.objective.inputs(batch)]
        with self._phase("student"):
            s = None if isinstance(self.objective, TeacherPart) else self._through(self.catch, inputs, batch)
        with self._phase("teacher"):
            t = self._taught(inputs, batch)
        with self._phase("loss"):
            terms = self._terms(s, t, batch, at)
        if self._watching:
            self.watched, self._watching = compared(terms, self.trainable), False
        with self._phase("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            self.objective.backward(terms, self.trainable)
            self.processes.average([p.grad for p in self.trainable.all if p.grad is not None])
        with self._phase("optimizer"):
            if bound := self.run.spec.protocol.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(self.trainable.all, bound)
            self.optimizer.step()
            self.meter.add(terms, batch.labels, s.logits if s else None)
        return terms

    def _phase(self, name: str) -> AbstractContextManager[None]:
        """Measure a part of the step; of one that may be replayed, nothing but the whole can be measured."""
        return nullcontext() if self.replays else self.profile.phase(name)

    def _homes(self) -> list[Home]:
        """Where a step may put another tensor in one's place."""
        return [*homes_of((self.model, self.objective, self.peers)), self.meter.sums]

    def _taught(self, inputs: Sequence[Tensor], batch: Batch) -> Outputs:
        """Outputs of the teacher or of the peers; empty logits without either."""
        if self.teacher:
            index = self.processes.mine(batch.index, len(batch.index))
            return self._whole(self.teacher(inputs, index), batch)
        if self.peers:
            first, *others = (self._through(peer, inputs, batch) for peer in self.catch_peers)
            return replace(first, more=tuple(others))
        return Outputs(batch.images.new_empty(0))

    def _terms(self, s: Outputs | None, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        objective = self.objective
        if s is None:
            assert isinstance(objective, TeacherPart)
            return objective.loss(t, batch, at)
        if isinstance(objective, Recipe):
            return objective.loss(self.model, s, t, batch, at)
        assert isinstance(objective, Method)
        return objective.loss(s, t, batch, at)

    def _through(
        self, network: Callable[[Tensor], Outputs], inputs: Sequence[Tensor], batch: Batch
    ) -> Outputs:
        with autocast(self.run.spec.protocol.precision, self.device):
            out = through(network, inputs)
        return in_float32(self._whole(out, batch))

    def _whole(self, out: Outputs, batch: Batch) -> Outputs:
        """Outputs for the whole batch, from each process's."""
        return transformed(out, lambda mine: self.processes.whole(mine, len(batch.index)))

    def _epoch(self, epoch: int, start: int, store: StateStore) -> None:
        """Train one epoch from batch `start` on and append its row to the history."""
        spec = self.run.spec
        begun = time.monotonic() - self.seconds
        at = Progress(epoch, spec.protocol.epochs, 0, self.batches.steps)
        self.objective.memory = self.processes.in_turn(lambda: self.memory.open(epoch))
        if not start:
            self.meter.reset()
            self.watched = {}
            torch.manual_seed(stream_seed(spec.seed, "method", epoch))
            self._choose_anchor(at)
        self._watching = bool(self.gradients) and not start and (epoch + 1) % self.gradients == 0
        if self.replays:
            self.replays.begin()
        if self.teacher:
            self.teacher.begin(epoch)
        lr = rate(spec.protocol, epoch)
        if isinstance(self.objective, Method):
            lr = rate(spec.protocol, max(self.objective.schedule_epoch(at), 0))
        elif isinstance(self.objective, Recipe):
            lr = self.objective.rate(at, lambda e: rate(spec.protocol, e))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for network in (self.model, self.objective, self.peers):
            network.train()
        saved = time.monotonic()
        for step, batch in enumerate(self._dealt(epoch, start), start):
            self.step(batch, replace(at, step=step))
            # What is remembered of each sample goes on changing in its file, so only ends of epochs serve.
            due = time.monotonic() - saved > self.save_every and not self.memory.shapes
            if not self.processes.any(self.stop.requested or due):
                continue
            self.seconds = time.monotonic() - begun
            self.memory.flush()
            self._save(store, epoch, step + 1)
            saved = time.monotonic()
            if self.processes.any(self.stop.requested):
                raise Interrupted(f"{self.run.label}: stopped in epoch {epoch + 1}; run it again to go on")
        self.processes.average(list(self.meter.sums.values()))
        row: Row = {"epoch": epoch + 1, "lr": lr, **self.meter.means(), **self.watched}
        self.memory.flush()
        if self.model is not self.objective and epoch >= 0:
            row |= self.scores(self.model)
        row["seconds"] = time.monotonic() - begun
        self.history.append(row)
        self.seconds = 0.0

    def _dealt(self, epoch: int, start: int) -> Iterator[Batch]:
        """The epoch's batches."""
        batches = self.batches.epoch(epoch, start)
        while True:
            with self.profile.phase("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @property
    def _collapsed(self) -> bool:
        if self.teacher is not None and not self.teacher.finite:
            return True
        return bool(self.history) and not np.isfinite(self.history[-1]["loss"])

    def _load_teacher(self) -> Teacher | Banked | None:
        if self.banks:
            wanted = banks_for(self.run.spec, self.objective)
            return Banked(wanted, self.banks, self.teachers, self.prepared, self.device)
        if not self.teachers:
            return None
        name = self.run.pair[0] or ""
        part = self.objective.part() if isinstance(self.objective, Method) else None
        ref = self.run.spec.teacher
        return Teacher(
            registry.models.get(name),
            self.teachers if ref and ref.folds else [self.teachers[self.anchor]],
            self.prepared,
            self.objective.taps(),
            self.device,
            lambda: autocast(self.run.spec.protocol.taught_in, self.device),
            (part, self.part) if part is not None and self.part is not None else None,
            self.data,
            self.processes.shared,
            ref.logits if ref else "float32",
            self.run.spec.protocol.compile is True,
        )

    def _choose_anchor(self, at: Progress) -> None:
        """Let the method say which of the teacher's checkpoints teaches this epoch."""
        ref = self.run.spec.teacher
        if ref is None or len(ref.anchors) < 2:
            return
        assert isinstance(self.objective, Method)
        self._go_to_anchor(self.objective.anchor(at, len(self.teachers), self._gaps))

    def _go_to_anchor(self, anchor: int) -> None:
        if anchor != self.anchor:
            self.anchor = anchor
            self.teacher = self._load_teacher()

    def _gaps(self) -> list[float]:
        """KL(anchor || student), in nats, of each anchor on the first training images."""
        images = select(self.prepared, self.run.spec.data)["train"].images[:GAP_SAMPLES]
        protocol, name = self.run.spec.protocol, self.run.pair[0] or ""

        def log_p(model: nn.Module) -> Tensor:
            logits = predict(model, images, self.normalise, protocol, self.device, self.processes)
            return torch.from_numpy(logits).double().log_softmax(1)

        student, gaps = log_p(self.model), []
        for weights in self.teachers:
            anchor = registry.models.get(name).build(self.prepared.num_classes, self.prepared.shape[0])
            load_weights(anchor, weights)
            theirs = log_p(anchor.to(self.device))
            gaps.append(float((theirs.exp() * (theirs - student)).sum(1).mean()))
        return gaps

    def _state(self, epoch: int, step: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "step": step,
            "seconds": self.seconds,
            "anchor": self.anchor,
            "stopped": self.stopped,
            "memory": self.memory.hashes(epoch, step),
            "model": self.model.state_dict(),
            "peers": self.peers.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "meter": self.meter.sums,
            "watched": self.watched,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def _restore(self, state: dict[str, Any] | None) -> tuple[int, int]:
        lost = state is None or not self.memory.whole(state["memory"], state["epoch"], state["step"])
        if self.processes.any(lost) or state is None:
            first = self.objective.first_stage() if isinstance(self.objective, Method) else 0
            return -first, 0
        self._go_to_anchor(state["anchor"])
        self.model.load_state_dict(state["model"])
        self.peers.load_state_dict(state["peers"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        self.stopped = state["stopped"]
        self.watched = state["watched"]
        self.seconds = state["seconds"]
        self.meter.sums = {k: v.to(self.device) for k, v in state["meter"].items()}
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        return state["epoch"], state["step"]

    def _finish(self, epoch: int, started: float) -> None:
        """Write the run's results; the status comes last."""
        if isinstance(self.objective, Recipe):
            self.objective.finish(self.model, self.classifier, self.scores.held_out(self.model))
            if self.objective.recalibrate:
                self._recalibrate(epoch)
        outputs = {"model": self.paths.model}
        if self.cost is not None:
            head = self.objective.auxiliary() if isinstance(self.objective, Method) else None
            save_predictions(
                self.paths.predictions,
                self.model,
                self.prepared,
                self.run.spec,
                self.device,
                Headed(self.catch, self.model, head) if head is not None else None,
                self.processes,
                None if isinstance(self.objective, Recipe) else self.scores.latest,  # one may have changed it
            )
            outputs["predictions"] = self.paths.predictions
        if not self.processes.first:
            return
        record = provenance(self.run, self.device)
        record |= {
            "started": started,
            "finished": time.time(),
            "seconds": sum(row["seconds"] for row in self.history),
            "data": self.prepared.checksums,
            "teacher": [sha256(weights) for weights in self.teachers],
            "banks": self.teacher.names if isinstance(self.teacher, Banked) else [],
            "processes": self.processes.size,
            "cost": self._costs(),
        }
        ref = self.run.spec.teacher
        if ref and ref.choice:
            record["choice"] = read_json(RunPaths(self.teachers[0].parent).checkpoint_record)
        save_weights(self.model, self.paths.model)
        for number, peer in enumerate(self.peers, 1):
            save_weights(peer, self.paths.peer(number))
        if self.cost is not None:
            record["model"] = asdict(self.cost)
        write_text(self.paths.history, history_csv(self.history))
        outputs["history"] = self.paths.history
        record["outputs"] = {name: sha256(file) for name, file in outputs.items()}
        write_json(self.paths.provenance, record)
        reason = ""
        if self._collapsed:
            reason = "the loss is not finite" if self.history else "its teacher collapsed"
        write_json(
            self.paths.status,
            {"status": "collapsed" if reason else "finished", "epoch": epoch, "reason": reason},
        )

    @torch.no_grad()
    def _recalibrate(self, epoch: int) -> None:
        """Measure the batch norms' statistics anew, as means over an epoch's batches."""
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None
        self.model.train()
        with autocast(self.run.spec.protocol.precision, self.device):
            for batch in self.batches.epoch(epoch):
                self.model(self.processes.mine(batch.images, len(batch.index)))

    def _costs(self) -> dict[str, float]:
        """What the training cost: its steps, its memory, and the parameters that are not the network's."""
        own = {id(p) for p in self.model.parameters()}
        extra = sum(p.numel() for p in self.trainable.all if id(p) not in own)
        return {**self.profile.summary(), "extra_parameters": extra}

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
    def add(self, terms: dict[str, Tensor], labels: Tensor, logits: Tensor | None) -> None:
        """Add a batch: its loss terms (scalars), labels (B) and, of their images first, logits (B x C)."""
        seen = {"samples": torch.full((), len(labels), dtype=torch.float32, device=self.device)}
        if logits is not None:
            seen["correct"] = (logits[: len(labels)].argmax(1) == labels).sum()
        seen |= {f"loss_{name}": term.detach() * len(labels) for name, term in terms.items()}
        for name, value in seen.items():
            value = value.to(self.device, torch.float64 if self.device.type == "cpu" else torch.float32)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> Row:
        """Loss, loss per term, and training accuracy (%) of the epoch."""
        sums = {name: float(value) for name, value in self.sums.items()}
        samples = sums.pop("samples")
        correct = sums.pop("correct", None)
        losses = {name: value / samples for name, value in sums.items()}
        top1 = {} if correct is None else {"train_top1": 100 * correct / samples}
        return {"loss": sum(losses.values()), **losses, **top1}


def history_csv(history: Sequence[Row]) -> str:
    """The history as CSV; a term that some epochs lack is left empty there."""
    columns = list(dict.fromkeys(key for row in history for key in row)) or ["epoch"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "epoch": int(row["epoch"])} for row in history)
    return text.getvalue()
