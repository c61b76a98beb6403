"""Geometry of features: constructions whose answer is known, second derivations, degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest

from kdpipe.evaluation import geometry, metrics

K, D, EACH = 5, 12, 8


def etf(k=K, d=D, seed=0):
    """An exact simplex ETF (k x d), equation 7 of Yang et al. 2024 (DHKD), in a random rotation."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0][:, :k]
    return np.sqrt(k / (k - 1)) * (np.eye(k) - 1 / k) @ rotation.T


def collapsed(centre=3.0, scale=2.0, each=EACH):
    """Features and labels of a network that is wholly collapsed, and its classifier."""
    labels = np.tile(np.arange(K), each)
    return centre + scale * etf()[labels], labels, 0.7 * etf(), np.zeros(K) - 0.7 * etf() @ np.full(D, centre)


def random_features(seed=0, n=90, classes=K, d=D, dtype=np.float64):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    return (rng.normal(size=(n, d)) + 2 * rng.normal(size=(classes, d))[labels]).astype(dtype), labels


# MICC


def brute_force(h, y):
    """d_Intra, d_Inter, L_Intra, L_Inter of each anchor, sample by sample, from the definitions."""
    phi = h / np.linalg.norm(h, axis=1, keepdims=True)
    rows = []
    for i in range(len(y)):
        same = [np.exp(phi[i] @ phi[j]) for j in range(len(y)) if j != i and y[j] == y[i]]
        other = [np.exp(phi[i] @ phi[j]) for j in range(len(y)) if y[j] != y[i]]
        positive = np.exp(phi[i] @ phi[i])
        losses = [-np.log(positive / (positive + sum(part))) for part in (same, other)]
        rows.append((np.mean(same), np.mean(other), *losses))
    return np.array(rows).T


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_distances_and_losses_by_their_definitions(dtype, tolerance):
    h, y = random_features(1, dtype=dtype)
    found = geometry.contrast(h, y)
    order = np.argsort(y, kind="stable")
    expected = brute_force(h[order].astype(float), y[order])
    got = (found.intra, found.inter, found.loss_intra, found.loss_inter)
    np.testing.assert_allclose(got, expected, rtol=tolerance)
    np.testing.assert_allclose(
        found.loss_ratio, found.n / found.m * np.exp(expected[2]) / np.exp(expected[3]), rtol=tolerance
    )


def test_distances_do_not_depend_on_scale_order_or_blocks(monkeypatch):
    h, y = random_features(2)
    before = geometry.contrast(h, y)
    order = np.random.default_rng(0).permutation(len(y))
    monkeypatch.setattr(geometry, "_ROWS", 7)
    after = geometry.contrast(h[order] * np.random.default_rng(1).uniform(0.1, 9, (len(y), 1)), y[order])
    assert after.intra.sum() == pytest.approx(before.intra.sum())
    assert after.loss_ratio.sum() == pytest.approx(before.loss_ratio.sum())


def test_theorem_1_on_a_simplex_etf():
    h, y, *_ = collapsed(centre=0, each=400)
    found = geometry.contrast(h, y)
    cosine = -1 / (K - 1)
    np.testing.assert_allclose(found.intra, np.e)
    np.testing.assert_allclose(found.inter, np.exp(cosine))
    np.testing.assert_allclose(found.ratio, np.exp(1 - cosine))
    np.testing.assert_allclose(found.loss_ratio, found.ratio, rtol=0.005)


def test_theorem_1_is_approached_as_samples_are_added():
    errors = []
    for each in (10, 100, 1000):
        h, y = random_features(3, n=K * each)
        found = geometry.contrast(h, y)
        p, left, right = found.positive, found.ratio, found.loss_ratio
        # What the finite theorem leaves: the right side is the left one times (1 + p/(m d)) / (1 + p/(n d)).
        rest = (1 + p / (found.m * found.intra)) / (1 + p / (found.n * found.inter))
        np.testing.assert_allclose(right, left * rest)
        errors.append(np.abs(right / left - 1).max())
    assert errors[0] > 7 * errors[1] > 49 * errors[2]
    assert errors[2] < 0.003


def test_the_positive_sample_does_not_matter_in_the_limit():
    h, y = random_features(4, n=K * 1000)
    found = geometry.contrast(h, y)
    for cosine in (-1.0, 0.0, 1.0):
        other = geometry.Contrast(
            found.intra, found.inter, found.m, found.n, np.full(len(found.m), np.exp(cosine))
        )
        np.testing.assert_allclose(other.loss_ratio, found.ratio, rtol=0.003)


def test_the_expectations_are_not_swapped():
    tight = geometry.contrast(*collapsed(centre=0)[:2])
    h, y, *_ = collapsed(centre=0)
    loose = geometry.contrast(h, np.random.default_rng(0).permutation(y))
    assert tight.ratio.mean() > 2 > loose.ratio.mean() > 0.5


def test_a_subsample_keeps_the_shares_of_the_classes():
    y = np.random.default_rng(0).permutation(np.repeat([0, 3, 4], [500, 300, 200]))
    kept = geometry.spread(y, 100)
    assert len(set(kept.tolist())) == 100
    assert np.bincount(y[kept]).tolist() == [50, 0, 0, 30, 20]
    np.testing.assert_array_equal(np.sort(geometry.spread(y, 5000)), np.arange(1000))
    h, y = random_features(5, n=3000)
    whole, part = (geometry.contrast(h, y, samples) for samples in (10_000, 1_000))
    assert (len(whole.m), len(part.m)) == (3000, 1000)
    assert part.ratio.mean() == pytest.approx(whole.ratio.mean(), rel=0.02)


def test_distances_without_anchors_and_with_zero_features():
    h, y = random_features(6)
    assert not len(geometry.contrast(h, np.zeros_like(y)).m)
    assert not len(geometry.contrast(h[:1], y[:1]).m)
    assert not len(geometry.contrast(h, np.arange(len(y))).m)
    flat = geometry.contrast(0 * h, y)
    for side in (flat.intra, flat.inter, flat.ratio, flat.positive):
        np.testing.assert_allclose(side, 1)
    uneven = geometry.contrast(h, np.r_[K, y[1:]])  # the first sample is alone in its class
    assert len(uneven.m) == len(y) - 1


# neural collapse


def papyan(h, y, w, b):
    """NC1 to NC4 written out with full covariances, as the definitions have them."""
    means = np.stack([h[y == k].mean(0) for k in np.unique(y)])
    k, middle = len(means), means.mean(0)
    at = np.searchsorted(np.unique(y), y)
    within = np.mean([np.outer(h[i] - means[at[i]], h[i] - means[at[i]]) for i in range(len(y))], axis=0)
    between = np.mean([np.outer(m - middle, m - middle) for m in means], axis=0)
    m = (means - middle).T
    pairs = [(a, c) for a in range(k) for c in range(k) if a != c]
    angles = [m[:, a] @ m[:, c] / np.linalg.norm(m[:, a]) / np.linalg.norm(m[:, c]) for a, c in pairs]
    nearest = np.array([np.argmin([np.linalg.norm(x - c) for c in means]) for x in h])
    w_t = w[np.unique(y)].T
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / k,
        "nc2": np.mean([abs(c + 1 / (k - 1)) for c in angles]),
        "nc2_norms": np.std(np.linalg.norm(m, axis=0)) / np.mean(np.linalg.norm(m, axis=0)),
        "nc3": np.linalg.norm(w_t / np.linalg.norm(w_t, "fro") - m / np.linalg.norm(m, "fro"), "fro"),
        "nc4": 100 * np.mean(np.unique(y)[nearest] != (h @ w.T + b).argmax(1)),
    }


def collapse(h, y, w, b):
    return {
        "nc1": geometry.nc1(h, y),
        "nc2": geometry.nc2(h, y),
        "nc2_norms": geometry.nc2_norms(h, y),
        "nc3": geometry.nc3(h, y, w),
        "nc4": geometry.nc4(h, y, w, b),
    }


@pytest.mark.parametrize("d", [3, 12, 40])  # fewer, more, many more dimensions than classes
@pytest.mark.parametrize("seed", range(2))
def test_neural_collapse_by_its_definitions(seed, d):
    h, y = random_features(seed, d=d)
    rng = np.random.default_rng(seed + 10)
    w, b = rng.normal(size=(K, d)), rng.normal(size=K)
    assert collapse(h, y, w, b) == pytest.approx(papyan(h, y, w, b))
    assert collapse(h.astype(np.float32), y, w, b) == pytest.approx(papyan(h, y, w, b), rel=1e-4)


def test_classes_of_other_sizes_and_without_samples():
    h, y = random_features(3)
    keep = (y != 2) & ~((y == 1) & (np.arange(len(y)) < 60))
    w, b = np.random.default_rng(0).normal(size=(K, D)), np.zeros(K)
    assert collapse(h[keep], y[keep], w, b) == pytest.approx(papyan(h[keep], y[keep], w, b))


def test_a_collapsed_network_has_zeros():
    for number in collapse(*collapsed()).values():
        assert number == pytest.approx(0, abs=1e-9)
    single = [part.astype(np.float32) if part.dtype.kind == "f" else part for part in collapsed()]
    for number in collapse(*single).values():
        assert number == pytest.approx(0, abs=1e-5)
    assert geometry.etf_distance(etf()) == pytest.approx(0, abs=1e-12)
    assert geometry.etf_distance(-8 * etf(seed=3)) == pytest.approx(0, abs=1e-12)


def test_what_is_not_collapsed_is_seen_by_its_own_measure():
    h, y, w, b = collapsed()
    noisy = collapse(h + np.random.default_rng(0).normal(0, 0.05, h.shape), y, w, b)
    assert noisy["nc1"] > 1e-3
    shuffled_labels = collapse(h, np.random.default_rng(0).permutation(y), w, b)
    assert shuffled_labels["nc1"] > 1
    assert shuffled_labels["nc4"] > 20
    shuffled = np.random.default_rng(0).permuted(etf(), axis=1)  # each vector's numbers in another order
    assert geometry.etf_distance(shuffled) > 0.1
    assert geometry.nc2(3 + shuffled[y], y) > 0.1
    assert geometry.nc1(3 + shuffled[y], y) == pytest.approx(0, abs=1e-9)
    other_rows = collapse(h, y, np.roll(w, 1, axis=0), np.roll(b, 1))
    assert other_rows["nc3"] == pytest.approx(np.sqrt(2 + 2 / (K - 1)))  # cosine -1/(K - 1)
    assert other_rows["nc4"] == 100
    assert geometry.nc3(h, y, -w) == pytest.approx(2)
    lengths = geometry.nc2_norms(np.linspace(1, 2, K)[y, None] * etf()[y], y)
    assert lengths > 0.1


def test_nc1_of_a_known_scatter():
    # Sigma_W = s^2 I in the K - 1 dimensions of an ETF of norm r, where Sigma_B = r^2 / (K - 1) I.
    spread, r = 0.3, 2.0
    basis = np.linalg.svd(etf())[2][: K - 1]
    steps = spread * np.sqrt(K - 1) * np.concatenate([basis, -basis])
    y = np.repeat(np.arange(K), len(steps))
    h = r * etf()[y] + np.tile(steps, (K, 1))
    assert geometry.nc1(h, y) == pytest.approx((K - 1) * spread**2 / (r**2 / (K - 1)) / K)


def test_etf_distance_by_its_definition_and_range():
    w = np.random.default_rng(0).normal(size=(K, D))
    gram = w @ w.T
    ideal = (np.eye(K) - np.ones((K, K)) / K) / np.sqrt(K - 1)
    assert np.linalg.norm(ideal) == pytest.approx(1)
    assert geometry.etf_distance(w) == pytest.approx(np.linalg.norm(gram / np.linalg.norm(gram) - ideal))
    assert geometry.etf_distance(np.ones((K, D))) == pytest.approx(np.sqrt(2))  # all vectors one


def test_neural_collapse_of_what_it_is_not_defined_for():
    h, y = random_features(7)
    w, b = np.ones((K, D)), np.arange(K)
    for features, labels in ((0 * h, y), (0 * h + 0.1, y), (h, 0 * y), (h[:1], y[:1])):
        found = collapse(features, labels, w, b)
        assert [name for name, number in found.items() if np.isnan(number)] == [
            "nc1",
            "nc2",
            "nc2_norms",
            "nc3",
        ]
        assert 0 <= found["nc4"] <= 100
    assert np.isnan(geometry.nc3(h, y, 0 * w))
    assert np.isnan(geometry.etf_distance(0 * w))
    assert np.isnan(geometry.etf_distance(w[:1]))
    assert np.isnan(geometry.nc2(np.array([[-1.0], [0.0], [1.0]]), np.arange(3)))  # one mean is the middle


# pictures


def test_tsne_keeps_apart_what_is_apart_and_repeats_itself():
    h, y = random_features(8, n=200, classes=4)
    found = geometry.tsne(np.float32(h), y, classes=(0, 1, 3), samples=60)
    assert found.points.shape == (60, 2)
    assert np.bincount(found.labels).tolist() == [20, 20, 0, 20]
    np.testing.assert_array_equal(y[found.positions], found.labels)
    distances = np.linalg.norm(found.points[:, None] - found.points[None], axis=-1) + np.diag(
        np.full(60, np.inf)
    )
    assert np.mean(found.labels[distances.argmin(1)] == found.labels) > 0.9
    np.testing.assert_array_equal(geometry.tsne(np.float32(h), y, (0, 1, 3), 60).points, found.points)


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (3, 1), (5, 4)])
def test_tsne_of_very_little(shape):
    h = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y = np.zeros(len(h), int)
    assert geometry.tsne(h, y).points.shape == (len(h), 2)
    assert np.isfinite(geometry.tsne(h, y).points).all()
    assert not geometry.tsne(0 * h, y).points.any()


def test_correlations_are_those_of_numpy():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(50, 6)), rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
    expected = np.corrcoef(t, rowvar=False) - np.corrcoef(s, rowvar=False)
    np.testing.assert_allclose(geometry.correlation_difference(s, t), expected, atol=1e-12)
    assert geometry.correlation_gap(s, t) == pytest.approx(np.abs(expected).mean())
    assert geometry.correlation_gap(s, 3 * s + np.arange(6)) == pytest.approx(
        0, abs=1e-12
    )  # affine per class


def test_correlations_of_logits_that_do_not_vary():
    t = np.stack([np.arange(4.0), np.arange(4.0), -np.arange(4.0)], axis=1)
    signs = np.array([1, 1, -1])
    np.testing.assert_allclose(
        geometry.correlation_difference(np.full((4, 3), 0.1), t),
        np.outer(signs, signs) - np.eye(3),
        atol=1e-12,
    )
    assert geometry.correlation_gap(t, np.zeros((4, 3))) == pytest.approx(6 / 9)
    assert geometry.correlation_gap(t[:1], t[1:2]) == 0
    opposite = t * np.array([1, -1, 1])
    assert geometry.correlation_difference(t, opposite).min() == pytest.approx(-2)


def test_class_logits_are_the_rows_means():
    z, y = random_features(9, classes=3, d=4)
    found = geometry.class_logits(z, y)
    for k in range(3):
        np.testing.assert_allclose(found[k], z[y == k].mean(0))
    assert np.isnan(found[3]).all()


def test_ten_thousand_images_of_a_hundred_classes():
    rng = np.random.default_rng(0)
    y = np.arange(10_000) % 100
    z = rng.normal(size=(10_000, 100)).astype(np.float32)
    z[np.arange(10_000), y] += 3
    assert 0 < geometry.correlation_gap(z, z[::-1]) < 2
    assert geometry.nc1(z, y) > 0
    found = geometry.contrast(z[:2000], y[:2000])
    assert found.ratio.mean() > 1
    assert metrics.top_k(z, y) > 50
