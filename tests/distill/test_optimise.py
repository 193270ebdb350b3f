"""Learning rates by hand and against torch's own schedule; the optimisers; the arithmetic."""

import dataclasses
import math
from typing import Any, Literal

import pytest
import torch
from torch import nn

from edgekd.card import Training
from edgekd.distill.muon import orthogonalised
from edgekd.distill.optimise import autocast, computes_bf16, has_matrices, learning_rate, make_optimizer, set_rate


def rates(training: Training, steps_per_epoch: int) -> list[float]:
    steps = range(training.epochs * steps_per_epoch)
    return [learning_rate(training, step, steps_per_epoch, training.epochs) for step in steps]


def test_a_cosine_by_hand() -> None:
    training = Training(epochs=5, learning_rate=0.8, warmup_epochs=1.0)
    found = rates(training, 4)
    # Four steps of warm-up: a fifth, two fifths, … of the top; then sixteen steps of half a cosine.
    assert found[:4] == pytest.approx([0.16, 0.32, 0.48, 0.64])
    assert found[4] == pytest.approx(0.8)
    assert found[8] == pytest.approx(0.8 * (1 + math.sqrt(0.5)) / 2)
    assert found[12] == pytest.approx(0.4)
    assert found[16] == pytest.approx(0.8 * (1 - math.sqrt(0.5)) / 2)
    assert 0 < found[19] < 0.01
    assert learning_rate(training, 20, 4, 5) == pytest.approx(0, abs=1e-12)


def test_a_cosine_without_warm_up_and_with_a_part_of_an_epoch() -> None:
    without = Training(epochs=2, learning_rate=1.0, warmup_epochs=0.0)
    assert rates(without, 2) == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)])
    half = Training(epochs=2, learning_rate=1.0, warmup_epochs=0.5)
    assert rates(half, 4)[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_a_part_has_the_rates_of_a_training_as_long() -> None:
    training = Training(epochs=50, learning_rate=1.0, warmup_epochs=1.0)
    part = [learning_rate(training, step, 4, 3) for step in range(12)]
    assert part == rates(dataclasses.replace(training, epochs=3), 4)


def test_a_straight_line_after_the_warm_up() -> None:
    training = Training(epochs=3, learning_rate=0.6, schedule="linear", warmup_epochs=1)
    rates = [learning_rate(training, step, 4, 3) for step in range(12)]
    assert rates[:4] == pytest.approx([0.12, 0.24, 0.36, 0.48])
    assert rates[4:] == pytest.approx([0.6, 0.525, 0.45, 0.375, 0.3, 0.225, 0.15, 0.075])


def test_a_constant_rate_after_the_warm_up() -> None:
    training = Training(epochs=3, learning_rate=0.6, schedule="constant", warmup_epochs=0.5)
    assert rates(training, 4) == pytest.approx([0.2, 0.4] + [0.6] * 10)
    assert rates(dataclasses.replace(training, warmup_epochs=0.0), 4) == [0.6] * 12


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (5, 3), (7, 11), (10, 100)])
def test_one_cycle_is_torchs(epochs: int, steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.7, epochs * steps, cycle_momentum=False)
    expected = []
    for _ in range(epochs * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < epochs * steps:
            schedule.step()
    training = Training(epochs=epochs, learning_rate=0.7, schedule="one-cycle", warmup_epochs=3.0)
    assert rates(training, steps) == pytest.approx(expected, rel=1e-9)


def test_the_optimisers() -> None:
    net = nn.Linear(2, 2)
    sgd = make_optimizer(net, Training(epochs=1, learning_rate=0.3, momentum=0.8, weight_decay=0.01))
    assert isinstance(sgd, torch.optim.SGD)
    (group,) = sgd.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.3, 0.8, True, 0.01)
    (group,) = make_optimizer(net, Training(epochs=1, momentum=0.0)).param_groups  # Nesterov's needs a momentum
    assert (group["momentum"], group["nesterov"]) == (0.0, False)
    adamw = make_optimizer(net, Training(epochs=1, optimizer="adamw", learning_rate=0.3, weight_decay=0.01))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.3, 0.01)
    assert {id(p) for p in adamw.param_groups[0]["params"]} == {id(p) for p in net.parameters()}


# --- Muon ---


def convolutional() -> nn.Sequential:
    torch.manual_seed(3)
    first, deep, grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, bias=False), nn.Conv2d(4, 4, 3, groups=4)
    return nn.Sequential(first, deep, nn.BatchNorm2d(4), grouped, nn.Flatten(), nn.Linear(16, 24), nn.Linear(24, 3))


def muon(**values: Any) -> Training:
    return Training(epochs=1, optimizer="muon", learning_rate=0.2, momentum=0.8, weight_decay=0.01, **values)


def test_muon_updates_matrices_as_torchs_does_and_all_others_as_sgd_does() -> None:
    """torch's takes matrices only and computes in bf16, which is why the steps agree within 2 % of their size."""
    net, expected = convolutional(), convolutional()
    chosen = ["1.weight", "5.weight"]
    flat = {name: nn.Parameter(expected.get_parameter(name).detach().flatten(1).clone()) for name in chosen}
    reference = [
        torch.optim.Muon(flat.values(), lr=0.06, weight_decay=0.5, momentum=0.8),
        torch.optim.SGD(
            [value for name, value in expected.named_parameters() if name not in chosen],
            lr=0.1,
            momentum=0.8,
            weight_decay=0.01,
            nesterov=True,
        ),
    ]
    optimizer = make_optimizer(net, muon(matrix_learning_rate=0.12, matrix_weight_decay=0.5))
    before = {name: net.get_parameter(name).detach().clone() for name in chosen}
    for seed in range(3):
        torch.manual_seed(seed)
        gradients = {name: torch.randn_like(value) for name, value in net.named_parameters()}
        for name, value in gradients.items():
            net.get_parameter(name).grad = value.clone()
            expected.get_parameter(name).grad = value.clone()
        for name, matrix in flat.items():
            matrix.grad = gradients[name].flatten(1)
        set_rate(optimizer, 0.1)
        for one in (optimizer, *reference):
            one.step()
    for name, parameter in net.named_parameters():
        value = parameter.detach()
        if name in chosen:
            moved, other = value - before[name], flat[name].detach().view(value.shape) - before[name]
            assert float((moved - other).norm()) < 0.02 * float(other.norm()) and float(other.norm()) > 0.1
        else:
            torch.testing.assert_close(value, expected.get_parameter(name).detach())


def test_a_closure_comes_before_the_step() -> None:
    torch.manual_seed(1)
    images, states = torch.randn(2, 3, 8, 8), []
    for by_closure in (False, True):
        net = convolutional()
        optimizer = make_optimizer(net, muon())

        def loss(net: nn.Module = net) -> float:
            value = net(images).square().sum()
            value.backward()
            return float(value.detach())

        if by_closure:
            assert optimizer.step(loss) > 0
        else:
            loss()
            assert optimizer.step() is None
        states.append(net.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["1.weight"], convolutional().state_dict()["1.weight"])


def test_muon_has_the_matrices_of_the_network_and_of_its_peers_alone() -> None:
    whole = nn.Module()
    whole.net = nn.Sequential()
    whole.net.net = convolutional()
    regressor = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    whole.learned = nn.ModuleDict({"peers": nn.ModuleList([convolutional()]), "hint": regressor})
    optimizer = make_optimizer(whole, muon(), {"net.net.5.weight"})
    chosen = [one for one in optimizer.param_groups if "matrix_weight_decay" in one]
    found = {id(value) for group in chosen for value in group["params"]}
    names = {name for name, value in whole.named_parameters() if id(value) in found}
    inner = ("net.net.", "learned.peers.0.")
    assert names == {f"{path}{layer}.weight" for path in inner for layer in (1, 5)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(whole.parameters()))
    assert has_matrices(optimizer)
    assert not has_matrices(make_optimizer(nn.Linear(2, 2), muon()))


def test_an_update_has_equal_singular_values() -> None:
    torch.manual_seed(0)
    for shape in ((8, 72), (24, 16), (16, 16)):
        matrix = torch.randn(shape) * 1e-3
        found = orthogonalised(matrix)
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        inner = left.T @ found.double() @ right.T
        spread = torch.diag(inner)[values > 0.2 * values.max()]
        assert 0.6 < float(spread.min()) and float(spread.max()) < 1.3
        # The directions are those of the matrix.
        assert float((inner - torch.diag(torch.diag(inner))).abs().max()) < 1e-5
    assert not orthogonalised(torch.zeros(4, 9)).any()


def test_loaded_matrices_learn_at_a_share_of_their_rate() -> None:
    net = convolutional()
    optimizer = make_optimizer(net, muon(loaded_learning_rate_factor=0.5), {"1.weight", "0.weight"})
    set_rate(optimizer, 0.1)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    found = {name: rates[id(value)] for name, value in net.named_parameters()}
    assert found == pytest.approx(
        dict.fromkeys(found, 0.1) | {"0.weight": 0.05, "1.weight": 0.0125, "5.weight": 0.025}, rel=1e-6
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_arithmetic(precision: Literal["fp32", "bf16", "auto"]) -> None:
    with autocast(precision):
        dtype = nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype
    assert dtype == (torch.bfloat16 if computes_bf16(precision) else torch.float32)
    if precision != "auto":
        assert computes_bf16(precision) == (precision == "bf16")


def test_loaded_parameters_learn_at_a_share_of_the_rate() -> None:
    """Two steps of SGD by hand: w ← w − rate · share · gradient."""
    layers = [nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    net = nn.Sequential(*layers)
    training = Training(epochs=1, learning_rate=0.5, momentum=0.0, weight_decay=0.0, loaded_learning_rate_factor=0.25)
    optimizer = make_optimizer(net, training, {"0.weight"})
    values = [1.0, 1.0]
    for rate in (0.5, 0.1):
        optimizer.zero_grad()
        net(torch.ones(1, 1)).sum().backward()
        set_rate(optimizer, rate)
        optimizer.step()
        values = [values[0] - rate * 0.25 * values[1], values[1] - rate * values[0]]
        assert [float(layer.weight.detach()) for layer in layers] == pytest.approx(values)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.025])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_groups_without_loaded_parameters_and_with_nothing_else(optimizer: Literal["sgd", "adamw", "muon"]) -> None:
    net = nn.Linear(2, 2)
    training = Training(epochs=1, optimizer=optimizer, learning_rate=0.5)
    (alone,) = make_optimizer(net, training).param_groups
    assert len(alone["params"]) == 2 and alone["factor"] == 1.0
    whole = make_optimizer(net, training, {"weight", "bias"})
    set_rate(whole, 0.5)
    (group,) = whole.param_groups
    assert len(group["params"]) == 2 and group["lr"] == pytest.approx(0.05)


def test_the_share_of_a_group_survives_a_checkpoint() -> None:
    net = nn.Linear(2, 2)
    before = make_optimizer(net, Training(epochs=1, loaded_learning_rate_factor=0.5), {"bias"}).state_dict()
    after = make_optimizer(net, Training(epochs=1), {"bias"})
    after.load_state_dict(before)
    set_rate(after, 1.0)
    assert [group["lr"] for group in after.param_groups] == [1.0, 0.5]
