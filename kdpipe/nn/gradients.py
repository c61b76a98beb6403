"""Gradients of two losses, compared before they are added."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from kdpipe.api import Gradients, Trainable


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool = False) -> Gradients:
    """Gradient of a scalar with respect to each parameter, None where it does not depend on it."""
    return list(torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True))


def compared(terms: dict[str, Tensor], parameters: Trainable) -> dict[str, float]:
    """How the gradients of loss terms compare on the backbone and on the classifier.

        norm:    |g_a|                       as `gradient_<a>_<part>`
        cosine:  g_a . g_b / (|g_a| |g_b|)   as `cosine_<a>_<b>_<part>`

    A term that does not reach a part has no norm there; a cosine needs two that do. The graph is kept.

    Args:
        terms: scalars by name, weights included.
        parameters: what is trained.

    Source: Yang et al. 2024 (dual-head knowledge distillation), section 3.2, for the conflict it shows.
    """
    found: dict[str, float] = {}
    for part, tensors in (("backbone", parameters.backbone), ("classifier", parameters.classifier)):
        vectors = {}
        for name, term in terms.items():
            reached = term.requires_grad and tensors
            grads = parameters.mean(gradients(term, tensors, retain_graph=True)) if reached else []
            if any(g is not None for g in grads):
                zipped = zip(grads, tensors, strict=True)
                flat = [torch.zeros_like(p) if g is None else g for g, p in zipped]
                vectors[name] = torch.cat([g.flatten().double() for g in flat])
        norms = {name: vector.norm() for name, vector in vectors.items()}
        found |= {f"gradient_{name}_{part}": float(norm) for name, norm in norms.items()}
        for a, b in combinations(vectors, 2):
            if norms[a] > 0 and norms[b] > 0:
                cosine = vectors[a] @ vectors[b] / (norms[a] * norms[b])
                found[f"cosine_{a}_{b}_{part}"] = float(cosine)
    return found


def align(auxiliary: Gradients, main: Gradients) -> Gradients:
    """The auxiliary gradient without its part against the main one.

    With both gradients read as one vector, `a` and `m`:

        a                            where a.m >= 0
        a - (a.m / |m|^2) m          otherwise, which is orthogonal to m

    Args:
        auxiliary: gradients a of some parameters.
        main: gradients m of the same parameters.

    Returns:
        The auxiliary gradients, new where they were changed.

    Source: Yu et al. 2020 (PCGrad), used one-sidedly by Yang et al. 2024 (dual-head knowledge
    distillation), Eq. 6.
    """
    shared = [(a, m) for a, m in zip(auxiliary, main, strict=True) if a is not None and m is not None]
    if not shared:
        return list(auxiliary)
    reached = [m for m in main if m is not None]
    products = torch._foreach_mul([a for a, _ in shared], [m for _, m in shared])
    inner = torch.stack([p.sum() for p in products]).sum()
    square = torch.stack(torch._foreach_norm(reached)).square().sum()
    against = torch.where(square > 0, inner.clamp(max=0) / square, 0)
    removed = iter(torch._foreach_mul(reached, -against))
    return add(auxiliary, [None if m is None else next(removed) for m in main])


def align_rows(auxiliary: Tensor, main: Tensor) -> Tensor:
    """`align` for each row of two matrices (C x D) on its own."""
    inner = (auxiliary * main).sum(1, keepdim=True)
    square = main.square().sum(1, keepdim=True)
    return auxiliary - torch.where(square > 0, inner.clamp(max=0) / square, 0) * main


def add(left: Gradients, right: Gradients) -> Gradients:
    """Their sum; None counts as zero and stays None where both are."""
    return [a if b is None else b if a is None else a + b for a, b in zip(left, right, strict=True)]


def deposit(grads: Gradients, parameters: Sequence[nn.Parameter]) -> None:
    """Add gradients to the parameters' `.grad`.

    The leaves' own backward does it, which keeps each `.grad` in its parameter's memory format.
    """
    reached = [(p, g) for p, g in zip(parameters, grads, strict=True) if g is not None]
    if reached:
        torch.autograd.backward([p for p, _ in reached], [g for _, g in reached])
