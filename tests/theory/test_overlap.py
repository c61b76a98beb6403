"""The expected Gram matrix and the overlap parameter."""

import itertools

import numpy as np
import pytest
from scipy.integrate import dblquad

from kdpipe.core.errors import ConfigError, DataError
from kdpipe.theory.overlap import expected_gram, overlaps, top_eigenvectors
from kdpipe.theory.two_layer import ACTIVATIONS


def images(count=5, pixels=4, seed=0):
    """Images of different lengths."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, pixels)) * np.linspace(0.5, 1.0, count)[:, None] / 2


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("spread", [0.01, 0.9])
def test_it_is_the_mean_over_random_networks(name, spread):
    x = images()
    x[1] = -x[0]
    x[2] = 2 * x[0]
    draws = 40_000
    weights = np.random.default_rng(1).normal(0, spread, (draws, x.shape[1]))
    slopes = ACTIVATIONS[name].slope(x @ weights.T)
    products = slopes[:, None] * slopes[None] * (x @ x.T)[..., None]
    error = products.std(-1) / np.sqrt(draws)
    found = expected_gram(x @ x.T, name, spread)
    assert (np.abs(found - products.mean(-1)) < 5 * error + 1e-6).all()
    assert np.linalg.eigvalsh(found)[0] > -1e-9


@pytest.mark.parametrize(
    ("name", "spread"), list(itertools.product(("softplus", "tanh", "erf"), (0.05, 0.8)))
)
def test_it_agrees_with_an_integral_in_two_dimensions(name, spread):
    x = np.array([[1.0, 0.0], [0.6, 0.5]])
    slope = ACTIVATIONS[name].slope

    def integrand(v, u):
        weight = spread * np.array([u, v])
        density = np.exp(-(u * u + v * v) / 2) / (2 * np.pi)
        return slope(x[0] @ weight) * slope(x[1] @ weight) * density

    expected, _ = dblquad(integrand, -8, 8, -8, 8, epsabs=1e-9)
    assert expected_gram(x @ x.T, name, spread)[0, 1] == pytest.approx(expected * x[0] @ x[1], rel=3e-7)


def test_relu_by_hand():
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [1.0, 1.0]])
    found = expected_gram(x @ x.T, "relu", 0.3)
    np.testing.assert_allclose(np.diag(found), 0.5 * (x * x).sum(1), atol=1e-7)
    assert found[0, 1] == 0
    assert found[0, 2] == pytest.approx(0, abs=1e-7)  # never active together
    assert found[0, 3] == pytest.approx(3 / 8)  # 45 degrees: active together for 3/8 of all directions
    np.testing.assert_array_equal(found, expected_gram(x @ x.T, "relu", 7.0))


@pytest.mark.parametrize(("name", "slope"), [("softplus", 0.5), ("tanh", 1.0), ("erf", 2 / np.sqrt(np.pi))])
def test_small_weights_leave_the_slope_at_0(name, slope):
    x = images()
    np.testing.assert_allclose(expected_gram(x @ x.T, name, 1e-5), slope**2 * (x @ x.T), atol=1e-7)


def test_single_precision_grams_are_welcome():
    x = images()
    single = (x @ x.T).astype(np.float32)
    np.testing.assert_allclose(
        expected_gram(single, "relu", 1.0), expected_gram(x @ x.T, "relu", 1.0), atol=1e-4
    )


def test_what_cannot_be_computed_is_said():
    x = images()
    x[3] = 0
    with pytest.raises(DataError, match="image 3 is 0"):
        expected_gram(x @ x.T, "relu", 1.0)
    with pytest.raises(ConfigError, match=r"'tanh' is only known to .*\n.*spread\n.*smaller spread"):
        expected_gram(np.eye(2), "tanh", 9.0)


def test_top_eigenvectors_come_in_order():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    values = np.array([3.0, 11.0, 0.5, 7.0, 1.0, 2.0])
    found = top_eigenvectors((basis * values) @ basis.T, 3)
    np.testing.assert_allclose(np.abs(found.T @ basis[:, [1, 3, 0]]), np.eye(3), atol=1e-10)
    for count in (0, 7):
        with pytest.raises(ConfigError, match=f"{count} top eigenvectors are asked for of a matrix of 6"):
            top_eigenvectors(np.eye(6), count)


PHI = np.array([[3.0, 0.0, 0.0], [-4.0, 2.0, 0.0], [0.0, 2.0, 0.0]])


def test_overlaps_by_hand():
    vectors = np.eye(3)[:, :2]
    np.testing.assert_allclose(overlaps(PHI, vectors), [0.7, np.sqrt(0.5) / 2, np.nan])
    np.testing.assert_allclose(overlaps(PHI, vectors, "squared"), [0.5, 0.25, np.nan])
    y = np.array([1.0, -1.0, 1.0])  # turns the second eigenvector
    np.testing.assert_allclose(overlaps(PHI, vectors, "towards_labels", y), [0.7, -np.sqrt(0.5) / 2, np.nan])
    np.testing.assert_allclose(overlaps(PHI, vectors, "towards_labels", -y), [-0.7, np.sqrt(0.5) / 2, np.nan])


@pytest.mark.parametrize("rule", ["absolute", "squared", "towards_labels"])
def test_overlaps_know_neither_scale_nor_the_sign_of_an_eigenvector(rule):
    rng = np.random.default_rng(2)
    phi, y = rng.normal(size=(8, 5)), rng.normal(size=8)
    vectors = np.linalg.qr(rng.normal(size=(8, 3)))[0]
    one = overlaps(phi, vectors, rule, y)
    other = overlaps(phi * np.array([1, 2, 3, 4, 0.1]), vectors * np.array([1, -1, -1]), rule, y)
    np.testing.assert_allclose(one, other)
    assert one.shape == (5,)
    assert np.ptp(one) > 0.01


def test_squares_are_those_of_the_projection_whatever_the_basis():
    rng = np.random.default_rng(3)
    phi = rng.normal(size=(8, 5))
    vectors = np.linalg.qr(rng.normal(size=(8, 3)))[0]
    turned = vectors @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    share = np.linalg.norm(vectors.T @ phi, axis=0) ** 2 / np.linalg.norm(phi, axis=0) ** 2
    np.testing.assert_allclose(overlaps(phi, vectors, "squared"), share / 3)
    np.testing.assert_allclose(overlaps(phi, turned, "squared"), share / 3)
    assert np.abs(overlaps(phi, turned) - overlaps(phi, vectors)).max() > 0.01


def test_turning_towards_labels_needs_them():
    with pytest.raises(ConfigError, match="labels that are given"):
        overlaps(PHI, np.eye(3)[:, :2], "towards_labels")
