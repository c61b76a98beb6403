"""The interfaces that plug-ins are written against."""

from kdpipe.api.batch import Batch, DataInfo, HeldOut, Norms, Outputs, Progress, Shapes, Trainable, Wish
from kdpipe.api.dataset import Dataset, DatasetSpec, ImageFiles, Regression, RegressionSpec, Split
from kdpipe.api.memory import Memory
from kdpipe.api.model import ModelSpec, Tap
from kdpipe.api.objective import Method, Objective, Recipe, TeacherPart, total
from kdpipe.api.settings import Paper, Published, Settings, hp

__all__ = [
    "Batch",
    "DataInfo",
    "Dataset",
    "DatasetSpec",
    "HeldOut",
    "ImageFiles",
    "Memory",
    "Method",
    "ModelSpec",
    "Norms",
    "Objective",
    "Outputs",
    "Paper",
    "Progress",
    "Published",
    "Recipe",
    "Regression",
    "RegressionSpec",
    "Settings",
    "Shapes",
    "Split",
    "Tap",
    "TeacherPart",
    "Trainable",
    "Wish",
    "hp",
    "total",
]
