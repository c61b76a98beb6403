"""A network's features, stored so that measures of their geometry need no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdpipe.api import ModelSpec
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError
from kdpipe.core.files import atomic
from kdpipe.core.specs import Run
from kdpipe.engine.batches import in_order, preprocessing
from kdpipe.engine.predict import BATCH, autocast
from kdpipe.engine.prepare import Prepared, positions, select
from kdpipe.engine.weights import load_weights
from kdpipe.nn.taps import catch

LIMIT = 50_000  # images of a split; a larger one is thinned evenly


def save_features(path: Path, run: Run, weights: Path, prepared: Prepared, device: torch.device) -> None:
    """Write what a network makes of the training and test images, none of them augmented.

    The arrays are `{split}_features` (N x D, the tap `embed`), `{split}_logits`, `{split}_labels` and
    `{split}_index` of `train` and `test`, and the classifier's `weight` (C x D) and `bias` (C).

    Args:
        path: `features.npz`.
        run: whose network it is.
        weights: its weights.
        prepared: the data set.
        device: where it runs.

    Raises:
        ConfigError: the network's classifier is not a linear layer.
    """
    spec: ModelSpec = registry.models.get(run.spec.model.name)
    model = spec.build(prepared.num_classes, prepared.shape[0])
    load_weights(model, weights)
    head = model.get_submodule(spec.classifier)
    if not isinstance(head, torch.nn.Linear):
        raise ConfigError(f"{spec.name} has no linear classifier, so its features are not measured")
    arrays: dict[str, NDArray[Any]] = {
        "weight": head.weight.detach().numpy(),
        "bias": np.zeros(prepared.num_classes, np.float32)
        if head.bias is None
        else head.bias.detach().numpy(),
    }
    model.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network, normalise = catch(model, spec, ("embed",)), preprocessing(prepared, device)
    splits, rows = select(prepared, run.spec.data), positions(prepared, run.spec.data)
    for name in ("train", "test"):
        logits, features = [], []
        with torch.inference_mode(), autocast(run.spec.protocol.precision, device):
            for images in in_order(splits[name].images, BATCH, device):
                out = network(normalise(images))
                logits.append(out.logits.float().cpu())
                features.append(out["embed"].float().cpu())
        kept = slice(None, None, -(-len(rows[name]) // LIMIT))
        arrays[f"{name}_logits"] = torch.cat(logits)[kept].numpy()
        arrays[f"{name}_features"] = torch.cat(features)[kept].numpy()
        arrays[f"{name}_labels"] = np.asarray(splits[name].labels)[kept]
        arrays[f"{name}_index"] = np.asarray(rows[name])[kept]
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
