"""What a training minimises: the card's terms by hand on two examples, its parts, and what is learned beside it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Size, Tensor, nn

from edgekd.card import Recipe, Training
from edgekd.distill.objective import Objective, Seen, distillation, plain, student_layers, teacher_layers
from edgekd.distill.sampling import generator_for, sample
from edgekd.distill.tasks.segmentation import judged_pixels
from edgekd.distill.terms import losses
from edgekd.distill.terms.features import match, similarity
from edgekd.distill.terms.losses import cross_entropy
from edgekd.errors import ConfigError
from edgekd.spec import build
from edgekd.tasks.segmentation import IGNORED

STUDENT = np.array([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]])
TEACHER = np.array([[0.5, 0.5, -2.0], [-1.0, 3.0, 0.0]])
S, T = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)
LABELS = [2, 1]
SHAPES = {"logits": Size((3,)), "middle": Size((4, 2, 2)), "last": Size((5,))}
REDUCED = {"middle|attention": Size((2, 2)), "last|pooled": Size((5,))}


def recipe_of(**values: Any) -> Recipe:
    return build(Recipe, {"epochs": 1} | values, "card.toml: recipe")


def hard(recipe: Recipe, weights: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The cross-entropy of a recipe."""
    return lambda logits, targets: cross_entropy(logits, targets, recipe.label_smoothing, weights)


def objective_of(recipe: Recipe, class_weights: Tensor | None = None, **values: Any) -> Objective:
    return distillation(recipe, SHAPES, SHAPES | REDUCED, 20, hard(recipe, class_weights), **values)


def seen_by(objective: Objective, student: Tensor = S, **values: Any) -> Seen:
    given: dict[str, Any] = {"targets": torch.tensor(LABELS), "teacher": {"logits": T}}
    given["temperature"] = objective.temperature(0.0)
    return Seen(student, indices=torch.tensor([7, 3]), **given | values)


def terms_of(recipe: Recipe, student: Tensor = S, **values: Any) -> dict[str, float]:
    objective = objective_of(recipe)
    found = objective.parts[0].terms(seen_by(objective, student, **values))
    return {name: term.item() for name, term in found.items()}


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    e = np.exp(logits / temperature)
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def kd_by_hand(temperature: float) -> float:
    p, q = softmax(TEACHER, temperature), softmax(STUDENT, temperature)
    return float(temperature**2 * (p * np.log(p / q)).sum(axis=1).mean())


def ce_by_hand(shares: NDArray[np.float64], smoothing: float = 0.0) -> float:
    smooth = (1 - smoothing) * shares + smoothing / 3
    return float(-(smooth * np.log(softmax(STUDENT))).sum(axis=1).mean())


HARD = np.eye(3)[LABELS]


# --- terms on logits ---


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_alpha_mixes_both_losses(alpha: float, smoothing: float) -> None:
    found = terms_of(recipe_of(temperature=2.0, alpha=alpha, label_smoothing=smoothing))
    expected = {"kd": alpha * kd_by_hand(2.0), "ce": (1 - alpha) * ce_by_hand(HARD, smoothing)}
    assert found == pytest.approx({name: value for name, value in expected.items() if value}, rel=1e-12)


def test_terms_come_apart_with_their_weights() -> None:
    found = terms_of(recipe_of(temperature=2.0, losses={"kd": 0.5, "mse": 2.0}))
    assert found == pytest.approx({"kd": 0.5 * kd_by_hand(2.0), "mse": 2.0 * ((STUDENT - TEACHER) ** 2).mean()})


def test_terms_on_logits_get_the_rows_that_the_task_makes() -> None:
    """Two class maps of 1 × 2 pixels, of which the rows leave out the last pixel; features still get whole outputs."""
    maps = [torch.stack([a, b]).permute(0, 2, 1)[:, :, None] for a, b in ((S, T), (T, S))]  # (2, 3, 1, 2)
    targets = torch.tensor([[LABELS], [LABELS]])

    def rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.permute(0, 2, 3, 1).reshape(-1, 3)[:3], targets.flatten()[:3]

    recipe = recipe_of(temperature=2.0, losses={"kd": 1.0, "ce": 1.0}, features=[{"term": "match"}])
    shapes = {"logits": Size((3, 1, 2))}
    objective = distillation(recipe, shapes, shapes, 20, hard(recipe), rows=rows)
    seen = Seen(maps[0], targets, torch.tensor([7, 3]), teacher={"logits": maps[1]}, temperature=2.0)
    found = objective.parts[0].terms(seen)
    student, teacher = np.concatenate([STUDENT, TEACHER])[:3], np.concatenate([TEACHER, STUDENT])[:3]
    p, q = softmax(teacher, 2.0), softmax(student, 2.0)
    right = softmax(student)[range(3), [2, 1, 2]]
    assert found["kd"].item() == pytest.approx(4 * (p * np.log(p / q)).sum(axis=1).mean())
    assert found["ce"].item() == pytest.approx(-np.log(right).mean())
    assert found["match"].item() == pytest.approx(((STUDENT - TEACHER) ** 2).mean())
    (alone,) = plain(Training(epochs=1), cross_entropy, None, rows).parts[0].terms(seen).values()
    assert alone.item() == pytest.approx(found["ce"].item())


def test_terms_of_the_foreground_get_weights_for_the_smaller_map() -> None:
    """Of two hints on one pair of layers, one counts the place that the function chooses."""
    asked: list[tuple[Tensor, tuple[int, int]]] = []

    def first_place(targets: Tensor, size: tuple[int, int]) -> Tensor:
        asked.append((targets, size))
        weights = torch.zeros(2, *size)
        weights[:, 0, 0] = 2.0
        return weights

    features = [{"term": "match", "student": "mine", "teacher": "theirs", "where": "foreground", "weight": 3.0}]
    recipe = recipe_of(losses={"ce": 1.0}, features=features)
    student, teacher = SHAPES | {"mine": Size((4, 2, 3))}, SHAPES | {"theirs": Size((4, 2, 3))}
    objective = distillation(recipe, student, teacher, 20, hard(recipe), foreground=first_place)
    mine, theirs = torch.randn(2, 4, 2, 3), torch.randn(2, 4, 2, 3)
    seen = seen_by(objective, features={"mine": mine}, teacher={"theirs": theirs})
    expected = 3 * ((mine - theirs)[:, :, 0, 0] ** 2).mean()
    assert objective.parts[0].terms(seen)["match mine"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert [(targets is seen.targets, size) for targets, size in asked] == [(True, (2, 3))]
    with pytest.raises(
        ConfigError, match=r'^recipe\.features: match mine: where = "foreground" is for data with boxes'
    ):
        distillation(recipe, student, teacher, 20, hard(recipe))


def test_cross_entropy_alone_needs_no_teacher() -> None:
    training = Training(epochs=3, label_smoothing=0.2)
    objective = plain(training, cross_entropy)
    assert [part.epochs for part in objective.parts] == [3]
    (given,) = objective.parts[0].terms(Seen(S, torch.tensor(LABELS), torch.arange(2))).values()
    assert given.item() == pytest.approx(ce_by_hand(HARD, 0.2), rel=1e-12)
    assert not list(objective.learned.parameters())


def test_class_weights_reach_the_cross_entropy_alone() -> None:
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    each = -(HARD * np.log(softmax(STUDENT))).sum(axis=1)
    expected = (5 * each[0] + 2 * each[1]) / 2
    recipe = recipe_of(losses={"ce": 1.0, "kd": 1.0}, temperature=3.0)
    objective = objective_of(recipe, class_weights=weights)
    found = objective.parts[0].terms(seen_by(objective))
    assert found["ce"].item() == pytest.approx(expected, rel=1e-12)
    assert found["kd"].item() == pytest.approx(kd_by_hand(3.0), rel=1e-12)
    (alone,) = plain(Training(epochs=1), cross_entropy, weights).parts[0].terms(seen_by(objective)).values()
    assert alone.item() == pytest.approx(expected, rel=1e-12)


def test_targets_that_are_a_mix() -> None:
    shares = np.array([[0.3, 0.0, 0.7], [0.0, 0.6, 0.4]])
    recipe = recipe_of(temperature=2.0, losses={"ce": 1.0, "kd": 1.0, "dkd": 1.0, "mse": 1.0, "dist": 1.0})
    mixed = terms_of(recipe, targets=torch.from_numpy(shares))
    hard = terms_of(recipe)
    assert mixed["ce"] == pytest.approx(ce_by_hand(shares), rel=1e-12)
    assert mixed["kd"] == pytest.approx(kd_by_hand(2.0), rel=1e-12)
    # DKD takes the class with the larger part, which here is the label of the hard targets.
    assert {n: v for n, v in mixed.items() if n != "ce"} == {n: v for n, v in hard.items() if n != "ce"}
    turned = terms_of(recipe, targets=torch.from_numpy(shares[:, ::-1].copy()))
    assert turned["dkd"] == pytest.approx(terms_of(recipe, targets=torch.tensor([0, 1]))["dkd"]) != hard["dkd"]


@pytest.mark.parametrize("name", ["kd", "soft_ce", "mse", "dkd", "dist"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_by_finite_differences(name: str, standardize: bool, mixed: bool) -> None:
    objective = objective_of(recipe_of(losses={name: 0.7, "ce": 0.2}, standardize=standardize))
    targets = torch.tensor([[0.3, 0.0, 0.7], [0.0, 0.6, 0.4]], dtype=torch.float64) if mixed else torch.tensor(LABELS)

    def total(student: Tensor) -> Tensor:
        return torch.stack(list(objective.parts[0].terms(seen_by(objective, student, targets=targets)).values())).sum()

    assert torch.autograd.gradcheck(total, S.clone().requires_grad_(), atol=1e-6)


def test_standardized_logits_forget_the_teachers_scale() -> None:
    for name in ("kd", "mse", "dkd", "dist"):
        recipe = recipe_of(losses={name: 1.0}, standardize=True)
        scaled = terms_of(recipe, teacher={"logits": 5 * T + 2})
        assert scaled == pytest.approx(terms_of(recipe), rel=1e-6)
        free = dataclasses.replace(recipe, standardize=False)
        assert terms_of(free, teacher={"logits": 5 * T + 2}) != pytest.approx(terms_of(free), rel=1e-2)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"kd": 1.0, "soft_ce": 1.0}, "not both"),
        ({"kdd": 1.0}, "losses"),
        ({"kd": 0.0}, "greater than 0"),
        ({"kd": -1.0}, "greater than 0"),
    ],
)
def test_bad_weights(losses: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe_of(losses=losses)


# --- the students beside this one ---


@pytest.mark.parametrize("count", [1, 2])
def test_students_that_learn_from_each_other(count: int) -> None:
    rows = np.random.default_rng(0).normal(size=(1 + count, 2, 3))
    everyone = [torch.from_numpy(row).requires_grad_() for row in rows]
    recipe = recipe_of(losses={"mutual": 0.5, "ce": 2.0}, label_smoothing=0.1, peers=count)
    objective = objective_of(recipe, peers=[nn.Identity() for _ in range(count)])
    terms = objective.parts[0].terms(seen_by(objective, everyone[0], peers=tuple(everyone[1:])))
    assert sorted(terms) == ["ce", "mutual", "peers"]
    torch.stack(list(terms.values())).sum().backward()
    # Of KL(q ‖ p) by p's logits: p − q; of the cross-entropy with labels y: p − y. Means over two examples.
    smooth = 0.9 * HARD + 0.1 / 3
    p = [softmax(row) for row in rows]
    for number, one in enumerate(everyone):
        others = [q for other, q in enumerate(p) if other != number]
        expected = (0.5 * (p[number] - np.mean(others, axis=0)) + 2.0 * (p[number] - smooth)) / 2
        assert one.grad is not None
        assert one.grad.numpy() == pytest.approx(expected, abs=1e-12), number


def test_peers_learn_with_the_student() -> None:
    peers = [nn.Linear(2, 3), nn.Linear(2, 3)]
    learned = objective_of(recipe_of(losses={"mutual": 1.0}, peers=2), peers=peers).learned
    assert {id(p) for p in learned.parameters()} == {id(p) for peer in peers for p in peer.parameters()}


# --- parts ---

STAGES = [
    {"epochs": 2, "features": [{"term": "similarity", "teacher": "last", "student": "middle"}]},
    {
        "epochs": 3,
        "losses": {"kd": 1.0},
        "features": [
            {"term": "match", "teacher": "last", "student": "last", "weight": 3.0},
            {"term": "attention", "teacher": "middle", "student": "middle"},
            {"term": "match"},
        ],
    },
]


def test_parts_begin_where_the_last_one_ended() -> None:
    objective = objective_of(recipe_of(epochs=5, stages=STAGES))
    assert [(objective.part(epoch)[0].epochs, objective.part(epoch)[1]) for epoch in range(5)] == [
        (2, 0),
        (2, 0),
        (3, 2),
        (3, 2),
        (3, 2),
    ]
    with pytest.raises(ValueError, match="epoch 5 is after the last part"):
        objective.part(5)


def test_each_part_has_its_own_terms() -> None:
    objective = objective_of(recipe_of(epochs=5, temperature=2.0, stages=STAGES))
    mine = {"middle": torch.randn(2, 4, 2, 2), "last": torch.randn(2, 5)}
    theirs = {"logits": T, "last": torch.randn(2, 5), "middle|attention": torch.rand(2, 2, 2)}
    seen = seen_by(objective, features=mine, teacher=theirs)
    first, second = (part.terms(seen) for part in objective.parts)
    assert list(first) == ["similarity middle"]
    assert first["similarity middle"].item() == pytest.approx(similarity(mine["middle"], theirs["last"]).item())
    assert list(second) == ["kd", "match last", "attention middle", "match"]
    assert second["kd"].item() == pytest.approx(kd_by_hand(2.0))
    assert second["match last"].item() == pytest.approx(3 * match(mine["last"], theirs["last"]).item())
    assert second["match"].item() == pytest.approx(((STUDENT - TEACHER) ** 2).mean(), rel=1e-6)


def test_layers_of_all_parts() -> None:
    recipe = recipe_of(epochs=5, stages=STAGES)
    assert teacher_layers(recipe) == ("last", "middle|attention")
    assert student_layers(recipe) == ("middle", "last")
    objective = objective_of(recipe)
    assert (objective.teacher_layers, objective.layers) == (teacher_layers(recipe), student_layers(recipe))


def test_terms_of_one_name_add_up() -> None:
    features = [{"term": "match", "student": "last", "teacher": layer} for layer in ("last", "other")]
    recipe = recipe_of(losses={"ce": 1.0}, features=features)
    objective = distillation(recipe, SHAPES, SHAPES | {"other": Size((5,))}, 20, hard(recipe))
    mine, theirs, others = torch.randn(3, 2, 5)
    terms = objective.parts[0].terms(
        seen_by(objective, features={"last": mine}, teacher={"logits": T, "last": theirs, "other": others})
    )
    assert list(terms) == ["ce", "match last"]
    assert terms["match last"].item() == pytest.approx((match(mine, theirs) + match(mine, others)).item(), rel=1e-6)


def test_what_features_learn_is_trained_with_the_student() -> None:
    features = [
        {"term": term, "teacher": "last", "student": "last", "negatives": 4, "embedding": 6}
        for term in ("match", "hint", "vid", "rkd", "crd")
    ]
    learned = objective_of(recipe_of(features=features)).learned
    # One linear layer for a hint, another with a variance for VID, and CRD's two.
    assert sorted(learned) == ["part0-1", "part0-2", "part0-4"]
    assert [sum(p.numel() for p in module.parameters()) for module in learned.values()] == [30, 35, 72]


# --- the temperature ---


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("fixed", [4.0, 4.0, 4.0]),
        ("linear", [4.0, 2.5, 1.0]),
        ("cosine", [4.0, 2.5, 1.0]),
        ("exponential", [4.0, 2.0, 1.0]),
        ("sigmoid", [2.0, 4 / (1 + math.exp(-2)), 4 / (1 + math.exp(-4))]),
    ],
)
def test_the_schedules_temperature_is_the_losses(schedule: str, expected: list[float]) -> None:
    recipe = recipe_of(epochs=4, losses={"kd": 1.0}, temperature_schedule=schedule)
    objective = objective_of(recipe)
    for epochs, temperature in zip((0.0, 2.0, 4.0), expected, strict=True):
        found = objective.parts[0].terms(seen_by(objective, temperature=objective.temperature(epochs)))
        assert found["kd"].item() == pytest.approx(kd_by_hand(temperature), rel=1e-9)


@pytest.mark.parametrize("schedule", ["learned", "adversarial"])
def test_a_learned_temperature_has_a_gradient(schedule: str) -> None:
    objective = objective_of(recipe_of(epochs=4, losses={"kd": 1.0}, temperature_schedule=schedule))
    (theta,) = objective.learned.parameters()
    slopes = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            theta.add_(step)
            slopes.append(objective.parts[0].terms(seen_by(objective, temperature=objective.temperature(4.0)))["kd"])
            theta.sub_(step)
    objective.parts[0].terms(seen_by(objective, temperature=objective.temperature(4.0)))["kd"].backward()
    assert theta.grad is not None
    # Adversarial: reversed, and in full after ten epochs; (1 − cos 0.4 π) / 2 of it after four.
    share = 1.0 if schedule == "learned" else -(1 - math.cos(0.4 * math.pi)) / 2
    assert theta.grad.item() == pytest.approx(share * (slopes[0] - slopes[1]).item() / 2e-3, rel=1e-2)


# --- labels that are drawn ---


@pytest.mark.parametrize("kind", ["gaussian", "gamma", "poisson", "points"])
def test_drawn_labels_are_those_of_seed_and_step(kind: str) -> None:
    recipe = recipe_of(losses={"kd": 1.0}, temperature=2.0, sampling=kind, sampling_strength=5.0, seed=3)
    found = [terms_of(recipe, step=step)["kd"] for step in (11, 11, 12)]
    assert found[0] == found[1] != found[2]
    assert terms_of(dataclasses.replace(recipe, seed=4), step=11)["kd"] != found[0]
    drawn = sample((T / 2).softmax(dim=1), kind, 5.0, generator_for(3, (11 << 32) + 7)).numpy()  # 7: the first index
    p = softmax(TEACHER, 2.0)
    expected = 4 * ((p * np.log(p)).sum(axis=1) - (drawn * np.log(softmax(STUDENT, 2.0))).sum(axis=1)).mean()
    assert found[0] == pytest.approx(expected, rel=1e-9)


def test_parts_of_a_batch_do_not_draw_alike() -> None:
    recipe = recipe_of(losses={"kd": 1.0}, sampling="gamma")
    objective = objective_of(recipe)
    parts = [dataclasses.replace(seen_by(objective), indices=torch.tensor([first, 3])) for first in (7, 8)]
    values = [objective.parts[0].terms(part)["kd"].item() for part in parts]
    assert values[0] != values[1]


def test_soft_cross_entropy_is_the_mean_of_what_is_drawn() -> None:
    recipe = recipe_of(losses={"soft_ce": 1.0}, temperature=2.0, sampling="points", sampling_strength=4.0)
    values = [terms_of(recipe, step=step)["soft_ce"] for step in range(600)]
    expected = F.cross_entropy(S / 2, (T / 2).softmax(dim=1)).item() * 4
    assert np.mean(values) == pytest.approx(expected, abs=4 * float(np.std(values)) / math.sqrt(600))


@pytest.mark.parametrize(
    ("loss", "more"), [*((name, {}) for name in ("ce", "kd", "mse", "dkd", "dist")), ("kd", {"standardize": True})]
)
def test_a_batch_without_a_judged_pixel_changes_nothing(loss: str, more: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    mine.requires_grad_()
    objective = objective_of(recipe_of(losses={loss: 1.0}, **more), rows=judged_pixels)
    none = torch.full((2, 4, 4), IGNORED)
    (term,) = objective.parts[0].terms(seen_by(objective, mine, targets=none, teacher={"logits": theirs})).values()
    term.backward()
    assert torch.isfinite(term) and mine.grad is not None and (mine.grad == 0).all()


@pytest.mark.parametrize("standardize", [False, True])
def test_soft_terms_take_the_less_probable_classes_together(standardize: bool) -> None:
    recipe = recipe_of(losses={"kd": 1.0, "mse": 1.0}, temperature=4.0, standardize=standardize)
    objective = objective_of(recipe, groups=1)
    found = objective.parts[0].terms(seen_by(objective))
    both = losses.grouped(S, T, 1)
    mine, theirs = map(losses.standardized, both) if standardize else both
    assert found["kd"].item() == pytest.approx(losses.kd(mine, theirs, 4.0).item())
    assert found["mse"].item() == pytest.approx(terms_of(recipe)["mse"])  # of all classes
