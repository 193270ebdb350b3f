"""Families for text against torch's own layers: packed sequences, convolutions, attention; padding changes nothing."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.card import Card, Student, Teacher, TextData
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed, count_macs, count_params
from edgekd.nets.families import TEXT_FAMILIES, make, make_shapes
from edgekd.nets.text import (
    BagOfWords,
    BagOfWordsShape,
    LstmShape,
    TextCnn,
    TextCnnShape,
    TextLstm,
    Transformer,
    TransformerShape,
)
from edgekd.tasks.known import load_card

V, LENGTHS = 30, [7, 1, 4, 7, 2]
SHAPES: dict[str, dict[str, Any]] = {
    "bag-of-words": {"embedding": 6, "hidden": 5},
    "text-cnn": {"embedding": 6, "filters": 4, "kernels": [1, 2, 5]},
    "lstm": {"embedding": 6, "hidden": 4, "layers": 2},
    "transformer": {"width": 8, "layers": 2, "heads": 2},
}


def card(vocabulary: int = V, length: int = 7) -> Card:
    base = load_card("sst2")
    assert isinstance(base.data, TextData)
    return dataclasses.replace(
        base, file="c.toml", data=dataclasses.replace(base.data, vocabulary=vocabulary, timed_length=length)
    )


def sentences() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(1, V, (length,), dtype=torch.int32) for length in LENGTHS]


def padded(rows: list[Tensor], extra: int = 0) -> Tensor:
    return F.pad(nn.utils.rnn.pad_sequence(rows, batch_first=True), (0, extra))


def network(family: str) -> nn.Module:
    torch.manual_seed(0)
    return make(card(), Student(family=family), SHAPES[family], "student.knobs").eval()


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_padding_and_neighbours_change_nothing(family: str) -> None:
    net = Deployed(network(family), card().data)
    with torch.no_grad():
        alone = torch.cat([net(row[None]) for row in sentences()])
        together = net(padded(sentences(), extra=9))
    assert together.shape == (5, 2)
    assert alone.std(0).min() > 1e-3  # the sentences are told apart at all
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_all_parts_learn(family: str) -> None:
    net = network(family).train()
    net(padded(sentences())).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_bag_of_words_is_the_mean_by_hand() -> None:
    net = BagOfWords(BagOfWordsShape(embedding=6, hidden=5), V, 3).eval()
    state = {name: tensor.numpy().astype(np.float64) for name, tensor in net.state_dict().items()}
    for row in sentences():
        mean = state["embedding.table.weight"][row.numpy()].mean(axis=0)
        hidden = np.maximum(state["head.0.weight"] @ mean + state["head.0.bias"], 0)
        expected = state["head.3.weight"] @ hidden + state["head.3.bias"]
        np.testing.assert_allclose(net(row[None]).detach().numpy()[0], expected, rtol=1e-5, atol=1e-6)


def test_the_lstm_is_torchs_own_over_packed_sequences() -> None:
    net = TextLstm(LstmShape(embedding=6, hidden=4, layers=2), V, 2).eval()
    whole = nn.LSTM(6, 4, num_layers=2, batch_first=True, bidirectional=True)
    state: dict[str, Tensor] = {}
    for layer in range(2):
        for own, suffix in ((net.forwards[layer], ""), (net.backwards[layer], "_reverse")):
            state |= {f"{name[:-1]}{layer}{suffix}": value for name, value in own.state_dict().items()}
    whole.load_state_dict(state)
    ids = padded(sentences())
    packed = nn.utils.rnn.pack_padded_sequence(
        net.embedding.table(ids), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    out, _ = nn.utils.rnn.pad_packed_sequence(whole(packed)[0], batch_first=True, padding_value=-torch.inf)
    torch.testing.assert_close(net(ids), net.head(out.amax(1)), rtol=1e-5, atol=1e-6)


def test_the_cnn_is_convolutions_and_their_maximum() -> None:
    net = TextCnn(TextCnnShape(embedding=6, filters=4, kernels=(1, 2, 5)), V, 2).eval()
    for row in sentences():
        x = net.embedding.table(row[None]).transpose(1, 2)
        pooled = []
        for kernel, linear in zip((1, 2, 5), net.filters, strict=True):
            assert isinstance(linear, nn.Linear)
            weight = linear.weight.reshape(4, kernel, 6).transpose(1, 2)
            sides = F.pad(x, ((kernel - 1) // 2, kernel // 2))  # torch's "same" padding of a convolution
            pooled.append(F.relu(F.conv1d(sides, weight, linear.bias)).amax(2))
        torch.testing.assert_close(net(row[None]), net.head(torch.cat(pooled, 1)), rtol=1e-5, atol=1e-6)


def test_the_transformer_is_torchs_encoder() -> None:
    shape = TransformerShape(width=8, layers=2, heads=2)
    net = Transformer(shape, V, 2).eval()
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True, norm_first=True, activation="relu")
    whole = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    names = {
        "norm1": "norm1", "norm2": "norm2", "feed.0": "linear1", "feed.2": "linear2", "join": "self_attn.out_proj",
    }  # fmt: skip
    for own, theirs in zip(net.layers, whole.layers, strict=True):
        state = own.state_dict()
        taken = {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value
                 for key, value in state.items() if not key.startswith("project")}  # fmt: skip
        taken |= {f"self_attn.in_proj_{end}": state[f"project.{end}"] for end in ("weight", "bias")}
        theirs.load_state_dict(taken)
    ids = padded(sentences())
    place = np.arange(ids.shape[1])[:, None] / 10_000 ** (np.arange(0, 8, 2) / 8)
    positions = torch.from_numpy(0.1 * np.concatenate([np.sin(place), np.cos(place)], 1)).float()
    x = whole(net.embedding.table(ids) + positions, src_key_padding_mask=ids == 0)
    means = [net.norm(x[n, :length]).mean(0) for n, length in enumerate(LENGTHS)]
    torch.testing.assert_close(net(ids), net.head(torch.stack(means)), rtol=1e-4, atol=1e-5)


def test_parameters_and_multiplications_are_those_counted_by_hand() -> None:
    length, table = 7, V * 6
    by_hand = {
        "bag-of-words": (table + 6 * 5 + 5 + 5 * 2 + 2, 6 * 5 + 5 * 2),
        "text-cnn": (table + (1 + 2 + 5) * 6 * 4 + 3 * 4 + 12 * 2 + 2, length * (1 + 2 + 5) * 6 * 4 + 12 * 2),
        # Two directions, four gates of four cells, two biases; two layers.
        "lstm": (
            table + 2 * 16 * (6 + 4 + 2) + 2 * 16 * (8 + 4 + 2) + 8 * 2 + 2,
            length * 2 * 16 * (6 + 4) + length * 2 * 16 * (8 + 4) + 8 * 2,
        ),
        "transformer": (
            V * 8 + 2 * (12 * 64 + 13 * 8) + 2 * 8 + 8 * 2 + 2,
            2 * (length * 12 * 64 + 2 * length**2 * 8) + 8 * 2,
        ),
    }
    for family, counts in by_hand.items():
        net = network(family)
        assert (count_params(net), count_macs(net, card().data)) == counts, family


def test_knobs_are_combined_and_checked() -> None:
    student = Student(family="lstm", knobs={"hidden": [2, 3], "embedding": [4]})
    assert make_shapes(card(), student) == [{"hidden": 2, "embedding": 4}, {"hidden": 3, "embedding": 4}]


@pytest.mark.parametrize(
    ("family", "shape", "said"),
    [
        ("lstmm", {}, r"c\.toml: student\.family: unknown family 'lstmm'; did you mean 'lstm'.+ Known: .+"),
        ("convnet", {}, r"c\.toml: student\.family: 'convnet' is not for text-classification; .+bag-of-words.+"),
        ("lstm", {"hiden": 3}, r"c\.toml: student\.knobs: hiden: unknown key; did you mean 'hidden'.+"),
        (
            "text-cnn",
            {"kernels": [0]},
            r"c\.toml: student\.knobs: kernels\.0: got 0; it should be greater than or equal to 1.*",
        ),
        ("transformer", {"width": 9, "heads": 2}, r"c\.toml: student\.knobs: width should be even .+ got 9 and 2"),
    ],
)
def test_a_wrong_family_or_shape_is_one_line(family: str, shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}$"):
        make(card(), Student(family=family), shape, "student.knobs")


def test_a_family_for_text_does_not_suit_images() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.family: 'lstm' is not for image-classification; .*Known: .+"):
        make(load_card("digits"), Teacher(family="lstm"), {}, "teacher.shape")
