"""The linearised dynamics against an integrator, dense linear algebra, quadrature and gradient descent."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.integrate import quad_vec, solve_ivp
from scipy.linalg import expm
from scipy.sparse.linalg import LinearOperator, expm_multiply

from kdpipe.core.errors import ConfigError, DataError
from kdpipe.theory.linearised import (
    System,
    chained,
    expected_deviation,
    selection_bound,
    stages,
    train,
    two_classes,
)
from kdpipe.theory.two_layer import ACTIVATIONS, Network

TIMES = np.array([0.0, 0.3, 2.0, 11.0, 60.0])


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make(
    activation: str = "softplus",
    weight: float = 1.0,
    n: int = 5,
    m: int = 4,
    spread: float = 1.0,
    seed: int = 0,
    near: bool = False,
    d: int = 0,
) -> System:
    """A student whose privileged features differ from its own by O(1 / sqrt(m)), or are its own."""
    rng = np.random.default_rng(seed)
    x = unit_rows(n, d or n + 3, seed)
    sigma = ACTIVATIONS[activation]
    network = Network.random(m, spread, x, x[:0], rng)
    features = network.features(sigma)
    privileged = None if near else features + rng.normal(size=features.shape) / np.sqrt(m)
    return System.of(network, x @ x.T, sigma, rng.choice((-1.0, 1.0), n), privileged, weight)


def rounding(system: System) -> float:
    """How far modes may be off: the slowest pole is what is left of numbers as large as the fastest."""
    return 1e-8 + 4 * float(np.finfo(float).eps * system.poles[-1] / system.poles[0])


def integrate(system: System, times: np.ndarray) -> np.ndarray:
    """Eq. 10 with frozen kernels, written down anew and integrated (r x n x m)."""
    n, m = system.start.shape
    kernels = [np.outer(s, s) * system.gram for s in system.slopes.T]
    pure = np.isinf(system.weight)
    label, feature = (0.0, 1.0) if pure else (1.0, system.weight)

    def slope(_: float, flat: np.ndarray) -> np.ndarray:
        hidden = flat.reshape(m, n)
        f = sum(system.signs[k] / np.sqrt(m) * hidden[k] for k in range(m))
        return np.concatenate(
            [
                kernels[k]
                @ (
                    label * system.signs[k] / np.sqrt(m) * (system.targets - f)
                    + feature * (system.privileged[:, k] - hidden[k])
                )
                for k in range(m)
            ]
        )

    found = solve_ivp(slope, (0, times[-1]), system.start.T.ravel(), "DOP853", times, rtol=1e-9, atol=1e-11)
    return found.y.T.reshape(len(times), m, n).transpose(0, 2, 1)


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0, np.inf])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_solution_is_that_of_an_integrator(activation: str, weight: float) -> None:
    system = make(activation, weight)
    hidden = integrate(system, TIMES)
    outputs = hidden @ system.signs / np.sqrt(len(system.signs))
    assert np.ptp(outputs, axis=0).max() > 0.1  # something moves
    for way in ("dense", "krylov"):
        np.testing.assert_allclose(system.hidden(TIMES, way=way), hidden, atol=2e-7)
        np.testing.assert_allclose(system.outputs(TIMES, way=way), outputs, atol=2e-7)


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("weight", [0.01, 1.0])
def test_both_ways_agree_with_scipys_matrix_exponential(activation: str, weight: float) -> None:
    system = make(activation, weight, n=6, m=30)
    n, m = system.start.shape
    kernels = np.stack([np.outer(s, s) * system.gram for s in system.slopes.T])
    b = system.signs / np.sqrt(m)

    def h_bar(flat: np.ndarray) -> np.ndarray:
        eta = flat.reshape(m, n)
        felt = weight * eta + np.outer(b, b @ eta)
        return -np.einsum("kij,kj->ki", kernels, felt).ravel()

    trace = -float(np.sum((b**2 + weight) * np.trace(kernels, axis1=1, axis2=2)))
    dense = -system.dense()
    start = (system.start - system.final_hidden).T.ravel()
    # The operator is its own transpose but for the order of its factors, which expm_multiply asks for.
    operator = LinearOperator(dense.shape, matvec=h_bar, rmatvec=lambda v: dense.T @ v)
    for time in (0.5, 20.0):
        eta = expm_multiply(operator * time, start, traceA=trace * time)
        np.testing.assert_allclose(eta, expm(dense * time) @ start, atol=1e-9)
        expected = system.final + b @ eta.reshape(m, n)
        for way in ("dense", "krylov"):
            np.testing.assert_allclose(system.outputs(time, way=way)[0], expected, atol=1e-8)


def test_krylov_agrees_with_the_dense_way_on_a_larger_system() -> None:
    system = make("tanh", 0.1, n=12, m=60)
    times = np.geomspace(0.01, 3000, 40)
    for rate in (0.0, 1 / system.fastest):
        dense, krylov = (system.outputs(times, rate, way) for way in ("dense", "krylov"))
        np.testing.assert_allclose(krylov, dense, atol=1e-7)
    assert system.poles[-1] * 3000 > 1e3  # stiff: powers of H-bar alone would not do


def test_the_large_systems_take_the_krylov_way(monkeypatch: pytest.MonkeyPatch) -> None:
    system = make("softplus", 1.0, n=10, m=200, d=60)
    monkeypatch.setattr(System, "_eigen", property(lambda self: pytest.fail("decomposed")))
    end = system.outputs([0.0, 1e4])
    np.testing.assert_allclose(end[0], system.start @ system.shares, atol=1e-12)
    np.testing.assert_allclose(end[1], system.final, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.5, np.inf])
def test_a_rate_gives_gradient_descent_step_by_step(weight: float) -> None:
    system = make("erf", weight)
    rate, b = 0.5 / system.fastest, system.shares
    label, feature = (0.0, 1.0) if np.isinf(weight) else (1.0, weight)
    hidden = system.start.copy()
    for _ in range(37):
        pull = label * np.outer(system.targets - hidden @ b, b) + feature * (system.privileged - hidden)
        hidden = hidden + rate * system.slopes * (system.gram @ (system.slopes * pull))
    np.testing.assert_allclose(system.hidden([37 * rate], rate)[0], hidden, atol=1e-11)
    with pytest.raises(ConfigError, match="rate"):
        system.outputs([1.0], 3 / system.poles[-1])


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("weight", [0.01, 2.0])
def test_poles_are_the_eigenvalues_of_h_bar(activation: str, weight: float) -> None:
    system = make(activation, weight)
    n, m = system.start.shape
    h_bar = system.dense()
    block = np.outer(system.slopes[:, 1], system.slopes[:, 1]) * system.gram
    mixed = system.signs[1] * system.signs[2] / m
    np.testing.assert_allclose(h_bar[n : 2 * n, 2 * n : 3 * n], block * mixed)
    np.testing.assert_allclose(h_bar[n : 2 * n, n : 2 * n], block * (1 / m + weight))
    found = np.linalg.eigvals(h_bar)
    assert np.abs(found.imag).max() < 1e-8
    np.testing.assert_allclose(system.poles, np.sort(found.real), atol=1e-8)
    ranks = sum(np.linalg.matrix_rank(np.outer(s, s) * system.gram) for s in system.slopes.T)
    assert system.null_directions == n * m - ranks == (system.poles == 0).sum()
    assert (system.null_directions > 0) == (activation == "relu")


def test_poles_at_the_ends_of_lambda() -> None:
    system = make(weight=0.0)
    h = sum(np.outer(s, s) * system.gram for s in system.slopes.T) / len(system.signs)
    np.testing.assert_allclose(system.poles, np.linalg.eigvalsh(h), atol=1e-12)
    np.testing.assert_allclose(system.poles, np.linalg.svd(h)[1][::-1], atol=1e-12)
    system = make(weight=np.inf)
    every = np.concatenate([np.linalg.eigvalsh(np.outer(s, s) * system.gram) for s in system.slopes.T])
    np.testing.assert_allclose(system.poles, np.sort(every), atol=1e-12)


def test_poles_grow_with_lambda() -> None:
    ladder = np.stack([make("tanh", weight).poles for weight in (0.001, 0.01, 0.1, 1.0, 10.0)])
    assert (np.diff(ladder, axis=0) > 0).all()
    assert all(make("tanh", weight).poles[-1] <= make("tanh", weight).fastest for weight in (0.0, 1.0, 10.0))


@pytest.mark.parametrize("activation", ["softplus", "tanh", "erf"])
@pytest.mark.parametrize("weight", [0.01, 1.0])
def test_theorem_3_is_the_matrix_exponential(activation: str, weight: float) -> None:
    system = make(activation, weight)
    modes = system.modes()
    assert len(modes.poles) == system.start.size
    atol = rounding(system)
    np.testing.assert_allclose(modes.outputs(TIMES), system.outputs(TIMES), atol=atol)
    b, start = system.shares, (system.start - system.final_hidden).T.ravel()
    eta = expm(-system.dense() * 3.0) @ start
    np.testing.assert_allclose(modes.outputs([3.0])[0], system.final + b @ eta.reshape(len(b), -1), atol=atol)


def test_theorem_3_as_printed_does_not_hold() -> None:
    """Each correction is needed: undoing one moves f(t) by more than rounding."""
    system = make("softplus", 1.0)
    modes, b = system.modes(), system.shares
    truth = system.outputs([1.0])[0]
    decay = np.exp(-modes.poles)

    def overlaps(power: int, kernel: bool, sign: float, normed: bool) -> np.ndarray:
        found = []
        for pole, u in zip(modes.poles, modes.vectors.T, strict=True):
            value = length = 0.0
            for k in range(len(b)):
                h = system.unit(k)
                inverse = np.linalg.inv(pole * np.eye(len(h)) - system.weight * h)
                gap = sign * (system.start[:, k] - system.final_hidden[:, k])
                value += b[k] ** power * u @ (h if kernel else np.eye(len(h))) @ inverse @ gap
                length += b[k] ** 2 * u @ inverse @ inverse @ h @ u
            found.append(value / length if normed else value)
        return np.array(found)

    corrected = overlaps(1, False, 1.0, True)
    np.testing.assert_allclose(corrected, modes.overlaps, rtol=1e-6)
    np.testing.assert_allclose(system.final + modes.vectors @ (decay * corrected), truth, atol=1e-8)
    assert np.abs(modes.vectors @ (decay * corrected) - truth).max() > 1e-2  # without f_inf
    for printed in ((2, True, 1.0, True), (1, False, -1.0, True), (1, False, 1.0, False)):
        assert np.abs(system.final + modes.vectors @ (decay * overlaps(*printed)) - truth).max() > 1e-2


@pytest.mark.parametrize("mode", [0, 7, -1])
def test_lemma_5(mode: int) -> None:
    system = make("softplus", 0.3)
    h_bar = system.dense()
    pole, right, left = system.eigenvectors(mode)
    np.testing.assert_allclose(h_bar @ right, pole * right, atol=1e-9 * np.abs(right).max())
    np.testing.assert_allclose(left @ h_bar, pole * left, atol=1e-9 * np.abs(left).max())
    assert left @ right == pytest.approx(1)
    v = system.modes().vectors[:, mode]
    np.testing.assert_allclose(system.shares @ right.reshape(len(system.signs), -1), v, atol=1e-8)
    gamma = system.transfer(-pole)
    np.testing.assert_allclose(gamma, gamma.T, atol=1e-9 * np.abs(gamma).max())
    assert np.abs(np.linalg.eigvals(gamma) + 1).min() < 1e-7
    np.testing.assert_allclose(gamma @ v, -v, atol=1e-7)


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_laplace_is_the_transform_of_the_time_solution(activation: str, weight: float) -> None:
    system = make(activation, weight)
    for s in (0.4, 1.5 + 0.8j):
        # With singular H_k f(t) does not end at f_inf: what is left has the transform (limit - f_inf) / s.
        found, _ = quad_vec(
            lambda t, s=s: np.exp(-s * t) * (system.outputs([t])[0] - system.limit), 0, 200, epsabs=1e-9
        )
        np.testing.assert_allclose(found + (system.limit - system.final) / s, system.laplace(s), atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_contributions_need_no_assumption(activation: str, weight: float) -> None:
    system = make(activation, weight)
    poles, parts = system.contributions()
    np.testing.assert_allclose(
        system.limit + np.exp(-np.multiply.outer(TIMES, poles)) @ parts.T, system.outputs(TIMES), atol=1e-8
    )
    if activation == "erf" and weight:
        modes = system.modes()
        np.testing.assert_allclose(parts, modes.vectors * modes.overlaps, atol=rounding(system))


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0, np.inf])
@pytest.mark.parametrize("activation", ["softplus", "tanh", "relu"])
def test_where_the_system_ends(activation: str, weight: float) -> None:
    system = make(activation, weight)
    np.testing.assert_allclose(system.outputs([1e9])[0], system.limit, atol=1e-7)
    np.testing.assert_allclose(system.hidden([1e9])[0], system.limit_hidden, atol=1e-7)
    np.testing.assert_allclose(system.limit_hidden @ system.shares, system.limit, atol=1e-10)
    theorem = np.allclose(system.limit, system.final, atol=1e-8)
    assert theorem == (activation != "relu" or weight == 0)  # every image has an active unit here


@pytest.mark.parametrize("weight", [0.01, 1.0, np.inf])
def test_theorem_1_solves_the_stationary_equations(weight: float) -> None:
    system = make(weight=weight)
    b, y = system.shares, system.targets
    assert system.energy == pytest.approx(1)
    if np.isinf(weight):
        np.testing.assert_allclose(system.final_hidden, system.privileged)
        np.testing.assert_allclose(system.final, system.privileged @ b)
        return
    pull = np.outer(y - system.final, b) + weight * (system.privileged - system.final_hidden)
    np.testing.assert_allclose(pull, 0, atol=1e-12)
    np.testing.assert_allclose(system.final_hidden @ b, system.final)
    np.testing.assert_allclose(system.final, (y + weight * system.privileged @ b) / (1 + weight))
    printed = np.outer(y - system.final, b) / weight + system.privileged
    np.testing.assert_allclose(system.final_hidden, printed)
    error = weight / (1 + weight) * np.linalg.norm(system.privileged @ b - y)
    assert system.final_error == pytest.approx(error)


def test_output_weights_need_not_be_signs() -> None:
    base = make(weight=0.5)
    signs = np.array([0.5, -2.0, 1.5, 0.0])
    system = System(signs, base.slopes, base.gram, base.start, base.targets, base.privileged, 0.5)
    assert system.energy == pytest.approx((0.25 + 4 + 2.25) / 4)
    np.testing.assert_allclose(system.hidden(TIMES), integrate(system, TIMES), atol=2e-7)
    np.testing.assert_allclose(system.limit, system.final, atol=1e-10)


def test_a_relu_student_at_its_teacher_ends_by_its_active_units() -> None:
    system = make("relu", 0.7, n=6, m=9, near=True)
    active = system.slopes.mean(1)  # a_k^2 / m summed over the units that are on
    assert 0 < active.min() < active.max() < 1
    missing = 0.7 / (0.7 + active) * (system.targets - system.taught)
    np.testing.assert_allclose(system.targets - system.limit, missing, atol=1e-10)
    assert np.abs(system.targets - system.limit).sum() > np.abs(system.targets - system.final).sum()


def test_an_image_that_no_unit_sees_is_never_learnt() -> None:
    base = make("relu", 0.0, n=4, m=6)
    slopes = base.slopes.copy()
    slopes[2] = 0
    system = System(base.signs, slopes, base.gram, base.start, base.targets, base.privileged, 0.0)
    before = system.start @ system.shares
    assert system.outputs([1e6])[0, 2] == pytest.approx(before[2]) == system.limit[2]
    np.testing.assert_allclose(np.delete(system.limit, 2), np.delete(system.targets, 2), atol=1e-8)


def test_infinite_lambda_at_the_teacher_stays() -> None:
    system = make("tanh", np.inf, near=True)
    np.testing.assert_allclose(system.hidden(TIMES), np.repeat(system.start[None], len(TIMES), 0))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gradient_descent_ends_at_theorem_1(weight: float) -> None:
    """Where all sigma' are positive the stationary equations are Theorem 1's at any width."""
    rng = np.random.default_rng(1)
    x, sigma = unit_rows(5, 20), ACTIVATIONS["softplus"]
    network = Network.random(200, 0.3, x, x[:0], rng)  # so that no phi leaves the range of sigma
    features = network.features(sigma)
    phi = features + 0.5 * rng.normal(size=features.shape) / np.sqrt(200)
    system = System.of(network, x @ x.T, sigma, rng.choice((-1.0, 1.0), 5), phi, weight)
    training = train(system, network, sigma, 400.0, 0.5, 2)
    np.testing.assert_allclose(training.outputs[-1], system.final, atol=1e-6)
    assert np.abs(training.outputs[0] - system.final).max() > 0.1


def test_gradient_descent_nears_the_linear_system_as_the_width_grows() -> None:
    distances = []
    for m in (16, 256):
        found = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            x, sigma = unit_rows(4, 9), ACTIVATIONS["erf"]
            network = Network.random(m, 1.0, x, x[:0], rng)
            system = System.of(network, x @ x.T, sigma, np.array([1.0, 1, -1, -1]), weight=0.1)
            training = train(system, network, sigma, 40.0, 0.5, 60)
            apart = np.linalg.norm(training.outputs - training.linear, axis=1)
            found.append(np.trapezoid(apart, training.times))
        distances.append(np.mean(found))
    assert distances[1] < distances[0] / 3  # O(1 / sqrt(m)) asks for a quarter or less
    assert distances[1] > 1e-6  # and the two are not one and the same code


def test_trainings_end_on_time_and_know_their_speed() -> None:
    rng = np.random.default_rng(0)
    x, sigma = unit_rows(4, 9), ACTIVATIONS["erf"]
    network = Network.random(50, 1.0, x, x[:0], rng)
    system = System.of(network, x @ x.T, sigma, np.array([1.0, 1, -1, -1]))
    training = train(system, network, sigma, 30.0, 0.3, 50)
    assert training.times[0] == 0
    assert training.times[-1] == pytest.approx(30.0)
    assert training.rate <= 0.3 / system.fastest
    np.testing.assert_allclose(training.network.outputs(sigma), training.outputs[-1])
    at = np.searchsorted(training.times, training.tenth)
    away = np.linalg.norm(training.outputs - training.outputs[-1], axis=1) / np.linalg.norm(
        training.outputs[0] - training.outputs[-1]
    )
    assert (away[at:] <= 0.1).all()
    assert away[at - 1] > 0.1


def test_assumptions() -> None:
    smooth = make("softplus", 0.5).assumptions()
    assert smooth.first
    assert smooth.second
    assert smooth.third
    relu = make("relu", 0.5).assumptions()
    assert relu.null_directions > 0
    assert not relu.second
    assert not relu.third
    base = make("softplus", 0.5)
    twins = System(
        base.signs, np.repeat(base.slopes[:, :1], 4, 1), base.gram, base.start, base.targets,
        base.privileged, 0.5,
    )  # fmt: skip
    found = twins.assumptions()
    assert not found.first
    assert not found.second
    np.testing.assert_allclose(twins.hidden(TIMES), integrate(twins, TIMES), atol=2e-7)
    at_teacher = make("softplus", 0.5, near=True)
    assert at_teacher.assumptions().closeness == 0
    missed = np.linalg.norm(at_teacher.targets - at_teacher.start @ at_teacher.shares)
    assert at_teacher.assumptions().teacher_gap == pytest.approx(missed)


@pytest.mark.parametrize("weight", [0.0, np.inf])
def test_what_needs_a_finite_positive_lambda_says_so(weight: float) -> None:
    with pytest.raises(ConfigError, match="lambda"):
        make(weight=weight).modes()
    with pytest.raises(ConfigError, match="not defined"):
        make(weight=weight).assumptions()


def test_theorem_3_refuses_what_breaks_its_assumptions() -> None:
    with pytest.raises(ConfigError, match="null directions"):
        make("relu", 1.0).modes()
    with pytest.raises(ConfigError, match="not defined"):
        make(weight=np.inf).dense()


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("start", np.zeros((4, 4)), "shape"),
        ("signs", np.array([1.0, np.nan, 1, 1]), "finite"),
        ("signs", np.zeros(4), "output weight"),
        ("weight", -1.0, "lambda"),
        ("weight", np.nan, "lambda"),
        ("gram", np.triu(np.ones((5, 5))), "symmetric"),
    ],
)
def test_bad_input(name: str, value: object, match: str) -> None:
    base = make()
    arguments = {
        key: getattr(base, key)
        for key in ("signs", "slopes", "gram", "start", "targets", "privileged", "weight")
    }
    with pytest.raises((DataError, ConfigError), match=match):
        System(**{**arguments, name: value})


def test_more_bad_input() -> None:
    base = make()
    broken = System(base.signs, base.slopes, -base.gram, base.start, base.targets, base.privileged, 1.0)
    with pytest.raises(DataError, match="negative eigenvalues"):
        broken.outputs([1.0])
    with pytest.raises(ConfigError, match="times"):
        base.outputs([-1.0])
    x, sigma = unit_rows(5, 8), ACTIVATIONS["relu"]
    network = Network.random(20, 1.0, x, x[:0], np.random.default_rng(0))
    system = System.of(network, x @ x.T, sigma, np.ones(5), np.ones((5, 20)), 3.0)
    with pytest.raises(ConfigError, match="diverged"), np.errstate(all="ignore"):
        train(system, network, sigma, 2e4, 60.0, 2)


def test_too_large_a_matrix_is_refused_with_its_size() -> None:
    base = make("softplus", 1.0, n=10, m=40)
    arrays = (base.signs, base.slopes, base.gram, base.start, base.targets, base.privileged)
    system = System(*arrays, 1.0, memory=1e-3)
    gib = 400**2 * 8 / 2**30
    with pytest.raises(ConfigError, match=f"{gib:.1f} GiB"):
        system.dense()
    for dense in (lambda: system.poles, lambda: system.outputs([1.0], way="dense")):
        with pytest.raises(ConfigError, match="GiB"):
            dense()
    small = System(*arrays, 1.0, memory=0.01)  # room for a Krylov space
    np.testing.assert_allclose(small.outputs([1.0], way="krylov"), base.outputs([1.0]), atol=1e-7)


def test_two_classes() -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.random((40, 6)), np.repeat([7, 2, 5, 2], 10)
    x, y = two_classes(pixels, labels, 6, rng)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1)
    scaled = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    found = [labels[np.flatnonzero((np.abs(scaled - row) < 1e-12).all(1))[0]] for row in x]
    assert found == [2, 2, 2, 5, 5, 5]
    assert y.tolist() == [1, 1, 1, -1, -1, -1]
    with pytest.raises(ConfigError, match="evenly"):
        two_classes(pixels, labels, 5, rng)
    with pytest.raises(DataError, match="needed"):
        two_classes(pixels, labels, 30, rng)
    with pytest.raises(DataError, match="needed"):
        two_classes(pixels, np.zeros(40, dtype=int), 4, rng)
    with pytest.raises(DataError, match="zeros"):
        two_classes(np.zeros((40, 6)), labels, 4, rng)


def test_theorem_2_by_hand() -> None:
    signs, features = np.array([1.0, -1, 1, 1]), np.array([[1.0, 2, 0, 1], [0.0, 1, 3, 2]])
    energy = (1 + 5 + 9 + 5) / 4
    expected = (1 - 2 / 4) * (3 / 4) ** 2 * energy * np.log(4)
    assert selection_bound(signs, features, 2, 3.0) == pytest.approx(expected)
    assert selection_bound(signs, features, 2, 3.0, printed=True) == pytest.approx(expected / 2)
    assert selection_bound(signs, features, 4, 3.0) == 0
    assert selection_bound(signs, features, 2, 0.0) == 0
    assert selection_bound(signs, features, 2, np.inf) == pytest.approx(0.5 * energy * np.log(4))
    with pytest.raises(ConfigError, match="cannot be chosen"):
        selection_bound(signs, features, 5, 1.0)
    with pytest.raises(ConfigError, match="m-bar = 1"):
        selection_bound(2 * signs, features, 2, 1.0)


def test_expected_deviation_is_the_mean_over_every_choice() -> None:
    rng = np.random.default_rng(3)
    signs, features = rng.choice((-1.0, 1.0), 6), rng.random((3, 6))
    terms, m = signs * features, 2
    every = np.array([terms[:, list(c)].sum(1) / np.sqrt(m) for c in combinations(range(6), m)])
    mean = m / np.sqrt(m * 6) * features @ signs / np.sqrt(6)
    np.testing.assert_allclose(every.mean(0), mean)
    spread = np.square(every - mean).sum(1).mean()
    assert expected_deviation(signs, features, m) == pytest.approx(spread)
    kept = np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1)  # every outcome of Bernoulli choices
    chance = np.prod(np.where(kept, m / 6, 1 - m / 6), axis=0)
    away = np.square(terms @ kept / np.sqrt(m) - mean[:, None]).sum(0)
    assert expected_deviation(signs, features, m, fixed=False) == pytest.approx(float(chance @ away))
    assert expected_deviation(signs, features, 6) == 0


def test_two_stages() -> None:
    assert stages(0.4, 0.5) == pytest.approx((0.3, 0.8))
    assert chained(0.4, 0.5, 0.0) == pytest.approx(0.6)
    assert chained(0.4, 0.5, np.inf) == pytest.approx(0.8)
    assert chained(0.4, 0.5, 1.0) == pytest.approx(0.6 + 0.2 / 4)


def test_two_choices_of_units_of_equal_spread_add() -> None:
    """`chained` against the closed form of two stages on units drawn independently."""
    rng = np.random.default_rng(0)
    wide, middle, narrow, weight = 60, 24, 8, 2.0
    share, ratios = (weight / (1 + weight)) ** 2, []
    for _ in range(1500):
        terms = rng.normal(size=(20, wide))  # a_l phi_l, and y the mean of a student's sum
        y = narrow / np.sqrt(narrow) * terms.mean(1)
        first = terms[:, rng.permutation(wide)[:middle]]
        aim = y * np.sqrt(middle / narrow)
        gap = aim - first.sum(1) / np.sqrt(middle)
        learnt = first + gap[:, None] / np.sqrt(middle) / (1 + weight)  # f_inf^(k) of Theorem 3
        two = share * np.square(learnt[:, :narrow].sum(1) / np.sqrt(narrow) - y).sum()
        one = share * np.square(first[:, :narrow].sum(1) / np.sqrt(narrow) - y).sum()
        ratios.append((two, one))
    measured = np.mean(ratios, axis=0)
    _, direct = stages(narrow / middle, middle / wide)
    assert measured[0] / measured[1] == pytest.approx(
        chained(narrow / middle, middle / wide, weight) / direct, rel=0.02
    )
