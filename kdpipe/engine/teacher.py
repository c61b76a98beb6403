"""The frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdpipe.api import ModelSpec, Outputs, Shapes
from kdpipe.engine.weights import load_weights
from kdpipe.nn.fold import fold_batch_norm
from kdpipe.nn.taps import catch, shapes


class Teacher:
    """A teacher that nothing can train: in eval mode, its batch norms folded, run under inference mode.

    Args:
        spec: its network.
        weights: its weights.
        num_classes, in_channels: of the data.
        taps: taps to read beside the logits.
        device: where it runs.
        autocast: context that sets the precision of its forward pass.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Path,
        num_classes: int,
        in_channels: int,
        taps: Sequence[str],
        device: torch.device,
        autocast: Callable[[], torch.autocast],
    ) -> None:
        model = spec.build(num_classes, in_channels)
        load_weights(model, weights)
        model = fold_batch_norm(model.eval()).requires_grad_(False)
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spec, self.taps = spec, tuple(taps)
        self.finite = all(bool(torch.isfinite(p).all()) for p in self.model.state_dict().values())
        self._catch = catch(self.model, spec, taps)
        self._autocast = autocast

    def shapes(self, image: tuple[int, int, int]) -> Shapes:
        """Shapes of its taps for an image of that shape."""
        return shapes(self.model, self.spec, self.taps, image)

    def __call__(self, images: Tensor) -> Outputs:
        """Its outputs for a batch, as ordinary float32 tensors without gradient."""
        with torch.inference_mode(), self._autocast():
            out = self._catch(images)
        # clones, because autograd refuses to save tensors made under inference mode
        return Outputs(out.logits.float().clone(), {k: v.float().clone() for k, v in out.taps.items()})
