"""Seconds of a grid end to end: students of one teacher that read logits alone, each trained for an epoch.

The usual way is a process of the field's loop for each, one after the other (`reference.py`): it starts,
trains, measures its student on test images and writes it. It has ordinary KD whatever the method, so two
are timed; and all methods here go back through the student once a step, as ordinary KD does. kdpipe's is one
call of `snakemake`, from its start to the printed tables, the making of the bank included. Nothing is there
beforehand but the prepared images and the teacher, whose weights are random. The figures that matter are the
ratios.

    python -m benchmarks grid --data data/cifar100 --samples 5000
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, call, python
from benchmarks.project import Project
from kdpipe.core import registry
from kdpipe.core.files import sha256
from kdpipe.engine.weights import save_weights

METHODS = ("kd", "dkd", "dist", "ttm", "wttm", "binarykl_norm", "mse", "logit_std_kd")
PRECISIONS = {  # row -> what it changes of the protocol
    "float32": {},
    "float32, teacher in bfloat16": {"teacher_precision": "bfloat16"},
    "bfloat16": {"precision": "bfloat16"},
}
IMAGES_TO_TEST = 5  # training images for each test image, as in CIFAR-100


@dataclass(frozen=True)
class Grid:
    """The students of one teacher.

    Attributes:
        data: the folder that holds CIFAR-100.
        pair: TEACHER:STUDENT.
        methods: of the students, one each.
        samples: training images; CIFAR-100 has 50,000.
        threads: processor threads of it all; the usual loop gives them to one student, kdpipe shares them.
        device: where the networks run.
    """

    data: Path
    pair: str
    methods: Sequence[str] = METHODS
    samples: int = 10240
    threads: int = 2
    device: str = "cpu"

    @property
    def tests(self) -> int:
        """How many images the students are measured on."""
        return self.samples // IMAGES_TO_TEST

    def usual(self, prepared: Path, times: int = 2) -> float:
        """Seconds by the usual loop, from prepared images: of one student, `times` times, for each of all."""
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "data": prepared,
                "pair": self.pair,
                "samples": self.samples,
                "tests": self.tests,
                "threads": self.threads,
                "device": self.device,
                "out": Path(folder) / "student.pt",
            }
            given = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
            command = python("-m", "benchmarks.reference", *given)
            return len(self.methods) * statistics.mean(call(command).seconds for _ in range(times))

    def project(self, root: Path, change: Mapping[str, str]) -> Project:
        """A project with the grid as its study, its teacher imported and its images prepared."""
        teacher, student = self.pair.split(":")
        weights = root / "teacher.safetensors"
        save_weights(registry.models.get(teacher).build(100, 3), weights)
        study = {
            "title": "Logit students of one teacher",
            "dataset": "cifar100",
            "protocol": "crd240",
            "scale": "part",
            "scales": {"part": {"epochs": 1, "train_samples": self.samples, "test_samples": self.tests}},
            "seeds": [0],
            "pairs": [{"teacher": teacher, "student": student}],
            "recipes": [{"name": "imported", "settings": {"files": {teacher: sha256(weights)}}}],
            "methods": [{"name": name, "protocol": change} for name in self.methods],
            "metrics": ["top1"],
        }
        project = Project(root)
        place = {"data": str(self.data.resolve().parent), "device": self.device}
        project.write({"grid": study}, **place, bank={"use": "always"}, pack=len(self.methods))
        project.kdpipe("import-teacher", weights, "--model", teacher, "--dataset", "cifar100")
        project.snakemake("local", "--until", "adopt_teacher")
        return project


def measure(grid: Grid) -> Iterator[Figure]:
    """Seconds of the whole grid by the usual loop and by kdpipe, and how many times faster kdpipe is."""
    about = f"{len(grid.methods)} students, {grid.pair.replace(':', ' to ')}, {grid.samples} images"
    usual = None
    for row, change in PRECISIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            project = grid.project(Path(folder), change)
            if usual is None:
                usual = grid.usual(next(Path(folder).glob("results/data/*")))
                yield Figure("grid", f"{about}, the usual loop, one after the other", usual, "s")
            cores = grid.threads if grid.device == "cpu" else len(grid.methods)  # a GPU is shared by all
            took = project.snakemake("local", cores=cores).seconds
            yield Figure("grid", f"{about}, kdpipe, {row}", took, "s", usual / took, "more")
