"""What layers give: by their names, whole or reduced, and where a name is wrong."""

import numpy as np
import pytest
import torch
from torch import Size, Tensor, nn

from edgekd.distill.terms.layers import Taps, core, outputs_of, probe, reduced
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed
from edgekd.tasks.known import load_card


class Net(nn.Module):
    """Maps, a recurrent layer that gives two things, and a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=False))
        self.rows = nn.LSTM(32, 5, batch_first=True)
        self.head = nn.Linear(5, 10)
        self.unused = nn.Linear(5, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)
        tokens, _ = self.rows(maps.permute(0, 2, 1, 3).flatten(2))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


IMAGES = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32))


def test_values_are_those_of_each_forward_pass(net: Net) -> None:
    taps = Taps(net, ["features.0", "features.2", "head"], "card")
    for images in (IMAGES, IMAGES + 1):
        logits = net(images)
        maps = net.features[0](images)
        assert torch.equal(taps.values["features.0"], maps)
        assert torch.equal(taps.values["features.2"], net.features[2](net.features[1](maps)))
        assert torch.equal(taps.values["head"], logits)
    assert taps.values["features.0"].requires_grad


def test_removed_they_see_nothing(net: Net) -> None:
    taps = Taps(net, ["head"], "card")
    taps.remove()
    net(IMAGES)
    assert taps.values == {}


def test_reduced_outputs(net: Net) -> None:
    names = ["features.2", "features.2|attention", "features.2|pooled"]
    taps = Taps(net, names, "card")
    net(IMAGES)
    whole, attention, pooled = (taps.values[name].detach().numpy() for name in names)
    np.testing.assert_allclose(attention, np.einsum("bchw->bhw", whole**2) / 4, rtol=1e-5)
    np.testing.assert_allclose(pooled, np.einsum("bchw->bc", whole) / 64, rtol=1e-5, atol=1e-7)
    tokens = torch.randn(2, 7, 3)
    assert torch.equal(reduced("rows", tokens), tokens)
    assert torch.allclose(reduced("rows|pooled", tokens), tokens.mean(dim=1))


@pytest.mark.parametrize("name", ["feature.2", "feature.2|attention"])
def test_an_unknown_layer(net: Net, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Taps(net, ["head", name], "card.toml: recipe.features: student")
    text = str(caught.value)
    assert text.startswith("card.toml: recipe.features: student: unknown layer 'feature.2'; did you mean")
    assert "'features.2'" in text
    assert "\n" not in text


def test_a_layer_that_gives_no_tensor(net: Net) -> None:
    with pytest.raises(ConfigError, match=r"^card: layer 'rows' gives a tuple; name one that gives a tensor$"):
        probe(net, IMAGES, ["rows"], "card")


def test_a_layer_that_does_not_suit_what_is_kept_of_it(net: Net) -> None:
    with pytest.raises(ConfigError, match=r"^card: layer 'head': attention: features \(3, 10\) should be maps"):
        probe(net, IMAGES, ["head|attention"], "card")


def test_a_layer_without_part_in_the_forward_pass(net: Net) -> None:
    with pytest.raises(ConfigError, match=r"^card: layer 'unused' takes no part in the forward pass; name another$"):
        probe(net, IMAGES, ["head", "unused"], "card")


def test_a_network_that_cannot_take_the_data(net: Net) -> None:
    with pytest.raises(ConfigError, match=r"^card: the network cannot take the card's data: .*(input|size|shape)"):
        probe(net, IMAGES[..., :4], ["head"], "card")
    with pytest.raises(ConfigError, match=r"^card: the network cannot take the card's data: "):
        outputs_of(net, IMAGES[..., :4], "card")
    assert not net.head._forward_hooks


def test_a_network_that_gives_no_logits() -> None:
    with pytest.raises(ConfigError, match=r"^card: the network gives a tuple; it should give its logits$"):
        probe(nn.LSTM(8, 2), IMAGES[:, 0], [], "card")


@pytest.mark.parametrize("training", [False, True])
def test_probing_leaves_the_network_as_it_was(net: Net, training: bool) -> None:
    net.train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = probe(net, IMAGES, ["features.1", "features.1|attention", "features.1|pooled"], "card")
    assert found == {
        "logits": Size((10,)),
        "features.1": Size((4, 8, 8)),
        "features.1|attention": Size((8, 8)),
        "features.1|pooled": Size((4,)),
    }
    assert net.training == training and net.features.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.features[1]._forward_hooks
    with pytest.raises(ConfigError):
        probe(net, IMAGES, ["features.1", "rows"], "card")
    assert not net.features[1]._forward_hooks


def test_names_are_those_inside_the_preprocessing(net: Net) -> None:
    whole = Deployed(net, load_card("digits").data)
    assert core(whole) is net
    assert core(net) is net
    found = probe(whole, torch.zeros(2, 8, 8, 1, dtype=torch.uint8), ["features.0"], "card")
    assert found == {"logits": Size((10,)), "features.0": Size((4, 8, 8))}
