"""The front end of audio networks as a torch module."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.tasks.front_end import FLOOR, FrontEnd

__all__ = ["Spectrogram"]


class Spectrogram(nn.Module):
    """Maps raw samples (B, samples), int16 or float, to normalised features (B, 1, bins, frames).

    Features are returned as they are, because the views of a training are masked features.
    """

    def __init__(self, how: FrontEnd) -> None:
        super().__init__()
        self.window, self.hop, self.lines, self.mfcc = how.window, how.hop, how.lines, bool(how.coefficients)
        self.register_buffer("hann", _float(how.hann), persistent=False)
        self.register_buffer("filters", _float(how.filters.T), persistent=False)
        self.register_buffer("cosines", _float(how.cosines), persistent=False)
        self.register_buffer("mean", _float(np.array(how.mean)[:, None]), persistent=False)
        self.register_buffer("std", _float(np.array(how.std)[:, None]), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dim() == 4:
            return inputs
        with torch.autocast(inputs.device.type, enabled=False):  # bf16 is too coarse for small energies
            frames = inputs.float().unfold(1, self.window, self.hop) * self.get_buffer("hann")
            spectrum = torch.fft.rfft(frames)[:, :, self.lines.start : self.lines.stop]
            power = spectrum.real.square() + spectrum.imag.square()
            found = (power @ self.get_buffer("filters") + FLOOR).log().transpose(1, 2)
            if self.mfcc:
                found = self.get_buffer("cosines") @ found
            features: Tensor = ((found - self.get_buffer("mean")) / self.get_buffer("std"))[:, None]
        return features


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
