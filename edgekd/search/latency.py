"""Predict figures of shapes that were not measured from those that were: a price list of layers, and its corrections.

A figure y (latency or file size) of a shape with the sums x (edgekd/search/features.py) is predicted as

    y = (Σ price_k · x_k) · exp(g(x)),   price_k ≥ 0

The prices minimise the sum of squared relative errors (non-negative least squares). g is a Gaussian process over the
logarithms of the sums, fitted to the logarithms of what the prices leave (Rasmussen and Williams 2006, chapter 2): it
draws a shape to the errors of the measured shapes that resemble it. The quality is told by leaving out one shape at a
time. All of this is edgekd's own choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.search.features import Counts

__all__ = ["MIN_MEASURED", "Model", "errors_left_out", "fit"]

MIN_MEASURED = 8
"""The smallest number of measured shapes from which others are predicted."""

LENGTH = 0.7
"""Distance, in standard deviations of the logarithms of the sums, over which errors resemble one another."""

NOISE = 0.03
"""Share of the variance of the errors that is noise of the measurement."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A fitted model of one figure."""

    prices: dict[str, float]
    """Price per unit of each sum; sums without a price are left out."""
    names: tuple[str, ...]
    known: Array
    """The logarithms of the sums of the measured shapes, (n, k), each with mean 0 and standard deviation 1."""
    middle: Array
    spread: Array
    weights: Array
    """The Gaussian process: K⁻¹ r, (n,)."""

    def predict(self, counts: Sequence[Counts]) -> Array:
        """The figures of shapes with these sums, (m,)."""
        priced = np.array([sum(price * one.get(name, 0.0) for name, price in self.prices.items()) for one in counts])
        logs = (_logs(counts, self.names) - self.middle) / self.spread
        corrected: Array = priced * np.exp(_alike(logs, self.known) @ self.weights)
        return corrected


def fit(counts: Sequence[Counts], figures: Sequence[float]) -> Model:
    """Fit the model to the figures (all above 0) of shapes with these sums."""
    from scipy.optimize import nnls  # takes a fifth of a second to import

    names = tuple(sorted({name for one in counts for name in one} - {"macs"}))  # macs is the sum of others
    sums, y = _table(counts, names), np.asarray(figures, np.float64)
    scale = np.maximum(sums.max(axis=0), 1e-12)
    priced, _ = nnls(sums / scale / y[:, None], np.ones(len(y)))
    left = np.log(y / np.maximum((sums / scale) @ priced, 1e-12))
    logs = _logs(counts, names)
    middle, spread = logs.mean(axis=0), logs.std(axis=0)
    spread[spread == 0] = np.inf  # a sum that is the same for all tells nothing
    known = (logs - middle) / spread
    weights = np.linalg.solve(_alike(known, known) + NOISE * np.eye(len(y)), left)
    prices = {name: float(price) for name, price in zip(names, priced / scale, strict=True) if price > 0}
    return Model(prices, names, known, middle, spread, weights)


def errors_left_out(counts: Sequence[Counts], figures: Sequence[float]) -> Array:
    """The relative error for each shape of a model that was fitted to all others: predicted / measured − 1, (n,)."""
    errors = []
    for place in range(len(figures)):
        others = [number for number in range(len(figures)) if number != place]
        model = fit([counts[number] for number in others], [figures[number] for number in others])
        errors.append(model.predict([counts[place]])[0] / figures[place] - 1)
    return np.array(errors)


def _table(counts: Sequence[Counts], names: Sequence[str]) -> Array:
    return np.array([[one.get(name, 0.0) for name in names] for one in counts], np.float64)


def _logs(counts: Sequence[Counts], names: Sequence[str]) -> Array:
    logs: Array = np.log1p(_table(counts, names))
    return logs


def _alike(one: Array, other: Array) -> Array:
    """How much two shapes resemble each other, from 0 to 1, (n, m); a mean over the sums, whose number then does not
    matter."""
    differing = np.mean((one[:, None, :] - other[None, :, :]) ** 2, axis=2)
    alike: Array = np.exp(-differing / (2 * LENGTH**2))
    return alike
