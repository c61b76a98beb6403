"""What a network declares about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from kdpipe.api.settings import Paper

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Tap:
    """A named place in a network whose value a method may read.

    Attributes:
        module: dotted path of the sub-module.
        channels: channels of a map, or length of a vector.
        stride: image side / map side, which rounds up; 0 for a vector.
        kind: `relu` (after a ReLU), `linear` (may be negative: residual sums, bottlenecks),
            `vector` (pooled features).
        side: read the module's `output`, or its `input`.
        stride_64: stride for images of 64 pixels and more, for networks that then pool once more.
        norm: dotted path of the last batch norm in front of this tap, one channel of it for each of the
            tap's (for taps before a ReLU); what it gives may be a summand of the tap.
    """

    module: str
    channels: int
    stride: int
    kind: Literal["relu", "linear", "vector"]
    side: Literal["output", "input"] = "output"
    stride_64: int | None = None
    norm: str | None = None

    def size(self, side: int) -> int:
        """Side of the map for images of that side."""
        stride = self.stride_64 if self.stride_64 and side >= 64 else self.stride
        return -(-side // stride)


@dataclass(frozen=True)
class ModelSpec:
    """A network by name.

    Every model has the tap `embed` (what the classifier reads, B x D), and every convolutional one
    `stage1`, `stage2`, ... (the last map of each stage, B x C x H x W, in order). `stageN.pre` has the
    same shape and holds negative responses too: what the ReLU that ends the stage reads; where a batch norm
    comes between the stage and its ReLU (wide resnets), that norm's output; where no ReLU follows at all
    (linear bottlenecks), `stageN` itself.

    Attributes:
        name: registry name, as the field writes it (`resnet8x4`, `wrn_16_2`).
        build: `build(num_classes, in_channels) -> nn.Module` with fresh random weights.
        taps: tap name -> where it is.
        classifier: dotted path of the last linear layer.
        params: trainable parameters at 100 classes and 3 input channels.
        paper: where the architecture comes from.
        revision: bump when the same name gives another network or other initial weights.
        light: trained with a protocol's rate for light networks (MobileNet, ShuffleNet).
        side: side (pixels) of the images that it was designed for.
        fixed: it takes images of that side only.
        per_class: trainable parameters that each class adds; None is a linear layer with bias.
        printed: data set -> other names that papers print for it there (see `meant`).
    """

    name: str
    build: Callable[[int, int], nn.Module]
    taps: dict[str, Tap]
    classifier: str
    params: int
    paper: Paper
    revision: int = 1
    light: bool = False
    side: int = 32
    fixed: bool = False
    per_class: int | None = None
    printed: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def stages(self) -> list[str]:
        """Names of the stage taps, in order."""
        return sorted(
            (t for t in self.taps if t.startswith("stage") and t[5:].isdigit()), key=lambda t: int(t[5:])
        )

    @property
    def embed_dim(self) -> int:
        """Length of the vector that the classifier reads."""
        return self.taps["embed"].channels

    def params_at(self, num_classes: int) -> int:
        """Trainable parameters for another class count (3 input channels)."""
        per_class = self.embed_dim + 1 if self.per_class is None else self.per_class
        return self.params + (num_classes - 100) * per_class


def meant(name: str, dataset: str, specs: Iterable[ModelSpec]) -> ModelSpec | None:
    """The network that papers mean by `name` on a data set, or None.

    Papers print one name for different networks: `resnet34` has a stem for small images on CIFAR-100 and
    is `imagenet_resnet34` on ImageNet; `mobilenet` is MobileNetV1 or V2.
    """
    own = None
    for spec in specs:
        if name in spec.printed.get(dataset, ()):
            return spec
        if name == spec.name:
            own = spec
    return own
