"""The training loop: its arithmetic against plain torch, resuming bit for bit, and how it stops.

Run as a program, this file is a training that is killed; see `everything`.
"""

import dataclasses
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.augmentation import Augment
from edgekd.card import Recipe, Student, Training
from edgekd.data.examples import Examples
from edgekd.data.sources import load_train_and_validation
from edgekd.data.views import permutation, view
from edgekd.distill.distributed import World
from edgekd.distill.loop import Outputs, TrainingJob, batches, best_score, train
from edgekd.distill.objective import Objective, Part, Seen, Terms, distillation, plain, student_layers
from edgekd.distill.tasks.classification import accuracy
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.terms.layers import probe
from edgekd.distill.terms.losses import cross_entropy
from edgekd.errors import BudgetError, ConfigError, InputError
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.scores import ACCURACY
from edgekd.spec import build
from edgekd.tasks.known import load_card

CARD = load_card("digits")
DATA = CARD.data
STEPS = 4
"""Of an epoch of 200 images in batches of 50."""

Digits = tuple[Examples, Examples]


def recipe_of(**values: Any) -> Recipe:
    return build(Recipe, {"epochs": 4, "batch_size": 50, "learning_rate": 0.05, "views": 2} | values, "card")


def make_job(
    digits: Digits, folder: Path, training: Training, objective: Objective | None = None, **values: Any
) -> TrainingJob:
    given: dict[str, Any] = {
        "name": "student",
        "train": digits[0],
        "validation": digits[1],
        "training": training,
        "score": accuracy,
        "objective": objective or plain(training, cross_entropy),
        "views": 2,
        "checkpoint": folder / "checkpoint.pt",
    }
    return TrainingJob(**given | values)


def small_net(kind: str = "convnet", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "linear":
        return Deployed(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), DATA)
    if kind == "dropout":
        layers = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10)]
        return Deployed(nn.Sequential(*layers), DATA)
    shape = {"channels": [8], "hidden": 16, "grid": 4}
    return Deployed(make(CARD, Student(family="convnet"), shape, "student.knobs"), DATA)


def answers(k: int, indices: NDArray[np.int64], inputs: Tensor) -> dict[str, Tensor]:
    """Those of a teacher that knows view and index: logits (B, 10), maps (B, 6, 4, 4) and vectors (B, 6)."""
    whole = np.random.default_rng(k).standard_normal((200, 10 + 6 * 16)).astype(np.float32) * 3
    logits, maps = whole[indices, :10], whole[indices, 10:].reshape(-1, 6, 4, 4)
    return {
        "logits": torch.from_numpy(logits),
        "deep": torch.from_numpy(maps),
        "deep|pooled": torch.from_numpy(maps.mean(axis=(2, 3))),
    }


TAUGHT = {"logits": torch.Size((10,)), "deep": torch.Size((6, 4, 4)), "deep|pooled": torch.Size((6,))}


def hard(recipe: Recipe, weights: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The cross-entropy of a recipe."""
    return lambda logits, targets: cross_entropy(logits, targets, recipe.label_smoothing, weights)


def taught(recipe: Recipe, net: nn.Module) -> Objective:
    """What a network learns from `answers`."""
    torch.manual_seed(recipe.seed)
    shapes = probe(net, torch.zeros(2, 8, 8, 1, dtype=torch.uint8), student_layers(recipe), "card")
    peers = [small_net(seed=100 + number) for number in range(recipe.peers)] if "mutual" in recipe.losses else []
    return distillation(recipe, shapes, TAUGHT, 200, hard(recipe), peers)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def through(objective: Objective, change: Callable[[Terms], Terms]) -> Objective:
    """The objective with its terms changed."""
    return dataclasses.replace(
        objective, parts=tuple(Part(part.epochs, change(part.terms)) for part in objective.parts)
    )


def after(calls: int, how: Callable[[Tensor], Tensor]) -> Callable[[Terms], Terms]:
    """A change of terms: from the call after so many on they are what `how` makes of them."""
    made = iter(range(1, 1_000_000))

    def change(terms: Terms) -> Terms:
        def changed(seen: Seen) -> dict[str, Tensor]:
            found = terms(seen)
            return {name: how(term) for name, term in found.items()} if next(made) > calls else found

        return changed

    return change


def interrupt(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


# --- pieces ---


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(10, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (4, 4, [4]), (9, 8, [8])]
)
def test_batches_leave_out_a_smaller_rest(count: int, size: int, lengths: list[int]) -> None:
    order = np.arange(count)[::-1]
    pieces = list(batches(count, size, order))
    assert [len(piece) for piece in pieces] == lengths
    assert np.concatenate(pieces).tolist() == order[: sum(lengths)].tolist()


def test_accuracy_counts_the_validation_images(digits: Digits) -> None:
    net = small_net().train()
    images = digits[1].batch(np.arange(60), None).inputs.numpy().astype(np.float32).transpose(0, 3, 1, 2)
    normal = torch.from_numpy((images / 255 - DATA.mean[0]) / DATA.std[0])
    with torch.no_grad():
        inner = net.get_submodule("net").eval()
        expected = (inner(normal).argmax(1).numpy() == digits[1].labels).mean()
    assert 0 < expected < 1
    assert accuracy(net.train(), digits[1], "fp32") == pytest.approx(expected)
    assert not net.training


def test_the_accuracy_of_what_is_kept() -> None:
    history = [{"validation_accuracy": value} for value in (0.2, 0.7, 0.4)]
    assert best_score(Training(epochs=3), history, ACCURACY) == 0.4
    assert best_score(Training(epochs=3, patience=2), history, ACCURACY) == 0.7


# --- the loop ---


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adamw"},
        {"clip_norm": 0.3},
        {"label_smoothing": 0.2},
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_training_is_what_plain_torch_does(digits: Digits, tmp_path: Path, values: dict[str, Any]) -> None:
    training = Training(epochs=2, batch_size=64, learning_rate=0.05, momentum=0.8, weight_decay=0.01, seed=4, **values)
    net, expected = small_net("linear"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    expected.load_state_dict(net.get_submodule("net").state_dict())
    history = train(net, make_job(digits, tmp_path, training))

    images, labels = digits[0].batch(np.arange(200), None).inputs, torch.from_numpy(digits[0].labels)
    reference: torch.optim.Optimizer
    if training.optimizer == "sgd":
        reference = torch.optim.SGD(expected.parameters(), lr=1, momentum=0.8, nesterov=True, weight_decay=0.01)
    else:
        reference = torch.optim.AdamW(expected.parameters(), lr=1, weight_decay=0.01)
    # Three whole batches of 64 in 200 images; one epoch of warm-up, then half a cosine over three steps.
    rates = [0.05 * n / 4 for n in (1, 2, 3)] + [0.05 * (1 + math.cos(math.pi * n / 3)) / 2 for n in range(3)]
    losses: list[float] = []
    for step in range(6):
        epoch, place = divmod(step, 3)
        chosen = permutation(4, epoch, 200)[64 * place : 64 * place + 64]
        seen = view(images[chosen], chosen, epoch, 0, Augment(crop_padding=1)).permute(0, 3, 1, 2) / 255
        logits = expected((seen - DATA.mean[0]) / DATA.std[0])
        loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=training.label_smoothing)
        for group in reference.param_groups:
            group["lr"] = rates[step]
        reference.zero_grad()
        loss.backward()
        if training.clip_norm is not None:
            assert nn.utils.clip_grad_norm_(expected.parameters(), training.clip_norm) > training.clip_norm
        reference.step()
        losses.append(loss.item())
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(net.get_submodule("net").state_dict()[name], tensor, atol=1e-5), name
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert [entry["loss"] for entry in history] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-4)
    assert [entry["learning_rate"] for entry in history] == pytest.approx([rates[2], rates[5]])
    assert [entry["examples"] for entry in history] == [192, 192]


def test_muon_that_finds_no_matrices_is_said(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(epochs=1, batch_size=64, learning_rate=0.05, optimizer="muon", warmup_epochs=0)
    for kind, said in (("linear", True), ("convnet", False)):
        train(small_net(kind), make_job(digits, tmp_path / kind, training))
        text = "student: muon: the network has no hidden matrices, so that all of it learns as with sgd\n"
        assert (text in capsys.readouterr().err) == said


def test_training_learns_and_is_deterministic(digits: Digits, tmp_path: Path) -> None:
    training = Training(epochs=6, batch_size=20, learning_rate=0.05, seed=1)
    nets = [small_net() for _ in range(3)]
    histories = []
    for number, net in enumerate(nets):
        seeded = dataclasses.replace(training, seed=1 + number // 2)
        histories.append(train(net, make_job(digits, tmp_path / str(number), seeded)))
        assert not net.training
    assert histories[0][-1]["validation_accuracy"] > 0.5
    assert histories[0][-1]["loss"] < 0.7 * histories[0][0]["loss"]
    assert differing(state(nets[0]), state(nets[1])) == []
    assert differing(state(nets[0]), state(nets[2])) != []
    assert without_seconds(histories[0]) == without_seconds(histories[1])


def test_bf16_reaches_what_fp32_reaches(digits: Digits, tmp_path: Path) -> None:
    reached = {}
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    for precision in precisions:
        training = Training(epochs=6, batch_size=20, learning_rate=0.05, precision=precision)
        net = small_net()
        reached[precision] = train(net, make_job(digits, tmp_path / precision, training))[-1]
        assert {tensor.dtype for tensor in net.parameters()} == {torch.float32}
    assert reached["bf16"]["loss"] != reached["fp32"]["loss"]
    assert reached["bf16"]["loss"] == pytest.approx(reached["fp32"]["loss"], rel=0.3)


def test_teacher_and_student_see_the_same(digits: Digits, tmp_path: Path) -> None:
    asked: list[tuple[int, list[int], Tensor]] = []
    seen: list[Seen] = []

    def teacher(k: int, indices: NDArray[np.int64], inputs: Tensor) -> dict[str, Tensor]:
        asked.append((k, indices.tolist(), inputs))
        return answers(k, indices, inputs)

    def terms(found: Seen) -> dict[str, Tensor]:
        seen.append(found)
        return {"size": found.logits.square().mean(), "sum": found.logits.sum() * 0}

    training = Training(epochs=5, batch_size=100)
    objective = Objective((Part(5, terms),), temperature=lambda epochs: 10 + epochs)
    job = make_job(digits, tmp_path, training, objective, teacher=teacher, views=3)
    history = train(small_net("linear"), job)
    assert all(entry["terms"] == {"size": pytest.approx(entry["loss"]), "sum": 0} for entry in history)
    assert len(seen) == len(asked) == 10
    for step, (found, (k, indices, inputs)) in enumerate(zip(seen, asked, strict=True)):
        epoch, place = divmod(step, 2)
        chosen = permutation(0, epoch, 200)[100 * place : 100 * place + 100]
        assert (k, indices) == (epoch % 3, chosen.tolist())
        assert torch.equal(inputs, digits[0].batch(chosen, k).inputs)
        assert found.indices.tolist() == chosen.tolist()
        assert found.targets.tolist() == digits[0].labels[chosen].tolist()
        assert torch.equal(found.teacher["logits"], answers(k, chosen, inputs)["logits"])
        assert (found.temperature, found.step) == (10 + epoch + place / 2, step)
    # At the end of the epoch.
    assert [entry["temperature"] for entry in history] == [11, 12, 13, 14, 15]


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_make_the_same_step(digits: Digits, tmp_path: Path, parts: int) -> None:
    """A network without batch normalisation; 50 is no multiple of 4."""
    nets, histories = [small_net("linear") for _ in range(2)], []
    for net, accumulate in zip(nets, (1, parts), strict=True):
        recipe = recipe_of(losses={"kd": 0.5, "ce": 1.0, "mse": 0.1}, clip_norm=1.0, accumulate=accumulate)
        weights = torch.linspace(0.5, 2.0, 10)
        shapes = {"logits": torch.Size((10,))}
        objective = distillation(recipe, shapes, shapes, 200, hard(recipe, weights))
        histories.append(train(net, make_job(digits, tmp_path / str(accumulate), recipe, objective, teacher=answers)))
    for name, tensor in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    for whole, pieces in zip(*histories, strict=True):
        assert pieces["terms"] == pytest.approx(whole["terms"], rel=1e-5)
        assert pieces["examples"] == whole["examples"] == 200


def test_a_batch_that_is_too_small_for_its_parts(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train(small_net(), make_job(digits, tmp_path, recipe_of(batch_size=7, accumulate=4)))
    assert str(caught.value) == (
        "student: a batch of 7 in 4 parts (1 processes × accumulate 4) leaves fewer than 2 examples each; "
        "batch_size should be at least 8"
    )
    few = dataclasses.replace(digits[0], labels=digits[0].labels[:7])
    with pytest.raises(ConfigError, match="a batch of 7 in 4 parts"):
        train(small_net(), make_job((few, digits[1]), tmp_path, recipe_of(accumulate=4)))


def test_a_part_begins_as_a_training_does(digits: Digits, tmp_path: Path) -> None:
    """Plain torch with a new optimiser and new rates for the second part, whose loss is another."""
    training = Training(epochs=2, batch_size=64, learning_rate=0.05, warmup_epochs=1 / 3)
    terms: list[Terms] = [
        lambda seen: {"ce": nn.functional.cross_entropy(seen.logits, seen.targets)},
        lambda seen: {"size": 0.1 * seen.logits.square().mean(), "ce": seen.logits.sum() * 0},
    ]
    objective = Objective(tuple(Part(1, one) for one in terms))
    net, expected = small_net("linear"), small_net("linear")
    history = train(net, make_job(digits, tmp_path, training, objective))
    for epoch in range(2):
        reference = torch.optim.SGD(expected.parameters(), lr=1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        # A step of warm-up, the top, and half of the way down the cosine.
        for place, rate in enumerate((0.025, 0.05, 0.025)):
            batch = digits[0].batch(permutation(0, epoch, 200)[64 * place : 64 * place + 64], epoch)
            logits = expected(batch.inputs)
            loss = nn.functional.cross_entropy(logits, batch.targets) if epoch == 0 else 0.1 * logits.square().mean()
            reference.param_groups[0]["lr"] = rate
            reference.zero_grad()
            loss.backward()
            reference.step()
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(net.state_dict()[name], tensor, atol=1e-5), name
    assert [list(entry["terms"]) for entry in history] == [["ce"], ["size", "ce"]]
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0.025, 0.025])


def snapshots(digits: Digits, folder: Path, training: Training) -> list[dict[str, Tensor]]:
    """The weights after each step of a training without a moving average."""
    net, found = small_net(), list[dict[str, Tensor]]()

    def change(terms: Terms) -> Terms:
        def changed(seen: Seen) -> dict[str, Tensor]:
            found.append({name: value.detach().clone() for name, value in net.named_parameters()})
            return terms(seen)

        return changed

    train(net, make_job(digits, folder, training, through(plain(training, cross_entropy), change)))
    return [*found[1:], {name: value.detach().clone() for name, value in net.named_parameters()}]


def test_the_moving_average_is_validated_and_kept(digits: Digits, tmp_path: Path) -> None:
    training = Training(epochs=3, batch_size=50, learning_rate=0.05, warmup_epochs=0.0)
    steps = snapshots(digits, tmp_path / "plain", training)
    assert len(steps) == 3 * STEPS
    average, expected = steps[0], list[dict[str, Tensor]]()
    for number, now in enumerate(steps[1:], 2):
        decay = min(0.8, number / (9 + number))
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
        if number % STEPS == 0:
            expected.append(average)

    validated: list[dict[str, Tensor]] = []

    def score(net: nn.Module, examples: Examples, precision: str, among: World) -> float:
        validated.append({name: value.detach().clone() for name, value in net.named_parameters()})
        return accuracy(net, examples, precision, among)

    net = small_net()
    averaged = dataclasses.replace(training, ema=0.8)
    train(net, make_job(digits, tmp_path / "averaged", averaged, plain(averaged, cross_entropy), score=score))
    assert len(validated) == 3
    for found, wanted in zip(validated, expected, strict=True):
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, validated[-1][name]) for name, value in net.named_parameters())


def scripted(accuracies: list[float], validated: list[dict[str, Tensor]]) -> Callable[..., float]:
    """A score that says what it is told, and keeps what it saw."""

    def score(net: nn.Module, *_: object) -> float:
        validated.append(state(net))
        return accuracies[len(validated) - 1]

    return score


@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_patience_stops_and_keeps_the_best(
    digits: Digits, tmp_path: Path, ema: float, capsys: pytest.CaptureFixture[str]
) -> None:
    training, reached = recipe_of(epochs=9, patience=2, ema=ema), [0.3, 0.6, 0.5, 0.6, 0.9]
    validated: list[dict[str, Tensor]] = []
    net = small_net()
    history = train(
        net, make_job(digits, tmp_path, training, plain(training, cross_entropy), score=scripted(reached, validated))
    )
    assert [entry["validation_accuracy"] for entry in history] == reached[:4]
    assert differing(state(net), validated[1]) == []
    assert differing(state(net), validated[3]) != []
    assert best_score(training, history, ACCURACY) == 0.6
    told = "stopped after epoch 4 of 9, because 2 epochs (patience) brought nothing better than the 60.00 % of epoch 2"
    assert told in capsys.readouterr().err
    # Once more: it is over, and says the same.
    other = small_net(seed=3)
    assert train(other, make_job(digits, tmp_path, training)) == history
    assert differing(state(other), validated[1]) == []


def test_patience_waits_for_the_last_stage(digits: Digits, tmp_path: Path) -> None:
    training, reached = recipe_of(epochs=6, patience=2), [0.9, 0.1, 0.1, 0.2, 0.3, 0.1]
    terms = plain(training, cross_entropy).parts[0].terms
    objective = Objective((Part(3, terms), Part(3, terms)))
    validated: list[dict[str, Tensor]] = []
    net = small_net()
    history = train(net, make_job(digits, tmp_path, training, objective, score=scripted(reached, validated)))
    assert [entry["validation_accuracy"] for entry in history] == reached
    assert differing(state(net), validated[4]) == []
    assert best_score(training, history, ACCURACY) == 0.3


def test_somebody_else_may_say_that_it_is_enough(digits: Digits, tmp_path: Path) -> None:
    asked: list[int] = []

    def stop(history: list[dict[str, Any]]) -> bool:
        asked.append(len(history))
        return len(history) == 2

    history = train(small_net("linear"), make_job(digits, tmp_path, recipe_of(epochs=5), stop=stop))
    assert (len(history), asked) == (2, [1, 2])


def test_the_log_has_a_line_for_each_epoch(digits: Digits, tmp_path: Path) -> None:
    recipe = recipe_of(epochs=3, losses={"kd": 1.0, "ce": 0.5})
    net = small_net("linear")
    job = make_job(digits, tmp_path / "scratch", recipe, taught(recipe, net), teacher=answers, log=tmp_path / "log")
    history = train(net, job)
    path = tmp_path / "log" / "training.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 7, 11]
    for line, entry in zip(lines, history, strict=True):
        assert (line["epoch"], line["loss"]) == (entry["epoch"], entry["loss"])
        assert {"kd": line["loss/kd"], "ce": line["loss/ce"]} == entry["terms"]
        assert line["epoch/validation_accuracy"] == entry["validation_accuracy"]
    # A finished training has nothing more to tell, and leaves what a longer one has told since.
    path.write_text(path.read_text() + json.dumps({"step": 15, "epoch": 4}) + "\n")
    train(small_net("linear"), dataclasses.replace(job, objective=taught(recipe, net)))
    assert len(path.read_text().splitlines()) == 4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_live_line_and_a_log_one_for_each_epoch(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = {}
    for name, stream in (("terminal", Terminal()), ("log", io.StringIO())):
        monkeypatch.setattr(sys, "stderr", stream)
        train(small_net("linear"), make_job(digits, tmp_path / name, recipe_of(epochs=3)))
        shown[name] = stream.getvalue()
    told = [line for line in shown["log"].splitlines() if "epoch" in line]
    assert [line.partition(",")[0].partition(": ")[2] for line in told] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    kept = [line for line in shown["terminal"].split("\n") if line.rstrip().endswith("examples/s")]
    assert len(kept) == 1 and "epoch 3/3" in kept[0]  # only the last epoch stays
    assert "epoch 1/3" in shown["terminal"]  # on the live line


def test_a_network_that_gives_no_logits_in_training(digits: Digits, tmp_path: Path) -> None:
    class Two(nn.Linear):
        def forward(self, images: Tensor) -> Any:
            logits = super().forward(images.flatten(1).float())
            return (logits, logits) if self.training else logits

    recipe = recipe_of(epochs=1)
    net = Two(64, 10)
    with pytest.raises(ConfigError, match=r"^the network gives a tuple in training; it should give its logits$"):
        train(net, make_job(digits, tmp_path, recipe, plain(recipe, cross_entropy)))


def test_the_network_is_left_without_hooks(digits: Digits, tmp_path: Path) -> None:
    recipe = recipe_of(epochs=1, features=[{"term": "hint", "teacher": "deep", "student": "2"}])
    net = small_net()
    train(net, make_job(digits, tmp_path, recipe, taught(recipe, net), teacher=answers))
    assert [name for name, module in net.named_modules() if module._forward_hooks] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch 2.11 tells itself so at import
def test_a_compiled_network_learns_the_same(digits: Digits, tmp_path: Path) -> None:
    if not any(map(shutil.which, ("g++", "c++", "clang++", "cl"))):
        pytest.skip("torch.compile needs a C++ compiler")
    nets, histories = [small_net() for _ in range(2)], []
    for net, compiled in zip(nets, (False, True), strict=True):
        recipe = recipe_of(
            epochs=2, compile=compiled, features=[{"term": "hint", "teacher": "deep", "student": "2", "weight": 0.1}]
        )
        job = make_job(digits, tmp_path / str(compiled), recipe, taught(recipe, net), teacher=answers)
        histories.append(train(net, job))
    for name, tensor in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], tensor, rtol=1e-4, atol=1e-4)
    assert histories[1][-1]["terms"] == pytest.approx(histories[0][-1]["terms"], rel=1e-4)


# --- resuming ---

LEARNED = [
    {"term": "hint", "teacher": "deep", "student": "2", "weight": 0.1},
    {"term": "crd", "teacher": "deep", "student": "2", "negatives": 16, "embedding": 8, "weight": 0.1},
    {"term": "adversarial", "teacher": "deep", "student": "2", "weight": 0.5},
    {"term": "vid", "teacher": "deep", "student": "2", "weight": 0.1},
]

WAYS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01},
    "muon": {"optimizer": "muon", "matrix_learning_rate": 0.02},
    "one-cycle": {"schedule": "one-cycle", "clip_norm": 1.0, "accumulate": 3},
    "ema": {"ema": 0.8},
    "patience": {"patience": 3, "ema": 0.5},
    "drawn": {"sampling": "points", "temperature_schedule": "cosine"},
    "peers": {"losses": {"kd": 0.5, "mutual": 1.0}, "peers": 2, "temperature_schedule": "learned"},
    "learned": {"losses": {"kd": 0.5}, "features": LEARNED, "temperature_schedule": "adversarial"},
    "stage begun": {"stages": [{"epochs": 1, "features": LEARNED}, {"epochs": 3, "losses": {"kd": 0.5, "ce": 1.0}}]},
    "stage ended": {"stages": [{"epochs": 2, "features": LEARNED}, {"epochs": 2, "losses": {"kd": 0.5, "ce": 1.0}}]},
}


@pytest.mark.parametrize("way", [*WAYS, "dropout"])
def test_a_resumed_training_equals_an_undisturbed_one(digits: Digits, tmp_path: Path, way: str) -> None:
    recipe, kind = recipe_of(**WAYS.get(way, {})), "dropout" if way == "dropout" else "convnet"

    def job(folder: str, net: nn.Module, change: Callable[[Terms], Terms]) -> TrainingJob:
        objective = through(taught(recipe, net), change)
        return make_job(digits, tmp_path / folder, recipe, objective, teacher=answers)

    whole = small_net(kind)
    history = train(whole, job("whole", whole, lambda terms: terms))
    stopped = small_net(kind)
    # In the third epoch; of four, with so many calls for each step as the batch has parts.
    calls = (2 * STEPS + 2) * recipe.accumulate
    with pytest.raises(KeyboardInterrupt):
        train(stopped, job("stopped", stopped, after(calls, interrupt)))
    stored = json.loads((tmp_path / "stopped" / "history.json").read_text())
    assert [entry["epoch"] for entry in stored["epochs"]] == [1, 2]

    resumed = small_net(kind, seed=99)  # its own beginning must not matter
    count: list[int] = []

    def counting(terms: Terms) -> Terms:
        def counted(seen: Seen) -> dict[str, Tensor]:
            count.append(1)
            return terms(seen)

        return counted

    rest = job("stopped", resumed, counting)
    torch.manual_seed(1234)
    with torch.no_grad():
        for parameter in rest.objective.learned.parameters():  # nor that of what is learned beside it
            parameter.add_(0.25)
    again = train(resumed, rest)
    assert len(count) == 2 * STEPS * recipe.accumulate
    assert differing(state(whole), state(resumed)) == []
    assert without_seconds(again) == without_seconds(history)


def test_a_patience_that_was_cut_goes_on_counting(digits: Digits, tmp_path: Path) -> None:
    training, reached = recipe_of(epochs=9, patience=3), [0.3, 0.6, 0.5, 0.4, 0.3, 0.9]
    validated: list[dict[str, Tensor]] = []
    score = scripted(reached, validated)
    cut = through(plain(training, cross_entropy), after(3 * STEPS + 1, interrupt))
    with pytest.raises(KeyboardInterrupt):
        train(small_net(), make_job(digits, tmp_path, training, cut, score=score))
    assert len(validated) == 3
    net = small_net(seed=5)
    history = train(net, make_job(digits, tmp_path, training, score=score))
    assert [entry["validation_accuracy"] for entry in history] == reached[:5]
    assert differing(state(net), validated[1]) == []


def test_a_finished_training_is_not_repeated(digits: Digits, tmp_path: Path) -> None:
    training = recipe_of(epochs=2)
    net, other = small_net(), small_net(seed=5)
    history = train(net, make_job(digits, tmp_path, training))
    never = through(plain(training, cross_entropy), after(0, interrupt))
    assert train(other, make_job(digits, tmp_path, training, never)) == history
    assert differing(state(net), state(other)) == []


def everything(digits: Digits, folder: Path, teacher: Outputs) -> tuple[nn.Module, TrainingJob]:
    """A training with all that a checkpoint keeps."""
    recipe = recipe_of(
        epochs=8,
        ema=0.7,
        patience=7,
        losses={"kd": 0.5, "mutual": 0.5},
        features=LEARNED,
        temperature_schedule="learned",
    )
    net = small_net()
    return net, make_job(digits, folder, recipe, taught(recipe, net), teacher=teacher)


def slowly(k: int, indices: NDArray[np.int64], inputs: Tensor) -> dict[str, Tensor]:
    time.sleep(0.05)
    return answers(k, indices, inputs)


@pytest.mark.slow
def test_a_killed_training_equals_an_undisturbed_one(digits: Digits, tmp_path: Path) -> None:
    whole, job = everything(digits, tmp_path / "whole", answers)
    history = train(whole, job)
    command = [sys.executable, __file__, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end, seed = time.monotonic() + 300, int(os.environ.get("EDGEKD_KILL_SEED", time.time_ns() % 1_000_000))
    while not (tmp_path / "killed" / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    resumed, job = everything(digits, tmp_path / "killed", answers)
    again = train(resumed, job)
    assert differing(state(whole), state(resumed)) == [], f"EDGEKD_KILL_SEED={seed}"
    assert without_seconds(again) == without_seconds(history), f"EDGEKD_KILL_SEED={seed}"


def test_a_checkpoint_of_another_recipe_or_a_broken_one_is_refused(digits: Digits, tmp_path: Path) -> None:
    train(small_net(), make_job(digits, tmp_path, recipe_of(epochs=1)))
    other = make_job(digits, tmp_path, recipe_of(epochs=1, learning_rate=0.01))
    with pytest.raises(ConfigError, match=r"was written with recipe\.learning_rate = 0\.05, now it is 0\.01"):
        train(small_net(), other)
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a readable checkpoint"):
        train(small_net(), other)


# --- stopping ---


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_epoch_and_step(digits: Digits, tmp_path: Path, value: float) -> None:
    training = recipe_of(epochs=4, batch_size=64)
    objective = through(plain(training, cross_entropy), after(4, lambda good: good * value))
    with pytest.raises(BudgetError) as caught:
        train(small_net(), make_job(digits, tmp_path, training, objective))
    assert str(caught.value) == (
        f"student: the loss term ce is {value} at epoch 2, step 2; lower the learning rate (now 0.05), raise "
        "warmup_epochs or set clip_norm, and train anew; "
        f"the last good checkpoint is {tmp_path / 'checkpoint.pt'}, after epoch 1"
    )
    history = json.loads((tmp_path / "history.json").read_text())["epochs"]
    assert [entry["epoch"] for entry in history] == [1]


def test_a_loss_that_grows_tenfold_stops(digits: Digits, tmp_path: Path) -> None:
    training = recipe_of(epochs=4)
    objective = through(plain(training, cross_entropy), after(2 * STEPS, lambda good: good * 50))
    with pytest.raises(BudgetError, match=r"^student: the loss was .* in epoch 1 and is .* in epoch 3: it diverges"):
        train(small_net(), make_job(digits, tmp_path, training, objective))


def test_a_part_with_a_larger_loss_does_not_diverge(digits: Digits, tmp_path: Path) -> None:
    training = recipe_of(epochs=2)
    terms = plain(training, cross_entropy).parts[0].terms
    large = after(0, lambda good: good * 50)(terms)
    history = train(small_net(), make_job(digits, tmp_path, training, Objective((Part(1, terms), Part(1, large)))))
    assert history[1]["loss"] > 10 * history[0]["loss"]


def main(folder: Path) -> None:
    train_split, validation = load_train_and_validation(CARD, None)
    parts = (train_split.subset(np.arange(200)), validation.subset(np.arange(60)))
    train(*everything((examples_of(CARD, parts[0]), examples_of(CARD, parts[1])), folder, slowly))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
