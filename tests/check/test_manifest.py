"""Manifests: what they ask for, and what a mistake in one says."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from edgekd.card import Budget
from edgekd.check.asked import CheckJob
from edgekd.check.manifest import manifest_for_run, read_manifest
from edgekd.check.tolerance import Tolerance, parse_tolerance
from edgekd.errors import ConfigError, InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with three models and a run."""
    home = tmp_path / "home"
    for name in ("models/a.onnx", "models/b.onnx", "models/deep/c.onnx", "models/[old].onnx", "runs/digits@cpu.v2/x"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"")
    return home


def read(folder: Path, text: str) -> list[CheckJob]:
    path = folder / "edgekd-check.toml"
    path.write_text(text, encoding="utf-8")
    return read_manifest(path)


def problem(folder: Path, text: str) -> str:
    with pytest.raises((ConfigError, InputError)) as caught:
        read(folder, text)
    said = str(caught.value)
    assert said.startswith(f"{folder / 'edgekd-check.toml'}: ")
    assert "\n" not in said
    return said.removeprefix(f"{folder / 'edgekd-check.toml'}: ")


def paths(jobs: list[CheckJob], folder: Path) -> list[str]:
    return [str(job.path.relative_to(folder)) for job in jobs]


# --- models and targets ---


def test_every_model_on_every_target_in_order(folder: Path) -> None:
    jobs = read(
        folder,
        """
        targets = ["cpu-x86", "wasm"]
        [[model]]
        path = "models/b.onnx"
        [[model]]
        path = "models/a.onnx"
        targets = ["boards/mine.toml"]
        """,
    )
    assert [(job.path, job.target) for job in jobs] == [
        (folder / "models/b.onnx", "cpu-x86"),
        (folder / "models/b.onnx", "wasm"),
        (folder / "models/a.onnx", str(folder / "boards/mine.toml")),
    ]
    assert jobs[0] == CheckJob(path=folder / "models/b.onnx", target="cpu-x86", budget=Budget(), tolerance=Tolerance())


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("models/*.onnx", ["models/[old].onnx", "models/a.onnx", "models/b.onnx"]),
        ("models/**/*.onnx", ["models/[old].onnx", "models/a.onnx", "models/b.onnx", "models/deep/c.onnx"]),
        ("models/[ab].onnx", ["models/a.onnx", "models/b.onnx"]),
        ("models/[old].onnx", ["models/[old].onnx"]),  # a file of that very name goes before the pattern
        ("runs/*", ["runs/digits@cpu.v2"]),
    ],
)
def test_patterns(folder: Path, pattern: str, found: list[str]) -> None:
    text = f'targets = ["cpu-x86"]\n[[model]]\npath = "{pattern}"'
    assert paths(read(folder, text), folder) == found
    absolute = f'targets = ["cpu-x86"]\n[[model]]\npath = "{folder}/{pattern}"'
    assert paths(read(folder, absolute), folder) == found


def test_paths_begin_at_the_manifest(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "edgekd-check.toml").write_text(
        """
        targets = ["cpu-x86"]
        data = "set.npz"
        baseline = "main/a.onnx"
        [[model]]
        path = "models/a.onnx"
        [[model]]
        path = "models/b.onnx"
        data = "other.npz"
        baseline = "/elsewhere/b.onnx"
        """
    )
    first, second = read_manifest(Path("home/edgekd-check.toml"))
    assert (first.path, first.data, first.baseline) == (
        Path("home/models/a.onnx"), Path("home/set.npz"), Path("home/main/a.onnx"),
    )  # fmt: skip
    assert (second.data, second.baseline) == (Path("home/other.npz"), Path("/elsewhere/b.onnx"))


def test_names_in_a_baseline(folder: Path) -> None:
    jobs = read(
        folder,
        """
        targets = ["cpu-x86", "boards/mine.toml"]
        baseline = "baselines/{stem}@{target}.json"
        [[model]]
        path = "models/[ab].onnx"
        [[model]]
        path = "runs/*"
        targets = ["wasm"]
        """,
    )
    assert [job.baseline and job.baseline.name for job in jobs] == [
        "a@cpu-x86.json", "a@mine.json", "b@cpu-x86.json", "b@mine.json", "digits@cpu.v2@wasm.json",
    ]  # fmt: skip


# --- budgets and tolerances ---


def test_budgets_from_the_widest_to_the_narrowest(folder: Path) -> None:
    jobs = read(
        folder,
        """
        targets = ["cpu-x86", "boards/mine.toml"]
        [budget]
        size_kb = 300
        min_accuracy = 0.9
        latency_p50_ms = 5
        peak_memory_mb = 70
        [budget.mine]
        latency_p50_ms = 4
        peak_memory_mb = 60
        [[model]]
        path = "models/a.onnx"
        [model.budget]
        latency_p50_ms = 3
        min_accuracy = 0
        [model.budget.mine]
        latency_p50_ms = 2
        [[model]]
        path = "models/b.onnx"
        """,
    )
    assert [job.budget for job in jobs] == [
        Budget(size_kb=300, min_accuracy=0, latency_p50_ms=3, peak_memory_mb=70),
        Budget(size_kb=300, min_accuracy=0, latency_p50_ms=2, peak_memory_mb=60),
        Budget(size_kb=300, min_accuracy=0.9, latency_p50_ms=5, peak_memory_mb=70),
        Budget(size_kb=300, min_accuracy=0.9, latency_p50_ms=4, peak_memory_mb=60),
    ]


def test_a_models_tolerance_goes_before_that_of_all(folder: Path) -> None:
    first, second = read(
        folder,
        """
        targets = ["cpu-x86"]
        [tolerance]
        max_slowdown = 0.05
        max_memory_growth = "off"
        max_size_growth = 0
        [[model]]
        path = "models/a.onnx"
        [[model]]
        path = "models/b.onnx"
        [model.tolerance]
        max_slowdown = "off"
        max_memory_growth = 0.2
        """,
    )
    assert first.tolerance == Tolerance(max_slowdown=0.05, max_memory_growth="off", max_size_growth=0)
    assert second.tolerance == Tolerance(max_slowdown="off", max_memory_growth=0.2, max_size_growth=0)


def test_tolerances_of_the_command_line() -> None:
    assert parse_tolerance([]) == {}
    assert parse_tolerance(["max_slowdown=0.1", " max_size_growth = off", "max_slowdown=0.2"]) == {
        "max_slowdown": 0.2, "max_size_growth": "off",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("max_slowdown", "--tolerance 'max_slowdown': it should be key=value, such as max_slowdown=0.05"),
        ("max_slowdown=wide", "--tolerance max_slowdown: got 'wide'; it should be a number, such as 0.025 for 2.5 %"),
        (
            "max_slowdown=-1",
            "--tolerance: max_slowdown: got -1.0; it should be greater than or equal to 0 or 'off'",
        ),
        ("max_slowdown=nan", "--tolerance: max_slowdown: got NaN; it should be a finite number or 'off'"),
        ("max_slowdwn=1", "--tolerance: max_slowdwn: unknown key; did you mean 'max_slowdown' "),
        ("min_same_answers=2", "--tolerance: min_same_answers: got 2.0; it should be less than or equal to 1 or 'off'"),
    ],
)
def test_a_wrong_tolerance_of_the_command_line(option: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tolerance([option])
    assert str(caught.value).startswith(said)


# --- mistakes ---

ONE = 'targets = ["cpu-x86"]\n[[model]]\npath = "models/a.onnx"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("targets = [", "not valid TOML: "),
        ('targets = ["cpu-x86"]', "model: is missing; add it"),
        ('model = []\ntargets = ["cpu-x86"]', "model: got []; it "),
        ('targets = "cpu-x86"\n[[model]]\npath = "models/a.onnx"', 'targets: got "cpu-x86"; it should be a valid '),
        ('targets = []\n[[model]]\npath = "models/a.onnx"', "targets: got []; it "),
        ("[[model]]\n", "model.0.path: is missing; add it"),
        ("[[model]]\npath = 3", "model.0.path: got 3; it should be a valid string"),
        (
            '[[model]]\npath = "models/a.onnx"',
            'model.0.targets: is missing; add it, such as targets = ["cpu-x86"]',
        ),
        ('target = ["cpu-x86"]\n' + ONE, "target: unknown key; did you mean 'targets' or 'budget'? Known: "),
        (ONE + 'basline = "x"', "model.0.basline: unknown key; did you mean 'baseline'? Known: "),
        (ONE + "[model.budget]\nsize_mb = 3", "model.0.budget: size_mb: unknown key; did you mean 'size_kb'? Known: "),
        ("[budget]\nsize_kb = 0\n" + ONE.replace("targets", "#"), "model.0.targets: is missing"),
        ("[budget]\nsize_kb = 0\n[[model]]\npath = 'models/a.onnx'\ntargets = ['wasm']", "budget: size_kb: got 0; "),
        (
            "[budget.wasm]\nsize_kB = 1\n[[model]]\npath = 'models/a.onnx'\ntargets = ['wasm']",
            "budget.wasm: size_kB: unknown key; did you mean 'size_kb'? ",
        ),
        (
            "[budget.wsm]\nsize_kb = 1\n[[model]]\npath = 'models/a.onnx'\ntargets = ['wasm']",
            "budget.wsm: no such target here; did you mean 'wasm'? Known: wasm.",
        ),
        (
            ONE + "[model.budget.cpu-x87]\nsize_kb = 1",
            "model.0.budget.cpu-x87: no such target here; did you mean 'cpu-x86'? Known: cpu-x86.",
        ),
        (
            "[tolerance]\nmax_slowdwn = 1\n[[model]]\npath = 'models/a.onnx'\ntargets = ['wasm']",
            "tolerance: max_slowdwn: unknown key; did you mean 'max_slowdown' ",
        ),
        (
            ONE + "[model.tolerance]\nmax_slowdown = 'of'",
            "model.0.tolerance: max_slowdown: got \"of\"; it should be a valid number or 'off'",
        ),
        (
            ONE + 'baseline = "{name}.json"',
            "model.0.baseline: got '{name}.json'; only {stem} and {target} may stand in braces",
        ),
        (ONE + 'baseline = "{stem.json"', "model.0.baseline: got '{stem.json'; only {stem} and {target} may stand in "),
        (ONE + 'baseline = "{}"', "model.0.baseline: got '{}'; only {stem} and {target} may stand in braces"),
        (ONE + 'baseline = "{{stem}}"', "model.0.baseline: got '{{stem}}'; only {stem} and {target} may stand in "),
        (ONE + 'baseline = "stem}.json"', "model.0.baseline: got 'stem}.json'; only {stem} and {target} may stand in "),
        (ONE + 'baseline = "a\\u0000b"', "model.0.baseline: should hold no NUL character"),
        (ONE + 'data = "a\\u0000b"', "model.0.data: should hold no NUL character"),
        ('data = "a\\u0000b"\n' + ONE, "data: should hold no NUL character"),
        (ONE.replace("a.onnx", "\\u0000*"), "model.0.path: should hold no NUL character"),
        (
            ONE + '[[model]]\npath = "models/*.onnx"',
            "{folder}/models/a.onnx is checked twice on cpu-x86; leave one [[model]] out",
        ),
        (
            'targets = ["wasm", "wasm"]\n[[model]]\npath = "models/a.onnx"',
            "{folder}/models/a.onnx is checked twice on wasm; leave one [[model]] out",
        ),
        (
            'targets = ["wasm"]\nbaseline = "b@{target}.json"\n[[model]]\npath = "models/[ab].onnx"',
            "baseline: {folder}/models/a.onnx and {folder}/models/b.onnx share {folder}/b@wasm.json; give each its own",
        ),
        (ONE + '[[model]]\npath = "gone.onnx"', "model.1.path: {folder}/gone.onnx: no such model file or run folder"),
        (ONE + '[[model]]\npath = "gone/*"', "model.1.path: 'gone/*' matches nothing in {folder}"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, text: str, said: str) -> None:
    assert problem(folder, text).startswith(said.replace("{folder}", str(folder)))


def test_two_models_may_share_a_model_as_their_baseline(folder: Path) -> None:
    jobs = read(folder, 'targets = ["wasm"]\nbaseline = "main.onnx"\n[[model]]\npath = "models/[ab].onnx"')
    assert {job.baseline for job in jobs} == {folder / "main.onnx"}


def test_a_models_own_braces_stay(folder: Path) -> None:
    (folder / "models/{target}.onnx").write_bytes(b"")
    (job,) = read(
        folder, 'targets = ["wasm"]\nbaseline = "{stem}@{target}.json"\n[[model]]\npath = "models/{target}.onnx"'
    )
    assert job.baseline == folder / "{target}@wasm.json"


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigError) as caught:
        read_manifest(path)
    assert str(caught.value) == f"{path}: no such manifest; `edgekd check RUN --init` writes one"


# --- written from a run ---


def finished(folder: Path, budget: dict[str, float | None]) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"budget": budget}))
    (folder / "result.json").write_text(json.dumps({"target": "cpu-x86"}))
    return folder


@pytest.mark.parametrize("name", ["digits@cpu-x86", 'a "quoted" \\ name', "two\nlines\x7f\x1b"])
def test_a_runs_manifest_asks_what_the_run_was_made_for(tmp_path: Path, name: str) -> None:
    limits = {"latency_p50_ms": 0.00002, "size_kb": 60.0, "min_accuracy": 0.9, "max_accuracy_drop": None}
    run = finished(tmp_path / "runs" / name, {**limits, "teacher_min_accuracy": 0.95})
    (tmp_path / "edgekd-check.toml").write_text(manifest_for_run(run, tmp_path))
    (job,) = read_manifest(tmp_path / "edgekd-check.toml")
    assert job == CheckJob(
        path=run,
        target="cpu-x86",
        budget=Budget(latency_p50_ms=0.00002, size_kb=60.0, min_accuracy=0.9),
        tolerance=Tolerance(scores={"max_accuracy_loss": 0.5}),
    )
    assert str(tmp_path) not in manifest_for_run(run, tmp_path)  # it must mean the same in another checkout
    assert tomllib.loads(manifest_for_run(run, tmp_path / "elsewhere"))["model"][0]["path"] == str(run)


def test_a_run_without_a_budget(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", {"size_kb": None})
    (tmp_path / "edgekd-check.toml").write_text(manifest_for_run(run, tmp_path))
    assert [job.budget for job in read_manifest(tmp_path / "edgekd-check.toml")] == [Budget()]


def test_what_is_no_finished_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r": is no finished run folder; --init writes a manifest from one$"):
        manifest_for_run(tmp_path, tmp_path)


def test_a_target_of_the_users_own_has_to_be_put_there(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", {"size_kb": 60.0})
    assert "; put the path" not in manifest_for_run(run, tmp_path)
    (run / "result.json").write_text(json.dumps({"target": "mine"}))
    text = manifest_for_run(run, tmp_path)
    assert tomllib.loads(text)["targets"] == ["mine"]
    assert "; put the path of mine.toml here\n" in text


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("run.json", "[]", "its run.json or result.json holds no budget; was it edited?"),
        ("run.json", '{"budget": 3}', "its run.json or result.json holds no budget; was it edited?"),
        ("run.json", '{"budget": {"size_kb": "x"}}', 'budget: size_kb: got "x"; it should be a valid number'),
        ("run.json", '{"budget": {"size": 3}}', "budget: size: unknown key; did you mean 'size_kb'"),
        ("run.json", "{", "not valid JSON: "),
        ("run.json", "[" * 100_000, "not valid JSON: "),
        ("run.json", "9" * 5_000, "not valid JSON: "),
        ("result.json", '{"target": "a\\nb"}', r"target: got 'a\nb'; it should be a target's name; was it edited?"),
        ("result.json", "{}", "target: got None; it should be a target's name; was it edited?"),
    ],
)
def test_a_run_that_was_edited_is_one_line(tmp_path: Path, file: str, content: str, said: str) -> None:
    run = finished(tmp_path / "run", {"size_kb": 60.0})
    (run / file).write_text(content)
    with pytest.raises((ConfigError, InputError)) as caught:
        manifest_for_run(run, tmp_path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(run)) and "\n" not in str(caught.value)


def test_a_run_whose_name_is_bytes(tmp_path: Path) -> None:
    run = finished(tmp_path / os.fsdecode(b"run\xff"), {"size_kb": 60.0})
    with pytest.raises(InputError, match=r"^run\\udcff: is no text, so that no manifest can name it; rename it$"):
        manifest_for_run(run, tmp_path)
