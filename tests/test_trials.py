"""Trials in several processes: at the same time, repeated when one is killed, ended by the first error."""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import ConfigError, ModelError
from edgekd.trials import Call, Crew, crew_of, run_trials

TRIALS = """
import os, signal, sys, time
from pathlib import Path
from edgekd.errors import ConfigError

def meet(folder, name, count):
    Path(folder, name).touch()
    while len(list(Path(folder).iterdir())) < count:
        time.sleep(0.01)
    return name, os.getpid()

def go_on(folder, deaths):
    tries = Path(folder, "tries")
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if len(tries.read_text()) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(tries.read_text())

def fail(folder, text):
    while not list(Path(folder).iterdir()):
        time.sleep(0.01)
    raise ConfigError(text)

def draws():
    from edgekd.console import progress
    sys.stderr.isatty = lambda: True
    return not progress().disable

def wait(folder):
    Path(folder, str(os.getpid())).touch()
    try:
        time.sleep(60)
    finally:
        Path(folder, "ended").touch()
"""


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of trials that other processes can import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "some_trials.py").write_text(TRIALS)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "some_trials", raising=False)
    return importlib.import_module("some_trials")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder, in which trials keep what they have reached."""
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def test_trials_run_at_the_same_time_and_processes_are_used_again(trials: Any, folder: Path) -> None:
    calls: list[Call] = [(trials.meet, (folder, name, 2)) for name in "abcd"]
    done = [result for _, result in run_trials(calls, Crew(jobs=2))]
    assert sorted(name for name, _ in done) == list("abcd")
    assert len({pid for _, pid in done}) == 2
    assert os.getpid() not in {pid for _, pid in done}


def test_alone_they_run_here_one_after_the_other(trials: Any, folder: Path) -> None:
    calls: list[Call] = [(trials.meet, (folder, name, 1)) for name in "ab"]
    assert list(run_trials(calls, Crew())) == [(call, (call[1][1], os.getpid())) for call in calls]


def test_a_call_is_taken_only_when_it_can_begin(trials: Any, folder: Path) -> None:
    taken: list[str] = []
    done: list[str] = []

    def calls() -> Iterator[Call]:
        for name in "abc":
            taken.append(name)
            assert len(taken) <= len(done) + 2
            yield trials.meet, (folder, name, 1)

    for _, (name, _pid) in run_trials(calls(), Crew(jobs=2)):
        done.append(name)
    assert sorted(done) == list("abc")


def test_a_killed_trial_is_repeated_alone(
    trials: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Call] = [(trials.go_on, (folder, 1)), (trials.meet, (tmp_path, "other", 1))]
    results = [result for _, result in run_trials(calls, Crew(jobs=2))]
    assert 2 in results and len(results) == 2
    told = "a trial was lost (its process was killed); it is repeated from its last checkpoint\n"
    assert capsys.readouterr().err == told


def test_an_idle_process_that_was_killed_is_replaced(trials: Any, folder: Path) -> None:
    calls: list[Call] = [(trials.meet, (folder, name, 2)) for name in "abc"]
    pids: list[int] = []
    for _, (_name, pid) in run_trials(calls, Crew(jobs=2)):
        pids.append(pid)
        if len(pids) == 1:
            os.kill(pid, signal.SIGKILL)
            while Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.01)
    assert len(pids) == 3


def test_a_trial_that_always_dies_is_given_up(trials: Any, folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^a trial was lost 3 times \(its process was killed\); is there enough memory"
    ):
        list(run_trials([(trials.go_on, (folder, 9))], Crew(jobs=2)))
    assert (folder / "tries").read_text() == "xxx"


def test_the_first_error_interrupts_the_others(trials: Any, folder: Path) -> None:
    calls: list[Call] = [(trials.wait, (folder,)), (trials.fail, (folder, "wrong"))]
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"^wrong$"):
        list(run_trials(calls, Crew(jobs=2)))
    assert time.monotonic() - begin < 55
    (pid,) = (path.name for path in folder.iterdir() if path.name.isdigit())
    assert (folder / "ended").exists()  # it was interrupted, and ended by itself
    assert not Path("/proc", pid).exists()


def test_several_processes_draw_no_bars_into_one_terminal(trials: Any) -> None:
    assert [drawn for _, drawn in run_trials([(trials.draws, ())], Crew(jobs=2))] == [False]


def test_jobs_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match=r"^--jobs 2: needs Linux; start the same command several times$"):
        crew_of(2, "", 1.0, 0.0)
    assert crew_of(1, "", 1.0, 0.0).alone


def test_ranking_by_capacity_has_no_trials(cli: Callable[..., Any], tiny_card: Path) -> None:
    done = cli("distill", tiny_card, "--target", "cpu-arm", "--jobs", 2)
    assert done.returncode == 2
    assert done.stderr == (
        "edgekd: --jobs 2: has no effect, because no candidates are ranked by learning; add --rank learning\n"
    )
