"""The Python interface: lazy, and as its page says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgekd
from edgekd.bench.records import Effort

QUICK = Effort(processes=2, warmup_s=0.05, min_calls=50, max_calls=100, max_s=0.05)
PAGE = Path(edgekd.__file__).parents[1] / "docs" / "python.md"


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, edgekd; print(*(n for n in sys.modules if n.startswith('edgekd')), 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["edgekd", "False"]


def test_every_name_is_there_and_documented() -> None:
    for name in edgekd.__all__:
        assert name == "__version__" or getattr(edgekd, name).__doc__
        assert name in ("EdgekdError", "__version__") or callable(getattr(edgekd, name))
    assert dir(edgekd) == sorted(edgekd.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        _ = edgekd.distil


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path: Path, tiny_card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, with a small card in place of the digits'."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgekd.pipeline.EFFORT", QUICK)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace('load_card("digits")', f'load_card("{tiny_card}")'), names)
    result, judged = names["result"], names["judged"]
    assert result.verdict.outcome == judged.outcome == "pass"  # type: ignore[attr-defined]
    assert result.models[0].name == "teacher"  # type: ignore[attr-defined]
    again = edgekd.distill(str(tiny_card), "cpu-arm", out="runs/first", budget={"size_kb": 60})
    assert again == edgekd.load_result("runs/first")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for call in (
        lambda: edgekd.load_card("digit"),
        lambda: edgekd.load_result(tmp_path),
        lambda: edgekd.distill("digits", "cpu-arm", budget={"size": 3}),
        lambda: edgekd.distill("digits", "cpu-arm", teacher=tmp_path / "gone.onnx"),
        lambda: edgekd.distill("digits", "cpu-arm", device="ssh://board"),
        lambda: edgekd.bench([tmp_path / "gone.onnx"], "cpu-x86"),
    ):
        with pytest.raises(edgekd.EdgekdError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert "no such" in edgekd.check(tmp_path / "gone.onnx", "cpu-x86", budget={"size_kb": 1}).problem
