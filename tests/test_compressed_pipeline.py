"""The whole road with a training for int8 and a pruned teacher: variants, the choice, resuming, repair."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.pipeline import own_networks
from edgekd.target import load_target

Cli = Callable[..., Any]
pytest.importorskip("torch_pruning")

TABLES = """
[recipe.qat]
epochs = 1
batch_size = 32

[recipe.prune]
epochs = 2
rounds = 1
batch_size = 32
warmup_epochs = 0

[budget]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one finished run, shared by the tests of this file."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, card: Path, cli: Cli) -> Path:
    """The finished run, made by the first test that asks."""
    if not finished.exists():
        done = cli("distill", card, "-t", "cpu-arm", "--out", finished)
        assert done.returncode in (0, 1), done.stderr
    return finished


@pytest.fixture
def card(tiny_card: Path) -> Path:
    """The tiny card with both tables, fewer epochs and one shape."""
    text = tiny_card.read_text().replace("[budget]", TABLES.strip())
    text = text.replace("epochs = 12", "epochs = 4").replace("size_kb = 60", "size_kb = 8")
    tiny_card.write_text(text.replace("[[8, 8], [8, 16]]", "[[8, 8]]"))
    return tiny_card


def test_both_compete_and_a_second_run_finds_them(run: Path, card: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    result = json.loads((out / "result.json").read_text())
    names = ["teacher", "student fp32", "student int8", "student int8-qat", "pruned fp32", "pruned int8"]
    assert [model["name"] for model in result["models"]] == names
    by_name = {model["name"]: model for model in result["models"]}
    assert by_name["student int8-qat"]["torch_agreement"] >= 0.99  # against the network that rounds
    assert by_name["pruned fp32"]["torch_agreement"] == 1.0
    assert by_name["pruned int8"]["size_bytes"] < 8_500 < by_name["teacher"]["size_bytes"]  # names in it count, too
    assert by_name["pruned fp32"]["params"] < by_name["teacher"]["params"]
    assert "on validation data (" in result["why_chosen"]
    ratio = json.loads((out / "pruning.json").read_text())["ratio"]
    assert json.loads((out / "student" / "pruned.json").read_text())["ratio"] == ratio

    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    for name in ("result.json", "exported/student-int8-qat.onnx", "student/pruned.safetensors"):
        (out / name).unlink()
    shutil.rmtree(out / "records")
    again = cli("distill", card, "-t", "cpu-arm", "--out", out)
    assert again.returncode == (0 if result["verdict"] == "pass" else 1), again.stderr
    assert before == {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    assert np.load(out / "data" / "test.int8-qat.npy").shape == (359, 10)


def test_a_target_with_uint8_weights_is_refused_before_anything_is_measured(
    card: Path, cli: Cli, tmp_path: Path
) -> None:
    target = tmp_path / "board.toml"
    target.write_text(
        'title = "a board"\n[hardware]\narchitecture = "aarch64"\n[provider]\nname = "CPUExecutionProvider"\n'
        '[quantization]\nweight = "uint8"\n'
    )
    done = cli("distill", card, "-t", target, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "board.toml: quantization.weight: got 'uint8'; [recipe.qat] of the card trains for 'int8'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_changed_table_is_said(run: Path, card: Path, cli: Cli) -> None:
    card.write_text(card.read_text().replace("rounds = 1", "rounds = 2"))
    done = cli("distill", card, "-t", "cpu-arm", "--out", run)
    assert done.returncode == 2
    assert "card.recipe.prune.rounds was 1 when this run began and is 2 now" in done.stderr


def test_the_training_for_int8_is_copied_only_to_targets_that_are_quantized_so() -> None:
    x86, avx2 = load_target("cpu-x86"), load_target("cpu-x86-avx2")
    assert own_networks(x86, x86) == ()
    assert own_networks(x86, avx2) == ("int8-qat",)  # 7-bit weights
    assert own_networks(x86, dataclasses.replace(x86, precisions=("fp32",))) == ("int8-qat",)
