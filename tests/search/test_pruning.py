"""How much of the teacher is pruned: the smallest share with which the exported file meets the budget."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.budget import Budget
from edgekd.card import Student
from edgekd.devices.device import Site
from edgekd.machine import Machine
from edgekd.nets.deployed import noise_inputs
from edgekd.nets.families import make
from edgekd.recipe import Prune, Recipe
from edgekd.run import Run
from edgekd.search.pruning import STEPS, fitting_ratio
from edgekd.target import load_target
from edgekd.tasks.known import load_card

pytest.importorskip("torch_pruning")
CARD = dataclasses.replace(load_card("digits"), recipe=Recipe(epochs=1, prune=Prune(epochs=1)))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "validation.npy"
    np.save(path, noise_inputs(CARD.data, 32).numpy())
    return path


@pytest.fixture
def site(place: Callable[..., Site]) -> Site:
    """fp32 alone, on a machine that is not the target: nothing is timed."""
    target = dataclasses.replace(load_target("cpu-arm"), precisions=("fp32",))
    return place(target, Machine("x86_64", "another", frozenset(), ""))


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return make(CARD, Student(family="convnet"), {"channels": [64, 64], "hidden": 64}, "teacher.shape").eval()


def test_the_smallest_share_that_fits_is_found_by_measuring(site: Site, inputs: Path, tmp_path: Path) -> None:
    run, limit = Run(tmp_path / "run"), Budget(size_kb=60)
    ratio = fitting_ratio(CARD, teacher(), site, limit, inputs, None, run)
    assert ratio is not None
    kept = json.loads(run.pruning.read_text())
    sizes = {entry["ratio"]: entry["precisions"]["fp32"]["size_kb"]["value"] for entry in kept["tried"]}
    assert sizes[ratio] <= 60 < sizes[ratio - 1 / STEPS]
    assert len(sizes) <= 4  # of 15: bisection
    run.pruning.write_text(json.dumps(kept | {"ratio": 0.75}))  # what is kept is not measured again
    assert fitting_ratio(CARD, teacher(), site, limit, inputs, None, run) == 0.75


@pytest.mark.parametrize("content", ["[]", '{"ratio": 7.5}'])
def test_a_damaged_file_is_told_and_made_again(
    site: Site, inputs: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.pruning.write_text(content)
    assert fitting_ratio(CARD, teacher(), site, Budget(size_kb=1), inputs, None, run) is None
    assert "pruning.json: is damaged; what must be pruned is measured again" in capsys.readouterr().err
    assert json.loads(run.pruning.read_text())["tried"]


def test_a_budget_that_no_share_meets(site: Site, inputs: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert fitting_ratio(CARD, teacher(), site, Budget(size_kb=1), inputs, None, run) is None
    assert json.loads(run.pruning.read_text())["ratio"] is None


def test_without_a_limit_there_is_nothing_to_prune_for(site: Site, inputs: Path, tmp_path: Path) -> None:
    assert fitting_ratio(CARD, teacher(), site, Budget(min_accuracy=0.9), inputs, None, Run(tmp_path / "run")) is None
    assert not (tmp_path / "run").exists()
