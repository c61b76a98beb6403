"""How a job is asked to stop."""

from dataclasses import dataclass


@dataclass
class Stop:
    """Set by a signal handler; the loop saves its state and raises `Interrupted` after the step at hand."""

    requested: bool = False
