"""Translations of a network in torch: by greedy search or beam search, for many sentences at once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.nets.translation import Past, Seq2Seq
from edgekd.tasks.translation import END, PADDING, START

__all__ = ["beam", "generate", "greedy"]

MOST_ROWS = 640
"""Largest number of hypotheses that are computed together."""


def generate(
    net: Seq2Seq,
    sources: NDArray[np.int32],
    max_length: int,
    width: int = 1,
    length_penalty: float = 1.0,
) -> NDArray[np.int64]:
    """Token ids (n, `max_length`), padded, of the translations of sources (n, S) by beam search with `width`
    hypotheses, or greedily for one.

    Sentences of similar length are translated together.
    """
    order = np.argsort((sources != PADDING).sum(axis=1), kind="stable")
    found = np.full((len(sources), max_length), PADDING, np.int64)
    device = net.table.weight.device
    with torch.no_grad():
        for chosen in np.array_split(order, -(-len(order) * width // MOST_ROWS)):
            given = torch.from_numpy(sources[chosen]).to(device)
            given = given[:, : max(1, int((given != PADDING).sum(1).max()))]
            if width == 1:
                answer = greedy(net, given, max_length)
            else:
                answer = beam(net, given, max_length, width, length_penalty)
            found[chosen, : answer.shape[1]] = answer.cpu().numpy()
    return found


@torch.no_grad()
def greedy(net: Seq2Seq, sources: Tensor, max_length: int) -> Tensor:
    """The most likely next token at every step, (B, T) with the end token, for sources (B, S)."""
    memory, bias = net.memory_of(sources)
    past, found = net.nothing_past(len(sources)), []
    tokens = torch.full((len(sources),), START, device=sources.device)
    done = torch.zeros(len(sources), dtype=torch.bool, device=sources.device)
    for _ in range(max_length):
        logits, past = net.step(tokens.unsqueeze(1), memory, bias, past)
        logits[:, PADDING] = -torch.inf
        tokens = logits.argmax(1).masked_fill(done, PADDING)
        found.append(tokens)
        done = done | (tokens == END)
        if bool(done.all()):
            break
    return torch.stack(found, 1)


@torch.no_grad()
def beam(net: Seq2Seq, sources: Tensor, max_length: int, width: int, length_penalty: float) -> Tensor:
    """The best of `width` hypotheses for each of sources (B, S): (B, T), padded, without the end token.

    A hypothesis is scored by its log-probability / its number of tokens ** `length_penalty`. The search for a sentence
    ends when `width` hypotheses have ended; edgekd/bench/worker.py has the same search for one sentence in NumPy.
    """
    count, where = len(sources), sources.device
    memory, bias = net.memory_of(sources)
    each = torch.arange(count, device=where).repeat_interleave(width)
    memory, bias = _chosen(memory, each), bias[each]
    past = net.nothing_past(count * width)
    tokens = torch.full((count * width,), START, device=where)
    scores = torch.full((count, width), -torch.inf, device=where)
    scores[:, 0] = 0.0
    alive = torch.zeros(count, width, 0, dtype=torch.long, device=where)
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
    for number in range(1, max_length + 1):
        logits, past = net.step(tokens.unsqueeze(1), memory, bias, past)
        logits[:, PADDING] = -torch.inf
        total = scores.unsqueeze(2) + logits.float().log_softmax(1).view(count, width, -1)
        values, places = total.flatten(1).topk(2 * width, 1)
        rows, choices = places // total.shape[2], places % total.shape[2]
        divisor = number**length_penalty
        _collect(ended, alive, rows[:, :width], choices[:, :width], values[:, :width] / divisor)
        order = torch.argsort((choices == END).int(), dim=1, stable=True)[:, :width]  # the first that do not end
        rows, choices, scores = rows.gather(1, order), choices.gather(1, order), values.gather(1, order)
        alive = torch.cat([alive.gather(1, rows.unsqueeze(2).expand(-1, -1, alive.shape[2])), choices.unsqueeze(2)], 2)
        if all(len(one) >= width for one in ended):
            break
        tokens = choices.flatten()
        past = _chosen(past, (rows + width * torch.arange(count, device=where).unsqueeze(1)).flatten())
    best = [max(one)[1] if one else alive[place, 0].tolist() for place, one in enumerate(ended)]
    found = torch.full((count, max(1, *map(len, best))), PADDING, device=where)
    for place, row in enumerate(best):
        found[place, : len(row)] = torch.tensor(row, dtype=torch.long, device=where)
    return found


def _collect(
    ended: list[list[tuple[float, list[int]]]], alive: Tensor, rows: Tensor, choices: Tensor, scores: Tensor
) -> None:
    """Add the hypotheses that end in this step to those of their sentence, unless its search has ended."""
    width = choices.shape[1]
    open_ = torch.tensor([len(one) < width for one in ended], device=choices.device).unsqueeze(1)
    for place, column in ((choices == END) & scores.isfinite() & open_).nonzero().tolist():
        hypothesis = alive[place, rows[place, column]].tolist()
        ended[place].append((float(scores[place, column]), hypothesis))


def _chosen(pairs: Past, rows: Tensor) -> Past:
    """The keys and values of these rows."""
    return [(key[rows], value[rows]) for key, value in pairs]
