"""Benches: simulations and closed forms of theory, run and shown by the same pipeline as trainings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from kdpipe.api.settings import Paper, Settings
from kdpipe.core.plot import Plot, Verdict

if TYPE_CHECKING:
    import pandas as pd

Arrays = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Images:
    """A data set as a bench sees it.

    Attributes:
        name: of the data set.
        train, test: one image per row, flattened, values in [0, 1] (n x d, float64).
        train_labels, test_labels: class numbers from 0 (n, int64).
    """

    name: str
    train: NDArray[np.float64]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float64]
    test_labels: NDArray[np.int64]


class Desk(Protocol):
    """What surrounds a bench: finished parts that survive a kill, and a way to tell how far it is."""

    def once(self, name: str, make: Callable[[], Arrays]) -> dict[str, NDArray[np.float64]]:
        """The arrays called `name`: from disk where a killed run left them, else made now and kept."""

    def tell(self, done: float, what: str) -> None:
        """Say how much of the run is done (0 to 1), and what comes next."""


@dataclass(frozen=True)
class Finding:
    """What one run of a bench found.

    Attributes:
        label: of its variant in the study.
        seed: of its randomness.
        bench: the bench, with its settings.
        tables: its tables by name.
        dataset: name of the data set, if it saw one.
    """

    label: str
    seed: int
    bench: Bench
    tables: Mapping[str, pd.DataFrame]
    dataset: str = ""


class Bench(ABC):
    """A theory bench: runs once per variant and seed, then shows all runs of a study together.

    Attributes:
        name: how studies call it.
        revision: bumped when it gives other numbers.
        paper: where the theory comes from.
        needs_images: whether a study must name a data set.
        plots: names of the figures that it can draw, with what each shows.
    """

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    paper: ClassVar[Paper]
    needs_images: ClassVar[bool] = False
    plots: ClassVar[Mapping[str, str]]

    class Config(Settings):
        """No settings."""

    def __init__(self, config: Settings | None = None) -> None:
        self.config = config or self.Config()

    @abstractmethod
    def run(self, seed: int, images: Images | None, desk: Desk) -> dict[str, pd.DataFrame]:
        """Every number of one run, as tables in tidy form (one row per value measured)."""

    @abstractmethod
    def draw(self, name: str, found: Sequence[Finding]) -> Plot:
        """One of its figures, from all runs of a study."""

    @abstractmethod
    def verdicts(self, name: str, found: Sequence[Finding]) -> list[Verdict]:
        """What the runs say about the paper's statements that the figure `name` stands for."""
