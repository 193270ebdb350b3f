"""What a check measures, in which order, and when it stops; workers are replaced where their times would matter."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench.measure import Subject
from edgekd.bench.records import Effort, Record
from edgekd.card import Budget
from edgekd.check import measure
from edgekd.check.asked import CheckJob, Criteria, JobOptions
from edgekd.check.jobs import run_job, sample_of
from edgekd.check.measure import check, measure_all
from edgekd.check.record import Checked, as_baseline, read_record, write_record
from edgekd.check.sources import Source, baseline_of, signature_of, source_of
from edgekd.check.tolerance import Tolerance, tolerance_keys
from edgekd.devices.device import Site
from edgekd.errors import ConfigError, ExitCode, InputError, ModelError
from edgekd.figures import Figure, ModelFigures, Placement
from edgekd.files import file_sha256
from edgekd.judge import Judged
from edgekd.machine import Machine
from edgekd.result import model_json
from edgekd.runs import Inputs
from edgekd.scores import ACCURACY
from edgekd.target import load_target
from edgekd.tasks.task import Task

Place = Callable[..., Site]

OFF: dict[str, Any] = dict.fromkeys(tolerance_keys([ACCURACY]), "off")
TINY = Effort(warmup_s=0.0, min_calls=30, max_calls=30, max_s=0.0)


def as_they_are(figures: Sequence[ModelFigures], subjects: Sequence[Subject], site: Site) -> list[ModelFigures]:
    return list(figures)


def save(path: Path, doc: str = "") -> Path:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT)],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, doc_string=doc)
    onnx.save(model, path)
    return path


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, place: Place) -> Site:
    """A target on a device that it describes; so is every target that a job asks for."""
    monkeypatch.setattr("edgekd.devices.local.connect", lambda target, device="", accuracy_on="": place(target))
    return place(load_target("cpu-x86"))


@pytest.fixture
def elsewhere(place: Place) -> Site:
    """A target on a device that it does not describe."""
    return place(load_target("cpu-x86"), Machine("riscv64", "no board", frozenset(), ""))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model.onnx", "the new one")


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return save(tmp_path / "before.onnx", "the old one")


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A finished run, made up, whose files are all the same one."""
    folder = tmp_path / "run"
    (folder / "exported").mkdir(parents=True)
    (folder / "data").mkdir()
    figures = [ModelFigures(name, f"{name}.onnx", file_sha256(model), 1_000, "fp32") for name in ("teacher", "student")]
    for entry in figures:
        (folder / "exported" / entry.file).write_bytes(model.read_bytes())
    (folder / "model.onnx").write_bytes(model.read_bytes())
    content = {"schema_version": 2, "chosen": "student", "target": "cpu-x86", "models": list(map(model_json, figures))}
    (folder / "result.json").write_text(json.dumps(content))
    budget = {"size_kb": 60.0, "latency_p50_ms": 2.0, "min_accuracy": 0.5, "teacher_min_accuracy": 0.99}
    (folder / "run.json").write_text(json.dumps({"card": {}, "target": {}, "files": {}, "budget": budget}))
    np.save(folder / "data" / "test.npy", np.zeros((4, 3), np.uint8))
    np.save(folder / "data" / "test.labels.npy", np.array([0, 0, 0, 1]))
    return folder


class Workers:
    """In place of the processes of a check; what each was asked is in `asked`."""

    def __init__(self, make: Any) -> None:
        self.make = make
        self.asked: list[str] = []
        self.alone: Callable[[int], Record] = lambda turn: make.alone(1e-3 * (1 + 0.001 * (turn % 5)))
        self.ratio: Callable[[int], float] = lambda turn: 1 + 0.001 * (turn % 5)
        self.classes: dict[str, list[int]] = {}

    def count(self, word: str) -> int:
        return sum(entry.startswith(word) for entry in self.asked)

    def process(self, model: Path, site: Site, inputs: Path | None, effort: Effort) -> Record:
        self.asked.append(f"alone {model.name}")
        return self.alone(self.count("alone") - 1)

    def pair(self, model: Path, baseline: Path, site: Site, inputs: Path | None, effort: Effort, turn: int) -> Record:
        same = model == baseline
        self.asked.append(f"{'same' if same else 'pair'} {turn}")
        return self.make.pair(1 + 0.001 * (turn % 3) if same else self.ratio(turn))  # type: ignore[no-any-return]

    def memory(self, model: Path, site: Site, effort: Effort) -> Record:
        self.asked.append(f"memory {model.name}")
        record: Record = self.make.alone()
        return dataclasses.replace(record, memory={"run_bytes": 50_000_000})

    def placement(self, model: Path, site: Site, inputs: Path | None, effort: Effort) -> Placement:
        self.asked.append(f"placement {model.name}")
        return Placement(nodes={"CPUExecutionProvider": 1}, time_share={}, fused=0, unfused=0)

    def logits(self, subject: Subject, site: Site, inputs: Path, folder: Path, task: Task, effort: Effort) -> Any:
        self.asked.append(f"answers {subject.name} {subject.file.name}")
        return np.eye(3)[self.classes.get(subject.file.name, [0, 0, 0, 0])]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, make: Any) -> Workers:
    found = Workers(make)
    monkeypatch.setattr(measure, "measure_process", found.process)
    monkeypatch.setattr(measure, "measure_pair", found.pair)
    monkeypatch.setattr(measure, "measure_memory", found.memory)
    monkeypatch.setattr(measure, "measure_load", lambda model, *_: found.asked.append(f"load {model.name}"))
    monkeypatch.setattr(measure, "measure_placement", found.placement)
    monkeypatch.setattr(measure, "logits_of", found.logits)
    return found


def checked_of(
    source: Source, site: Site, budget: Budget, baseline: Source | Checked | None = None, **tolerance: Any
) -> tuple[Judged, Checked]:
    asked = Criteria(budget=budget, tolerance=Tolerance().with_values(OFF | tolerance))
    return check(source, site, asked, baseline, as_they_are, lambda text: None)


def outcomes(judged: Judged) -> dict[str, str]:
    assert judged.verdict is not None
    return {line.key: line.outcome for line in judged.verdict.lines}


# --- only what a verdict will ask for ---


def test_a_file_that_cannot_be_loaded_meets_no_budget(tmp_path: Path, site: Site) -> None:
    """An operator that nobody has registered: it can be read, and it is small."""
    graph = helper.make_graph(
        [helper.make_node("MyNMS", ["x"], ["y"], domain="my.custom")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.custom", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "custom.onnx")
    source = Source(name="m", file=tmp_path / "custom.onnx")
    for baseline in (None, Source(name="old", file=save(tmp_path / "old.onnx"))):
        with pytest.raises(InputError, match=r"custom\.onnx: onnxruntime cannot load it: .*MyNMS"):
            checked_of(source, site, Budget(size_kb=100), baseline, max_size_growth=0.5)
    with pytest.raises(InputError, match=r"custom\.onnx: onnxruntime cannot load it: .*MyNMS"):
        checked_of(Source(name="old", file=tmp_path / "old.onnx"), site, Budget(), source, max_size_growth=0.5)


def test_a_model_is_loaded_once(workers: Workers, model: Path, site: Site) -> None:
    checked_of(Source(name="m", file=model), site, Budget(size_kb=1))
    assert workers.asked == ["load model.onnx"]
    checked_of(Source(name="m", file=model), site, Budget(size_kb=1, peak_memory_mb=100))
    assert "load model.onnx" not in workers.asked[1:]


def test_the_size_needs_no_more_than_loading_it(model: Path, site: Site, workers: Workers) -> None:
    judged, checked = checked_of(Source(name="m", file=model), site, Budget(size_kb=1))
    assert (judged.outcome, workers.asked) == ("pass", ["load model.onnx"])
    assert (judged.file, judged.sha256) == (str(model), file_sha256(model))
    assert checked.sample.signature == "uint8 [N,3]"
    assert checked.sample.size_bytes == model.stat().st_size


@pytest.mark.parametrize(
    ("budget", "asked"),
    [
        (Budget(latency_p50_ms=2), {"alone": 8}),
        (Budget(load_ms=100), {"alone": 8}),
        (Budget(latency_p99_ms=2), {"alone": 8}),
        (Budget(peak_memory_mb=60), {"memory": 3}),
        (Budget(min_coverage=1.0), {"placement": 1}),
        (Budget(min_accuracy=0.1), {"load": 1}),  # a bare file without data
    ],
)
def test_a_budget_brings_its_own_workers(
    model: Path, site: Site, workers: Workers, budget: Budget, asked: dict[str, int]
) -> None:
    checked_of(Source(name="m", file=model), site, budget)
    assert Counter(entry.split()[0] for entry in workers.asked) == asked


@pytest.mark.parametrize(
    ("tolerance", "asked"),
    [
        ({}, {"load": 2}),
        ({"max_slowdown": 0.025}, {"pair": 6, "same": 6}),
        ({"max_memory_growth": 0.05}, {"memory": 6}),
        ({"max_fused_loss": 0.0}, {"placement": 2}),
        ({"max_size_growth": 0.01}, {"load": 2}),
    ],
)
def test_a_tolerance_brings_its_own_workers(
    model: Path, before: Path, site: Site, workers: Workers, tolerance: dict[str, float], asked: dict[str, int]
) -> None:
    old = Source(name="old", file=before)
    checked_of(Source(name="m", file=model), site, Budget(size_kb=1), old, **tolerance)
    assert Counter(entry.split()[0] for entry in workers.asked) == asked


def test_the_very_same_file_is_not_timed_against_itself(
    model: Path, tmp_path: Path, site: Site, workers: Workers
) -> None:
    twin = tmp_path / "twin.onnx"
    twin.write_bytes(model.read_bytes())
    source, old = Source(name="m", file=model), Source(name="old", file=twin)
    judged, _ = check(source, site, Criteria(budget=Budget()), old, as_they_are, lambda text: None)
    assert (outcomes(judged), workers.asked) == ({"max_slowdown": "pass"}, ["load model.onnx"])


def test_time_is_not_measured_where_the_target_is_not(
    model: Path, before: Path, workers: Workers, elsewhere: Site
) -> None:
    source, old = Source(name="m", file=model), Source(name="old", file=before)
    budget = Budget(latency_p50_ms=1.0, peak_memory_mb=60)
    judged, _ = checked_of(source, elsewhere, budget, old, max_slowdown=0.025)
    assert Counter(entry.split()[0] for entry in workers.asked) == {"memory": 3, "load": 1}
    assert outcomes(judged) == {
        "latency_p50_ms": "inconclusive", "peak_memory_mb": "pass", "max_slowdown": "inconclusive",
    }  # fmt: skip


def test_an_estimate_is_asked_for_a_target_that_is_not_here(model: Path, workers: Workers, elsewhere: Site) -> None:
    guess = Figure(0.5, "estimated", 0.4, 0.6, "from resnet18")

    def estimated(figures: Sequence[ModelFigures], *_: Any) -> list[ModelFigures]:
        return [dataclasses.replace(model, latency_p50_ms=guess) for model in figures]

    source = Source(name="m", file=model)
    for allowed, outcome in ((False, "inconclusive"), (True, "pass")):
        asked = Criteria(budget=Budget(latency_p50_ms=1.0), allow_estimated=allowed)
        judged, checked = check(source, elsewhere, asked, None, estimated, lambda text: None)
        assert (judged.outcome, checked.sample.estimate) == (outcome, guess)


# --- looks ---


def test_it_goes_on_until_the_looks_have_a_verdict(model: Path, site: Site, workers: Workers, make: Any) -> None:
    heard: list[str] = []
    source = Source(name="m", file=model)
    workers.alone = lambda turn: make.alone(1e-3 * (1.1 if turn % 2 else 0.9))
    asked = Criteria(budget=Budget(latency_p50_ms=1.0))
    judged, checked = check(source, site, asked, None, as_they_are, heard.append)
    assert (judged.outcome, workers.count("alone"), len(checked.sample.latency)) == ("inconclusive", 24, 24)
    assert heard[0] == "0 of 8 processes, 0 of 0 pairs"
    assert heard[8] == "8 of 12 processes, 0 of 0 pairs"
    assert len(heard) == 24


def test_a_slowdown_is_confirmed_on_fresh_processes(model: Path, before: Path, site: Site, workers: Workers) -> None:
    source, old = Source(name="m", file=model), Source(name="old", file=before)
    workers.ratio = lambda turn: 1.05 + 0.001 * (turn % 3)
    judged, checked = checked_of(source, site, Budget(), old, max_slowdown=0.025)
    assert (judged.outcome, len(checked.pairs), len(checked.same)) == ("fail", 12, 6)
    assert workers.asked[:4] == ["pair 0", "same 0", "pair 1", "same 1"]  # by turns, so that drift hits all alike
    assert judged.baseline == f"old ({file_sha256(before)[:12]}, measured by turns)"
    assert any(note.startswith("this machine, now: the baseline against itself +0.1 %") for note in judged.notes)
    # Six slow ones in a row, and none after them.
    workers.ratio = lambda turn: 1.05 + 0.001 * (turn % 3) if turn < 6 else 1.0 + 0.001 * (turn % 3)
    judged, checked = checked_of(source, site, Budget(), old, max_slowdown=0.025)
    assert judged.outcome in ("pass", "inconclusive")
    assert len(checked.pairs) > 12


def test_a_check_that_has_failed_goes_no_further(model: Path, site: Site, workers: Workers, make: Any) -> None:
    workers.alone = lambda turn: make.alone(1e-3 * (1.1 if turn % 2 else 0.9), load_s=1.0)
    budget = Budget(latency_p50_ms=1.0, load_ms=10)
    judged, _ = checked_of(Source(name="m", file=model), site, budget)
    assert outcomes(judged) == {"latency_p50_ms": "inconclusive", "load_ms": "fail"}
    assert workers.count("alone") == 8


def test_the_records_of_a_check_give_its_verdict_again(
    model: Path, before: Path, site: Site, workers: Workers, tmp_path: Path
) -> None:
    source, old = Source(name="m", file=model), Source(name="old", file=before)
    asked = Criteria(budget=Budget(latency_p50_ms=1.1, size_kb=1))
    judged, checked = check(source, site, asked, old, as_they_are, lambda text: None)
    write_record(tmp_path / "record.json", checked)
    job = CheckJob(path=tmp_path / "record.json", target="cpu-x86", budget=asked.budget, tolerance=asked.tolerance)
    again, kept = run_job(job, JobOptions(), as_they_are, lambda text: None)
    assert (again.verdict, kept) == (judged.verdict, None)
    assert again.notes[0].startswith("from a record of ")
    assert again.file == str(tmp_path / "record.json")


def test_processes_that_differ_are_not_pooled(model: Path, site: Site, workers: Workers, make: Any) -> None:
    def throttled(turn: int) -> Record:
        mark = make.machine | {"onnxruntime": "1.24.1" if turn < 3 else "1.25.0"}
        record: Record = make.alone()
        return dataclasses.replace(record, fingerprint=mark)

    workers.alone = throttled
    source = Source(name="m", file=model)
    said = "not comparable: onnxruntime is '1.24.1' in one and '1.25.0' in another"
    with pytest.raises(ModelError, match=said):
        checked_of(source, site, Budget(latency_p50_ms=1.0))
    workers.asked.clear()
    with pytest.raises(ModelError, match=said):
        measure_all(source, site, TINY, as_they_are)


# --- a stored baseline ---


def test_a_stored_baseline_takes_processes_of_the_model_alone(
    model: Path, before: Path, site: Site, workers: Workers
) -> None:
    stored = as_baseline(measure_all(Source(name="old", file=before), site, TINY, as_they_are))
    assert len(stored.sample.latency) == 8
    assert stored.sample.memory_bytes == (50_000_000,) * 3
    assert stored.sample.placement is not None
    workers.asked.clear()
    asked = Criteria(budget=Budget())
    judged, checked = check(Source(name="m", file=model), site, asked, stored, as_they_are, lambda text: None)
    assert Counter(entry.split()[0] for entry in workers.asked) == {"alone": 8, "memory": 3, "placement": 1}
    assert judged.outcome == "pass"
    assert (checked.stored, checked.pairs) == (True, ())
    assert f"record of {stored.sample.at}" in judged.baseline


def test_a_stored_baseline_of_another_machine_is_refused_before_time_is_spent(
    model: Path, before: Path, site: Site, workers: Workers, make: Any
) -> None:
    sample = measure_all(Source(name="old", file=before), site, TINY, as_they_are)
    stored = as_baseline(dataclasses.replace(sample, fingerprint=make.machine | {"cpu": "another CPU"}))
    workers.asked.clear()
    source = Source(name="m", file=model)
    with pytest.raises(ConfigError, match=r"cpu was 'another CPU' and is 'a CPU'; .* --allow-difference cpu$"):
        check(source, site, Criteria(budget=Budget()), stored, as_they_are, lambda text: None)
    assert workers.count("alone") == 0
    asked = Criteria(budget=Budget(), allow_difference=("cpu",))
    judged, _ = check(source, site, asked, stored, as_they_are, lambda text: None)
    assert judged.notes[0] == "compared although cpu was 'another CPU' and is 'a CPU'"
    # Also where nothing but memory is measured.
    asked = dataclasses.replace(asked, tolerance=Tolerance().with_values(OFF | {"max_memory_growth": 0.05}))
    judged, _ = check(source, site, asked, stored, as_they_are, lambda text: None)
    assert judged.notes[0] == "compared although cpu was 'another CPU' and is 'a CPU'"


# --- data ---


def inputs(tmp_path: Path) -> Inputs:
    np.save(tmp_path / "set.npy", np.zeros((4, 3), np.uint8))
    return Inputs(tmp_path / "set.npy", np.array([0, 0, 0, 1]), "set.npz")


def test_both_answer_the_same_questions(
    model: Path, before: Path, tmp_path: Path, site: Site, workers: Workers
) -> None:
    workers.classes = {"before.onnx": [0, 0, 0, 1], "model.onnx": [0, 0, 1, 1]}
    source = Source(name="m", file=model, inputs=inputs(tmp_path))
    old = Source(name="old", file=before)
    judged, checked = checked_of(source, site, Budget(min_accuracy=0.3), old, max_accuracy_loss=0.5)
    assert outcomes(judged) == {"min_accuracy": "pass", "max_accuracy_loss": "inconclusive"}
    assert workers.asked == ["answers model model.onnx", "answers model before.onnx"]
    assert checked.baseline is not None and checked.sample.answers is not None and checked.baseline.answers is not None
    assert checked.sample.answers.data == checked.baseline.answers.data
    np.save(tmp_path / "set.npy", np.ones((4, 3), np.uint8))
    _, other = checked_of(source, site, Budget(min_accuracy=0.75))
    assert other.sample.answers is not None and other.sample.answers.data != checked.sample.answers.data


def test_labels_that_the_model_does_not_know(model: Path, tmp_path: Path, site: Site, workers: Workers) -> None:
    strange = dataclasses.replace(inputs(tmp_path), targets=np.array([0, 1, 2, 3]))
    with pytest.raises(InputError, match=r"^set.npz: labels go up to 3, and .*model.onnx tells 3 classes apart$"):
        checked_of(Source(name="m", file=model, inputs=strange), site, Budget(min_accuracy=0.5))


# --- what is pointed at ---


def test_a_run_brings_data_teacher_and_budget(run: Path, site: Site, workers: Workers) -> None:
    source = source_of(run, site.target, None)
    assert (source.name, source.file, source.teacher) == (
        "run/student", run / "model.onnx", run / "exported" / "teacher.onnx",
    )  # fmt: skip
    assert source.budget == Budget(size_kb=60, latency_p50_ms=2, min_accuracy=0.5)  # the teacher's minimum is its own
    workers.classes = {"teacher.onnx": [0, 0, 0, 1], "model.onnx": [0, 0, 1, 1]}
    job = CheckJob(path=run, target="cpu-x86", budget=Budget(max_accuracy_drop=20.0), tolerance=Tolerance())
    judged, _ = run_job(job, JobOptions(), as_they_are, lambda text: None)
    assert outcomes(judged) == {
        "latency_p50_ms": "pass", "size_kb": "pass", "min_accuracy": "inconclusive", "max_accuracy_drop": "fail",
    }  # fmt: skip
    assert workers.count("answers teacher") == 1
    run_job(dataclasses.replace(job, budget=Budget()), JobOptions(), as_they_are, lambda text: None)
    assert (workers.count("answers teacher"), workers.count("answers model")) == (1, 2)  # nobody asked for it
    assert judged.figures["max_accuracy_drop"].value == 25.0


def test_a_runs_latency_counts_on_its_own_target_alone(run: Path, site: Site) -> None:
    assert source_of(run, load_target("wasm"), None).budget == Budget(size_kb=60, min_accuracy=0.5)


def test_a_file_that_is_not_the_runs_is_told(run: Path, site: Site) -> None:
    with (run / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"model.onnx: is not the file that the run wrote \(its SHA-256 differs\)"):
        source_of(run, site.target, None)
    (run / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"model.onnx: is missing; run its `edgekd distill` again, which makes"):
        source_of(run, site.target, None)


def test_what_a_baseline_may_be(run: Path, model: Path, site: Site, tmp_path: Path, make: Any) -> None:
    found = baseline_of(run, site.target)
    assert isinstance(found, Source)
    assert (found.file, found.inputs) == (run / "model.onnx", None)
    (run / "data" / "test.npy").unlink()
    assert baseline_of(run, site.target) == found
    assert baseline_of(model, site.target) == Source(name="model.onnx", file=model)
    write_record(tmp_path / "kept.json", Checked(sample=make.sample()))
    assert baseline_of(tmp_path / "kept.json", site.target) == read_record(tmp_path / "kept.json")
    with pytest.raises(InputError, match=r"gone.onnx: no such baseline; give a model, a run or a record"):
        baseline_of(tmp_path / "gone.onnx", site.target)


def test_the_signature_of_a_file(model: Path, tmp_path: Path) -> None:
    assert signature_of(model) == "uint8 [N,3]"
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    assert signature_of(tmp_path / "broken.onnx") is None


def test_a_model_without_inputs_is_a_model(tmp_path: Path, site: Site) -> None:
    value = numpy_helper.from_array(np.zeros(3, np.float32))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    graph = helper.make_graph([helper.make_node("Constant", [], ["y"], value=value)], "g", [], [output])
    onnx.save(helper.make_model(graph), tmp_path / "constant.onnx")
    assert signature_of(tmp_path / "constant.onnx") == ""
    job = job_for(tmp_path / "constant.onnx", budget=Budget(size_kb=1))
    assert run_job(job, JobOptions(), as_they_are, lambda text: None)[0].outcome == "pass"


# --- jobs ---


def job_for(path: Path, **values: Any) -> CheckJob:
    return CheckJob(path=path, **{"target": "cpu-x86", "budget": Budget(), "tolerance": Tolerance(), **values})


def failed(job: CheckJob) -> Judged:
    judged, checked = run_job(job, JobOptions(), as_they_are, lambda text: None)
    assert (judged.verdict, judged.outcome, checked) == (None, "error", None)
    return judged


def test_what_goes_wrong_is_part_of_the_answer(
    model: Path, site: Site, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = failed(job_for(tmp_path / "gone.onnx", budget=Budget(size_kb=1)))
    assert (judged.name, judged.target, judged.exit_code) == ("gone.onnx", "cpu-x86", ExitCode.USAGE)
    assert judged.problem == f"{tmp_path / 'gone.onnx'}: no such model file or run folder"
    assert "unknown target 'cpu-x87'" in failed(job_for(model, target="cpu-x87")).problem
    assert "no budget to judge it by; give one or more --budget key=value" in failed(job_for(model)).problem

    def crash(*_: Any) -> Record:
        raise ModelError("model.onnx: the worker crashed")

    monkeypatch.setattr(measure, "measure_process", crash)
    judged = failed(job_for(model, budget=Budget(latency_p50_ms=1)))
    assert (judged.problem, judged.exit_code) == ("model.onnx: the worker crashed", ExitCode.FAIL)


def test_a_file_that_may_not_be_read_leaves_the_other_jobs_alone(
    model: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(measure, "whole_model", refused)
    judged = failed(job_for(model, budget=Budget(size_kb=1)))
    assert (judged.problem, judged.exit_code) == (f"{model}: Permission denied", ExitCode.USAGE)


def test_weights_in_other_files_count(
    model: Path, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `edgekd-check-files` counts them; and other weights make another model."""
    from edgekd.check.precommit import main

    big, weights = onnx.load(model), tmp_path / "weights"
    big.graph.initializer.append(numpy_helper.from_array(np.zeros(1_000, np.float32), "w"))
    file = tmp_path / "big.onnx"
    onnx.save(big, file, save_as_external_data=True, location="weights", size_threshold=0)
    source = Source(name="m", file=file)
    for size_kb, outcome, code in ((4, "fail", 1), (9, "pass", 0)):
        judged, checked = checked_of(source, site, Budget(size_kb=size_kb))
        assert (judged.outcome, main([f"--max-size-kb={size_kb}", str(file)])) == (outcome, code)
        assert checked.sample.size_bytes == file.stat().st_size + 4_000
    same, _ = checked_of(source, site, Budget(), source, max_size_growth=0.0)
    weights.write_bytes(b"\1" * 4_000)
    _, other = checked_of(source, site, Budget(size_kb=9))
    assert (same.sha256, other.sample.sha256 != checked.sample.sha256) == (checked.sample.sha256, True)
    weights.unlink()
    capsys.readouterr()
    problem = failed(job_for(file, budget=Budget(size_kb=9))).problem
    assert main([str(file)]) == 2
    assert capsys.readouterr().err == f"edgekd-check-files: {problem}\n"
    assert "keeps weights in 'weights', which cannot be read (No such file or directory); add it" in problem


def test_the_devices_ceilings_bind_every_model(model: Path, workers: Workers, site: Site) -> None:
    ceiling = load_target("wasm").limits.peak_memory_mb
    assert ceiling is not None
    judged, _ = run_job(job_for(model, target="wasm"), JobOptions(), as_they_are, lambda text: None)
    assert judged.verdict is not None
    assert [(line.key, line.limit) for line in judged.verdict.lines] == [("peak_memory_mb", ceiling)]


def test_a_record_against_a_record(tmp_path: Path, model: Path, make: Any) -> None:
    records = (make.alone(1e-3), make.alone(1.001e-3)) * 4
    for name, cpu, size in (("old", "a CPU", 100_000), ("new", "another CPU", 120_000)):
        mark = make.machine | {"cpu": cpu}
        sample = make.sample(f"{name}.onnx", size_bytes=size, latency=records, fingerprint=mark)
        write_record(tmp_path / f"{name}.json", Checked(sample=sample))
    job = job_for(tmp_path / "new.json", baseline=tmp_path / "old.json")
    assert "cpu was 'a CPU' and is 'another CPU'" in failed(job).problem
    allowed = JobOptions(allow_difference=("cpu",))
    judged, checked = run_job(job, allowed, as_they_are, lambda text: None)
    assert (outcomes(judged)["max_slowdown"], outcomes(judged)["max_size_growth"]) == ("pass", "fail")
    assert judged.notes[0] == "compared although cpu was 'a CPU' and is 'another CPU'"
    assert checked is None
    job = job_for(tmp_path / "new.json", baseline=model)
    assert failed(job).problem.endswith("is a record, so its baseline must be one, too")


def test_a_baseline_is_all_that_can_be_measured_or_a_whole_record(
    model: Path, site: Site, workers: Workers, tmp_path: Path, make: Any
) -> None:
    sample = sample_of(job_for(model), as_they_are)
    assert Counter(entry.split()[0] for entry in workers.asked) == {"memory": 3, "placement": 1, "alone": 8}
    write_record(tmp_path / "whole.json", Checked(sample=sample))
    assert sample_of(job_for(tmp_path / "whole.json"), as_they_are) == sample
    assert sample_of(job_for(tmp_path / "whole.json", target=""), as_they_are) == sample
    write_record(tmp_path / "pairs.json", Checked(sample=make.sample(), pairs=(make.pair(),)))
    with pytest.raises(InputError, match=r"pairs.json: holds no times of the model alone, which a baseline needs; "):
        sample_of(job_for(tmp_path / "pairs.json"), as_they_are)


# --- for real ---


def test_two_real_models_by_turns(model: Path, before: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real workers; limits so wide that no time matters."""
    monkeypatch.setattr(measure, "PAIR", TINY)
    wide = Tolerance().with_values(OFF | dict.fromkeys(("max_slowdown", "max_slowdown_p95", "max_load_growth"), 10.0))
    asked = Criteria(budget=Budget(size_kb=1), tolerance=wide, effort=TINY)
    source, old = Source(name="m", file=model), Source(name="old", file=before)
    judged, checked = check(source, site, asked, old, as_they_are, lambda text: None)
    assert outcomes(judged) == {
        "size_kb": "pass", "max_slowdown": "pass", "max_slowdown_p95": "pass", "max_load_growth": "pass",
    }  # fmt: skip
    assert (len(checked.pairs), len(checked.same)) == (6, 6)
    for record in (*checked.pairs, *checked.same):
        assert record.baseline is not None
        assert record.baseline["fingerprint"]["model_sha256"] == file_sha256(before)
    assert {record.fingerprint["model_sha256"] for record in checked.pairs} == {file_sha256(model)}
    assert checked.sample.fingerprint["onnxruntime"] in judged.machine


def test_a_run_on_another_target_is_judged_by_what_its_card_asks_there(run: Path) -> None:
    """Latency that the card asks on every target or on that one is no longer dropped; `--budget` of the run stays."""
    file = run / "run.json"
    made = json.loads(file.read_text())
    everywhere = {"min_accuracy": 0.5, "latency_p95_ms": 9.0}
    made["budget"] = everywhere | {"latency_p50_ms": 2.0, "size_kb": 60.0}  # size by --budget
    made["budgets"] = {"": everywhere, "cpu-x86": {"latency_p50_ms": 2.0}, "cpu-arm": {"latency_p50_ms": 5.0}}
    file.write_text(json.dumps(made))
    asked = {name: source_of(run, load_target(name), None).budget.limits() for name in ("cpu-x86", "cpu-arm", "wasm")}
    assert asked["cpu-x86"] == made["budget"]
    assert asked["cpu-arm"] == everywhere | {"latency_p50_ms": 5.0, "size_kb": 60.0}
    assert asked["wasm"] == everywhere | {"size_kb": 60.0}
