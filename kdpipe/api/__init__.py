"""The interfaces that plug-ins are written against.

A name is imported when it is asked for, so that a plug-in that needs no torch does not load it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpipe.api.batch import (
        Batch,
        DataInfo,
        Gradients,
        HeldOut,
        Norms,
        Outputs,
        Progress,
        Shapes,
        Trainable,
        Wish,
    )
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
    "Gradients",
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

_WHERE = {
    name: module
    for module, names in {
        "kdpipe.api.batch": "Batch DataInfo Gradients HeldOut Norms Outputs Progress Shapes Trainable Wish",
        "kdpipe.api.bench": "Arrays Bench Desk Finding Images",
        "kdpipe.api.dataset": "Dataset DatasetSpec ImageFiles Regression RegressionSpec Split",
        "kdpipe.api.memory": "Memory",
        "kdpipe.api.model": "ModelSpec Tap",
        "kdpipe.api.objective": "Method Objective Recipe TeacherPart total",
        "kdpipe.api.settings": "Paper Published Settings hp",
        "kdpipe.core.plot": "Line Panel Plot Verdict",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)
