"""The pre-commit hook: its function, its command and its declaration."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import edgekd
from edgekd.check.precommit import main

ROOT = Path(edgekd.__file__).parent.parent


def save(path: Path, opset: int = 17, domain: str = "", external: str = "", inside: bool = False) -> Path:
    """A model that adds 1,000 floats (4,000 B); `external` keeps them in that file, `inside` in a branch of an If."""
    weights = numpy_helper.from_array(np.zeros(1_000, np.float32), "w")
    value = helper.make_tensor_value_info
    x, y = value("x", TensorProto.FLOAT, [1_000]), value("y", TensorProto.FLOAT, [1_000])
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [] if inside else [weights])
    if inside:
        branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=weights)], "b", [], [y])
        choice = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([choice], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)])
    onnx.save(
        model,
        path,
        save_as_external_data=bool(external),
        location=external or None,
        size_threshold=0,
        convert_attribute=True,
    )
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_good_file_is_silent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("m.onnx"))
    assert main(["--max-size-kb=5", "--min-opset=17", "--max-opset=17", "m.onnx"]) == 0
    assert main(["m.onnx"]) == main([]) == 0
    assert capsys.readouterr() == ("", "")


def test_each_problem_is_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = save(Path("a b.onnx"), opset=13).stat().st_size
    save(Path("new.onnx"), opset=19)
    assert main(["--max-size-kb", "4", "--min-opset", "15", "--max-opset", "17", "a b.onnx", "new.onnx"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0] == (
        f"a b.onnx: size {size / 1000:.1f} kB ({size:,} B) > 4.0 kB; quantize it, or raise --max-size-kb"
    )
    assert lines[1] == "a b.onnx: opset 13 < 15; export it with opset 15, or lower --min-opset"
    assert lines[3] == "new.onnx: opset 19 > 17; export it with opset 17, or raise --max-opset"


@pytest.mark.parametrize("inside", [False, True])
def test_weights_in_other_files_count(folder: Path, inside: bool, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(Path("m.onnx"), external="m.data", inside=inside)
    assert file.stat().st_size < 1_000 < 4_000 <= Path("m.data").stat().st_size
    assert main(["--max-size-kb=4", "m.onnx"]) == 1
    assert main(["--max-size-kb=9", "m.onnx"]) == 0
    Path("m.data").unlink()
    capsys.readouterr()
    assert main(["m.onnx"]) == 2
    assert capsys.readouterr().err == (
        "edgekd-check-files: m.onnx: keeps weights in 'm.data', which cannot be read (No such file or directory); "
        "add it\n"
    )


@pytest.mark.parametrize("named", [["m.onnx"], ["m.decoder.onnx"], ["m.onnx", "m.decoder.onnx"]])
def test_both_files_of_a_model_that_generates_are_judged_as_one(
    folder: Path, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = onnx.load(save(Path("m.onnx"), opset=17))
    onnx.helper.set_model_props(encoder, {"edgekd": "1", "generation": "{}"})
    onnx.save(encoder, "m.onnx")
    save(Path("m.decoder.onnx"), opset=13)
    assert main(["--max-size-kb=6", "--min-opset=15", *named]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("m.onnx: size 8") and " > 6.0 kB; " in first
    assert second == "m.decoder.onnx: opset 13 < 15; export it with opset 15, or lower --min-opset"
    Path("m.onnx").unlink()
    save(Path("m.onnx"))
    assert main(["--max-size-kb=6", *named]) == 0, "a file of that name that belongs to no encoder is on its own"


def test_weights_outside_the_folder_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(save(Path("m.onnx"), external="m.data"), load_external_data=False)
    for place in ("../../etc/passwd", "/etc/passwd", "a\0b", "x" * 300):
        model.graph.initializer[0].external_data[0].value = place
        Path("m.onnx").write_bytes(model.SerializeToString())
        assert main(["m.onnx"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("edgekd-check-files: m.onnx: keeps weights in ")


def test_no_default_domain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("m.onnx"), domain="com.example")
    assert main(["m.onnx"]) == 0
    assert main(["--max-opset=17", "m.onnx"]) == 1
    assert "declares no opset of the default domain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not an ONNX file (it has no graph or no opset)"),
        (b"\xff\xfe no model", "is not an ONNX file (Error parsing message"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 4\n", "is a Git LFS pointer"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_model_is_one_line(
    folder: Path, content: bytes | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("m.onnx").write_bytes(content)
    save(Path("good.onnx"), opset=13)
    assert main(["--min-opset=17", "m.onnx", "good.onnx"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"edgekd-check-files: m.onnx: {reason}")
    assert (len(err.splitlines()), len(out.splitlines())) == (1, 1), "the other file has its turn"


def test_a_cut_file_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = save(Path("m.onnx")).read_bytes()
    for length in range(1, len(content), 97):
        Path("m.onnx").write_bytes(content[:length])
        assert main(["m.onnx"]) == 2, length
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_limits_that_make_no_sense(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--min-opset=18", "--max-opset=17"]) == 2
    assert capsys.readouterr().err == (
        "edgekd-check-files: --min-opset 18: should be at most --max-opset, which is 17\n"
    )
    for option in ("--max-size-kb=0", "--max-size-kb=nan", "--max-size-kb=big", "--min-opset=x"):
        with pytest.raises(SystemExit) as ended:
            main([option])
        assert ended.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        if option.startswith("--max-size-kb"):
            assert said.endswith(f"--max-size-kb: got {option.partition('=')[2]!r}; it should be a number above 0")


def test_the_hook_as_pre_commit_runs_it(folder: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["id"] == "edgekd-files"
    assert hook["language"] == "python"
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[hook["entry"]].partition(":")
    name = os.fsdecode(b"odd \xff.onnx")
    save(Path("m.onnx"), opset=13).rename(name)
    script = f"import sys; from {module} import {function}; sys.exit({function}())"
    done = subprocess.run([sys.executable, "-c", script, "--min-opset=17", name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == r"odd \udcff.onnx: opset 13 < 17; export it with opset 17, or lower --min-opset" + "\n"
