"""A transformer that translates: an encoder, and a decoder that writes one token after the other.

In training only tokens are computed, not the padding: between attentions, sentences lie one after another as rows
(N, C). Where there is no mask, as in the exported files, they stay (B, L, C).
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from edgekd.nets.dropout import Dropout
from edgekd.nets.text import LOWEST, Share, Width

__all__ = ["Seq2Seq", "Seq2SeqShape"]

Past = list[tuple[Tensor, Tensor]]
"""Keys and values (B, H, P, C / H) of the P earlier tokens, for each layer of the decoder."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Seq2SeqShape:
    """Numbers of layers of encoder and decoder, which may differ; all have size `width` and `heads`, which must divide
    it, and a feed-forward part of size `feed`."""

    width: Width = 128
    encoder_layers: Annotated[int, Field(ge=1, le=64)] = 3
    decoder_layers: Annotated[int, Field(ge=1, le=64)] = 3
    heads: Width = 4
    feed: Width = 256
    dropout: Share = 0.3

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width should be even and a multiple of heads, got {self.width} and {self.heads}")


class Seq2Seq(nn.Module):
    """The transformer of Vaswani et al. 2017 (arXiv 1706.03762), with layer normalisation before each part. One table
    of embeddings serves source, target and output (Press and Wolf 2017, arXiv 1608.05859).

    In training it maps the source and the beginning of the target (B, 2, L), padded with 0, to the logits (N, V) of the
    token after each of the N tokens of the targets. Ids (B, L) alone are taken for both.
    """

    def __init__(self, shape: Seq2SeqShape, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.shape = shape
        self.table = nn.Embedding(vocabulary, shape.width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=shape.width**-0.5)
        with torch.no_grad():
            self.table.weight[0] = 0
        self.encoder = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.decoder_layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.dropout = Dropout(shape.dropout)
        rates = torch.exp(torch.arange(0, shape.width, 2) * (-torch.log(torch.tensor(10_000.0)) / shape.width))
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        source, target = (inputs[:, 0], inputs[:, 1]) if inputs.dim() == 3 else (inputs, inputs)
        source, target = _trimmed(source), _trimmed(target)
        mask, kept = source != 0, target != 0
        memory, bias = self.encode(source, mask), masked(mask)
        x = self.embedded(target)[kept]
        later = torch.ones(target.shape[1], target.shape[1], device=x.device).triu(1) * LOWEST
        for layer in self.decoder:
            x = layer(x, memory, bias, later, mask, kept)
        return self.logits(x)

    def encode(self, source: Tensor, mask: Tensor | None) -> Tensor:
        """The encoder's rows (N, C) for the tokens of sources (B, S), whose mask is (B, S); without it (B, S, C)."""
        x, bias = gathered(self.embedded(source), mask), masked(source != 0)
        for layer in self.encoder:
            x = layer(x, bias, mask)
        rows: Tensor = self.encoder_norm(x)
        return rows

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings (B, L, C) of ids (B, L) with the encodings of their positions."""
        x = self.table(ids) * self.shape.width**0.5
        embedded: Tensor = self.dropout(x + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        return embedded

    def positions(self, places: Tensor) -> Tensor:
        """Sinusoidal encodings (L, C) of positions (L,)."""
        angles = places.unsqueeze(1) * self.get_buffer("rates")
        return torch.cat([angles.sin(), angles.cos()], 1)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, V) of the decoder's rows (N, C)."""
        return F.linear(self.decoder_norm(x), self.table.weight)

    def memory_of(self, source: Tensor) -> tuple[Past, Tensor]:
        """Keys and values of the cross-attention of each layer, and the mask of the padding (B, 1, 1, S), for sources
        (B, S)."""
        memory = self.encode(source, None)
        return [layer.cross.keys_of(memory) for layer in self.decoder], masked(source != 0)  # type: ignore[union-attr,operator]

    def step(self, tokens: Tensor, memory: Past, bias: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Logits (B, V) after the tokens (B, 1), given the `past` tokens; and the past that includes these."""
        angles = self.get_buffer("rates") * past[0][0].shape[2]  # fewer nodes in the decoder's file than `positions`
        x = self.table(tokens[:, 0]) * self.shape.width**0.5 + torch.cat([angles.sin(), angles.cos()])
        grown: Past = []
        for layer, cross, own in zip(self.decoder, memory, past, strict=True):
            x, own = layer.step(x, cross, bias, own)  # type: ignore[operator]
            grown.append(own)
        return self.logits(x), grown

    def nothing_past(self, count: int) -> Past:
        """The past of `count` rows before the first token."""
        size = (count, self.shape.heads, 0, self.shape.width // self.shape.heads)
        empty = self.table.weight.new_zeros(size)
        return [(empty, empty) for _ in self.decoder]


def _trimmed(ids: Tensor) -> Tensor:
    """Ids (B, L) without the columns that are padding in every row."""
    return ids[:, : max(1, int((ids != 0).sum(1).max()))]


def masked(mask: Tensor) -> Tensor:
    """What is added to attention scores, (B, 1, 1, S), for a mask (B, S) of the tokens."""
    return (1 - mask.float()).unsqueeze(1).unsqueeze(1) * LOWEST


def gathered(x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows (N, C) of x (B, L, C) at the places of the mask (B, L); x without a mask."""
    return x if mask is None else x[mask]


def spread(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Rows (N, C) at the places of the mask (B, L), zero elsewhere: (B, L, C); the rows without a mask."""
    if mask is None:
        return rows
    whole = rows.new_zeros(*mask.shape, rows.shape[1])
    whole[mask] = rows
    return whole


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values are (B, H, L, C / H)."""

    def __init__(self, shape: Seq2SeqShape) -> None:
        super().__init__()
        self.heads, width = shape.heads, shape.width
        self.query, self.pair = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.join = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """x (B, L, C) as heads (B, H, L, C / H)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def keys_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x (B, L, C)."""
        key, value = self.pair(x).chunk(2, 2)
        return self.split(key), self.split(value)

    def mixed(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """The values that the queries ask for, (B, L, C); `bias` is added to the scores."""
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5 + bias.to(query.dtype)
        mixed: Tensor = (scores.softmax(3) @ value).transpose(1, 2).flatten(2)
        return mixed


class Feed(nn.Sequential):
    """The feed-forward part of a layer, with its normalisation."""

    def __init__(self, shape: Seq2SeqShape) -> None:
        inner = nn.Linear(shape.width, shape.feed), nn.ReLU(), Dropout(shape.dropout)
        super().__init__(nn.LayerNorm(shape.width), *inner, nn.Linear(shape.feed, shape.width))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part."""

    def __init__(self, shape: Seq2SeqShape) -> None:
        super().__init__()
        self.norm, self.own, self.feed = nn.LayerNorm(shape.width), Attention(shape), Feed(shape)
        self.dropout = Dropout(shape.dropout)

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Rows (N, C) of the tokens of the mask (B, L), or (B, L, C) without a mask."""
        normed = self.norm(x)
        query = self.own.split(spread(self.own.query(normed), mask))
        pair = spread(self.own.pair(normed), mask).chunk(2, 2)
        mixed = self.own.mixed(query, self.own.split(pair[0]), self.own.split(pair[1]), bias)
        x = x + self.dropout(self.own.join(gathered(mixed, mask)))
        fed: Tensor = x + self.dropout(self.feed(x))
        return fed


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's outputs, and a feed-forward part."""

    def __init__(self, shape: Seq2SeqShape) -> None:
        super().__init__()
        self.norm, self.own = nn.LayerNorm(shape.width), Attention(shape)
        self.cross_norm, self.cross = nn.LayerNorm(shape.width), Attention(shape)
        self.feed, self.dropout = Feed(shape), Dropout(shape.dropout)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor, later: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        """Rows (N, C) of the tokens of `kept` (B, T), and of the memory of the mask (B, S)."""
        normed = self.norm(x)
        query = self.own.split(spread(self.own.query(normed), kept))
        pair = spread(self.own.pair(normed), kept).chunk(2, 2)
        mixed = self.own.mixed(query, self.own.split(pair[0]), self.own.split(pair[1]), later)
        x = x + self.dropout(self.own.join(mixed[kept]))
        query = self.cross.split(spread(self.cross.query(self.cross_norm(x)), kept))
        pair = spread(self.cross.pair(memory), mask).chunk(2, 2)
        mixed = self.cross.mixed(query, self.cross.split(pair[0]), self.cross.split(pair[1]), bias)
        x = x + self.dropout(self.cross.join(mixed[kept]))
        fed: Tensor = x + self.dropout(self.feed(x))
        return fed

    def step(
        self, x: Tensor, memory: tuple[Tensor, Tensor], bias: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The row (B, C) of one further token, and the keys and values with this token."""
        normed = self.norm(x).unsqueeze(1)
        key, value = self.own.keys_of(normed)
        past = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        nothing = bias.new_zeros(1)
        x = x + self.own.join(self.own.mixed(self.own.split(self.own.query(normed)), *past, nothing))[:, 0]
        query = self.cross.split(self.cross.query(self.cross_norm(x).unsqueeze(1)))
        x = x + self.cross.join(self.cross.mixed(query, *memory, bias))[:, 0]
        return x + self.feed(x), past
