"""Dropout whose random numbers cost little on a CPU."""

import torch
from torch import Tensor, nn

__all__ = ["Dropout"]

LEVELS = 2**16
"""Number of values of the 16 random bits that decide on an element."""


class Dropout(nn.Dropout):
    """`nn.Dropout` (Srivastava et al. 2014), which on a CPU draws 64 random bits at a time and decides on four elements
    with them; torch draws a number for each element, which took a sixth of the training of a translator.

    An element is dropped with the probability `p`, rounded to 1 / LEVELS, and the others are divided by the probability
    that they are kept. `torch.manual_seed` determines the elements.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        count, kept = input.numel(), max(1, round((1 - self.p) * LEVELS))
        drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = drawn[:count].view(input.shape) < kept - LEVELS // 2  # signed
        return input * (keep.to(input.dtype) * (LEVELS / kept))
