"""The front end of audio networks: what turns raw samples into log-mel features or MFCC, as numbers without torch."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOOR", "FrontEnd", "hz", "mel"]

FLOOR = 1e-6
"""Is added to each mel energy before the logarithm, as torchaudio's MFCC does; samples are in −1 … 1."""


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Framing, Hann window, power spectrum by a discrete Fourier transform (DFT) of the window's length, mel filters,
    logarithm, and for MFCC a discrete cosine transform: (n, samples) to (n, 1, bins, frames).

    A frame begins every `hop` samples; frames that do not fit into the clip are left out.
    """

    samples: int
    rate: int
    """Samples per second."""
    window: int
    hop: int
    """Both in samples."""
    mels: int
    low_hz: float
    high_hz: float
    coefficients: int
    """Number of MFCC; 0 means log-mel features."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the features: one number, or one for each bin."""
    integer: bool
    """Whether samples are int16; otherwise they are float32 in −1 … 1."""

    @property
    def bins(self) -> int:
        """Number of features of a frame."""
        return self.coefficients or self.mels

    @property
    def frames(self) -> int:
        """Number of frames of a clip."""
        return 1 + (self.samples - self.window) // self.hop

    @property
    def top(self) -> float:
        """The raw value of a sample that means 1."""
        return 32_768.0 if self.integer else 1.0

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """The corners of the mel filters in Hz (mels + 2,): filter m rises from point m to m + 1 and falls to m + 2."""
        return hz(np.linspace(mel(self.low_hz), mel(self.high_hz), self.mels + 2))

    @property
    def lines(self) -> range:
        """The lines of the spectrum, as multiples of rate / window, that lie inside of the filters."""
        step = self.rate / self.window
        return range(math.floor(self.low_hz / step) + 1, math.ceil(self.high_hz / step))

    @cached_property
    def empty(self) -> list[int]:
        """The filters in which no line of the spectrum lies, so that they would always be silent."""
        return [int(place) for place in np.flatnonzero(~(self.filters > 0).any(axis=1))]

    @cached_property
    def filters(self) -> NDArray[np.float64]:
        """The weight of each line of the spectrum in each mel filter, (mels, lines): triangles of height 1 over the
        frequency, as HTK and torchaudio's `melscale_fbanks` without `norm` have them."""
        at = np.array(self.lines) * (self.rate / self.window)
        low, middle, high = (self.points[place : place + self.mels, None] for place in range(3))
        rising, falling = (at - low) / (middle - low), (high - at) / (high - middle)
        return np.asarray(np.maximum(0.0, np.minimum(rising, falling)))

    @cached_property
    def hann(self) -> NDArray[np.float64]:
        """The periodic Hann window (window,), divided by `top`."""
        turns = np.arange(self.window) / self.window
        return np.asarray((0.5 - 0.5 * np.cos(2 * np.pi * turns)) / self.top)

    @cached_property
    def cosines(self) -> NDArray[np.float64]:
        """The orthonormal discrete cosine transform of type II as a matrix (coefficients, mels)."""
        rows = np.arange(self.coefficients)[:, None] * (np.arange(self.mels) + 0.5) * (np.pi / self.mels)
        scale = np.where(np.arange(self.coefficients) == 0, 1.0, math.sqrt(2.0)) / math.sqrt(self.mels)
        return np.asarray(np.cos(rows) * scale[:, None])


def mel(frequency: float) -> float:
    """A frequency in Hz on the mel scale of HTK: 2595 · log10(1 + f / 700)."""
    return 2595.0 * math.log10(1.0 + frequency / 700.0)


def hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The frequencies in Hz of values on the mel scale of HTK."""
    return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
