"""`distill` and `teach`: from the command line to the pipeline."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd import units
from edgekd.card import Budget, Card, parse_budget
from edgekd.console import out as show
from edgekd.console import say
from edgekd.devices.device import Site
from edgekd.devices.host import processes
from edgekd.devices.local import Local, connect, fitting_target
from edgekd.distill.cache.files import require_cache
from edgekd.errors import EdgekdError, ExitCode, InputError, did_you_mean
from edgekd.external import named_files, weights_of
from edgekd.files import atomic
from edgekd.imports import require
from edgekd.judge import verdict_words
from edgekd.result import Result, read_models, read_verdict
from edgekd.run import Run, open_run
from edgekd.scratch import require_scratch
from edgekd.spec import bundled_names
from edgekd.tables import budget_lines, comparison_rows, figure_rows, headline, markdown_table, notes, rich_table
from edgekd.target import Target, load_target
from edgekd.tasks.known import load_card, task_of

__all__ = ["Options", "distill_on", "several_processes", "teach_card"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `distill`, apart from card and targets."""

    data: Path | None = None
    teacher: Path | None = None
    out: Path | None = None
    budget: tuple[str, ...] = ()
    fresh: bool = False
    online: bool = False
    track: tuple[str, ...] = ()


def distill_on(card_name: str, target_names: Sequence[str], options: Options) -> list[int]:
    """Run all stages for each target; returns the exit codes.

    Every error that concerns all targets is raised before any of them is measured.
    """
    begin = time.perf_counter()
    card = load_card(card_name)
    override = parse_budget(list(options.budget))
    if not target_names:
        target_names = [fitting_target(Local().facts())]
        say(f"target: {target_names[0]}, which describes this machine; --target NAME takes another one")
    with contextlib.ExitStack() as stack:
        sites = [stack.enter_context(contextlib.closing(connect(load_target(name)))) for name in target_names]
        _need_training()
        _need_trackers(options.track)
        files = named_files(card, options.teacher, options.data)
        waiting: list[tuple[Site, Run]] = []
        codes: list[int] = []
        for site in sites:
            _mention_unknown_budgets(card, site.target)
            asked, folder = card.budget(site.target.name, override), _folder(card, site.target, options, len(sites))
            run = stack.enter_context(open_run(folder, card, site.target, asked, files, options.fresh))
            if run.result.exists() and run.model.exists():
                codes.append(_finished_before(card, run, options))
            else:
                waiting.append((site, run))
        return codes + (_go(card, override, waiting, options, begin) if waiting else [])


def _go(card: Card, override: Budget, waiting: Sequence[tuple[Site, Run]], options: Options, begin: float) -> list[int]:
    """Run all stages for the runs that are not finished; returns the exit codes."""
    require_scratch()
    if not options.online:
        require_cache(", or use --online")
    from edgekd.distill.student import TrainingOptions
    from edgekd.pipeline import Request, distill_all

    training = TrainingOptions(online=options.online, track=options.track)
    request = Request(card=card, data=options.data, teacher=options.teacher, budget=override, options=training)
    results = distill_all(request, waiting)
    if len(results) == 1 and isinstance(results[0], EdgekdError):
        raise results[0]
    codes: list[int] = []
    for (_, run), result in zip(waiting, results, strict=True):
        if isinstance(result, EdgekdError):
            say(f"edgekd: {result}")
            codes.append(result.exit_code)
        else:
            _show(result, run, time.perf_counter() - begin)
            codes.append(result.verdict.exit_code)
    _compare([(result, run) for (_, run), result in zip(waiting, results, strict=True) if isinstance(result, Result)])
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


def _folder(card: Card, target: Target, options: Options, targets: int) -> Path:
    """The run folder. With several targets, `--out` names the folder that contains the run folders."""
    own = f"{card.name}@{target.name}"
    if options.out is None:
        return Path("runs", own)
    return options.out / own if targets > 1 else options.out


def _finished_before(card: Card, run: Run, options: Options) -> int:
    from edgekd.distill.identity import refuse_changes

    refuse_changes(card, run, options.data, weights_of(card, options.teacher) is not None)
    return _already_done(run)


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


def teach_card(card_name: str, data: Path | None, out: Path | None, track: tuple[str, ...] = ()) -> int:
    """Train the card's teacher; returns the exit code."""
    card = load_card(card_name)
    _need_training()
    _need_trackers(track)
    from edgekd.distill.teacher import validation_score
    from edgekd.distill.training import train_teacher

    path = out or Path("teachers", f"{card.name}.safetensors")
    if path.suffix != ".safetensors":
        raise InputError(f"--out {path}: the teacher is written as safetensors; give a name that ends so")
    done = path.exists()
    minimum = card.budget("").teacher_min_accuracy or 0.0
    teacher, validation = train_teacher(card, data, minimum, path, track)
    accuracy = validation_score(card, teacher, validation)
    state = "already there, " if done else ""
    show(f"{path}: {state}{units.accuracy(accuracy)} on {len(validation)} validation {task_of(card.data).units}")
    if accuracy < minimum:
        show(f"{path}: teacher_min_accuracy is {units.accuracy(minimum)}; remove the file to train again")
    return ExitCode.PASS if accuracy >= minimum else ExitCode.FAIL


def _need_training() -> None:
    for module in ("torch", "torchvision", "onnx", "onnxscript", "safetensors"):
        require(module, "train,cpu", "training")


def _need_trackers(kinds: tuple[str, ...]) -> None:
    from edgekd.distill.tracking import check_trackers

    check_trackers(kinds)


def _mention_unknown_budgets(card: Card, target: Target) -> None:
    for name in card.budgets:
        if name and name != target.name and name not in bundled_names("targets"):
            say(f"{card.file}: [budget.{name}] is for no known target; {did_you_mean(name, bundled_names('targets'))}")


def _already_done(run: Run) -> int:
    content, models = read_models(run.result)
    verdict = read_verdict(content, run.result)
    header, rows = figure_rows(models)
    kind = content.get("examples", "images")
    show(rich_table(header, rows, f"{content['card']} on {content['target']}, {content['test_images']} test {kind}"))
    for text in budget_lines(verdict):
        show(f"  {text}")
    for remark in [*notes(models), *content["notes"]]:
        show(f"  note: {remark}")
    show(f"  shipped: {content['chosen']}, because {content['why_chosen']}")
    latency = next(model.latency_p50_ms for model in models if model.name == content["chosen"])
    show(f"{run.folder}: already done, verdict {verdict_words(verdict, latency)}; --fresh starts again")
    return verdict.exit_code


def _show(result: Result, run: Run, seconds: float) -> None:
    header, rows = figure_rows(result.models)
    show(rich_table(header, rows, f"{result.card} on {result.target}, {result.test_images} test {result.examples}"))
    for text in budget_lines(result.verdict):
        show(f"  {text}")
    for remark in [*notes(result.models), *result.notes]:
        show(f"  note: {remark}")
    show(f"  shipped: {result.chosen}, because {result.why_chosen}")
    show(f"{run.model}, {run.folder / 'report.md'} ({units.duration(seconds)})")
    show(headline(result))
