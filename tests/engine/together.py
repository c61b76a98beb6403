"""Processes that share runs of the tiny data set, on the processor."""

from __future__ import annotations

import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kdpipe.core import registry
from kdpipe.core.paths import RunPaths
from kdpipe.engine.prepare import load
from kdpipe.engine.processes import ALONE
from kdpipe.engine.several import Several
from kdpipe.engine.train import Trainer
from tests.engine.tiny import PLAIN, SPEC, make_run

CPU = torch.device("cpu")


class Together:
    """Processes that wait for something to do together; leave the context to end them.

    Args:
        count: how many.
    """

    def __init__(self, count):
        spawned = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._asked = [spawned.Queue() for _ in range(count)]
        self._told = spawned.Queue()
        store = Path(self._folder.name) / "store"
        self._processes = [
            spawned.Process(target=_serve, args=(rank, count, store, asked, self._told), daemon=True)
            for rank, asked in enumerate(self._asked)
        ]
        for process in self._processes:
            process.start()

    def __call__(self, work, *arguments):
        """Call `work(processes, *arguments)` in each process; it has to be importable."""
        for asked in self._asked:
            asked.put((work, arguments))
        for _ in self._asked:
            error = self._told.get(timeout=280)
            assert error is None, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(rank, count, store, asked, told):
    torch.set_num_threads(1)
    registry.datasets.names()
    registry.datasets._found["corners"] = SPEC
    registry.datasets._files["corners"] = Path(__file__)
    # Gloo's, and so the processes' patience: a test that is stuck shall fail
    given = {"rank": rank, "world_size": count, "timeout": timedelta(seconds=250)}
    dist.init_process_group("gloo", init_method=f"file://{store}", **given)
    processes = Several(CPU)
    while True:
        work, arguments = asked.get()
        try:
            work(processes, *arguments)
        except Exception:
            told.put(traceback.format_exc())
        else:
            told.put(None)


def trainer(kind, name, root, data, teacher, processes=ALONE, stop=None, **changes):
    """A trainer of a run on the tiny data set, whose teacher is in the folder `teacher`."""
    run, taught = make_run(kind, name, **PLAIN, **changes), RunPaths(teacher)
    teachers = []
    if run.spec.teacher:
        teachers = [taught.checkpoint(e) for e in run.spec.teacher.anchors] or [taught.model]
    part = None
    if run.spec.method:
        plugin = registry.methods.get(name)
        needed = plugin(plugin.Config(**run.spec.method.settings)).part()
        part = RunPaths(teacher / "parts" / needed.name).model if needed else None
    more = {"stop": stop} if stop else {}
    return Trainer(run, RunPaths(root), load(data), teachers, CPU, part=part, processes=processes, **more)


def make_teacher(root, data):
    """A teacher with every epoch kept, and each part that a method needs on top of it."""
    paths = RunPaths(root)
    run = make_run("recipe", "standard", epochs=6, **PLAIN)
    Trainer(run, paths, load(data), (), CPU, keep=range(1, 7)).train()
    for _, plugin in registry.methods.items():
        if wanted := plugin().part():
            of = make_run("part", wanted.name, settings=wanted.config.model_dump(), epochs=2, **PLAIN)
            Trainer(of, RunPaths(root / "parts" / wanted.name), load(data), [paths.model], CPU).train()


def train(processes, case, folder, data, teacher):
    """Train a case (kind, name, changes), and keep the gradients of the first steps."""
    kind, name, changes = case
    watched = Watched(trainer(kind, name, folder, data, teacher, processes, **changes))
    watched.trainer.train()
    if processes.first:
        torch.save(watched.gradients, folder / "gradients.pt")


class Watched:
    """Keeps the gradients of a trainer's first two steps in every epoch, by the parameter's number.

    Args:
        trainer: whose.
    """

    def __init__(self, trainer):
        self.trainer, self.gradients = trainer, []
        self.step, trainer.step = trainer.step, self

    def __call__(self, batch, at):
        terms = self.step(batch, at)
        if at.step < 2:
            grads = enumerate(p.grad for p in self.trainer.trainable.all)
            self.gradients.append({str(n): grad.clone() for n, grad in grads if grad is not None})
        return terms
