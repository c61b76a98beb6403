"""The fixed inputs of the golden values: closed forms in float64, no random numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def wave(shape: tuple[int, ...], a: float, b: float, c: float) -> Array:
    """`c sin(a i + b)` at flat index i = 0, 1, ..., row-major."""
    return (c * np.sin(a * np.arange(math.prod(shape)) + b)).reshape(shape)


LABELS = np.arange(8)
STUDENT_LOGITS = wave((8, 10), 0.37, 0, 3)
TEACHER_LOGITS = wave((8, 10), 0.91, 0.5, 4)
STUDENT_MAPS = wave((8, 6, 4, 4), 0.11, 0.2, 1)
TEACHER_MAPS = wave((8, 6, 4, 4), 0.23, 0.7, 1)
