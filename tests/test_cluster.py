"""Trials on a Ray cluster of two nodes, one of which is lost."""

import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import ConfigError, UnavailableError
from edgekd.trials import Call, Crew, run_trials

TRIALS = """
import os, time
from pathlib import Path

def train(folder, name, epochs):
    # Each epoch is a line of the trial's file, so that a repeated trial goes on after the last one.
    file = Path(folder, name)
    while len(done := file.read_text().split() if file.exists() else []) < epochs:
        time.sleep(0.1)
        with file.open("a") as out:
            print(os.getpid(), file=out)
    return name
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own warnings
def test_a_lost_node_repeats_its_trials_alone(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cluster_trials.py").write_text(TRIALS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    cluster = ray_cluster()
    second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    trials = importlib.import_module("cluster_trials")
    files = {name: tmp_path / name for name in "abcd"}
    calls: list[Call] = [(trials.train, (tmp_path, name, 15)) for name in files]

    def kill() -> None:
        until = time.monotonic() + 120
        while not (files["a"].exists() and files["b"].exists()) and time.monotonic() < until:
            time.sleep(0.02)  # until both nodes are at work
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    done = [name for _, name in run_trials(calls, Crew(ray=cluster.address))]
    killer.join()
    told = capsys.readouterr().err
    assert sorted(done) == list("abcd")
    assert "ray: 2 nodes, room for 2 trials at the same time" in told
    assert told.count("a trial was lost (") == 1
    processes = {name: file.read_text().split() for name, file in files.items()}
    assert {len(own) for own in processes.values()} == {15}  # what the lost trial had reached is not repeated
    assert sorted(len(set(own)) for own in processes.values()) == [1, 1, 1, 2]
    with pytest.raises(ConfigError, match=r"^--ray .*: a trial needs 64 CPUs and 0 GPUs of one node \(\[trials"):
        list(run_trials([(time.sleep, (0,))], Crew(ray=cluster.address, cpus=64)))


def test_without_the_option_nothing_of_ray_is_imported() -> None:
    code = "import sys, edgekd.trials, edgekd.interface, edgekd.cli.train_commands; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_ray_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnavailableError, match=r'^--ray needs ray; pip install "edgekd\[ray\]"$'):
        list(run_trials([], Crew(ray="local")))
