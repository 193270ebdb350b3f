"""Detection goes the whole road, from a folder of boxes to a judged file and its report."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgekd.bench.worker import detections, suppressed
from edgekd.distill.student import distill_student, learn
from edgekd.distill.tasks.detection import BOXES
from edgekd.distill.tasks.known import examples_of, learning_of
from edgekd.distill.untrained import new_student
from edgekd.errors import InputError
from edgekd.export.suppress import final_detections
from edgekd.export.teacher import export_teacher
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make_shapes
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.recipe import Feature
from edgekd.run import Run
from edgekd.target import load_target
from edgekd.tasks.boxes import overlaps
from edgekd.tasks.known import load_card

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, cli: Cli, tmp_path: Path, things: Any) -> Path:
    """The finished run, made by the first test that asks. Its target is another device, so no time is measured."""
    if not finished.exists():
        things.write_voc(tmp_path / "things")
        (tmp_path / "things.toml").write_text(things.CARD)
        done = cli("distill", "things.toml", "-t", "cpu-arm", "--out", finished)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "mAP50" in done.stdout
    return finished


def result_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def test_set(run: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    return np.load(run / "data" / "test.npy"), np.load(run / "data" / "test.labels.npy")


test_set.__test__ = False  # type: ignore[attr-defined]


def test_the_files_give_boxes_in_pixels_and_scores(run: Path) -> None:
    result, (images, truth) = result_of(run), test_set(run)
    assert [model["name"] for model in result["models"]] == ["teacher", "student fp32", "student int8"]
    assert result["verdict"] == "pass" and result["parity"]["same"] >= 0.99
    for model in result["models"]:
        session = onnxruntime.InferenceSession(run / "exported" / model["file"])
        assert [one.name for one in session.get_outputs()] == ["boxes"]
        (outputs,) = session.run(None, {"image": images})
        assert outputs.shape == (len(images), 6, 6 * 8)
        best = outputs[:, 4:].max(axis=1).argmax(axis=1)
        shared = [
            overlaps(outputs[number, :4, place][None], known[known[:, 0] >= 0, 1:5]).max()
            for number, (place, known) in enumerate(zip(best, truth, strict=True))
        ]
        assert np.mean([one > 0.5 for one in shared]) >= 0.8  # the surest box of an image lies on an object
        assert 0 <= outputs[:, 4:].min() and outputs[:, 4:].max() <= 1
        assert json.loads(session.get_modelmeta().custom_metadata_map["suppression"])["kept"] == 100


def test_the_decoding_of_boxes_stays_in_float(run: Path) -> None:
    file = next(model["file"] for model in result_of(run)["models"] if model["name"] == "student int8")
    graph = onnx.load(run / "exported" / file).graph
    quantized = {value for node in graph.node if node.op_type == "DequantizeLinear" for value in node.output}
    assert quantized
    for node in graph.node:
        if node.op_type in ("Exp", "Sub", "Sigmoid") or (
            node.op_type == "Concat" and graph.output[0].name in node.output
        ):
            readers = {one.op_type for one in graph.node if set(node.output) & set(one.input)}
            assert "QuantizeLinear" not in readers


def test_workers_write_detections(run: Path) -> None:
    _, truth = test_set(run)
    written = [np.load(path) for path in (run / "records").glob("*.test.*.npy")]
    assert len(written) == 3
    assert {(found.dtype.name, found.shape) for found in written} == {("float32", (len(truth), 100, 6))}


def test_the_page_for_callers_finds_what_workers_find(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block in docs/deploying.md, which is executed as it is."""
    page = (Path(__file__).parents[1] / "docs" / "deploying.md").read_text(encoding="utf-8")
    block = page.partition("## Boxes")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(run)
    code: dict[str, Any] = {}
    exec(compile(block, "deploying.md", "exec"), code)
    session, images = onnxruntime.InferenceSession("model.onnx"), test_set(run)[0]
    for image in images:
        (kept,) = detections(session.run(None, {"image": image[None]})[0], 1)
        kept = kept[(kept[:, 5] >= 0) & (kept[:, 4] >= 0.3)]
        found = code["detect"](image)
        assert [name for name, _, _ in found] == [("disc", "square")[int(label)] for label in kept[:, 5]]
        assert np.allclose([box for _, _, box in found], kept[:, :4].reshape(len(found), 4))


def test_the_report_shows_truth_and_boxes(run: Path, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    done = cli("report", run, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert page.count('<img alt="') == 4 * min(6, len(test_set(run)[1]))  # truth, and three models
    assert "square, AP50-95" in page and "found" in page
    assert "images, boxes and scores within " in page and "logits within" not in page
    assert "boxes and scores of the fp32 export differ by at most" in (run / "report.md").read_text()


@pytest.fixture(scope="module")
def suppressing_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suppressing") / "run"


@pytest.fixture
def suppressing(suppressing_run: Path, run: Path, cli: Cli, tmp_path: Path, things: Any) -> Path:
    """A run with the weights of the other one's teacher, a short training, and suppression in the graph."""
    if not suppressing_run.exists():
        things.write_voc(tmp_path / "things")
        head, _, rest = things.CARD.partition("[teacher.training]")
        student = rest.partition("[student]")[2].replace("epochs = 25", "epochs = 2").partition("[budget]")[0]
        export = "[export]\nnms = true\nnms_score = 0.05\nnms_boxes = 20\n"
        weights = run / "teacher" / "teacher.safetensors"
        (tmp_path / "things.toml").write_text(f"{head}[student]{student}{export}[budget]\nsize_kb = 60\n")
        done = cli("distill", "things.toml", "-t", "cpu-arm", "--teacher", weights, "--out", suppressing_run)
        assert done.returncode == 0, done.stderr + done.stdout
    return suppressing_run


def test_files_with_suppression_give_final_detections(suppressing: Path, run: Path) -> None:
    images, truth = test_set(suppressing)
    for model in result_of(suppressing)["models"]:
        session = onnxruntime.InferenceSession(suppressing / "exported" / model["file"])
        (found,) = session.run(None, {"image": images})
        assert found.shape == (len(images), 20, 6)
        assert found[found[..., 5] >= 0][:, 4].min(initial=1) > 0.05
        about = session.get_modelmeta().custom_metadata_map
        assert json.loads(about["suppression"])["in_graph"] and "(batch, 20, 6)" in about["output"]
        if model["name"] == "teacher":  # the same weights as in the other run, where workers suppressed
            (raw,) = onnxruntime.InferenceSession(run / "exported" / model["file"]).run(None, {"image": images})
            expected = np.stack([suppressed(one, 0.05, 0.6, 20) for one in raw])
            assert (expected[..., 5] >= 0).any(axis=1).all()
            assert np.allclose(detections(found, len(found)), expected, atol=1e-3)
    assert result_of(suppressing)["parity"]["same"] == 1.0
    assert (truth[..., 0] >= 0).any()


def test_suppression_stays_in_float(suppressing: Path) -> None:
    file = next(model["file"] for model in result_of(suppressing)["models"] if model["name"] == "student int8")
    graph = onnx.load(suppressing / "exported" / file).graph
    quantized = {value for node in graph.node if node.op_type == "DequantizeLinear" for value in node.output}
    behind = [
        n for n in graph.node if n.op_type in ("TopK", "NonMaxSuppression", "GatherElements", "Where", "GatherND")
    ]
    assert quantized and len(behind) >= 7
    assert not quantized & {value for node in behind for value in node.input}


def test_such_files_are_measured_checked_and_shown(suppressing: Path, run: Path, cli: Cli, tmp_path: Path) -> None:
    images, truth = test_set(run)
    np.savez(tmp_path / "set.npz", inputs=images, labels=truth)
    file = suppressing / "exported" / "teacher-fp32.onnx"
    done = cli(
        *("check", file, "--baseline", run / "exported" / "teacher-fp32.onnx", "--target", "cpu-arm"),
        *("--data", tmp_path / "set.npz", "--json", tmp_path / "check.json"),
    )
    assert done.returncode in (0, 3), done.stderr + done.stdout
    assert "mAP50" in done.stdout
    pytest.importorskip("plotly")
    done = cli("report", suppressing, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr


def test_a_given_onnx_teacher_is_exported_with_suppression(
    run: Path, suppressing: Path, tmp_path: Path, things: Any
) -> None:
    (tmp_path / "things.toml").write_text(f"{things.CARD}\n[export]\nnms = true\nnms_boxes = 20\n")
    card, (images, _) = load_card(str(tmp_path / "things.toml")), test_set(run)
    given = load_teacher_file(card, run / "exported" / "teacher-fp32.onnx")
    export_teacher(given, card, load_target("cpu-arm"), tmp_path / "teacher.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "teacher.onnx")
    (raw,) = onnxruntime.InferenceSession(given.file).run(None, {"image": images})
    assert np.array_equal(detections(session.run(None, {"image": images})[0], len(images)),
                          final_detections(raw, card.export))  # fmt: skip
    assert json.loads(session.get_modelmeta().custom_metadata_map["suppression"])["in_graph"]
    with pytest.raises(InputError, match=r"the teacher gives \(20, 6\) outputs for the corners of boxes and 2 classes"):
        load_teacher_file(card, suppressing / "exported" / "teacher-fp32.onnx")


def test_the_exported_teacher_can_teach_again(run: Path, tmp_path: Path, things: Any) -> None:
    (tmp_path / "things.toml").write_text(things.CARD)
    card, (images, _) = load_card(str(tmp_path / "things.toml")), test_set(run)
    given = load_teacher_file(card, run / "exported" / "teacher-fp32.onnx")
    trained = load_teacher_file(card, run / "teacher" / "teacher.safetensors")
    with torch.no_grad():
        answers, expected = (one.module(torch.from_numpy(images)) for one in (given, trained))
    assert torch.allclose(answers, expected, atol=1e-3)


def test_what_does_not_fit_detection_is_refused(tmp_path: Path, things: Any, cli: Cli) -> None:
    things.write_voc(tmp_path / "things", 12)
    changes = {
        ("views = 2", "views = 2\nsmall_share = 0.5"): "recipe.small_share: is for images that get one class",
        ("kd = 1.0, ce", "dkd = 1.0, ce"): "dkd: needs logits of classes",
        ("strides = [[8]], deepest = [8]", "strides = [[4]], deepest = [8]"): "both should have the same places",
        ("height = 48", "height = 52"): "does not divide 52",
        ("[augment]", "[augment]\ncrop = 40"): "augment.crop: teacher.shape: deepest: the resolution is made 16 times "
        "smaller, which does not divide 40",
        ("[budget]", "[recipe.qat]\nepochs = 1\n\n[budget]"): "recipe.qat: detectors cannot be trained for int8",
        ("views = 2", "views = 2\nlabel_smoothing = 0.1"): "recipe.label_smoothing: is for classes that exclude",
        ("[budget]", "[export]\nnms_boxes = 5\n\n[budget]"): "export: nms_boxes: has no effect without nms = true",
    }
    for (old, new), told in changes.items():
        (tmp_path / "things.toml").write_text(things.CARD.replace(old, new))
        done = cli("distill", "things.toml", "-t", "cpu-arm", "--out", tmp_path / "refused")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert told in done.stderr


def test_a_student_learns_features_where_objects_are(tmp_path: Path, things: Any) -> None:
    """The student's map is half as wide and high as the teacher's, and the term falls."""
    things.write_voc(tmp_path / "things", 16)
    feature = Feature(term="hint", teacher="stem", student="heads.0.trunk", where="foreground")
    (tmp_path / "things.toml").write_text(things.CARD)
    card = load_card(str(tmp_path / "things.toml"))
    recipe = dataclasses.replace(card.recipe, epochs=4, losses={"ce": 1.0}, features=(feature,))
    card = dataclasses.replace(card, recipe=recipe)
    train, validation = (BOXES.examples(card, part) for part in BOXES.load(card, None))
    torch.manual_seed(0)
    teacher = LoadedTeacher(Deployed(make_teacher_net(card).eval(), card.data), Path())
    shape = make_shapes(card, card.student)[0]
    net, _ = new_student(card, shape, teacher)
    history = learn(card, shape, net, [teacher], (train, validation), tmp_path / "student")
    terms = [epoch["terms"]["hint heads.0.trunk"] for epoch in history]
    assert terms[-1] < 0.9 * terms[0]


def test_a_file_is_quantized_by_its_own_score(run: Path, cli: Cli, tmp_path: Path, things: Any) -> None:
    things.write_voc(tmp_path / "more", 160, parts=True)
    file, out = run / "exported" / "teacher-fp32.onnx", tmp_path / "int8.onnx"
    told = ("--out", out, "--json", tmp_path / "told.json", "--max-drop", "20")
    done = cli("quantize", file, "--target", "cpu-arm", "--data", tmp_path / "more", *told)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "mAP50" in done.stdout and "accuracy" not in done.stdout
    compared = json.loads((tmp_path / "told.json").read_text())["comparison"]
    assert (compared["score"], compared["labelled"], compared["lost"]) == ("map50", True, None)
    assert compared["change"]["low"] <= compared["change"]["value"] <= compared["change"]["high"]
    graph = onnx.load(out).graph
    assert any(node.op_type.endswith("Conv") for node in graph.node)
    read = {value for node in graph.node if node.op_type in ("Exp", "Sigmoid") for value in node.output}
    assert not [node for node in graph.node if node.op_type == "QuantizeLinear" and set(node.input) & read]
    images = np.stack([things.drawn(seed)[0][..., None] for seed in range(200, 236)])
    np.savez(tmp_path / "set.npz", inputs=images)  # without labels: what the file before finds is the truth
    done = cli("quantize", file, "--target", "cpu-arm", "--data", tmp_path / "set.npz", *told)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "mAP50 with the file before as the truth 100.00 % → " in done.stdout
    wrong = np.zeros((36, 1, 6), np.float32)
    wrong[:, 0] = (7, 1, 1, 9, 9, 0)
    np.savez(tmp_path / "wrong.npz", inputs=images, labels=wrong)
    done = cli("quantize", file, "--target", "cpu-arm", "--data", tmp_path / "wrong.npz", *told)
    assert done.returncode == 2 and "wrong.npz: holds the class 7, and the model tells 2 classes" in done.stderr


def with_ssdlite(card: str) -> str:
    """The card with another teacher, trainings of one epoch, and no limits of scores."""
    head, _, rest = card.partition("[teacher]")
    head = head.replace("channels = 1", "channels = 3").replace("[0.2]", "[0.2, 0.2, 0.2]")
    rest = "[teacher.training]" + rest.partition("[teacher.training]")[2].partition("[budget]")[0]
    return f'{head}[teacher]\nfamily = "ssdlite"\n\n{rest}[budget]\nsize_kb = 60\n'.replace("epochs = 25", "epochs = 1")


def test_ssdlite_teaches_by_its_detections(cli: Cli, tmp_path: Path, things: Any) -> None:
    things.write_voc(tmp_path / "things", 30)
    text, file = with_ssdlite(things.CARD), tmp_path / "teacher.safetensors"
    (tmp_path / "things.toml").write_text(text)
    done = cli("teach", "things.toml", "--out", file)
    assert done.returncode == 0, done.stderr + done.stdout
    card = load_card(str(tmp_path / "things.toml"))
    given, run = load_teacher_file(card, file), Run(tmp_path / "run")
    data = tuple(examples_of(card, part) for part in learning_of(card.data).load(card, None))
    with torch.no_grad():
        assert given.module(data[1].batch(np.arange(2), None).inputs).shape == (2, 6, 6 * (12 + 4 + 4))
    distill_student(card, {"strides": [8], "deepest": 8}, [given], (data[0], data[1]), run)
    history = json.loads((run.student_weights.parent / "history.json").read_text())["epochs"]
    assert history[0]["terms"]["kd"] > 0 and history[0]["terms"]["ce"] > 0
    for (old, new), told in {
        ("kd = 1.0, ce", "mse = 1.0, ce"): "recipe.losses: mse: compares places one by one, and the teacher has others",
        ("[teacher.training]", "[teacher.training]\nclass_weights = [1, 2]"): "teacher.training.class_weights: has no",
        (
            '[student]\nfamily = "detector"\nknobs = {',
            '[student]\nfamily = "ssdlite"\n# {',
        ): "student.family: ssdlite is",
    }.items():
        assert old in text
        (tmp_path / "things.toml").write_text(text.replace(old, new))
        done = cli("distill", "things.toml", "-t", "cpu-arm", "--teacher", file, "--out", tmp_path / "refused")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert told in done.stderr


def test_a_model_is_checked_against_another_one(run: Path, cli: Cli, tmp_path: Path) -> None:
    images, truth = test_set(run)
    np.savez(tmp_path / "set.npz", inputs=images, labels=truth)
    files = [run / "exported" / model["file"] for model in result_of(run)["models"][1::-1]]  # student, teacher
    done = cli(
        *("check", files[0], "--baseline", files[1], "--target", "cpu-arm", "--data", tmp_path / "set.npz"),
        *("--json", tmp_path / "check.json"),
    )
    assert done.returncode in (0, 1, 3), done.stderr
    assert "mAP50" in done.stdout
