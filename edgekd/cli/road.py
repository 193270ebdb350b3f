"""`distill` and `teach`: from the command line to the pipeline."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd import units
from edgekd.card import Card
from edgekd.cli.searching import rank_setting
from edgekd.console import out as show
from edgekd.console import say
from edgekd.devices.host import processes
from edgekd.devices.local import Local, fitting_target
from edgekd.errors import ConfigError, EdgekdError, ExitCode, InputError, did_you_mean
from edgekd.files import atomic
from edgekd.imports import require
from edgekd.interface import TRAINING, DistillRequest, distill_each
from edgekd.result import Result
from edgekd.run import Run
from edgekd.settings import for_target, parse_settings
from edgekd.spec import bundled_names
from edgekd.tables import comparison_rows, headline, markdown_table, result_items, rich_table
from edgekd.target import Target, load_target
from edgekd.tasks.known import load_card, task_of

__all__ = ["distill_on", "several_processes", "teach_card"]


def distill_on(
    card_name: str,
    target_names: Sequence[str],
    asked: DistillRequest,
    settings: Sequence[str] = (),
    rank: str | None = None,
) -> list[int]:
    """Run all stages for each target and show the results; returns the exit codes.

    `settings` are values `KEY=VALUE` that replace values of the card or, with `target.KEY=VALUE`, of each target;
    `rank` replaces the card's `student.rank`.
    """
    begin = time.perf_counter()
    for_card, on_targets = for_target(parse_settings(settings))
    card = load_card(card_name, (*for_card, *rank_setting(rank)))
    if not target_names:
        target_names = [fitting_target(Local().facts())]
        say(f"target: {target_names[0]}, which describes this machine; --target NAME takes another one")
    targets = [load_target(name, on_targets) for name in target_names]
    for target in targets:
        _mention_unknown_budgets(card, target)
    done = distill_each(card, targets, asked)
    if len(done) == 1 and isinstance(done[0].outcome, EdgekdError):
        raise done[0].outcome
    codes: list[int] = []
    for one in done:
        if isinstance(one.outcome, EdgekdError):
            say(f"edgekd: {one.outcome}")
            codes.append(one.outcome.exit_code)
        else:
            _show(one.outcome, one.run, time.perf_counter() - begin, one.before)
            codes.append(one.outcome.verdict.exit_code)
    _compare([(one.outcome, one.run) for one in done if isinstance(one.outcome, Result)])
    return codes


def _compare(done: Sequence[tuple[Result, Run]]) -> None:
    """If there are several results, print a table of the shipped models and write a report beside the run folders."""
    if len(done) < 2:
        return
    card = done[0][0].card
    shipped = [(result.target, model) for result, _ in done for model in result.models if model.name == result.chosen]
    header, rows = comparison_rows(shipped)
    show(rich_table(header, rows, f"{card}: what ships on each target"))
    path = done[0][1].folder.parent / f"{card}.md"
    verdicts = "\n".join(f"- {headline(result)}; see `{run.folder.name}/report.md`" for result, run in done)
    with atomic(path) as temporary:
        text = f"# {card} on {len(done)} targets\n\n{verdicts}\n\n{markdown_table(header, rows)}\n"
        temporary.write_text(text, encoding="utf-8")
    show(f"{path}: one report of all")


@contextlib.contextmanager
def several_processes() -> Iterator[bool]:
    """Connect to the other processes if torchrun started several. Yields True in the first process, which does the
    work and prints messages.

    The other processes help it with the trainings that it announces, and leave when it does.
    """
    if processes() == 1:
        yield True
        return
    _need_training()
    from edgekd.distill import distributed

    first = distributed.join().first
    with distributed.missed():
        yield from _share(first)


def _share(first: bool) -> Iterator[bool]:
    if not first:
        from edgekd.distill.training import follow

        follow()
    try:
        yield first
    except EdgekdError as error:
        if not error.final:  # after a final error the other processes no longer wait for messages; torchrun ends them
            _release(first)
        raise
    _release(first)


def _release(first: bool) -> None:
    from edgekd.distill import distributed

    if first:
        distributed.broadcast(None)
    distributed.leave()


def teach_card(
    card_name: str,
    data: Path | None,
    out: Path | None,
    track: tuple[str, ...] = (),
    settings: Sequence[str] = (),
) -> int:
    """Train the card's teacher; returns the exit code. `settings` are values `KEY=VALUE` that replace the card's."""
    for_card, on_targets = for_target(parse_settings(settings))
    if on_targets:
        raise ConfigError(f"{on_targets[0].option}: has no effect; a teacher is trained for all targets")
    card = load_card(card_name, for_card)
    _need_training()
    _need_trackers(track)
    from edgekd.distill.teacher import validation_score
    from edgekd.distill.training import train_teacher

    path = out or Path("teachers", f"{card.name}.safetensors")
    if path.suffix != ".safetensors":
        raise InputError(f"--out {path}: the teacher is written as safetensors; give a name that ends so")
    done = path.exists()
    minimum, kind = card.budget("").teacher_minimum, task_of(card.data).scores[0]
    teacher, validation = train_teacher(card, data, minimum, path, track)
    score = validation_score(card, teacher, validation)
    state = "already there, " if done else ""
    show(f"{path}: {state}{kind.show(score)} on {len(validation)} validation {task_of(card.data).units}")
    if minimum is None or kind.reaches(score, minimum):
        return ExitCode.PASS
    show(f"{path}: {kind.teacher_key} is {kind.show(minimum)}; remove the file to train again")
    return ExitCode.FAIL


def _need_training() -> None:
    for module in TRAINING:
        require(module, "train,cpu", "training")


def _need_trackers(kinds: tuple[str, ...]) -> None:
    from edgekd.distill.tracking import check_trackers

    check_trackers(kinds)


def _mention_unknown_budgets(card: Card, target: Target) -> None:
    for name in card.budgets:
        if name and name != target.name and name not in bundled_names("targets"):
            say(f"{card.file}: [budget.{name}] is for no known target; {did_you_mean(name, bundled_names('targets'))}")


def _show(result: Result, run: Run, seconds: float, before: bool) -> None:
    """Show a result; `before` says that the run was finished before this command."""
    for item in result_items(result):
        show(item)
    if before:
        words = headline(result).removeprefix(f"{result.card} on {result.target}: ")
        show(f"{run.folder}: already done, verdict {words}; --fresh starts again")
        return
    show(f"{run.model}, {run.folder / 'report.md'} ({units.duration(seconds)})")
    show(headline(result))
