"""The training loop: its arithmetic against plain torch, resuming bit for bit, and how it stops."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.card import Augment, Recipe, Student, Training, load_card
from edgekd.data.images import Split
from edgekd.data.sources import load_train_and_validation
from edgekd.data.views import permutation, view
from edgekd.distill.loop import Job, accuracy, batches, learning_rate, train
from edgekd.distill.losses import Loss, cross_entropy, distillation
from edgekd.errors import BudgetError, ConfigError, InputError
from edgekd.nets.deployed import Preprocess
from edgekd.nets.families import make

CARD = load_card("digits")


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    train_split, validation = load_train_and_validation(CARD, None)
    return train_split.subset(np.arange(200)), validation.subset(np.arange(60))


def soft_targets(k: int) -> NDArray[np.float32]:
    return np.random.default_rng(k).standard_normal((200, 10)).astype(np.float32) * 3


def make_job(digits: tuple[Split, Split], folder: Path, training: Training, **values: Any) -> Job:
    given: dict[str, Any] = {
        "name": "student",
        "data": CARD.data,
        "augment": Augment(crop_padding=1, flip=True),
        "train": digits[0],
        "validation": digits[1],
        "training": training,
        "loss": cross_entropy(training),
        "teacher_logits": None,
        "views": 2,
        "checkpoint": folder / "checkpoint.pt",
    }
    return Job(**given | values)


def small_net(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "dropout":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))
    return make(CARD, Student(family="convnet"), {"channels": [8], "hidden": 16, "grid": 4}, "student.knobs")


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


# --- pieces ---


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(10, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (4, 4, [4]), (9, 8, [8])]
)
def test_batches_leave_out_a_smaller_rest(count: int, size: int, lengths: list[int]) -> None:
    order = np.arange(count)[::-1]
    pieces = list(batches(count, size, order))
    assert [len(piece) for piece in pieces] == lengths
    assert np.concatenate(pieces).tolist() == order[: sum(lengths)].tolist()


def test_the_learning_rate_by_hand() -> None:
    training = Training(epochs=5, learning_rate=0.8, warmup_epochs=1.0)
    rates = [learning_rate(training, step, 4) for step in range(20)]
    # Four steps of warm-up: a fifth, two fifths, … of the top; then sixteen steps of half a cosine.
    assert rates[:4] == pytest.approx([0.16, 0.32, 0.48, 0.64])
    assert rates[4] == pytest.approx(0.8)
    assert rates[8] == pytest.approx(0.8 * (1 + math.sqrt(0.5)) / 2)
    assert rates[12] == pytest.approx(0.4)
    assert rates[16] == pytest.approx(0.8 * (1 - math.sqrt(0.5)) / 2)
    assert 0 < rates[19] < 0.01
    assert learning_rate(training, 20, 4) == pytest.approx(0, abs=1e-12)


def test_the_learning_rate_without_warm_up_and_with_a_part_of_an_epoch() -> None:
    without = Training(epochs=2, learning_rate=1.0, warmup_epochs=0.0)
    assert [learning_rate(without, step, 2) for step in range(4)] == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    )
    half = Training(epochs=2, learning_rate=1.0, warmup_epochs=0.5)
    assert [learning_rate(half, step, 4) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_accuracy_counts_the_validation_images(digits: tuple[Split, Split]) -> None:
    net = small_net("convnet").eval()
    images = digits[1].read(np.arange(60)).astype(np.float32).transpose(0, 3, 1, 2)
    normal = (images / 255 - CARD.data.mean[0]) / CARD.data.std[0]
    with torch.no_grad():
        expected = (net(torch.from_numpy(normal)).argmax(1).numpy() == digits[1].labels).mean()
    assert accuracy(nn.Sequential(Preprocess(CARD.data), net.train()), digits[1], "fp32") == pytest.approx(expected)
    assert not net.training


# --- the loop ---


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_is_what_plain_torch_does(
    digits: tuple[Split, Split], tmp_path: Path, optimizer: Literal["sgd", "adamw"]
) -> None:
    training = Training(
        epochs=2,
        batch_size=64,
        optimizer=optimizer,
        learning_rate=0.05,
        momentum=0.8,
        weight_decay=0.01,
        seed=4,
    )
    augment = Augment(crop_padding=1)
    net, expected = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    expected.load_state_dict(net.state_dict())
    history = train(net, make_job(digits, tmp_path, training, augment=augment, views=2))

    images, labels = torch.from_numpy(digits[0].read(np.arange(200))), torch.from_numpy(digits[0].labels)
    reference: torch.optim.Optimizer
    if optimizer == "sgd":
        reference = torch.optim.SGD(expected.parameters(), lr=1, momentum=0.8, nesterov=True, weight_decay=0.01)
    else:
        reference = torch.optim.AdamW(expected.parameters(), lr=1, weight_decay=0.01)
    # Three whole batches of 64 in 200 images; one epoch of warm-up, then half a cosine over three steps.
    rates = [0.05 * n / 4 for n in (1, 2, 3)] + [0.05 * (1 + math.cos(math.pi * n / 3)) / 2 for n in range(3)]
    losses: list[float] = []
    for step in range(6):
        epoch, place = divmod(step, 3)
        chosen = permutation(4, epoch, 200)[64 * place : 64 * place + 64]
        seen = view(images[chosen], chosen, epoch, 4, augment).permute(0, 3, 1, 2) / 255
        loss = nn.functional.cross_entropy(expected((seen - CARD.data.mean[0]) / CARD.data.std[0]), labels[chosen])
        for group in reference.param_groups:
            group["lr"] = rates[step]
        reference.zero_grad()
        loss.backward()
        reference.step()
        losses.append(loss.item())
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(net.state_dict()[name], tensor, atol=1e-5), name
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert [entry["loss"] for entry in history] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-4)


def test_training_learns_and_is_deterministic(digits: tuple[Split, Split], tmp_path: Path) -> None:
    training = Training(epochs=6, batch_size=20, learning_rate=0.05, seed=1)
    nets = [small_net("convnet") for _ in range(3)]
    histories = []
    for number, net in enumerate(nets):
        seeded = dataclasses.replace(training, seed=1 + number // 2)
        job = make_job(digits, tmp_path / str(number), seeded, augment=Augment(crop_padding=1))
        histories.append(train(net, job))
        assert not net.training
    assert histories[0][-1]["validation_accuracy"] > 0.5
    assert histories[0][-1]["loss"] < 0.7 * histories[0][0]["loss"]
    assert differing(state(nets[0]), state(nets[1])) == []
    assert differing(state(nets[0]), state(nets[2])) != []
    plain = [[{k: v for k, v in e.items() if k != "seconds"} for e in history] for history in histories]
    assert plain[0] == plain[1]


def test_bf16_reaches_what_fp32_reaches(digits: tuple[Split, Split], tmp_path: Path) -> None:
    reached = {}
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    for precision in precisions:
        training = Training(epochs=6, batch_size=20, learning_rate=0.05, precision=precision)
        job = make_job(digits, tmp_path / precision, training, augment=Augment())
        net = small_net("convnet")
        reached[precision] = train(net, job)[-1]
        assert {tensor.dtype for tensor in net.parameters()} == {torch.float32}
    assert reached["bf16"]["loss"] != reached["fp32"]["loss"]
    assert reached["bf16"]["loss"] == pytest.approx(reached["fp32"]["loss"], rel=0.3)


def test_teacher_logits_and_views_go_together(digits: tuple[Split, Split], tmp_path: Path) -> None:
    asked: list[int] = []
    seen: list[tuple[Tensor, Tensor]] = []

    def logits(k: int) -> NDArray[np.float32]:
        asked.append(k)
        return soft_targets(k)

    def loss(student: Tensor, teacher: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        seen.append((teacher, labels))
        return {"size": student.square().mean(), "sum": student.sum() * 0}

    training = Recipe(epochs=5, batch_size=100)
    job = make_job(digits, tmp_path, training, loss=loss, teacher_logits=logits, views=3)
    history = train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), job)
    assert all(entry["terms"] == {"size": pytest.approx(entry["loss"]), "sum": 0} for entry in history)
    assert asked == [0, 1, 2, 0, 1]
    for step, (teacher, labels) in enumerate(seen):
        epoch, place = divmod(step, 2)
        chosen = permutation(0, epoch, 200)[100 * place : 100 * place + 100]
        assert torch.equal(teacher, torch.from_numpy(soft_targets(epoch % 3)[chosen]))
        assert labels.tolist() == digits[0].labels[chosen].tolist()
    assert len(seen) == 10


# --- stopping and resuming ---


def stops_after(calls: int, loss: Loss, how: Callable[[Tensor], Tensor]) -> Loss:
    """The loss, until the call that `how` answers instead."""
    made = iter(range(1, 1_000_000))

    def counted(student: Tensor, teacher: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        terms = loss(student, teacher, labels)
        return {name: how(term) for name, term in terms.items()} if next(made) > calls else terms

    return counted


def interrupt(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["convnet", "dropout"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_training_equals_an_undisturbed_one(
    digits: tuple[Split, Split], tmp_path: Path, kind: str, optimizer: Literal["sgd", "adamw"]
) -> None:
    recipe = Recipe(epochs=3, batch_size=64, optimizer=optimizer, learning_rate=0.01)
    loss = distillation(recipe)

    def job(folder: str, **values: Any) -> Job:
        return make_job(digits, tmp_path / folder, recipe, **{"loss": loss, "teacher_logits": soft_targets} | values)

    whole = small_net(kind)
    history = train(whole, job("whole"))
    with pytest.raises(KeyboardInterrupt):
        train(small_net(kind), job("stopped", loss=stops_after(4, loss, interrupt)))
    stored = json.loads((tmp_path / "stopped" / "history.json").read_text())
    assert [entry["epoch"] for entry in stored["epochs"]] == [1]

    resumed = small_net(kind, seed=99)  # its own beginning must not matter
    torch.manual_seed(1234)
    calls: list[int] = []

    def counting(student: Tensor, teacher: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        calls.append(len(labels))
        return loss(student, teacher, labels)

    again = train(resumed, job("stopped", loss=counting))
    assert len(calls) == 2 * 3
    assert differing(state(whole), state(resumed)) == []
    for key in ("epoch", "loss", "validation_accuracy"):
        assert [entry[key] for entry in again] == [entry[key] for entry in history]


def test_a_finished_training_is_not_repeated(digits: tuple[Split, Split], tmp_path: Path) -> None:
    training = Training(epochs=2, batch_size=64)
    net = small_net("convnet")
    history = train(net, make_job(digits, tmp_path, training))
    other = small_net("convnet", seed=5)
    assert (
        train(other, make_job(digits, tmp_path, training, loss=stops_after(0, cross_entropy(training), interrupt)))
        == history
    )
    assert differing(state(net), state(other)) == []


@pytest.fixture
def another_thread_count() -> Iterator[Callable[[], None]]:
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(before + 1)
    torch.set_num_threads(before)


def test_a_checkpoint_of_another_thread_count_is_refused(
    digits: tuple[Split, Split], tmp_path: Path, another_thread_count: Callable[[], None]
) -> None:
    training, threads = Training(epochs=2, batch_size=64), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(
            small_net("convnet"),
            make_job(digits, tmp_path, training, loss=stops_after(3, cross_entropy(training), interrupt)),
        )
    another_thread_count()
    with pytest.raises(ConfigError) as caught:
        train(small_net("convnet"), make_job(digits, tmp_path, training))
    text = str(caught.value)
    assert text == (
        f"{tmp_path / 'checkpoint.pt'}: was written with threads = {threads}, now it is {threads + 1}; "
        f"resume as it began, or remove {tmp_path} to train again"
    )


def test_a_checkpoint_of_another_recipe_or_a_broken_one_is_refused(digits: tuple[Split, Split], tmp_path: Path) -> None:
    train(small_net("convnet"), make_job(digits, tmp_path, Training(epochs=1, batch_size=64, learning_rate=0.05)))
    other = make_job(digits, tmp_path, Training(epochs=1, batch_size=64, learning_rate=0.01))
    with pytest.raises(ConfigError, match=r"was written with recipe = .*0\.05.*now it is .*0\.01"):
        train(small_net("convnet"), other)
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a readable checkpoint"):
        train(small_net("convnet"), other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_epoch_and_step(
    digits: tuple[Split, Split], tmp_path: Path, value: float
) -> None:
    training = Training(epochs=4, batch_size=64, learning_rate=0.05)
    loss = stops_after(4, cross_entropy(training), lambda good: good * value)
    with pytest.raises(BudgetError) as caught:
        train(small_net("convnet"), make_job(digits, tmp_path, training, loss=loss))
    assert str(caught.value) == (
        f"student: the loss term ce is {value} at epoch 2, step 2; "
        "lower the learning rate (now 0.05) or raise warmup_epochs, then use --fresh; "
        f"the last good checkpoint is {tmp_path / 'checkpoint.pt'}, after epoch 1"
    )
