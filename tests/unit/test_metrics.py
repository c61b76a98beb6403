"""The measures against other libraries, against their definitions, and in degenerate cases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdpipe.evaluation import metrics


def sample(seed=0, n=400, classes=7, scale=3.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, scale, (n, classes)) + scale * (np.arange(classes) == labels[:, None])
    return logits, labels


@st.composite
def predictions(draw):
    n, classes = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    logits = draw(arrays(np.float64, (n, classes), elements=st.floats(-50, 50, width=32)))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    return logits, labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_equal_to_scikit_learn(seed, classes):
    from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

    logits, labels = sample(seed, classes=classes)
    p = np.exp(metrics.log_softmax(logits))
    names = np.arange(classes)
    assert metrics.top_k(logits, labels) == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)))
    assert metrics.nll(logits, labels) == pytest.approx(log_loss(labels, p, labels=names))
    if classes > 5:
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=names)
        assert metrics.top_k(logits, labels, 5) == pytest.approx(100 * top5)
    one_hot = names == labels[:, None]
    assert metrics.brier(logits, labels) == pytest.approx(((p - one_hot) ** 2).sum(1).mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [3, 100])
def test_equal_to_torchmetrics(seed, classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from torch.nn.functional import cross_entropy, kl_div, log_softmax
        from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

        logits, labels = sample(seed, classes=classes)
        other, _ = sample(seed + 10, classes=classes)
        z, t, y = torch.tensor(logits), torch.tensor(other), torch.tensor(labels)
        kind = {"num_classes": classes}
        ece = multiclass_calibration_error(z.softmax(1), y, n_bins=15, norm="l1", **kind)
        top1 = multiclass_accuracy(z, y, average="micro", **kind)
        kl = kl_div(log_softmax(z, 1), log_softmax(t, 1), reduction="batchmean", log_target=True)
        nll = cross_entropy(z, y)
    assert metrics.ece(logits, labels) == pytest.approx(float(ece), abs=1e-6)
    assert metrics.top_k(logits, labels) == pytest.approx(100 * float(top1), abs=1e-4)
    assert metrics.kl_divergence(logits, other) == pytest.approx(float(kl))
    assert metrics.nll(logits, labels) == pytest.approx(float(nll))


def test_ece_by_hand():
    # confidences 0.9 (right), 0.9 (wrong), 0.6 (right): |1 - 1.8| / 3 + |1 - 0.6| / 3
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    assert metrics.ece(np.log(p), np.array([0, 1, 1])) == pytest.approx(0.8 / 3 + 0.4 / 3)


def test_a_constant_network():
    logits, labels = np.zeros((12, 6)), np.arange(12) % 6
    assert metrics.top_k(logits, labels) == pytest.approx(100 / 6)
    assert metrics.top_k(logits, labels, 5) == pytest.approx(500 / 6)
    assert metrics.top_k(logits, labels, 9) == 100
    assert metrics.nll(logits, labels) == pytest.approx(np.log(6))
    assert metrics.ece(logits, labels) == pytest.approx(0, abs=1e-12)
    assert metrics.fit_temperature(logits, labels) == 1


def test_certain_networks():
    labels = np.arange(6) % 3
    right = 1e4 * np.eye(3)[labels]
    wrong = 1e4 * np.eye(3)[(labels + 1) % 3]
    with np.errstate(all="raise", under="ignore"):
        assert metrics.nll(right, labels) == 0
        assert metrics.ece(right, labels) == 0
        assert metrics.brier(right, labels) == 0
        assert metrics.nll(wrong, labels) == pytest.approx(1e4)
        assert metrics.ece(wrong, labels) == 1
        assert metrics.brier(wrong, labels) == 2
        assert metrics.kl_divergence(wrong, right) == pytest.approx(1e4)
    assert metrics.fit_temperature(np.eye(3)[labels], labels) == pytest.approx(0.1)
    assert metrics.fit_temperature(wrong, labels) == pytest.approx(10)


def test_one_sample():
    logits, labels = np.array([[1.0, 0.0]]), np.array([1])
    scaled, temperature = metrics.cross_scaled(logits, labels)
    assert temperature == pytest.approx(np.sqrt(10))  # of nothing: 1; of the wrong one: 10
    np.testing.assert_array_equal(scaled, logits)  # it is measured with the temperature of nothing


def test_the_temperature_undoes_a_known_one():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from softmax(logits)
    for true in (0.4, 1.0, 2.5):
        assert metrics.fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.04)
    scaled, temperature = metrics.cross_scaled(2.5 * logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.04)
    assert metrics.ece(scaled, labels) < 0.02 < metrics.ece(2.5 * logits, labels)


def test_the_temperature_is_the_minimum():
    logits, labels = sample(3, scale=4)
    best = metrics.fit_temperature(logits, labels)
    grid = [metrics.nll(logits / t, labels) for t in np.geomspace(0.1, 10, 400)]
    assert metrics.nll(logits / best, labels) <= min(grid) + 1e-12


def test_no_sample_is_scaled_by_a_temperature_fitted_on_it():
    logits, labels = sample(5, n=60)
    scaled, _ = metrics.cross_scaled(logits, labels)
    changed = labels.copy()
    changed[0::2] = (changed[0::2] + 1) % 7
    after, _ = metrics.cross_scaled(logits, changed)
    np.testing.assert_array_equal(scaled[0::2], after[0::2])
    assert not np.array_equal(scaled[1::2], after[1::2])


@given(predictions())
def test_ranges(case):
    logits, labels = case
    assert 0 <= metrics.top_k(logits, labels) <= metrics.top_k(logits, labels, 2) <= 100
    assert metrics.nll(logits, labels) >= 0
    assert 0 <= metrics.ece(logits, labels) <= 1 + 1e-12
    assert -1e-12 <= metrics.brier(logits, labels) <= 2 + 1e-12
    assert metrics.top_k(logits, labels) == pytest.approx(100 * np.mean(logits.argmax(1) == labels))


@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(case, random):
    logits, labels = case
    order = np.array(random.sample(range(len(labels)), len(labels)))
    for measure in (metrics.top_k, metrics.nll, metrics.ece, metrics.brier, metrics.fit_temperature):
        assert measure(logits[order], labels[order]) == pytest.approx(
            measure(logits, labels), rel=1e-3, abs=1e-9
        )


@settings(deadline=None)
@given(predictions())
def test_scaling_helps_where_it_is_fitted_and_changes_no_decision(case):
    logits, labels = case
    t = metrics.fit_temperature(logits, labels)
    assert 0.0999 < t < 10.001
    assert metrics.nll(logits / t, labels) <= metrics.nll(logits, labels)
    scaled, _ = metrics.cross_scaled(logits, labels)
    for row, before in zip(scaled, logits, strict=True):
        assert row[before.argmax()] == row.max()


@given(predictions())
def test_likeness_to_oneself(case):
    logits, _ = case
    assert metrics.agreement(logits, logits) == 100
    assert metrics.kl_divergence(logits, logits) == 0
    assert metrics.kl_divergence(logits, logits + 3) == pytest.approx(0, abs=1e-9)
    assert metrics.kl_divergence(logits, logits[::-1]) >= 0


def test_agreement_by_hand():
    a = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 0.0], [5.0, 4.0]])
    b = np.array([[9.0, 1.0], [1.0, 0.0], [0.0, 0.0], [4.0, 5.0]])
    assert metrics.agreement(a, b) == 50
