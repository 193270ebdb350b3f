"""The form in which the cache keeps logits of tokens: the largest of each token, and the probability of all others."""

import math

import torch
from torch import Tensor

__all__ = ["KEPT", "packed", "packed_shape", "unpacked"]

KEPT = 16
"""Number of logits of each token that are kept."""


def packed_shape(longest: int, vocabulary: int) -> tuple[int, int]:
    """The shape of one example's entry, whose longest translation has this number of tokens."""
    return longest, 2 * min(KEPT, vocabulary - 1) + 1


def packed(logits: Tensor, inputs: Tensor, longest: int) -> Tensor:
    """Pack logits (N, V) of the N tokens of the inputs (B, 2, L) as (B, longest, 2 K + 1): the logarithms of the K
    largest probabilities, their ids, and the logarithm of the mean of the other probabilities."""
    shape = packed_shape(longest, logits.shape[1])
    logs = logits.float().log_softmax(1)
    values, places = logs.topk(shape[1] // 2, 1)
    others = logs.scatter(1, places, float("-inf")).logsumexp(1, keepdim=True)
    rows = torch.cat([values, places.float(), others - math.log(logits.shape[1] - values.shape[1])], 1)
    kept = inputs[:, 1, :longest] != 0  # sources may be longer than all targets
    whole = rows.new_zeros(len(inputs), *shape)
    whole[:, : kept.shape[1]][kept] = rows
    return whole


def unpacked(entries: Tensor, inputs: Tensor, vocabulary: int) -> Tensor:
    """Logits (N, V) from entries (B, longest, 2 K + 1): exact for the K kept tokens, equal for all others, whose
    probabilities have the right sum."""
    kept = inputs[:, 1, : entries.shape[1]] != 0
    rows = entries[:, : kept.shape[1]][kept]
    count = rows.shape[1] // 2
    logits = rows[:, -1:].repeat(1, vocabulary)
    return logits.scatter(1, rows[:, count : 2 * count].long(), rows[:, :count])
