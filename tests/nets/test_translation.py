"""The transformer that translates: rows of tokens, the padding, the cache of keys and values, and the searches."""

import itertools

import numpy as np
import pytest
import torch

from edgekd.nets.generation import beam, generate, greedy
from edgekd.nets.translation import Seq2Seq, Seq2SeqShape
from edgekd.tasks.translation import END, PADDING, START


def net_of(vocabulary: int = 9, seed: int = 0) -> Seq2Seq:
    torch.manual_seed(seed)
    shape = Seq2SeqShape(width=8, encoder_layers=2, decoder_layers=2, heads=2, feed=8)
    net = Seq2Seq(shape, vocabulary, vocabulary).eval()
    for parameter in net.parameters():  # answers that differ from token to token
        torch.nn.init.normal_(parameter, std=0.6)
    return net


def inputs_of(sources: list[list[int]], targets: list[list[int]]) -> torch.Tensor:
    length = max(map(len, sources + targets))
    rows = [[row + [0] * (length - len(row)) for row in pair] for pair in zip(sources, targets, strict=True)]
    return torch.tensor(rows, dtype=torch.int32)


def test_logits_of_a_batch_are_those_of_each_sentence_alone() -> None:
    net, sources, targets = net_of(), [[4, 5, 6, 3], [7, 3]], [[2, 4], [2, 5, 6, 7, 8]]
    together = net(inputs_of(sources, targets))
    alone = [net(inputs_of([one], [other])) for one, other in zip(sources, targets, strict=True)]
    assert together.shape == (7, 9)
    torch.testing.assert_close(together, torch.cat(alone))


def test_step_by_step_gives_the_same_logits_as_all_at_once() -> None:
    net, ids = net_of(), torch.tensor([[4, 6, 5, 3]], dtype=torch.int32)
    (memory, bias), past, rows = net.memory_of(ids), net.nothing_past(1), []
    for place in range(4):
        logits, past = net.step(ids[:, place : place + 1], memory, bias, past)
        rows.append(logits)
    torch.testing.assert_close(torch.cat(rows), net(ids))


def test_a_later_token_changes_no_earlier_logits() -> None:
    net = net_of()
    one, other = (net(inputs_of([[4, 3]], [[2, 5, last]])) for last in (6, 7))
    torch.testing.assert_close(one[:2], other[:2])
    assert not torch.allclose(one[2], other[2])


def log_probability(net: Seq2Seq, source: list[int], tokens: list[int]) -> float:
    with torch.no_grad():
        logits = net(inputs_of([source], [[START, *tokens[:-1]]]))
        logits[:, PADDING] = -torch.inf  # the padding is never written
        logs = logits.log_softmax(1)
    return float(logs[torch.arange(len(tokens)), torch.tensor(tokens)].sum())


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_translations(penalty: float) -> None:
    """All translations of up to three tokens are tried; the beam is as wide as there are beginnings."""
    net, source, choices = net_of(6), [4, 5, 3], [1, 2, 4, 5]
    every = [[*begin, END] for length in range(3) for begin in itertools.product(choices, repeat=length)]
    scores = [log_probability(net, source, one) / len(one) ** penalty for one in every]
    found = beam(net, torch.tensor([source], dtype=torch.int32), 3, 36, penalty)[0].tolist()
    best = every[int(np.argmax(scores))][:-1]
    assert [token for token in found if token != PADDING] == best


def test_a_beam_of_one_is_greedy_search_and_the_order_of_sentences_is_kept() -> None:
    net = net_of(12, seed=3)
    rng = np.random.default_rng(0)
    sources = np.zeros((7, 6), np.int32)
    for row, length in enumerate(rng.integers(2, 6, 7)):
        sources[row, : length + 1] = [*rng.integers(4, 12, length), END]
    together = generate(net, sources, 8)
    for row in range(7):
        alone = greedy(net, torch.from_numpy(sources[row : row + 1, : (sources[row] != 0).sum()]), 8)[0].tolist()
        assert together[row, : len(alone)].tolist() == alone and not together[row, len(alone) :].any()


def test_a_width_that_is_no_multiple_of_the_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="width should be even and a multiple of heads, got 10 and 4"):
        Seq2SeqShape(width=10)
