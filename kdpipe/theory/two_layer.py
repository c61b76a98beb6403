"""The two-layer network of the kernel regime, trained by full-batch gradient descent.

    f(x) = sum_k a_k / sqrt(m) sigma(w_k . x)                                        (Eq. 1; a fixed)
    sum_i (y_i - f(x_i))^2 + lambda sum_ik (phi_k(x_i) - sigma(w_k . x_i))^2          (Eq. 2)

The gradient of a hidden weight is a sum of training images, so the pre-activations Z = X W^T of all images
follow from the Gram matrix K = X X^T alone: with P the pull on them (n x m),

    P_ik = sigma'(Z_ik) (a_k / sqrt(m) (y_i - f_i) + lambda (phi_ik - sigma(Z_ik))),
    Z(r) = Z(0) + eta K sum_{s < r} P(s).

A step costs n x n x m, whatever the size of an image, and is gradient descent on the weights all the same
(a test compares the two).

Reference: Rahbar et al. 2020 (arXiv 2003.13438), Eqs. 1, 2, 9, 10, 13 and 16.

Deviations: the descent is that of half of Eq. 2, so that Eqs. 9 to 15 hold as printed, without factors of 2:
a rate eta here is a rate eta / 2 on Eq. 2 itself. Section 2.3 sums a_k^2 / m from k = 0 to k; the sum over
all units is meant. For lambda = infinity the labels' term is left out and the features' term has weight 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.special import erf, expit

from kdpipe.core.errors import ConfigError

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Activation:
    """An activation and its derivative.

    Attributes:
        value: sigma.
        slope: its derivative; of ReLU, 0 at 0.
        smooth: whether the derivative is Lipschitz continuous, as Assumption 3 asks.
        pair: value and slope at once, where that saves work; the very numbers of the two.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    smooth: bool
    pair: Callable[[Array], tuple[Array, Array]] | None = None

    def both(self, z: Array) -> tuple[Array, Array]:
        """Value and slope at z."""
        return self.pair(z) if self.pair else (self.value(z), self.slope(z))


def _softplus(z: Array) -> Array:
    value: Array = np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
    return value


def _tanh_pair(z: Array) -> tuple[Array, Array]:
    value = np.tanh(z)
    return value, 1 - value * value


ACTIVATIONS = {
    "relu": Activation(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype), smooth=False),
    "softplus": Activation(_softplus, expit, smooth=True),
    "tanh": Activation(np.tanh, lambda z: _tanh_pair(z)[1], smooth=True, pair=_tanh_pair),
    "erf": Activation(erf, lambda z: 2 / math.sqrt(math.pi) * np.exp(-z * z), smooth=True),
}


@dataclass(frozen=True)
class Network:
    """A two-layer network, seen on some images.

    Attributes:
        signs: the fixed output weights a (m).
        train, test: pre-activations w_k . x_i of the training and test images (n x m each).
    """

    signs: Array
    train: Array
    test: Array

    @classmethod
    def random(
        cls, hidden: int, spread: float, train: Array, test: Array, rng: np.random.Generator
    ) -> Network:
        """Weights from N(0, spread^2 I), signs uniform on -1 and 1 (Eq. 16).

        Args:
            hidden: units m.
            spread: standard deviation k of a weight.
            train: training images, one per row (n x d).
            test: test images (n' x d).
            rng: draws weights and signs.
        """
        weights = rng.normal(0, spread, (hidden, train.shape[1])).astype(train.dtype)
        signs = rng.choice((-1.0, 1.0), hidden).astype(train.dtype)
        return cls(signs, train @ weights.T, test @ weights.T)

    def units(self, chosen: NDArray[np.intp]) -> Network:
        """The network that consists of some of its hidden units."""
        return Network(self.signs[chosen], self.train[:, chosen], self.test[:, chosen])

    def features(self, activation: Activation, split: str = "train") -> Array:
        """The hidden features f_k(x_i) (n x m)."""
        return activation.value(getattr(self, split))

    def outputs(self, activation: Activation, split: str = "train") -> Array:
        """f(x_i) (n)."""
        return self.features(activation, split) @ _output_weights(self)


@dataclass(frozen=True)
class Trajectory:
    """A training.

    Attributes:
        iterations: at which the outputs were recorded (r).
        train, test: outputs f(x_i) then (r x n each).
        kept: the network at the iterations that were asked for, and at the last.
        objective: half of Eq. 2 then, in double precision (r).
        moved: distance ||W - W(0)|| of all hidden weights from their start then (r; Frobenius norm).
    """

    iterations: NDArray[np.int64]
    train: Array
    test: Array
    kept: dict[int, Network]
    objective: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    moved: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def last(self) -> Network:
        """The trained network."""
        return self.kept[int(self.iterations[-1])]


def descend(
    network: Network,
    gram: Array,
    gram_test: Array,
    targets: Array,
    activation: Activation,
    rate: float,
    record: Sequence[int],
    features: Array | None = None,
    weight: float = 0.0,
    keep: Sequence[int] = (),
) -> Trajectory:
    """Train a network by full-batch gradient descent on half of Eq. 2.

    It computes in the precision of its arrays (float32 or float64), which must be one.

    Args:
        network: at its start; it is not changed.
        gram: X X^T of the training images (n x n).
        gram_test: of the test images with the training images (n' x n).
        targets: y (n).
        activation: sigma.
        rate: learning rate eta.
        record: iterations at which outputs are recorded, ascending; the last one ends the training.
        features: privileged features phi_k(x_i) (n x m), where `weight` is not 0.
        weight: lambda; infinity leaves the first sum out and gives the second the weight 1.
        keep: further iterations whose network is kept.

    Raises:
        ConfigError: the iterations are not ascending from 0 or later, some are after the end, or lambda is
            negative or comes without features of the hidden units' shape.
        FloatingPointError: the training diverged; the rate is too large.
    """
    _check(network, record, keep, features, weight)
    last, wanted, asked = record[-1], set(record), {*keep, record[-1]}
    label_weight, feature_weight = (0.0, 1.0) if math.isinf(weight) else (1.0, weight)
    taught = features is not None and feature_weight > 0
    out = _output_weights(network).astype(gram.dtype)
    hidden, drift = network.train, np.zeros_like(network.train)
    change = np.zeros_like(hidden)
    seen: list[tuple[Array, Array, float, float]] = []
    kept = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for iteration in range(last + 1):
            value, slope = activation.both(hidden)
            outputs = value @ out
            missing = features - value if taught and features is not None else None
            if iteration in wanted or iteration in asked:
                if not np.isfinite(outputs).all():
                    raise FloatingPointError(
                        f"gradient descent diverged by iteration {iteration}: lower the rate"
                    )
                test = network.test + gram_test @ drift
                if iteration in wanted:
                    objective = label_weight * _half_square(targets - outputs)
                    if missing is not None:
                        objective += feature_weight * _half_square(missing)
                    moved = math.sqrt(max(np.vdot(drift, change).item(), 0.0))
                    seen.append((outputs, activation.value(test) @ out, objective, moved))
                if iteration in asked:
                    kept[iteration] = Network(network.signs, hidden, test)
            if iteration == last:
                break
            pull = np.multiply.outer((rate * label_weight) * (targets - outputs), out)
            if missing is not None:
                missing *= rate * feature_weight
                pull += missing
            pull *= slope
            drift += pull
            np.matmul(gram, drift, out=change)
            hidden = network.train + change
    trains, tests, objectives, distances = zip(*seen, strict=True)
    return Trajectory(
        np.array(sorted(wanted)),
        np.stack(trains),
        np.stack(tests),
        kept,
        np.array(objectives),
        np.array(distances),
    )


def curvature(network: Network, gram: Array, activation: Activation, weight: float = 0.0) -> float:
    """The largest eigenvalue of the dynamics: of Hbar, blocks H_k (a_k a_l / m + lambda delta_kl) (Eq. 13).

    For lambda = 0 it is that of the tangent kernel H = sum_k a_k^2 / m H_k. A step of the descent is stable
    while rate x curvature < 2.

    Args:
        network: where it is measured.
        gram: X X^T of the training images (n x n).
        activation: sigma.
        weight: lambda; infinity stands for the features' term alone, with weight 1.

    Returns:
        The eigenvalue, to a relative accuracy of about 1e-6.
    """
    pure = math.isinf(weight)
    out = _output_weights(network).astype(np.float64)
    slope = activation.slope(network.train.astype(np.float64))
    gram = gram.astype(np.float64)
    size, floor = float(out @ out), 1.0 if pure else float(weight)
    lift = 0.0 if pure else (math.sqrt(size + floor) - math.sqrt(floor)) / size
    root = math.sqrt(floor)

    def mixed(block: Array) -> Array:  # (a a^T / m + lambda I)^(1/2) over the units: Hbar made symmetric
        lifted: Array = root * block + np.multiply.outer(lift * (block @ out), out)
        return lifted

    def product(flat: Array) -> Array:
        block = slope * mixed(flat.reshape(slope.shape))
        return mixed(slope * (gram @ block)).reshape(-1)

    count = slope.size
    if count < 3:  # too small for Lanczos
        dense = np.stack([product(row) for row in np.eye(count)])
        return float(np.linalg.eigvalsh(dense)[-1])
    if not slope.any():
        return 0.0
    # Signs as the weights', and a little noise, so that the start is not orthogonal to what is sought.
    noise = np.random.default_rng(0).normal(1, 0.1, slope.shape)
    start = mixed(slope * np.sign(out) * noise).reshape(-1)
    operator = LinearOperator((count, count), matvec=product, dtype=np.float64)
    return float(eigsh(operator, k=1, v0=start, tol=1e-6, return_eigenvectors=False)[0])


def log_spaced(last: int, points: int = 60) -> list[int]:
    """Iterations from 0 to `last`, denser at the start."""
    inner = np.geomspace(1, last, points).round().astype(int).tolist() if last else []
    return sorted({0, last, *inner})


def _output_weights(network: Network) -> Array:
    weights: Array = network.signs / math.sqrt(len(network.signs))
    return weights


def _half_square(values: Array) -> float:
    return 0.5 * float(np.sum(values * values, dtype=np.float64))


def _check(
    network: Network, record: Sequence[int], keep: Sequence[int], features: Array | None, weight: float
) -> None:
    wrong = [
        (not record or sorted(set(record)) != list(record) or record[0] < 0, "ascending from 0 or later"),
        (
            bool(keep) and bool(record) and not 0 <= min(keep) <= max(keep) <= record[-1],
            "within the training",
        ),
    ]
    for is_wrong, must in wrong:
        if is_wrong:
            raise ConfigError(
                f"the iterations to record or keep are not {must}",
                where="record, keep",
                fix=f"make them {must}",
            )
    if not weight >= 0:
        raise ConfigError(f"lambda is {weight}", where="weight", fix="use 0, a positive number or infinity")
    if weight > 0 and (features is None or features.shape != network.train.shape):
        shape = None if features is None else features.shape
        raise ConfigError(
            f"lambda is {weight}, but the privileged features have the shape {shape}",
            where="features",
            fix=f"give one column per hidden unit and one row per image: {network.train.shape}",
        )
