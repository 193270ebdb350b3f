"""The teacher's own translations as targets: written once, kept, and refused where there are none."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.card import Card, Student, Teacher
from edgekd.data.translation import PairExamples, load_pairs_training, pair_examples, settled_pairs
from edgekd.distill.cache.files import cache_folder, list_entries
from edgekd.distill.sequences import refuse_sequences, rewritten
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed
from edgekd.nets.generation import generate
from edgekd.nets.teachers import LoadedTeacher
from edgekd.nets.translation import Seq2Seq, Seq2SeqShape
from edgekd.recipe import Recipe
from edgekd.tasks.translation import END, PADDING, TranslationData


def card_of(**recipe: Any) -> Card:
    data = TranslationData(source_language="en", target_language="de", vocabulary=30, max_length=9)
    nets: dict[str, Any] = {"teacher": Teacher(family="seq2seq"), "student": Student(family="seq2seq")}
    return Card(title="t", task="translation", data=data, recipe=Recipe(epochs=1, **recipe), budgets={}, **nets)


@pytest.fixture
def known(tmp_path: Path) -> tuple[Card, LoadedTeacher, PairExamples]:
    """A card that asks for the teacher's translations, a teacher, and examples."""
    rows = {"en": ["a dog runs", "a cat sees a dog", "the dog"], "de": ["ein hund läuft", "eine katze", "der hund"]}
    for language, lines in rows.items():
        for part in ("train", "val"):
            (tmp_path / f"{part}.{language}").write_text("\n".join(lines), encoding="utf-8")
    card = card_of(sequences="teacher", sequence_beam=3)
    train, validation = load_pairs_training(card, tmp_path)
    card = settled_pairs(card, validation)
    torch.manual_seed(0)
    net = Seq2Seq(Seq2SeqShape(width=8, encoder_layers=1, decoder_layers=1, heads=2, feed=8), 30, 30)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return card, LoadedTeacher(Deployed(net, card.data).eval(), Path("teacher.safetensors")), pair_examples(card, train)


def test_the_teachers_translations_become_the_targets_and_are_kept(known: tuple[Card, LoadedTeacher, Any]) -> None:
    card, teacher, examples = known
    assert isinstance(teacher.net, Seq2Seq)
    expected = generate(teacher.net, examples.sources, 9, 3, 1.0)
    for _ in range(2):  # the second time they are read from the cache
        found = rewritten(card, teacher, examples)
        targets = found.batch(np.arange(3), 0).targets.tolist()
        assert targets == [int(one) for row in expected for one in [*row[row != PADDING], END]]
        assert len(list_entries(cache_folder())) == 1
    wider = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, sequence_beam=2))
    rewritten(wider, teacher, examples)
    assert len(list_entries(cache_folder())) == 2


def test_without_being_asked_the_examples_stay_as_they_are(known: tuple[Card, LoadedTeacher, Any]) -> None:
    card, teacher, examples = known
    plain = dataclasses.replace(card, recipe=card_of().recipe)
    refuse_sequences(plain, teacher, examples)
    assert rewritten(plain, teacher, examples) is examples


def test_a_teacher_that_cannot_write_is_refused(known: tuple[Card, LoadedTeacher, Any]) -> None:
    card, _, examples = known
    other = LoadedTeacher(torch.nn.Linear(1, 1), Path("teacher.onnx"))
    with pytest.raises(ConfigError, match=r"recipe.sequences: got 'teacher'; it needs task = 'translation'"):
        refuse_sequences(card, other, examples)
