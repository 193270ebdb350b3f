"""What `bench` and `check` are pointed at: run folders, bare files, and data given beside them."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekd.bench.measure import Subject
from edgekd.bench.records import Effort, Plan, Record
from edgekd.devices.device import Site
from edgekd.devices.local import Local
from edgekd.errors import InputError, ModelError
from edgekd.figures import ModelFigures
from edgekd.files import told_apart
from edgekd.run import Run
from edgekd.runs import Inputs, Measured, finished, measure_files, measure_run, read_arrays, run_inputs, targets_of
from edgekd.target import load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION

TARGET = load_target("cpu-x86")
EFFORT = Effort(processes=1, warmup_s=0.0, min_calls=3, max_calls=3, max_s=0.0, placement=False)


def as_they_are(figures: Sequence[ModelFigures], subjects: Sequence[Subject], site: Site) -> list[ModelFigures]:
    return list(figures)


@pytest.fixture
def site(place: Callable[..., Site]) -> Site:
    """The target on a device that it describes, whose workers run here."""
    return place(TARGET)


def measure_one(site: Site, path: Path, inputs: Inputs | None = None) -> Measured:
    """The figures of one file; raises what was collected instead."""
    measured, problems = measure_files([path], site, EFFORT, as_they_are, inputs)
    if problems:
        raise problems[0]
    return measured[0]


def write_model(path: Path) -> Path:
    """Four pixels to four classes: the pixels as they are."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def images(classes: list[int]) -> NDArray[np.uint8]:
    return (200 * np.eye(4, dtype=np.uint8)[classes]).reshape(-1, 2, 2, 1)


# --- arrays in a file ---


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_arrays_are_read(tmp_path: Path, kind: type) -> None:
    np.savez(tmp_path / "second.npz", inputs=images([0, 1, 3]), labels=np.array([0, 1, 2], kind), more=np.zeros(3))
    given = read_arrays(tmp_path / "second.npz", tmp_path)
    assert np.array_equal(np.load(given.file, mmap_mode="r"), images([0, 1, 3]))
    assert given.targets.tolist() == [0, 1, 2]
    assert targets_of(given, IMAGE_CLASSIFICATION).targets.dtype == np.int64
    assert given.about == str(tmp_path / "second.npz")
    assert given.torch == {}


def test_arrays_by_the_names_of_inputs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "second.npz"
    arrays = {"ids": np.ones((3, 4), np.int64), "words": np.array(["a", "b", "c"]), "labels": np.array([0, 1, 2])}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    (tmp_path / "scratch").mkdir()
    given = read_arrays(path, tmp_path / "scratch")
    assert given.targets.tolist() == [0, 1, 2]
    with np.load(given.file) as kept:
        assert set(kept.files) == {"ids", "words"}
    np.savez(path, inputs=images([0, 1]))
    assert len(read_arrays(path, tmp_path / "scratch").targets) == 0  # to be timed alone


def test_files_of_one_name_are_told_apart() -> None:
    paths = [Path(text) for text in ("a/m.onnx", "b/m.onnx", "c.onnx", "x/a/n.onnx", "y/a/n.onnx", "c.onnx")]
    assert told_apart(paths) == ["a/m.onnx", "b/m.onnx", "c.onnx", "x/a/n.onnx", "y/a/n.onnx", "c.onnx"]
    assert told_apart([Path("m.onnx"), Path("a/m.onnx")]) == ["m.onnx", "a/m.onnx"]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": np.zeros(3, np.int64)}, "or one array for each input of the model; it holds no inputs"),
        ({"inputs": images([0, 1]), "labels": np.array([0, 1, 2])}, "one for each input, got int64 [3]"),
        ({"inputs": images([0, 1]), "labels": np.array([0.0, 1.0])}, "got float64 [2] for inputs uint8 [2, 2, 2, 1]"),
        ({"inputs": images([0, 1]), "labels": np.array([0, -1])}, "label 1 is -1; labels are class numbers from 0"),
        ({"inputs": images([0, 1]), "labels": np.array([[0], [1]])}, "got int64 [2, 1]"),
        ({"inputs": images([]), "labels": np.zeros(0, np.int64)}, "got int64 [0]"),
        ({"inputs": np.array(5), "labels": np.array([0])}, "for inputs int64 []"),
        ({"inputs": images([0, 1]), "labels": np.array(["cat", "dog"])}, "got <U3 [2]"),
        ({"inputs": images([0, 1]), "labels": np.array([0, 2**63], np.uint64)}, "label 1 is 9223372036854775808; "),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_told(tmp_path: Path, arrays: dict[str, NDArray[Any]], said: str) -> None:
    path = tmp_path / "second.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        targets_of(read_arrays(path, tmp_path), IMAGE_CLASSIFICATION)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "class numbers from 0 for inputs" not in str(caught.value)


def test_files_of_another_kind_are_told(tmp_path: Path) -> None:
    (tmp_path / "words.npz").write_text("no arrays")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "code.npz", inputs=np.array([{"not": "numbers"}]), labels=np.array([0]))
    os.mkfifo(tmp_path / "pipe.npz")  # reading it would wait for ever
    for name in ("pipe.npz", "words.npz", "cut.npz", "one.npy", "code.npz", "."):
        with pytest.raises(InputError, match=r"should be an .npz file with the arrays inputs and labels"):
            read_arrays(tmp_path / name, tmp_path)
    with pytest.raises(InputError, match=r"gone.npz: no such file$"):
        read_arrays(tmp_path / "gone.npz", tmp_path)


# --- bare files ---


def test_a_bare_file_without_data(tmp_path: Path, site: Site) -> None:
    taken = measure_one(site, write_model(tmp_path / "m.onnx"))
    assert taken.figures.name == "m.onnx"
    assert taken.figures.score.value is None
    assert taken.figures.latency_p50_ms.value is not None
    assert taken.remark == "a bare file brings no data: accuracy unknown"
    assert any(note.startswith("seeded random inputs") for note in taken.figures.notes)


def test_a_bare_file_with_data(tmp_path: Path, site: Site) -> None:
    np.savez(tmp_path / "second.npz", inputs=images([0, 1, 2, 3]), labels=np.array([0, 1, 2, 2]))
    given = read_arrays(tmp_path / "second.npz", tmp_path)
    taken = measure_one(site, write_model(tmp_path / "m.onnx"), given)
    assert taken.figures.score.value == 0.75
    assert taken.figures.details["recall"] == [1.0, 1.0, 0.5, None]
    assert taken.remark == f"accuracy on {tmp_path / 'second.npz'}, 4 inputs"
    assert not any("random" in note for note in taken.figures.notes)
    assert taken.figures.fingerprint["inputs"] == "data"


def test_data_that_a_file_cannot_take_is_told(tmp_path: Path, site: Site) -> None:
    model = write_model(tmp_path / "m.onnx")
    np.savez(tmp_path / "second.npz", inputs=images([0, 1]), labels=np.array([0, 4]))
    with pytest.raises(InputError, match=r"labels go up to 4, and .*m.onnx tells 4 classes apart$"):
        measure_one(site, model, read_arrays(tmp_path / "second.npz", tmp_path))
    np.savez(tmp_path / "second.npz", inputs=images([0, 1]).astype(np.float32), labels=np.array([0, 1]))
    with pytest.raises(InputError, match=r"the model takes tensor\(uint8\) .* the data is float32 \[2, 2, 2, 1\]$"):
        measure_one(site, model, read_arrays(tmp_path / "second.npz", tmp_path))
    with pytest.raises(InputError, match=r"gone.onnx: no such model file or run folder$"):
        measure_one(site, tmp_path / "gone.onnx")


# --- runs ---


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A folder with test images, and what the student in torch said of them."""
    (tmp_path / "run" / "data").mkdir(parents=True)
    run = Run(tmp_path / "run")
    np.save(run.data / "test.npy", images([0, 1, 2, 3]))
    np.save(run.data / "test.labels.npy", np.array([0, 1, 2, 2]))
    np.save(run.data / "test.student.npy", images([0, 1, 2, 2]).reshape(4, 4).astype(np.float32))
    return run


def test_the_runs_own_inputs(run: Run) -> None:
    given = run_inputs(run, "test")
    assert given.file == run.data / "test.npy"
    assert given.targets.tolist() == [0, 1, 2, 2]
    assert given.about == "the run's test data"
    assert given.torch["student"].shape == (4, 4)
    (run.data / "test.student.npy").unlink()  # runs of an older edgekd did not keep it
    assert run_inputs(run, "test").torch == {}


@pytest.mark.parametrize("gone", ["test.npy", "test.labels.npy"])
def test_inputs_that_are_not_there_are_told(run: Run, gone: str) -> None:
    (run.data / gone).unlink()
    with pytest.raises(InputError, match=r"test.npy: is missing; run its `edgekd distill` with --fresh$"):
        run_inputs(run, "test")
    with pytest.raises(InputError, match=r"validation.npy: is missing; "):
        run_inputs(run, "val")


def test_inputs_that_are_damaged_are_told(run: Run) -> None:
    whole = (run.data / "test.npy").read_bytes()
    for broken in (b"", whole[:20], whole[:-1]):
        (run.data / "test.npy").write_bytes(broken)
        with pytest.raises(InputError, match=r"test.npy: the run's data cannot be read: .+; run it with --fresh$"):
            run_inputs(run, "test")
    (run.data / "test.npy").write_bytes(whole)
    np.save(run.data / "test.student.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(InputError, match=r"test.student.npy: should hold one row of outputs for each of 4 inputs; run"):
        run_inputs(run, "test")
    np.save(run.data / "test.labels.npy", np.array(["a"] * 4))
    with pytest.raises(InputError, match=r"test.labels.npy: labels should be one class number ≥ 0 for each input, got"):
        run_inputs(run, "test")


def test_what_is_no_finished_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path}: is no run folder$"):
        finished(tmp_path)
    (tmp_path / "run.json").write_text('{"card": {}, "target": {}, "budget": {}, "files": {}}')
    with pytest.raises(InputError, match=rf"^{tmp_path}: is not finished; run its `edgekd distill` again$"):
        finished(tmp_path)
    (tmp_path / "result.json").write_text("{ broken")
    with pytest.raises(InputError, match=r"result.json: is not valid JSON"):
        finished(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"schema_version": 9, "models": []}))
    with pytest.raises(InputError, match=r"result.json: schema_version is 9, and this edgekd knows 3 and older; take"):
        finished(tmp_path)


def subjects_of(run: Run, names: Sequence[str]) -> list[Subject]:
    run.exported.mkdir(exist_ok=True)
    return [
        Subject(name=name, file=write_model(run.exported / f"{name.replace(' ', '-')}.onnx"), precision="fp32")
        for name in names
    ]


def test_models_of_a_run_are_held_against_teacher_and_torch(run: Run, tmp_path: Path, site: Site) -> None:
    heard: list[str] = []

    def progress_of(name: str) -> Any:
        heard.append(name)
        return lambda done, total: None

    subjects = subjects_of(run, ["teacher", "student fp32"])
    taken, problems = measure_run(
        run, subjects, site, EFFORT, as_they_are, run_inputs(run, "test"), tmp_path / "records", progress_of
    )
    assert problems == []
    assert heard == ["teacher", "student fp32"]
    teacher, student = taken
    assert teacher.figures.score.value == student.figures.score.value == 0.75
    assert student.figures.agreement.value == 1
    assert student.figures.torch_agreement.value == 0.75  # torch said 2 of the last
    assert student.figures.max_logit_diff.value == 200
    assert teacher.figures.torch_agreement.value is None
    assert student.figures.scores["ece"].value == pytest.approx(0.25)  # sure of all four, right in three
    assert {path.suffix for path in (tmp_path / "records").iterdir()} == {".json", ".npy"}


@pytest.mark.parametrize(("mode", "name"), [("latency", "teacher"), ("predict", "teacher"), ("predict", "student")])
def test_an_error_of_one_model_keeps_the_others(
    run: Run, tmp_path: Path, place: Callable[..., Site], mode: str, name: str
) -> None:
    def crash(plan: Plan, model: Path, *rest: Any) -> Record:
        if (plan.mode, model.stem) == (mode, name):
            raise ModelError(f"{model.name}: the worker crashed")
        return Local().run(plan, model, *rest)

    site = place(TARGET, answer=crash)
    subjects = subjects_of(run, ["teacher", "student"])
    taken, problems = measure_run(
        run, subjects, site, EFFORT, as_they_are, run_inputs(run, "test"), tmp_path / "records"
    )
    assert [str(problem) for problem in problems] == [f"{name}.onnx: the worker crashed"]
    (other,) = taken
    assert other.figures.name != name
    assert other.figures.score.value == 0.75
    if name == "teacher":  # then there is nothing to agree with
        assert other.figures.agreement.value is None


def test_each_network_of_a_run_is_held_against_itself_in_torch(run: Run, tmp_path: Path, site: Site) -> None:
    for name, last in (("int8-qat", 0), ("pruned", 3)):
        np.save(run.data / f"test.{name}.npy", images([0, 0, 1, last]).reshape(4, 4).astype(np.float32))
    subjects = subjects_of(run, ["teacher", "student fp32", "student int8-qat", "pruned fp32"])

    def agreements() -> list[float | None]:
        given = run_inputs(run, "test")
        taken, _ = measure_run(run, subjects, site, EFFORT, as_they_are, given, tmp_path / "records")
        return [one.figures.torch_agreement.value for one in taken]

    assert agreements() == [None, 0.75, 0.25, 0.5]
    (run.data / "test.pruned.npy").unlink()  # a run of `edgekd prune` has one network, kept under the student's name
    assert agreements() == [None, 0.75, 0.25, 0.75]
