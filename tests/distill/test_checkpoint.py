"""What is kept after each epoch: the moving average by hand, the best weights, and what a checkpoint refuses."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.card import Recipe, Training
from edgekd.distill.checkpoint import Progress, begin, keep
from edgekd.distill.distributed import World
from edgekd.distill.optimise import make_optimizer
from edgekd.distill.terms.temperature import LearnedTemperature
from edgekd.errors import ConfigError, InputError
from edgekd.recipe import Prune, Qat

TRAINING = Training(epochs=4, learning_rate=0.05)


class Whole(nn.Module):
    """A network, and something learned beside it, as a training holds them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
        self.learned = nn.Linear(2, 2)

    def move(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """One step of a training."""
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        self.learned(self.net(inputs)).square().mean().backward()
        optimizer.step()


def entry(epoch: int, accuracy: float = 0.5) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1.0, "validation_accuracy": accuracy}


def begun(whole: Whole, folder: Path, training: Training = TRAINING) -> tuple[Progress, torch.optim.Optimizer]:
    optimizer = make_optimizer(whole, training)
    return begin(whole, optimizer, "student", folder / "checkpoint.pt", training), optimizer


def one_epoch(folder: Path, training: Training = TRAINING, whole: Whole | None = None) -> Progress:
    whole = whole or Whole()
    progress, optimizer = begun(whole, folder, training)
    for step in range(3):
        whole.move(optimizer, step)
        progress.average(whole.net)
    progress.add(entry(1), whole.net, training.patience)
    keep(progress, whole, optimizer, folder / "checkpoint.pt", training)
    return progress


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


# --- the moving average ---


def test_the_moving_average_by_hand(tmp_path: Path) -> None:
    training = dataclasses.replace(TRAINING, ema=0.75)
    whole = Whole()
    progress, optimizer = begun(whole, tmp_path, training)
    expected: dict[str, Tensor] = {}
    for step in range(29):
        whole.move(optimizer, step % 3)
        progress.average(whole.net)
        now = tensors(whole.net)
        # The first step's weights as they are. Then a share d of what there is and 1 - d of each step's, where d rises
        # to 3/4, which it has after 26 steps: 27 / 36. Running means too.
        d = min(0.75, (1 + step) / (10 + step))
        expected = {n: d * expected[n] + (1 - d) * now[n] for n in now} if expected else now
    assert d == 0.75
    kept = progress.kept(whole.net, World())
    assert kept is not whole.net
    for name, tensor in kept.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name], msg=name)
    assert not torch.equal(kept.state_dict()["0.weight"], whole.net.state_dict()["0.weight"])
    progress.finish(whole.net)
    assert same(tensors(whole.net), tensors(kept))


def test_without_an_average_the_network_itself_is_kept(tmp_path: Path) -> None:
    whole = Whole()
    progress, _ = begun(whole, tmp_path)
    progress.average(whole.net)
    assert progress.kept(whole.net, World()) is whole.net
    before = tensors(whole.net)
    progress.finish(whole.net)
    assert same(tensors(whole.net), before)


# --- the best weights ---


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_patience_keeps_the_best_and_ends(tmp_path: Path, ema: float) -> None:
    training = dataclasses.replace(TRAINING, patience=2, ema=ema, epochs=9)
    whole = Whole()
    progress, optimizer = begun(whole, tmp_path, training)
    states, ended = [], []
    # Equal is not better; so the third epoch is the best, and the fifth is the second after it.
    for epoch, accuracy in enumerate((0.3, 0.2, 0.6, 0.6, 0.5), 1):
        whole.move(optimizer, epoch)
        progress.average(whole.net)
        states.append(tensors(progress.kept(whole.net, World())))
        progress.add(entry(epoch, accuracy), whole.net, training.patience)
        ended.append(progress.finished)
    assert ended == [False, False, False, False, True]
    progress.finish(whole.net)
    assert same(tensors(whole.net), states[2])
    assert not same(states[2], states[4])


def test_without_patience_the_last_is_kept(tmp_path: Path) -> None:
    whole = Whole()
    progress, optimizer = begun(whole, tmp_path)
    for epoch in range(1, 9):
        whole.move(optimizer, epoch)
        progress.add(entry(epoch, 0.9 / epoch), whole.net, 0)
    last = tensors(whole.net)
    progress.finish(whole.net)
    assert not progress.finished
    assert same(tensors(whole.net), last)


# --- the file ---


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_it_goes_on_where_it_was(tmp_path: Path, optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    training = Training(epochs=4, optimizer=optimizer, learning_rate=0.05, ema=0.5, patience=3)  # type: ignore[arg-type]
    first = Whole()
    before = one_epoch(tmp_path, training, first)
    assert capsys.readouterr().err == ""
    second = Whole(seed=9)
    progress, again = begun(second, tmp_path, training)
    assert capsys.readouterr().err == "student: resumed after epoch 1 of 4\n"
    assert same(tensors(first), tensors(second))
    assert progress.history == before.history
    assert (progress.since, progress.finished) == (0, False)
    assert progress.best is not None and before.best is not None
    assert same(progress.best, before.best)
    assert progress.averaged is not None and before.averaged is not None
    assert same(tensors(progress.averaged), tensors(before.averaged))
    # The optimiser's memory as well: the next step of both is the same, which a new optimiser's is not.
    third = Whole()
    third.load_state_dict(first.state_dict())
    first_optimizer = make_optimizer(first, training)
    first_optimizer.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"])
    for whole, one in ((first, first_optimizer), (second, again), (third, make_optimizer(third, training))):
        whole.move(one, 7)
    assert same(tensors(first), tensors(second))
    assert not same(tensors(first), tensors(third))


def test_a_checkpoint_from_before_muon_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(epochs=4, learning_rate=0.05, qat=Qat(epochs=1), prune=Prune(epochs=1))
    one_epoch(tmp_path, recipe)
    file = tmp_path / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    conditions = state["conditions"]
    assert not any("matrix" in str(one) for one in conditions.items())  # what earlier versions did not write
    begun(Whole(), tmp_path, recipe)
    assert capsys.readouterr().err == "student: resumed after epoch 1 of 4\n"
    conditions["recipe.qat"]["epochs"] = 2
    torch.save(state, file)
    with pytest.raises(ConfigError, match=r"was written with recipe\.qat = .*'epochs': 2"):
        begun(Whole(), tmp_path, recipe)


def test_the_history_lies_beside_it(tmp_path: Path) -> None:
    one_epoch(tmp_path)
    assert json.loads((tmp_path / "history.json").read_text()) == {"schema_version": 1, "epochs": [entry(1)]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "history.json"]


@pytest.fixture
def another_thread_count() -> Iterator[Callable[[], None]]:
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(before + 1)
    torch.set_num_threads(before)


def test_another_thread_count_is_refused(tmp_path: Path, another_thread_count: Callable[[], None]) -> None:
    one_epoch(tmp_path)
    threads = torch.get_num_threads()
    another_thread_count()
    with pytest.raises(ConfigError) as caught:
        begun(Whole(), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'checkpoint.pt'}: was written with threads = {threads}, now it is {threads + 1}; "
        f"resume as it began, or remove {tmp_path} to train again"
    )


@pytest.mark.parametrize(("key", "value"), [("torch", "1.0"), ("cpu", "an abacus"), ("device", "tpu"), ("bf16", True)])
def test_another_machine_is_refused(tmp_path: Path, key: str, value: object) -> None:
    one_epoch(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["conditions"][key] = value
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match=rf"checkpoint\.pt: was written with {key} = {value!r}, now it is "):
        begun(Whole(), tmp_path)


@pytest.mark.parametrize(
    "other", [{"learning_rate": 0.01}, {"ema": 0.9}, {"patience": 3}, {"schedule": "constant"}, {"clip_norm": 1.0}]
)
def test_another_recipe_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    one_epoch(tmp_path)
    (key, value), *_ = other.items()
    before = getattr(TRAINING, key)
    with pytest.raises(ConfigError, match=rf"was written with recipe\.{key} = {before!r}, now it is {value!r};") as e:
        begun(Whole(), tmp_path, dataclasses.replace(TRAINING, **other))
    assert "\n" not in str(e.value)


def test_another_number_of_processes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_epoch(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["conditions"]["processes"] = 4
    torch.save(state, tmp_path / "checkpoint.pt")
    progress, _ = begun(Whole(), tmp_path)
    assert len(progress.history) == 1
    assert "student: begun with 4 processes, goes on with 1; not the same bit for bit\n" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "text", "foreign"])
def test_a_broken_one_is_refused(tmp_path: Path, damage: str) -> None:
    one_epoch(tmp_path)
    path = tmp_path / "checkpoint.pt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "text":
        path.write_bytes(b"half a file")
    else:
        torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(InputError) as caught:
        begun(Whole(), tmp_path)
    assert str(caught.value) == f"{path}: not a readable checkpoint; remove it to train again"


# --- stages, and what must not change on the way ---


def test_patience_counts_from_the_last_stage_on(tmp_path: Path) -> None:
    training = dataclasses.replace(TRAINING, patience=2, epochs=9)
    whole = Whole()
    progress, optimizer = begun(whole, tmp_path, training)
    states, ended = [], []
    for epoch, accuracy in enumerate((0.9, 0.1, 0.1, 0.1, 0.3, 0.2, 0.2), 1):
        whole.move(optimizer, epoch)
        states.append(tensors(whole.net))
        progress.add(entry(epoch, accuracy) | {"last_stage": epoch > 4}, whole.net, training.patience)
        ended.append(progress.finished)
    assert ended == [False] * 6 + [True]
    progress.finish(whole.net)
    assert same(tensors(whole.net), states[4])


@pytest.mark.parametrize("about", [{"views": 8}, {"training data": "0123"}])
def test_other_data_or_views_are_refused(tmp_path: Path, about: dict[str, Any]) -> None:
    whole = Whole()
    checkpoint = tmp_path / "checkpoint.pt"
    optimizer = make_optimizer(whole, TRAINING)
    progress = begin(whole, optimizer, "student", checkpoint, TRAINING, {"views": 4, "training data": "4567"})
    keep(progress, whole, optimizer, checkpoint, TRAINING, {"views": 4, "training data": "4567"})
    (key,) = about
    with pytest.raises(ConfigError, match=f"was written with {key} = .*; resume as it began, or remove"):
        begin(whole, optimizer, "student", checkpoint, TRAINING, {"views": 4, "training data": "4567"} | about)


def test_another_network_is_refused(tmp_path: Path) -> None:
    one_epoch(tmp_path)
    other = Whole()
    other.net[0] = nn.Linear(3, 5)
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: is of another network; resume as it began, or remove"):
        begun(other, tmp_path)


def test_a_learned_temperature_does_not_decay() -> None:
    learned = LearnedTemperature(Recipe(epochs=1, temperature_schedule="learned"))
    whole = nn.ModuleDict({"net": nn.Linear(2, 2), "learned": nn.ModuleDict({"temperature": learned})})
    groups = make_optimizer(whole, TRAINING).param_groups
    assert [group["weight_decay"] for group in groups] == [TRAINING.weight_decay, 0]
    assert [[id(value) for value in group["params"]] for group in groups] == [
        [id(value) for value in whole["net"].parameters()],
        [id(learned.theta)],
    ]
