"""`edgekd search`: the front as a table and pictures, what a wider limit buys, a run that `distill` goes on with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.bench.records import Effort
from edgekd.devices.local import Local, fitting_target
from edgekd.nets.teachers import make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.tasks.known import load_card

TINY = Effort(processes=1, min_processes=1, warmup_s=0.0, min_calls=5, max_calls=20, max_s=0.02, placement=False)
KNOBS = '--set=student.families=[{family="mlp",knobs={hidden=[[8],[16],[24],[32],[48],[64],[80],[96],[112],[128]]}}]'
FEW = '--set=student.families=[{family="mlp",knobs={hidden=[[8],[64]]}},{family="vgg",knobs={widths=[[8]]}}]'

Command = Callable[..., Any]


@pytest.fixture
def search(cli: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls `edgekd search` on this machine, with little effort and few measured shapes."""
    monkeypatch.setattr("edgekd.search.candidates.EFFORT", TINY)
    monkeypatch.setattr("edgekd.search.candidates.MEASURED", 8)
    return lambda *arguments: cli("search", *arguments, "--target", fitting_target(Local().facts()), "--out", "run")


@pytest.fixture
def card(tmp_path: Path, tiny_card: Path) -> str:
    """The tiny card with several families, which each call replaces."""
    text = tiny_card.read_text(encoding="utf-8")
    begin, end = text.index("[student]"), text.index("[recipe]")
    file = tmp_path / "several.toml"
    file.write_text(text[:begin] + '[[student.families]]\nfamily = "mlp"\n\n' + text[end:], encoding="utf-8")
    return str(file)


def test_many_shapes_are_predicted_and_the_chosen_one_is_measured(card: str, search: Command) -> None:
    done = search(card, KNOBS, "--rank", "capacity", "--budget", "size_kb=20")
    assert done.returncode == 0
    content = json.loads(Path("run/candidates.json").read_text(encoding="utf-8"))
    predicted = {str(one["shape"]["hidden"]): one["predicted"] for one in content["candidates"]}
    assert len(predicted) == 10
    assert 0 < sum(predicted.values()) <= 2
    name = done.stdout.rpartition("would train family=mlp hidden=")[2].splitlines()[0]
    assert not predicted[name]
    sizes = [one for one in content["fitted"] if one["key"] == "size_kb"]
    assert {one["precision"] for one in sizes} == {"fp32", "int8"}
    assert all(one["error_95"] < 0.1 for one in sizes)  # the size of an MLP is nearly a line
    assert Path("run/front.png").stat().st_size > 1000
    assert Path("run/front.svg").exists()


def test_a_search_that_is_continued_predicts_the_same(card: str, search: Command) -> None:
    def found(limit: float) -> dict[int, dict[str, Any]]:
        assert search(card, KNOBS, "--rank", "capacity", "--budget", f"size_kb={limit:.2f}").returncode == 0
        content = json.loads(Path("run/candidates.json").read_text(encoding="utf-8"))
        return {one["shape"]["hidden"][0]: one for one in content["candidates"]}

    sizes = {width: one["precisions"]["int8"]["size_kb"]["value"] for width, one in found(20).items()}
    limit = (sizes[96] + sizes[112]) / 2  # 96 is the largest that fits; it was predicted, and is measured now
    before = found(limit)
    assert [width for width, one in before.items() if one["predicted"]] == [24]
    after = found(limit)
    for key in ("latency_p50_ms", "size_kb"):
        one, other = (content[24]["precisions"]["int8"][key] for content in (before, after))
        assert one["why"] == other["why"] == "predicted from 8 measured shapes"
        assert one["value"] == pytest.approx(other["value"], rel=1e-9)


def test_ranking_fine_tunes_a_teacher_that_has_weights(card: str, search: Command, tmp_path: Path) -> None:
    save_state(make_teacher_net(load_card(card)), tmp_path / "start.safetensors", {})
    short = ["--set=recipe.epochs=1", "--set=teacher.training.epochs=1", '--set=teacher.weights="start.safetensors"']
    done = search(card, FEW, *short, "--budget=size_kb=60")
    assert done.returncode == 0, done.stderr
    assert "teacher: 6 of 6 layers are loaded from" in done.stderr


def test_what_ten_percent_more_would_buy(card: str, search: Command) -> None:
    done = search(card, FEW, "--rank", "capacity", "--budget", "size_kb=60")
    assert done.returncode == 0
    assert "10 % more file size than 60.0 kB would buy nothing better" in done.stdout


def test_where_nothing_fits_the_limit_to_relax_is_told(card: str, search: Command) -> None:
    done = search(card, FEW, "--budget", "size_kb=1")
    assert done.returncode == 1
    assert "no candidate fits; nearest:" in done.stdout
    assert "family=vgg widths=[8] fp32 needs file size ≤" in done.stdout
    assert done.stdout.count(" needs file size ≤ ") == 3
    assert not Path("run/teacher").exists()  # nothing is trained, although ranking by learning is the default


def test_results_that_do_not_fit_or_come_too_late_erase_nothing(card: str, search: Command) -> None:
    same = (card, FEW, "--rank", "capacity", "--budget", "size_kb=60")
    assert search(*same).returncode == 0
    here = Local().facts()
    told: dict[str, Any] = {
        "architecture": here.architecture,
        "system": here.system,
        "cpuinfo": "",
        "folder": "",
        "board": "",
    }
    told |= {"runtime": {"providers": ["CPUExecutionProvider"]}}
    nothing = {"kind": "edgekd results", "schema_version": 1, "facts": told, "orders": [], "answers": []}
    Path("results.json").write_text(json.dumps(nothing), encoding="utf-8")
    before = Path("run/candidates.json").read_bytes()
    for student, expected in ((False, "of exactly this file on target"), (True, "its student was chosen by")):
        if student:
            Path("run/student").mkdir()
        done = search(*same, "--from", "results.json")
        assert done.returncode == 2
        assert expected in done.stderr and len(done.stderr.strip().splitlines()) == 1
        assert Path("run/candidates.json").read_bytes() == before


def test_an_unknown_rank_is_told(card: str, search: Command) -> None:
    done = search(card, "--rank", "size")
    assert done.returncode == 2
    said = "--rank size: student.rank: got \"size\"; it should be 'capacity' or 'learning'"
    assert done.stderr == f"edgekd: {said}\n"


@pytest.mark.slow
def test_distill_goes_on_with_what_search_found(card: str, search: Command, cli: Command) -> None:
    options = [card, FEW, "--set=recipe.epochs=8", "--budget=size_kb=60", "--budget=min_accuracy=0.1"]
    done = search(*options)
    assert done.returncode == 0
    assert "`edgekd distill --rank learning` with the same options would train" in done.stdout
    before = json.loads(Path("run/candidates.json").read_text(encoding="utf-8"))
    assert {one["epochs"] for one in before["scores"]} == {1, 2}
    cli("distill", *options, "--rank", "learning", "--target", fitting_target(Local().facts()), "--out", "run")
    assert json.loads(Path("run/candidates.json").read_text(encoding="utf-8")) == before
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    name = " ".join(f"{key}={value}" for key, value in result["shape"].items())
    assert f"would train {name}" in done.stdout


@pytest.mark.slow
def test_candidates_are_ranked_in_processes_of_their_own(card: str, search: Command, cli: Command) -> None:
    short = ("--set=recipe.epochs=8", "--set=teacher.training.epochs=2", "--set=recipe.warmup_epochs=0")

    def scores(folder: str) -> list[tuple[Any, ...]]:
        content = json.loads(Path(folder, "candidates.json").read_text(encoding="utf-8"))
        return sorted((str(one["shape"]), one["epochs"], one["value"]) for one in content["scores"])

    done = search(card, FEW, *short, "--budget=size_kb=60", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    ranked = scores("run")
    assert [epochs for _, epochs, _ in ranked].count(1) == 3
    Path("run").rename("together")
    assert search(card, FEW, *short, "--budget=size_kb=60").returncode == 0
    assert scores("run") == ranked
    assert not Path("together/ranking").exists()
