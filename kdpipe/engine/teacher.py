"""The frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kdpipe.api import DataInfo, ModelSpec, Outputs, TeacherPart, Wish
from kdpipe.core.specs import Precision
from kdpipe.engine.compiled import compile_networks
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.processes import ALONE
from kdpipe.engine.weights import load_weights
from kdpipe.nn.fold import fold_batch_norm
from kdpipe.nn.folds import folds
from kdpipe.nn.taps import catch, expand, extended, extended_shapes, in_float32, norms, shapes, through


class Teacher:
    """A teacher that nothing can train: in eval mode, its batch norms folded, run without gradients.

    Where the wish says `batch_statistics`, its batch norms are kept and use those of the batch. It may
    consist of several networks, of which each teaches the samples of its own fold.

    Args:
        spec: its network.
        weights: its weights; several files for the networks of as many folds.
        prepared: the data set.
        wish: taps to read beside the logits, and how.
        device: where it runs.
        autocast: context that sets the precision of its forward pass.
        part: what was trained on top of it, and the weights of that.
        data: what the part may know of the training data.
        shared: what is done to a network that sees a part of each batch (`Processes.shared`).
        logits: what its logits are rounded to.
        compiled: whether `torch.compile` makes its passes.

    Attributes:
        shapes: shapes of its taps, those of the part included.
        norms: weights and biases of the batch norms in front of its taps.
        finite: whether its weights are numbers.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Sequence[Path],
        prepared: Prepared,
        wish: Wish,
        device: torch.device,
        autocast: Callable[[], torch.autocast],
        part: tuple[TeacherPart, Path] | None,
        data: DataInfo,
        shared: Callable[[nn.Module], nn.Module] = ALONE.shared,
        logits: Precision = "float32",
        compiled: bool = False,
    ) -> None:
        taps = expand(spec, (*wish.teacher, *(part[0].taps().teacher if part else ())))
        self.models = nn.ModuleList().eval()
        for number, file in enumerate(weights):
            model = spec.build(prepared.num_classes, prepared.shape[0])
            load_weights(model, file)
            if not number:
                self.norms = norms(model, spec, taps)
            self.models.append(shared(_frozen(model, wish.batch_statistics)))
        self.finite = all(bool(torch.isfinite(p).all()) for p in self.models.state_dict().values())
        self.models.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._catch = [catch(model, spec, taps) for model in self.models]
        self._fold = folds(data.labels, len(weights)).to(device) if len(weights) > 1 else None
        self._autocast = autocast
        self._rounds = logits == "float16"
        self.shapes = shapes(self.models[0], spec, taps, prepared.shape)
        self._part = None
        if part is not None:
            self._part, file = part
            self._part.build(self.shapes, data)
            load_weights(self._part, file)
            self._part.eval().requires_grad_(False)
            self.shapes = extended_shapes(self._part, self.shapes)
            self._part.to(device)
        if compiled:
            compile_networks(self.models)

    def begin(self, epoch: int) -> None:
        """An epoch begins: nothing to do for a teacher that sees the images itself."""

    def __call__(self, inputs: Sequence[Tensor], index: Tensor) -> Outputs:
        """Its outputs for each input, as ordinary float32 tensors without gradient.

        Args:
            inputs: images of each pass; a multiple of the batch holds it several times over.
            index: B, which samples they show.
        """
        with torch.no_grad(), self._autocast():  # inference mode gains nothing, and its tensors need copies
            out = through(lambda images: self._pass(images, index), inputs)
            if self._part is not None:
                out = extended(self._part, out)
            out = in_float32(out)
        return _rounded(out) if self._rounds else out

    def _pass(self, images: Tensor, index: Tensor) -> Outputs:
        if self._fold is None:
            return self._catch[0](images)
        owner = self._fold[index].repeat(len(images) // len(index))
        own = [(owner == number).nonzero().flatten() for number in range(len(self._catch))]
        parts = [network(images[mine]) for network, mine in zip(self._catch, own, strict=True) if len(mine)]
        back = torch.cat(own).argsort()
        return Outputs(
            torch.cat([p.logits for p in parts])[back],
            {name: torch.cat([p.taps[name] for p in parts])[back] for name in parts[0].taps},
        )


def _rounded(out: Outputs) -> Outputs:
    """The outputs with logits that float16 holds exactly."""
    return replace(out, logits=out.logits.half().float(), more=tuple(map(_rounded, out.more)))


def _frozen(model: nn.Module, batch_statistics: bool) -> nn.Module:
    """The network as a teacher runs it."""
    model = model.eval()
    if not batch_statistics:
        return fold_batch_norm(model).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return model.requires_grad_(False)
