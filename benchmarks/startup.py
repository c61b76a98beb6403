"""What a command costs before it does anything: a training to the end of its first step, and light commands.

Processor seconds of whole processes, with Python's byte code and the files' pages at hand, and how many times
`import torch`, which is measured in turn with them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, call, python
from kdpipe.core.specs import Augmentation, DataSpec, Part, Protocol, Run, RunSpec
from kdpipe.engine.prepare import load

FIRST_STEP = """
import os
from kdpipe import cli
machine = cli._processes

def until_the_first_step(*given, **named):
    from kdpipe.engine.train import Trainer
    step = Trainer.step

    def first(self, *given):
        step(self, *given)
        os._exit(0)

    Trainer.step = first
    return machine(*given, **named)

cli._processes = until_the_first_step
cli.main()
"""


def _run(data: Path, student: str) -> Run:
    prepared = load(data)
    spec = RunSpec(
        data=DataSpec(dataset=prepared.name, revision=1),
        model=Part(name=student, revision=1),
        protocol=Protocol(
            lr=0.05,
            epochs=1,
            batch_size=64,
            augmentation=(Augmentation(name="crop"), Augmentation(name="flip")),
        ),
        recipe=Part(name="standard", revision=1),
        seed=0,
    )
    return Run(spec=spec, label="startup", protocol="benchmark", pair=(student, None), recipe="standard")


def measure(data: Path, times: int = 5, student: str = "resnet8x4", threads: int = 1) -> Iterator[Figure]:
    """Medians of `times` calls of each command, in turn.

    Args:
        data: a prepared data set.
        times: calls of each.
        student: the network that is trained.
        threads: of the processor.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = json.dumps(_run(data, student).model_dump(mode="json"))
        train = ["train", "--run", run, "--data", data, "--device", "cpu", "--threads", str(threads)]
        commands = {
            "import torch": python("-c", "import torch"),
            "kdpipe train, to its first step": python(
                "-c", FIRST_STEP, *train, "--out", Path(folder) / "run"
            ),
            "kdpipe --help": python("-m", "kdpipe", "--help"),
            "import kdpipe.evaluation": python("-c", "import kdpipe.evaluation.evaluate"),
            "import kdpipe.tables": python("-c", "import kdpipe.tables.layout"),
        }
        found = {name: [] for name in commands}
        for turn in range(times + 1):
            for name, command in commands.items():
                took = call(command)
                if turn:  # the first fills caches
                    found[name].append(took)
    torch = statistics.median(took.processor for took in found["import torch"])
    for name, all_took in found.items():
        processor = statistics.median(took.processor for took in all_took)
        yield Figure("startup", name, processor, "s of the processor", processor / torch)
        yield Figure("startup", f"{name}, by the clock", statistics.median(t.seconds for t in all_took), "s")
