"""Calibration and soft labels against other libraries, other derivations, and in degenerate cases."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import digamma, rel_entr, softmax
from scipy.stats import entropy as scipy_entropy

from kdpipe.evaluation import calibration, metrics, soft_labels

MEASURES = (
    calibration.ece_equal_mass,
    calibration.aurc,
    calibration.excess_aurc,
    soft_labels.off_label,
)


def sample(seed=0, n=400, classes=7, scale=3.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, scale, (n, classes)) + scale * (np.arange(classes) == labels[:, None])
    return logits, labels


@st.composite
def predictions(draw):
    n, classes = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    elements = draw(st.sampled_from([st.floats(-50, 50, width=32), st.integers(-1, 1).map(float)]))
    logits = draw(arrays(np.float64, (n, classes), elements=elements))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    return logits, labels


# calibration


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("seed", range(3))
def test_the_reliability_diagram_is_that_of_scikit_learn(seed, strategy):
    from sklearn.calibration import calibration_curve

    logits, labels = sample(seed, n=600, scale=2)
    p = softmax(logits, axis=1)
    right = p.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, p.max(1), n_bins=15, strategy=strategy)
    found = calibration.reliability(logits, labels, equal_mass=strategy == "quantile")
    filled = found.count > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], confidence)
    assert np.isnan(found.accuracy[~filled]).all()
    assert found.count.sum() == 600
    if strategy == "quantile":
        assert (found.count == 40).all()


@settings(deadline=None)
@given(predictions(), st.integers(1, 20))
def test_the_error_of_the_diagram_is_the_measure(case, bins):
    logits, labels = case
    wide = calibration.reliability(logits, labels, bins)
    equal = calibration.reliability(logits, labels, bins, equal_mass=True)
    assert wide.error == pytest.approx(metrics.ece(logits, labels, bins), abs=1e-12)
    assert equal.error == pytest.approx(calibration.ece_equal_mass(logits, labels, bins), abs=1e-12)
    assert equal.count.max() - equal.count.min() <= 1
    for found in (wide, equal):
        filled = found.count > 0
        assert (found.confidence[filled] >= found.lower[filled] - 1e-12).all()
        assert (found.confidence[filled] <= found.upper[filled] + 1e-12).all()


def test_the_equal_mass_error_by_hand():
    # in order .6 (right), .7 (wrong), .8 (right), .9 (right); two bins of two
    p = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 0])
    expected = (abs(1 - 1.3) + abs(2 - 1.7)) / 4
    assert calibration.ece_equal_mass(np.log(p), labels, 2) == pytest.approx(expected)


def every_order(logits, labels, measure):
    """Mean of a measure over all orders of the samples, which decide among equal confidences."""
    confidence = softmax(logits, axis=1).max(1).round(12)
    right = logits.argmax(1) == labels
    found = []
    for order in permutations(range(len(labels))):
        ranked = np.array(sorted(order, key=lambda i: confidence[i]))
        found.append(measure(confidence[ranked], right[ranked]))
    return np.mean(found, axis=0)


def areas(_, right):
    wrong = 1.0 - right[::-1]
    return np.mean([wrong[: i + 1].mean() for i in range(len(wrong))])


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_averaged_over_every_order(seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-1, 2, (6, 3)).astype(float)
    labels = rng.integers(0, 3, 6)
    assert calibration.aurc(logits, labels) == pytest.approx(every_order(logits, labels, areas))

    def gap_sums(confidence, right):
        return [part.sum() for part in np.array_split(right - confidence, 4)]

    means = every_order(logits, labels, gap_sums)
    assert calibration.ece_equal_mass(logits, labels, 4) == pytest.approx(np.abs(means).sum() / 6)


@pytest.mark.parametrize("seed", range(3))
def test_the_area_by_harmonic_numbers(seed):
    # An error at rank j counts in every longer prefix: AURC = 1/N sum_j e_(j) (H_N - H_{j-1}).
    logits, labels = sample(seed, scale=1)
    n = len(labels)
    wrong = (logits.argmax(1) != labels)[np.argsort(-softmax(logits, axis=1).max(1))]
    weights = digamma(n + 1) - digamma(np.arange(1, n + 1))
    assert calibration.aurc(logits, labels) == pytest.approx(wrong @ weights / n)
    errors = wrong.sum()
    best = weights[n - errors :].sum() / n
    assert calibration.excess_aurc(logits, labels) == pytest.approx(wrong @ weights / n - best)
    rate = errors / n  # the source's approximation of the best
    assert best == pytest.approx(rate + (1 - rate) * np.log(1 - rate), abs=0.01)


def test_errors_that_come_last_leave_no_excess():
    p = np.array([0.95, 0.9, 0.8, 0.7, 0.6])
    logits = np.log(np.stack([p, 1 - p], axis=1))
    last, first = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 0, 0, 0])
    assert calibration.excess_aurc(logits, last) == 0
    assert calibration.aurc(logits, last) == pytest.approx((1 / 4 + 2 / 5) / 5)
    assert calibration.aurc(logits, first) == pytest.approx((1 + 1 + 2 / 3 + 2 / 4 + 2 / 5) / 5)


def test_a_constant_network():
    logits, labels = np.zeros((12, 6)), np.arange(12) % 6
    assert calibration.aurc(logits, labels) == pytest.approx(5 / 6)
    assert calibration.ece_equal_mass(logits, labels) == pytest.approx(0, abs=1e-12)
    assert soft_labels.entropy(logits) == pytest.approx(np.log(6))
    assert soft_labels.off_label(logits, labels) == pytest.approx(500 / 6)


def test_certain_networks():
    labels = np.arange(6) % 3
    right, wrong = (1e4 * np.eye(3)[(labels + shift) % 3] for shift in (0, 1))
    with np.errstate(all="raise", under="ignore"):
        for measure in MEASURES:
            assert measure(right, labels) == 0
        assert calibration.ece_equal_mass(wrong, labels) == 1
        assert calibration.aurc(wrong, labels) == 1
        assert calibration.excess_aurc(wrong, labels) == 0
        assert soft_labels.off_label(wrong, labels) == 100
        assert soft_labels.entropy(wrong) == 0


def test_one_sample_and_one_class():
    one, zero = np.array([[1.0, 0.0]]), np.array([0])
    p = 1 / (1 + np.exp(-1))
    assert calibration.ece_equal_mass(one, zero) == pytest.approx(1 - p)
    assert calibration.aurc(one, zero) == 0
    assert calibration.aurc(one, zero + 1) == 1
    assert soft_labels.off_label(one, zero) == pytest.approx(100 * (1 - p))
    alone = np.array([[3.0], [-2.0]])
    for measure in MEASURES:
        assert measure(alone, np.zeros(2, int)) == 0
    assert soft_labels.entropy(alone) == 0


@settings(deadline=None)
@given(predictions(), st.randoms(use_true_random=False))
def test_ranges_and_the_order_of_samples(case, random):
    logits, labels = case
    order = np.array(random.sample(range(len(labels)), len(labels)))
    for measure in MEASURES:
        found = measure(logits, labels)
        assert 0 <= found <= (100 if measure is soft_labels.off_label else 1) + 1e-9
        assert measure(logits[order], labels[order]) == pytest.approx(found, abs=1e-9)
    assert calibration.excess_aurc(logits, labels) <= calibration.aurc(logits, labels) + 1e-12


def test_cross_fitting_by_an_independent_search():
    logits, labels = sample(8, n=301, scale=4)

    def fitted(part):
        def loss(inverse):
            z = logits[part] * inverse
            return np.mean(np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)) - np.mean(
                z[np.arange(len(z)), labels[part]]
            )

        return 1 / minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-8}).x[0]

    even, odd = slice(0, None, 2), slice(1, None, 2)
    scaled, temperature = metrics.cross_scaled(logits, labels)
    np.testing.assert_allclose(scaled[even], logits[even] / fitted(odd), rtol=1e-4)
    np.testing.assert_allclose(scaled[odd], logits[odd] / fitted(even), rtol=1e-4)
    assert temperature == pytest.approx(np.sqrt(fitted(odd) * fitted(even)), rel=1e-4)


# soft labels


@pytest.mark.parametrize("seed", range(3))
def test_soft_labels_are_those_of_scipy(seed):
    logits, labels = sample(seed)
    p = softmax(logits, axis=1)
    q = np.random.default_rng(seed).dirichlet(np.full(7, 0.3), len(labels))
    q[0] = np.eye(7)[2]
    assert soft_labels.entropy(logits) == pytest.approx(scipy_entropy(p, axis=1).mean())
    assert soft_labels.kl_reference(logits, q) == pytest.approx(scipy_entropy(q, p, axis=1).mean())
    assert soft_labels.kl_reference(logits, q) == pytest.approx(rel_entr(q, p).sum(1).mean())
    others = np.ma.masked_array(p, np.arange(7) == labels[:, None]).sum(axis=1)
    assert soft_labels.off_label(logits, labels) == pytest.approx(100 * others.mean())
    # The largest difference of probability over all sets of classes: those that the network favours.
    assert soft_labels.total_variation(logits, q) == pytest.approx(np.maximum(p - q, 0).sum(1).mean())


def test_references_that_are_known():
    logits, labels = sample(4)
    own, one_hot = softmax(logits, axis=1), np.eye(7)[labels]
    assert soft_labels.total_variation(logits, own) == pytest.approx(0, abs=1e-12)
    assert soft_labels.kl_reference(logits, own) == pytest.approx(0, abs=1e-12)
    assert soft_labels.kl_reference(logits, one_hot) == pytest.approx(metrics.nll(logits, labels))
    assert 100 * soft_labels.total_variation(logits, one_hot) == pytest.approx(
        soft_labels.off_label(logits, labels)
    )
    apart = 1e4 * np.eye(7)[(labels + 1) % 7]
    assert soft_labels.total_variation(apart, one_hot) == 1
    assert soft_labels.kl_reference(apart, one_hot) == pytest.approx(1e4)


def test_a_small_share_off_the_label_is_not_rounded_away():
    logits = np.array([[50.0, 0.0]])
    assert soft_labels.off_label(logits, np.array([0])) == pytest.approx(100 * np.exp(-50), rel=1e-9, abs=0)
