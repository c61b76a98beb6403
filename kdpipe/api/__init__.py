"""The interfaces that plug-ins are written against."""

from kdpipe.api.batch import Batch, DataInfo, HeldOut, Norms, Outputs, Progress, Shapes, Trainable, Wish
from kdpipe.api.bench import Arrays, Bench, Desk, Finding, Images
from kdpipe.api.dataset import Dataset, DatasetSpec, ImageFiles, Regression, RegressionSpec, Split
from kdpipe.api.memory import Memory
from kdpipe.api.model import ModelSpec, Tap
from kdpipe.api.objective import Method, Objective, Recipe, TeacherPart, total
from kdpipe.api.settings import Paper, Published, Settings, hp
from kdpipe.core.plot import Line, Panel, Plot, Verdict

__all__ = [
    "Arrays",
    "Batch",
    "Bench",
    "DataInfo",
    "Dataset",
    "DatasetSpec",
    "Desk",
    "Finding",
    "HeldOut",
    "ImageFiles",
    "Images",
    "Line",
    "Memory",
    "Method",
    "ModelSpec",
    "Norms",
    "Objective",
    "Outputs",
    "Panel",
    "Paper",
    "Plot",
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
    "Verdict",
    "Wish",
    "hp",
    "total",
]
