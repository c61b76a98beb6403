"""What objectives remember of each sample, in memory-mapped files that a kill cannot tear."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdpipe.api import Memory
from kdpipe.core.files import write_error

SLOTS = 3  # the two of the epoch at hand, and the one that the resume state before the last would need
RESIDENT = 2**30  # bytes of one memory that may live on an accelerator


class MemoryFiles:
    """The memories of one run.

    Epoch e reads slot (e - 1) mod 3 and writes slot e mod 3. On the CPU the tensors are maps of the files;
    on an accelerator they are copies that `flush` writes back, unless they are too large for it.

    Args:
        folder: where the files lie.
        shapes: name -> shape for one sample.
        samples: number of training samples.
        device: where the training is.
        writes: False for a process that shares the run with the one that writes. It reads the files, once
            they are made, and keeps what it writes to itself.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        samples: int,
        device: torch.device,
        writes: bool = True,
    ) -> None:
        self.folder, self.shapes, self.samples, self.device = folder, shapes, samples, device
        self.writes = writes
        self.memory: dict[str, Memory] = {}
        self._maps: dict[str, tuple[Tensor, Tensor]] = {}

    def open(self, epoch: int) -> dict[str, Memory]:
        """The memories as epoch `epoch` (from 0) has them.

        Raises:
            ResultsError: a file cannot be made.
        """
        for name in self.shapes:
            past, future = self._map(name, epoch - 1), self._map(name, epoch)
            self._maps[name] = past, future
            resident = past.numel() * 4 <= RESIDENT
            place = self.device if resident else torch.device("cpu")
            self.memory[name] = Memory(past.to(place), future.to(place))
        return self.memory

    def flush(self) -> None:
        """Bring what was written to the files."""
        if not self.writes:
            return
        for name, (_, future) in self._maps.items():
            written = self.memory[name].future
            if written.data_ptr() != future.data_ptr():
                future.copy_(written)

    def hashes(self, epoch: int, step: int) -> dict[str, str]:
        """What must still be in the files for a training to go on in epoch `epoch` after `step` steps."""
        epochs = (epoch - 1, epoch) if step else (epoch - 1,)
        return {
            self._file(name, e).name: hashlib.sha256(self._map(name, e).numpy().data).hexdigest()
            for name in self.shapes
            for e in epochs
        }

    def whole(self, hashes: Mapping[str, str], epoch: int, step: int) -> bool:
        """Whether the files hold what they held when the state was saved; the one that writes knows."""
        if not self.writes:
            return True
        return all(self._file(name, epoch - 1).is_file() for name in self.shapes) and (
            dict(hashes) == self.hashes(epoch, step)
        )

    def _file(self, name: str, epoch: int) -> Path:
        return self.folder / f"{name}-{epoch % SLOTS}.f32"

    def _map(self, name: str, epoch: int) -> Tensor:
        file, shape = self._file(name, epoch), (self.samples, *self.shapes[name])
        try:
            if not file.is_file() or file.stat().st_size != 4 * int(np.prod(shape)):
                file.parent.mkdir(parents=True, exist_ok=True)
                with open(file, "wb") as made:
                    # a full disk is an error here; met through the map, it would kill the process
                    os.posix_fallocate(made.fileno(), 0, 4 * int(np.prod(shape)))
            mode: Literal["r+", "c"] = "r+" if self.writes else "c"
            return torch.from_numpy(np.memmap(file, np.float32, mode, shape=shape))
        except OSError as error:
            raise write_error(file, error) from error
