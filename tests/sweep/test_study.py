"""Trials in a journal: how many, which, and what becomes of those whose process dies."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import ConfigError
from edgekd.files import held, locked
from edgekd.sweep.space import Axis
from edgekd.sweep.study import SweepPlan, checkpoint_folder, open_study, take, tried

TEMPERATURE = Axis(name="temperature", low=0.1, high=20.0, log=True)
ALPHA = Axis(name="alpha", low=0.0, high=1.0)
FOUR = Axis(name="temperature", low=1.0, high=8.0, log=True, values=(1.0, 2.0, 4.0, 8.0))


def plan(*space: Axis, trials: int = 4, pruning: bool = True) -> SweepPlan:
    return SweepPlan(space=space or (TEMPERATURE, ALPHA), epochs=8, trials=trials, pruning=pruning, seed=3)


def run(folder: Path, wanted: SweepPlan, most: int = 100) -> list[dict[str, float]]:
    """Train up to `most` trials, all equally well; returns their values in order."""
    study, points = open_study(folder, wanted, {}), []
    for _ in range(most):
        with take(study, folder, wanted) as trial:
            if trial is None:
                break
            points.append(dict(trial.params))
            for epoch in range(1, 9):
                trial.report(0.5, epoch)
            study.tell(trial, 0.5)
    return points


def die(
    folder: Path, wanted: SweepPlan, epochs: int = 4, how: type[BaseException] = MemoryError, told: bool = False
) -> dict[str, float]:
    """Take a trial, train so many epochs, and end, mostly without telling; returns its values."""
    study = open_study(folder, wanted, {})
    with pytest.raises(how), take(study, folder, wanted) as trial:
        assert trial is not None
        for epoch in range(1, epochs + 1):
            trial.report(0.4, epoch)
        if told:
            study.tell(trial, 0.4)
        raise how
    assert trial is not None
    return dict(trial.params)


def states(folder: Path, wanted: SweepPlan) -> list[str]:
    return [row.state for row in tried(open_study(folder, wanted, {}))]


def test_so_many_trials_are_trained_and_no_more(tmp_path: Path) -> None:
    points = run(tmp_path, plan(trials=3))
    assert len(points) == 3 and len({point["temperature"] for point in points}) == 3
    assert all(0.1 <= point["temperature"] <= 20 and 0 <= point["alpha"] <= 1 for point in points)
    assert run(tmp_path, plan(trials=3)) == []
    assert len(run(tmp_path, plan(trials=5))) == 2
    rows = tried(open_study(tmp_path, plan(), {}))
    assert [(row.number, row.state, row.score, row.epochs) for row in rows] == [
        (number, "complete", 0.5, 8) for number in range(1, 6)
    ]


def test_a_sweep_that_goes_on_tries_what_an_undisturbed_one_tries(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", plan(trials=14))
    parts = run(tmp_path / "parts", plan(trials=14), most=5)
    parts += run(tmp_path / "parts", plan(trials=14))
    assert parts == whole


def test_another_seed_tries_other_values(tmp_path: Path) -> None:
    other = SweepPlan(space=(TEMPERATURE, ALPHA), epochs=8, trials=2, pruning=True, seed=4)
    assert run(tmp_path / "a", plan(trials=2)) != run(tmp_path / "b", other)


@pytest.mark.parametrize("seed", [4_295, 2**32 - 1])
def test_any_seed_of_a_recipe_will_do(tmp_path: Path, seed: int) -> None:
    assert len(run(tmp_path, SweepPlan(space=(TEMPERATURE, ALPHA), epochs=8, trials=2, pruning=True, seed=seed))) == 2


def test_listed_values_are_each_tried(tmp_path: Path) -> None:
    assert [point["temperature"] for point in run(tmp_path, plan(FOUR, trials=4))] == [1.0, 2.0, 4.0, 8.0]


def test_listed_values_are_tried_equally_often_beside_a_range(tmp_path: Path) -> None:
    points = run(tmp_path, plan(FOUR, ALPHA, trials=8))
    assert sorted(point["temperature"] for point in points) == [1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0]
    assert len({point["alpha"] for point in points}) == 8


def test_processes_share_the_trials(tmp_path: Path) -> None:
    wanted = plan(FOUR)
    mine, theirs = open_study(tmp_path, wanted, {}), open_study(tmp_path, wanted, {})
    with take(mine, tmp_path, wanted) as one, take(theirs, tmp_path, wanted) as two:
        assert one is not None and two is not None
        assert (one.params["temperature"], two.params["temperature"]) == (1.0, 2.0)
        assert states(tmp_path, wanted) == ["running", "running"]
        mine.tell(one, 0.1)
        theirs.tell(two, 0.2)
    rest = run(tmp_path, wanted)
    assert [point["temperature"] for point in rest] == [4.0, 8.0]


def test_who_comes_when_others_train_the_last_ones_has_nothing_to_do(tmp_path: Path) -> None:
    wanted = plan(trials=1)
    study = open_study(tmp_path, wanted, {})
    with take(study, tmp_path, wanted) as one, take(open_study(tmp_path, wanted, {}), tmp_path, wanted) as none:
        assert one is not None and none is None
        study.tell(one, 0.5)


def test_a_killed_trial_is_failed_and_tried_again_from_its_checkpoint(tmp_path: Path) -> None:
    wanted = plan(trials=2)
    begun = die(tmp_path, wanted)
    study = open_study(tmp_path, wanted, {})
    with take(study, tmp_path, wanted) as again:
        assert again is not None and again.number == 1 and again.params == begun
        assert checkpoint_folder(tmp_path, again) == tmp_path / "trials" / "0000"
        assert [row.state for row in tried(study)] == ["killed", "running"]
        study.tell(again, 0.7)
    assert len(run(tmp_path, wanted)) == 1  # the second of two
    assert states(tmp_path, wanted) == ["killed", "complete", "complete"]


def test_a_listed_value_outlives_a_process_killed_while_it_asked(tmp_path: Path) -> None:
    wanted = plan(FOUR, ALPHA, trials=4)
    study = open_study(tmp_path, wanted, {})
    study.enqueue_trial({"temperature": 1.0}, user_attrs={"point": {"temperature": 1.0}})
    study.ask()  # it has no values yet
    assert sorted(point["temperature"] for point in run(tmp_path, wanted)) == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("epochs", [0, 4])
def test_a_trial_that_kills_three_processes_in_one_epoch_is_given_up(tmp_path: Path, epochs: int) -> None:
    wanted = plan(trials=2)
    come_so_far = [die(tmp_path, wanted, epochs)] if epochs else []  # what got it there is no try in vain
    deaths = come_so_far + [die(tmp_path, wanted, epochs) for _ in range(3)]
    assert all(death == deaths[0] for death in deaths)
    (other,) = run(tmp_path, wanted)
    assert other != deaths[0]
    rows = tried(open_study(tmp_path, wanted, {}))
    assert [row.state for row in rows] == ["killed"] * (len(deaths) - 1) + ["failed", "complete"]
    assert rows[-2].note == f"its process was killed 3 times in epoch {epochs + 1}"


@pytest.mark.parametrize("epochs", [0, 4])
def test_a_trial_may_be_interrupted_as_often_as_one_likes(tmp_path: Path, epochs: int) -> None:
    wanted = plan(trials=1)
    die(tmp_path, wanted, epochs)
    points = [die(tmp_path, wanted, epochs, KeyboardInterrupt) for _ in range(5)]
    assert run(tmp_path, wanted) == points[:1]
    assert states(tmp_path, wanted) == ["killed"] * 6 + ["complete"]


def test_a_trial_that_is_killed_in_ever_later_epochs_goes_on(tmp_path: Path) -> None:
    wanted = plan(trials=1)
    points = [die(tmp_path, wanted, epochs) for epochs in (0, 0, 1, 1, 1, 2, 3, 4, 5)]
    assert run(tmp_path, wanted) == points[:1]
    assert states(tmp_path, wanted) == ["killed"] * 9 + ["complete"]


def test_an_interrupt_after_a_trial_is_told_changes_nothing(tmp_path: Path) -> None:
    wanted = plan(trials=2)
    die(tmp_path, wanted, how=KeyboardInterrupt, told=True)
    assert len(run(tmp_path, wanted)) == 1
    assert states(tmp_path, wanted) == ["complete", "complete"]


def test_a_living_process_keeps_its_trial(tmp_path: Path) -> None:
    """Whatever its pid: a lock in another process, which is then killed."""
    path = tmp_path / "a.lock"
    code = "import sys, time; from pathlib import Path; from edgekd.files import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert held(path)
        other.kill()
        other.wait()
    assert not held(path)
    with locked(path):
        assert held(path)
    assert not held(tmp_path / "never.lock")


def test_a_hopeless_trial_is_told_to_stop_after_half_of_its_epochs(tmp_path: Path) -> None:
    wanted = plan(trials=9)
    run(tmp_path, wanted, most=5)
    study = open_study(tmp_path, wanted, {})
    with take(study, tmp_path, wanted) as worse:
        assert worse is not None
        asked = []
        for epoch in range(1, 7):
            worse.report(0.3, epoch)
            asked.append(worse.should_prune())
        assert asked == [False] * 3 + [True] * 3


def test_without_pruning_nothing_is_hopeless(tmp_path: Path) -> None:
    wanted = plan(trials=9, pruning=False)
    run(tmp_path, wanted, most=5)
    with take(open_study(tmp_path, wanted, {}), tmp_path, wanted) as worse:
        assert worse is not None
        worse.report(0.0, 8)
        assert not worse.should_prune()


def test_a_sweep_of_something_else_is_refused(tmp_path: Path) -> None:
    def opened(**conditions: Any) -> None:
        open_study(tmp_path, plan(), conditions)

    opened(epochs=8, shape={"depth": 8})
    opened(epochs=8, shape={"depth": 8})
    with pytest.raises(ConfigError) as caught:
        opened(epochs=9, shape={"depth": 8})
    assert str(caught.value) == (
        f"{tmp_path}: epochs was 8 when this sweep began and is 9 now; name another folder with --out"
    )


def test_half_a_line_at_the_end_of_the_journal_is_cut(tmp_path: Path) -> None:
    wanted = plan(trials=3)
    run(tmp_path, wanted, most=2)
    with (tmp_path / "journal.log").open("a") as journal:
        journal.write('{"op_code": 5, "wor')
    assert len(run(tmp_path, wanted)) == 1
    assert states(tmp_path, wanted) == ["complete"] * 3
