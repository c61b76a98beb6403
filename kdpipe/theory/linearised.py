"""The linearised dynamics of knowledge transfer: the two-layer network with its kernels frozen at the start.

With H_k = (sigma'(w_k.x_i) sigma'(w_k.x_j) x_i.x_j) taken at t = 0, b_k = a_k / sqrt(m) and a = sum_k b_k^2,
Eq. 10 becomes linear:

    df_k/dt = H_k [ b_k (y - f) + lambda (phi_k - f_k) ],     f = sum_k b_k f_k          (n, per unit k)

Its deviations eta = (f_k - f_inf^(k)) follow d eta/dt = -H-bar eta with H-bar = D (A x I), D = diag(H_k)
and A = lambda I + b b^T (Eq. 13). H-bar is not symmetric. With any L_k such that H_k = L_k^T L_k the
weights of the same linear system follow the symmetric matrix G = L (A x I) L^T, which has H-bar's
eigenvalues apart from zeros, and

    f_k(t) = f_k(0) + L_k^T w_k(t),    w(t) = G^-1 (1 - exp(-G t)) (L_k r_k(0)),
    r_k = b_k (y - f) + lambda (phi_k - f_k),

which needs neither an inverse of H-bar nor f_inf, and so holds for singular H_k (ReLU) and every lambda.

Reference: Rahbar et al. 2020, sections 2, 3 and 7. Du et al. 2019 (their reference 13) for lambda = 0.

Deviations: corrections of the paper stand where they are used (`System.modes`, `System.laplace`,
`selection_bound`). Time is learning rate times iterations of descent on half of Eq. 2, as in `two_layer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh_tridiagonal

from kdpipe.core.errors import ConfigError, DataError
from kdpipe.theory.two_layer import Activation, Network, descend, log_spaced

Array = NDArray[np.floating]
Complex = NDArray[np.complexfloating]
Way = Literal["auto", "dense", "krylov"]

DENSE = 1200  # unknowns up to which a full eigendecomposition is the quicker way
GAP = 1e-12  # relative distance below which two eigenvalues count as one


@dataclass(frozen=True)
class Assumptions:
    """Which of the paper's assumptions a system meets, with the numbers behind it.

    Attributes:
        eigenvalue_gap: least distance of two non-zero eigenvalues of all H_k, over the largest.
        pole_gap: least distance of two non-zero poles, over the largest.
        apart: least distance of a pole from lambda times an eigenvalue of an H_k, over the largest pole.
        null_directions: zero eigenvalues of H-bar; Assumption 2 allows none.
        smooth: whether sigma' is Lipschitz (Assumption 3).
        closeness: sqrt(m) max_k |phi_k - f_k(0)|, bounded in m under Assumption 4.
        teacher_gap: |y - sum_k a_k phi_k / sqrt(m)|, bounded in m under Assumption 4.
    """

    eigenvalue_gap: float
    pole_gap: float
    apart: float
    null_directions: int
    smooth: bool
    closeness: float
    teacher_gap: float

    @property
    def first(self) -> bool:
        """Assumption 1: the non-zero eigenvalues of the H_k are distinct."""
        return self.eigenvalue_gap > GAP

    @property
    def second(self) -> bool:
        """Assumption 2: n m distinct positive poles, none of them at a pole of the resolvents."""
        return not self.null_directions and min(self.pole_gap, self.apart) > GAP

    @property
    def third(self) -> bool:
        """Assumption 3: sigma and its derivative are Lipschitz."""
        return self.smooth


@dataclass(frozen=True)
class Modes:
    """Theorem 3's sum: `f(t) = f_inf + sum_j exp(-p_j t) alpha_j u^j`.

    Attributes:
        poles: p_j (d), ascending.
        vectors: u^j of norm 1, one per column (n x d).
        overlaps: alpha_j (d).
        final: f_inf (n).
    """

    poles: Array
    vectors: Array
    overlaps: Array
    final: Array

    def outputs(self, times: ArrayLike) -> Array:
        """The outputs at some times (r x n)."""
        decay = np.exp(-np.multiply.outer(np.asarray(times, dtype=np.float64), self.poles))
        found: Array = self.final + (decay * self.overlaps) @ self.vectors.T
        return found


@dataclass(frozen=True, eq=False)
class System:
    """The linear system that stands for a student in the kernel regime.

    Args:
        signs: output weights a_k (m).
        slopes: sigma'(w_k . x_i) at the start (n x m).
        gram: x_i . x_j (n x n).
        start: hidden features f_k(x_i) at the start (n x m).
        targets: y (n).
        privileged: phi_k(x_i) (n x m).
        weight: lambda, from 0 to infinity; infinity leaves the second sum of Eq. 2 alone, with weight 1.
        smooth: whether sigma' is Lipschitz continuous.
        memory: GiB that one dense computation may take.

    Raises:
        DataError: the arrays do not fit together or are not finite.
        ConfigError: lambda is negative.
    """

    signs: Array
    slopes: Array
    gram: Array
    start: Array
    targets: Array
    privileged: Array
    weight: float
    smooth: bool = True
    memory: float = 4.0

    def __post_init__(self) -> None:
        n, m = len(self.gram), len(self.signs)
        shapes = {
            "signs": (m,), "slopes": (n, m), "gram": (n, n), "start": (n, m),
            "targets": (n,), "privileged": (n, m),
        }  # fmt: skip
        for name, shape in shapes.items():
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != shape:
                raise DataError(
                    f"'{name}' has shape {value.shape}, not {shape}",
                    where=f"linear system of {n} images and {m} units",
                    fix="give every array for the same images and the same hidden units",
                )
            if not np.isfinite(value).all():
                raise DataError(f"'{name}' holds values that are not finite", fix="check what it came from")
            object.__setattr__(self, name, value)
        if not self.weight >= 0:
            raise ConfigError(f"lambda is {self.weight}", where="weight", fix="give 0 or more")
        if not (m and n and self.signs.any()):
            raise DataError("no unit has an output weight, or there are no images", where="signs, gram")
        if not np.allclose(self.gram, self.gram.T, rtol=1e-10, atol=0):
            raise DataError("the Gram matrix is not symmetric", where="gram", fix="give X X^T")

    @classmethod
    def of(
        cls,
        network: Network,
        gram: Array,
        activation: Activation,
        targets: Array,
        privileged: Array | None = None,
        weight: float = 0.0,
    ) -> System:
        """The system of a network at its start.

        Args:
            network: the student before training.
            gram: X X^T of the training images (n x n).
            activation: sigma.
            targets: y (n).
            privileged: phi_k(x_i) (n x m); the student's own features when left out, which is a student
                that starts at its teacher's units.
            weight: lambda.
        """
        start = network.features(activation)
        phi = start if privileged is None else privileged
        slopes = activation.slope(network.train)
        return cls(network.signs, slopes, gram, start, targets, phi, weight, activation.smooth)

    # Closed forms

    @property
    def shares(self) -> Array:
        """b_k = a_k / sqrt(m) (m)."""
        found: Array = self.signs / np.sqrt(len(self.signs))
        return found

    @property
    def energy(self) -> float:
        """`a = sum_k a_k^2 / m` (Sec. 2.3, where the sum's limits are misprinted)."""
        return float(self.shares @ self.shares)

    @property
    def taught(self) -> Array:
        """What the privileged features say by themselves, `sum_k a_k phi_k / sqrt(m)` (n)."""
        return self.privileged @ self.shares

    @property
    def final(self) -> Array:
        """Theorem 1: `f_inf = (a y + lambda sum_k a_k phi_k / sqrt(m)) / (a + lambda)` (n), Eq. 5."""
        return self.taught + self.energy / (self.energy + self.weight) * (self.targets - self.taught)

    @property
    def final_hidden(self) -> Array:
        """Theorem 3: `f_inf^(k) = phi_k + a_k / (lambda sqrt(m)) (y - f_inf)` (n x m).

        Written as `phi_k + b_k (y - sum_l b_l phi_l) / (a + lambda)`, which is the same and has a limit at
        lambda = 0.
        """
        missing = (self.targets - self.taught) / (self.energy + self.weight)
        return self.privileged + np.multiply.outer(missing, self.shares)

    @property
    def final_error(self) -> float:
        """`e = lambda / (a + lambda) |sum_k a_k phi_k / sqrt(m) - y|` (Sec. 2.7).

        Deviations: Sec. 2.7 prints a_k phi_k / m; Theorem 1 gives a_k phi_k / sqrt(m).
        """
        return float(np.linalg.norm(self.final - self.targets))

    @property
    def limit(self) -> Array:
        """Where f of the linear system really ends, also for singular H_k (n).

        With P_k the projection onto the range of H_k and delta_k(0) = f_k(0) - f_inf^(k):

            f(inf) = f_inf + (I + sum_k b_k^2 P_k / lambda)^-1 sum_k b_k (I - P_k) delta_k(0)

        It is Theorem 1's f_inf where all H_k are regular. For lambda = 0 it is y, less what of y - f(0) lies
        in the null space of sum_k b_k^2 H_k. A student that starts at its teacher's units ends at

            y - f(inf) = lambda (lambda I + sum_k b_k^2 P_k)^-1 (y - sum_k b_k phi_k)

        With ReLU and independent images P_k keeps the images that unit k is active on: the share of active
        units, image by image, takes the place of a in Theorems 1 and 2.
        """
        return self._limits[0]

    @property
    def limit_hidden(self) -> Array:
        """Where the hidden features of the linear system really end (n x m)."""
        return self._limits[1]

    @cached_property
    def _limits(self) -> tuple[Array, Array]:
        b = self.shares
        if self.weight == 0:
            values, vectors = _eigh(self.kernel)
            kept = values > 0
            pulled = vectors[:, kept].T @ (self.targets - self.start @ b)
            moved = (vectors[:, kept] / values[kept]) @ pulled
            hidden = self.start + self._spread(np.multiply.outer(moved, b))
            return self.start @ b + vectors[:, kept] @ pulled, hidden
        gap = self.start - self.final_hidden
        seen, summed = np.empty_like(gap), np.zeros_like(self.gram)
        for units, onto in self._ranges():
            seen[:, units] = np.einsum("kij,jk->ik", onto, gap[:, units])
            summed += np.einsum("k,kij->ij", b[units] ** 2, onto)
        rest = self.final_hidden + gap - seen
        if np.isinf(self.weight):
            return rest @ b, rest
        left = np.linalg.solve(np.eye(len(gap)) + summed / self.weight, (gap - seen) @ b)
        for units, onto in self._ranges():
            rest[:, units] -= b[units] / self.weight * (onto @ left).T
        return self.final + left, rest

    @property
    def null_directions(self) -> int:
        """How many of the n m directions no H_k moves; 0 for a smooth activation and independent images."""
        ranks = sum(float(np.trace(onto, axis1=1, axis2=2).sum()) for _, onto in self._ranges())
        return self.start.size - round(ranks)

    def _ranges(self) -> Iterator[tuple[slice, Array]]:
        """The projections onto the ranges of the H_k (units x n x n), a few units at a time."""
        n, m = self.start.shape
        few = max(2**20 // n**2, 1)
        for first in range(0, m, few):
            units = slice(first, first + few)
            slopes = self.slopes[:, units].T
            values, vectors = np.linalg.eigh(slopes[:, :, None] * self.gram * slopes[:, None, :])
            kept = values > np.clip(values[:, -1:], 0, None) * n * np.finfo(float).eps
            yield units, np.einsum("kir,kjr->kij", vectors * kept[:, None, :], vectors)

    # Matrices

    def unit(self, k: int) -> Array:
        """H_k (n x n)."""
        slopes = self.slopes[:, k]
        found: Array = slopes[:, None] * self.gram * slopes
        return found

    @property
    def kernel(self) -> Array:
        """`H = sum_k a_k^2 / m H_k` (n x n), which drives f at lambda = 0."""
        found: Array = self.gram * ((self.slopes * self.shares**2) @ self.slopes.T)
        return found

    @property
    def fastest(self) -> float:
        """An upper bound of the poles: (a + lambda) max sigma'^2 times the Gram matrix's largest eigenvalue.

        The largest stable learning rate is at least 2 over it.
        """
        pull = 1.0 if np.isinf(self.weight) else self.energy + self.weight
        return float(pull * np.square(self.slopes).max() * np.linalg.eigvalsh(self.gram)[-1])

    def dense(self) -> Array:
        """H-bar of Eq. 13: block (k, l) is `H_k (a_k a_l / m + lambda delta_kl)` (nm x nm, unit by unit).

        Raises:
            ConfigError: it would not fit into the memory allowed.
        """
        n, m = self.start.shape
        self._finite("H-bar")
        self._fits(n * m, 1, "H-bar")
        mixed = np.multiply.outer(self.shares, self.shares) + self.weight * np.eye(m)
        blocks = np.stack([self.unit(k) for k in range(m)])
        found: Array = np.einsum("kl,kij->kilj", mixed, blocks).reshape(n * m, n * m)
        return found

    @cached_property
    def poles(self) -> Array:
        """The eigenvalues p_j of H-bar, ascending, null directions as zeros.

        There are n m of them; at lambda = 0, where H-bar acts on f through H alone, the n eigenvalues of H
        (Sec. 2.7 calls them singular values, which is the same for a positive semi-definite matrix); at
        infinity those of all H_k.
        """
        if self.weight == 0:
            return _eigh(self.kernel)[0]
        n, m = self.start.shape
        if np.isinf(self.weight):
            every = np.concatenate([np.linalg.eigvalsh(self.unit(k)) for k in range(m)])
        else:
            values = self._eigen[0]
            every = np.concatenate([np.zeros(n * m - len(values)), values])
        every = np.sort(every)
        every[every < every[-1] * n * m * np.finfo(float).eps] = 0.0
        return every

    # The way through time

    def outputs(self, times: ArrayLike, rate: float = 0.0, way: Way = "auto") -> Array:
        """Outputs of the linear system, Eqs. 13 and 14.

        Args:
            times: t (r), learning rate times iterations.
            rate: learning rate of the gradient descent that is followed; 0 is gradient flow. A rate replaces
                exp(-p t) by (1 - rate p)^(t / rate).
            way: `dense` decomposes G; `krylov` projects it onto a Krylov space, grown until a bound of the
                error falls below 1e-9 of |y| (larger systems); `auto` chooses by size. At lambda 0 and
                infinity n x n matrices are enough, and the way does not matter.

        Returns:
            f(x_i) (r x n).

        Raises:
            ConfigError: the rate is too large, a time is negative, or the dense way would not fit.
        """
        if np.isinf(self.weight):
            return self.hidden(times, rate, way) @ self.shares
        amounts, moves = self._moves(times, rate, way)
        return self.start @ self.shares + amounts @ (moves @ self.shares)

    def hidden(self, times: ArrayLike, rate: float = 0.0, way: Way = "auto") -> Array:
        """Hidden features of the linear system (r x n x m); arguments and errors as of `outputs`."""
        if not np.isinf(self.weight):
            amounts, moves = self._moves(times, rate, way)
            return self.start + np.tensordot(amounts, moves, 1)
        at = _times(times)
        found = np.repeat(self.start[None], len(at), 0)
        for k in range(len(self.signs)):
            values, vectors = _eigh(self.unit(k))
            pulled = vectors.T @ (self.privileged[:, k] - self.start[:, k])
            found[:, :, k] += (_gone(values, at, rate) * pulled) @ vectors.T
        return found

    def _moves(self, times: ArrayLike, rate: float, way: Way) -> tuple[Array, Array]:
        """Directions of motion of the hidden features (d x n x m), and how far along each (r x d)."""
        at = _times(times)
        if self.weight == 0:
            values, vectors = _eigh(self.kernel)
            pulled = vectors.T @ (self.targets - self.start @ self.shares)
            moves = np.stack([self._spread(np.multiply.outer(v, self.shares)) for v in vectors.T])
            return np.where(values > 0, _reach(values, at, rate) * pulled, 0.0), moves
        if way == "krylov" or (way == "auto" and self._root.shape[0] * len(self.signs) > DENSE):
            amounts, basis = self._krylov(at, rate)
        else:
            values, vectors = self._eigen
            amounts = _reach(values, at, rate) * (vectors.T @ self._pull.ravel())
            basis = vectors.T
        shape = (-1, self._root.shape[0], len(self.signs))
        return amounts, self.slopes * (self._root.T @ basis.reshape(shape))

    def contributions(self) -> tuple[Array, Array]:
        """Theorem 3 without its assumptions: `f(t) = limit + sum_j exp(-p_j t) c_j`.

        Where these hold, c_j is alpha_j u^j of `modes`; null directions and poles that coincide are no
        hindrance here, since eigenvectors of a symmetric matrix span the space in any case.

        Returns:
            The poles that are not zero, ascending (d), and their c_j, one per column (n x d).

        Raises:
            ConfigError: lambda is infinite, or the dense way would not fit.
        """
        self._finite("the sum over poles")
        if self.weight == 0:
            values, vectors = _eigh(self.kernel)
            parts = -vectors * (vectors.T @ (self.targets - self.start @ self.shares))
        else:
            values, vectors = self._eigen
            moves = (self.slopes * (self._root.T @ vectors.T.reshape(-1, *self._pull.shape))) @ self.shares
            parts = -moves.T * (vectors.T @ self._pull.ravel())
        kept = values > values[-1] * len(values) * np.finfo(float).eps
        return values[kept], parts[:, kept] / (values[kept] if self.weight else 1.0)

    @cached_property
    def _root(self) -> Array:
        """R (rank x n) with R^T R = X X^T; L_k is R diag(sigma'(w_k . x_i))."""
        values, vectors = np.linalg.eigh(self.gram)
        if values[0] < -1e-8 * max(values[-1], 0.0) or values[-1] <= 0:
            raise DataError("the Gram matrix has negative eigenvalues", where="gram", fix="give X X^T")
        kept = values > values[-1] * len(values) * np.finfo(float).eps
        found: Array = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
        return found

    @property
    def _pull(self) -> Array:
        """L r(0): minus half the gradient of Eq. 2 by the weights, at the start (rank x m)."""
        miss = self.targets - self.start @ self.shares
        pull = np.multiply.outer(miss, self.shares) + self.weight * (self.privileged - self.start)
        return self._root @ (self.slopes * pull)

    def _spread(self, pull: Array) -> Array:
        """D applied: H_k times column k (..., n x m)."""
        found: Array = self.slopes * (self.gram @ (self.slopes * pull))
        return found

    def _curve(self, weights: Array) -> Array:
        """G applied to weights (..., rank x m)."""
        felt = self.slopes * (self._root.T @ weights)
        felt = self.weight * felt + (felt @ self.shares)[..., None] * self.shares
        found: Array = self._root @ (self.slopes * felt)
        return found

    @cached_property
    def _eigen(self) -> tuple[Array, Array]:
        """Eigenvalues and eigenvectors of G."""
        shape = (self._root.shape[0], len(self.signs))
        size = shape[0] * shape[1]
        self._fits(size, 6, "the decomposition of H-bar")
        matrix = self._curve(np.eye(size).reshape(size, *shape)).reshape(size, size)
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        return np.clip(values, 0, None), vectors

    def _krylov(self, times: Array, rate: float) -> tuple[Array, Array]:
        """w(t) in the Krylov space of G and its start: coefficients (r x d) and orthonormal basis (d x size).

        Lanczos with full reorthogonalisation. After d steps with remainder h the error of f(t) is at most

            sqrt(t) h |start| |e_d^T reach(T, t) e_1|

        The residual's coefficient keeps its sign, since T has positive entries beside its diagonal; what the
        residual adds to f grows by a factor of at most sqrt(t), since G >= (L b)(L b)^T.
        """
        start = self._pull.ravel()
        size, length = len(start), float(np.linalg.norm(start))
        if not length:
            return np.zeros((len(times), 1)), np.zeros((1, size))
        scale = max(float(np.linalg.norm(self.targets)), float(np.linalg.norm(self.start @ self.shares)))
        tolerance = 1e-9 * scale
        basis = [start / length]
        diagonal: list[float] = []
        beside: list[float] = []
        shape = self._pull.shape
        while True:
            ahead = self._curve(basis[-1].reshape(shape)).ravel()
            diagonal.append(float(basis[-1] @ ahead))
            built = np.stack(basis)
            for _ in range(2):
                ahead = ahead - built.T @ (built @ ahead)
            beside.append(float(np.linalg.norm(ahead)))
            done = len(basis) == size or beside[-1] <= 1e-14 * max(diagonal)
            if done or len(basis) % 10 == 0:
                values, vectors = eigh_tridiagonal(diagonal, beside[:-1])
                values = np.clip(values, 0, None)
                amounts = _reach(values, times, rate) * vectors[0]
                parts = np.sqrt(times)[:, None] * beside[-1] * length * amounts * vectors[-1]
                rounding = 1e-15 * len(basis) * np.abs(parts).sum(1)
                if done or (np.abs(parts.sum(1)) <= np.maximum(tolerance, rounding)).all():
                    return length * amounts @ vectors.T, built
            self._fits(size, len(basis) / size, "the Krylov space of H-bar")
            basis.append(ahead / beside[-1])

    # Laplace domain and Theorem 3

    def transfer(self, s: complex) -> Complex:
        """`Gamma(s) = sum_k a_k^2 / m (s I + lambda H_k)^-1 H_k` of Assumption 2, T(s) of Eq. 15 (n x n)."""
        self._finite("Gamma(s)")
        eye = np.eye(len(self.gram))
        found: Complex = np.zeros(self.gram.shape, dtype=np.complex128)
        for k, share in enumerate(self.shares):
            each = self.unit(k)
            found += share**2 * np.linalg.solve(s * eye + self.weight * each, each)
        return found

    def laplace(self, s: complex) -> Complex:
        """Laplace transform of f(t) - f_inf: `(I + T(s))^-1 sum_k b_k (s I + lambda H_k)^-1 delta_k(0)` (n).

        Deviations: Eq. 15 prints the sum without b_k = a_k / sqrt(m), which its own first line implies.
        """
        eye = np.eye(len(self.gram))
        gap = self.start - self.final_hidden
        driven = np.zeros(len(eye), dtype=np.complex128)
        for k, share in enumerate(self.shares):
            driven = driven + share * np.linalg.solve(s * eye + self.weight * self.unit(k), gap[:, k])
        found: Complex = np.linalg.solve(eye + self.transfer(s), driven)
        return found

    def modes(self) -> Modes:
        """Theorem 3's poles p_j, vectors u^j (= v^j, since Gamma is symmetric) and overlaps.

            alpha_j = sum_k a_k / sqrt(m) <u^j, (p_j I - lambda H_k)^-1 (f_k(0) - f_inf^(k))> / N_j
            N_j = sum_k a_k^2 / m <u^j, (p_j I - lambda H_k)^-2 H_k u^j>

        Deviations: four corrections of the printed theorem. f(t) has f_inf (Eq. 3; the theorem leaves it
        out). The weight is a_k / sqrt(m) without H_k, as Lemma 5's left eigenvectors demand (printed:
        a_k^2 / m and H_k). The start's deviation is f_k(0) - f_inf^(k) (printed with the other sign). N_j
        normalises <left, right> to 1, which the spectral form of exp(-H-bar t) needs; the paper leaves the
        scale of u^j and v^j open. Assumption 2 must keep p_j from lambda times the eigenvalues of H_k
        (printed: from these eigenvalues).

        Raises:
            ConfigError: lambda is 0 or infinite, or the system breaks Assumption 2.
        """
        self._finite("Theorem 3", positive=True)
        met = self.assumptions()
        if not met.second:
            raise ConfigError(
                f"Theorem 3 needs Assumption 2: {met.null_directions} null directions, relative gaps "
                f"{met.pole_gap:.1e} between poles and {met.apart:.1e} to the kernels",
                where="modes of the linear system",
                fix="use a smooth activation and distinct units, or contributions(), which needs neither",
            )
        n, m = self.start.shape
        poles = self.poles
        vectors = self.slopes * (self._root.T @ self._eigen[1].T.reshape(-1, n, m)) @ self.shares
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
        gap = self.start - self.final_hidden
        length, overlaps = np.zeros(len(poles)), np.zeros(len(poles))
        for k, share in enumerate(self.shares):
            values, rotation = np.linalg.eigh(self.unit(k))
            away = 1 / (poles - self.weight * values[:, None])
            turned = rotation.T @ vectors
            length += share**2 * ((away * turned) ** 2 * values[:, None]).sum(0)
            overlaps += share * (turned * away * (rotation.T @ gap[:, k])[:, None]).sum(0)
        return Modes(poles, vectors, overlaps / length, self.final)

    def eigenvectors(self, mode: int) -> tuple[float, Array, Array]:
        """Lemma 5: a pole with its right and left eigenvectors of H-bar.

            v_k = a_k / sqrt(m) (p I - lambda H_k)^-1 H_k v,    u_k = a_k / sqrt(m) (p I - lambda H_k)^-1 v

        with v the eigenvector of Gamma(-p) to the eigenvalue -1.

        Args:
            mode: which pole, in ascending order.

        Returns:
            p, (v_k) and (u_k), unit by unit (nm), with <u, v> = 1.

        Raises:
            ConfigError: as of `modes`.
        """
        modes = self.modes()
        pole, v = float(modes.poles[mode]), modes.vectors[:, mode]
        eye = np.eye(len(v))
        left = np.stack(
            [
                share * np.linalg.solve(pole * eye - self.weight * self.unit(k), v)
                for k, share in enumerate(self.shares)
            ]
        )
        right = np.stack([self.unit(k) @ each for k, each in enumerate(left)])
        return pole, right.ravel(), left.ravel() / float(np.vdot(left, right))

    def assumptions(self) -> Assumptions:
        """Which assumptions hold, for a lambda between 0 and infinity."""
        self._finite("the assumptions", positive=True)
        kernels = np.concatenate([np.linalg.eigvalsh(self.unit(k)) for k in range(len(self.signs))])
        noise = len(self.gram) * np.finfo(float).eps
        kept = np.sort(kernels[kernels > kernels.max() * noise])
        poles = self.poles[self.poles > 0]
        kept_poles = self.weight * kept
        near = np.searchsorted(kept_poles, poles).clip(1, len(kept) - 1)
        apart = np.minimum(np.abs(poles - kept_poles[near - 1]), np.abs(poles - kept_poles[near]))
        differences = np.linalg.norm(self.privileged - self.start, axis=0)
        return Assumptions(
            eigenvalue_gap=_gap(kept),
            pole_gap=_gap(poles),
            apart=float(apart.min() / poles[-1]),
            null_directions=int((self.poles == 0).sum()),
            smooth=self.smooth,
            closeness=float(np.sqrt(len(self.signs)) * differences.max()),
            teacher_gap=float(np.linalg.norm(self.targets - self.taught)),
        )

    # Guards

    def _finite(self, what: str, positive: bool = False) -> None:
        if np.isinf(self.weight) or (positive and self.weight == 0):
            raise ConfigError(
                f"{what} is not defined at lambda = {self.weight:g}",
                where="weight",
                fix="choose a lambda above 0 and below infinity, or take outputs(), which needs neither",
            )

    def _fits(self, size: int, matrices: float, what: str) -> None:
        gib = matrices * size**2 * 8 / 2**30
        if gib > self.memory:
            raise ConfigError(
                f"{what} would take {gib:.1f} GiB ({size} unknowns); {self.memory:g} GiB are allowed",
                where=f"linear system of {len(self.gram)} images and {len(self.signs)} units",
                fix="take fewer images or units, the way 'krylov', or raise `memory`",
            )


@dataclass(frozen=True)
class Training:
    """A training by gradient descent, with the linear system of its start beside it.

    Attributes:
        system: the linear system.
        rate: learning rate.
        times: recorded times t (r), rate times iterations.
        outputs: f(x_i) then (r x n).
        network: the trained network.
    """

    system: System
    rate: float
    times: Array
    outputs: Array
    network: Network

    @property
    def linear(self) -> Array:
        """Outputs of the linear system at the same times and learning rate (r x n)."""
        return self.system.outputs(self.times, self.rate)

    @property
    def tenth(self) -> float:
        """First recorded time from which f stays within a tenth of its way to where it ends."""
        away = np.linalg.norm(self.outputs - self.outputs[-1], axis=1)
        far = np.flatnonzero(away > 0.1 * away[0])
        return float(self.times[far[-1] + 1]) if len(far) else 0.0


def train(
    system: System, network: Network, activation: Activation, time: float, step: float, points: int
) -> Training:
    """Train a system's network by `two_layer.descend`, on the system's targets, features and lambda.

    Args:
        system: made of the network by `System.of`.
        network: at its start.
        activation: sigma.
        time: learning rate times iterations.
        step: learning rate times `System.fastest`, at most 1; the rate is lowered a little to end at `time`.
        points: about how many times to record, evenly on a logarithmic scale.

    Raises:
        ConfigError: the training diverged.
    """
    iterations = max(int(np.ceil(time * system.fastest / step)), 1)
    rate = time / iterations
    weight, features = system.weight, system.privileged
    try:
        found = descend(
            network, system.gram, np.zeros((len(network.test), len(system.gram))), system.targets, activation,
            rate, log_spaced(iterations, points), features, weight,
        )  # fmt: skip
    except FloatingPointError as error:
        raise ConfigError(
            f"the training diverged at a learning rate of {rate:.2g}", where="step", fix="lower the step"
        ) from error
    return Training(system, rate, found.iterations * rate, np.asarray(found.train, np.float64), found.last)


def two_classes(
    pixels: NDArray[np.float64], labels: NDArray[np.int64], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A few images of the first two classes, each of 2-norm 1, with targets +1 and -1 (Sec. 4).

    Args:
        pixels: one image per row (N x d).
        labels: class numbers (N).
        count: images to draw, half of each class.
        rng: draws them.

    Returns:
        The images (count x d) and the targets (count).

    Raises:
        DataError: there are not enough images of two classes, or an image is all zeros.
        ConfigError: `count` is not an even number.
    """
    if count < 2 or count % 2:
        raise ConfigError(f"{count} images cannot be split evenly", where="images", fix="give an even number")
    classes = np.unique(labels)[:2]
    rows = [np.flatnonzero(labels == label) for label in classes]
    if len(classes) < 2 or min(map(len, rows)) < count // 2:
        raise DataError(
            f"{count // 2} images of each of two classes are needed; there are {[len(r) for r in rows]}",
            where="training images",
            fix="choose another data set, or ask for fewer images",
        )
    chosen = np.concatenate([rng.choice(each, count // 2, replace=False) for each in rows])
    norms = np.linalg.norm(pixels[chosen], axis=1, keepdims=True)
    if not norms.all():
        raise DataError("an image is all zeros and cannot be scaled to norm 1", where="training images")
    return pixels[chosen] / norms, np.repeat([1.0, -1.0], count // 2)


def selection_bound(signs: Array, features: Array, units: int, weight: float, printed: bool = False) -> float:
    """Right-hand side of Theorem 2 without its unknown constant C.

        (1 - m / m-bar) (lambda / (1 + lambda))^2 [ sum_il a_l^2 / m-bar sigma^2(w_l . x_i) ] log(m-bar)

    Args:
        signs: the teacher's output weights a_l (m-bar), with sum_l a_l^2 / m-bar = 1.
        features: the teacher's hidden features (n x m-bar).
        units: m, of the student.
        weight: lambda.
        printed: with the factor q^2 = m / m-bar inside the brackets, as Eq. 6 prints it.

    Returns:
        What bounds |f_inf - y|^2 / C, in units of y^2.

    Raises:
        ConfigError: the student is not smaller than its teacher, or the output weights are not normalised.

    Deviations: without q^2, as the proof (Sec. 7.4) gives; the proof's norms are meant squared, and its
    `1 - m-bar / m-bar` is 1 - m / m-bar. The logarithm is that of the tail bound, not of the mean.
    """
    wide = _wide(signs, units)
    if not np.isclose(np.square(signs).sum() / wide, 1):
        raise ConfigError(
            "Theorem 2 needs sum a_l^2 / m-bar = 1", where="signs", fix="take signs of 1 and -1"
        )
    energy = float((signs**2 * np.square(features).sum(0)).sum() / wide)
    brackets = energy * (units / wide if printed else 1.0)
    return (1 - units / wide) * _trust(weight) ** 2 * brackets * float(np.log(wide))


def expected_deviation(signs: Array, features: Array, units: int, fixed: bool = True) -> float:
    """How far a random choice of teacher units is from its mean: `E |sum_k a_k phi_k / sqrt(m) - mean|^2`.

        fixed:      (1 - m / m-bar) sum_l |c_l - c|^2 / (m-bar - 1)
        otherwise:  (1 - m / m-bar) sum_l |c_l|^2 / m-bar

    with c_l = a_l phi_l and c their mean.

    Args:
        signs: the teacher's output weights a_l (m-bar).
        features: the teacher's hidden features (n x m-bar).
        units: m, of the student.
        fixed: whether exactly m units are drawn, without replacement, as Theorem 2 says; else every unit is
            kept with probability m / m-bar, as its proof has it.

    Returns:
        The expectation, exactly, in units of y^2.

    Raises:
        ConfigError: the student is not smaller than its teacher.

    Reference: Rahbar et al. 2020, section 7.4, whose Bernoulli variables give the second form; the first is
    the variance of simple random sampling. The mean is m / sqrt(m m-bar) times the teacher's own output.
    """
    wide = _wide(signs, units)
    terms = signs * features
    if fixed:
        spread = np.square(terms - terms.mean(1, keepdims=True)).sum() / (wide - 1)
    else:
        spread = np.square(terms).sum() / wide
    return (1 - units / wide) * float(spread)


def stages(alpha: float, beta: float) -> tuple[float, float]:
    """Factors of two-stage and of direct distillation: `(1 - alpha)(1 - beta)` and `1 - alpha beta`.

    Args:
        alpha: m / m_1, units of the student over those of the intermediate network.
        beta: m_1 / m-bar, units of the intermediate network over those of the teacher.

    Reference: Rahbar et al. 2020, section 7.4.1; `chained` says what two choices come to.
    """
    return (1 - alpha) * (1 - beta), 1 - alpha * beta


def chained(alpha: float, beta: float, weight: float) -> float:
    """What two stages give where both draw from units of equal spread: `(1 - alpha) + alpha (1 - beta) F`.

    F = (lambda / (1 + lambda))^2, in the units of `stages`. The second choice adds its own deviation
    (1 - alpha); of the first stage's error F (1 - beta) a share alpha is passed on. It lies between
    1 - alpha (lambda = 0) and 1 - alpha beta (lambda = infinity), where two choices are as good as one.

    Args:
        alpha: m / m_1.
        beta: m_1 / m-bar.
        weight: lambda.

    Deviations: section 7.4.1 multiplies the two stages' factors; errors of two independent choices add.
    """
    return (1 - alpha) + alpha * (1 - beta) * _trust(weight) ** 2


def _trust(weight: float) -> float:
    """The weight of the privileged features in f_inf, lambda / (1 + lambda)."""
    return 1.0 if np.isinf(weight) else weight / (1 + weight)


def _wide(signs: Array, units: int) -> int:
    if not 0 < units <= len(signs):
        raise ConfigError(
            f"a student of {units} units cannot be chosen from a teacher of {len(signs)}",
            where="units",
            fix=f"choose 1 to {len(signs)} units",
        )
    return len(signs)


def _eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of a positive semi-definite matrix, rounding taken off its zeros."""
    values, vectors = np.linalg.eigh(matrix)
    values[values <= max(values[-1], 0.0) * len(values) * np.finfo(float).eps] = 0.0
    return values, vectors


def _times(times: ArrayLike) -> Array:
    at = np.atleast_1d(np.asarray(times, dtype=np.float64))
    if at.ndim != 1 or not (np.isfinite(at).all() and (at >= 0).all()):
        raise ConfigError("times must be a list of finite numbers", where="times", fix="give 0 or more")
    return at


def _gone(poles: Array, times: Array, rate: float) -> Array:
    """1 - exp(-p t), or its counterpart 1 - (1 - rate p)^(t / rate) (r x d)."""
    if rate < 0 or rate * poles.max() > 1:
        raise ConfigError(
            f"a rate of {rate:g} does not descend steadily: the largest pole is {poles.max():.3g}",
            where="rate",
            fix="choose a rate from 0 to one over the largest pole",
        )
    with np.errstate(divide="ignore"):
        slope = np.log1p(-rate * poles) / rate if rate else -poles
    log = np.multiply.outer(times, slope, out=np.zeros((len(times), len(poles))), where=times[:, None] > 0)
    found: Array = -np.expm1(log)
    return found


def _reach(poles: Array, times: Array, rate: float) -> Array:
    """(1 - exp(-p t)) / p, which is t at p = 0 (r x d)."""
    poles = np.clip(poles, 0, None)
    safe = np.where(poles > 0, poles, 1.0)
    found: Array = np.where(poles > 0, _gone(poles, times, rate) / safe, times[:, None])
    return found


def _gap(values: Array) -> float:
    """Least distance of two of the ascending values, over the largest."""
    return float(np.diff(values).min() / values[-1]) if len(values) > 1 else 1.0
