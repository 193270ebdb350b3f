"""`edgekd sweep` on a card that trains in seconds."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.data import sources
from edgekd.distill.student import learn
from edgekd.nets.weights import read_state

Cli = Callable[..., Any]
SMALL = ("--shape", "channels=[8,8]", "--epochs", 3)
TIMEOUT_S = 300
"""A bound for a machine that has other work."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one teacher, shared by the tests of this file."""
    return tmp_path_factory.mktemp("teacher") / "teacher.safetensors"


@pytest.fixture
def sweep(cli: Cli, tiny_card: Path, weights: Path) -> Cli:
    """Run `edgekd sweep` on the tiny card with a teacher that is made once."""
    if not weights.exists():
        assert cli("teach", tiny_card, "--out", weights).returncode == 0
    return lambda *options: cli("sweep", tiny_card, *SMALL, "--teacher", weights, *options)


def table(folder: Path) -> list[dict[str, str]]:
    """`trials.csv`."""
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_listed_values_are_tried_with_every_seed_and_told(sweep: Cli, tmp_path: Path) -> None:
    done = sweep("--temperatures", "0.5,4", "--alphas", "0.9", "--seeds", 2, "--no-pruning")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sweeps" / "tiny"
    rows = table(folder)
    tried = [(float(row["temperature"]), float(row["alpha"]), float(row["seed"])) for row in rows]
    assert tried == [(0.5, 0.9, 0), (0.5, 0.9, 1), (4, 0.9, 0), (4, 0.9, 1)]
    assert [(row["state"], row["epochs"]) for row in rows] == [("complete", "3")] * 4
    assert all(0 < float(row["validation_accuracy"]) <= 1 and float(row["seconds"]) > 0 for row in rows)
    assert len({row["validation_accuracy"] for row in rows}) > 1
    assert "mean validation accuracy" in done.stdout and "alpha = 0.9" in done.stdout
    assert (folder / "trials.md").read_text().startswith("# Sweep of tiny")
    assert (folder / "sweep.png").stat().st_size > 10_000
    assert list((folder / "trials").iterdir()) == []  # neither checkpoints nor locks
    # With several seeds nothing is ever pruned, so that this is the same sweep.
    same = sweep("--temperatures", "0.5,4", "--alphas", "0.9", "--seeds", 2)
    assert same.returncode == 0, same.stderr


def test_the_same_command_again_trains_nothing_and_more_trials_go_on(sweep: Cli, tmp_path: Path) -> None:
    options = ("--temperatures", "1:8", "--alphas", "0.5,0.9", "--out", "out")
    assert sweep(*options, "--trials", 2).returncode == 0
    first = table(tmp_path / "out")
    again = sweep(*options, "--trials", 2)
    assert again.returncode == 0 and "trial" not in again.stderr
    assert table(tmp_path / "out") == first
    assert sweep(*options, "--trials", 3).returncode == 0
    assert table(tmp_path / "out")[:2] == first and len(table(tmp_path / "out")) == 3


def test_trials_differ_by_their_values_alone(sweep: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sweeps train the same student where the values are the same: every figure of every epoch, to the last bit."""
    histories = []

    def kept(*arguments: Any, **more: Any) -> list[dict[str, Any]]:
        history = learn(*arguments, **more)
        histories.append([{key: value for key, value in entry.items() if key != "seconds"} for entry in history])
        return history

    monkeypatch.setattr("edgekd.distill.student.learn", kept)
    sweep("--temperatures", "2", "--alphas", "0.5,1", "--out", "a")
    sweep("--temperatures", "2,4", "--alphas", "0.5", "--out", "b")
    a, b = table(tmp_path / "a"), table(tmp_path / "b")
    assert a[0]["validation_accuracy"] == b[0]["validation_accuracy"]
    assert a[0]["alpha"] == b[0]["alpha"] == "0.5"
    same, alpha, again, temperature = histories
    assert same == again and len(same) == 3 and {"loss", "terms"} <= same[0].keys()
    assert same != alpha and same != temperature


@pytest.mark.slow
def test_trials_in_processes_of_their_own_give_the_same(sweep: Cli, tmp_path: Path) -> None:
    options = ("--temperatures", "0.5,4", "--alphas", "0.9", "--no-pruning")
    done = sweep(*options, "--jobs", 2, "--out", "together")
    assert done.returncode == 0, done.stderr
    assert sweep(*options, "--out", "alone").returncode == 0
    kept = ("temperature", "validation_accuracy", "epochs", "state")
    together, alone = ([[row[key] for key in kept] for row in table(tmp_path / name)] for name in ("together", "alone"))
    assert together == alone and len(alone) == 2
    assert list((tmp_path / "together" / "trials").iterdir()) == []


def test_test_data_is_never_read(sweep: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    load = sources._digits

    def digits(part: str) -> Any:
        parts.append(part)
        return load(part)

    monkeypatch.setattr(sources, "_digits", digits)
    assert sweep("--temperatures", "4", "--alphas", "0.9").returncode == 0
    assert parts == ["train"]


def test_a_loss_that_is_no_longer_finite_fails_its_trial_alone(sweep: Cli, tiny_card: Path, tmp_path: Path) -> None:
    tiny_card.write_text(tiny_card.read_text().replace("[recipe]", "[recipe]\nlosses = { ce = 1.0, mse = 1.0 }"))
    done = sweep("--weights", "1e30,1", "--out", "out")
    assert done.returncode == 0, done.stderr
    worse, better = table(tmp_path / "out")
    assert (worse["weight mse"], worse["state"], worse["validation_accuracy"]) == ("1e+30", "failed", "")
    assert "the loss" in worse["note"]
    assert better["state"] == "complete"
    assert "losses = { ce = 1, mse = 1 }" in done.stdout


def test_nothing_trained_to_the_end_is_a_failure(sweep: Cli, tiny_card: Path) -> None:
    tiny_card.write_text(tiny_card.read_text().replace("[recipe]", "[recipe]\nlosses = { ce = 1.0, mse = 1.0 }"))
    assert sweep("--weights", "1e30").returncode == 1


def test_another_recipe_is_another_sweep(sweep: Cli, tiny_card: Path) -> None:
    options = ("--temperatures", "4", "--alphas", "0.9", "--out", "out")
    assert sweep(*options).returncode == 0
    tiny_card.write_text(tiny_card.read_text().replace("batch_size = 32", "batch_size = 16"))
    done = sweep(*options)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "edgekd: out: recipe.batch_size was 32 when this sweep began and is 16 now; name another folder with --out"
    )
    tiny_card.write_text(tiny_card.read_text().replace("batch_size = 16", "batch_size = 32\nmomentum = 0.8"))
    assert "recipe.momentum was not given when this sweep began and is 0.8 now" in sweep(*options).stderr
    tiny_card.write_text(tiny_card.read_text().replace("momentum = 0.8", "momentum = 0.9"))  # the default
    assert sweep(*options).returncode == 0


def test_what_does_not_suit_is_told_before_anything_is_trained(cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    plain = tiny_card.read_text()
    tiny_card.write_text(f'{plain}\n[[recipe.features]]\nterm = "hint"\nteacher = "nowhere"\nstudent = "0"\n')
    done = cli("sweep", tiny_card, *SMALL, "--temperatures", "4", "--alphas", "0.9", "--out", "out")
    assert done.returncode == 2 and "unknown layer 'nowhere'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_an_earlier_card_is_not_taken_over(cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    """Stopped when the teacher was trained and no trial begun."""
    options = ("sweep", tiny_card, *SMALL, "--temperatures", "4", "--alphas", "0.9", "--out", "out")
    tiny_card.write_text(tiny_card.read_text() + '\n[[assistants]]\nfamily = "mlp"\nshape = { hidden = [2] }\n')
    text = re.sub(r"(\[recipe\][^[]*?learning_rate = )[0-9.]+", r"\g<1>1e30", tiny_card.read_text())
    tiny_card.write_text(text)  # the assistant fails
    assert cli(*options).returncode == 1
    assert (tmp_path / "out" / "teacher" / "teacher.safetensors").exists()
    tiny_card.write_text(tiny_card.read_text().replace("epochs = 8", "epochs = 7"))
    done = cli(*options)
    assert done.returncode == 2 and "is {'preset': None, 'epochs': 7" in done.stderr.replace('"', "'")


def test_fewer_epochs_must_suit_the_recipe(sweep: Cli, tiny_card: Path, tmp_path: Path) -> None:
    tiny_card.write_text(re.sub(r"(\[recipe\][^[]*?warmup_epochs = )[0-9.]+", r"\g<1>3", tiny_card.read_text()))
    done = sweep("--temperatures", "4", "--alphas", "0.9", "--epochs", 2, "--out", "out")
    assert done.returncode == 2
    assert "recipe.warmup_epochs: should be at most the 2 epochs, got 3 (--epochs 2)" in done.stderr


def test_another_teacher_is_another_sweep(sweep: Cli, cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    options = ("--temperatures", "4", "--alphas", "0.9", "--out", "out")
    assert sweep(*options).returncode == 0
    tiny_card.write_text(tiny_card.read_text().replace("epochs = 8", "epochs = 7"))
    assert cli("teach", tiny_card, "--out", "other.safetensors").returncode == 0
    tiny_card.write_text(tiny_card.read_text().replace("epochs = 7", "epochs = 8"))
    done = cli("sweep", tiny_card, *SMALL, *options, "--teacher", "other.safetensors")
    assert done.returncode == 2 and "out: SHA-256 of the teacher was" in done.stderr


def test_another_further_teacher_or_assistant_is_another_sweep(
    sweep: Cli, tiny_card: Path, weights: Path, tmp_path: Path
) -> None:
    options = ("--temperatures", "4", "--alphas", "0.9", "--epochs", 1, "--out", "out")
    further = (
        '\n[[more_teachers]]\nfamily = "convnet"\nshape = { channels = [16, 32], hidden = 32 }\nweights = "b.pt"\n'
    )
    plain = tiny_card.read_text()
    other = read_state(weights)
    torch.save(other, tmp_path / "b.pt")
    tiny_card.write_text(plain + further)
    assert sweep(*options).returncode == 0
    assert sweep(*options).returncode == 0

    tiny_card.write_text(plain)
    assert "out: SHA-256 of more_teachers[0] was" in sweep(*options).stderr
    tiny_card.write_text(plain + further.replace('"b.pt"', '"./b.pt"'))
    assert "out: more_teachers[0].weights was 'b.pt' when" in sweep(*options).stderr
    tiny_card.write_text(
        plain + further + '[[assistants]]\nfamily = "convnet"\nshape = { channels = [8], hidden = 16 }\n'
    )
    assert "out: assistants[0].family was not given when" in sweep(*options).stderr
    tiny_card.write_text(plain + further)
    torch.save({name: value + 1 for name, value in other.items()}, tmp_path / "b.pt")
    done = sweep(*options)
    assert done.returncode == 2 and "out: SHA-256 of more_teachers[0] was" in done.stderr


def test_torchrun_is_told_to_stay_away(sweep: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = sweep()
    assert done.returncode == 2 and "start the same command several times, not torchrun" in done.stderr


def test_a_learned_temperature_is_swept_without_options(sweep: Cli, tiny_card: Path, tmp_path: Path) -> None:
    tiny_card.write_text(tiny_card.read_text().replace("[recipe]", '[recipe]\ntemperature_schedule = "learned"'))
    done = sweep("--alphas", "0.5:0.9", "--trials", 4, "--epochs", 1, "--out", "out")
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "out")
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert all(1 <= float(row["temperature"]) <= 20 for row in rows)


def test_a_temperature_that_no_term_uses_is_left_out_and_said(sweep: Cli, tiny_card: Path, tmp_path: Path) -> None:
    tiny_card.write_text(tiny_card.read_text().replace("[recipe]", "[recipe]\nlosses = { ce = 1.0, mse = 1.0 }"))
    done = sweep("--weights", "0.1,0.5", "--epochs", 1, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert f"{tiny_card}: no term of the recipe uses a temperature; none is tried" in done.stderr
    assert [row["weight mse"] for row in table(tmp_path / "out")] == ["0.1", "0.5"]
    assert "| temperature" not in (tmp_path / "out" / "trials.md").read_text()
    wrong = sweep("--temperatures", "1,2,4", "--out", "out")
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "student.knobs.channels: has 2 values; choose with --shape 'channels=[8,8]' or 'channels=[8,16]'"),
        (("--shape", "channels"), "--shape 'channels': it should be KEY=VALUE, such as depth=8 or channels=[8,16]"),
        (("--shape", "channel=[8,8]"), "channel"),
        (("--shape", "channels=[8,8]", "--temperatures", "0"), "--temperatures: got '0'; it should be LOW:HIGH or"),
        (
            ("--shape", "channels=[8,8]", "--temperatures", "1,2", "--alphas", "1", "--trials", "3"),
            "--trials 3: the values make 2 combinations; give more, or a range",
        ),
    ],
)
def test_what_cannot_be_swept_is_one_line(cli: Cli, tiny_card: Path, options: tuple[str, ...], message: str) -> None:
    done = cli("sweep", tiny_card, *options)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and message in done.stderr


def start(folder: Path, card: Path, epochs: int) -> "subprocess.Popen[str]":
    options = ["--shape", "channels=[8,8]", "--epochs", str(epochs), "--temperatures", "1,2,4", "--alphas", "0.9"]
    command = [sys.executable, "-m", "edgekd", "sweep", str(card), *options, "--no-pruning", "--out", "out"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_one_may_be_killed(tmp_path: Path, tiny_card: Path) -> None:
    epochs = 6
    first = start(tmp_path, tiny_card, epochs)
    deadline = time.monotonic() + TIMEOUT_S
    checkpoint = tmp_path / "out" / "trials" / "0000" / "net" / "checkpoint.pt"
    while not checkpoint.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    second = start(tmp_path, tiny_card, epochs)
    try:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        output, _ = second.communicate(timeout=TIMEOUT_S)
    finally:
        first.kill()
        second.kill()
        second.communicate()
    assert second.returncode == 0, output
    rows = table(tmp_path / "out")
    states = [row["state"] for row in rows]
    assert states.count("killed") == 1 and states.count("complete") == 3
    assert sorted(row["temperature"] for row in rows if row["state"] == "complete") == ["1.0", "2.0", "4.0"]
    assert rows[0]["state"] == "killed" and rows[0]["temperature"] == "1.0"
    assert "resumed after epoch" in output
