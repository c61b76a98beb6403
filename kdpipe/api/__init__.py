"""The interfaces that plug-ins are written against."""

from kdpipe.api.batch import Batch, DataInfo, Outputs, Progress, Shapes, Trainable, Wish
from kdpipe.api.dataset import DatasetSpec, Split
from kdpipe.api.model import ModelSpec, Tap
from kdpipe.api.objective import Method, Objective, Recipe, total
from kdpipe.api.settings import Paper, Published, Settings, hp

__all__ = [
    "Batch",
    "DataInfo",
    "DatasetSpec",
    "Method",
    "ModelSpec",
    "Objective",
    "Outputs",
    "Paper",
    "Progress",
    "Published",
    "Recipe",
    "Settings",
    "Shapes",
    "Split",
    "Tap",
    "Trainable",
    "Wish",
    "hp",
    "total",
]
