"""The frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kdpipe.api import DataInfo, ModelSpec, Outputs, TeacherPart, Wish
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.weights import load_weights
from kdpipe.nn.fold import fold_batch_norm
from kdpipe.nn.taps import catch, expand, extended, extended_shapes, norms, shapes, through, transformed


class Teacher:
    """A teacher that nothing can train: in eval mode, its batch norms folded, run under inference mode.

    Where the wish says `batch_statistics`, its batch norms are kept and use those of the batch.

    Args:
        spec: its network.
        weights: its weights.
        prepared: the data set.
        wish: taps to read beside the logits, and how.
        device: where it runs.
        autocast: context that sets the precision of its forward pass.
        part: what was trained on top of it, and the weights of that.
        data: what the part may know of the training data.

    Attributes:
        shapes: shapes of its taps, those of the part included.
        norms: weights and biases of the batch norms in front of its taps.
        finite: whether its weights are numbers.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Path,
        prepared: Prepared,
        wish: Wish,
        device: torch.device,
        autocast: Callable[[], torch.autocast],
        part: tuple[TeacherPart, Path] | None,
        data: DataInfo,
    ) -> None:
        model = spec.build(prepared.num_classes, prepared.shape[0])
        load_weights(model, weights)
        taps = expand(spec, (*wish.teacher, *(part[0].taps().teacher if part else ())))
        self.norms = norms(model, spec, taps)
        self.finite = all(bool(torch.isfinite(p).all()) for p in model.state_dict().values())
        if wish.batch_statistics:
            for module in model.eval().modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.track_running_stats, module.running_mean, module.running_var = False, None, None
        else:
            model = fold_batch_norm(model.eval())
        self.model = model.requires_grad_(False).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._catch = catch(self.model, spec, taps)
        self._autocast = autocast
        self.shapes = shapes(self.model, spec, taps, prepared.shape)
        self._part = None
        if part is not None:
            self._part, file = part
            self._part.build(self.shapes, data)
            load_weights(self._part, file)
            self._part.eval().requires_grad_(False)
            self.shapes = extended_shapes(self._part, self.shapes)
            self._part.to(device)

    def __call__(self, inputs: Sequence[Tensor]) -> Outputs:
        """Its outputs for each input, as ordinary float32 tensors without gradient."""
        with torch.inference_mode(), self._autocast():
            out = through(self._catch, inputs)
            if self._part is not None:
                out = extended(self._part, out)
        # clones, because autograd refuses to save tensors made under inference mode
        return transformed(out, lambda x: x.float().clone())
