"""The learnt kernel embedding: alignment, its quadratic programme, and the landmarks' features."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.kernel_approximation import Nystroem

from kdpipe.core.errors import ConfigError, DataError
from kdpipe.theory.embedding import Embedding, alignf, centred, gaussian_kernels, width_grid


def problem(seed, count=7, images=12):
    """Base kernels that are not Gaussian, so that several of them are needed, and labels."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, images, 3))
    y = rng.choice((-1.0, 1.0), images)
    features[: count // 2, :, 0] += y  # some are informed
    return features @ features.transpose(0, 2, 1), y


def programme(kernels, y):
    """M and a of Eq. 17, entry by entry as printed."""
    count, images = len(kernels), len(y)
    centre = np.eye(images) - 1 / images
    middle = [centre @ kernel @ centre for kernel in kernels]
    m = np.array([[np.sum(middle[k] * middle[j]) for j in range(count)] for k in range(count)])
    a = np.array([np.sum(kernel * np.outer(y, y)) for kernel in middle])
    return m, a


def value(v, m, a):
    return v @ m @ v - 2 * v @ a


def test_centred_kernels_are_those_of_centred_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(9, 4))
    moved = features - features.mean(0)
    np.testing.assert_allclose(centred(features @ features.T), moved @ moved.T, atol=1e-12)
    several = rng.normal(size=(3, 5, 5))
    centre = np.eye(5) - 1 / 5
    np.testing.assert_allclose(centred(several), centre @ several @ centre, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_alignf_meets_the_conditions_of_optimality(seed):
    kernels, y = problem(seed)
    m, a = programme(kernels, y)
    mu = alignf(kernels, y)
    assert np.linalg.norm(mu) == pytest.approx(1)
    assert (mu >= 0).all()
    v = mu * (mu @ a) / (mu @ m @ mu)  # the best length along mu
    slack = m @ v - a  # half of the gradient
    np.testing.assert_allclose(slack[mu > 0], 0, atol=1e-8 * np.abs(a).max())
    assert (slack[mu == 0] > -1e-8 * np.abs(a).max()).all()
    assert (mu > 0).sum() > 1  # a case in which the constraint matters and several are used


@pytest.mark.parametrize("seed", range(3))
def test_alignf_is_the_best_of_all_supports_and_of_a_general_solver(seed):
    kernels, y = problem(seed, count=5)
    m, a = programme(kernels, y)
    best, best_value = None, 0.0
    for size in range(1, 6):
        for support in map(list, itertools.combinations(range(5), size)):
            part = np.linalg.solve(m[np.ix_(support, support)], a[support])
            if (part >= 0).all():
                v = np.zeros(5)
                v[support] = part
                if value(v, m, a) < best_value:
                    best, best_value = v, value(v, m, a)
    np.testing.assert_allclose(alignf(kernels, y), best / np.linalg.norm(best), atol=1e-8)
    scale = np.abs(m).max()
    found = minimize(
        value,
        np.full(5, 0.1),
        args=(m / scale, a / scale),
        jac=lambda v, m, a: 2 * (m @ v - a),
        method="SLSQP",
        bounds=[(0, None)] * 5,
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(alignf(kernels, y), found.x / np.linalg.norm(found.x), atol=1e-5)


def test_alignf_by_hand():
    y = np.array([1.0, 1.0, -1.0, -1.0])
    ideal, other = np.outer(y, y), np.outer([1.0, -1, 1, -1], [1.0, -1, 1, -1])
    np.testing.assert_allclose(alignf(np.stack([other, ideal]), y), [0, 1], atol=1e-12)
    np.testing.assert_allclose(alignf(np.stack([3 * ideal]), y), [1])
    both = np.stack([ideal + other, ideal - other])  # yy^T is half of each
    np.testing.assert_allclose(alignf(both, y), [np.sqrt(0.5)] * 2, atol=1e-12)
    shifted = np.stack([other + 5, ideal + 7])  # a constant is centred away
    np.testing.assert_allclose(alignf(shifted, y), [0, 1], atol=1e-12)


def test_alignf_without_an_aligned_kernel_is_an_error():
    y = np.array([1.0, 1.0, -1.0, -1.0])
    with pytest.raises(DataError, match="none of the Gaussian kernels is aligned"):
        alignf(np.stack([-np.outer(y, y)]), y)


def test_gaussian_kernels_by_hand():
    kernels = gaussian_kernels(np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0]]), np.array([5.0, 10.0]))
    np.testing.assert_allclose(kernels, [[[1], [np.exp(-0.5)]], [[1], [np.exp(-0.125)]]])


def test_widths_are_a_geometric_grid_around_the_median_distance():
    points = np.array([[0.0], [1.0], [4.0]])  # distances 1, 3, 4
    np.testing.assert_allclose(width_grid(points, 7, 2.0), 3 * 2.0 ** np.arange(-3, 4))
    np.testing.assert_allclose(width_grid(points, 2, 4.0), [1.5, 6])
    with pytest.raises(DataError, match="images are equal"):
        width_grid(np.ones((4, 2)), 3, 2.0)


def images_and_labels(images=24, seed=3):
    rng = np.random.default_rng(seed)
    y = np.repeat([1.0, -1.0], images // 2)
    return rng.normal(size=(images, 6)) + 0.7 * y[:, None], y


def learnt(rank, unit_norm=False, seed=0):
    x, y = images_and_labels()
    return Embedding.learn(x, y, width_grid(x, 7, 2.0), rank, unit_norm, np.random.default_rng(seed)), x, y


def combined(embedding, points, others):
    return np.tensordot(embedding.weights, gaussian_kernels(points, others, embedding.widths), axes=1)


def test_features_have_nystroems_inner_products():
    embedding, x, _ = learnt(rank=9)
    new = x[:5] + 0.3
    cross, inner = (
        combined(embedding, x, embedding.landmarks),
        combined(embedding, *[embedding.landmarks] * 2),
    )
    outer = combined(embedding, new, embedding.landmarks)
    expected = outer @ np.linalg.pinv(inner) @ cross.T
    np.testing.assert_allclose(embedding.features(new) @ embedding.features(x).T, expected, atol=1e-9)
    assert len(embedding.landmarks) == 9
    assert all((x == landmark).all(1).any() for landmark in embedding.landmarks)


def test_features_agree_with_scikit_learn():
    embedding, x, _ = learnt(rank=8)

    def kernel(one, other):
        return combined(embedding, one[None], other[None])[0, 0]

    theirs = Nystroem(kernel, n_components=8, random_state=0).fit(embedding.landmarks)
    new = x[3:7] - 0.2
    expected = theirs.transform(new) @ theirs.transform(x).T
    np.testing.assert_allclose(embedding.features(new) @ embedding.features(x).T, expected, atol=1e-8)


def test_with_all_images_as_landmarks_the_kernel_is_exact():
    embedding, x, _ = learnt(rank=24)
    features = embedding.features(x)
    np.testing.assert_allclose(features @ features.T, combined(embedding, x, x), atol=1e-8)
    few = learnt(rank=4)[0].features(x)
    assert np.abs(few @ few.T - combined(embedding, x, x)).max() > 0.01


def test_weights_are_alignfs_and_landmarks_follow_the_seed():
    embedding, x, y = learnt(rank=6)
    np.testing.assert_array_equal(embedding.weights, alignf(gaussian_kernels(x, x, embedding.widths), y))
    np.testing.assert_array_equal(embedding.landmarks, learnt(rank=6)[0].landmarks)
    assert not np.array_equal(embedding.landmarks, learnt(rank=6, seed=1)[0].landmarks)


def test_repeated_images_make_fewer_features():
    x, y = images_and_labels()
    x[1] = x[0]
    embedding = Embedding.learn(x, y, width_grid(x, 7, 2.0), 24, False, np.random.default_rng(0))
    features = embedding.features(x)
    assert features.shape == (24, 23)
    np.testing.assert_allclose(features @ features.T, combined(embedding, x, x), atol=1e-8)


def test_unit_norm_scales_each_image_alone():
    scaled, plain = learnt(rank=9, unit_norm=True), learnt(rank=9)
    x = plain[1]
    raw = plain[0].features(x)
    np.testing.assert_allclose(np.linalg.norm(scaled[0].features(x), axis=1), 1)
    np.testing.assert_allclose(
        scaled[0].features(x), raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-12
    )
    with pytest.raises(DataError, match="image 1 is too far from every landmark"):
        scaled[0].features(np.stack([x[0], x[0] + 1e4]))


def test_more_landmarks_than_images_is_an_error():
    with pytest.raises(ConfigError, match="25 landmarks are asked for of 24"):
        learnt(rank=25)
