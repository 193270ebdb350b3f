"""Several processes train what one trains: each test starts real ones with torchrun, over gloo."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgekd.distill.distributed import World, join, missed, reaches_all, world
from edgekd.errors import UnavailableError

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

TRAIN = """
import sys, json
from pathlib import Path
import numpy as np
import torch
from torch import nn
from edgekd.tasks.known import load_card
from edgekd.data.examples import Examples
from edgekd.data.image_examples import examples
from edgekd.data.sources import load_train_and_validation
from edgekd.distill.tasks.classification import accuracy
from edgekd.distill.terms.losses import cross_entropy
from edgekd.distill.distributed import join, leave
from edgekd.distill.loop import TrainingJob, train
from edgekd.distill.objective import plain
from edgekd.nets.deployed import Deployed
from edgekd.recipe import Training

torch.set_num_threads(1)
among = join()
card = load_card("digits")
splits = load_train_and_validation(card, None)
parts = [examples(split.subset(np.arange(count)), card.data, card.augment) for split, count in zip(splits, (200, 60))]
for kind, folder, stop_after, values in json.loads(sys.argv[1]):
    training, folder = Training(**values), Path(folder)
    torch.manual_seed(1)
    middle = [nn.BatchNorm2d(8)] if kind == "norm" else []
    net = nn.Sequential(nn.Conv2d(1, 8, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    job = TrainingJob(name="net", train=parts[0], validation=parts[1], training=training, score=accuracy, views=2,
              objective=plain(training, cross_entropy),
              checkpoint=folder / "checkpoint.pt", stop=lambda history: len(history) >= stop_after)
    history = train(Deployed(net, card.data), job)
    if among.first:
        torch.save(net.state_dict(), folder / f"net-{among.size}.pt")
        (folder / f"result-{among.size}.json").write_text(json.dumps(history))
leave()
"""


TOGETHER = """
import sys, datetime
from edgekd.distill import distributed
from edgekd.errors import BudgetError

distributed.SAME_ERROR = datetime.timedelta(seconds=5)
among = distributed.join()
try:
    with distributed.fail_together():
        if sys.argv[1] == "all" or among.rank == int(sys.argv[1]):
            raise BudgetError("no")
except BudgetError as error:
    print(f"rank {among.rank}: final {error.final}\\n", end="", flush=True)  # a line at once, or the other's mixes in
    if error.final:
        sys.exit(1)
distributed.broadcast("more") if among.first else print(f"heard {distributed.receive()}\\n", end="", flush=True)
distributed.leave()
"""


KILLED = """
import os, signal, sys
from edgekd.cli import main, road

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # with which torchrun ends the one that is left, if it is quick
signal.signal = lambda number, handler: None  # nor may main() take it

def first(*command):
    os.kill(os.getpid(), signal.SIGKILL)

road.teach_card = first
sys.argv = ["edgekd", "teach"]
main.main()
"""


def torchrun(*command: object) -> "subprocess.CompletedProcess[str]":
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*start, *map(str, command)], capture_output=True, text=True, timeout=300)


def complaints(stderr: str) -> list[str]:
    """What the processes themselves say of errors."""
    return [line for line in stderr.splitlines() if "edgekd:" in line]


Trained = tuple[dict[str, Tensor], list[dict[str, float]]]
"""Weights and history."""


def train(folder: Path, processes: int, *jobs: tuple[str, str, int, dict[str, object]]) -> dict[str, Trained]:
    """Train one after another in the same processes, whose start takes longer: each job is a network's kind, the name
    of its folder, the epochs after which it stops, and what differs in its training."""
    usual = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05, "label_smoothing": 0.1}
    asked = [(kind, str(folder / name), stop, usual | values) for kind, name, stop, values in jobs]
    for _, name, _, _ in asked:
        Path(name).mkdir(parents=True, exist_ok=True)
    script = folder / "train.py"
    script.write_text(TRAIN)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(several if processes > 1 else []), str(script), json.dumps(asked)]
    done = subprocess.run(start, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: (
            torch.load(folder / name / f"net-{processes}.pt", weights_only=True),
            json.loads((folder / name / f"result-{processes}.json").read_text()),
        )
        for _, name, _, _ in jobs
    }


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Trained]]:
    """What two processes trained, and the folder of it."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder, 2, ("plain", "two", 99, {}), ("norm", "norm", 99, {}), ("plain", "changed", 1, {}))


@pytest.fixture(scope="module")
def by_one(by_two: tuple[Path, dict[str, Trained]]) -> dict[str, Trained]:
    """What one process trained; "changed" goes on with what two processes began."""
    return train(
        by_two[0],
        1,
        ("plain", "one", 99, {}),
        ("norm", "whole", 99, {}),
        ("norm", "parts", 99, {"accumulate": 2}),
        ("plain", "changed", 99, {}),
    )


def furthest(first: dict[str, Tensor], second: dict[str, Tensor], buffers: bool = True) -> float:
    names = [name for name in first if buffers or name.split(".")[-1] not in BUFFERS]
    return max(float((first[name] - second[name]).abs().max()) for name in names)


def test_alone_a_process_is_the_first_of_one() -> None:
    assert world() == join() == World(0, 1) and world().first


@pytest.mark.parametrize(("size", "count"), [(2, 7), (3, 10), (4, 4), (3, 2)])
def test_shares_are_disjoint_and_whole(size: int, count: int) -> None:
    shares = [list(range(count))[World(rank, size).share(count)] for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_two_processes_train_what_one_trains_at_the_same_batch(
    by_one: dict[str, Trained], by_two: tuple[Path, dict[str, Trained]]
) -> None:
    (alone, history), (both, together) = by_one["one"], by_two[1]["two"]
    assert furthest(alone, both) < 1e-5
    for one, two in zip(history, together, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["validation_accuracy"] == one["validation_accuracy"]


@pytest.mark.slow
def test_with_batch_norm_two_processes_are_two_accumulated_parts(
    by_one: dict[str, Trained], by_two: tuple[Path, dict[str, Trained]]
) -> None:
    parts, whole, both = by_one["parts"][0], by_one["whole"][0], by_two[1]["norm"][0]
    assert furthest(parts, both, buffers=False) < 1e-5
    assert furthest(whole, both, buffers=False) > 1e-3  # the statistics are each part's
    # Kept are the running statistics of rank 0, which saw every other part.
    assert both["1.num_batches_tracked"] == 2 * 3 and parts["1.num_batches_tracked"] == 2 * 3 * 2


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(
    by_one: dict[str, Trained], by_two: tuple[Path, dict[str, Trained]]
) -> None:
    first = by_two[1]["changed"][1]
    assert len(first) == 1
    resumed, history = by_one["changed"]
    assert len(history) == 2 and history[0] == first[0]
    assert furthest(resumed, by_one["one"][0]) < 1e-5


@pytest.mark.slow
def test_distill_under_torchrun_shares_the_cache_and_the_training(tmp_path: Path) -> None:
    card = tmp_path / "small.toml"
    text = Path("models/digits.toml").read_text(encoding="utf-8")
    text = (
        text.replace("epochs = 40", "epochs = 2").replace("epochs = 20", "epochs = 3").replace("views = 8", "views = 2")
    )
    text = text.replace("teacher_min_accuracy = 0.97", "").replace("min_accuracy = 0.96", "min_accuracy = 0.0")
    card.write_text(text.replace("max_accuracy_drop = 2.0", "max_accuracy_drop = 100.0"), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgekd"]
    asked = ["distill", str(card), "--target", "cpu-arm", "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("small on cpu-arm: pass") == 1  # one of them speaks
    for warning in ("broadcast_buffers", "find_unused_parameters", "FutureWarning"):
        assert warning not in done.stderr
    told = [json.loads(line) for line in (tmp_path / "run/student/log/training.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in told] == [1, 2]
    assert sorted(path.name for path in (tmp_path / "run/student").iterdir()) == [
        "history.json",
        "log",
        "student.safetensors",
    ]


@pytest.mark.slow
def test_after_an_error_that_all_processes_raise_they_go_on(tmp_path: Path) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)
    done = torchrun(tmp_path / "together.py", "all")
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == ["heard more", "rank 0: final False", "rank 1: final False"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_after_an_error_that_one_process_raises_there_is_nothing_more(tmp_path: Path, rank: str) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)
    done = torchrun(tmp_path / "together.py", rank)
    assert done.returncode == 1 and f"rank {rank}: final True" in done.stdout
    assert "heard" not in done.stdout


@pytest.mark.slow
def test_who_is_left_when_another_process_is_killed_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    done = torchrun("--log-dir", tmp_path / "logs", "--tee", "3", tmp_path / "killed.py")
    assert done.returncode == 1
    said = complaints(next((tmp_path / "logs").glob("*/attempt_0/1/stderr.log")).read_text())
    assert said == ["edgekd: another process of this training ended; see its message"]


def test_only_the_loss_of_another_process_is_said_so() -> None:
    for error in (dist.DistBackendError("NCCL"), RuntimeError("[../gloo/transport/tcp/pair.cc:561] Connection closed")):
        with pytest.raises(UnavailableError, match="another process of this training ended") as caught, missed():
            raise error
        assert caught.value.final and caught.value.exit_code == 2
    with pytest.raises(RuntimeError, match="shapes"), missed():
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    ("used", "expected"), [(("a", "b"), True), (("a",), False), (("b",), False), ((), False), (("frozen",), False)]
)
def test_parameters_out_of_reach_are_noticed(used: tuple[str, ...], expected: bool) -> None:
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a", "b", "frozen")})
    net["frozen"].requires_grad_(False)
    x = torch.ones(1, 2)
    results = [net[name](x).sum() for name in used]
    assert reaches_all(results, net) is expected
    for result in results:
        if result.requires_grad:
            result.backward()
    gradients = [value.grad is not None for value in net.parameters() if value.requires_grad]
    assert all(gradients) is expected  # what autograd makes of it
    whole = net["b"](net["a"](x) * 2)
    assert reaches_all([whole], net)


@pytest.mark.slow
def test_teach_under_torchrun_is_one_training(cli: Callable[..., Any], tiny_card: Path, tmp_path: Path) -> None:
    done = torchrun("-m", "edgekd", "teach", tiny_card, "--out", tmp_path / "both" / "t.safetensors")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("validation images") == 1
    assert complaints(done.stderr) == []
    told = (tmp_path / "both" / "log" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in told] == list(range(1, 9))
    both = json.loads((tmp_path / "both" / "t-history.json").read_text())["epochs"]
    again = torchrun("-m", "edgekd", "teach", tiny_card, "--out", tmp_path / "both" / "t.safetensors")
    assert again.returncode == 0 and "already there" in again.stdout
    # Two processes are two accumulated parts, whose statistics are each its own.
    tiny_card.write_text(tiny_card.read_text().replace("batch_size = 64", "batch_size = 64\naccumulate = 2"))
    assert cli("teach", tiny_card, "--out", "parts/t.safetensors").returncode == 0
    parts = json.loads((tmp_path / "parts" / "t-history.json").read_text())["epochs"]
    assert [entry["loss"] for entry in both] == pytest.approx([entry["loss"] for entry in parts], abs=1e-3)


@pytest.mark.slow
def test_under_torchrun_a_second_target_has_its_turn_after_an_error(tiny_card: Path, tmp_path: Path) -> None:
    text = tiny_card.read_text().replace("[teacher]", "[teacher]\nattempts = 1").replace("epochs = 12", "epochs = 4")
    tiny_card.write_text(text + "\n[budget.cpu-arm]\nteacher_min_accuracy = 1.0\n")
    targets = ("--target", "cpu-arm", "--target", "cpu-arm-dotprod")
    done = torchrun("-m", "edgekd", "distill", tiny_card, *targets, "--out", tmp_path / "runs")
    assert done.returncode == 1
    (told,) = complaints(done.stderr)
    assert "the teacher reaches" in told and "teacher_min_accuracy is 100" in told
    assert "tiny on cpu-arm-dotprod: pass" in done.stdout
