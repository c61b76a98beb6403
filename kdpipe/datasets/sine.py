"""Noisy samples of a sine on a grid: the regression example of Borup and Andersen 2021, section 4.4."""

from __future__ import annotations

import numpy as np

from kdpipe.api import Paper, Regression, RegressionSpec

SAMPLES = 11
NOISE = 0.5


def draw(seed: int) -> Regression:
    """One draw: `y_i = sin(2 pi x_i) + e_i` with `e_i ~ N(0, 0.5^2)` at `x_i = i / 10`, i = 0, ..., 10.

    Args:
        seed: of the noise; the grid is fixed.

    Returns:
        Inputs 11 x 1, noisy and clean targets of 11.
    """
    x = np.arange(SAMPLES) / (SAMPLES - 1)
    clean = np.sin(2 * np.pi * x)
    noise = np.random.Generator(np.random.PCG64(seed)).normal(0, NOISE, SAMPLES)
    return Regression(x[:, None], clean + noise, clean)


SECTION = "Borup and Andersen 2021, section 4.4"
SINE = RegressionSpec(
    name="sine",
    samples=SAMPLES,
    draw=draw,
    about="y = sin(2 pi x) + noise on a grid in [0, 1]",
    settings={
        "x": ("0, 0.1, ..., 1", SECTION),
        "y": ("sin(2 pi x) + e", SECTION),
        "standard deviation of e": (NOISE, SECTION),
        "seed of the noise": ("an argument", "the paper states none"),
    },
    licence="none needed: the data are drawn",
    paper=Paper(
        title="Even your teacher needs guidance: ground-truth targets dampen regularization imposed "
        "by self-distillation",
        authors="Borup, Andersen",
        venue="NeurIPS",
        year=2021,
        url="https://arxiv.org/abs/2102.13088",
    ),
)
