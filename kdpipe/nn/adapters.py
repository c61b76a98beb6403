"""Trainable adapters from a student's tap to a teacher's, sized by the taps' shapes."""

from __future__ import annotations

from torch import nn

from kdpipe.core.errors import ConfigError

Shape = tuple[int, ...]


def connector(student: Shape, teacher: Shape, *, relu: bool = True) -> nn.Sequential:
    """A convolution, batch norm and optionally ReLU that map a student's map onto a teacher's shape.

    The convolution's kernel follows from the sides s (student) and t (teacher):

        s = 2t    3 x 3, stride 2, padding 1
        2s = t    4 x 4, stride 2, padding 1, transposed
        s >= t    (1 + s_H - t_H) x (1 + s_W - t_W), no padding

    Args:
        student: (C_s, H_s, W_s).
        teacher: (C_t, H_t, W_t).
        relu: end in a ReLU; its output cannot match a teacher map with negative values.

    Raises:
        ConfigError: the student's map is smaller than the teacher's by a factor other than 2.

    Source: the regressor that RepDistiller and mdistiller use for FitNet (Romero et al. 2015 state
    only a convolution whose kernel makes the sizes agree).
    """
    layers: list[nn.Module] = [_resize(student, teacher), nn.BatchNorm2d(teacher[0])]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def fits(student_stride: int, teacher_stride: int) -> bool:
    """Whether `connector` fits maps of these strides (image side / map side)."""
    return student_stride <= teacher_stride or student_stride == 2 * teacher_stride


def _resize(student: Shape, teacher: Shape) -> nn.Module:
    inputs, *s = student
    outputs, *t = teacher
    if all(a == 2 * b for a, b in zip(s, t, strict=True)):
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    if all(2 * a == b for a, b in zip(s, t, strict=True)):
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    if all(a >= b for a, b in zip(s, t, strict=True)):
        return nn.Conv2d(inputs, outputs, (1 + s[0] - t[0], 1 + s[1] - t[1]))
    raise ConfigError(
        f"no connector brings a map of {s[0]} x {s[1]} to {t[0]} x {t[1]}",
        fix="choose taps whose maps are of one size, or differ by a factor of 2",
    )
