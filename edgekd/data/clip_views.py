"""Augmented views of clips: view k of clip i is a pure function of (seed, i, k)."""

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.augmentation import Augment
from edgekd.card import Card
from edgekd.data.arrays import digest
from edgekd.data.clips import noise_digest
from edgekd.data.examples import Batch, Examples
from edgekd.data.images import Split
from edgekd.data.views import VIEWS_VERSION, draws
from edgekd.nets.spectrogram import Spectrogram
from edgekd.tasks.keyword_spotting import KEYWORD_SPOTTING, front_end

__all__ = ["clip_examples", "heard", "masked"]

Waves = NDArray[np.float32]
_SHIFT, _NOISY, _SNR, _BEGIN, _MASKS = range(5)
"""Columns of the draws; from the last one on, four for each mask."""


def clip_examples(card: Card, split: Split) -> Examples:
    """Convert `split` for the training loop. Inputs are raw samples (B, samples), as the exported file takes them;
    views with masks are features (B, 1, bins, frames), which the front end leaves as they are.

    `split.extra` is the noise (n,) in −1 … 1, for the training part.
    """
    augment, how = card.augment, front_end(card.data)
    noise: Waves = np.zeros(0, np.float32) if split.extra is None else split.extra
    spectrogram = Spectrogram(how)

    def batch(indices: NDArray[np.int64], k: int | None) -> Batch:
        waves, targets = split.read(indices), torch.from_numpy(split.labels[indices])
        if k is None:
            return Batch(torch.from_numpy(waves), targets)
        moved = heard(waves.astype(np.float32), noise * np.float32(how.top), indices, k, augment, card.data.rate)
        if not (augment.time_mask or augment.frequency_mask):
            return Batch(torch.from_numpy(_as_samples(moved) if how.integer else moved), targets)
        with torch.no_grad():
            features = spectrogram(torch.from_numpy(moved)).numpy()
        return Batch(torch.from_numpy(masked(features, indices, k, augment)), targets)

    used = {name: getattr(augment, name) for name in sorted(KEYWORD_SPOTTING.augment | {"seed"})}
    key = {
        "data": digest(split),
        "front end": _settings(card),
        "augment": used,
        "noise": noise_digest(noise),
        "views": VIEWS_VERSION,
    }
    return Examples(split.labels, batch, key)


def _settings(card: Card) -> dict[str, object]:
    data = card.data
    names = ("rate", "seconds", "input", "features", "mels", "coefficients", "window_ms", "hop_ms", "low_hz", "high_hz")
    return {name: getattr(data, name) for name in names} | {"mean": list(data.mean), "std": list(data.std)}


def _as_samples(waves: Waves) -> NDArray[np.int16]:
    return np.clip(np.rint(waves), -32_768, 32_767).astype(np.int16)


def heard(waves: Waves, noise: Waves, indices: NDArray[np.int64], k: int, augment: Augment, rate: int) -> Waves:
    """View k of clips (B, samples) whose positions in the data set are `indices` (B,): shifted, then with noise.

    `noise` (n,) has the unit of the clips; a part of it as long as a clip is added, scaled to the drawn ratio of the
    power of the whole clip to that of the noise. A silent clip stays as it is.
    """
    u = draws(augment.seed, indices, k, _MASKS)
    longest = int(augment.time_shift_ms * rate / 1000)
    shifts = np.rint((2 * u[:, _SHIFT] - 1) * longest).astype(np.int64)
    out = np.zeros_like(waves)
    for row, wave, shift in zip(out, waves, shifts, strict=True):
        row[max(shift, 0) : len(row) + min(shift, 0)] = wave[max(-shift, 0) : len(wave) - max(shift, 0)]
    low, high = augment.noise_snr_db
    for place in np.flatnonzero(u[:, _NOISY] < augment.noise):
        begin = int(u[place, _BEGIN] * (len(noise) - out.shape[1]))
        added = noise[begin : begin + out.shape[1]]
        powers = (float(np.square(one, dtype=np.float64).mean()) for one in (out[place], added))
        of_clip, of_noise = powers
        if of_noise > 0:
            ratio = 10 ** ((low + u[place, _SNR] * (high - low)) / 10)
            out[place] += added * np.float32(np.sqrt(of_clip / of_noise / ratio))
    return out


def masked(features: Waves, indices: NDArray[np.int64], k: int, augment: Augment) -> Waves:
    """View k of features (B, 1, bins, frames): masks of frames and of bins are set to 0, the mean of the features.

    The width of each mask is uniform in 0 … `time_mask` or `frequency_mask`, and so is its place (SpecAugment; Park et
    al. 2019, section 2).
    """
    u = draws(augment.seed, indices, k, _MASKS + 4 * augment.masks)[:, _MASKS:].reshape(len(features), -1, 4)
    out = features.copy()
    for image, rows in zip(out, u, strict=True):
        for in_time, at_time, in_bins, at_bins in rows:
            image[:, :, _span(image.shape[2], augment.time_mask, in_time, at_time)] = 0
            image[:, _span(image.shape[1], augment.frequency_mask, in_bins, at_bins)] = 0
    return out


def _span(size: int, most: int, width: float, place: float) -> slice:
    """A range of at most `most` of `size` positions; `width` and `place` are draws in [0, 1)."""
    length = int(width * (most + 1))
    begin = int(place * (size - length + 1))
    return slice(begin, begin + length)
