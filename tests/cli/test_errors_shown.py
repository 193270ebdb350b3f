"""What a user gets wrong: one line, exit code 2, nothing half-written."""

import errno
import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from edgekd.bench import worker
from edgekd.errors import ConfigError

Cli = Callable[..., Any]


def tiny_model(path: Path) -> None:
    """Two numbers to two classes, as they are; its name and its node have the name of the file."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name=path.name)], "g", [given], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def assert_refused(done, *words: str, code: int = 2) -> None:
    """Exactly one line of complaint, no traceback, with the words in it."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("edgekd: ")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


CLOSED = {
    "stdin": "<&-",
    "stdout": ">&-",
    "stderr": "2>&-",
    "all": "<&- >&- 2>&-",
    "a full stderr": "2>/dev/full",
    "no reader": "| true; exit ${PIPESTATUS[0]}",
}


@pytest.mark.parametrize("how", CLOSED)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("edgekd targets", 0),
        ("edgekd --help", 0),
        ("edgekd nosuch", 2),
        ("edgekd check tiny.onnx -t cpu-x86 --budget size_kb=0.001", 1),
        ("edgekd-check-files --max-size-kb 0.001 tiny.onnx", 1),
    ],
)
def test_the_exit_code_is_the_same_without_streams(tmp_path: Path, how: str, command: str, code: int) -> None:
    done = in_shell(tmp_path, f"{command} {CLOSED[how]}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["edgekd targets", "edgekd --help", "edgekd --version", "edgekd-check-files --max-size-kb 0.001 tiny.onnx"],
)
def test_a_full_stdout_is_told(tmp_path: Path, command: str) -> None:
    done = in_shell(tmp_path, f"{command} >/dev/full")
    name = command.split()[0]
    said = f"{name}: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


def in_shell(folder: Path, command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as an installed edgekd would run, beside `tiny.onnx`."""
    tiny_model(folder / "tiny.onnx")
    modules = {"edgekd": "edgekd.cli.main", "edgekd-check-files": "edgekd.check.precommit"}
    name = command.split()[0]
    program = f"import sys; from {modules[name]} import main; sys.argv[0] = {name!r}; sys.exit(main())"
    text = command.replace(name, f"{sys.executable} -c {shlex.quote(program)}", 1)
    return subprocess.run(["bash", "-c", text], cwd=folder, capture_output=True, text=True, check=False)


def test_a_lower_limit_of_the_shell_is_kept_and_told(tmp_path: Path) -> None:
    """The worker must not try to raise it, nor blame the model."""
    tiny_model(tmp_path / "tiny.onnx")
    (tmp_path / "plan.json").write_text(json.dumps({"mode": "load", "memory_limit_bytes": 10**12}))
    command = f"{sys.executable} -P {worker.__file__} --plan plan.json --model tiny.onnx --out out.json"
    done = subprocess.run(["bash", "-c", f"ulimit -v 4000000; {command}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["load_s"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["targets", "{name}"],
        ["targets", "{name}.toml"],
        ["models", "{name}"],
        ["models", "{name}.toml"],
        ["bench", "{name}.onnx", "-t", "cpu-x86", "--quick"],
        ["bench", "cut-{name}.onnx", "-t", "cpu-x86", "--quick"],
        ["bench", "cut-{name}.onnx", "-t", "cpu-x86", "-t", "{name}.toml", "--quick"],
        ["check", "{name}.onnx", "cut-{name}.onnx", "-t", "cpu-x86", "--budget", "size_kb=1"],
        ["distill", "digits", "-t", "{name}"],
        ["distill", "{name}", "-t", "cpu-x86"],
        ["distill", "{name}.toml", "-t", "cpu-x86"],
        ["distill", "digits", "-t", "cpu-x86", "--teacher", "{name}.pt"],
        ["distill", "digits", "-t", "cpu-x86", "--budget", "{name}=1"],
        ["report", "{name}"],
        ["{name}"],
    ],
)
def test_nothing_in_a_name_is_obeyed(
    cli: Cli, tmp_path: Path, nasty: str, harmless: Callable[[str], None], arguments: list[str]
) -> None:
    text = "\n".join(nasty.replace("\x1b", "").replace("\r", "").split("\n"))
    (tmp_path / f"{nasty}.toml").write_text(f"title = 'x'\nabout = '''\n{text}'''\n", encoding="utf-8")
    tiny_model(tmp_path / f"{nasty}.onnx")
    (tmp_path / f"cut-{nasty}.onnx").write_bytes(b"nothing")
    done = cli(*(argument.format(name=nasty) for argument in arguments))
    assert done.returncode in (0, 1, 2), done.stderr
    harmless(done.stdout)
    harmless(done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", "-t", "cpu-x87"], ["unknown target 'cpu-x87'", "'cpu-x86'"]),
        (["distill", "digts", "-t", "cpu-x86"], ["unknown card 'digts'", "'digits'"]),
        (["distill", "-t", "./none.toml"], ["no such file"]),
        (["bench", "m.onnx"], ["Missing option '--target'"]),
        (["distil"], ["No such command 'distil'", "distill"]),
        (["distill", "-t", "cpu-x86", "--budget", "size=3"], ["--budget", "size", "size_kb"]),
        (["distill", "-t", "cpu-x86", "--budget", "size_kb=0"], ["--budget", "size_kb", "0", "greater than 0"]),
        (["distill", "-t", "cpu-x86", "--budget", "size_kb"], ["key=value"]),
        (["distill", "-t", "cpu-x86", "--budget", "size_kb=small"], ["'small'", "number"]),
        (["distill", "-t", "cuda"], ["target cuda: no CUDA device on this machine"]),
        (["distill", "-t", "coreml"], ["coreml", "unavailable, because", "CoreMLExecutionProvider"]),
        (["distill", "cifar10", "-t", "cpu-x86"], ["data.path", "--data DIR"]),
        (["distill", "cifar10", "-t", "cpu-x86", "--data", "nowhere"], ["nowhere", "no such data folder"]),
        (["distill", "-t", "cpu-x86", "--teacher", "gone.safetensors"], ["gone.safetensors", "no such weights file"]),
        (["bench", "gone.onnx", "-t", "cpu-x86"], ["gone.onnx", "no such model file"]),
        (["bench", "gone.onnx", "-t", "tensorrt"], ["target tensorrt: no CUDA device on this machine"]),
        (["bench", "gone.onnx", "-t", "qnn-npu"], ["qnn-npu", "unavailable, because", "QNNExecutionProvider"]),
        (["bench", "gone.onnx", "-t", "openvino-cpu"], ["is not installed; edgekd doctor --install openvino-cpu"]),
        (["bench", "gone.onnx", "-t", "cpu-x86", "--quick", "--thorough"], ["--quick", "--thorough", "one of them"]),
        (["bench", "gone.onnx", "-t", "cpu-x86", "--split", "nonsense"], ["--split 'nonsense'", "Known: test, val."]),
        (["bench", "gone.onnx", "-t", "cpu-x86", "--parallel", "0"], ["--parallel"]),
        (["bench", "gone.onnx", "-t", "cpu-x86", "--timeout", "soon"], ["--timeout"]),
        (["bench", "gone.onnx", "-t", "cpu-x86", "--memory-limit", "0"], ["--memory-limit"]),
        (["bench", "gone.onnx", "-t", "cpu-x86", "--data", "gone.npz"], ["gone.npz: no such file"]),
        (["bench", ".", "-t", "cpu-x86"], ["is no run folder"]),
        (["doctor", "--install", "cpu-x86"], ["target cpu-x86: needs no environment of its own"]),
        (["doctor", "--install", "nosuch"], ["unknown target 'nosuch'"]),
        (["check", "gone.onnx", "-t", "cpu-x86", "--budget", "size_kb=1"], ["gone.onnx", "no such model file"]),
        (["check", ".", "-t", "cpu-x86"], ["is no run folder"]),
        (["teach", "--out", "teacher.bin"], ["teacher.bin", "safetensors"]),
        (["targets", "nosuch"], ["unknown target 'nosuch'"]),
        (["models", "nosuch"], ["unknown card 'nosuch'"]),
    ],
)
def test_wrong_arguments(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # no environment is installed
    monkeypatch.setattr("edgekd.devices.host.has_cuda_device", lambda: False)
    done = cli(*arguments)
    assert_refused(done, *words)
    assert not list(tmp_path.glob("runs/*/result.json"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["bench"], "onnxruntime cannot load it"),
        (["check", "--budget", "latency_p50_ms=1"], "onnxruntime cannot load it"),
        (["check", "--budget", "size_kb=1"], "onnxruntime cannot load it"),
        (["baseline", "accept"], "onnxruntime cannot load it"),
    ],
)
def test_a_file_that_is_no_onnx_model(cli: Cli, tmp_path: Path, command: list[str], said: str) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not an ONNX file")
    assert_refused(cli(*command, "broken.onnx", "-t", "cpu-x86"), "broken.onnx", said)
    assert not (tmp_path / "baselines").exists()


def test_a_pickle_with_code_is_not_run(cli: Cli, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was-run",))

    (tmp_path / "teacher.pth").write_bytes(pickle.dumps(Evil()))
    assert_refused(cli("distill", "-t", "cpu-x86", "--teacher", "teacher.pth"), "teacher.pth", "more than tensors")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("find", "replace", "words"),
    [
        ("epochs = 12\nbatch_size = 32\nlearning_rate = 0.1\nwarmup_epochs = 0.5\nviews", "epohcs = 4\nviews",
         ["recipe.epohcs", "unknown key", "'epochs'"]),
        ("size = 8", 'size = "8"', ["data.size", '"8"', "integer"]),
        ("size_kb = 60", "size_kb = -1", ["[budget]", "size_kb", "-1", "greater than 0"]),
        ("size_kb = 60", "[budget.cpu-x86]\nsize_kB = 60", ["[budget.cpu-x86]", "size_kB", "'size_kb'"]),
        ("mean = [0.3055]", "mean = [0.3055", ["not valid TOML", "line"]),
        ('family = "convnet"\nshape', 'family = "convnt"\nshape', ["teacher.family", "'convnt'", "'convnet'"]),
        ("channels = [[8, 8], [8, 16]]", "chanels = [[8, 8]]", ["student.knobs", "chanels", "'channels'"]),
        ("channels = [16, 32]", "channels = [16, 32, 64, 64, 64]", ["teacher.shape", "grid"]),
        ('source = "digits"', 'source = "import"\nfunction = "os.path"', ["data.function", "package.module:function"]),
    ],
)  # fmt: skip
def test_wrong_card(cli: Cli, tiny_card: Path, find: str, replace: str, words: list[str]) -> None:
    text = tiny_card.read_text()
    assert text.count(find) >= 1
    tiny_card.write_text(text.replace(find, replace, 1))
    assert_refused(cli("distill", "tiny.toml", "-t", "cpu-x86"), "tiny.toml", *words)


def test_infeasible_budget_stops_before_training(cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    done = cli("distill", "tiny.toml", "-t", "cpu-x86", "--budget", "size_kb=2")
    assert_refused(done, "file size ≤ 2.0 kB is missed by 4 of 4", "nothing was trained", "Nearest: ", code=1)
    run = tmp_path / "runs" / "tiny@cpu-x86"
    assert len(json.loads((run / "candidates.json").read_text())["candidates"]) == 2
    assert not (run / "teacher").exists()


def test_teacher_below_its_minimum(cli: Cli, tiny_card: Path) -> None:
    done = cli("distill", "tiny.toml", "-t", "cpu-x86", "--budget", "teacher_min_accuracy=1.0")
    assert_refused(done, "in 2 attempts", "teacher_min_accuracy is 100.00 %", "train longer", code=1)


def test_output_that_cannot_be_written(cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(cli("distill", "tiny.toml", "-t", "cpu-x86", "--out", "file/run"), "file/run", "Not a directory")
    assert_refused(cli("distill", "tiny.toml", "-t", "cpu-x86", "--out", "file"), "file: is a file; name a folder with")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", ["thesis.txt", ".env.local"])
def test_a_folder_that_is_no_run_is_left_alone(cli: Cli, tiny_card: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("years of work")
    done = cli("distill", "tiny.toml", "-t", "cpu-x86", "--out", "mine", "--fresh")
    assert_refused(done, "mine", "holds no run")
    assert (tmp_path / "mine" / name).read_text() == "years of work"


def test_debug_shows_the_traceback(cli: Cli) -> None:
    done = cli("--debug", "distill", "-t", "cpu-x87")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_full_disk_is_one_line(cli: Cli, tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgekd.files.os.fsync", full)
    assert_refused(cli("distill", "tiny.toml", "-t", "cpu-x86"), "no space left on the device")
    assert not (tmp_path / "runs" / "tiny@cpu-x86").exists()


def test_a_file_that_cannot_be_written_whole_is_one_line(tiny_card: Path, tmp_path: Path) -> None:
    """A real limit on file sizes stands in for a full disk; it ends plain writes and would kill a memory map."""
    command = [sys.executable, "-m", "edgekd", "distill", "tiny.toml", "-t", "cpu-x86", "--online"]
    limit = 12_000  # bytes: run.json fits, the validation images do not
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert_refused(done, "File too large")
    run = tmp_path / "runs" / "tiny@cpu-x86"
    names = {path.name for path in run.rglob("*")}
    assert {"run.json", "validation.labels.npy"} <= names and "validation.npy" not in names


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_of_several_processes_the_first_says_that_they_are_interrupted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, rank: str, lines: int
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekd.cli.look.show_card", interrupted)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    done = cli("models", "digits")
    assert done.returncode == 130
    assert len(done.stderr.splitlines()) == lines


def test_links_that_lead_back_to_themselves(cli: Cli, tmp_path: Path) -> None:
    for name in ("loop.onnx", "loop.toml"):
        (tmp_path / name).symlink_to(name)
    assert_refused(cli("check", "loop.onnx", "-t", "cpu-x86", "--budget", "size_kb=1"), "loop.onnx: no such model file")
    assert_refused(cli("bench", "loop.onnx", "-t", "cpu-x86"), "loop.onnx: no such model file")
    assert_refused(cli("targets", "loop.toml"), "loop.toml")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE: got 'x'; it should be a whole number of at least 1, or not set"),
        ({"WORLD_SIZE": "2"}, "torchrun: "),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: got '2'; it should be below WORLD_SIZE, 2"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK: got 'x'; it should be a whole number of at least 0"),
    ],
)
def test_what_torchrun_would_not_set(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    if settings.get("RANK"):  # otherwise nobody complains: this process is not the first, and says nothing
        from edgekd.distill import distributed

        with pytest.raises(ConfigError, match=f"^{said}$"):
            distributed.join()
    else:
        assert_refused(cli("distill", "-t", "cpu-x86"), said)


def test_the_users_home_folder_in_arguments_and_cards(
    cli: Cli, tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--option=~/…` reaches a program as it is written, and so does what a card says."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    tiny_card.write_text(tiny_card.read_text().replace("[student]", '[student]\nweights = "~/my.pt"', 1))
    (home / "card.toml").write_text(tiny_card.read_text())
    done = cli("distill", "~/card.toml", "--target=~/gone.toml")
    assert (done.returncode, done.stderr) == (
        2,
        f"edgekd: target '{home / 'gone.toml'}': no such file; give a TOML file or a bundled name\n",
    )
    done = cli("distill", "~/card.toml", "--target", "cpu-x86", "--teacher=~/gone.pt")
    assert f"--teacher {home / 'gone.pt'}: no such weights file" in done.stderr
    done = cli("distill", "~/card.toml", "--target", "cpu-x86")
    assert (done.returncode, done.stderr) == (2, f"edgekd: {home / 'my.pt'}: no such weights file\n")
    assert not (tmp_path / "~").exists()
