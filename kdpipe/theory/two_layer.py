"""The two-layer network of the kernel regime, trained by full-batch gradient descent.

    f(x) = sum_k a_k / sqrt(m) sigma(w_k . x)                                        (Eq. 1; a fixed)
    sum_i (y_i - f(x_i))^2 + lambda sum_ik (phi_k(x_i) - sigma(w_k . x_i))^2          (Eq. 2)

The gradient of a hidden weight is a sum of training images, so the pre-activations Z = X W^T of all images
follow from the Gram matrix K = X X^T alone: a step costs n x n x m, whatever the size of an image, and is
gradient descent on the weights all the same (a test compares the two).

Reference: Rahbar et al. 2020, sections 2 and 3.

Deviations: the descent is that of half of Eq. 2, so that Eqs. 9 to 15 hold as printed, without factors of 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Activation:
    """An activation and its derivative.

    Attributes:
        value: sigma.
        slope: its derivative; of ReLU, 0 at 0.
        smooth: whether the derivative is Lipschitz continuous, as Assumption 3 asks.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    smooth: bool


ACTIVATIONS = {
    "relu": Activation(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype), smooth=False),
    "softplus": Activation(lambda z: np.logaddexp(0, z).astype(z.dtype), expit, smooth=True),
    "tanh": Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2, smooth=True),
    "erf": Activation(erf, lambda z: 2 / np.sqrt(np.pi).astype(z.dtype) * np.exp(-(z**2)), smooth=True),
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
        outputs: Array = self.features(activation, split) @ self.signs / np.sqrt(len(self.signs))
        return outputs


@dataclass(frozen=True)
class Trajectory:
    """A training.

    Attributes:
        iterations: at which the outputs were recorded (r).
        train, test: outputs f(x_i) then (r x n each).
        kept: the network at the iterations that were asked for, and at the last.
    """

    iterations: NDArray[np.int64]
    train: Array
    test: Array
    kept: dict[int, Network]

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
    """Train a network by full-batch gradient descent on Eq. 2.

    Args:
        network: at its start; it is not changed.
        gram: X X^T of the training images (n x n).
        gram_test: of the test images with the training images (n' x n).
        targets: y (n).
        activation: sigma.
        rate: learning rate eta.
        record: iterations at which outputs are recorded, ascending; the last one ends the training.
        features: privileged features phi_k(x_i) (n x m), where `weight` is not 0.
        weight: lambda; infinity leaves the second sum alone, with weight 1.
        keep: further iterations whose network is kept.

    Raises:
        FloatingPointError: the training diverged; the rate is too large.
    """
    pure = np.isinf(weight)
    label_weight, feature_weight = (0.0, 1.0) if pure else (1.0, weight)
    out = (network.signs / np.sqrt(len(network.signs))).astype(gram.dtype)
    hidden, drift = network.train.copy(), np.zeros_like(network.train)
    wanted, asked, last = set(record), {*keep, record[-1]}, record[-1]
    trains, tests, kept = [], [], {}
    for iteration in range(last + 1):
        value = activation.value(hidden)
        outputs = value @ out
        if iteration in wanted or iteration in asked:
            seen = network.test + gram_test @ drift
            if iteration in wanted:
                trains.append(outputs)
                tests.append(activation.value(seen) @ out)
            if iteration in asked:
                kept[iteration] = Network(network.signs, hidden.copy(), seen)
            if not np.isfinite(outputs).all():
                raise FloatingPointError(
                    f"gradient descent diverged by iteration {iteration}: lower the rate"
                )
        if iteration == last:
            break
        pull = np.outer(label_weight * (targets - outputs), out)
        if features is not None and feature_weight:
            pull += feature_weight * (features - value)
        pull *= activation.slope(hidden)
        pull *= rate
        drift += pull
        hidden += gram @ pull
    return Trajectory(np.array(sorted(wanted)), np.stack(trains), np.stack(tests), kept)


def log_spaced(last: int, points: int = 60) -> list[int]:
    """Iterations from 0 to `last`, denser at the start."""
    return sorted({0, last, *np.unique(np.geomspace(1, last, points).round().astype(int)).tolist()})
