"""`edgekd search` and `edgekd distill` by ssh, on boards that are an sshd on loopback each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.devices.local import Local
from edgekd.files import read_json

Cli = Callable[..., Any]

HERE = """
title = "This kind of machine"
precisions = ["fp32", "int8"]
[hardware]
architecture = "{architecture}"
[provider]
name = "CPUExecutionProvider"
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    """A target that this machine is, and so is a board on loopback."""
    (tmp_path / "here.toml").write_text(HERE.format(architecture=Local().facts().architecture))
    return "here.toml"


@pytest.mark.slow
def test_distill_goes_on_with_what_search_measured_on_the_device(
    board: Any, target: str, tiny_card: Path, cli: Cli
) -> None:
    same = ("--target", target, "--device", "ssh://board", "--accuracy-on", "host", "--out", "run")
    searched = cli("search", tiny_card, *same, "--rank", "capacity")
    assert searched.returncode == 0, searched.stderr
    found = read_json(Path("run/candidates.json"))["candidates"]
    kept = [one["precisions"]["int8"]["latency_p50_ms"] for one in found]
    assert len(kept) == 2 and {one["provenance"] for one in kept} == {"measured"}
    named = read_json(Path("run/run.json"))["target"]
    assert (named["device"], named["accuracy_on"]) == ("ssh://board", "host")
    done = cli("distill", tiny_card, *same)
    assert done.returncode in (0, 1, 3), done.stderr  # so few calls may prove nothing
    assert read_json(Path("run/candidates.json"))["candidates"] == found
    models = read_json(Path("run/result.json"))["models"]
    for model in models:
        assert model["provenance"]["latency_p50_ms"] == "measured"
        assert model["provenance"]["agreement"] == "proxy"
    assert "computed on this machine, not on ssh://board" in done.stdout
    elsewhere = cli("distill", tiny_card, "--target", target, "--out", "run")
    assert elsewhere.returncode == 2
    assert "target.accuracy_on was 'host' when this run began" in elsewhere.stderr


@pytest.mark.slow
def test_two_boards_share_the_candidates_and_the_first_one_measures_the_choice(
    board: Any, second_board: Any, target: str, tiny_card: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.search.candidates.ANCHORING", 2)
    same = ("--target", target, "--device", "ssh://board", "--device", "ssh://board2", "--out", "run")
    done = cli("search", tiny_card, *same, "--rank", "capacity")
    assert done.returncode == 0, done.stderr
    assert "search: 2 devices share 2 candidates; the anchor in fp32 takes ssh://board " in done.stderr
    assert "search: candidates by device: ssh://board 1, ssh://board2 1" in done.stderr
    content = read_json(Path("run/candidates.json"))
    assert list(content["anchor"]["times"]) == ["ssh://board", "ssh://board2"]
    times = {
        one["timed_on"]: one["precisions"]["fp32"]["latency_p50_ms"] | {"shared": bool(one["shared"])}
        for one in content["candidates"]
    }
    for where, time in times.items():
        assert time["provenance"] == ("estimated" if where else "measured")
        assert 0 < time["low"] <= time["value"] <= time["high"]
    name = done.stdout.rpartition("would train ")[2].splitlines()[0]
    (chosen,) = [one for one in content["candidates"] if str(one["shape"]["channels"]) in name]
    assert chosen["timed_on"] == ""  # measured on the first board, at once or again
    assert (second_board.cache / "files").is_dir()
    assert not second_board.processes()
    again = cli("search", tiny_card, *same, "--rank", "capacity")
    assert again.returncode == 0 and "devices share" not in again.stderr


@pytest.mark.slow
def test_two_targets_are_measured_on_one_board_by_one_call(board: Any, target: str, tiny_card: Path, cli: Cli) -> None:
    text = Path(target).read_text()
    Path("plain.toml").write_text(text.replace(', "int8"', ""))
    both = ("--target", target, "--target", "plain.toml", "--device", "ssh://board")
    short = ("--set", "recipe.epochs=1", "--set", "teacher.training.epochs=1", "--accuracy-on", "host")
    done = cli("distill", tiny_card, *both, *short)
    assert done.returncode in (0, 1, 3), done.stderr  # so few calls may prove nothing
    for name, precisions in (("here", {"fp32", "int8"}), ("plain", {"fp32"})):
        models = read_json(Path(f"runs/tiny@{name}/result.json"))["models"]
        assert {model["precision"] for model in models} == precisions
        assert {model["provenance"]["latency_p50_ms"] for model in models} == {"measured"}
    assert not board.processes()
    Path("plain.toml").write_text(f"python = '/usr/bin/python3'\n{text}")
    other = cli("distill", tiny_card, *both, "--fresh")
    assert other.returncode == 2
    assert "device ssh://board: targets here and plain name different interpreters on it" in other.stderr
