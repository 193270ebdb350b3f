"""Segmentation goes the whole road, from a folder of masks to a judged file and its report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import jaccard_score

from edgekd.bench.worker import DEFAULTS, make_session
from edgekd.nets.teachers import load_teacher_file
from edgekd.tasks.known import load_card

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, cli: Cli, tmp_path: Path, discs: Any) -> Path:
    """The finished run, made by the first test that asks. Its target is another device, so no time is measured."""
    if not finished.exists():
        discs.write_masked(tmp_path / "shapes")
        (tmp_path / "shapes.toml").write_text(discs.CARD)
        done = cli("distill", "shapes.toml", "-t", "cpu-arm", "--out", finished)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "mean IoU" in done.stdout
    return finished


def result_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def test_set(run: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return np.load(run / "data" / "test.npy"), np.load(run / "data" / "test.labels.npy")


test_set.__test__ = False  # type: ignore[attr-defined]


def test_the_scores_are_those_of_scikit_learn(run: Path) -> None:
    result, (images, truth) = result_of(run), test_set(run)
    assert [model["name"] for model in result["models"]] == ["teacher", "student fp32", "student int8"]
    for model in result["models"]:
        exact = {**DEFAULTS, "precise_int8": True}  # as on an Arm CPU, also without VNNI
        session = make_session(onnxruntime, exact, str(run / "exported" / model["file"]))
        (logits,) = session.run(None, {"image": images})
        expected = jaccard_score(truth.ravel(), logits.argmax(1).ravel(), average=None)
        miou, worst, _ = model["scores"]
        assert (miou["name"], worst["name"]) == ("miou", "worst_iou")
        assert model["details"]["iou"] == pytest.approx(expected)
        assert miou["value"] == pytest.approx(expected.mean())
        assert miou["low"] < miou["value"] < miou["high"]
    assert result["parity"]["same"] > 0.999
    assert result["verdict"] == "pass"


def test_workers_write_class_maps(run: Path) -> None:
    _, truth = test_set(run)
    written = [np.load(path) for path in (run / "records").glob("*.test.*.npy")]
    assert len(written) == 3
    assert {(maps.dtype.name, maps.shape) for maps in written} == {("uint8", truth.shape)}


def test_the_report_shows_images_truth_and_answers(run: Path, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    done = cli("report", run, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    examples = min(6, len(test_set(run)[1]))
    assert page.count('<img alt="') == 5 * examples  # image, truth, and three models
    assert "<td>ring</td>" in page and 'alt="truth"' in page


def test_the_exported_teacher_can_teach_again(run: Path, tmp_path: Path, discs: Any) -> None:
    (tmp_path / "shapes.toml").write_text(discs.CARD)
    card, (images, _) = load_card(str(tmp_path / "shapes.toml")), test_set(run)
    given = load_teacher_file(card, run / "exported" / "teacher-fp32.onnx")
    trained = load_teacher_file(card, run / "teacher" / "teacher.safetensors")
    with torch.no_grad():
        answers, expected = (one.module(torch.from_numpy(images)) for one in (given, trained))
    assert answers.shape == (len(images), 3, 32, 32)
    assert torch.allclose(answers, expected, atol=1e-3 * float(expected.abs().max()))


def test_what_needs_one_class_an_image_is_refused(tmp_path: Path, discs: Any, cli: Cli) -> None:
    discs.write_masked(tmp_path / "shapes", 12)
    for change, told in (
        ("small_share = 0.5\nlosses", "recipe.small_share: is for images that get one class"),
        ("losses", ""),
    ):
        text = discs.CARD.replace("losses", change).replace("crop = 16", "crop = 18" if not told else "crop = 16")
        (tmp_path / "shapes.toml").write_text(text)
        done = cli("distill", "shapes.toml", "-t", "cpu-arm", "--out", tmp_path / "refused")
        assert done.returncode == 2
        assert (told or "augment.crop: teacher.shape: the resolution is made 4 times smaller") in done.stderr


def test_a_model_is_checked_against_another_one(run: Path, cli: Cli, tmp_path: Path) -> None:
    images, truth = test_set(run)
    np.savez(tmp_path / "set.npz", inputs=images, labels=truth)
    files = [run / "exported" / model["file"] for model in result_of(run)["models"][1::-1]]  # student, teacher
    done = cli(
        *("check", files[0], "--baseline", files[1], "--target", "cpu-arm", "--data", tmp_path / "set.npz"),
        *("--json", tmp_path / "check.json"),
    )
    assert done.returncode in (1, 3), done.stderr
    assert "mean IoU" in done.stdout
    same = cli("check", files[0], "--baseline", files[0], "--target", "cpu-arm", "--data", tmp_path / "set.npz")
    assert same.returncode in (0, 3), same.stderr + same.stdout


def test_a_file_is_quantized_by_its_own_score(run: Path, cli: Cli, tmp_path: Path, discs: Any) -> None:
    discs.write_masked(tmp_path / "more", 160)
    file = run / "exported" / "teacher-fp32.onnx"
    told = ("--out", tmp_path / "int8.onnx", "--json", tmp_path / "told.json", "--max-drop", "20")
    done = cli("quantize", file, "--target", "cpu-arm", "--data", tmp_path / "more", *told)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "mean IoU" in done.stdout and "accuracy" not in done.stdout
    compared = json.loads((tmp_path / "told.json").read_text())["comparison"]
    assert (compared["score"], compared["labelled"], compared["mcnemar_p"]) == ("miou", True, None)
    images = np.stack([discs.drawn(seed)[0][..., None] for seed in range(200, 236)])
    truth = np.zeros((36, 31, 32), np.uint8)
    truth[:, 5] = 1
    np.savez(tmp_path / "set.npz", inputs=images)
    done = cli("quantize", file, "--target", "cpu-arm", "--data", tmp_path / "set.npz", *told)
    assert "mean IoU with the file before as the truth 100.00 % → " in done.stdout, done.stderr
    np.savez(tmp_path / "wrong.npz", inputs=images, labels=truth)
    done = cli("quantize", file, "--target", "cpu-arm", "--data", tmp_path / "wrong.npz", *told)
    assert done.returncode == 2 and "class maps are [31, 32], and teacher-fp32.onnx gives [32, 32]" in done.stderr
