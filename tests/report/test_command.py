"""`edgekd report`: a summary, or the files asked for; nothing at all if a folder is no run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.cli.main import main

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("plotly", reason="plotly is not installed")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `edgekd report ARGS`: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgekd", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_without_options_it_prints_a_summary_and_writes_nothing(report, make_run, tmp_path) -> None:
    run = make_run(benched=("cpu-arm",))
    before = files(tmp_path)
    code, out, err = report(run)
    assert (code, err) == (0, "")
    assert out.startswith("digits on cpu-x86: fail\n  The shipped file is 13 × smaller and 5.0 × faster")
    assert "  file size 30.0 kB ≤ 20.0 kB: fail\n" in out
    assert "digits on cpu-arm, 200 test images" in out
    assert "  shipped: student int8, because fast <script>" in out
    assert files(tmp_path) == before


def test_several_runs_begin_with_an_overview(report, make_run) -> None:
    _, out, _ = report(make_run(), make_run(name="again"))
    assert out.startswith("2 runs")


def test_it_writes_every_file_asked_for(report, make_run, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, _ = report(
        make_run(benched=("cpu-arm",)), "--html", out / "a.html", "--markdown", out / "a.md", "--csv", out / "a.csv",
        "--json", out / "a.json", "--plots", out,
    )  # fmt: skip
    assert code == 0
    pictures = {"digits@cpu-x86.png", "digits@cpu-x86.bench-cpu-arm.png"}
    assert files(out) == {"a.html", "a.md", "a.csv", "a.json", *pictures}
    assert said.count(": written\n") == 6
    assert json.loads((out / "a.json").read_text())["runs"][0]["card"] == "digits"
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_pictures_of_runs_of_the_same_name_lie_side_by_side(report, make_run, tmp_path) -> None:
    run = make_run()
    report(run, run, "--plots", tmp_path / "out")
    assert files(tmp_path / "out") == {"digits@cpu-x86.png", "digits@cpu-x86-2.png"}


def test_a_folder_that_is_no_run_is_one_line_and_nothing_is_written(report, make_run, tmp_path) -> None:
    code, out, err = report(make_run(), tmp_path / "nothing", "--html", tmp_path / "a.html")
    assert (code, out) == (2, "")
    assert err == f"edgekd: {tmp_path / 'nothing'}: is no run folder\n"
    assert not (tmp_path / "a.html").exists()


def test_without_plotly_it_is_one_line_with_the_command(report, make_run, tmp_path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    code, _, err = report(make_run(), "--html", tmp_path / "a.html")
    assert code == 2
    assert err == 'edgekd: the HTML report needs plotly; pip install "edgekd[report]"\n'
