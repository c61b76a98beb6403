"""Self-distillation of kernel ridge regression: every step and its limit from one eigendecomposition.

    b(tau) = argmin_b alpha/2 |phi b - y|^2 + (1 - alpha)/2 |phi b - y(tau-1)|^2 + lambda/2 |b|^2  (Eqs. 1, 3)
    y(tau) = K (K + lambda I)^-1 (alpha y + (1 - alpha) y(tau-1)),   y(0) = y                      (Eqs. 4, 5)
           = V B(tau) V^T y,   K = V D V^T                                                         (Eq. 9)
    B(tau) = A ((1 - alpha) B(tau-1) + alpha I),   A = D (D + lambda I)^-1,   B(0) = I             (Eq. 12)
    B(inf) = alpha D (alpha D + lambda I)^-1 = L                                         (Theorem A.4)
    B(tau) = L + ((1 - alpha) A)^(tau-1) (A - L)                                     (Eq. 10, summed)

Step 1 is ordinary training; distillation starts at step 2. The last line holds for every alpha in [0, 1] and
shows the linear rate: each step multiplies the distance to the limit by (1 - alpha) A.

Conditioning: rounding moves an eigenvalue by up to n eps d_max, hence a fit by about
n eps d_max / (d_min + lambda) of its size, where eps is the machine epsilon of the Gram matrix as given,
d_max and d_min its greatest and least eigenvalue. A penalty for which that exceeds `ACCURACY` is refused. A
least eigenvalue down to -`ROUNDING` n eps d_max counts as rounding and becomes 0; a lower one is refused.

Reference: Borup and Andersen 2021: Sections 3 and 4, Supplements A and C.

Deviations: corrections of the print first.

- Footnote 8: the objectives differ by alpha (1 - alpha) / 2 |y1 - y2|^2; the printed constant lacks the 1/2.
- Section 4.2: the eigenvectors are the columns of V, not its rows.
- Theorem 4.1, Eq. 7: the second fit is ridge regression on y(tau-1) of the chain with this alpha. Read as a
  step of the chain with alpha = 0, the equation fails from step 3 on.
- Lemma 4.2: the decrease is strict for lambda > 0, alpha < 1 and d_k > 0. With alpha = 1 every step is the
  first; where d_k = 0, B is 0 from step 1 on.
- Theorem 4.3: at step 1 the bracket of Eq. 14 is 0. Its inverse is read as plus infinity, which is right.
- Theorem 4.4, Eq. 15: the fit that is mixed with the first one has penalty lambda and targets y(inf). With
  penalty lambda / alpha and targets y, as described there, the equation fails: that fit is the limit itself.
- Section C.1, case 2: at its right end, |y|^2 / N = epsilon / alpha, zero is approached and never reached.
- Proposition C.1: the left side is f(tau)(x). As G = K / N, lambda_tau is the penalty of Eq. 1 over N.
- Supplement C.2: the sum for B(tau) agrees with its recursion. Theorem C.2 has a stray 1 in the denominator
  of Eq. 25. Without it, the inverse still has the wrong sign where the bracket is negative, which takes
  penalties that fall and then rise; there too it is read as plus infinity.
- Eq. 10: alpha / (1 - alpha) is multiplied into the sum, so that alpha = 1 is no special case.
- Predictions: D^-1 B(tau) is computed as (D + lambda I)^-1 ((1 - alpha) B(tau-1) + alpha I), so that K may be
  singular.
- lambda = 0 is allowed where K is conditioned well enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq

from kdpipe.core.errors import ConfigError, DataError, UnknownNameError

Array = NDArray[np.float64]
Way = Literal["direct", "powers", "spectral"]

ROUNDING = 10.0  # asymmetry and negative eigenvalues up to this many n eps d_max are rounding
ACCURACY = 1e-4  # share of a fit that rounding may change


@dataclass(frozen=True)
class Kernel:
    """A kernel: `K_ij = k(x_i, x_j)`.

    Attributes:
        name: one of scikit-learn's pairwise kernels, `precomputed`, or a function of two points.
        parameters: of the kernel, e.g. `gamma`; scikit-learn's defaults hold for those left out.
    """

    name: str | Callable[[Array, Array], float] = "rbf"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The kernel between two sets of points.

        Args:
            x: n x d.
            y: m x d; x itself when left out.

        Returns:
            n x m.

        Raises:
            UnknownNameError: scikit-learn has no kernel of that name.
            ConfigError: the kernel has no such parameter, or refuses the parameters or the points.
        """
        from sklearn.metrics.pairwise import KERNEL_PARAMS, pairwise_kernels

        if isinstance(self.name, str):
            parameters = {**KERNEL_PARAMS, "precomputed": ()}
            if self.name not in parameters:
                raise UnknownNameError.of("kernel", self.name, parameters)
            unknown = sorted(set(self.parameters) - set(parameters[self.name]))
            if unknown:
                known = ", ".join(sorted(parameters[self.name])) or "none"
                raise ConfigError(
                    f"the kernel '{self.name}' has no parameter '{unknown[0]}'",
                    where="kernel parameters",
                    fix=f"its parameters: {known}",
                )
        try:
            found: Array = pairwise_kernels(x, y, metric=self.name, **self.parameters)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"the kernel {self.name!r} cannot be computed: {error}",
                where="kernel and its parameters",
                fix="change the parameters, or take another kernel for these points",
            ) from error
        return found


@dataclass(frozen=True)
class Spectrum:
    """The eigendecomposition of a Gram matrix: `K = V D V^T`.

    Attributes:
        values: diagonal of D, ascending, none below 0 (n).
        vectors: V, one eigenvector per column (n x n).
        eps: machine epsilon of the matrix as it was given.
    """

    values: Array
    vectors: Array
    eps: float = float(np.finfo(np.float64).eps)

    @classmethod
    def of(cls, gram: NDArray[Any]) -> Spectrum:
        """The decomposition of a Gram matrix.

        Args:
            gram: K (n x n), in any precision.

        Raises:
            DataError: the matrix is not square, finite, symmetric or positive semi-definite.
        """
        eps = _machine_epsilon(gram)
        gram = _symmetric(gram, eps)
        values, vectors = np.linalg.eigh(gram)
        if values[0] < -_rounding(len(values), eps, np.abs(values).max()):
            raise DataError(
                f"the kernel is not positive semi-definite on these points: its least eigenvalue is "
                f"{values[0]:.4g}, its greatest {values[-1]:.4g}",
                where="Gram matrix",
                fix="take another kernel or other parameters; rbf, laplacian, linear and polynomial (with "
                "gamma > 0 and coef0 >= 0) always are",
            )
        return cls(np.maximum(values, 0.0), vectors, eps)

    @property
    def floor(self) -> float:
        """What rounding may make of an eigenvalue 0: `10 n eps d_max`."""
        return _rounding(len(self.values), self.eps, float(self.values[-1]))

    def least_penalty(self) -> float:
        """The least penalty that conditioning allows: `n eps d_max / ACCURACY - d_min`, or 0."""
        noise = len(self.values) * self.eps * float(self.values[-1])
        return max(noise / ACCURACY - float(self.values[0]), 0.0)

    def check(self, penalty: float) -> float:
        """The penalty, where it can be used.

        Raises:
            ConfigError: it is negative, not finite, or too small for this kernel.
        """
        if not (math.isfinite(penalty) and penalty >= 0):
            raise ConfigError(
                f"the penalty is {penalty}", where="penalty", fix="give a finite number above 0"
            )
        least = self.least_penalty()
        if penalty < least or self.values[0] + penalty == 0:
            raise ConfigError(
                f"the penalty {penalty:.3g} is too small for this kernel: its eigenvalues reach from "
                f"{self.values[0]:.3g} to {self.values[-1]:.3g}, and rounding would decide the fit",
                where="penalty",
                fix=f"raise it to {least:.3g} or more" if least else "raise it above 0",
            )
        return float(penalty)


def shrinkage(values: Array, penalty: float) -> Array:
    """The diagonal of A: `d / (d + lambda)` (Eq. 11).

    Args:
        values: eigenvalues d >= 0 (n).
        penalty: lambda >= 0; infinity gives 0. Not 0 where an eigenvalue is.
    """
    shrunk: Array = values / (values + penalty)
    return shrunk


def diagonal(values: Array, penalty: float, alpha: float, step: float) -> Array:
    """The diagonal of B at one step: `L + ((1 - alpha) A)^(tau-1) (A - L)`, L that of the limit.

    Args:
        values: eigenvalues d >= 0 (n).
        penalty: lambda >= 0.
        alpha: weight of the ground truth, in [0, 1].
        step: tau; 0 gives ones, infinity the limit.

    Returns:
        n values in [0, 1].
    """
    if step == 0 or penalty == 0:  # without a penalty every step interpolates
        return np.ones_like(values)
    limit: Array = alpha * values / (alpha * values + penalty)
    if math.isinf(step):
        return limit
    shrunk = shrinkage(values, penalty)
    first_gap = (1 - alpha) * shrunk * penalty / (alpha * values + penalty)  # A - L, without cancellation
    found: Array = limit + ((1 - alpha) * shrunk) ** (step - 1) * first_gap
    return found


def diagonals(shrinkages: Array, alpha: float) -> Array:
    """The diagonals of B step after step: `B(tau) = A(tau) ((1 - alpha) B(tau-1) + alpha)` (Eq. 12, C.2).

    Args:
        shrinkages: diagonal of A of each step (steps x n); equal rows for one penalty.
        alpha: weight of the ground truth, in [0, 1].

    Returns:
        Diagonal of B of each step, from step 1 (steps x n).
    """
    found, before = np.empty_like(shrinkages), np.ones(shrinkages.shape[1])
    for step, shrunk in enumerate(shrinkages):
        found[step] = before = shrunk * ((1 - alpha) * before + alpha)
    return found


def ratios(diagonal: Array) -> Array:
    """Consecutive entries of B by ascending eigenvalue: `R_k = B_(k+1) / B_k` (Section 4.4).

    Args:
        diagonal: of B (... x n).

    Returns:
        ... x (n - 1); infinite or not a number where B_k is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = diagonal[..., 1:] / diagonal[..., :-1]
    return found


def ratio_test(before: Array, shrunk: Array, alpha: float) -> tuple[Array, Array]:
    """Both sides of Theorem 4.3 (and C.2), whose signs agree: does a ratio of B grow in the next step?

        left  = B_k / B_j (tau) - B_k / B_j (tau-1)
        right = 1 / q - alpha,   q = (B_k / B_j - A_k / A_j) A_j / (B_k (A_k - A_j)) + 1,   B at tau-1

    Args:
        before: diagonal of B(tau-1) (n).
        shrunk: diagonal of A, in the constrained problem that of step tau (n).
        alpha: weight of the ground truth, in [0, 1].

    Returns:
        Left and right, at [k, j] for the eigenvalues d_k > d_j > 0; not a number at other pairs (n x n each).
    """
    after = shrunk * ((1 - alpha) * before + alpha)
    a_k, a_j, b_k, b_j = shrunk[:, None], shrunk[None], before[:, None], before[None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        left = after[:, None] / after[None] - b_k / b_j
        bracket = (b_k / b_j - a_k / a_j) * a_j / (b_k * (a_k - a_j)) + 1
        right = np.where(bracket > 0, 1 / bracket, np.inf) - alpha
    known = (a_k > a_j) & (a_j > 0) & (b_j > 0)
    return np.where(known, left, np.nan), np.where(known, right, np.nan)


def collapse_case(mean_square: float, tolerance: float, alpha: float) -> Literal[1, 2, 3]:
    """Which case of Section C.1 the constrained problem is.

    1: `|y|^2 / N <= epsilon`, zero from step 1. 2: `|y|^2 / N < epsilon / alpha`, zero from a later step on.
    3: otherwise, never zero (and at equality tending to it, until rounding makes it zero).

    Args:
        mean_square: |y|^2 / N, summed over outputs.
        tolerance: epsilon > 0, in the same unit.
        alpha: weight of the ground truth, in [0, 1].
    """
    if mean_square <= tolerance:
        return 1
    return 2 if alpha * mean_square < tolerance else 3


@dataclass(frozen=True)
class Constrained:
    """A chain of the constrained problem (Eqs. 20 to 23); first axis: steps from 1.

    Attributes:
        penalties: lambda_tau of Eq. 23, that of G = K / N; infinite where the solution is zero (steps).
        fits: y(tau) on the training points (steps x n, or steps x n x C).
        losses: left side of Eq. 21, epsilon unless the solution is zero (steps).
        norms: the functional of Eq. 20, that is the squared norm in the kernel's space (steps).
        shrinkages, diagonals: of A(tau) and B(tau) (steps x n each).
        case: of Section C.1.
        collapse: the first step whose solution is zero; None if there is none among these.
    """

    penalties: Array
    fits: Array
    losses: Array
    norms: Array
    shrinkages: Array
    diagonals: Array
    case: Literal[1, 2, 3]
    collapse: int | None


class SelfDistillation:
    """Kernel ridge regression on one training set, distilled into itself.

    Args:
        inputs: points (n x d), or their Gram matrix (n x n) where the kernel is `precomputed`.
        targets: y (n, or n x C for C outputs).
        kernel: the kernel.
        spectrum: the eigendecomposition of the same Gram matrix, where it is at hand.

    Attributes:
        gram: K (n x n).
        targets: y, as given.
        spectrum: the one eigendecomposition that serves every step, alpha and penalty.

    Raises:
        UserError: points, targets, kernel or its parameters cannot be used.

    Reference: Borup and Andersen 2021, Sections 3 and 4, Supplements A and C.

    Deviations: those of this module.
    """

    def __init__(
        self,
        inputs: ArrayLike,
        targets: ArrayLike,
        kernel: Kernel | None = None,
        spectrum: Spectrum | None = None,
    ) -> None:
        self.kernel = kernel or Kernel()
        self._given = self.kernel.name == "precomputed"
        points = _matrix(inputs, "inputs") if not self._given else np.asarray(inputs)
        gram = points if self._given else self.kernel(points)
        eps = _machine_epsilon(gram)
        self.inputs, self.gram = points, _symmetric(gram, eps)
        self.targets = _finite(targets, "targets")
        n = len(self.gram)
        if self.targets.ndim not in (1, 2) or len(self.targets) != n:
            raise DataError(
                f"{n} points have targets of shape {self.targets.shape}",
                where="targets",
                fix=f"give {n} targets, or {n} rows of them",
            )
        self.spectrum = spectrum or Spectrum.of(gram)
        if len(self.spectrum.values) != n:
            raise DataError(
                f"the eigendecomposition is that of {len(self.spectrum.values)} points, not of {n}",
                where="spectrum",
                fix="leave it out, or decompose this Gram matrix",
            )
        self._rotated: Array = self.spectrum.vectors.T @ self.targets

    def fits(self, penalty: float, alpha: float, steps: int, way: Way = "spectral") -> Array:
        """The fits of the training points, step after step: `y(1), ..., y(steps)`.

        `direct` solves Eqs. 3 to 5 one after the other, `powers` sums the matrix powers of Theorem 4.1,
        `spectral` scales the eigenvectors by Eqs. 9 and 12. They agree up to rounding.

        Args:
            penalty: lambda.
            alpha: weight of the ground truth, in [0, 1].
            steps: how many, 1 or more.
            way: how they are computed.

        Returns:
            steps x n (x C).

        Raises:
            ConfigError: a setting is out of range, or the penalty too small for this kernel.
        """
        penalty, alpha, steps = self.spectrum.check(penalty), _share(alpha), _count(steps)
        ways = {"direct": self._direct, "powers": self._powers, "spectral": self._spectral}
        if way not in ways:
            raise UnknownNameError.of("way", way, ways)
        return ways[way](penalty, alpha, steps)

    def limit(self, penalty: float, alpha: float) -> Array:
        """The fit after infinitely many steps: `alpha K (alpha K + lambda I)^-1 y` (Theorem A.4).

        Args:
            penalty: lambda.
            alpha: weight of the ground truth, in [0, 1]; 0 gives zero.

        Returns:
            n (x C).
        """
        penalty, alpha = self.spectrum.check(penalty), _share(alpha)
        return self._turned(diagonal(self.spectrum.values, penalty, alpha, math.inf))

    def coefficients(self, penalty: float, alpha: float, steps: Sequence[float]) -> Array:
        """What the kernel functions weigh at some steps: `f(x) = sum_i k(x, x_i) c_i`.

            c(tau) = V (D + lambda I)^-1 ((1 - alpha) B(tau-1) + alpha I) V^T y

        Args:
            penalty: lambda.
            alpha: weight of the ground truth, in [0, 1].
            steps: whole numbers from 1, or infinity for the limit.

        Returns:
            steps x n (x C).
        """
        weights = self._weights(penalty, alpha, steps)
        return np.stack([self._turned(weight) for weight in weights])

    def predict(self, new: ArrayLike, penalty: float, alpha: float, steps: Sequence[float]) -> Array:
        """Predictions at new points, at some steps: `f(x) = k(x, X) c(tau)` (Eq. 4).

        Args:
            new: points (m x d), or their kernel with the training points (m x n) where the kernel is
                `precomputed`.
            penalty: lambda.
            alpha: weight of the ground truth, in [0, 1].
            steps: whole numbers from 1, or infinity for the limit.

        Returns:
            steps x m (x C).

        Raises:
            UserError: a setting is out of range, or the points do not go with the training points.
        """
        return self.through(self.basis(new), penalty, alpha, steps)

    def basis(self, new: ArrayLike) -> Array:
        """The kernel between new points and training points, in eigenvectors: `k(x, X) V` (m x n).

        Args:
            new: as `predict` takes them.
        """
        points = _matrix(new, "new points")
        if points.shape[1] != self.inputs.shape[1]:
            raise DataError(
                f"new points have {points.shape[1]} columns, the training set has {self.inputs.shape[1]}",
                where="new points",
                fix="give one column per feature, or per training point where the kernel is precomputed",
            )
        cross = points if self._given else self.kernel(points, self.inputs)
        found: Array = cross @ self.spectrum.vectors
        return found

    def through(self, basis: Array, penalty: float, alpha: float, steps: Sequence[float]) -> Array:
        """Predictions from a basis that is at hand; see `predict` (steps x m, or steps x m x C)."""
        weights = self._weights(penalty, alpha, steps)
        return np.stack([basis @ _scaled(weight, self._rotated) for weight in weights])

    def objective(
        self, coefficients: Array, first: Array, second: Array, penalty: float, alpha: float
    ) -> float:
        """Eq. 1 of a function: `alpha/2 |Kc - y1|^2 + (1 - alpha)/2 |Kc - y2|^2 + lambda/2 c^T K c`.

        Args:
            coefficients: c of the function (n or n x C).
            first: the targets y1 (of the same shape).
            second: the targets y2.
            penalty: lambda.
            alpha: weight of y1, in [0, 1].

        Returns:
            Its value, summed over outputs.
        """
        fit = self.gram @ coefficients
        near = alpha * np.sum((fit - first) ** 2) + (1 - alpha) * np.sum((fit - second) ** 2)
        return float(near + penalty * np.sum(coefficients * fit)) / 2

    def constrained(self, tolerance: float, alpha: float, steps: int) -> Constrained:
        """The constrained problem: the least norm whose loss is within epsilon (Eqs. 20 to 23).

            min |f|^2   s.t.   alpha/N |f - y|^2 + (1 - alpha)/N |f - y(tau-1)|^2 <= epsilon

        The constraint holds with equality unless zero satisfies it (Section C.1). Of `t = alpha y +
        (1 - alpha) y(tau-1)`, in the eigenvectors of G = K / N with eigenvalues g, lambda_tau is the root of
        `sum_i (lambda / (g_i + lambda))^2 t_i^2 / N = epsilon - alpha (1 - alpha) |y - y(tau-1)|^2 / N`.

        Args:
            tolerance: epsilon > 0, in squared units of the targets, summed over outputs.
            alpha: weight of the ground truth, in [0, 1].
            steps: how many, 1 or more.

        Raises:
            ConfigError: a setting is out of range, or no function (within rounding) has so small a loss.
        """
        alpha, steps = _share(alpha), _count(steps)
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise ConfigError(
                f"the loss tolerance is {tolerance}", where="tolerance", fix="give a finite number above 0"
            )
        n, truth = len(self.gram), self._rotated
        values, before = self.spectrum.values / n, truth
        rows: list[tuple[float, Array, float, float, Array]] = []
        for _ in range(steps):
            mixed = alpha * truth + (1 - alpha) * before
            room = tolerance - alpha * (1 - alpha) * float(np.sum((truth - before) ** 2)) / n
            energy = np.sum(mixed.reshape(n, -1) ** 2, 1) / n
            penalty = self._root(values, energy, room)
            shrunk = shrinkage(values, penalty)
            fit = _scaled(shrunk, mixed)
            away, moved = (float(np.sum((fit - other) ** 2)) / n for other in (truth, before))
            norm = float(np.sum(values / (values + penalty) ** 2 * energy))
            rows.append((penalty, shrunk, alpha * away + (1 - alpha) * moved, norm, fit))
            before = fit
        penalties, losses, norms = (np.array([row[i] for row in rows]) for i in (0, 2, 3))
        shrinkages = np.stack([row[1] for row in rows])
        fits = np.stack([self.spectrum.vectors @ row[4] for row in rows])
        gone = np.flatnonzero(np.isinf(penalties))
        case = collapse_case(float(np.sum(self.targets**2)) / n, tolerance, alpha)
        collapse = int(gone[0]) + 1 if len(gone) else None
        return Constrained(
            penalties, fits, losses, norms, shrinkages, diagonals(shrinkages, alpha), case, collapse
        )

    def _root(self, values: Array, energy: Array, room: float) -> float:
        """The penalty at which `sum (lambda / (g + lambda))^2 energy = room`; infinite where zero will do."""
        total, least = float(energy.sum()), float(energy[values == 0].sum())
        if total <= room:
            return math.inf
        if least >= room:
            raise ConfigError(
                f"no function of this kernel reaches the loss tolerance: {least - room:.3g} too much is left",
                where="tolerance",
                fix="raise the tolerance, or take a kernel of higher rank",
            )

        def excess(logarithm: float) -> float:
            penalty = math.exp(logarithm)
            return math.log(np.sum((penalty / (values + penalty)) ** 2 * energy) / room)

        share = math.sqrt(room / total)
        high = math.log(2 * values[-1] * share / max(1 - share, self.spectrum.eps))
        while excess(high) < 0:  # only where rounding makes the share 1
            high += 5.0
        low = high - math.log(4)
        while excess(low) > 0:
            low -= 5.0
        root = math.exp(brentq(excess, low, high, xtol=1e-14, rtol=4 * np.finfo(float).eps))
        try:
            self.spectrum.check(root * len(values))
        except ConfigError as error:
            raise ConfigError(
                f"the loss tolerance asks for a penalty of {root * len(values):.3g}: {error.what}",
                where="tolerance",
                fix="raise the tolerance",
            ) from error
        return root

    def _direct(self, penalty: float, alpha: float, steps: int) -> Array:
        factor = cho_factor(self.gram + penalty * np.eye(len(self.gram)))
        fits, before = [], self.targets
        for _ in range(steps):
            before = self.gram @ cho_solve(factor, alpha * self.targets + (1 - alpha) * before)
            fits.append(before)
        return np.stack(fits)

    def _powers(self, penalty: float, alpha: float, steps: int) -> Array:
        shrinking = np.linalg.solve(self.gram + penalty * np.eye(len(self.gram)), self.gram)
        fits, total, power = [], np.zeros_like(shrinking), shrinking
        for step in range(1, steps + 1):
            fits.append((total + (1 - alpha) ** (step - 1) * power) @ self.targets)
            total = total + alpha * (1 - alpha) ** (step - 1) * power
            power = power @ shrinking
        return np.stack(fits)

    def _spectral(self, penalty: float, alpha: float, steps: int) -> Array:
        shrunk = self._shrunk(penalty)
        rows = diagonals(np.broadcast_to(shrunk, (steps, len(shrunk))), alpha)
        return np.stack([self._turned(row) for row in rows])

    def _shrunk(self, penalty: float) -> Array:
        return shrinkage(self.spectrum.values, penalty)

    def _turned(self, scale: Array) -> Array:
        """`V diag(scale) V^T y`."""
        found: Array = self.spectrum.vectors @ _scaled(scale, self._rotated)
        return found

    def _weights(self, penalty: float, alpha: float, steps: Sequence[float]) -> list[Array]:
        """Diagonals of `D^-1 B(tau)`, without the division."""
        penalty, alpha, values = self.spectrum.check(penalty), _share(alpha), self.spectrum.values
        befores = [diagonal(values, penalty, alpha, step - 1) for step in _steps(steps)]
        return [((1 - alpha) * before + alpha) / (values + penalty) for before in befores]


def _scaled(scale: Array, rotated: Array) -> Array:
    return (scale * rotated.T).T


def _rounding(n: int, eps: float, greatest: float) -> float:
    return ROUNDING * n * eps * greatest


def _machine_epsilon(gram: NDArray[Any]) -> float:
    """That of the matrix's numbers, and no finer than double precision, in which everything is computed."""
    double = float(np.finfo(np.float64).eps)
    gram = np.asarray(gram)
    return max(float(np.finfo(gram.dtype).eps), double) if gram.dtype.kind == "f" else double


def _finite(values: ArrayLike, name: str) -> Array:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"the {name} are no array of numbers: {error}", where=name) from error
    if not np.isfinite(found).all():
        raise DataError(
            f"the {name} hold {int((~np.isfinite(found)).sum())} values that are not finite",
            where=name,
            fix="remove them",
        )
    return found


def _matrix(values: ArrayLike, name: str) -> Array:
    found = _finite(values, name)
    if found.ndim != 2 or 0 in found.shape:
        raise DataError(
            f"the {name} have shape {found.shape}",
            where=name,
            fix="give one row per point, one column or more",
        )
    return found


def _symmetric(gram: NDArray[Any], eps: float) -> Array:
    found = _matrix(gram, "Gram matrix")
    if found.shape[0] != found.shape[1]:
        raise DataError(
            f"the Gram matrix has shape {found.shape}",
            where="Gram matrix",
            fix="give one row and column per point",
        )
    gap = float(np.abs(found - found.T).max())
    if gap > _rounding(len(found), eps, float(np.abs(found).max())):
        raise DataError(
            f"the Gram matrix is not symmetric: entries differ by up to {gap:.3g}",
            where="Gram matrix",
            fix="take a kernel with k(x, y) = k(y, x)",
        )
    mean: Array = (found + found.T) / 2
    return mean


def _share(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is {alpha}", where="alpha", fix="give a number from 0 to 1")
    return float(alpha)


def _steps(steps: Sequence[float]) -> list[float]:
    """Steps as they were given, each whole and 1 or more, or infinite."""
    for step in steps:
        if not (step >= 1 and (math.isinf(step) or step == int(step))):
            raise ConfigError(
                f"a step is {step}", where="steps", fix="give whole numbers from 1, or infinity"
            )
    return list(steps)


def _count(steps: float) -> int:
    if not (1 <= steps < math.inf and steps == int(steps)):
        raise ConfigError(f"{steps} steps are asked for", where="steps", fix="give a whole number from 1")
    return int(steps)
