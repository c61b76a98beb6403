"""Folding batch norms into the convolutions before them, for networks that only run forward."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A frozen copy of `model` in eval mode that computes the same with fewer passes over memory.

        gamma (W x - mu) / sqrt(var + eps) + beta  =  (s W) x + (beta - s mu),   s = gamma / sqrt(var + eps)

    A batch norm is folded where it alone reads the output of a convolution that is called once; it
    becomes an identity at its place in the module tree, so hooks on other modules keep working. The
    rest stay as they are, in eval mode. Outputs differ by rounding only.

    A tap that reads the *output of a folded convolution* would change its meaning: it would see the
    normalised map. kdpipe's taps read sums, ReLUs and inputs of classifiers, which keep theirs. State
    dict keys change: never save the copy. Fold first, then register hooks on the copy.

    Args:
        model: any network. One that `torch.fx` cannot trace (control flow that depends on values) is
            copied and frozen without folding, which costs speed only.

    Returns:
        The copy; `model` is not touched.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for conv_name, norm_name in list(_pairs(folded)):
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        _fold(conv, norm)
        folded.set_submodule(norm_name, nn.Identity())
    return folded.eval()


class _Tracer(fx.Tracer):
    """Does not look into modules with nothing to fold: what they do may depend on shapes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(
            isinstance(part, CONVOLUTIONS + NORMS) for part in m.modules()
        )


def _pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(convolution, batch norm) pairs by dotted path, where the norm alone reads the convolution."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # an untraceable forward pass can fail in any way; folding is optional
        return
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for norm in graph.nodes:
        conv = norm.args[0] if norm.args else None
        if not (
            _calls(norm, NORMS, model) and isinstance(conv, fx.Node) and _calls(conv, CONVOLUTIONS, model)
        ):
            continue
        once = calls[str(norm.target)] == calls[str(conv.target)] == 1
        running = model.get_submodule(str(norm.target)).running_mean is not None
        if once and running and len(conv.users) == 1:
            yield str(conv.target), str(norm.target)


def _calls(node: object, kinds: tuple[type[nn.Module], ...], model: nn.Module) -> bool:
    """Whether this is a node of the graph that calls a module of exactly one of these kinds."""
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and type(model.get_submodule(str(node.target))) in kinds
    )


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    """Give `conv` the weight and bias that make `norm` superfluous, worked out in float64."""
    assert isinstance(conv, CONVOLUTIONS)
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale.reshape(-1, *[1] * (conv.weight.dim() - 1))
    conv.weight = _frozen(weight, conv.weight)
    conv.bias = _frozen(shift, conv.weight)


def _frozen(values: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=False)
