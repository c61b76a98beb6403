"""A network's predictions, stored so that evaluation needs no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdpipe.api import HeldOut, ImageFiles, Outputs
from kdpipe.core.files import atomic
from kdpipe.core.specs import Passes, Protocol, RunSpec
from kdpipe.engine.batches import Preprocess, in_order, preprocessing
from kdpipe.engine.prepare import Prepared, positions, select
from kdpipe.engine.processes import ALONE, Processes

BATCH = 500


def autocast(precision: Passes, device: torch.device) -> torch.autocast:
    """Forward passes in a precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def predict(
    model: nn.Module,
    images: NDArray[np.uint8] | ImageFiles,
    normalise: Preprocess,
    protocol: Protocol,
    device: torch.device,
    processes: Processes = ALONE,
) -> NDArray[np.float32]:
    """Logits (N x C, float32) for a split's images, in order; leaves the model in eval mode."""
    model.eval()
    share = len(images) >= processes.size
    mine = images[processes.rows(len(images))] if share else images
    logits = []
    with torch.inference_mode(), autocast(protocol.precision, device):
        for part in in_order(mine, BATCH, device):
            logits.append(model(normalise(part)).float())
        found = torch.cat(logits)
        return (processes.whole(found, len(images)) if share else found).cpu().numpy()


class Headed(nn.Module):
    """A network that answers with another head on its features.

    Args:
        network: gives its outputs with the tap `embed`.
        model: the same network, for its mode.
        head: B x D to B x C.
    """

    def __init__(self, network: Callable[[Tensor], Outputs], model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.model, self.head = network, model, head

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the other head."""
        logits: Tensor = self.head(self.network(images)["embed"])
        return logits


class Scores:
    """The accuracy and loss curves of a training: measured after each epoch and told to its history.

    The training loop holds no images or labels but the training ones. Test accuracy only passes through it
    and is used by nothing; a recipe may look at validation images (`held_out`).

    Args:
        prepared: the data set.
        spec: the run, whose held-out images are scored where it has any, else the test images.
        normalise: what the network is given.
        device: where it runs.
        processes: which share the images.

    Attributes:
        latest: the logits that were scored last, by the name of their split; empty before.
    """

    def __init__(
        self,
        prepared: Prepared,
        spec: RunSpec,
        normalise: Preprocess,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        splits = select(prepared, spec.data)
        self._name = "val" if "val" in splits else "test"
        self._split, self._protocol = splits[self._name], spec.protocol
        self._normalise, self._device, self._processes = normalise, device, processes
        self.latest: dict[str, NDArray[np.float32]] = {}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`val_top1` or `test_top1`, in percent, and `val_loss` or `test_loss`: cross entropy, in nats."""
        self.latest = {}  # first, for of ImageNet they are large
        logits, labels = self._logits(model), self._split.labels
        self.latest = {self._name: logits}
        loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor(labels))
        return {
            f"{self._name}_top1": float(100 * np.mean(logits.argmax(1) == labels)),
            f"{self._name}_loss": float(loss),
        }

    def held_out(self, model: nn.Module) -> HeldOut | None:
        """What measures the validation images, for a recipe; None where there are none."""
        if self._name != "val":
            return None
        return lambda: (torch.from_numpy(self._logits(model)), torch.tensor(self._split.labels))

    def _logits(self, model: nn.Module) -> NDArray[np.float32]:
        return predict(
            model, self._split.images, self._normalise, self._protocol, self._device, self._processes
        )


def save_predictions(
    path: Path,
    model: nn.Module,
    prepared: Prepared,
    spec: RunSpec,
    device: torch.device,
    second: nn.Module | None = None,
    processes: Processes = ALONE,
    known: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write logits, labels and indices of every split but the training one (see `RunPaths.predictions`).

    Those of `second`, a network with another head, are stored beside them. Of several processes, which
    share the images, the first writes. `known` holds logits of `model` that are there already, by split.
    """
    splits, rows = select(prepared, spec.data), positions(prepared, spec.data)
    normalise = preprocessing(prepared, device)
    arrays: dict[str, NDArray[Any]] = {}
    for name in sorted(splits.keys() - {"train"}):
        split = splits[name]
        found = {"logits": known[name]} if known and name in known else {}
        for kind, network in (("logits", model), ("auxiliary", second)):
            if network is not None and kind not in found:
                found[kind] = predict(network, split.images, normalise, spec.protocol, device, processes)
        arrays |= {f"{name}_{kind}": logits for kind, logits in found.items()}
        arrays[f"{name}_labels"] = np.asarray(split.labels)
        arrays[f"{name}_index"] = np.asarray(rows[name])
    if prepared.reference is not None:
        arrays["test_reference"] = prepared.reference[rows["test"]]
    if not processes.first:
        return
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
