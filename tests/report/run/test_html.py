"""The page: self-contained, small enough, and every name shown as it is."""

import dataclasses
import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from edgekd.errors import UnavailableError
from edgekd.figures import ModelFigures
from edgekd.report.drawing import log_axis, plain
from edgekd.report.run.charts import latency_chart, trade_chart
from edgekd.report.run.gather import gather
from edgekd.report.run.html import html_report
from edgekd.report.run.story import Story
from edgekd.report.tasks.classification import class_chart

pytest.importorskip("plotly", reason="plotly is not installed")

TAG = "<img src=x onerror=alert(1)>"
MARKS = re.compile(r"<script>/\*\*.*?</script>", re.DOTALL)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "script":
            self.words += data


@pytest.fixture
def page(make_run) -> str:
    return html_report([gather(make_run(benched=("cpu-arm", "cpu-x86-avx2")))])


def test_it_fits_and_loads_nothing(page) -> None:
    assert len(page.encode()) <= 6_000_000
    tags = Tags(MARKS.sub("", page)).tags
    assert MARKS.search(page)  # plotly.js is in the page
    addresses = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(address and address.startswith("#") for address in addresses)
    assert not re.search(r"@import|url\(", MARKS.sub("", page))
    assert "default-src 'none'" in page
    assert not any(tag in ("link", "img", "iframe", "object") for tag, _ in tags)


def test_it_says_verdict_budget_and_sentence_first(page) -> None:
    words = Tags(page).words
    order = ["digits on cpu-x86", "13 × smaller", "FAIL", "latency p50", "≤ 0.250 ms", "20 % below", "50 % above",
             "Cost and accuracy", "Latency, call by call", "All figures", "student int8 on every target",
             "Raspberry Pi", "Where it runs", "Xnnpack 25 %", "1 Pad", "6 (75 %)", "conv<1>", "Classes",
             "How each figure was obtained", "Intervals of what", "no counter here", "How to repeat it",
             "edgekd distill digits --target cpu-x86", "1.24.1"]  # fmt: skip
    place = 0
    for text in order:
        place = words.find(text, place)
        assert place >= 0, text


def test_names_cannot_become_tags(page) -> None:
    parsed = Tags(page)
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 2 + page.count('<script type="application/json">')
    assert 'mind <script>alert("x")<\\/script> & </script><img src=x onerror=alert(1)>' in parsed.words
    for content in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL):
        assert "<" not in content
        for chart in json.loads(content):
            assert "<script" not in json.dumps(chart)  # plotly takes tags in its texts for its own


def poison(content: dict[str, Any], name: str) -> None:
    """A tag wherever a file may hold any text or is not looked at closely."""
    for model in content["models"]:
        model["provenance"] = dict.fromkeys(model["provenance"], TAG)
        model["notes"] = dict.fromkeys(model["provenance"], TAG)
        model |= {"file": TAG, "precision": TAG, "remarks": [TAG], "sha256": TAG}
        model["fingerprint"] = {TAG: TAG, "cpu": TAG, "python": [TAG], "nodes_by_provider": {TAG: TAG}}
        model["batches"] = {TAG: {"value": 1.0, "provenance": TAG, "why": TAG}}
        if model["placement"]:
            node = {"node": TAG, "op_type": TAG, "provider": TAG, "us": 1.0, "share": 0.5}
            counts = {"nodes": {TAG: TAG}, "fell_back": {TAG: TAG}, "blockers": {TAG: TAG}}
            model["placement"] |= {**counts, "time_share": {TAG: 1.0}, "provenance": TAG, "costliest": [node]}
    keys = ["title", "split", "command", "provider"] if name == "bench.json" else [
        *("card", "why_chosen", "candidates", "test_reads", "edgekd")]  # fmt: skip
    content |= dict.fromkeys(keys, TAG)
    if name == "result.json":
        content |= {"notes": [TAG], "shape": {TAG: TAG}}
        content["training"]["epochs"] = content["parity"]["images"] = TAG
        for line in content["budget"]:
            line |= {"provenance": TAG, "reason": TAG}


def test_no_field_of_the_files_becomes_a_tag(make_run) -> None:
    folder = make_run(benched=("cpu-arm",))
    for path in (folder / "result.json", folder / "bench" / "cpu-arm" / "bench.json"):
        content = json.loads(path.read_text())
        poison(content, path.name)
        path.write_text(json.dumps(content))
    story = gather(folder)
    for placed in ({}, {"placement": None}, {"fused": None, "unfused": TAG, "qdq": TAG}):
        page = MARKS.sub("", html_report([with_placement(story, placed), story]))
        assert TAG not in page
        assert "<img" not in page
        assert page.count(html.escape(TAG)) > 100


def with_placement(story: Story, change: dict[str, Any]) -> Story:
    """The story with another placement of each model, or with none."""

    def changed(model: ModelFigures) -> ModelFigures:
        if not change or model.placement is None:
            return model
        placement = None if "placement" in change else dataclasses.replace(model.placement, **change)
        return dataclasses.replace(model, placement=placement)

    columns = [dataclasses.replace(column, models=tuple(map(changed, column.models))) for column in story.columns]
    return dataclasses.replace(story, columns=tuple(columns))


def test_a_placement_of_another_machine_says_so_and_has_no_times(make_run) -> None:
    story = with_placement(gather(make_run()), {"provenance": "proxy", "qdq": 7})
    words = Tags(html_report([story])).words
    where = words[words.index("Where it runs") : words.index("Recall") if "Recall" in words else words.index("Classes")]
    assert "proxy" in where
    assert "another machine than the target" in where
    assert "Xnnpack: 4" in where
    assert "6 (75 %), 7 Q/DQ" in where
    assert "75 %" not in where.replace("6 (75 %)", "")
    assert "costliest" not in where


def test_intervals_are_called_what_they_are(page) -> None:
    words = Tags(page).words
    told = "measured: 95 %, the wider of the order-statistic and the between-process interval; estimated: the model's"
    assert f"of latency, if {told} stated margin. Dashed" in words
    assert f"Intervals of what was {told} stated margin. Of accuracy" in words
    assert "95 % interval" not in words.replace("Bars are 95 % intervals (Wilson)", "")


def test_a_name_that_looks_like_a_mark_of_the_template_stays(make_run) -> None:
    assert "a @@PLOTLY@@ b" in Tags(html_report([gather(make_run(student="a @@PLOTLY@@ b"))])).words


def test_several_runs_have_an_overview_with_links(make_run) -> None:
    page = html_report([gather(make_run()), gather(make_run(name="again"))])
    links = [attributes["href"] for tag, attributes in Tags(page).tags if tag == "a"]
    assert links == ["#run-0", "#run-1"]
    assert page.count('class="run"') == 2


def test_sections_of_which_nothing_is_known_are_left_out(make_run) -> None:
    folder = make_run()
    for name in ("records", "data"):
        shutil.rmtree(folder / name)
    (folder / "candidates.json").unlink()
    words = Tags(html_report([gather(folder)])).words
    assert "Latency, call by call" not in words
    assert "Classes" not in words
    assert "All figures" in words
    assert "No candidates are kept" in words


def test_without_plotly_it_says_how_to_get_it(make_run, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UnavailableError, match=r'pip install "edgekd\[report\]"'):
        html_report([gather(make_run())])


def test_the_chart_holds_every_candidate_and_model(make_run) -> None:
    story = gather(make_run())
    chart = trade_chart(story)
    left = [t for t in chart["data"] if t["xaxis"] == "x" and t["mode"] == "markers" and t["hoverinfo"] == "text"]
    right = [t for t in chart["data"] if t["xaxis"] == "x2" and t["mode"] == "markers" and t["hoverinfo"] == "text"]
    assert sum(len(trace["x"]) for trace in left) == 4 * 2 + 3
    assert sum(len(trace["x"]) for trace in right) == 3
    limits = {shape["x0"] for shape in chart["layout"]["shapes"] if shape["x0"] == shape["x1"]}
    assert limits == {0.25}
    (front,) = (t for t in chart["data"] if t["name"] == "Pareto front" and t["xaxis"] == "x2")
    assert list(zip(front["x"], front["y"], strict=True)) == [(0.2, 92.0), (0.3, 93.0), (1.0, 95.0)]


def test_the_pareto_front_of_cost_holds_only_what_nothing_beats(make_run) -> None:
    chart = trade_chart(gather(make_run()))
    front = chart["data"][0]
    assert (front["x"], front["y"]) == ([0.08], [4])  # the smallest candidate in int8 is the fastest, too


def test_without_latency_the_chart_turns_to_size_and_arithmetic(make_run) -> None:
    folder = make_run()
    for name in ("result.json", "candidates.json"):
        content = json.loads((folder / name).read_text())
        for model in content.get("models", ()):
            model["latency_p50_ms"] = None
        for shape in content["candidates"] if name == "candidates.json" else ():
            for figures in shape["precisions"].values():
                figures["latency_p50_ms"]["value"] = None
        (folder / name).write_text(json.dumps(content))
    layout = trade_chart(gather(folder))["layout"]
    assert layout["xaxis"]["title"]["text"] == "multiply-accumulates, millions (latency is not known)"
    assert layout["xaxis2"]["title"]["text"] == "file size, kB"


def test_latency_has_a_thin_line_a_process_and_a_bold_one_a_model(make_run) -> None:
    story = gather(make_run())
    chart = latency_chart(story.own, story.lines)
    assert chart is not None
    assert [trace["line"]["width"] for trace in chart["data"]] == [1, 1, 1, 3] * 3
    bold = chart["data"][3]
    middle = bold["x"][bold["y"].index(50.0)]
    assert middle == pytest.approx(1.0, rel=0.05)


def test_a_hundred_classes_on_many_targets_stay_small(make_run) -> None:
    story = gather(make_run())
    matrix = [[1_000 if row == column else 7 for column in range(100)] for row in range(100)]
    details = {"recall": [0.5] * 100, "confusion": matrix}
    names = [model.name for model in story.own.models]
    own = dataclasses.replace(story.own, details=dict.fromkeys(names, details))
    data = {"classes": [f"a class of number {place}" for place in range(100)]}
    many = dataclasses.replace(story, columns=(own,) * 5, data=data)
    page = html_report([many, many])
    assert len(page.encode()) <= 6_000_000
    assert "12 more are in what --json writes" in page


def test_many_classes_without_a_matrix_show_the_worst(make_run) -> None:
    story = gather(make_run())
    details = {"teacher": {"recall": [place / 1000 for place in range(1000)]}}
    column = dataclasses.replace(story.own, details=details)
    chart = class_chart(column, "teacher", [f"class {place}" for place in range(1000)])
    assert len(chart["data"][0]["x"]) == 30
    assert chart["layout"]["yaxis"]["ticktext"][0] == "class 0"


@pytest.mark.parametrize(
    ("ends", "pixels", "upright", "texts"),
    [
        ((-1, 1), 450, False, ["0.1", "0.2", "0.5", "1", "2", "5", "10"]),
        ((0.0, 0.5), 450, False, ["1", "1.5", "2", "2.5", "3"]),
        ((2, 5), 330, True, ["100", "300", "1,000", "3,000", "10,000", "30,000", "100,000"]),
        ((2, 5), 330, False, ["100", "1,000", "10,000", "100,000"]),
        ((-3.3, 0), 450, False, ["0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1"]),
    ],
)
def test_a_log_axis_has_as_many_round_numbers_as_have_room(ends, pixels, upright, texts) -> None:
    assert log_axis("x", ends, pixels, upright)["ticktext"] == texts


def test_plotly_shows_text_as_it_is() -> None:
    assert plain("<b>a & b</b>") == "&lt;b&gt;a &amp; b&lt;/b&gt;"
    assert plain("$x^2$") == "&#36;x^2&#36;"
