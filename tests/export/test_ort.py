"""Files in the ORT format: they answer as the ONNX files do, keep int8 kernels, and are what a run ships."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgekd.bench.sequences import sequence_of, task_name_of
from edgekd.card import Student
from edgekd.errors import ConfigError
from edgekd.export.onnx import export
from edgekd.export.ort import deployed_file, refuse_two_files
from edgekd.export.quantize import quantize
from edgekd.files import file_sha256
from edgekd.nets.deployed import noise_inputs
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.spec import locate
from edgekd.target import Quantization, load_target
from edgekd.tasks.known import load_card

Cli = Callable[..., Any]
CARD = load_card("digits")
ORT = dataclasses.replace(load_target("cpu-arm"), format="ort")


def files(folder: Path) -> tuple[Path, Path]:
    """An untrained network of convolutions in fp32 and int8."""
    torch.manual_seed(0)
    net = make(CARD, Student(family="convnet"), {"channels": [8, 16], "hidden": 16}, "student.knobs").eval()
    fp32, int8 = folder / "net.onnx", folder / "net-int8.onnx"
    export(folded(net, CARD.data), CARD, ORT, fp32, {})
    quantize(fp32, int8, Quantization(), noise_inputs(CARD.data, 32).numpy())
    return fp32, int8


def answers(file: Path, images: np.ndarray, optimised: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimised:
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry("session.save_model_format", "ONNX")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return np.asarray(logits)


def test_answers_and_kernels_are_those_of_the_onnx_file(tmp_path: Path) -> None:
    images = noise_inputs(CARD.data, 64).numpy()
    for file in files(tmp_path):
        made = deployed_file(file, ORT)
        assert made == file.with_suffix(".ort") and made.read_bytes()[4:8] == b"ORTM"
        expected, found = answers(file, images), answers(made, images, tmp_path / "again.onnx")
        nodes = onnx.load(tmp_path / "again.onnx").graph.node
        assert "nchwc" not in "".join(node.domain for node in nodes)  # whose blocks are of this CPU's size
        if file.stem.endswith("int8"):
            assert np.array_equal(found, expected)  # the same kernels on the same numbers
            kinds = Counter(node.op_type for node in nodes)
            assert (kinds["QLinearConv"], kinds["QGemm"], kinds["FusedConv"]) == (2, 2, 0)
        else:
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_file_is_kept_until_the_onnx_file_or_it_changes(tmp_path: Path) -> None:
    fp32, int8 = files(tmp_path)
    content = deployed_file(fp32, ORT).read_bytes()
    assert deployed_file(fp32, ORT).read_bytes() == content
    fp32.write_bytes(int8.read_bytes())
    images = noise_inputs(CARD.data, 8).numpy()
    assert np.array_equal(answers(deployed_file(fp32, ORT), images), answers(int8, images))
    fp32.with_suffix(".ort").write_bytes(content)  # no longer what was made of the ONNX file
    assert np.array_equal(answers(deployed_file(fp32, ORT), images), answers(int8, images))
    assert deployed_file(fp32, load_target("cpu-arm")) == fp32


def own_target(folder: Path, *replaced: tuple[str, str]) -> Path:
    """A target in the ORT format that is no machine's, so that nothing is timed."""
    text = locate("targets", "cpu-x86").read_text(encoding="utf-8")
    for old, new in (('"avx2"', '"no_such_feature"'), ("precisions =", 'format = "ort"\nprecisions ='), *replaced):
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return folder / "mine.toml"


def test_a_run_measures_judges_and_ships_it(cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    target, run = own_target(tmp_path, (', "w8"', ""), ('["int8", "fp32"]', '["int8"]')), tmp_path / "run"
    done = cli("distill", tiny_card, "--target", target, "--out", run)
    assert done.returncode == 0, done.stderr
    assert f"{run / 'model.ort'}, " in done.stdout and not (run / "model.onnx").exists()
    result = json.loads((run / "result.json").read_text())
    shipped = next(model for model in result["models"] if model["name"] == result["chosen"])
    assert (shipped["name"], shipped["file"]) == ("student int8", "student-int8.ort")
    assert (shipped["sha256"], shipped["size_bytes"]) == (
        file_sha256(run / "model.ort"),
        (run / "model.ort").stat().st_size,
    )
    assert "The file is `model.ort`" in (run / "report.md").read_text()
    images, labels = np.load(run / "data" / "test.npy"), np.load(run / "data" / "test.labels.npy")
    right = answers(run / "model.ort", images).argmax(1) == labels
    assert shipped["scores"][0]["value"] == pytest.approx(right.mean())
    checked = cli("check", run, "--target", target)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    weights = file_sha256(run / "exported" / "student-int8.onnx")
    for name in ("student-int8.ort", "student-fp32.ort", "student-fp32.ort.json"):
        (run / "exported" / name).write_bytes(b"damaged")
    (run / "model.onnx").write_bytes(b"of another format")
    again = cli("distill", tiny_card, "--target", target, "--out", run)
    assert again.returncode == 0, again.stderr
    for name in ("student-int8.ort", "student-fp32.ort", "student-fp32.ort.json"):
        assert f"{name}: " in again.stderr and "it is made again" in again.stderr
    assert file_sha256(run / "exported" / "student-int8.onnx") == weights
    assert file_sha256(run / "model.ort") == file_sha256(run / "exported" / "student-int8.ort")
    assert not (run / "model.onnx").exists()
    done = cli("distill", tiny_card, "--target", target, "--out", run)
    assert done.returncode == 0 and "again" not in done.stderr


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [
        (('activation = "uint8"', 'activation = "uint8"'), 'would hold the weights of the scheme "w8" in float again'),
        (('"CPUExecutionProvider"', '"CUDAExecutionProvider"'), "is for CPUExecutionProvider; CUDAExecutionProvider"),
        (('format = "ort"', 'format = "tflite"'), "format"),
    ],
)
def test_a_target_that_cannot_have_it_is_told_in_one_line(
    cli: Cli, tmp_path: Path, replaced: tuple[str, str], expected: str
) -> None:
    done = cli("targets", own_target(tmp_path, replaced))
    assert done.returncode == 2
    assert expected in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_model_of_two_files_is_refused() -> None:
    with pytest.raises(ConfigError, match='its model is two files, and target cpu-arm has format = "ort"'):
        refuse_two_files(load_card("multi30k"), ORT)
    refuse_two_files(load_card("multi30k"), load_target("cpu-arm"))


def test_what_its_metadata_say_is_read_as_from_the_onnx_file(tmp_path: Path) -> None:
    fp32, _ = files(tmp_path)
    model = onnx.load(fp32)
    model.metadata_props.add(key="task", value="segmentation")
    model.metadata_props.add(key="sequence_length", value="7")
    onnx.save_model(model, fp32)
    made = deployed_file(fp32, ORT)
    for file in (fp32, made):
        assert task_name_of(file) == "segmentation"
    assert sequence_of(made) == sequence_of(fp32) == {"sequence_length": 7}
