"""Small families for text, which map token ids (B, L), padded with 0, to logits (B, classes).

Each network finds the padding itself (ids == 0), so the deployed model has only one input. The logits of a sentence do
not depend on the length of its padding: padded positions are zeros for convolutions, and are left out of pooling and
attention.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

__all__ = [
    "BagOfWords",
    "BagOfWordsShape",
    "LstmShape",
    "TextCnn",
    "TextCnnShape",
    "TextLstm",
    "Transformer",
    "TransformerShape",
]

_STRICT = ConfigDict(extra="forbid")
Width = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
LOWEST = -1e4
"""Replaces −∞ in maximum pooling and in attention scores; it is in the range of fp16."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BagOfWordsShape:
    """The mean of the embeddings, then a hidden layer of size `hidden`; 0 means no hidden layer, as in fastText."""

    embedding: Width = 32
    hidden: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    dropout: Share = 0.3


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextCnnShape:
    """`filters` convolutions for each size in `kernels` (in words), then the maximum over the positions."""

    embedding: Width = 128
    filters: Width = 100
    kernels: Annotated[tuple[Annotated[int, Field(ge=1, le=9)], ...], Field(min_length=1, max_length=64)] = (3, 4, 5)
    dropout: Share = 0.5


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LstmShape:
    """`layers` bidirectional layers, with one LSTM of `hidden` cells for each direction."""

    embedding: Width = 128
    hidden: Width = 128
    layers: Annotated[int, Field(ge=1, le=4)] = 1
    dropout: Share = 0.5


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TransformerShape:
    """`layers` encoder layers of size `width`, with a feed-forward size of 4 · `width`; `heads` must divide `width`."""

    width: Width = 128
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    heads: Width = 4
    dropout: Share = 0.3

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width should be even and a multiple of heads, got {self.width} and {self.heads}")


class _Embedding(nn.Module):
    """Maps token ids (B, L) to embeddings (B, L, width) with dropout; those of padding are zero."""

    def __init__(self, vocabulary: int, width: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.table(ids)) * mask
        return embedded


def _mask(ids: Tensor) -> Tensor:
    """A mask (B, L, 1): 1 for tokens, 0 for padding."""
    return (ids != 0).unsqueeze(2).float()


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x (B, L, C) over the tokens, (B, C)."""
    return (x * mask).sum(1) / mask.sum(1).clamp(min=1)


def _maximum(x: Tensor, mask: Tensor) -> Tensor:
    """The maximum of x (B, L, C) over the tokens, (B, C)."""
    return (x * mask + (1 - mask) * LOWEST).amax(1)


class BagOfWords(nn.Module):
    """A linear classifier, or one with a hidden layer, on the mean of the embeddings (Joulin et al. 2017, arXiv
    1607.01759, section 2)."""

    def __init__(self, shape: BagOfWordsShape, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embedding = _Embedding(vocabulary, shape.embedding, shape.dropout)
        inside = shape.hidden or shape.embedding
        first: list[nn.Module] = [nn.Linear(shape.embedding, inside), nn.ReLU()] if shape.hidden else []
        self.head = nn.Sequential(*first, nn.Dropout(shape.dropout), nn.Linear(inside, classes))

    def forward(self, ids: Tensor) -> Tensor:
        mask = _mask(ids)
        logits: Tensor = self.head(_mean(self.embedding(ids, mask), mask))
        return logits


class TextCnn(nn.Module):
    """CNN-rand of Kim 2014 (arXiv 1408.5882, section 2), with padding, so that a convolution keeps the length.

    Each convolution is computed as a matrix product of shifted embeddings, which ONNX Runtime can run in int8.
    """

    def __init__(self, shape: TextCnnShape, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.kernels = shape.kernels
        self.embedding = _Embedding(vocabulary, shape.embedding, shape.dropout)
        self.filters = nn.ModuleList(nn.Linear(kernel * shape.embedding, shape.filters) for kernel in shape.kernels)
        self.head = nn.Sequential(nn.Dropout(shape.dropout), nn.Linear(len(shape.kernels) * shape.filters, classes))

    def forward(self, ids: Tensor) -> Tensor:
        mask = _mask(ids)
        x = self.embedding(ids, mask)
        pooled = [
            _maximum(F.relu(linear(_windows(x, kernel))), mask)
            for kernel, linear in zip(self.kernels, self.filters, strict=True)
        ]
        logits: Tensor = self.head(torch.cat(pooled, 1))
        return logits


def _windows(x: Tensor, size: int) -> Tensor:
    """For each position of x (B, L, C), the `size` positions around it, zeros beyond the ends: (B, L, size · C)."""
    before = (size - 1) // 2
    length = x.shape[1]
    padded = F.pad(x, (0, 0, before, size - 1 - before))
    return torch.cat([padded[:, shift : shift + length] for shift in range(size)], 2)


class TextLstm(nn.Module):
    """A bidirectional LSTM (Graves and Schmidhuber 2005) with the maximum over the positions.

    The backward direction starts at the last token of each sentence, not at the padding.
    """

    def __init__(self, shape: LstmShape, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embedding = _Embedding(vocabulary, shape.embedding, shape.dropout)
        sizes = [shape.embedding] + [2 * shape.hidden] * (shape.layers - 1)
        self.forwards = nn.ModuleList(nn.LSTM(size, shape.hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, shape.hidden, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(shape.dropout)
        self.head = nn.Linear(2 * shape.hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        mask = _mask(ids)
        back = _reversal(ids)
        x = self.embedding(ids, mask)
        for ahead, behind in zip(self.forwards, self.backwards, strict=True):
            first = ahead(x)[0]
            last = _take(behind(_take(x, back))[0], back)
            x = self.dropout(torch.cat([first, last], 2))
        logits: Tensor = self.head(_maximum(x, mask))
        return logits


def _reversal(ids: Tensor) -> Tensor:
    """Indices (B, L) that reverse the tokens of each sentence in ids (B, L), and leave the padding where it is."""
    places = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    lengths = (ids != 0).sum(1, keepdim=True)
    return torch.where(places < lengths, lengths - 1 - places, places)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """x (B, L, C), reordered along L by the indices `places` (B, L)."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


class Transformer(nn.Module):
    """A transformer encoder (Vaswani et al. 2017, arXiv 1706.03762, section 3), with layer normalisation before each
    part (pre-norm), sinusoidal position encodings, and the mean over the positions."""

    def __init__(self, shape: TransformerShape, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embedding = _Embedding(vocabulary, shape.width, shape.dropout)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Sequential(nn.Dropout(shape.dropout), nn.Linear(shape.width, classes))
        rates = torch.exp(torch.arange(0, shape.width, 2) * (-torch.log(torch.tensor(10_000.0)) / shape.width))
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        mask = _mask(ids)
        angles = torch.arange(ids.shape[1], device=ids.device).unsqueeze(1) * self.get_buffer("rates")
        x = self.embedding(ids, mask) + 0.1 * torch.cat([angles.sin(), angles.cos()], 1)
        bias = ((1 - mask) * LOWEST).transpose(1, 2).unsqueeze(1)  # (B, 1, 1, L), is added to the attention scores
        for layer in self.layers:
            x = layer(x, bias)
        logits: Tensor = self.head(_mean(self.norm(x), mask))
        return logits


class _Layer(nn.Module):
    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.heads, width = shape.heads, shape.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.dropout(self.attend(self.norm1(x), bias))
        fed: Tensor = self.feed(self.norm2(x))
        joined: Tensor = x + self.dropout(fed)
        return joined

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """Multi-head self-attention of x (B, L, C); `bias` masks the padding."""
        width = x.shape[2]
        split = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, 2)]
        query, key, value = split
        scores = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5 + bias
        joined: Tensor = self.join((scores.softmax(3) @ value).transpose(1, 2).flatten(2))
        return joined
