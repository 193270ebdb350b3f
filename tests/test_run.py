"""The run folder: atomic writes, the lock, and what must not change."""

import dataclasses
import errno
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgekd.artefacts import SHIPPED
from edgekd.card import Budget, Card, Teacher
from edgekd.errors import ConfigError, InputError
from edgekd.files import atomic, read_json, write_json
from edgekd.recipe import Feature, Prune, Qat, Stage
from edgekd.run import Run, open_run
from edgekd.target import Target, load_target
from edgekd.tasks.known import load_card

FILES = {"teacher_sha256": ""}


def train_a_little(run: Run, file: str = "student/attempt-1/checkpoint.pt") -> None:
    """What a training leaves first."""
    path = run.folder / file
    path.parent.mkdir(parents=True)
    if path.suffix == ".pt":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", b"weights")
    else:
        path.write_bytes((2).to_bytes(8, "little") + b"{}")  # a safetensors file without tensors


@pytest.fixture
def card() -> Card:
    return load_card("digits")


@pytest.fixture
def target() -> Target:
    return load_target("cpu-x86")


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"value": 1})
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half a fi")
        raise RuntimeError
    assert read_json(path) == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "figures.json", {"value": 1})
    assert not list(tmp_path.iterdir())


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "figures.json", {"value": float("nan")})


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "notepad.json").write_text('{"value": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "notepad.json") == {"value": 1}


def test_broken_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result\.json: not valid JSON"):
        read_json(tmp_path / "result.json")


def test_the_same_run_opens_again(tmp_path: Path, card: Card, target: Target) -> None:
    with open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run:
        run.begin("digest")
        write_json(run.candidates, [])
    with open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run:
        assert read_json(run.candidates) == []


def test_a_changed_recipe_is_said_and_needs_fresh(tmp_path: Path, card: Card, target: Target) -> None:
    with open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run:
        run.begin("digest")
        write_json(run.candidates, [])
        train_a_little(run)
    other = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, epochs=7))
    with (
        pytest.raises(ConfigError, match=r"card\.recipe\.epochs was \d+ .* is 7 now; use --fresh"),
        open_run(tmp_path / "run", other, target, Budget(), FILES, False),
    ):
        pass
    with open_run(tmp_path / "run", other, target, Budget(), FILES, True) as run:
        assert not run.candidates.exists()


@pytest.mark.parametrize("part", ["target", "budget", "files"])
def test_other_changes_are_refused_too(tmp_path: Path, card: Card, target: Target, part: str) -> None:
    with open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run:
        run.begin("digest")
        train_a_little(run)
    if part == "target":
        target = dataclasses.replace(target, precisions=("fp32",))
    budget = Budget(size_kb=3) if part == "budget" else Budget()
    files = {"teacher_sha256": "another"} if part == "files" else FILES
    with (
        pytest.raises(ConfigError, match=rf"{part}\.\w+.* was .* use --fresh"),
        open_run(tmp_path / "run", card, target, budget, files, False),
    ):
        pass


def test_a_run_of_an_edgekd_that_knew_fewer_options_goes_on(tmp_path: Path, card: Card, target: Target) -> None:
    folder = tmp_path / "run"
    with open_run(folder, card, target, Budget(), FILES, False) as run:
        run.begin("digest")
        train_a_little(run)
    content = read_json(folder / "run.json")
    del content["card"]["recipe"]["standardize"], content["target"]["session"]["arena"], content["target"]["format"]
    for key in ("weights", "download"):
        del content["card"]["student"][key]
    del content["card"]["teacher"]["download"]
    for training in (content["card"]["recipe"], content["card"]["teacher"]["training"]):
        for key in ("loaded_learning_rate_factor", "matrix_learning_rate", "matrix_weight_decay"):
            del training[key]
    for key in ("background", "skip_broken", "image_column", "label_column"):
        del content["card"]["data"][key]
    write_json(folder / "run.json", content | {"schema_version": 1})
    (folder / "artefacts.json").unlink()  # earlier versions kept no list
    with open_run(folder, card, target, Budget(), FILES, False):
        pass
    other = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, standardize=True))
    with (
        pytest.raises(ConfigError, match=r"card\.recipe\.standardize was None .* is True now"),
        open_run(folder, other, target, Budget(), FILES, False),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"target\.format was None .* is 'ort' now"),
        open_run(folder, card, dataclasses.replace(load_target("cpu-arm"), format="ort"), Budget(), FILES, False),
    ):
        pass


def test_a_run_whose_tables_of_training_had_fewer_options_goes_on(tmp_path: Path, card: Card, target: Target) -> None:
    tables: dict[str, Any] = {"qat": Qat(epochs=1), "prune": Prune(epochs=1)}
    older = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, **tables))
    with open_run(tmp_path / "run", older, target, Budget(), FILES, False) as run:
        run.begin("digest")
        train_a_little(run)
    content = read_json(tmp_path / "run" / "run.json")
    for name in tables:
        for key in ("matrix_learning_rate", "matrix_weight_decay"):
            del content["card"]["recipe"][name][key]
    write_json(tmp_path / "run" / "run.json", content | {"schema_version": 1})
    (tmp_path / "run" / "artefacts.json").unlink(missing_ok=True)  # earlier versions kept no list
    with open_run(tmp_path / "run", older, target, Budget(), FILES, False):
        pass
    content["card"]["recipe"]["prune"]["rounds"] += 1
    write_json(tmp_path / "run" / "run.json", content | {"schema_version": 1})
    (tmp_path / "run" / "artefacts.json").unlink(missing_ok=True)  # earlier versions kept no list
    with (
        pytest.raises(ConfigError, match=r"card\.recipe\.prune\.rounds was 4 .* is 3 now"),
        open_run(tmp_path / "run", older, target, Budget(), FILES, False),
    ):
        pass


def test_a_run_whose_terms_on_features_had_fewer_options_goes_on(tmp_path: Path, card: Card, target: Target) -> None:
    features = (Feature(term="hint"), Feature(term="match"))
    stages = (Stage(epochs=1, features=features), Stage(epochs=1, losses={"kd": 1.0}))
    for name, values in (("plain", {"features": features}), ("staged", {"stages": stages, "epochs": 2})):
        older = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, **values))
        with open_run(tmp_path / name, older, target, Budget(), FILES, False) as run:
            run.begin("digest")
            train_a_little(run)
        content = read_json(tmp_path / name / "run.json")
        recipe = content["card"]["recipe"]
        for feature in (recipe["stages"][0] if name == "staged" else recipe)["features"]:
            del feature["where"]
        write_json(tmp_path / name / "run.json", content | {"schema_version": 1})
        (tmp_path / name / "artefacts.json").unlink()
        with open_run(tmp_path / name, older, target, Budget(), FILES, False):
            pass


def test_fresh_removes_what_was_shipped_in_any_format(tmp_path: Path, card: Card, target: Target) -> None:
    with open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run:
        run.begin("digest")
        for name in SHIPPED:
            (run.folder / name).write_bytes(b"shipped")
    with open_run(tmp_path / "run", card, target, Budget(), FILES, True) as run:
        assert run.model == run.folder / "model.onnx"
        assert [path.name for path in run.folder.iterdir()] == [".lock"]


def test_a_comment_in_the_card_changes_nothing(tmp_path: Path, card: Card, target: Target) -> None:
    with open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run:
        run.begin("digest")
    other = dataclasses.replace(card, title="Other words", about="and more of them")
    with open_run(tmp_path / "run", other, target, Budget(), FILES, False) as run:
        assert run.folder.name == "run"


def test_two_processes_on_one_folder(tmp_path: Path, card: Card, target: Target) -> None:
    with (
        open_run(tmp_path / "run", card, target, Budget(), FILES, False),
        pytest.raises(ConfigError, match="another edgekd process is working in it"),
        open_run(tmp_path / "run", card, target, Budget(), FILES, False),
    ):
        pass


def test_reads_of_the_test_data_are_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.test_reads() == 0
    assert run.test_reads(add=1) == 1
    assert run.test_reads(add=1) == 2
    assert Run(tmp_path).test_reads() == 2


def test_until_a_student_is_trained_the_budget_may_change(tmp_path: Path, card: Card, target: Target) -> None:
    with open_run(tmp_path / "run", card, target, Budget(size_kb=3), FILES, False) as run:
        run.begin("digest")
    with open_run(tmp_path / "run", card, target, Budget(size_kb=30), FILES, False) as run:
        run.begin("digest")
    assert read_json(tmp_path / "run" / "run.json")["budget"]["size_kb"] == 30


def test_what_fails_before_it_began_leaves_no_trace(tmp_path: Path, card: Card, target: Target) -> None:
    with pytest.raises(InputError), open_run(tmp_path / "run", card, target, Budget(), FILES, False):
        raise InputError("no such data folder")
    other = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, epochs=7))
    with open_run(tmp_path / "run", other, target, Budget(), FILES, False) as run:
        run.begin("digest")


def test_changed_data_are_said(tmp_path: Path, card: Card, target: Target) -> None:
    with open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run:
        run.begin("digest")
        train_a_little(run)
    with (
        pytest.raises(ConfigError, match="the training data have changed since this run began"),
        open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run,
    ):
        run.begin("another")


def test_a_finished_run_is_judged_by_another_limit_without_a_training(
    tmp_path: Path, card: Card, target: Target
) -> None:
    folder, asked = tmp_path / "run", Budget(size_kb=10.0)
    with open_run(folder, card, target, asked, FILES, False) as run:
        run.begin("digest")
        train_a_little(run, "student/student.safetensors")
    changed = "budget.size_kb was 10.0 when this run began and is 20.0 now; "
    advice = "`edgekd check RUN --target T --budget KEY=VALUE` judges"
    with (
        pytest.raises(ConfigError, match=re.escape(f"run: {changed}use --fresh")),
        open_run(folder, card, target, Budget(size_kb=20.0), FILES, False),
    ):
        pass
    with open_run(folder, card, target, asked, FILES, False) as run:
        write_json(run.result, {})
    with (
        pytest.raises(ConfigError, match=re.escape(changed + advice)),
        open_run(folder, card, target, Budget(size_kb=20.0), FILES, False),
    ):
        pass


@pytest.mark.parametrize(
    "file",
    [
        "teacher/teacher.safetensors",
        "teacher/teacher-attempt-1/checkpoint.pt",
        "teacher/assistant-1/checkpoint.pt",
        "student/attempt-1/checkpoint.pt",
        "student/student.safetensors",
        "exported/student-fp32.onnx",
    ],
)
def test_only_where_nothing_was_trained_another_card_begins_anew(
    tmp_path: Path, card: Card, target: Target, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folder, changed = tmp_path / "run", "card.recipe.epochs was 20 when this run began and is 7 now"
    one = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, epochs=20))
    other = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, epochs=7))
    with open_run(folder, one, target, Budget(), FILES, False) as run:
        run.begin("digest")
        write_json(run.candidates, [])
        write_json(folder / "student" / "log" / "training.jsonl", {})
    with open_run(folder, other, target, Budget(), FILES, False) as run:
        assert [path.name for path in folder.iterdir()] == [".lock"]
        run.begin("another digest")
        write_json(run.candidates, [])
    said = capsys.readouterr().err
    assert said == f"{folder}: {changed}; nothing was trained yet, so the run begins anew\n"
    with open_run(folder, other, target, Budget(), FILES, False) as run:
        run.begin("digest")
        assert not run.candidates.exists()
        assert read_json(folder / "run.json")["data_digest"] == "digest"
        train_a_little(run, file)
    assert "the training data have changed; nothing was trained yet" in capsys.readouterr().err
    with (
        pytest.raises(ConfigError, match="is 20 now; use --fresh"),
        open_run(folder, one, target, Budget(), FILES, False),
    ):
        pass
    assert (folder / file).exists()


def test_a_change_deep_inside_is_named_there_and_cut(tmp_path: Path, card: Card, target: Target) -> None:
    further = dataclasses.replace(card.teacher, weights="one.safetensors")
    folder, before = tmp_path / "run", dataclasses.replace(card, more_teachers=(further, further))
    with open_run(folder, before, target, Budget(), FILES, False) as run:
        run.begin("digest")
        train_a_little(run)

    def refusal(*teachers: Teacher) -> str:
        changed = dataclasses.replace(card, more_teachers=teachers)
        with pytest.raises(ConfigError) as caught, open_run(folder, changed, target, Budget(), FILES, False):
            pass
        return str(caught.value).removeprefix(f"{folder}: ").partition(";")[0]

    other = dataclasses.replace(further, weights="another.safetensors")
    assert refusal(further, other) == (
        "card.more_teachers.1.weights was 'one.safetensors' when this run began and is 'another.safetensors' now"
    )
    long = refusal(dataclasses.replace(further, weights="w" * 200), further)
    assert long.endswith("and is '" + "w" * 58 + "… now")
    fewer = refusal(further)
    assert fewer.startswith("card.more_teachers was [{'family': ") and len(fewer) < 200
    assert refusal().endswith("and is [] now")
    untrained = refusal(further, dataclasses.replace(further, training=None))
    assert untrained.startswith("card.more_teachers.1.training was {'preset': None, 'epochs': ") and untrained.endswith(
        "is None now"
    )


def test_a_killed_process_leaves_no_litter(tmp_path: Path, card: Card, target: Target) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.abc.json").write_text("half")
    with open_run(tmp_path / "run", card, target, Budget(), FILES, False) as run:
        run.begin("digest")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "artefacts.json", "run.json"]


def test_changed_networks_are_said(tmp_path: Path, card: Card, target: Target) -> None:
    folder = tmp_path / "run"
    with open_run(folder, card, target, Budget(), FILES, False) as run:
        run.begin("digest", {"student": "one"})
        write_json(run.candidates, {"candidates": []})
    with open_run(folder, card, target, Budget(), FILES, False) as run:
        run.begin("digest", {"student": "another"})  # nothing was trained yet
        assert not run.candidates.exists()
        train_a_little(run)
    with (
        pytest.raises(ConfigError, match="the structure of the network 'student' has changed since this run began"),
        open_run(folder, card, target, Budget(), FILES, False) as run,
    ):
        run.begin("digest", {"student": "one"})


def test_changed_code_of_an_imported_network_is_refused(tmp_path: Path, card: Card, target: Target) -> None:
    (tmp_path / "mynets.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("width = 8\n")
    student = dataclasses.replace(card.student, family="import", function="mynets:student")
    own = dataclasses.replace(card, student=student, file=str(tmp_path / "own.toml"))
    with open_run(tmp_path / "run", own, target, Budget(), FILES, False) as run:
        run.begin("digest")
        train_a_little(run)
    with open_run(tmp_path / "run", own, target, Budget(), FILES, False):
        pass
    (tmp_path / "helper.py").write_text("width = 9\n")
    with (
        pytest.raises(ConfigError, match=r"code\.helper\.py was '.* when this run began .* use --fresh"),
        open_run(tmp_path / "run", own, target, Budget(), FILES, False),
    ):
        pass


def test_a_lost_run_json_is_said_and_fresh_leads_out(tmp_path: Path, card: Card, target: Target) -> None:
    for content in ("", "[]", "{}", "null", '{"card"', None):
        with open_run(tmp_path / "run", card, target, Budget(), FILES, True) as run:
            run.begin("digest")
            write_json(run.candidates, {"candidates": []})
            train_a_little(run)
        path = tmp_path / "run" / "run.json"
        path.unlink() if content is None else path.write_text(content)
        with (
            pytest.raises(InputError, match=r"run\.json: .*, and it says what the run was made of; use --fresh"),
            open_run(tmp_path / "run", card, target, Budget(), FILES, False),
        ):
            pass
