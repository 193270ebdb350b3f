"""The Markdown summary, rendered as GitHub would."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from edgekd.check.formats import markdown
from edgekd.check.formats.markdown import append_summary, markdown_summary
from edgekd.errors import InputError
from edgekd.judge import Judged


def cells(judged: Sequence[Judged]) -> list[list[str]]:
    """The rows of the table as a reader sees them."""
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown_summary(judged))
    start, end = html.index("<table>"), html.index("</table>") + len("</table>")
    rows = ElementTree.fromstring(html[start:end]).iter("tr")
    assert html.count("<table>") == 1
    return [["".join(cell.itertext()) for cell in row] for row in rows]


def test_headline_and_table(mixed: Judged, slower: Judged, passed: Judged) -> None:
    text = markdown_summary([mixed, slower, passed])
    assert text.startswith("## ❌ edgekd check: fail\n\n3 checks: 1 pass, 2 fail.\n\n| model | target |")
    header, *rows = cells([mixed, slower, passed])
    assert header == markdown.HEADER
    model, target = "student.onnx", "cpu-x86"
    looks, interval = "95 % over 4 planned looks", "0.640 ms … 0.671 ms"
    p50 = ["latency p50", "0.652 ms (measured)", interval, "≤ 1.00 ms", "+0.348 ms", looks, "✅ pass"]
    assert rows[0] == [model, target, *p50]
    assert rows[1][6:] == ["+0.000 ms", "", "⚠️ inconclusive (too close to tell)"]
    assert rows[2][6:] == ["−0.200 ms", "", "ℹ️ fail, advisory"]
    assert rows[3][3:] == ["27.7 kB (exact)", "", "≤ 25.0 kB", "−2.7 kB", "exact", "❌ fail"]
    assert rows[4][3:] == ["unknown", "", "≤ 60.0 MB", "", "", "➖ not judged (not measured here)"]
    assert rows[5][:3] == ["big.onnx", target, "p50 slowdown"]
    assert rows[5][3] == "+5.1 % (measured)"
    assert rows[5][6] == "−2.6 %"


def test_notes_are_folded(mixed: Judged, passed: Judged) -> None:
    text = markdown_summary([mixed])
    assert "\n\n<details><summary>Notes (2)</summary>\n\n- student.onnx on cpu-x86: the machine was busy\n- " in text
    assert f"machine AMD EPYC, ONNX Runtime 1.31, sha256 {mixed.sha256}, checked in 10 s\n\n</details>\n" in text


@pytest.mark.parametrize(
    ("names", "headline"),
    [
        (["passed"], "✅ edgekd check: pass"),
        (["passed", "broken", "slower"], "🛑 edgekd check: error"),
        ([], "✅ edgekd check: pass\n\nNothing was checked."),
    ],
)
def test_the_worst_is_the_headline(names: list[str], headline: str, request: pytest.FixtureRequest) -> None:
    judged = [request.getfixturevalue(name) for name in names]
    assert markdown_summary(judged).startswith(f"## {headline}")


def test_a_name_is_only_text(broken: Judged) -> None:
    _, row = cells([broken])
    seen = " ".join(broken.name.split()).replace("\x00", r"\x00").replace("\x1b", r"\x1b").replace("\udc80", r"\udc80")
    assert row == [seen, "cpu-arm", "", "", "", "", "", "", f"🛑 error: {seen}: crashed with signal 11"]
    assert "<img" not in markdown_summary([broken])
    (line,) = [line for line in markdown_summary([broken]).splitlines() if "second" in line]
    assert line.startswith("| ")


def test_emphasis_and_links_are_only_text() -> None:
    name = "_a_ **b** [c](http://d) ~~e~~ model_v2_int8.onnx"
    _, row = cells([Judged(name=name, target="t", problem="p")])
    assert row[0] == name
    assert "model_v2_int8.onnx" in markdown_summary([Judged(name=name, target="t", problem="p")])


def test_the_summary_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    append_summary(path, "## One\n")
    append_summary(path, "## Two\n")
    assert path.read_text() == "## One\n\n## Two\n"


def test_a_long_summary_is_cut_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("x" * 1000 + "\n")
    lines = "".join(f"| row {number} of ° |\n" for number in range(100_000))
    append_summary(path, f"{lines}<details>\n\nnever\n\n</details>\n")
    content = path.read_bytes()
    assert 1_000_000 < len(content) <= 1024 * 1024
    text = content.decode()
    assert text.endswith("of ° |\n\n_The summary is cut here: GitHub takes 1 MiB for a step. The log has all of it._\n")
    append_summary(path, lines)
    assert path.read_bytes() == content


def test_what_is_cut_inside_the_folded_notes_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    append_summary(path, "<details>\n\n" + "- a note\n" * 200_000 + "\n</details>\n")
    assert "- a note\n\n</details>\n\n_The summary is cut here" in path.read_text()
    assert path.stat().st_size <= 1024 * 1024


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        append_summary(tmp_path / "nowhere" / "summary.md", "text")
    assert str(caught.value) == (
        f"{tmp_path}/nowhere/summary.md: the summary cannot be appended (No such file or directory); "
        "GITHUB_STEP_SUMMARY should name a file in a folder that can be written, or be unset"
    )
    with pytest.raises(InputError, match="Is a directory"):
        append_summary(tmp_path, "text")
