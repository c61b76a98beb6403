"""The two-layer network: descent on pre-activations is descent on the weights."""

import itertools
import math

import numpy as np
import pytest
import torch

from kdpipe.core.errors import ConfigError
from kdpipe.theory.two_layer import ACTIVATIONS, Activation, Network, curvature, descend, log_spaced

LINEAR = Activation(lambda z: z, np.ones_like, smooth=True)
TORCH = {
    "relu": torch.relu,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
    "erf": torch.erf,
}
WEIGHTS = (0.0, 0.01, math.inf)
RATE = 0.02


def scene(images=9, pixels=5, hidden=4, tests=3, spread=0.7, seed=0):
    """Images, labels, a network's weights and signs, and privileged features that it does not have."""
    rng = np.random.default_rng(seed)
    x, x_test = rng.normal(size=(images, pixels)), rng.normal(size=(tests, pixels))
    w = rng.normal(0, spread, (hidden, pixels))
    signs = rng.choice((-1.0, 1.0), hidden)
    y, phi = rng.choice((-1.0, 1.0), images), rng.normal(size=(images, hidden))
    return x, x_test, y, w, signs, phi


def eq2_half(w, x, y, signs, phi, weight, activation):
    """Half of Eq. 2 (of its second sum alone for lambda = infinity), in torch."""
    hidden = activation(x @ w.T)
    outputs = hidden @ signs / math.sqrt(len(signs))
    labels, features = ((y - outputs) ** 2).sum(), ((phi - hidden) ** 2).sum()
    return features / 2 if math.isinf(weight) else (labels + weight * features) / 2


def network_of(w, signs, x, x_test):
    return Network(signs, x @ w.T, x_test @ w.T)


@pytest.mark.parametrize(("name", "weight"), list(itertools.product(ACTIVATIONS, WEIGHTS)))
@pytest.mark.parametrize(("images", "pixels"), [(9, 5), (4, 11)])
def test_descent_is_gradient_descent_on_the_weights(name, weight, images, pixels):
    x, x_test, y, w, signs, phi = scene(images, pixels)
    record, steps = [0, 1, 7, 30], 30
    done = descend(
        network_of(w, signs, x, x_test),
        x @ x.T,
        x_test @ x.T,
        y,
        ACTIVATIONS[name],
        RATE,
        record,
        features=phi,
        weight=weight,
        keep=(7,),
    )
    tensors = [torch.from_numpy(array) for array in (x, y, signs, phi)]
    weights = torch.from_numpy(w.copy()).requires_grad_()
    for step in range(steps + 1):
        objective = eq2_half(weights, *tensors, weight, TORCH[name])
        if step in record:
            place = record.index(step)
            now = weights.detach().numpy()
            for split, seen in (("train", x), ("test", x_test)):
                outputs = TORCH[name](torch.from_numpy(seen @ now.T)).numpy() @ signs / math.sqrt(len(signs))
                np.testing.assert_allclose(getattr(done, split)[place], outputs, rtol=1e-11, atol=1e-12)
            assert done.objective[place] == pytest.approx(objective.item(), rel=1e-12)
            assert done.moved[place] == pytest.approx(np.linalg.norm(now - w), rel=1e-10, abs=1e-12)
            if step in (7, steps):
                np.testing.assert_allclose(done.kept[step].train, x @ now.T, rtol=1e-10, atol=1e-12)
                np.testing.assert_allclose(done.kept[step].test, x_test @ now.T, rtol=1e-10, atol=1e-12)
        (gradient,) = torch.autograd.grad(objective, weights)
        weights = (weights - RATE * gradient).detach().requires_grad_()
    assert done.moved[-1] > 1e-3  # it did learn
    assert done.objective[-1] < done.objective[0]


@pytest.mark.parametrize(("name", "weight"), list(itertools.product(("softplus", "tanh", "erf"), WEIGHTS)))
def test_the_first_step_is_along_the_finite_differences_of_eq_2(name, weight):
    x, x_test, y, w, signs, phi = scene()
    tensors = [torch.from_numpy(array) for array in (x, y, signs, phi)]

    def value(weights):
        return eq2_half(torch.from_numpy(weights), *tensors, weight, TORCH[name]).item()

    gradient, reach = np.zeros_like(w), 1e-6
    for place in np.ndindex(w.shape):
        moved = np.zeros_like(w)
        moved[place] = reach
        gradient[place] = (value(w + moved) - value(w - moved)) / (2 * reach)
    done = descend(
        network_of(w, signs, x, x_test),
        x @ x.T,
        x_test @ x.T,
        y,
        ACTIVATIONS[name],
        RATE,
        [0, 1],
        features=phi,
        weight=weight,
    )
    np.testing.assert_allclose(done.last.train, x @ (w - RATE * gradient).T, atol=1e-9)
    np.testing.assert_allclose(done.last.test, x_test @ (w - RATE * gradient).T, atol=1e-9)


def test_a_linear_network_follows_the_closed_form():
    x, x_test, y, w, signs, _ = scene()
    start, gram, steps = network_of(w, signs, x, x_test), x @ x.T, 40
    done = descend(start, gram, x_test @ x.T, y, LINEAR, RATE, [0, steps])
    values, vectors = np.linalg.eigh(gram)  # f(r) = y - (I - eta K)^r (y - f(0)), as sum a_k^2 / m = 1
    shrink = (vectors * (1 - RATE * values) ** steps) @ vectors.T
    expected = y - shrink @ (y - start.outputs(LINEAR))
    np.testing.assert_allclose(done.train[-1], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_infinite_lambda_from_the_teachers_units_changes_no_bit(name, precision):
    x, x_test, y, w, signs, _ = (array.astype(precision) for array in scene())
    teacher, activation = network_of(w, signs, x, x_test), ACTIVATIONS[name]
    gram, gram_test, record = x @ x.T, x_test @ x.T, [0, 1, 10, 200]
    features = teacher.features(activation)
    pure = descend(teacher, gram, gram_test, y, activation, RATE, record, features, math.inf)
    np.testing.assert_array_equal(pure.last.train, teacher.train)
    np.testing.assert_array_equal(pure.last.test, teacher.test)
    assert (pure.moved == 0).all()
    assert (pure.objective == 0).all()
    assert np.ptp(pure.train, axis=0).max() == 0
    other = descend(teacher, gram, gram_test, y, activation, RATE, record, features, 0.01)
    assert other.moved[-1] > 1e-3


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_single_precision_stays_single_and_close(name):
    exact = scene(images=20, hidden=8)
    runs = []
    for precision in ("float64", "float32"):
        x, x_test, y, w, signs, phi = (array.astype(precision) for array in exact)
        start = network_of(w, signs, x, x_test)
        assert start.outputs(ACTIVATIONS[name]).dtype == precision
        run = descend(start, x @ x.T, x_test @ x.T, y, ACTIVATIONS[name], RATE, [0, 300], phi, 0.01)
        assert {run.train.dtype, run.test.dtype, run.last.train.dtype, run.last.test.dtype} == {
            np.dtype(precision)
        }
        runs.append(run)
    np.testing.assert_allclose(runs[1].train[-1], runs[0].train[-1], atol=2e-4)


def test_the_start_is_left_as_it_was():
    x, x_test, y, w, signs, phi = scene()
    start = network_of(w, signs, x, x_test)
    before = start.train.copy(), start.test.copy(), phi.copy(), y.copy()
    descend(start, x @ x.T, x_test @ x.T, y, ACTIVATIONS["tanh"], RATE, [0, 5], phi, 0.5, keep=(0, 2))
    for now, then in zip((start.train, start.test, phi, y), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_divergence_is_said():
    x, x_test, y, w, signs, _ = scene()
    with pytest.raises(FloatingPointError, match=r"diverged by iteration 2000: lower the rate"):
        descend(network_of(w, signs, x, x_test), x @ x.T, x_test @ x.T, y, LINEAR, 10.0, [0, 2000])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_the_derivatives(name):
    activation = ACTIVATIONS[name]
    z = np.linspace(-6, 6, 41) + 0.013  # not at ReLU's kink
    step = 1e-6
    difference = (activation.value(z + step) - activation.value(z - step)) / (2 * step)
    np.testing.assert_allclose(activation.slope(z), difference, atol=1e-8)
    value, slope = activation.both(z)
    np.testing.assert_array_equal(value, activation.value(z))
    np.testing.assert_array_equal(slope, activation.slope(z))
    expected = TORCH[name](torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(value, expected, rtol=1e-7)  # torch's softplus is linear beyond 20


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_out_are_finite(name):
    for precision in ("float32", "float64"):
        z = np.array([-1e4, -200.0, 0.0, 200.0, 1e4], dtype=precision)
        for values in ACTIVATIONS[name].both(z):
            assert np.isfinite(values).all()
            assert values.dtype == precision


def dense_dynamics(network, gram, activation, weight):
    """Hbar of Eq. 13, block by block."""
    slope, a = activation.slope(network.train), network.signs / math.sqrt(len(network.signs))
    units = range(len(a))
    grams = [np.outer(slope[:, k], slope[:, k]) * gram for k in units]
    label, feature = (0.0, 1.0) if math.isinf(weight) else (1.0, weight)
    return np.block(
        [[grams[k] * (label * a[k] * a[other] + feature * (k == other)) for other in units] for k in units]
    )


@pytest.mark.parametrize(("name", "weight"), list(itertools.product(ACTIVATIONS, (0.0, 0.01, 3.0, math.inf))))
def test_curvature_is_the_largest_eigenvalue_of_the_dynamics(name, weight):
    x, x_test, _, w, signs, _ = scene()
    start = network_of(w, signs, x, x_test)
    values = np.linalg.eigvals(dense_dynamics(start, x @ x.T, ACTIVATIONS[name], weight))
    assert np.abs(values.imag).max() < 1e-9  # similar to a symmetric matrix
    assert curvature(start, x @ x.T, ACTIVATIONS[name], weight) == pytest.approx(values.real.max(), rel=1e-5)


def test_curvature_without_distillation_is_that_of_the_tangent_kernel():
    x, x_test, _, w, signs, _ = scene(images=30, hidden=10)
    start = network_of(w, signs, x, x_test)
    slope = ACTIVATIONS["relu"].slope(start.train)
    tangent = (slope @ slope.T / len(signs)) * (x @ x.T)
    expected = np.linalg.eigvalsh(tangent)[-1]
    assert curvature(start, x @ x.T, ACTIVATIONS["relu"]) == pytest.approx(expected, rel=1e-5)


def test_curvature_of_special_cases():
    x = np.array([[1.0, 0.0], [0.0, 2.0]])
    balanced = Network(np.array([1.0, -1.0]), np.zeros((2, 2)), np.zeros((0, 2)))
    assert curvature(balanced, x @ x.T, ACTIVATIONS["tanh"]) == pytest.approx(4, rel=1e-5)
    dead = Network(np.array([1.0, -1.0]), -np.ones((2, 2)), np.zeros((0, 2)))
    assert curvature(dead, x @ x.T, ACTIVATIONS["relu"]) == 0
    single = Network(np.array([1.0]), np.ones((1, 1)), np.zeros((0, 1)))
    assert curvature(single, np.array([[9.0]]), ACTIVATIONS["relu"], 0.5) == pytest.approx(13.5)


@pytest.mark.parametrize(("share", "falls"), [(0.98, True), (1.02, False)])
def test_the_largest_stable_rate_is_two_over_the_curvature(share, falls):
    x, x_test, y, w, signs, _ = scene()
    start, gram = network_of(w, signs, x, x_test), x @ x.T
    rate = share * 2 / curvature(start, gram, LINEAR)
    done = descend(start, gram, x_test @ x.T, y, LINEAR, rate, [0, 400])
    assert bool(done.objective[-1] < done.objective[0]) is falls


def test_random_networks_have_the_papers_distribution():
    rng = np.random.default_rng(1)
    eye = np.eye(50)
    network = Network.random(4000, 1e-2, eye, eye[:2], rng)  # pre-activations of unit vectors are the weights
    assert network.train.std() == pytest.approx(1e-2, rel=0.01)
    assert abs(network.train.mean()) < 1e-4
    assert set(network.signs) == {-1.0, 1.0}
    assert abs(network.signs.mean()) < 0.06
    np.testing.assert_array_equal(network.test, network.train[:2])


def test_units_and_outputs_by_hand():
    network = Network(np.array([1.0, -1.0, 1.0]), np.array([[2.0, 1.0, -3.0]]), np.array([[0.0, 4.0, 5.0]]))
    relu = ACTIVATIONS["relu"]
    assert network.outputs(relu)[0] == pytest.approx((2 - 1 + 0) / math.sqrt(3))
    some = network.units(np.array([0, 2]))
    assert some.outputs(relu)[0] == pytest.approx(2 / math.sqrt(2))
    assert some.outputs(relu, "test")[0] == pytest.approx(5 / math.sqrt(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"record": [0, 5, 3]}, "ascending"),
        ({"record": [-1, 3]}, "ascending"),
        ({"record": []}, "ascending"),
        ({"record": [0, 3], "keep": (4,)}, "within the training"),
        ({"record": [0, 3], "weight": 0.1}, "features have the shape None"),
        ({"record": [0, 3], "weight": 0.1, "features": np.zeros((9, 3))}, r"shape \(9, 3\)"),
        ({"record": [0, 3], "weight": -1.0}, "lambda is -1"),
        ({"record": [0, 3], "weight": math.nan}, "lambda is nan"),
    ],
)
def test_mistakes_are_said(settings, message):
    x, x_test, y, w, signs, _ = scene()
    with pytest.raises(ConfigError, match=message):
        descend(network_of(w, signs, x, x_test), x @ x.T, x_test @ x.T, y, LINEAR, rate=RATE, **settings)


@pytest.mark.parametrize("last", [0, 1, 2, 37, 10_000])
def test_log_spaced_iterations_ascend_from_0_to_the_last(last):
    steps = log_spaced(last, 40)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, last)
    assert len(steps) <= 42
    if last == 10_000:
        assert sum(step <= 100 for step in steps) > 10
