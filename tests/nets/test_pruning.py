"""Pruning: what is removed, what stays the same, and that the result needs no library."""

import sys

import pytest
import torch
from torch import nn

from edgekd.card import Student
from edgekd.errors import ModelError, UnavailableError
from edgekd.nets.deployed import Deployed, count_macs, noise_inputs
from edgekd.nets.families import make
from edgekd.nets.pruning import narrowed, prunable, pruned, require_pruning, widths_of
from edgekd.recipe import Importance
from edgekd.tasks.known import load_card

CARD = load_card("digits")
pytest.importorskip("torch_pruning")


def net_of(family: str, shape: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    return make(CARD, Student(family=family), shape, "student.knobs").eval()


def images() -> torch.Tensor:
    found: torch.Tensor = Deployed(nn.Identity(), CARD.data).preprocess(noise_inputs(CARD.data, 8))
    return found


def test_shortcuts_as_convolutions_give_identical_outputs() -> None:
    net = net_of("cifar-resnet", {"depth": 14, "width": 8})
    rewritten = prunable(net)
    with torch.no_grad():
        assert torch.equal(rewritten(images()), net(images()))
    shortcuts = {name: sizes for name, sizes in widths_of(rewritten).items() if name.endswith("shortcut")}
    assert shortcuts == {"layer2.0.shortcut": [8, 16, 1], "layer3.0.shortcut": [16, 32, 1]}
    assert not any(name.endswith("shortcut") for name in widths_of(net))


@pytest.mark.parametrize("family", ["convnet", "cifar-resnet", "mlp"])
@pytest.mark.parametrize("importance", ["magnitude", "bn-scale", "taylor"])
def test_layers_have_the_asked_sizes(family: str, importance: Importance) -> None:
    shape: dict[str, dict[str, object]] = {
        "cifar-resnet": {"depth": 8, "width": 16},
        "mlp": {"hidden": [32]},
        "convnet": {"channels": [16, 32]},
    }
    net = prunable(net_of(family, shape[family]))

    def loss(copy: nn.Module) -> torch.Tensor:
        return torch.as_tensor(copy(images()).logsumexp(1).sum())

    given = loss if importance == "taylor" else None
    smaller = pruned(net, CARD.data, widths_of(net), 0.4, importance=importance, multiple=8, loss=given)
    before, after = widths_of(net), widths_of(smaller)
    last = list(before)[-1]
    for name, sizes in before.items():
        # 0.6 of the outputs, rounded to eights: 16 → 8 (9.6), 32 → 16 (19.2), 64 → 40 (38.4), 128 → 80 (76.8).
        wanted = {10: 10} if name == last else {16: 8, 32: 16, 64: 40, 128: 80}
        place = 1 if len(sizes) > 1 else 0
        assert after[name][place] == wanted[sizes[place]]
    assert count_macs(smaller, CARD.data) < 0.6 * count_macs(net, CARD.data)
    assert smaller(images()).shape == (8, 10)


def test_channels_that_do_nothing_are_removed_and_the_outputs_stay() -> None:
    net = net_of("convnet", {"channels": [16, 16], "hidden": 16})
    dead = torch.tensor([0, 3, 5, 6, 9, 10, 12, 15])
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.shape[0] == 16:
            module.weight.data[dead] = 0.0
        if isinstance(module, nn.Linear) and module.bias.shape[0] == 16:
            module.bias.data[dead] = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[dead] = 0.0
            module.bias.data[dead] = 0.0
    smaller = pruned(net, CARD.data, widths_of(net), 0.5)
    assert {tuple(sizes) for sizes in widths_of(smaller).values()} == {(1, 8, 1), (8,), (8, 8, 1), (8, 8), (8, 10)}
    with torch.no_grad():
        torch.testing.assert_close(smaller(images()), net(images()))


def test_the_result_is_built_again_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    net = prunable(net_of("cifar-resnet", {"depth": 8, "width": 16}))
    smaller = pruned(net, CARD.data, widths_of(net), 0.5)
    widths, state = widths_of(smaller), smaller.state_dict()
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UnavailableError, match=r'pip install "edgekd\[prune\]"'):
        require_pruning()
    again = narrowed(net, widths)
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again(images()), smaller(images()))


def test_nothing_is_removed_below_one_multiple() -> None:
    net = net_of("convnet", {"channels": [8, 8], "hidden": 8})
    assert widths_of(pruned(net, CARD.data, widths_of(net), 0.9)) == widths_of(net)


def test_sizes_of_another_network_are_refused() -> None:
    net = net_of("convnet", {"channels": [8, 8], "hidden": 8})
    with pytest.raises(ModelError, match="are of another network"):
        narrowed(net, {"nothing": [1, 2]})
