"""What a run is made of: networks and data."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from edgekd.card import Budget, Card
from edgekd.data.arrays import digest, keep_split
from edgekd.data.sources import data_marks, load_test, load_train_and_validation
from edgekd.distill.identity import refuse_changes, structure, structures, structures_of
from edgekd.errors import ConfigError, InputError
from edgekd.run import open_run
from edgekd.target import load_target
from edgekd.tasks.known import load_card


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Card, Path]:
    """A card on two classes of a few pictures, and their folder."""
    folder = tmp_path / "pictures"
    for label, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            shade = np.full((8, 8), 100 * label + number, np.uint8)
            Image.fromarray(shade).save(folder / name / f"{number}.png")
    (tmp_path / "card.toml").write_text(
        """
title = "Pictures"
[data]
source = "image-folder"
size = 8
channels = 1
classes = ["a", "b"]
mean = [0.5]
std = [0.5]
[teacher]
family = "mlp"
shape = { hidden = [8] }
[teacher.training]
epochs = 1
[student]
family = "mlp"
[student.knobs]
hidden = [[4]]
[recipe]
epochs = 1
""",
        encoding="utf-8",
    )
    return load_card(str(tmp_path / "card.toml")), folder


def shade_of(path: Path) -> int:
    return int(np.asarray(Image.open(path))[0, 0])


def test_the_structure_of_a_network_is_its_tensors_and_its_tree() -> None:
    nets = [
        nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 2), nn.GELU()),
        nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.BatchNorm1d(2, track_running_stats=False)),
    ]
    assert len({structure(net) for net in nets}) == len(nets)
    again = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    assert structure(again) == structure(nets[0])


def test_the_networks_that_are_trained_have_a_structure(pictures: tuple[Card, Path]) -> None:
    assert structures(pictures[0], teacher_given=False).keys() == {"student", "student hidden=[4]", "teacher"}
    assert structures(pictures[0], teacher_given=True).keys() == {"student", "student hidden=[4]"}


SHAPE = {"hidden": [4]}

NETS = """
from torch import nn

activation = {"wide": nn.ReLU, "narrow": nn.ReLU, "broken": nn.ReLU}

def student(kind, classes):
    if activation[kind] is None:
        raise ValueError("there is no such kind")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes), activation[kind]())
"""


def test_every_candidate_has_a_structure(
    pictures: tuple[Card, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (tmp_path / "card.toml").read_text()
    imported = '[student]\nfamily = "import"\nfunction = "candidate_nets:student"'
    text = text.replace('[student]\nfamily = "mlp"', imported)
    text = text.replace("hidden = [[4]]", 'kind = ["broken", "wide", "narrow"]')
    (tmp_path / "imported.toml").write_text(text)
    (tmp_path / "candidate_nets.py").write_text(NETS)
    card = load_card(str(tmp_path / "imported.toml"))
    made = structures(card, True)
    assert made.keys() == {"student", "student kind=broken", "student kind=wide", "student kind=narrow"}
    kinds = sys.modules["candidate_nets"].activation
    with open_run(tmp_path / "run", card, load_target("cpu-x86"), Budget(), {}, False) as run:
        run.begin("data", made)
        for kind, other in (("broken", None), ("wide", nn.GELU), ("narrow", nn.GELU), ("narrow", None)):
            monkeypatch.setitem(kinds, kind, other)
            with pytest.raises(ConfigError, match=f"the structure of the network 'student kind={kind}' has changed"):
                run.refuse_other_networks(structures(card, True))
            monkeypatch.setitem(kinds, kind, nn.ReLU)
        run.refuse_other_networks(structures(card, True))

    monkeypatch.setitem(kinds, "broken", None)
    made = structures(card, True)
    assert made["student"] == made["student kind=wide"] != made["student kind=broken"]  # the first that can be built


def test_of_very_many_candidates_the_chosen_one_has_a_structure(pictures: tuple[Card, Path], tmp_path: Path) -> None:
    card, chosen = pictures[0], {"hidden": [300]}
    many = dataclasses.replace(card.student, knobs={"hidden": [[width] for width in range(1, 301)]})
    card = dataclasses.replace(card, student=many)
    first, held = structures(card, True), structures_of(card, [chosen])
    assert len(first) == 201
    assert held.keys() == {"student hidden=[300]"}
    with open_run(tmp_path / "run", card, load_target("cpu-x86"), Budget(), {}, False) as run:
        run.begin("data", first)
        run.hold(held)
        run.begin("data", first)  # as the same command does after it was stopped
        run.hold(held)
        with pytest.raises(ConfigError, match=r"the structure of the network 'student hidden=\[300\]' has changed"):
            run.hold(dict.fromkeys(held, "another"))


def test_other_data_or_networks_of_a_finished_run_are_refused(
    pictures: tuple[Card, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, folder = pictures
    with open_run(tmp_path / "run", card, load_target("cpu-x86"), Budget(), {}, False) as run:
        train, validation = load_train_and_validation(card, folder)
        run.begin(digest(train) + digest(validation), structures(card, False), data_marks(card, folder))
        refuse_changes(card, run, folder, False, SHAPE)
        refuse_changes(card, run, None, False, SHAPE)  # no data are named: there are none that could differ

        (folder / "a" / "notes.txt").write_text("more")
        with pytest.raises(InputError):  # it is no picture, and it is read again
            refuse_changes(card, run, folder, False, SHAPE)
        (folder / "a" / "notes.txt").unlink()
        refuse_changes(card, run, folder, False, SHAPE)
        with pytest.raises(InputError, match="no such data folder"):
            refuse_changes(card, run, tmp_path / "gone", False, SHAPE)

        keep_split(load_test(card, folder), run.data / "test")
        tests = [path for path in folder.rglob("*.png") if shade_of(path) in np.load(run.data / "test.npy")[:, 0, 0, 0]]
        Image.fromarray(np.full((8, 8), 250, np.uint8)).save(tests[0])
        with pytest.raises(ConfigError, match=r"the test data have changed since this run read them; use --fresh"):
            refuse_changes(card, run, folder, False, SHAPE)

        for path in folder.rglob("*.png"):
            Image.fromarray(np.full((8, 8), 50, np.uint8)).save(path)
        with pytest.raises(ConfigError, match="the training data have changed since this run began; use --fresh"):
            refuse_changes(card, run, folder, False, SHAPE)

        monkeypatch.setattr("edgekd.distill.identity.structure", lambda net: "another")
        with pytest.raises(ConfigError, match=r"network 'student hidden=\[4\]' has changed .* use --fresh"):
            refuse_changes(card, run, folder, False, SHAPE)
