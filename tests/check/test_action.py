"""The GitHub action, run step by step as a runner would, and what docs/ci.md offers to copy."""

import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import edgekd

ROOT = Path(edgekd.__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
DOCS = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
SNIPPETS: list[str] = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
INSTALL, CHECK = "Install edgekd", "Check"

FAKE = """#!/usr/bin/env bash
printf '%s\\0' "$@" > "$RECORD"
exit "${FAKE_EXIT:-0}"
"""


@dataclass(frozen=True)
class Job:
    """A runner's folders; names with spaces, for users have such."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def workspace(self) -> Path:
        return self.folder / "work space"

    @property
    def record(self) -> Path:
        return self.folder / "record"


@dataclass(frozen=True)
class Ended:
    """What a step or an action came to."""

    exit_code: int
    outputs: dict[str, str]
    log: str
    summary: str = ""
    """Of the last step."""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job in which `edgekd` is a program that writes its arguments down."""
    job = Job(tmp_path, {"RECORD": str(tmp_path / "record")})
    job.workspace.mkdir()
    fake = tmp_path / "runner temp" / "edgekd" / "bin" / "edgekd"
    fake.parent.mkdir(parents=True)
    fake.write_text(FAKE)
    fake.chmod(0o755)
    return job


def value(expression: str, known: Mapping[str, str]) -> str:
    """`a.b`, `a.b != ''` and `a.b || 'c'`: what this action uses of GitHub's expressions."""
    match = re.fullmatch(r"([\w.-]+)(?: (!=|\|\|) '([^']*)')?", expression.strip())
    assert match, expression
    found = known.get(match[1], "")
    if match[2] == "!=":
        return "true" if found != match[3] else ""
    return found or match[3] or ""


def filled(text: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{(.*?)\}\}", lambda match: value(match[1], known), text)


def run_step(step: dict[str, Any], job: Job, known: Mapping[str, str], place: Path) -> Ended:
    """One `run`, in the shell that GitHub starts for it."""
    files = {name: job.folder / name for name in ("GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_STEP_SUMMARY", "GITHUB_PATH")}
    for path in files.values():
        path.write_text("")
    script = job.folder / "script.sh"
    script.write_text(step["run"])
    environment = {
        **os.environ,
        **{name: str(path) for name, path in files.items()},
        "GITHUB_ACTION_PATH": str(place),
        "RUNNER_TEMP": str(job.folder / "runner temp"),
        "RUNNER_OS": "Linux",
        **{name: filled(text, known) for name, text in step.get("env", {}).items()},
        **job.environment,
    }
    assert step["shell"] == "bash"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=job.workspace,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    return Ended(done.returncode, outputs, done.stdout, files["GITHUB_STEP_SUMMARY"].read_text())


def run_action(job: Job, inputs: Mapping[str, str], *steps: str, place: Path = ROOT) -> Ended:
    """The action's named steps up to the first that fails, and its outputs."""
    assert inputs.keys() <= ACTION["inputs"].keys()
    known = {f"inputs.{name}": inputs.get(name, entry["default"]) for name, entry in ACTION["inputs"].items()}
    code, log, summary = 0, "", ""
    for step in ACTION["runs"]["steps"]:
        if step["name"] in steps and code == 0 and value(step.get("if", "x != ''"), {"x": "x", **known}):
            ended = run_step(step, job, known, place)
            code, log, summary = ended.exit_code, log + ended.log, ended.summary
            known |= {f"steps.{step.get('id')}.outputs.{name}": text for name, text in ended.outputs.items()}
    outputs = {name: filled(entry["value"], known) for name, entry in ACTION["outputs"].items()}
    return Ended(code, outputs, log, summary)


def recorded(job: Job, **inputs: str) -> list[str]:
    """The arguments that `edgekd` was called with."""
    ended = run_action(job, {name.replace("_", "-"): text for name, text in inputs.items()}, CHECK)
    assert ended.exit_code == 0, ended.log
    return job.record.read_text().split("\0")[:-1]


def schema_problems(schema: str, *files: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)],
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def snippet(folder: Path, word: str) -> Path:
    """The one snippet of docs/ci.md that begins with `word`, as a file."""
    (text,) = [text for text in SNIPPETS if text.startswith(word)]
    path = folder / "snippet.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_action_is_one() -> None:
    assert schema_problems("vendor.github-actions", ROOT / "action.yml") == ""


def test_the_workflows_are_some(tmp_path: Path) -> None:
    files = [*(ROOT / ".github" / "workflows").glob("*.yml"), snippet(tmp_path, "name: Latency")]
    assert schema_problems("vendor.github-workflows", *files) == ""


def test_the_gitlab_snippet_is_a_pipeline(tmp_path: Path) -> None:
    assert schema_problems("vendor.gitlab-ci", snippet(tmp_path, "latency:")) == ""


def test_the_pre_commit_snippet_names_the_hook(tmp_path: Path) -> None:
    from edgekd.check.precommit import main

    (hooks,) = (repo["hooks"] for repo in yaml.safe_load(snippet(tmp_path, "repos:").read_text())["repos"])
    declared = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [hook["id"] for hook in hooks] == [hook["id"] for hook in declared]
    assert main(hooks[0]["args"]) == 0


def test_the_pytest_snippet_is_python() -> None:
    (text,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    compile(text, "docs/ci.md", "exec")


def workflows() -> list[tuple[str, dict[str, Any]]]:
    """Every job with steps that this repository has or shows, and the action itself."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    loaded = [yaml.safe_load(text) for text in [*texts, *SNIPPETS]]
    jobs = [(name, job) for content in loaded for name, job in content.get("jobs", {}).items()]
    return [("action", ACTION["runs"]), *jobs]


def test_no_script_is_pasted_together() -> None:
    """`${{ }}` inside `run` is how a branch called `$(…)` gets to run."""
    for name, found in workflows():
        for step in found["steps"]:
            assert "${{" not in step.get("run", ""), name
            assert re.search(r"^\./|@(v\d|main$|COMMIT$|[0-9a-f]{40}$)", step.get("uses", "./")), name


def test_workflows_may_only_read() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}, path


def test_the_documented_inputs_are_the_actions() -> None:
    table = DOCS.partition("| input | what |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1] if row else "")]
    assert named == list(ACTION["inputs"])


def test_the_command_line_as_a_whole(job: Job) -> None:
    assert recorded(
        job,
        model="a.onnx\nruns/b\n",
        target="cpu-x86",
        baseline="main.onnx",
        budget="size_kb=400\nlatency_p95_ms=5",
        tolerance="max_slowdown=0.05",
        data="set.npz",
        on_inconclusive="fail",
    ) == [
        *("check", "--target", "cpu-x86", "--baseline", "main.onnx", "--budget", "size_kb=400"),
        *("--budget", "latency_p95_ms=5", "--tolerance", "max_slowdown=0.05", "--data", "set.npz"),
        *("--on-inconclusive", "fail", "--junit", "edgekd-junit.xml", "--", "a.onnx", "runs/b"),
    ]


def test_empty_inputs_leave_no_option(job: Job) -> None:
    assert recorded(job, manifest="edgekd-check.toml", junit="") == ["check", "--manifest", "edgekd-check.toml", "--"]
    assert recorded(job, model="\n\n", budget=" \n\t\r\n", junit="") == ["check", "--"]


def test_lines_may_be_indented_and_end_as_on_windows(job: Job) -> None:
    assert recorded(job, model="  a b.onnx \r\n\n\tc.onnx", junit="")[2:] == ["a b.onnx", "c.onnx"]


NASTY = [
    "two words/my model.onnx",
    "$(touch injected).onnx",
    "`touch injected`",
    "; touch injected",
    '"; touch injected; "',
    "'; touch injected; '",
    "a\\nb",
    "*",
    "~",
    "$HOME",
    "--on-inconclusive=pass",
    "-n",
    "${{ github.token }}",
    "::error::no",
    "EOF",
]


@pytest.mark.parametrize("name", NASTY)
def test_an_input_is_never_code(job: Job, name: str) -> None:
    (job.workspace / "a file").touch()
    everything = {key: name for key in ACTION["inputs"] if key not in ("onnxruntime", "python-version")}
    arguments = recorded(job, **{key.replace("-", "_"): text for key, text in everything.items()})
    options = ("target", "device", "baseline", "budget", "tolerance", "manifest", "data", "on-inconclusive", "junit")
    assert arguments == ["check", *(word for option in options for word in (f"--{option}", name)), "--", name]
    assert [path.name for path in job.workspace.iterdir()] == ["a file"]


@pytest.mark.parametrize(
    ("code", "verdict"), [(0, "pass"), (1, "fail"), (2, "error"), (3, "inconclusive"), (70, "error"), (130, "error")]
)
def test_the_exit_code_is_passed_on(job: Job, code: int, verdict: str) -> None:
    job.environment["FAKE_EXIT"] = str(code)
    ended = run_action(job, {"model": "m.onnx", "target": "cpu-x86"}, CHECK)
    assert ended == Ended(code, {"verdict": verdict, "exit-code": str(code)}, "")


def fake_python(job: Job, version_is_fine: bool) -> None:
    """A `python3` that makes an environment whose pip writes its arguments down."""
    folder = job.folder / "path"
    folder.mkdir()
    lines = [
        "#!/usr/bin/env bash",
        f'if [ "$1" = -c ]; then exit {0 if version_is_fine else 1}; fi',
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; exit; fi',
        'printf "%s\\0" "$@" > "$RECORD"',
    ]
    (folder / "python3").write_text("\n".join(lines) + "\n")
    (folder / "python3").chmod(0o755)
    job.environment["PATH"] = f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("runtime", "packages"),
    [
        ("cpu", ["/the action/here[cpu]"]),
        ("openvino", ["/the action/here[openvino]"]),
        ("onnxruntime==1.24.1", ["/the action/here", "onnxruntime==1.24.1"]),
        ("--index-url=http://localhost", ["/the action/here", "--index-url=http://localhost"]),
        ("$(touch injected)", ["/the action/here", "$(touch injected)"]),
    ],
)
def test_what_is_installed(job: Job, runtime: str, packages: list[str]) -> None:
    fake_python(job, version_is_fine=True)
    ended = run_action(job, {"onnxruntime": runtime}, INSTALL, place=Path("/the action/here"))
    assert ended.exit_code == 0, ended.log
    assert job.record.read_text().split("\0")[:-1] == ["-m", "pip", "install", "--quiet", "--", *packages]
    assert not list(job.workspace.iterdir())


def test_an_old_python_is_one_line(job: Job) -> None:
    fake_python(job, version_is_fine=False)
    ended = run_action(job, {}, INSTALL, CHECK)
    message = "::error title=edgekd check::edgekd needs Python 3.11 or newer; give the input python-version\n"
    assert ended == Ended(2, {"verdict": "error", "exit-code": "2"}, message)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The action as the runner would fetch it."""
    place = tmp_path / "actions" / "edgekd main"
    for name in ("edgekd", "targets", "models"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, place)
    return place


@pytest.mark.slow
def test_the_action_installed_and_run(job: Job, checkout: Path) -> None:
    """The real thing, but for the dependencies: they are this environment's, so that nothing is fetched."""
    packages = site.getsitepackages()[0]
    if not (Path(packages) / "hatchling").is_dir():
        pytest.skip("hatchling is not in this environment's own site-packages: a build would fetch it")
    # pip reads PIP_NO_BUILD_ISOLATION=0 as «no isolation»: the variable sets what the option would set to 0.
    job.environment.update(
        {"PYTHONPATH": packages, "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
        | {"GITHUB_ACTIONS": "true"}
    )
    shutil.rmtree(job.folder / "runner temp")
    model = job.workspace / "the model.onnx"
    save_model(model)
    inputs = {"model": model.name, "target": "cpu-x86", "budget": "size_kb=0.01"}
    ended = run_action(job, inputs, INSTALL, CHECK, place=checkout)
    assert ended.outputs == {"verdict": "fail", "exit-code": "1"}, ended.log
    assert 'classname="the model.onnx"' in (job.workspace / "edgekd-junit.xml").read_text()
    assert "\n::error title=the model.onnx on cpu-x86%3A file size::file size " in ended.log
    assert ended.summary.startswith("## ❌ edgekd check: fail\n")
    (installed,) = (job.folder / "runner temp" / "edgekd" / "lib").glob("python*/site-packages/edgekd")
    assert (installed / "_bundled" / "targets" / "cpu-x86.toml").is_file()


def save_model(path: Path) -> None:
    """The smallest model there is."""
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("known_before", [True, False])
def test_the_gitlab_script_finds_the_model_of_the_base(job: Job, known_before: bool) -> None:
    git(job.workspace, "init", "--quiet")
    (job.workspace / ("model.onnx" if known_before else "other.onnx")).write_text("old")
    git(job.workspace, "add", ".")
    git(job.workspace, "commit", "--quiet", "--message", "base")
    base = git(job.workspace, "rev-parse", "HEAD")
    (job.workspace / "model.onnx").write_text("new")
    content = yaml.safe_load(snippet(job.folder, "latency:").read_text())["latency"]
    variables = content["variables"] | {"CI_MERGE_REQUEST_DIFF_BASE_SHA": base}
    path = f"{job.folder}/runner temp/edgekd/bin:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-eo", "pipefail", "-c", content["script"][-1]],
        cwd=job.workspace,
        env={**os.environ, **job.environment, **variables, "PATH": path},
        check=True,
    )
    baseline = ["--baseline", "base.onnx"] if known_before else []
    arguments = job.record.read_text().split("\0")[:-1]
    assert arguments[: 4 + len(baseline)] == ["check", "model.onnx", "--target", "cpu-x86", *baseline]
    assert not known_before or (job.workspace / "base.onnx").read_text() == "old"
    reports = content["artifacts"]["reports"]
    assert arguments[-4:] == ["--junit", reports["junit"], "--gitlab-metrics", reports["metrics"]]


@pytest.mark.parametrize("known_before", [True, False])
def test_the_workflow_finds_the_model_of_the_base(job: Job, known_before: bool) -> None:
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "latency.yml").read_text())["jobs"]["latency"]
    (step,) = [step for step in content["steps"] if step.get("id") == "base"]
    (job.workspace / "base").mkdir()
    if known_before:
        (job.workspace / "base" / "model.onnx").touch()
    job.environment.update(content["env"])
    ended = run_step({**step, "shell": "bash"}, job, {}, ROOT)
    assert ended.outputs == ({"model": "base/model.onnx"} if known_before else {})
    assert ended.log.startswith("::notice") is not known_before


def test_actions_of_others_are_pinned_and_get_no_credentials() -> None:
    """A tag can be moved to other code; and no later step needs the token that checkout would leave on the disk."""
    for path in (ROOT / "action.yml", *(ROOT / ".github" / "workflows").glob("*.yml")):
        text = path.read_text()
        for used in re.findall(r"uses: (.*)", text):
            assert used.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), (
                path,
                used,
            )
        assert text.count("actions/checkout@") == text.count("persist-credentials: false"), path
        events = yaml.safe_load(text).get(True, {})  # YAML 1.1 reads `on` as a truth value
        assert "pull_request_target" not in events, path
