"""Records as files: what they keep, and what is said of one that is none."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.bench.records import RECORD_VERSION
from edgekd.check.record import (
    Checked,
    Sample,
    as_baseline,
    differences,
    is_record,
    may_be_replaced,
    read_record,
    record_of,
    refuse_other_machine,
    write_record,
)
from edgekd.check.verdict import figures_of
from edgekd.errors import ConfigError, InputError
from edgekd.figures import Figure, Placement
from edgekd.scores import ACCURACY
from edgekd.target import load_target


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "a@cpu-x86.json"


@pytest.fixture
def whole(make: Any) -> Checked:
    """A record with a value in each field."""
    sample = make.sample(
        latency=(make.alone(0.1 + 0.2), make.alone(1e-7)),
        memory_bytes=(1, 2),
        elsewhere="no board",
        placement=Placement(
            nodes={"CPUExecutionProvider": 3}, time_share={"CPUExecutionProvider": 1.0}, provenance="proxy",
            fell_back={"Conv": 1}, fused=2, unfused=1, qdq=0, blockers={"Relu": 1},
            costliest=({"node": "c", "us": 3.5},),
        ),
        answers=make.answers([0, 1], [0, 0], teacher=(0, 0)),
        estimate=Figure(0.5, "estimated", 0.4, 0.6, "from resnet18"),
    )  # fmt: skip
    return Checked(
        sample=sample, baseline=make.sample("old.onnx"), stored=True, pairs=(make.pair(1.1),), same=(make.pair(),)
    )


CLASSES: dict[str, Any] = {
    "data": "d" * 64, "about": "set.npz", "classes": [0, 1, 2, 1], "labels": [0, 1, 1, 1], "teacher": [0, 1, 1, 0],
}  # fmt: skip
"""The answers of a record of version 1, which only knew classification."""


def test_answers_of_version_1_are_read(path: Path, make: Any) -> None:
    write_record(path, Checked(sample=make.sample()))
    content = json.loads(path.read_text())
    del content["sample"]["kind"]
    content["sample"]["answers"] = CLASSES
    path.write_text(json.dumps(content | {"schema_version": 1}))
    sample = read_record(path).sample
    assert sample.kind == ACCURACY and sample.answers is not None
    assert (sample.answers.score, sample.answers.teacher_score, sample.answers.agreement) == (0.75, 0.75, 0.5)
    assert (sample.answers.each, sample.answers.answers) == ((1.0, 1.0, 0.0, 1.0), (0, 1, 2, 1))


def test_a_record_survives_its_file(path: Path, whole: Checked, make: Any) -> None:
    write_record(path, whole)
    assert read_record(path) == whole
    bare = Checked(sample=make.sample())
    write_record(path, bare)
    assert read_record(path) == bare
    content = json.loads(path.read_text())
    assert (content["schema_version"], content["kind"]) == (2, "edgekd check record")


def test_files_are_called_after_the_model_or_the_run(make: Any) -> None:
    assert make.sample("models/../big.v2.onnx".rpartition("/")[2]).stem == "big.v2"
    assert make.sample("digits@cpu-x86/student-int8").stem == "digits@cpu-x86"
    assert make.sample("run.v2/student-int8").stem == "run.v2"
    assert [is_record(Path(name)) for name in ("a.json", "a.onnx", "run")] == [True, False, False]


# --- as a baseline ---


@pytest.fixture
def long(make: Any) -> Sample:
    """What a fast model leaves: eight processes of five thousand calls, with tails."""
    rng = np.random.default_rng(0)
    records = []
    for _ in range(8):
        calls = 1e-4 * rng.lognormal(0.0, 0.05, 5_000) * np.where(rng.random(5_000) < 0.08, 1.5, 1.0)
        times = tuple(map(float, calls))
        records.append(dataclasses.replace(make.alone(), latency_s=times, warmup_s=times[:500]))
    answers = make.answers(rng.integers(0, 10, 2_000).tolist(), rng.integers(0, 10, 2_000).tolist())
    return make.sample(latency=tuple(records), answers=answers)  # type: ignore[no-any-return]


def test_a_baseline_is_small_and_says_the_same(path: Path, long: Sample) -> None:
    write_record(path, as_baseline(long))
    assert path.stat().st_size < 100_000
    kept = read_record(path).sample
    before, after = figures_of(long), figures_of(kept)
    for key, close in (("latency_p50_ms", 0.01), ("latency_p95_ms", 0.03), ("load_ms", 1e-9)):
        assert after[key].value == pytest.approx(before[key].value, rel=close)
    assert before["latency_p95_ms"].value > 1.2 * before["latency_p50_ms"].value  # type: ignore[operator]
    assert dataclasses.replace(kept, latency=()) == dataclasses.replace(long, latency=())
    assert [len(record.latency_s) for record in kept.latency] == [385] * 8  # each thirteenth call
    assert kept.latency[0].latency_s[1] == pytest.approx(long.latency[0].latency_s[13], rel=5e-4)
    assert kept.latency[0].warmup_s == ()


def test_few_calls_are_all_kept(make: Any) -> None:
    sample = make.sample(latency=(make.alone(calls=400), make.alone(calls=12)))
    kept = as_baseline(sample)
    assert [len(record.latency_s) for record in kept.sample.latency] == [400, 12]
    assert (kept.baseline, kept.stored, kept.pairs, kept.same) == (None, False, (), ())
    again = as_baseline(as_baseline(make.sample(latency=(make.alone(calls=5_000),))).sample)
    assert len(again.sample.latency[0].latency_s) == 385


# --- what is no record ---


def problem(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_record(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_a_record_may_begin_with_a_byte_order_mark(path: Path, whole: Checked) -> None:
    write_record(path, whole)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_record(path) == whole


def test_a_record_that_is_not_there(path: Path) -> None:
    assert problem(path) == "no such record; `edgekd baseline accept MODEL --target T` makes one"
    path.mkdir(parents=True)
    assert problem(path) == "cannot be read: Is a directory"


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"\xff\xfe", b'{"schema_version": 1,', b"[" * 100_000],
    ids=["empty", "words", "bytes", "torn", "deep"],
)
def test_what_is_no_json(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    said = problem(path)
    assert said.startswith("not valid JSON: ")
    assert said.endswith("; `edgekd baseline accept` writes it anew")


@pytest.mark.parametrize("content", ["{}", "[]", "3", "null", '{"schema_version": 1, "kind": "edgekd run"}'])
def test_other_json(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    assert problem(path) == "is no record of edgekd check; `edgekd baseline accept MODEL --target T` makes one"


def test_a_record_cut_short(path: Path, whole: Checked) -> None:
    write_record(path, whole)
    path.write_bytes(path.read_bytes()[:-20])
    assert problem(path).startswith("not valid JSON: ")


def edited(path: Path, whole: Checked, edit: Callable[[dict[str, Any]], Any]) -> str:
    write_record(path, whole)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return problem(path)


def test_a_record_of_another_edgekd(path: Path, whole: Checked) -> None:
    assert edited(path, whole, lambda c: c.update(schema_version=3)) == (
        "schema_version is 3; this edgekd reads 2; update edgekd, or `edgekd baseline accept` to write it anew"
    )
    assert edited(path, whole, lambda c: c.update(schema_version=0)) == (
        "schema_version is 0; this edgekd reads 2; run `edgekd baseline accept` to write it anew"
    )
    assert edited(path, whole, lambda c: c.pop("schema_version")).startswith("schema_version is None; ")
    assert edited(path, whole, lambda c: c.update(records=RECORD_VERSION + 1)) == (
        f"records is {RECORD_VERSION + 1}; this edgekd reads {RECORD_VERSION}; update edgekd, or "
        "`edgekd baseline accept` to write it anew"
    )
    write_record(path, whole)
    path.write_text(path.read_text().replace(f'"records":{RECORD_VERSION}', '"records":1'))
    assert read_record(path) == whole


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.pop("sample"), "'sample' is missing"),
        (lambda c: c.pop("pairs"), "'pairs' is missing"),
        (lambda c: c["sample"].pop("latency"), "'latency' is missing"),
        (lambda c: c["sample"].pop("name"), "sample: name: is missing"),
        (lambda c: c["baseline"].pop("sha256"), "baseline: sha256: is missing"),
        (lambda c: c["sample"].update(name=3), "sample: name: got 3; it should be a valid string"),
        (lambda c: c["sample"].update(size_bytes="1"), 'sample: size_bytes: got "1"; it should be a valid integer'),
        (lambda c: c["baseline"].update(size_bytes=0), "baseline: size_bytes: got 0; it should be greater than 0"),
        (lambda c: c["sample"].update(memory_bytes=[0]), "sample: memory_bytes.0: got 0; it should be greater than 0"),
        (lambda c: c["sample"].update(fingerprint=[]), "sample: fingerprint: got []; it should be "),
        (lambda c: c["sample"].update(placement="here"), "sample: placement: got "),
        (lambda c: c["sample"]["placement"].update(nodes=[1]), "sample: placement.nodes: got "),
        (lambda c: c["sample"]["estimate"].update(value="x"), "sample: estimate.value: got "),
        (lambda c: c["sample"]["answers"].update(answers=["a", "b"]), "sample: answers.answers.0: got "),
        (lambda c: c["sample"]["answers"].update(answers=[0]), "sample: answers: each and answers should be"),
        (lambda c: c["sample"]["answers"].update(answers=[], each=[]), "sample: answers: each and answers should be"),
        (lambda c: c["sample"].update(answers=CLASSES | {"labels": [0]}), "sample: answers: classes, labels and teach"),
        (lambda c: c["sample"].update(answers=CLASSES | {"teacher": [0]}), "sample: answers: classes, labels and teac"),
        (lambda c: c["sample"].update(answers=CLASSES | {"classes": [], "labels": []}), "sample: answers: classes, "),
        (
            lambda c: c["sample"]["kind"].update(name="Accuracy!"),
            "sample: kind: name: got 'Accuracy!'; it should be lower-case ",
        ),
        (lambda c: c["sample"]["latency"][0].pop("fingerprint"), "Record.__init__() missing "),
        (lambda c: c["sample"]["latency"][0].update(latency_s=[]), "latency_s holds no call"),
        (lambda c: c["sample"]["latency"][0].update(latency_s=["1"]), "latency_s, load_s and first_call_s should be"),
        (lambda c: c["sample"]["latency"][0].update(latency_s=[float("nan")]), "a number in it is NaN"),
        (lambda c: c["sample"].update(memory_bytes=[10**400]), "a number in it is 1000000000000000000…"),
        (lambda c: c["sample"]["fingerprint"].update(mhz=-float("inf")), "a number in it is -Infinity"),
        (lambda c: c["sample"].update(name="a\0b"), "sample: name and target should do as names of files"),
        (lambda c: c["sample"].update(target="../../b"), "sample: name and target should do as names of files"),
        (
            lambda c: c["sample"]["placement"].update(nodes={"A": 1, "B": -1}),
            "sample: placement: the numbers of nodes ",
        ),
        (
            lambda c: c["baseline"].update(placement={"nodes": {}, "time_share": {}, "fused": -1}),
            "baseline: placement: ",
        ),
        (lambda c: c.update(budget={"size": 3}), "budget: size: unknown key; "),
        (lambda c: c["sample"]["latency"][0].update(mode="memory"), "mode should be latency"),
        (lambda c: c["pairs"][0].update(mode="latency"), "mode should be pair"),
        (lambda c: c["pairs"][0].update(block_calls=7), "block_calls is 7; "),
        (lambda c: c["pairs"][0].update(baseline=None), "baseline should be an object"),
        (lambda c: c.update(sample=[]), ""),
        (lambda c: c.update(pairs=3), ""),
        (lambda c: c.update(same=[3]), ""),
        (lambda c: c["sample"].update(latency={"a": 1}), ""),
    ],
)
def test_a_damaged_record_is_one_line(path: Path, whole: Checked, edit: Any, said: str) -> None:
    text = edited(path, whole, edit)
    assert text.startswith(f"is damaged: {said}"), text
    assert text.endswith("; `edgekd baseline accept` writes it anew")


def test_a_record_of_another_target(path: Path, make: Any) -> None:
    write_record(path, Checked(sample=make.sample()))
    assert record_of(path, load_target("cpu-x86")).sample.name == "new.onnx"
    with pytest.raises(InputError, match=r": is a record of target cpu-x86, not of wasm$"):
        record_of(path, load_target("wasm"))
    gone = path.with_name("gone.json")
    with pytest.raises(InputError) as caught:
        record_of(gone, load_target("cpu-x86"))
    make_it = f"`edgekd baseline accept MODEL --target cpu-x86 --to {gone}` makes one"
    assert str(caught.value) == f"{gone}: no such record; {make_it}"


# --- whether two samples are of one machine ---


def on(make: Any, **changes: Any) -> Sample:
    return make.sample(fingerprint=make.machine | changes)  # type: ignore[no-any-return]


def test_python_and_numpy_may_differ(make: Any) -> None:
    old = on(make, model_sha256="a" * 64, nodes_by_provider={"CPUExecutionProvider": 3})
    assert differences(old, on(make, python="3.13", numpy="3.0", model_sha256="b" * 64)) == {}
    assert differences(old, make.sample(fingerprint={})) == {}  # nothing was measured there


def test_another_cpu_or_runtime_is_named(make: Any) -> None:
    new = on(make, cpu="another CPU", onnxruntime="1.25.0", intra_op_threads=2)
    assert differences(on(make), new) == {
        "cpu": "cpu was 'a CPU' and is 'another CPU'",
        "onnxruntime": "onnxruntime was '1.24.1' and is '1.25.0'",
        "intra_op_threads": "intra_op_threads was None and is 2",
    }


def test_what_differs_is_refused_until_it_is_allowed(make: Any) -> None:
    old, new = on(make), on(make, cpu="another CPU", onnxruntime="1.25.0")
    with pytest.raises(ConfigError) as caught:
        refuse_other_machine(old, new, ["cpu"])
    assert str(caught.value) == (
        "the record of new.onnx was made elsewhere: onnxruntime was '1.24.1' and is '1.25.0'; measure a baseline here, "
        "give the old model file as --baseline, or allow it: --allow-difference onnxruntime"
    )
    assert refuse_other_machine(old, new, ["cpu", "onnxruntime"]) == [
        "compared although cpu was 'a CPU' and is 'another CPU'",
        "compared although onnxruntime was '1.24.1' and is '1.25.0'",
    ]
    assert refuse_other_machine(old, old, []) == []


def test_data_matter_to_what_is_timed_alone(make: Any) -> None:
    old, new = on(make, inputs="data"), on(make, inputs="random")
    assert refuse_other_machine(old, new, []) == []
    timed = dataclasses.replace(new, latency=(make.alone(),))
    with pytest.raises(ConfigError, match="inputs was 'data' and is 'random'"):
        refuse_other_machine(old, timed, [])


def test_a_record_that_does_not_say_where_it_was_made_is_refused(make: Any) -> None:
    timed = make.sample(latency=(make.alone(),))
    lost = dataclasses.replace(timed, fingerprint={})
    for old, new in ((lost, timed), (timed, lost), (make.sample(fingerprint={}, memory_bytes=(1,)), make.sample())):
        with pytest.raises(
            ConfigError, match=r"does not say where it was measured; .* --allow-difference fingerprint$"
        ):
            refuse_other_machine(old, new, [])
        assert len(refuse_other_machine(old, new, ["fingerprint"])) == 1


def test_other_batches_are_other_calls(make: Any) -> None:
    one, two = (make.sample(latency=(dataclasses.replace(make.alone(), batch_size=size),)) for size in (1, 2))
    with pytest.raises(ConfigError, match="batch_size was 2 and is 1"):
        refuse_other_machine(two, one, [])
    assert refuse_other_machine(two, one, ["batch_size"]) == ["compared although batch_size was 2 and is 1"]


def test_a_difference_that_there_cannot_be(make: Any) -> None:
    old = make.sample(latency=(make.alone(),))
    with pytest.raises(ConfigError, match=r"^--allow-difference onnxruntim: did you mean 'onnxruntime'\? Known: "):
        refuse_other_machine(old, old, ["onnxruntim"])
    new = make.sample(latency=(make.alone(),), fingerprint=make.machine | {"threads": 2})
    assert refuse_other_machine(old, new, ["threads"]) == ["compared although threads was None and is 2"]


def test_only_records_are_replaced(tmp_path: Path, whole: Checked) -> None:
    path = tmp_path / "a.json"
    assert may_be_replaced(path)
    write_record(path, whole)
    whole_text = path.read_text()
    for text in (whole_text, whole_text[:60], whole_text.replace('"schema_version":1', '"schema_version":99')):
        path.write_text(text)
        assert may_be_replaced(path)
    path.write_text('{"name": "package", "version": "1.0.0"}')
    assert not may_be_replaced(path)
