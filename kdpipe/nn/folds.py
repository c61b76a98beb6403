"""Cross-fitting: which network may teach which sample."""

from __future__ import annotations

import torch
from torch import Tensor


def folds(labels: Tensor, count: int) -> Tensor:
    """The fold of each sample: each class is dealt out over the folds in turn.

    Args:
        labels: N, int64.
        count: how many folds.

    Returns:
        N, int64 in [0, count); network i is not trained on the samples of fold i, and teaches them.
    """
    fold = torch.empty_like(labels)
    start = 0
    for label in torch.unique(labels):
        own = (labels == label).nonzero().flatten()
        fold[own] = (torch.arange(len(own)) + start) % count
        start += len(own)
    return fold
