"""Self-distillation of kernel ridge regression, against derivations that share no code with it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.kernel_ridge import KernelRidge as Sklearn

from kdpipe.core.errors import ConfigError, DataError, UnknownNameError
from kdpipe.theory.kernel_ridge import (
    ACCURACY,
    ROUNDING,
    Kernel,
    SelfDistillation,
    Spectrum,
    collapse_case,
    diagonal,
    diagonals,
    ratio_test,
    ratios,
    shrinkage,
)

ALPHAS = (0.0, 0.35, 1.0)


def points(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def targets(n, outputs=None, seed=1):
    return np.random.default_rng(seed).normal(size=n if outputs is None else (n, outputs))


def with_eigenvalues(values, seed=0):
    """A Gram matrix with these eigenvalues, its eigenvectors drawn."""
    v = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    gram = (v * np.asarray(values, dtype=float)) @ v.T
    return (gram + gram.T) / 2


def precomputed(gram, y):
    return SelfDistillation(gram, y, Kernel("precomputed"))


def small(values=(0.1, 0.5, 1.0, 2.0, 4.0), outputs=None, seed=0):
    """A small well-conditioned problem with known eigenvalues."""
    return precomputed(with_eigenvalues(values, seed), targets(len(values), outputs, seed + 1))


def close(found, expected, tolerance=1e-8):
    """Equal within a share of the greatest value."""
    scale = max(np.abs(expected).max(), 1e-300)
    assert np.abs(found - expected).max() <= tolerance * scale


# three ways

PROBLEMS = {
    "rbf": lambda: SelfDistillation(points(120), targets(120), Kernel("rbf", {"gamma": 0.7})),
    "rbf, 200 points, 4 outputs": lambda: SelfDistillation(points(200), targets(200, 4)),
    "laplacian": lambda: SelfDistillation(points(80), targets(80), Kernel("laplacian", {"gamma": 1.5})),
    "polynomial": lambda: SelfDistillation(
        points(60), targets(60, 2), Kernel("polynomial", {"degree": 2, "coef0": 1})
    ),
    "linear, rank 3": lambda: SelfDistillation(points(50), targets(50), Kernel("linear")),
    "precomputed": lambda: precomputed(with_eigenvalues(np.geomspace(0.01, 10, 40)), targets(40, 3)),
    "a function": lambda: SelfDistillation(
        points(12), targets(12), Kernel(lambda x, y: 1 + float(x @ y) ** 2)
    ),
    "duplicate points": lambda: SelfDistillation(np.repeat(points(15), 2, 0), targets(30)),
    "one point": lambda: SelfDistillation([[0.3, 0.1]], [2.0]),
}


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_three_ways_agree(name, alpha):
    problem = PROBLEMS[name]()
    for penalty in (1e-2, 0.2, 10):
        direct, powers, spectral = (
            problem.fits(penalty, alpha, 8, way) for way in ("direct", "powers", "spectral")
        )
        assert direct.shape == (8, *problem.targets.shape)
        close(powers, direct)
        close(spectral, direct)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("penalty", [0.0, 1e-10, 1e-6])
def test_three_ways_agree_at_tiny_penalties_where_conditioning_allows(penalty, alpha):
    problem = precomputed(with_eigenvalues(np.linspace(1, 3, 200)), targets(200))
    direct = problem.fits(penalty, alpha, 5, "direct")
    close(problem.fits(penalty, alpha, 5, "powers"), direct)
    close(problem.fits(penalty, alpha, 5), direct)
    close(direct[0], problem.targets, 2 * penalty + 1e-12)  # all but interpolated


def test_accuracy_at_the_conditioning_limit_is_what_is_promised():
    problem = SelfDistillation(points(100, 1), targets(100))
    penalty, values = problem.spectrum.least_penalty(), problem.spectrum.values
    assert 100 * np.finfo(float).eps * values[-1] == pytest.approx(ACCURACY * (values[0] + penalty))
    direct = problem.fits(penalty, 0.35, 3, "direct")
    close(problem.fits(penalty, 0.35, 3), direct, 3 * ACCURACY)
    with pytest.raises(ConfigError, match="too small for this kernel"):
        problem.fits(0.9 * penalty, 0.35, 3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    alpha=st.floats(0, 1),
    penalty=st.floats(1e-3, 10),
    steps=st.integers(1, 12),
)
def test_random_cases(seed, n, alpha, penalty, steps):
    problem = SelfDistillation(points(n, 2, seed), targets(n, 2, seed))
    fits = problem.fits(penalty, alpha, steps, "direct")
    close(problem.fits(penalty, alpha, steps, "powers"), fits)
    close(problem.fits(penalty, alpha, steps), fits)
    last = diagonal(problem.spectrum.values, penalty, alpha, steps)
    close(
        problem.spectrum.vectors @ (last[:, None] * (problem.spectrum.vectors.T @ problem.targets)), fits[-1]
    )
    norms = np.linalg.norm(fits.reshape(steps, -1), axis=1)
    assert (np.diff(norms) <= 1e-12).all(), "every step regularises further"


def test_equation_10_as_printed():
    d, penalty, alpha = np.array([0.01, 0.3, 2.0]), 0.2, 0.35
    a = d / (d + penalty)
    for tau in range(1, 8):
        printed = alpha / (1 - alpha) * sum(((1 - alpha) * a) ** i for i in range(1, tau))
        printed = printed + (1 - alpha) ** (tau - 1) * a**tau
        np.testing.assert_allclose(diagonal(d, penalty, alpha, tau), printed, rtol=1e-13)
        np.testing.assert_allclose(diagonals(np.tile(a, (tau, 1)), alpha)[-1], printed, rtol=1e-13)


def test_a_hand_worked_case():
    """K = 1, lambda = 1: A = 1/2, and B is 1/2, 3/8, 11/32 for alpha = 1/2, with limit 1/3."""
    one = precomputed([[1.0]], [8.0])
    np.testing.assert_allclose(one.fits(1, 0.5, 3)[:, 0], [4, 3, 2.75])
    assert one.limit(1, 0.5)[0] == pytest.approx(8 / 3)
    assert one.limit(1, 0.0)[0] == 0
    np.testing.assert_allclose(one.fits(1, 0, 3)[:, 0], [4, 2, 1])
    np.testing.assert_allclose(one.fits(1, 1, 3)[:, 0], [4, 4, 4])
    np.testing.assert_allclose(one.predict([[0.5]], 1, 0.5, [1, 2, math.inf])[:, 0], [2, 1.5, 4 / 3])


def test_constant_targets_shrink_and_stay_constant():
    """On a circle the constant is an eigenvector."""
    angle = 2 * np.pi * np.arange(8) / 8
    problem = SelfDistillation(np.column_stack([np.cos(angle), np.sin(angle)]), np.full(8, 3.0))
    level = problem.gram[0].sum()
    expected = 3 * np.cumprod(np.full(4, level / (level + 0.5)))
    np.testing.assert_allclose(problem.fits(0.5, 0.0, 4), np.repeat(expected[:, None], 8, 1), rtol=1e-10)


def test_one_eigendecomposition_serves_everything(monkeypatch):
    calls = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: calls.append(1) or eigh(a))
    problem = SelfDistillation(points(20), targets(20))
    for alpha, penalty in itertools.product(ALPHAS, (0.1, 1.0)):
        problem.fits(penalty, alpha, 5)
        problem.limit(penalty, alpha)
        problem.predict(points(4), penalty, alpha, [1, 5, math.inf])
        problem.constrained(0.3, alpha, 3)
    assert len(calls) == 1
    again = SelfDistillation(points(20), targets(20), spectrum=problem.spectrum)
    np.testing.assert_array_equal(again.fits(0.1, 0.35, 3), problem.fits(0.1, 0.35, 3))
    assert len(calls) == 1


# the objective


def features(d=4, n=9, seed=3):
    """Explicit features phi (n x D), their linear kernel, two targets."""
    phi = points(n, d, seed)
    return phi, targets(n, seed=seed), targets(n, seed=seed + 1)


@pytest.mark.parametrize("alpha", [0.0, 0.35, 0.8, 1.0])
def test_every_step_minimises_the_objective_by_autograd(alpha):
    phi, y, _ = features()
    problem, penalty = SelfDistillation(phi, y, Kernel("linear")), 0.3
    before, x, truth = torch.tensor(y), torch.tensor(phi), torch.tensor(y)
    for tau in range(1, 5):
        c = problem.coefficients(penalty, alpha, [tau])[0]
        beta = torch.tensor(phi.T @ c, requires_grad=True)
        fit = x @ beta
        loss = alpha / 2 * (fit - truth).square().sum() + (1 - alpha) / 2 * (fit - before).square().sum()
        loss = loss + penalty / 2 * beta.square().sum()
        (gradient,) = torch.autograd.grad(loss, beta)
        assert gradient.abs().max() < 1e-12
        assert problem.objective(c, y, before.numpy(), penalty, alpha) == pytest.approx(
            loss.item(), rel=1e-12
        )
        before = fit.detach()


def test_the_minimiser_by_finite_differences():
    y = targets(10)
    problem, penalty, alpha = SelfDistillation(points(10), y), 0.2, 0.35
    before = problem.fits(penalty, alpha, 2)[1]
    c = problem.coefficients(penalty, alpha, [3])[0]
    value = problem.objective(c, y, before, penalty, alpha)
    for direction in np.random.default_rng(0).normal(size=(20, 10)):
        up, down = (problem.objective(c + s * 1e-4 * direction, y, before, penalty, alpha) for s in (1, -1))
        assert abs(up - down) / 2e-4 < 1e-7
        assert min(up, down) > value


def test_footnote_8_with_its_half():
    _, y1, y2 = features()
    problem, alpha = SelfDistillation(points(9), y1), 0.35
    mixed = alpha * y1 + (1 - alpha) * y2
    for seed in range(3):
        c = targets(9, seed=seed)
        gap = problem.objective(c, y1, y2, 0.2, alpha) - problem.objective(c, mixed, mixed, 0.2, alpha)
        constant = alpha * (1 - alpha) * np.sum((y1 - y2) ** 2)
        assert gap == pytest.approx(constant / 2)
        assert gap != pytest.approx(constant)


def test_the_first_step_is_scikit_learns_kernel_ridge():
    x, new, y = points(40), points(7, seed=9), targets(40, 3)
    theirs = Sklearn(alpha=0.2, kernel="laplacian", gamma=0.4).fit(x, y)
    problem = SelfDistillation(x, y, Kernel("laplacian", {"gamma": 0.4}))
    np.testing.assert_allclose(problem.coefficients(0.2, 0.35, [1])[0], theirs.dual_coef_, atol=1e-9)
    for alpha in ALPHAS:
        np.testing.assert_allclose(problem.predict(new, 0.2, alpha, [1])[0], theirs.predict(new), atol=1e-9)


# predictions at new points


@pytest.mark.parametrize("alpha", ALPHAS)
def test_predictions_follow_the_chain_of_fits(alpha):
    x, new, y = points(30), points(8, seed=5), targets(30, 2)
    problem, penalty = SelfDistillation(x, y, Kernel("rbf", {"gamma": 0.5})), 0.2
    before, cross = y, Kernel("rbf", {"gamma": 0.5})(new, x)
    for tau in range(1, 6):
        model = np.linalg.solve(problem.gram + penalty * np.eye(30), alpha * y + (1 - alpha) * before)
        close(problem.predict(new, penalty, alpha, [tau])[0], cross @ model)
        before = problem.gram @ model
    close(problem.predict(x, penalty, alpha, [5])[0], problem.fits(penalty, alpha, 5)[4])
    kernel = precomputed(problem.gram, y)
    close(
        kernel.predict(cross, penalty, alpha, [2, math.inf]),
        problem.predict(new, penalty, alpha, [2, math.inf]),
    )


def test_equation_7_holds_for_targets_of_this_chain_and_fails_for_the_chain_of_alpha_0():
    x, new, y = points(20), points(5, seed=5), targets(20)
    problem, penalty, alpha = SelfDistillation(x, y), 0.2, 0.35
    first = problem.predict(new, penalty, alpha, [1])[0]
    for tau in (2, 3, 4):
        step = problem.predict(new, penalty, alpha, [tau])[0]
        taught = SelfDistillation(x, problem.fits(penalty, alpha, tau - 1)[-1])
        close(alpha * first + (1 - alpha) * taught.predict(new, penalty, 0, [1])[0], step)
        literal = alpha * first + (1 - alpha) * problem.predict(new, penalty, 0, [tau])[0]
        assert np.allclose(literal, step, rtol=1e-6) == (tau == 2)


# the limit


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.35, 1.0])
def test_a_thousand_steps_reach_the_limit(alpha):
    problem, new = SelfDistillation(points(25), targets(25, 2)), points(6, seed=4)
    np.testing.assert_allclose(
        problem.fits(0.5, alpha, 1000, "direct")[-1], problem.limit(0.5, alpha), atol=1e-12
    )
    far, limit = problem.predict(new, 0.5, alpha, [1000, math.inf])
    np.testing.assert_allclose(far, limit, atol=1e-12)
    if alpha == 0:
        assert not problem.limit(0.5, alpha).any()


@pytest.mark.parametrize("alpha", [0.1, 0.35, 1.0])
def test_the_limit_is_ridge_regression_with_the_penalty_over_alpha(alpha):
    x, new, y = points(25), points(6, seed=4), targets(25)
    problem, theirs = SelfDistillation(x, y), Sklearn(alpha=0.5 / alpha, kernel="rbf").fit(x, y)
    np.testing.assert_allclose(problem.limit(0.5, alpha), theirs.predict(x), atol=1e-10)
    np.testing.assert_allclose(
        problem.predict(new, 0.5, alpha, [math.inf])[0], theirs.predict(new), atol=1e-10
    )


def test_equation_15_needs_the_limit_as_targets():
    x, new, y = points(25), points(6, seed=4), targets(25)
    problem, penalty, alpha = SelfDistillation(x, y), 0.5, 0.35
    first, limit = problem.predict(new, penalty, alpha, [1, math.inf])
    on_limit = SelfDistillation(x, problem.limit(penalty, alpha)).predict(new, penalty, alpha, [1])[0]
    np.testing.assert_allclose(alpha * first + (1 - alpha) * on_limit, limit, atol=1e-12)
    amplified = problem.predict(new, penalty / alpha, alpha, [1])[0]
    assert np.abs(alpha * first + (1 - alpha) * amplified - limit).max() > 0.01
    np.testing.assert_allclose(amplified, limit, atol=1e-12)


def test_theorem_a4_of_predictions_as_printed():
    x, new, y = points(12), points(3, seed=4), targets(12)
    problem, penalty, identity = SelfDistillation(x, y), 0.5, np.eye(12)
    cross, k = Kernel()(new, x), problem.gram
    for alpha in (0.0, 0.35, 1.0):
        inner = identity + (1 - alpha) * k @ np.linalg.inv(alpha * k + penalty * identity)
        printed = alpha * cross @ np.linalg.inv(k + penalty * identity) @ inner @ y
        np.testing.assert_allclose(problem.predict(new, penalty, alpha, [math.inf])[0], printed, atol=1e-12)


def test_the_rate_is_linear():
    """Errors are multiplied by (1 - alpha) A: never by more than its norm, in the end by nearly that."""
    problem, penalty, alpha = small(), 0.2, 0.35
    gaps = problem.fits(penalty, alpha, 30, "direct") - problem.limit(penalty, alpha)
    contraction = (1 - alpha) * problem.gram @ np.linalg.inv(problem.gram + penalty * np.eye(5))
    np.testing.assert_allclose(gaps[1:10], gaps[:9] @ contraction.T, atol=1e-13)
    rates = np.linalg.norm(gaps[1:], axis=1) / np.linalg.norm(gaps[:-1], axis=1)
    rate = np.linalg.norm(contraction, 2)
    assert (rates <= rate * (1 + 1e-6)).all()
    assert rates[-1] == pytest.approx(rate, rel=1e-3)


# the diagonal of B


@pytest.mark.parametrize("alpha", [0.0, 0.35, 0.9])
def test_lemma_4_2_decreases_if_and_only_if_there_is_a_penalty(alpha):
    d = np.geomspace(0.01, 10, 12)
    for penalty in (0.0, 1e-3, 0.2, 5.0):
        shrunk = shrinkage(d, penalty)
        rows = diagonals(np.tile(shrunk, (12, 1)), alpha)
        changes = np.diff(np.vstack([np.ones(12), rows]), axis=0)
        steps = np.arange(12)[:, None]  # of each change, from 0
        np.testing.assert_allclose(changes, ((1 - alpha) * shrunk) ** steps * (shrunk - 1), atol=1e-15)
        assert ((rows >= 0) & (rows <= 1)).all()
        assert (changes[:5] < 0).all() == (penalty > 0)
        if penalty == 0:
            assert (rows == 1).all()


def test_lemma_4_2_is_not_strict_at_its_ends():
    shrunk = shrinkage(np.array([0.0, 1.0]), 0.5)
    np.testing.assert_allclose(diagonals(np.tile(shrunk, (3, 1)), 0.35)[:, 0], 0)
    np.testing.assert_allclose(diagonals(np.tile(shrunk, (3, 1)), 1.0)[:, 1], 1 / 1.5)


def test_theorem_4_3_at_alpha_0_and_1():
    d, penalty = np.array([0.05, 0.4, 3.0]), 0.2
    base = (1 + penalty / d[:-1]) / (1 + penalty / d[1:])
    for tau in (1, 2, 5):
        np.testing.assert_allclose(ratios(diagonal(d, penalty, 0.0, tau)), base**tau)
        np.testing.assert_allclose(ratios(diagonal(d, penalty, 1.0, tau)), base)


def test_ratios_by_zero_are_infinite_or_unknown():
    found = ratios(np.array([0.0, 0.0, 0.5, 0.25]))
    assert np.isnan(found[0])
    assert found[1:].tolist() == [math.inf, 0.5]


def sides(d, penalties, alpha):
    """Left and right sides of the sign test at each step, where the left one is beyond rounding."""
    shrinkages = np.stack([shrinkage(d, penalty) for penalty in penalties])
    befores = np.vstack([np.ones(len(d)), diagonals(shrinkages, alpha)])
    for before, shrunk in zip(befores, shrinkages, strict=False):
        left, right = ratio_test(before, shrunk, alpha)
        sure = np.abs(left) > 1e-9 * before[:, None] / before[None]
        yield before, shrunk, left, right, sure


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    alpha=st.floats(0.01, 0.99),
    penalty=st.floats(1e-3, 30),
    steps=st.integers(1, 6),
)
def test_theorem_4_3_between(seed, alpha, penalty, steps):
    d = np.exp(np.random.default_rng(seed).normal(0, 2.5, 6))
    for before, shrunk, left, right, sure in sides(d, [penalty] * steps, alpha):
        after = shrunk * ((1 - alpha) * before + alpha)
        for k, j in itertools.permutations(range(6), 2):
            if shrunk[k] > shrunk[j]:
                assert left[k, j] == pytest.approx(
                    after[k] / after[j] - before[k] / before[j], rel=1e-6, abs=1e-12
                )
            else:
                assert np.isnan(left[k, j])
        assert (np.sign(left) == np.sign(right))[sure].all()


def test_ratios_can_fall_between_alpha_0_and_1():
    signs = [np.sign(left[sure]) for *_, left, _, sure in sides(np.geomspace(0.01, 10, 8), [0.2] * 6, 0.35)]
    found = np.concatenate(signs)
    assert {-1.0, 1.0} == set(found)


def printed(before, shrunk, alpha):
    """Eq. 25 as printed, and without its stray 1, at every pair."""
    a_k, a_j, b_k, b_j = shrunk[:, None], shrunk[None], before[:, None], before[None]
    with np.errstate(all="ignore"):
        upper, lower = (b_k / b_j - a_k / a_j) * a_j, b_k * (a_k - a_j)
        return 1 / (upper / (lower + 1) + 1) - alpha, 1 / (upper / lower + 1) - alpha


@pytest.mark.parametrize("order", ["rising", "falling", "any"])
def test_theorem_c2_holds_corrected_and_not_as_printed(order):
    wrong = {"printed": 0, "without the 1": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        d, penalties, alpha = (
            np.exp(rng.normal(0, 3, 6)),
            np.exp(rng.normal(0, 3, 5)),
            rng.uniform(0.02, 0.98),
        )
        penalties = {"rising": np.sort(penalties), "falling": -np.sort(-penalties), "any": penalties}[order]
        for step, (before, shrunk, left, right, sure) in enumerate(sides(d, penalties, alpha)):
            assert (np.sign(left) == np.sign(right))[sure].all()
            if step:
                for name, side in zip(wrong, printed(before, shrunk, alpha), strict=True):
                    wrong[name] += int((np.sign(left) != np.sign(side))[sure].sum())
    assert wrong["printed"] > 0
    assert (wrong["without the 1"] > 0) == (order == "any")


def test_the_sum_of_supplement_c2_is_the_recursion():
    rng, alpha = np.random.default_rng(0), 0.35
    a = rng.uniform(0.1, 0.9, (6, 4))
    found = diagonals(a, alpha)
    for tau in range(1, 7):
        terms = [(1 - alpha) ** (tau - i) * a[i:tau].prod(0) for i in range(1, tau)]
        expected = alpha / (1 - alpha) * sum(terms) + (1 - alpha) ** (tau - 1) * a[:tau].prod(0)
        np.testing.assert_allclose(found[tau - 1], expected, rtol=1e-12)


# the constrained problem


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.35, 1.0])
@pytest.mark.parametrize("outputs", [None, 2])
def test_the_constraint_holds_with_equality_until_zero_will_do(alpha, outputs):
    problem = small(outputs=outputs)
    n, y = len(problem.gram), problem.targets
    energy = np.sum(y**2) / n
    found = problem.constrained(0.3 * energy, alpha, 12)
    befores = [y, *found.fits[:-1]]
    for tau, (fit, before, penalty) in enumerate(zip(found.fits, befores, found.penalties, strict=True)):
        loss = (alpha * np.sum((fit - y) ** 2) + (1 - alpha) * np.sum((fit - before) ** 2)) / n
        assert found.losses[tau] == pytest.approx(loss)
        if math.isinf(penalty):
            assert not fit.any()
            assert found.norms[tau] == 0
            assert loss <= 0.3 * energy
        else:
            assert loss == pytest.approx(0.3 * energy, rel=1e-10)
            mixed = alpha * y + (1 - alpha) * before
            c = np.linalg.solve(problem.gram / n + penalty * np.eye(n), mixed) / n  # Proposition C.1
            close(problem.gram @ c, fit)
            assert found.norms[tau] == pytest.approx(np.sum(c * (problem.gram @ c)))
    np.testing.assert_allclose(
        np.stack(
            [problem.spectrum.vectors @ np.diag(b) @ problem.spectrum.vectors.T @ y for b in found.diagonals]
        ),
        found.fits,
        atol=1e-12,
    )


def test_the_constrained_problem_by_scipy():
    gram, y = with_eigenvalues([0.3, 0.8, 1.5, 3.0]), targets(4)
    alpha, tolerance, before = 0.35, 0.25 * np.sum(y**2) / 4, y
    found = precomputed(gram, y).constrained(tolerance, alpha, 3)
    for tau in range(3):

        def slack(c, before=before):
            fit = gram @ c
            return (
                tolerance - (alpha * np.sum((fit - y) ** 2) + (1 - alpha) * np.sum((fit - before) ** 2)) / 4
            )

        best = minimize(
            lambda c: c @ gram @ c,
            np.linalg.solve(gram, alpha * y + (1 - alpha) * before),
            jac=lambda c: 2 * gram @ c,
            constraints={"type": "ineq", "fun": slack},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert best.fun == pytest.approx(found.norms[tau], rel=1e-6)
        np.testing.assert_allclose(gram @ best.x, found.fits[tau], atol=1e-4)
        before = found.fits[tau]


def test_the_cases_of_collapse():
    problem = small()
    energy = np.sum(problem.targets**2) / 5
    one = problem.constrained(1.01 * energy, 0.35, 4)
    assert (one.case, one.collapse) == (1, 1)
    assert not one.fits.any()
    two = problem.constrained(0.6 * energy, 0.35, 60)
    assert two.case == 2
    assert two.collapse is not None
    assert two.collapse > 1
    size = np.linalg.norm(two.fits, axis=1)
    assert (size[: two.collapse - 1] > 0).all()
    assert not size[two.collapse - 1 :].any()
    for tau in range(2, two.collapse + 1):  # Eq. 22 tells the step
        met = (0.35 * energy + 0.65 * size[tau - 2] ** 2 / 5) <= 0.6 * energy
        assert met == (tau == two.collapse)
    three = problem.constrained(0.3 * energy, 0.35, 300)
    assert (three.case, three.collapse) == (3, None)
    np.testing.assert_allclose(three.fits[-1], three.fits[-2], atol=1e-9)
    assert np.linalg.norm(three.fits[-1]) > 0.1


def test_without_ground_truth_every_chain_collapses_in_time():
    """Each step takes at least epsilon off the mean square: residual and fit are at an acute angle."""
    problem = small()
    energy = np.sum(problem.targets**2) / 5
    for share in (0.5, 0.2, 0.05):
        found = problem.constrained(share * energy, 0.0, math.ceil(1 / share) + 1)
        assert found.case == 2
        assert found.collapse is not None
        drops = -np.diff(np.sum(np.vstack([problem.targets, found.fits]) ** 2, 1) / 5)
        assert (drops[: found.collapse - 1] >= share * energy * (1 - 1e-9)).all()
        assert (np.diff(found.penalties[: found.collapse]) > 0).all()


def test_the_right_end_of_case_2_is_approached_and_not_reached():
    problem = precomputed([[1.0]], [1.0])
    found = problem.constrained(0.5, 0.5, 8)
    assert found.case == collapse_case(1.0, 0.5, 0.5) == 3
    sizes = [1.0, *found.fits[:, 0]]
    for before, size in itertools.pairwise(sizes[:5]):  # f^2 - (1 + before) f + before^2 / 2 = 0
        assert size == pytest.approx(
            (1 + before) / 2 - math.sqrt((1 + before) ** 2 / 4 - before**2 / 2), rel=1e-4
        )
        assert 0 < size < before
    if found.collapse:  # by rounding alone
        assert sizes[found.collapse - 1] ** 2 < 1e-15
    assert collapse_case(1.0, 0.5001, 0.5) == 2
    assert problem.constrained(0.5001, 0.5, 8).collapse == 4


def test_a_chain_taught_by_the_labels_alone_repeats_its_first_step():
    problem = small()
    found = problem.constrained(0.2, 1.0, 4)
    np.testing.assert_allclose(found.penalties, found.penalties[0])
    np.testing.assert_allclose(found.fits, np.tile(found.fits[0], (4, 1)))
    assert found.case in (1, 3)


def test_tolerances_that_no_function_reaches():
    gram, y = np.diag([1.0, 0.0]), np.array([1.0, 1.0])
    with pytest.raises(ConfigError, match="no function of this kernel reaches"):
        precomputed(gram, y).constrained(0.4, 0.35, 2)
    assert precomputed(gram, y).constrained(0.6, 0.35, 2).losses[0] == pytest.approx(0.6)
    steep = precomputed(with_eigenvalues([1e-12, 1.0]), targets(2))
    with pytest.raises(ConfigError, match="asks for a penalty"):
        steep.constrained(1e-4, 0.35, 2)


# what cannot be used


def test_the_least_negative_eigenvalue_is_named():
    with pytest.raises(DataError, match=r"its least eigenvalue is -1, its greatest 2"):
        precomputed(with_eigenvalues([-1.0, 1.0, 2.0]), targets(3))
    sigmoid = Kernel("sigmoid", {"gamma": 2.0, "coef0": -1.0})
    least = np.linalg.eigvalsh(sigmoid(points(20)))[0]
    with pytest.raises(DataError, match=f"least eigenvalue is {least:.4g},"):
        SelfDistillation(points(20), targets(20), sigmoid)


def test_negative_eigenvalues_of_rounding_are_clipped():
    eps, n = np.finfo(float).eps, 30
    spectrum = Spectrum.of(np.outer(np.arange(n), np.arange(n)).astype(float))
    assert spectrum.values[0] >= 0
    assert spectrum.floor == pytest.approx(ROUNDING * n * eps * spectrum.values[-1])
    edge = np.diag([1.0, 1.0, -0.9 * ROUNDING * 3 * eps])
    assert Spectrum.of(edge).values[0] == 0
    with pytest.raises(DataError, match="least eigenvalue"):
        Spectrum.of(np.diag([1.0, 1.0, -1.1 * ROUNDING * 3 * eps]))


def test_a_gram_matrix_in_single_precision_has_its_own_limits():
    single = SelfDistillation(points(50), targets(50)).gram.astype(np.float32)
    problem = precomputed(single, targets(50))
    assert problem.spectrum.eps == np.finfo(np.float32).eps
    with pytest.raises(ConfigError, match="too small for this kernel"):
        problem.fits(1e-3, 0.35, 2)
    with pytest.raises(DataError, match="least eigenvalue"):
        precomputed(
            single - np.float32(problem.spectrum.values[0] + 1e-2) * np.eye(50, dtype=np.float32), targets(50)
        )


GOOD = (points(4), targets(4))


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda: SelfDistillation(*GOOD, Kernel("rfb")), UnknownNameError, "did you mean 'rbf'"),
        (lambda: SelfDistillation(*GOOD, Kernel("rbf", {"degree": 2})), ConfigError, "no parameter 'degree'"),
        (
            lambda: SelfDistillation(*GOOD, Kernel("rbf", {"gamma": "wide"})),
            ConfigError,
            "cannot be computed",
        ),
        (lambda: SelfDistillation(*GOOD, Kernel("chi2")), ConfigError, "cannot be computed"),
        (lambda: SelfDistillation(points(4)[:, 0], targets(4)), DataError, r"shape \(4,\)"),
        (lambda: SelfDistillation(np.zeros((0, 2)), []), DataError, r"shape \(0, 2\)"),
        (lambda: SelfDistillation([["a"]], [1.0]), DataError, "no array of numbers"),
        (lambda: SelfDistillation([[math.nan]], [1.0]), DataError, "not finite"),
        (lambda: SelfDistillation(points(4), [1, 2, math.inf, 4]), DataError, "targets hold 1 values"),
        (lambda: SelfDistillation(points(4), targets(3)), DataError, "4 points have targets of shape"),
        (lambda: SelfDistillation(points(4), np.zeros((4, 1, 1))), DataError, "targets of shape"),
        (lambda: precomputed(np.ones((2, 3)), targets(2)), DataError, r"shape \(2, 3\)"),
        (lambda: precomputed([[1.0, 0.5], [0.2, 1.0]], targets(2)), DataError, "not symmetric"),
        (
            lambda: SelfDistillation(*GOOD, spectrum=small().spectrum),
            DataError,
            "that of 5 points, not of 4",
        ),
        (lambda: small().fits(-1, 0.5, 2), ConfigError, "penalty is -1"),
        (lambda: small().fits(math.nan, 0.5, 2), ConfigError, "penalty is nan"),
        (lambda: precomputed(np.zeros((2, 2)), [1, 2]).fits(0, 0.5, 2), ConfigError, "raise it above 0"),
        (lambda: small().fits(1, 1.2, 2), ConfigError, "alpha is 1.2"),
        (lambda: small().limit(1, math.nan), ConfigError, "alpha is nan"),
        (lambda: small().fits(1, 0.5, 0), ConfigError, "0 steps"),
        (lambda: small().fits(1, 0.5, math.inf), ConfigError, "inf steps"),
        (lambda: small().fits(1, 0.5, 2, "newton"), UnknownNameError, "direct, powers, spectral"),
        (lambda: small().predict(np.ones((1, 5)), 1, 0.5, [1.5]), ConfigError, "a step is 1.5"),
        (lambda: small().predict(np.ones((1, 5)), 1, 0.5, [0]), ConfigError, "a step is 0"),
        (
            lambda: small().predict(np.ones((1, 4)), 1, 0.5, [1]),
            DataError,
            "4 columns, the training set has 5",
        ),
        (lambda: small().constrained(0, 0.5, 2), ConfigError, "tolerance is 0"),
        (lambda: small().constrained(0.1, -0.5, 2), ConfigError, "alpha is -0.5"),
    ],
)
def test_mistakes_get_one_clear_error(act, error, words):
    with pytest.raises(error, match=words):
        act()
