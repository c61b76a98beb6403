"""What a network's probabilities say beside the right class: the soft labels that teach a student."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.evaluation.metrics import Labels, Logits, log_softmax

Distribution = NDArray[np.floating[Any]]


def entropy(logits: Logits) -> float:
    """Mean entropy of the predictions, 1/N sum_i -sum_c p_ic log p_ic, at temperature 1.

    Args:
        logits: N x C.

    Returns:
        Nats, from 0 (one-hot) to log C (uniform).

    Source: Shannon 1948; as a measure of soft labels Müller et al. 2019, "When Does Label Smoothing Help?".
    """
    log_p = log_softmax(logits)
    return max(0.0, float(np.mean(-(np.exp(log_p) * log_p).sum(axis=1))))


def off_label(logits: Logits, labels: Labels) -> float:
    """Mean probability of all classes but the right one, 1/N sum_i (1 - p_i,y_i), at temperature 1.

    Args:
        logits: N x C.
        labels: N.

    Returns:
        Percent, from 0 (the soft labels are the hard ones) to 100.

    Source: what soft labels hold beside the hard one, and the intra-class contrastive paper (MICC) wants more
    of; without its loss a perfect fit leaves none (its proposition 1).
    """
    p = np.exp(log_softmax(logits))
    p[np.arange(len(labels)), labels] = 0  # 1 - p would round a small share away
    return float(100 * np.mean(p.sum(axis=1)))


def total_variation(logits: Logits, reference: Distribution) -> float:
    """Total variation distance to known label distributions, 1/N sum_i 1/2 sum_c |p_ic - q_ic|.

    Args:
        logits: N x C.
        reference: N x C, q; non-negative, each row with sum 1: votes of many people, or the distribution that
            synthetic data were drawn from.

    Returns:
        A fraction, 0 to 1.

    Source: the distance to the true label distribution by which Dong et al. 2024 (SoTeacher) judge a
    teacher; for real data sets, where it is unknown, they estimate it by ECE and NLL (section 5.2).
    """
    return float(np.mean(np.abs(np.exp(log_softmax(logits)) - reference).sum(axis=1)) / 2)


def kl_reference(logits: Logits, reference: Distribution) -> float:
    """Divergence from known label distributions, 1/N sum_i KL(q_i || p_i), with 0 log 0 = 0.

    Args:
        logits: N x C.
        reference: N x C, q, as for `total_variation`.

    Returns:
        Nats, >= 0; the NLL if the reference is one-hot.

    Source: as for `total_variation`; Peterson et al. 2019, "Human Uncertainty Makes Classification More
    Robust", use the cross-entropy, which differs by the entropy of q.
    """
    from scipy.special import xlogy

    q = np.asarray(reference, np.float64)
    return max(0.0, float(np.mean((xlogy(q, q) - q * log_softmax(logits)).sum(axis=1))))
