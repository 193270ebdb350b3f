"""Presets: what they set, what overrides them, and what is told of mistakes."""

import tomllib
from typing import Any

import pytest

from edgekd.card import Card, card_tables, read_tables
from edgekd.card_checks import check_card
from edgekd.errors import ConfigError
from edgekd.presets import with_presets
from edgekd.recipe import Recipe, Training
from edgekd.tasks.known import build_card


def card(recipe: str, teacher: str = "epochs = 2", augment: str = "", name: str = "digits") -> Card:
    """The bundled card with these tables in place of its own."""
    tables, _ = read_tables(name)
    tables["recipe"], tables["augment"] = tomllib.loads(recipe), tomllib.loads(augment)
    tables["teacher"]["training"] = tomllib.loads(teacher)
    return check_card(build_card(card_tables(tables, "card.toml"), "card.toml"))


def test_fast_sets_the_schedule_and_the_card_overrides_it() -> None:
    recipe = card('preset = "fast"\nema = 0.0\nepochs = 20').recipe
    expected = Recipe(
        preset="fast",
        epochs=20,
        batch_size=256,
        learning_rate=0.3,
        momentum=0.85,
        weight_decay=1.2e-3,
        schedule="linear",
        warmup_epochs=4,
        small_share=0.6,
        precision="auto",
    )
    assert recipe == expected


@pytest.mark.parametrize(
    ("given", "batch", "rate"),
    [("", 256, 0.3), ("batch_size = 64", 64, 0.075), ("batch_size = 64\nlearning_rate = 0.3", 64, 0.3)],
)
def test_the_rate_follows_the_batch_size(given: str, batch: int, rate: float) -> None:
    recipe = card(f'preset = "fast"\n{given}').recipe
    assert recipe.batch_size == batch
    assert recipe.learning_rate == pytest.approx(rate)


def test_a_teacher_has_label_smoothing() -> None:
    training = card("epochs = 3", teacher='preset = "fast"').teacher.training
    assert isinstance(training, Training)
    assert (training.label_smoothing, training.epochs, training.warmup_epochs) == (0.2, 15, 3)


def test_long_mixes_and_has_no_labels() -> None:
    one = card('preset = "long"', augment="crop_padding = 1")
    assert one.recipe.weights() == {"kd": 1.0}
    assert (one.recipe.epochs, one.recipe.views, one.recipe.warmup_epochs) == (300, 30, 6)
    assert (one.augment.mixup, one.augment.crop_padding) == (1.0, 1)


@pytest.mark.parametrize(("given", "mixup"), [("mixup = 0.2", 0.2), ("mixup = 0.0", 0.0), ("cutmix = 1.0", 0.0)])
def test_another_mix_is_kept(given: str, mixup: float) -> None:
    assert card('preset = "long"', augment=given).augment.mixup == mixup


def test_sentences_have_no_small_images_and_no_mixing() -> None:
    for preset in ("fast", "long"):
        one = card(f'preset = "{preset}"', name="sst2")
        assert one.recipe.small_share == one.augment.mixup == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('preset = "quick"', "recipe.preset: got \"quick\"; it should be 'fast' or 'long'"),
        ("preset = 3", "recipe.preset: got 3; it should be 'fast' or 'long'"),
        ('preset = "fast"\nbatch_size = "many"', 'recipe.batch_size: got "many"'),
        ('preset = "fast"\nepochs = "many"', 'recipe.epochs: got "many"'),
        ('preset = "fast"\nsmall_share = 0.0\nsmall_scale = 0.5', "small_scale: has no effect here"),
    ],
)
def test_mistakes_are_told(given: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        card(given)
    assert told in str(caught.value)


@pytest.mark.parametrize("value", [3, [1], "x", {"preset": "fast"}, [{"training": 3}]])
@pytest.mark.parametrize("key", ["data", "recipe", "augment", "teacher", "assistants"])
def test_tables_of_other_kinds_are_left_to_the_card(key: str, value: Any) -> None:
    tables = {"data": {"size": 8}, "recipe": {"preset": "fast"}, key: value}
    assert isinstance(with_presets(tables), dict)


def test_the_words_of_a_training() -> None:
    training = Training(preset="fast", epochs=4, learning_rate=0.25, ema=0.5)
    assert training.words() == "epochs 4, learning_rate 0.25, ema 0.5"


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ('preset = "fast"\noptimizer = "adamw"\nlearning_rate = 1e-3', "momentum", 0.9),
        ('preset = "fast"\noptimizer = "muon"', "momentum", 0.85),
        ('preset = "long"\nlosses = { kd = 1.0 }', "alpha", 0.9),
        ('preset = "long"\nlosses = { kd = 1.0 }', "temperature", 2.0),
        ('preset = "long"\nlosses = { mse = 1.0 }', "temperature", 4.0),
        ('preset = "long"\nalpha = 0.0', "temperature", 4.0),
        (
            'preset = "fast"\n[[stages]]\nepochs = 13\nlosses = { kd = 1.0 }\n'
            "[[stages]]\nepochs = 2\nlosses = { ce = 1.0 }",
            "warmup_epochs",
            2,
        ),
    ],
)
def test_what_the_card_sets_makes_settings_of_the_preset_idle(given: str, key: str, value: float) -> None:
    assert getattr(card(given).recipe, key) == value


@pytest.mark.parametrize("table", ["qat", "prune"])
def test_the_trainings_after_the_distillation_take_no_preset(table: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe.{table}.preset: has no effect here; give its settings one by one"):
        card(f'epochs = 3\n[{table}]\nepochs = 1\npreset = "fast"')
