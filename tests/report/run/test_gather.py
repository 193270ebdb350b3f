"""Gathering: everything a run folder holds, and what is said of what it does not."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from edgekd.artefacts import write_list
from edgekd.errors import InputError
from edgekd.figures import Figure, ModelFigures
from edgekd.files import read_json, write_json
from edgekd.report.run.export import as_markdown
from edgekd.report.run.gather import gather
from edgekd.report.run.html import html_report
from edgekd.report.run.story import interval_of
from edgekd.report.tasks.classification import class_section
from edgekd.scores import ACCURACY

OTHERS = ("cpu-arm", "cpu-x86-avx2")


def test_a_whole_run(make_run) -> None:
    story = gather(make_run(benched=OTHERS))
    assert (story.name, story.card, story.target, story.verdict) == ("digits@cpu-x86", "digits", "cpu-x86", "fail")
    assert [line.key for line in story.lines] == ["latency_p50_ms", "size_kb", "min_accuracy", "max_accuracy_drop"]
    assert [column.label for column in story.columns] == ["cpu-x86", *OTHERS]
    assert story.shipped.precision == "int8"
    assert len(story.candidates) == 4
    assert story.missing == ()
    assert story.versions["onnxruntime"] == "1.24.1"
    assert story.own.provider == "CPUExecutionProvider"
    assert story.columns[1].title  # from bench.json


def test_the_sentence_compares_the_shipped_file_with_the_teacher(make_run) -> None:
    story = gather(make_run())
    assert story.sentence == (
        "The shipped file is 13 × smaller and 5.0 × faster than the teacher and loses 3.00 points of accuracy."
    )


def test_the_sentence_says_when_latency_is_not_known(make_run) -> None:
    folder = make_run()
    content = read_json(folder / "result.json")
    content["models"][0]["latency_p50_ms"] = None
    content["models"][2]["scores"][0]["value"] = content["models"][0]["scores"][0]["value"]
    write_json(folder / "result.json", content)
    expected = "The shipped file is 13 × smaller than the teacher, at the same accuracy; its latency is not known."
    assert gather(folder).sentence == expected


def test_what_the_caller_must_do_to_an_image_is_told_in_one_line(make_run) -> None:
    folder = make_run()
    content = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    content.setdefault("card", {}).setdefault("data", {}).update(source="image-folder", size=8, resize=10, channels=3)
    write_json(folder / "run.json", content)
    story = gather(folder)
    assert story.input == "upright, shorter side to 10 (bilinear), centre 8x8 cut out; RGB, uint8, 0 to 255"
    assert f"- resize of an image before the model: {story.input}\n" in as_markdown([story])
    assert story.input in html_report([story])
    (folder / "run.json").unlink()
    assert gather(folder).input == ""


def test_confusion_and_recall_come_from_the_answers(make_run) -> None:
    story = gather(make_run())
    matrix = np.array(story.own.details["student int8"]["confusion"])
    assert matrix.sum() == 200
    assert matrix.trace() == 184  # 92 % of 200
    assert story.own.details["student int8"]["recall"] == pytest.approx(matrix.diagonal() / matrix.sum(axis=1))
    assert story.data["classes"][0] == "zero"


def test_latency_is_read_per_process_in_milliseconds(make_run) -> None:
    processes = gather(make_run()).own.samples_ms["teacher"]
    assert [len(calls) for calls in processes] == [120, 120, 120]
    assert np.median(np.concatenate(processes)) == pytest.approx(1.0, rel=0.05)


def test_records_and_answers_of_another_file_are_left_out(make_run) -> None:
    folder = make_run()
    path = folder / "records" / "teacher@cpu-x86.latency.json"
    write_json(path, read_json(path) | {"model_sha256": "another"})
    for logits in (folder / "records").glob("teacher*.npy"):
        logits.rename(logits.with_name("teacher@cpu-x86.test.000000000000.npy"))
    own = gather(folder).own
    assert own.samples_ms["teacher"] == ()
    assert "teacher" not in own.details


def test_what_is_missing_is_said(make_run) -> None:
    folder = make_run()
    for name in ("records", "data"):
        shutil.rmtree(folder / name)
    for name in ("run.json", "candidates.json"):
        (folder / name).unlink()
    story = gather(folder)
    assert [text.split(":")[0] for text in story.missing] == ["run.json", "candidates.json", "records", "records, data"]
    assert story.data == {}


@pytest.mark.parametrize("name", ["model.onnx", "model.decoder.onnx"])
def test_a_run_whose_shipped_file_is_gone_or_changed_is_refused(make_run, name: str) -> None:
    folder = make_run()
    for file in ("model.onnx", "model.decoder.onnx"):
        (folder / file).write_bytes(b"the file that was shipped")
    write_list(folder)
    assert gather(folder).missing == ()
    (folder / name).write_bytes(b"another one")
    with pytest.raises(InputError, match=rf"{name}: is not the file that the run wrote"):
        gather(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: is missing; run its `edgekd distill` again, which makes it again$"):
        gather(folder)


def test_a_log_that_was_cut_is_said(make_run) -> None:
    folder = make_run()
    log = folder / "student" / "log" / "training.jsonl"
    log.parent.mkdir(parents=True)
    write_json(folder / "student" / "history.json", {"schema_version": 1, "epochs": [{"epoch": n} for n in (1, 2, 3)]})
    lines = [json.dumps({"step": 10 * n, "epoch": n, "loss": 0.5}) + "\n" for n in (1, 2, 3)]
    log.write_text("".join(lines))
    assert gather(folder).missing == ()
    log.write_text("".join(lines)[:-5])
    assert gather(folder).missing == ("student/log/training.jsonl: the last 1 of 3 epochs",)
    log.write_bytes(b"\xff")
    assert gather(folder).missing == ("student/log/training.jsonl: the last 3 of 3 epochs",)
    assert "missing: student/log/training.jsonl: the last 3 of 3 epochs" in as_markdown([gather(folder)])
    log.unlink()
    assert gather(folder).missing == ()  # as in runs of earlier versions


def test_without_the_card_classes_have_numbers(make_run) -> None:
    folder = make_run()
    (folder / "run.json").unlink()
    title, section = class_section(gather(folder), 1)
    assert title == "Classes"
    assert all(f"class {place}" in section for place in range(3))


def test_the_commands_repeat_the_run(make_run) -> None:
    story = gather(make_run(name="my run", benched=("cpu-arm",)))
    budget = "--budget latency_p50_ms=0.25 --budget size_kb=20 --budget min_accuracy=0.9 --budget max_accuracy_drop=10"
    assert story.commands == (
        f"edgekd distill digits --target cpu-x86 {budget} --out 'runs/my run'",
        "edgekd bench RUN -t cpu-arm",
        "edgekd check 'runs/my run' --target cpu-x86",
    )


def test_the_commands_name_the_files_of_what_is_not_bundled(make_run) -> None:
    folder = make_run(name="own@own")
    write_json(folder / "result.json", read_json(folder / "result.json") | {"card": "own", "target": "own"})
    snapshot = read_json(folder / "run.json")
    snapshot["card"]["data"]["source"] = "image-folder"
    write_json(folder / "run.json", snapshot | {"files": {"teacher_sha256": "ab"}, "budget": {"size_kb": 20.0}})
    expected = "edgekd distill own.toml --target own.toml --teacher FILE --data DIR --budget size_kb=20"
    assert gather(folder).commands[0] == expected


def test_results_of_the_first_schema_are_read(make_run) -> None:
    folder = make_run()
    content = read_json(folder / "result.json") | {"schema_version": 1}
    for line in content["budget"]:
        del line["text"], line["low"], line["high"]
    for model in content["models"]:
        for key in ("energy_mj", "batches", "placement", "details", "remarks"):
            del model[key]
        accuracy = model.pop("scores")[0]
        model["accuracy"], model["provenance"]["accuracy"] = accuracy["value"], accuracy["provenance"]
    content["test_images"] = content.pop("test_examples")
    content["parity"] = {"images": 50, "max_abs": 1e-6, "relative": 1e-7, "argmax_agreement": 1.0}
    del content["examples"]
    write_json(folder / "result.json", content)
    story = gather(folder)
    assert story.shipped.placement is None
    assert (story.shipped.score.value, story.kind) == (0.92, ACCURACY)
    assert (story.own.count, story.own.examples, story.parity["same"]) == (200, "images", 1.0)
    assert "same class as torch on 100.00 % of 50 real images" in html_report([story])


def test_a_folder_that_is_no_run(tmp_path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        gather(tmp_path / "nothing")


def test_a_run_that_is_not_finished(make_run) -> None:
    folder = make_run()
    (folder / "result.json").unlink()
    with pytest.raises(InputError, match="is not finished"):
        gather(folder)


def cut(folder) -> None:
    path = next((folder / "records").glob("*.npy"))
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE = {
    "no JSON": lambda folder: (folder / "result.json").write_text("{"),
    "no result": lambda folder: (folder / "result.json").write_text(json.dumps({"schema_version": 2, "models": []})),
    "another version": lambda folder: (folder / "result.json").write_text(json.dumps({"schema_version": 99})),
    "a list for a run": lambda folder: (folder / "run.json").write_text("[1]"),
    "no candidates": lambda folder: (folder / "candidates.json").write_text("{}"),
    "cut answers": cut,
    "empty labels": lambda folder: (folder / "data" / "test.labels.npy").write_bytes(b""),
    "broken records": lambda folder: (folder / "records" / "teacher@cpu-x86.latency.json").write_text('{"records": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_is_one_line(make_run, damage) -> None:
    folder = make_run()
    damage(folder)
    with pytest.raises(InputError) as caught:
        gather(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def scored(accuracy: Figure) -> ModelFigures:
    """A model of this accuracy."""
    return ModelFigures("m", "m.onnx", "", 1, "fp32", scores={"accuracy": accuracy})


def test_an_interval_that_was_written_wins_over_wilson() -> None:
    assert interval_of(scored(Figure(0.9, "measured", 0.8, 0.95)), 100).low == 0.8  # type: ignore[union-attr]
    assert interval_of(scored(Figure(0.9, "measured")), 100).low == pytest.approx(0.8256, abs=1e-4)  # type: ignore[union-attr]
    assert interval_of(scored(Figure(0.9)), 0) is None


def test_reporting_needs_no_torch() -> None:
    heavy = "torch", "onnx", "onnxruntime", "plotly", "matplotlib"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({heavy})); import edgekd.cli.reporting, edgekd.report.run.html"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("edgekd bench RUN -t cpu-arm --thorough", "edgekd bench RUN -t cpu-arm --thorough"),
        ("edgekd bench ../runs/a -t my/own.toml", "edgekd bench ../runs/a -t my/own.toml"),
        ("edgekd bench /home/ann/digits@cpu-x86/ -t cpu-arm", "edgekd bench runs/digits@cpu-x86 -t cpu-arm"),
        ("edgekd bench /a/digits@cpu-x86/model.onnx", "edgekd bench runs/digits@cpu-x86/model.onnx"),
        ("edgekd bench a --data=/home/ann/x.npz -t/home/ann/t.toml", "edgekd bench a --data=x.npz -tt.toml"),
        ("edgekd bench a --save '/home/ann b/x.json'", "edgekd bench a --save x.json"),
        ("edgekd 'bench /home/ann/x", "edgekd 'bench x"),
    ],
)
def test_a_command_hides_where_files_lie(make_run, command, shown) -> None:
    folder = make_run(benched=("cpu-arm",))
    path = folder / "bench" / "cpu-arm" / "bench.json"
    write_json(path, read_json(path) | {"command": command})
    story = gather(folder)
    assert story.columns[1].command == shown
    assert shown in story.commands
