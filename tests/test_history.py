"""The history of checks: appended by many, never torn, read with what is damaged left out."""

import dataclasses
import json
import multiprocessing
import os
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from edgekd import __version__
from edgekd.card import Budget
from edgekd.errors import InputError
from edgekd.figures import Figure
from edgekd.history import append_history, read_history, this_commit
from edgekd.judge import Judged, judge
from edgekd.scores import ACCURACY

WHEN = datetime(2026, 11, 2, 14, 5, 9, tzinfo=UTC)
NAME = 'naughty\n"name"\u2028 </script>'


def a_check(name: str = "small", p50: float = 0.2) -> Judged:
    figures = {
        "latency_p50_ms": Figure(p50, "measured", p50 - 0.01, p50 + 0.01),
        "size_kb": Figure(30.0, "exact"),
        "peak_memory_mb": Figure(why="not asked"),
        "load_ms": Figure(float("nan"), "measured"),
    }
    verdict = judge(figures, Budget(latency_p50_ms=0.25))
    return Judged(name=name, target="cpu-x86", verdict=verdict, sha256="ab" * 32, machine="a CPU", figures=figures)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "history.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_what_was_judged(path) -> None:
    append_history(path, [a_check()], WHEN, "c0ffee")
    assert lines(path) == [
        {
            "schema_version": 2,
            "at": "2026-11-02T14:05:09Z",
            "commit": "c0ffee",
            "model": "small",
            "sha256": "ab" * 32,
            "target": "cpu-x86",
            "machine": "a CPU",
            "outcome": "pass",
            "score": dataclasses.asdict(ACCURACY),
            "figures": {"latency_p50_ms": [0.2, 0.19, pytest.approx(0.21)], "size_kb": [30.0, None, None]},
            "limits": {"latency_p50_ms": 0.25},
            "edgekd": __version__,
        }
    ]


def test_what_was_written_is_read_in_the_order_of_time(path) -> None:
    east = timezone(timedelta(hours=2))
    append_history(path, [a_check(), a_check(NAME)], datetime(2026, 11, 2, 23, tzinfo=east), "new")
    append_history(path, [a_check(p50=0.3)], WHEN, "old")
    entries, warnings = read_history(path)
    assert warnings == []
    assert [(e.model, e.commit, e.outcome) for e in entries] == [
        ("small", "old", "fail"), ("small", "new", "pass"), (NAME, "new", "pass"),
    ]  # fmt: skip
    assert entries[1].at == datetime(2026, 11, 2, 21, tzinfo=UTC)
    figure = entries[1].figures["latency_p50_ms"]
    assert [figure.value, figure.low, figure.high] == pytest.approx([0.2, 0.19, 0.21])
    assert entries[1].limits == {"latency_p50_ms": 0.25}


def test_a_model_that_could_not_be_judged_has_its_line_too(path) -> None:
    append_history(path, [Judged(name="small", target="cpu-x86", problem="it crashed")], WHEN, "")
    (entry,), _ = read_history(path)
    assert (entry.outcome, entry.figures, entry.limits, entry.commit) == ("error", {}, {}, "")


def append_many(path: Path, name: str) -> None:
    for number in range(50):
        append_history(path, [a_check(f"{name} {'x' * 3_000}"), a_check(name)], WHEN, str(number))


def test_parallel_jobs_tear_no_lines(path) -> None:
    jobs = [multiprocessing.get_context("fork").Process(target=append_many, args=(path, f"job {n}")) for n in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    entries, warnings = read_history(path)
    assert (len(entries), warnings) == (400, [])
    for number in range(4):
        assert [e.commit for e in entries if e.model == f"job {number}"] == [str(n) for n in range(50)]


def test_a_torn_line_is_left_alone_and_told(path) -> None:
    append_history(path, [a_check()], WHEN, "one")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    append_history(path, [a_check(), a_check()], WHEN, "two")
    entries, warnings = read_history(path)
    assert [entry.commit for entry in entries] == ["one", "two", "two"]
    assert warnings == [f"{path}: line 2 is skipped: is torn or no JSON"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"\xff\xfe", "is torn or no JSON"),
        (b"[1]", "it is no JSON object"),
        (b"{}", "schema_version is None, not 1 or 2"),
        (b'{"schema_version": true}', "commit is no text"),
        ({"model": 3}, "model is no text"),
        ({"at": "yesterday"}, "Invalid isoformat string: 'yesterday'"),
        ({"at": "2026-11-02T10:00:00"}, "at has no time zone"),
        ({"figures": {"size_kb": [1]}}, "not enough values to unpack (expected 3, got 1)"),
        ({"figures": {"size_kb": ["big", None, None]}}, "size_kb is no number"),
        ({"limits": {"size_kb": float("inf")}}, "size_kb is no number"),
        ({"limits": []}, "'list' object has no attribute 'items'"),
    ],
)
def test_a_corrupt_line_is_skipped_with_its_number(path, line, told) -> None:
    append_history(path, [a_check()], WHEN, "one")
    if isinstance(line, dict):
        line = json.dumps({**lines(path)[0], **line}).encode()
    with path.open("ab") as file:
        file.write(b"\n" + line + b"\n")
    entries, warnings = read_history(path)
    assert len(entries) == 1
    assert warnings == [f"{path}: line 3 is skipped: {told}"]


def test_a_line_of_a_newer_edgekd_is_an_error_that_names_it(path) -> None:
    append_history(path, [a_check(), a_check()], WHEN, "one")
    path.write_text(path.read_text() + json.dumps({"schema_version": 7}) + "\n")
    with pytest.raises(InputError) as caught:
        read_history(path)
    assert str(caught.value) == (
        f"{path}: line 3: schema_version 7 is newer than this edgekd ({__version__}) knows: 2; update edgekd"
    )


def test_a_file_without_a_readable_line_is_an_error(path) -> None:
    path.parent.mkdir()
    with pytest.raises(InputError, match=r"history\.jsonl: the history cannot be read: No such file or directory; "):
        read_history(path)
    path.write_text("\n")
    with pytest.raises(InputError, match=r"history\.jsonl: holds no check: it is empty; "):
        read_history(path)
    path.write_text("one\ntwo\n")
    with pytest.raises(InputError, match="holds no check: none of its 2 lines is readable; "):
        read_history(path)


@pytest.mark.parametrize("name", ["", "file/history.jsonl", "pipe"])
def test_a_path_that_cannot_be_written_is_one_line(tmp_path, name) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"^/[^\n]*: the history cannot be written: [^\n]+; name another file$"):
        append_history(tmp_path / name, [a_check()], WHEN, "")


def test_a_full_disk_leaves_nothing_half_written(path, monkeypatch) -> None:
    append_history(path, [a_check()], WHEN, "one")
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
    with pytest.raises(InputError, match="only a part of the line was written; the disk may be full"):
        append_history(path, [a_check()], WHEN, "two")
    assert path.read_bytes() == before


def test_the_commit_is_that_of_ci_then_of_git(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    monkeypatch.delenv("CI_COMMIT_SHA", raising=False)
    assert this_commit() == ""
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q"], check=True)
    assert this_commit() == ""
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert this_commit() == head
    monkeypatch.setenv("CI_COMMIT_SHA", "from-gitlab")
    assert this_commit() == "from-gitlab"
    monkeypatch.setenv("GITHUB_SHA", " from-github\n")
    assert this_commit() == "from-github"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("GITHUB_SHA")
    monkeypatch.delenv("CI_COMMIT_SHA")
    assert this_commit() == ""
