"""Distilling one student: every term lowers itself, what is learned beside the student goes, what is kept stays."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.augmentation import Augment
from edgekd.card import Card, Teacher, Training
from edgekd.data.examples import Examples
from edgekd.data.sources import load_train_and_validation
from edgekd.distill import student as module
from edgekd.distill.compatibility import check_recipe
from edgekd.distill.loop import TrainingJob, train
from edgekd.distill.student import TrainingOptions, assist, distill_student, learn, training_summary
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.teacher import teach
from edgekd.errors import ConfigError
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher, make_teacher_net
from edgekd.nets.weights import read_state
from edgekd.recipe import Recipe
from edgekd.run import Run
from edgekd.spec import build
from edgekd.tasks.known import load_card

DIGITS = load_card("digits")
SHAPE = {"channels": [4, 8], "hidden": 8, "grid": 4}
MAPS, VECTORS = "6", "9"
"""Layers of a network with two convolutions: the second one's maps (C, 4, 4) after ReLU, and the hidden layer."""

Digits = tuple[Examples, Examples]
History = list[dict[str, Any]]


def card_of(**recipe: Any) -> Card:
    given = {"epochs": 2, "batch_size": 20, "learning_rate": 0.05, "warmup_epochs": 0.0, "views": 2}
    teacher = Teacher(
        family="convnet",
        shape={"channels": [8, 12], "hidden": 16, "grid": 4},
        training=Training(epochs=8, batch_size=20, learning_rate=0.05),
    )
    return dataclasses.replace(DIGITS, teacher=teacher, recipe=build(Recipe, given | recipe, "card.toml: recipe"))


@pytest.fixture(scope="module")
def teacher(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> LoadedTeacher:
    """One that knows the digits."""
    return teach(card_of(), digits, 0.5, tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def another_teacher() -> LoadedTeacher:
    """One that knows nothing."""
    torch.manual_seed(11)
    return LoadedTeacher(Deployed(make_teacher_net(card_of()), DIGITS.data).eval(), Path("another.safetensors"))


def new_student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make(DIGITS, DIGITS.student, SHAPE, "student.knobs")


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def moved(before: dict[str, Tensor], net: nn.Module) -> list[bool]:
    """Of each parameter."""
    return [not torch.equal(before[name], value) for name, value in net.named_parameters()]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainingJob, dict[str, Tensor]]]:
    """Each training's job, and what was learned beside the network as it was at first."""
    seen = list[tuple[TrainingJob, dict[str, Tensor]]]()

    def watched(net: nn.Module, job: TrainingJob) -> History:
        seen.append((job, state(job.objective.learned)))
        return train(net, job)

    monkeypatch.setattr(module, "train", watched)
    return seen


# --- every term ---


@pytest.mark.parametrize("term", ["ce", "kd", "soft_ce", "mse", "dkd", "dist"])
def test_a_term_on_logits_lowers_itself(digits: Digits, teacher: LoadedTeacher, tmp_path: Path, term: str) -> None:
    net = new_student()
    history = learn(card_of(epochs=3, losses={term: 1.0}), SHAPE, net, [teacher], digits, tmp_path / "scratch")
    assert [list(entry["terms"]) for entry in history] == [[term]] * 3
    assert history[2]["terms"][term] < history[1]["terms"][term] < history[0]["terms"][term]
    assert history[2]["loss"] == history[2]["terms"][term]


FEATURES: dict[str, dict[str, Any]] = {
    "match": {"teacher": "", "student": ""},
    "hint": {"teacher": MAPS, "student": MAPS},
    "attention": {"teacher": MAPS, "student": MAPS, "weight": 100.0},
    "similarity": {"teacher": MAPS, "student": VECTORS, "weight": 100.0},
    "vid": {"teacher": VECTORS, "student": VECTORS},
    "rkd": {"teacher": VECTORS, "student": VECTORS, "distance_weight": 1.0, "angle_weight": 2.0},
    "crd": {"teacher": VECTORS, "student": VECTORS, "negatives": 32, "embedding": 16},
}


@pytest.mark.parametrize("term", FEATURES)
def test_a_term_on_features_lowers_itself(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path, term: str, jobs: list[tuple[TrainingJob, dict[str, Tensor]]]
) -> None:
    card = card_of(epochs=3, losses={"ce": 0.1}, features=[{"term": term} | FEATURES[term]])
    net = new_student()
    history = learn(card, SHAPE, net, [teacher], digits, tmp_path / "scratch")
    name = f"{term} {FEATURES[term]['student']}".strip()
    assert [list(entry["terms"]) for entry in history] == [["ce", name]] * 3
    assert history[2]["terms"][name] < history[0]["terms"][name]
    ((job, before),) = jobs
    changed = moved(before, job.objective.learned)
    assert len(changed) == {"hint": 2, "vid": 3, "crd": 4}.get(term, 0)
    assert all(changed)


def test_a_discriminator_learns_against_the_student(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path, jobs: list[tuple[TrainingJob, dict[str, Tensor]]]
) -> None:
    """The term need not fall: what the discriminator lowers the student raises. Both move."""
    card = card_of(losses={"ce": 1.0}, features=[{"term": "adversarial", "teacher": MAPS, "student": MAPS}])
    history = learn(card, SHAPE, new_student(), [teacher], digits, tmp_path / "scratch")
    values = [entry["terms"][f"adversarial {MAPS}"] for entry in history]
    assert all(0 < value < 4 for value in values)
    ((job, before),) = jobs
    assert moved(before, job.objective.learned) == [True] * 6


def test_students_that_learn_from_each_other(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path, jobs: list[tuple[TrainingJob, dict[str, Tensor]]]
) -> None:
    """The term `mutual` rises at first, from students that know nothing alike; `ce` falls for all."""
    card = card_of(epochs=3, losses={"mutual": 1.0, "ce": 1.0}, peers=2)
    history = learn(card, SHAPE, new_student(), [another_teacher()], digits, tmp_path / "scratch")
    assert list(history[0]["terms"]) == ["mutual", "ce", "peers"]
    assert history[2]["terms"]["ce"] < history[0]["terms"]["ce"]
    assert history[2]["terms"]["peers"] < history[0]["terms"]["peers"]
    ((job, before),) = jobs
    assert all(moved(before, job.objective.learned))
    # Three students that began apart.
    assert not torch.equal(before["peers.0.net.0.weight"], before["peers.1.net.0.weight"])
    assert not torch.equal(before["peers.0.net.0.weight"], new_student().state_dict()["0.weight"])
    assert job.teacher is not None
    assert job.teacher(0, np.arange(2), torch.zeros(2)) == {}  # nobody asks the teacher


def test_images_that_are_mixed(teacher: LoadedTeacher, tmp_path: Path) -> None:
    card = dataclasses.replace(
        card_of(epochs=4, losses={"ce": 1.0, "kd": 0.2, "dkd": 0.1}, label_smoothing=0.1, class_weights="balanced"),
        augment=Augment(crop_padding=1, mixup=0.5, cutmix=1.0),
    )
    images, validation = load_train_and_validation(card, None)
    data = (examples_of(card, images.subset(np.arange(200))), examples_of(card, validation.subset(np.arange(60))))
    assert data[0].batch(np.arange(3), 0).targets.shape == (3, 10)
    history = learn(card, SHAPE, new_student(), [teacher], data, tmp_path / "scratch")
    for term in ("ce", "kd", "dkd"):
        assert 0 < history[3]["terms"][term] < history[0]["terms"][term]


def test_stages_switch_terms_and_begin_anew(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path, jobs: list[tuple[TrainingJob, dict[str, Tensor]]]
) -> None:
    stages = [
        {"epochs": 1, "features": [{"term": "hint", "teacher": MAPS, "student": MAPS}]},
        {"epochs": 2, "losses": {"kd": 1.0, "ce": 1.0}},
        {"epochs": 1, "losses": {"ce": 1.0}, "features": [{"term": "vid", "teacher": VECTORS, "student": VECTORS}]},
    ]
    history = learn(card_of(epochs=4, stages=stages), SHAPE, new_student(), [teacher], digits, tmp_path / "scratch")
    names = [[f"hint {MAPS}"], ["kd", "ce"], ["kd", "ce"], ["ce", f"vid {VECTORS}"]]
    assert [list(entry["terms"]) for entry in history] == names
    # At the last of ten steps an epoch: half a cosine over each stage's steps.
    places = [9 / 10, 9 / 20, 19 / 20, 9 / 10]
    expected = [0.05 * (1 + math.cos(math.pi * place)) / 2 for place in places]
    assert [entry["learning_rate"] for entry in history] == pytest.approx(expected)
    ((job, before),) = jobs
    assert all(moved(before, job.objective.learned))


# --- temperature and drawn labels ---


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [4.0, 4.0]),
        ({"temperature_schedule": "linear", "temperature": 5.0}, [3.0, 1.0]),
        ({"temperature_schedule": "exponential", "temperature": 16.0}, [4.0, 1.0]),
        ({"temperature_schedule": "sigmoid", "temperature": 2.0}, [2 / (1 + math.exp(-1)), 2 / (1 + math.exp(-2))]),
    ],
)
def test_the_history_tells_the_temperature(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path, values: dict[str, Any], expected: list[float]
) -> None:
    history = learn(card_of(**values), SHAPE, new_student(), [teacher], digits, tmp_path / "scratch")
    assert [entry["temperature"] for entry in history] == pytest.approx(expected)


def test_a_learned_temperature_falls_and_an_adversarial_one_does_not(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path
) -> None:
    """T² KL falls with T; whoever makes it larger moves the other way."""
    last = {}
    for schedule in ("learned", "adversarial"):
        card = card_of(temperature_schedule=schedule, weight_decay=0.0)
        history = learn(card, SHAPE, new_student(), [teacher], digits, tmp_path / schedule)
        last[schedule] = [entry["temperature"] for entry in history]
    assert 1 < last["learned"][1] < last["learned"][0] < 4
    assert last["adversarial"][1] > last["adversarial"][0] > 4


def test_drawn_labels_are_repeatable(digits: Digits, teacher: LoadedTeacher, tmp_path: Path) -> None:
    losses = []
    for number, sampling in enumerate(("gamma", "gamma", "none")):
        card = card_of(losses={"kd": 1.0}, sampling=sampling, sampling_strength=3.0)
        history = learn(card, SHAPE, new_student(), [teacher], digits, tmp_path / str(number))
        losses.append([entry["loss"] for entry in history])
    assert losses[0] == losses[1] != losses[2]


# --- what does not suit ---


@pytest.mark.parametrize(
    ("feature", "text"),
    [
        (
            {"teacher": "conv2", "student": MAPS},
            r"toml: recipe\.features: teacher: unknown layer 'conv2'; Known: 0, 1, ",
        ),
        ({"teacher": MAPS, "student": "66"}, r"recipe\.features: student: unknown layer '66'; did you mean '6'"),
        (
            {"teacher": VECTORS, "student": MAPS},
            r"toml: recipe\.features: hint between the student's 6 \(8, 4, 4\) and the teacher's 9 \(16,\): ",
        ),
        (
            {"teacher": MAPS, "student": MAPS, "where": "foreground"},
            r'toml: recipe\.features: hint 6: where = "foreground" is for data with boxes, which this task',
        ),
    ],
)
def test_layers_that_do_not_suit_are_told_before_the_first_step(
    digits: Digits,
    teacher: LoadedTeacher,
    tmp_path: Path,
    feature: dict[str, str],
    text: str,
    jobs: list[tuple[TrainingJob, dict[str, Tensor]]],
) -> None:
    # Also where only a later stage asks for them.
    stages = [{"epochs": 1, "losses": {"kd": 1.0}}, {"epochs": 1, "features": [{"term": "hint"} | feature]}]
    card = card_of(stages=stages)
    with pytest.raises(ConfigError, match=text) as caught:
        learn(card, SHAPE, new_student(), [teacher], digits, tmp_path / "scratch")
    assert "\n" not in str(caught.value)
    assert jobs == []
    assert not (tmp_path / "scratch").exists()
    # Before the teacher is trained, too, and where an assistant stands between.
    between = dataclasses.replace(card, assistants=(card.teacher,))
    for one, given in ((card, teacher), (card, None), (between, teacher)):
        with pytest.raises(ConfigError, match=text):
            check_recipe(one, SHAPE, given, [], digits[0])


def test_a_recipe_that_suits_is_let_through(digits: Digits, teacher: LoadedTeacher) -> None:
    features = [{"term": term} | values for term, values in FEATURES.items()]
    check_recipe(card_of(features=features), SHAPE, teacher, [], digits[0])
    check_recipe(card_of(teacher_weights=(1.0, 2.0)), SHAPE, None, [teacher], digits[0])


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_another_number_of_weights_than_teachers(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path, weights: tuple[float, ...]
) -> None:
    card = card_of(teacher_weights=weights)
    with pytest.raises(ConfigError) as caught:
        learn(card, SHAPE, new_student(), [teacher, another_teacher()], digits, tmp_path / "scratch")
    assert str(caught.value) == (
        f"{card.file}: recipe.teacher_weights: got {len(weights)} weights; there are 2 teachers"
    )


def test_another_number_of_weights_than_classes(digits: Digits, teacher: LoadedTeacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class_weights: got 2 weights; the data has 10 classes"):
        learn(card_of(class_weights=(1.0, 2.0)), SHAPE, new_student(), [teacher], digits, tmp_path / "scratch")


# --- the teacher in the cache, or in the loop ---


def trained(
    card: Card, teachers: Sequence[LoadedTeacher], digits: Digits, folder: Path, online: bool
) -> tuple[History, nn.Module]:
    net = new_student()
    return learn(card, SHAPE, net, teachers, digits, folder, TrainingOptions(online=online)), net


@pytest.mark.parametrize(
    ("features", "tolerance"),
    [
        ([], 1e-4),  # logits of the same images in batches of another size
        ([{"term": "hint", "teacher": MAPS, "student": MAPS}], 5e-3),  # features in half precision
    ],
)
def test_kept_outputs_teach_the_same(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path, features: list[dict[str, str]], tolerance: float
) -> None:
    # In the loop each epoch is a view of its own, and so it is here with as many views as epochs.
    card = card_of(epochs=3, losses={"kd": 1.0, "ce": 0.5}, features=features, views=3)
    (one, first), (other, second) = (
        trained(card, [teacher, another_teacher()], digits, tmp_path / str(online), online) for online in (True, False)
    )
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=tolerance, atol=tolerance)
    for before, after in zip(one, other, strict=True):
        assert after["terms"] == pytest.approx(before["terms"], rel=tolerance)


def test_kept_outputs_are_not_computed_again(digits: Digits, teacher: LoadedTeacher, tmp_path: Path) -> None:
    images = list[int]()
    handle = teacher.module.register_forward_pre_hook(lambda _, inputs: images.append(len(inputs[0])))
    count, seen = len(digits[0]), list[int]()
    for online, recipe in ((False, {}), (False, {}), (False, {"alpha": 0.5, "learning_rate": 0.01}), (True, {})):
        images.clear()
        trained(card_of(**recipe), [teacher], digits, tmp_path / str(len(seen)), online)
        seen.append(sum(number for number in images if number > 2))  # two images tell the shapes
    handle.remove()
    assert seen == [2 * count, 0, 0, 2 * count]


def test_a_cache_that_is_too_small_leaves_the_teacher_in_the_loop(
    digits: Digits,
    teacher: LoadedTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, wanted = trained(card_of(), [teacher], digits, tmp_path / "online", online=True)
    monkeypatch.setenv("EDGEKD_CACHE_LIMIT_GB", "1e-6")
    capsys.readouterr()
    _, net = trained(card_of(), [teacher], digits, tmp_path / "cached", online=False)
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in net.state_dict().items())
    told = capsys.readouterr().err
    assert "do not fit in the cache of 1.0 kB" in told
    assert "teacher: its outputs are computed while the student learns" in told


# --- what is kept ---


def test_distilling_keeps_the_student_and_its_history(
    digits: Digits, teacher: LoadedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = [{"term": term, "teacher": MAPS, "student": MAPS} for term in ("hint", "adversarial")]
    card = card_of(losses={"kd": 0.5, "mutual": 0.5}, features=features, temperature_schedule="learned")
    run = Run(tmp_path)
    net = distill_student(card, SHAPE, [teacher], digits, run)
    assert not net.training
    stored = read_state(run.student_weights)
    # Neither regressor, discriminator, temperature nor the other student.
    assert sorted(stored) == sorted(new_student().state_dict())
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in stored.items())
    assert not any(part._forward_hooks for part in net.modules())
    history = json.loads(run.student_weights.with_name("history.json").read_text())["epochs"]
    assert [entry["epoch"] for entry in history] == [1, 2]
    # The checkpoint is large, and nobody needs it again.
    kept = ["history.json", "log", "student.safetensors"]
    assert sorted(path.name for path in run.student_weights.parent.iterdir()) == kept
    assert not run.teacher_weights.parent.exists()

    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("it trained again"))
    again = distill_student(card, SHAPE, [teacher], digits, run)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in stored.items())


def test_the_summary_is_of_what_was_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    epochs = [{"validation_accuracy": reached, "seconds": 2.0} for reached in (0.4, 0.8, 0.6)]
    write_json(run.student_weights.with_name("history.json"), {"schema_version": 1, "epochs": epochs})
    last = {"epochs": 3, "seconds": 6.0, "validation_accuracy": 0.6}
    assert training_summary(card_of(), run) == last
    assert training_summary(card_of(patience=1), run) == last | {"validation_accuracy": 0.8}


# --- attempts ---


@dataclasses.dataclass
class Attempts:
    """Trainings that reach what they are told, each with weights of its own."""

    reached: list[float]
    cards: list[Card] = dataclasses.field(default_factory=list)
    states: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)

    def learn(self, card: Card, shape: Any, net: nn.Module, *_: Any, **__: Any) -> History:
        self.cards.append(card)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(len(self.cards))
        self.states.append(state(net))
        return [{"epoch": 1, "validation_accuracy": self.reached[len(self.cards) - 1], "seconds": 1.0}]


@pytest.mark.parametrize(
    ("reached", "minimum", "epochs", "kept"),
    [
        ([0.5, 0.9, 0.7], 0.95, [2, 4, 8], 1),
        ([0.5, 0.9, 0.7], 0.9, [2, 4], 1),
        ([0.5, 0.9, 0.7], 0.5, [2], 0),
        ([0.5, 0.9, 0.7], None, [2], 0),
    ],
)
def test_below_the_minimum_it_trains_again_with_twice_the_epochs(
    teacher: LoadedTeacher,
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reached: list[float],
    minimum: float | None,
    epochs: list[int],
    kept: int,
) -> None:
    attempts, run = Attempts(reached), Run(tmp_path)
    monkeypatch.setattr(module, "learn", attempts.learn)
    stages = [{"epochs": 1, "losses": {"ce": 1.0}}, {"epochs": 1, "losses": {"kd": 1.0}}]
    net = distill_student(
        card_of(attempts=3, stages=stages), SHAPE, [teacher], digits, run, TrainingOptions(minimum=minimum)
    )
    assert [card.recipe.epochs for card in attempts.cards] == epochs
    assert [[s.epochs for s in card.recipe.stages] for card in attempts.cards] == [[n // 2] * 2 for n in epochs]
    assert all(torch.equal(tensor, attempts.states[kept][name]) for name, tensor in net.state_dict().items())
    history = json.loads(run.student_weights.with_name("history.json").read_text())["epochs"]
    assert [entry["validation_accuracy"] for entry in history] == [reached[kept]]
    assert sorted(path.name for path in run.student_weights.parent.iterdir()) == ["history.json", "student.safetensors"]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(epochs) - 1
    if told:
        assert told[0] == f"student: 50.00 % after 2 epochs, {100 * (minimum or 0):.2f} % wanted"


def test_an_attempt_that_was_cut_goes_on(
    teacher: LoadedTeacher, digits: Digits, tmp_path: Path, jobs: list[tuple[TrainingJob, dict[str, Tensor]]]
) -> None:
    """The first attempt is finished, the second is cut after its third epoch of four."""
    card, options = card_of(attempts=2), TrainingOptions(minimum=1.1)
    whole = distill_student(card, SHAPE, [teacher], digits, Run(tmp_path / "whole"), options)

    def cut(net: nn.Module, job: TrainingJob) -> History:
        def stop(history: History) -> bool:
            if len(history) == 3:
                raise KeyboardInterrupt
            return False

        return train(net, dataclasses.replace(job, stop=stop))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "train", cut)
        distill_student(card, SHAPE, [teacher], digits, Run(tmp_path / "cut"), options)
    resumed = distill_student(card, SHAPE, [teacher], digits, Run(tmp_path / "cut"), options)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
    log = Run(tmp_path / "cut").student_weights.parent / "log" / "training.jsonl"
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]


# --- assistants ---


def test_assistants_teach_one_another(
    teacher: LoadedTeacher, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(epochs=1, batch_size=20, learning_rate=0.05)
    assistants = [
        Teacher(family="convnet", shape={"channels": [width, 8], "hidden": 8, "grid": 4}, training=own)
        for width, own in ((6, training), (5, None))
    ]
    features = [{"term": "hint", "teacher": MAPS, "student": MAPS}]
    card = card_of(losses={"kd": 1.0, "mutual": 0.5}, features=features, teacher_weights=(1.0, 3.0))
    card = dataclasses.replace(card, assistants=tuple(assistants))
    learnt: list[tuple[str, list[str], Recipe]] = []

    def watched(*given: Any, **values: Any) -> History:
        name = given[7] if len(given) > 7 else "student"
        learnt.append((name, [one.file.name for one in given[3]], given[0].recipe))
        return learn(*given, **values)

    monkeypatch.setattr(module, "learn", watched)
    run, teachers = Run(tmp_path), [teacher, another_teacher()]
    distill_student(card, SHAPE, teachers, digits, run)
    assert [(name, files) for name, files, _ in learnt] == [
        ("assistant 1", ["teacher.safetensors"]),
        ("assistant 2", ["assistant-1.safetensors"]),
        ("student", ["assistant-2.safetensors", "another.safetensors"]),
    ]
    # An assistant has no peers and none of the student's layers; its own training where the card gives one.
    assert [(recipe.losses, recipe.features, recipe.epochs) for _, _, recipe in learnt[:2]] == [
        ({"kd": 1.0}, (), 1),
        ({"kd": 1.0}, (), 2),
    ]
    folder = run.teacher_weights.parent
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "assistant-1-history.json",
        "assistant-1-log/training.jsonl",
        "assistant-1.safetensors",
        "assistant-2-history.json",
        "assistant-2-log/training.jsonl",
        "assistant-2.safetensors",
    ]
    assert read_state(folder / "assistant-2.safetensors")["0.weight"].shape == (5, 1, 3, 3)

    # The student again, from the assistants that are there.
    stored, learnt[:] = read_state(run.student_weights), []
    run.student_weights.unlink()
    again = distill_student(card, SHAPE, teachers, digits, run)
    assert [name for name, *_ in learnt] == ["student"]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("recipe", "losses"),
    [
        ({"losses": {"dist": 2.0, "ce": 1.0}}, {"dist": 2.0, "ce": 1.0}),
        ({"losses": {"ce": 1.0, "mutual": 1.0}}, {"kd": 0.9, "ce": 0.1}),
        ({"stages": [{"epochs": 1, "losses": {"kd": 1}}, {"epochs": 1, "losses": {"mse": 3}}]}, {"mse": 3.0}),
    ],
)
def test_an_assistant_learns_by_the_last_terms_on_logits(
    teacher: LoadedTeacher,
    digits: Digits,
    tmp_path: Path,
    jobs: list[tuple[TrainingJob, dict[str, Tensor]]],
    recipe: dict[str, Any],
    losses: dict[str, float],
) -> None:
    card = card_of(epochs=2, **recipe)
    assistant = Teacher(family="convnet", shape={"channels": [6, 8], "hidden": 8, "grid": 4})
    assist(dataclasses.replace(card, assistants=(assistant,)), teacher, digits, tmp_path, TrainingOptions())
    ((job, _),) = jobs
    assert isinstance(job.training, Recipe)
    assert job.training.weights() == pytest.approx(losses)


# --- the teacher's tensors ---


def test_the_student_may_begin_with_the_teachers_tensors(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[dict[str, Tensor]] = []

    def stop(net: nn.Module, job: object) -> None:
        begun.append(net.get_submodule("net").state_dict())
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    shape = dict(card_of().teacher.shape)
    wanted = another_teacher()
    for init in (True, False):
        card = card_of(init_from_teacher=init)
        with pytest.raises(KeyboardInterrupt):
            distill_student(card, shape, [wanted], digits, Run(tmp_path / str(init)))
    assert wanted.net is not None
    assert torch.equal(begun[0]["0.weight"], wanted.net.state_dict()["0.weight"])
    assert not torch.equal(begun[1]["0.weight"], wanted.net.state_dict()["0.weight"])
    assert capsys.readouterr().err == "student: 16 of 16 tensors copied from the teacher\n"
