"""What `distill` and `sweep` look at before they begin: the files of teachers, networks and recipe, trackers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import InputError
from edgekd.run import Run
from edgekd.target import load_target

Cli = Callable[..., Any]


def write_onnx(folder: Path, scale: float) -> Path:
    """Digits to logits, by weights that lie in `weights` beside the model."""
    weights = np.full((64, 10), scale, np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 1])
    told = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "g", [given], [told], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (folder / "weights").unlink(missing_ok=True)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return folder / "m.onnx"


def test_a_run_is_of_the_weights_beside_its_onnx_teacher(
    cli: Cli, tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(asked: Any, places: list[tuple[Any, Run]]) -> None:
        places[0][1].begin("digest")
        raise InputError("begun")

    monkeypatch.setattr("edgekd.pipeline.distill_all", begun)
    command = ("distill", tiny_card, "-t", "cpu-x86", "--teacher", write_onnx(tmp_path, 1.0), "--out", "run")
    for _ in range(2):
        assert "begun" in cli(*command).stderr
    write_onnx(tmp_path, 2.0)
    assert "files.teacher_sha256 was" in cli(*command).stderr


FEATURE = '\n[[recipe.features]]\nterm = "{}"\nstudent = "{}"\nteacher = "{}"\n'
MORE = '\n[[more_teachers]]\nfamily = "convnet"\nshape = {{ channels = [16, 32], hidden = 32 }}\nweights = "{}"\n'
ASSISTANTS = """
[[assistants]]
family = "{}"
shape = {{ {} = [8, 32], hidden = 32 }}
[[assistants]]
family = "convnet"
shape = {{ channels = [8, 16], hidden = 32 }}
[assistants.training]
epochs = 1
batch_size = 32
learning_rate = 0.1
class_weights = {}
"""


@pytest.mark.parametrize(
    ("find", "replace", "words"),
    [
        ("[budget]", FEATURE.format("hint", "0", "9.9") + "[budget]", "recipe.features: teacher: unknown layer '9.9'"),
        ("[budget]", FEATURE.format("hint", "9.9", "0") + "[budget]", "recipe.features: student: unknown layer '9.9'"),
        ("[budget]", FEATURE.format("attention", "0", "") + "[budget]", "attention"),
        ("[budget]", FEATURE.format("match", "6", "6") + "[budget]", "(32, 4, 4): the shapes of student"),
        ("views = 2", "views = 2\naccumulate = 33", "recipe: a batch of 32 in 33 parts"),
        ("epochs = 8", "epochs = 8\naccumulate = 33", "teacher.training: a batch of 64 in 33 parts"),
        ("views = 2", "views = 2\nclass_weights = [1, 2]", "recipe.class_weights: got 2 weights; the data has 10"),
        ("views = 2", "views = 2\nteacher_weights = [1, 2]", "recipe.teacher_weights"),
        ("epochs = 8", "epochs = 8\nclass_weights = [1, 2]", "teacher.training.class_weights: got 2 weights"),
        ("[budget]", MORE.format("gone.safetensors") + "[budget]", "gone.safetensors: no such weights file"),
        ("[budget]", MORE.format("") + "[budget]", "more_teachers[0].weights: is missing"),
        ("[budget]", ASSISTANTS.format("convnt", "channels", '"none"') + "[budget]", "'convnt'"),
        ("[budget]", ASSISTANTS.format("convnet", "chanels", '"none"') + "[budget]", "'channels'"),
        (
            "[budget]",
            ASSISTANTS.format("convnet", "channels", "[1]") + "[budget]",
            "assistants[1].training.class_weights: got 1 weight; the",
        ),
    ],
)
def test_a_card_whose_parts_do_not_suit_is_refused_before_anything_is_measured_or_written(
    cli: Cli, tiny_card: Path, tmp_path: Path, find: str, replace: str, words: str
) -> None:
    text = tiny_card.read_text()
    assert text.count(find) == 1
    tiny_card.write_text(text.replace(find, replace))
    done = cli("distill", tiny_card, "-t", "cpu-x86")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("edgekd: ") and words in line, line
    assert "gone" in line or line.startswith(f"edgekd: {tiny_card}: ")
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("who", ["teacher", "student", "assistants"])
def test_a_network_of_ones_own_with_another_number_of_outputs_is_refused_first(
    cli: Cli, tiny_card: Path, tmp_path: Path, who: str
) -> None:
    (tmp_path / f"wide_{who}.py").write_text(
        "from torch import nn\n"
        "def net(classes, **shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 2))\n"
    )
    own = f'family = "import"\nfunction = "wide_{who}:net"\n'
    table = "[[assistants]]" if who == "assistants" else f"[{who}]"
    text = tiny_card.read_text()
    if who == "assistants":
        text = text.replace("[budget]", f"{table}\n{own}[budget]")
    else:
        text = text.replace(f'{table}\nfamily = "convnet"\n', f"{table}\n{own}")
    tiny_card.write_text(text)
    done = cli("distill", tiny_card, "-t", "cpu-x86")
    name = "assistants[0]" if who == "assistants" else who
    shape = ": channels=[8, 8] hidden=16" if who == "student" else ""
    assert done.returncode == 2
    assert done.stderr == (
        f"edgekd: {tiny_card}: {name}{shape}: the network gives (12,) outputs for 10 classes of data; its last "
        "layer should give 10\n"
    )
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(("track", "words"), [("tensorbord", "did you mean 'tensorboard'"), ("wandb", "needs wandb")])
@pytest.mark.parametrize("command", [("distill", "-t", "cpu-x86"), ("teach",)])
def test_a_tracker_that_is_not_there_is_refused_first(
    cli: Cli,
    tiny_card: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    track: str,
    words: str,
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("data are loaded")

    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("edgekd.pipeline.learning_of", loaded)
    done = cli(*command, tiny_card, "--track", track)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and words in line
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_sweep_tells_the_weights_beside_its_onnx_teacher(
    cli: Cli, tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = []

    def begun(card: Any, shape: Any, digests: dict[str, str], *rest: Any) -> None:
        noted.append(digests["SHA-256 of the teacher"])
        raise InputError("begun")

    monkeypatch.setattr("edgekd.sweep.sweep.begin", begun)
    for scale in (1.0, 1.0, 2.0):
        teacher = write_onnx(tmp_path, scale)
        done = cli("sweep", tiny_card, "--shape", "channels=[8,8]", "--temperatures", "1,4", "--teacher", teacher)
        assert "begun" in done.stderr, done.stderr
    assert noted[0] == noted[1] != noted[2]
    assert len(noted[0]) == 12


@pytest.mark.parametrize(
    ("second", "said"),
    [("cpu-amr", "unknown target 'cpu-amr'; did you mean 'cpu-arm'"), ("./own.toml", "neither a folder with")],
)
def test_a_mistake_in_the_second_target_is_told_before_the_first_is_begun(
    cli: Any, tiny_card: Path, tmp_path: Path, second: str, said: str
) -> None:
    text = Path(load_target("cpu-arm").file).read_text(encoding="utf-8")
    (tmp_path / "own.toml").write_text(f'environment = "not-installed"\n{text}', encoding="utf-8")
    done = cli("distill", tiny_card, "-t", "cpu-arm", "-t", second)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
