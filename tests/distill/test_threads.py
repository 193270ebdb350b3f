"""The number of threads of a training: what is chosen, said, kept and restored."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.data.examples import Batch, Examples
from edgekd.devices.host import use_threads
from edgekd.distill.threads import VARIABLE, fastest, threads_for, threads_of
from edgekd.recipe import Training

TRAINING = Training(epochs=1, batch_size=16)
EXAMPLES = Examples(
    np.zeros(20, dtype=np.int64),
    lambda indices, k: Batch(torch.ones(len(indices), 3), torch.zeros(len(indices), dtype=torch.int64)),
)


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's default is three threads, and the user has set none."""
    before = torch.get_num_threads()
    monkeypatch.setenv(VARIABLE, "")
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 110.0}, 1),
        ({1: 100.0, 2: 120.0}, 2),
        ({1: 100.0, 2: 60.0, 4: 180.0}, 4),
        ({1: 100.0, 2: 190.0, 4: 200.0, 6: 215.0}, 2),
        ({1: 100.0, 2: 114.0, 4: 130.0}, 4),
    ],
)
def test_more_threads_must_be_clearly_faster(rates: dict[int, float], chosen: int) -> None:
    assert fastest(rates) == chosen


@pytest.mark.usefixtures("three_threads")
def test_a_trial_chooses_and_says_it_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = network()
    state, random = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    with threads_for("student", net, EXAMPLES, TRAINING, tmp_path / "checkpoint.pt"):
        chosen = torch.get_num_threads()
    assert torch.get_num_threads() == 3
    said = capsys.readouterr().err
    words = "1 thread" if chosen == 1 else f"{chosen} threads"
    assert said.startswith(f"student: {words}; a trial gave examples/s: 1 → ")
    assert said.count("→") in (2, 3)  # of 1, 2 and 3; the last one is left out if two threads are far slower
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.usefixtures("three_threads")
def test_a_resumed_training_has_the_threads_of_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"conditions": {"threads": 2}}, path)
    with threads_for("student", network(), EXAMPLES, TRAINING, path):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 3
    assert capsys.readouterr().err == ""


def test_what_the_user_sets_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv(VARIABLE, "7")  # so that it is restored
    use_threads(2)
    try:
        with threads_for("student", network(), EXAMPLES, TRAINING, tmp_path / "checkpoint.pt"):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert capsys.readouterr().err == "student: 2 threads, as OMP_NUM_THREADS or --threads says\n"


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_broken_checkpoint_names_no_threads(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.pt"
    assert threads_of(path) is None
    path.write_bytes(content)
    assert threads_of(path) is None
