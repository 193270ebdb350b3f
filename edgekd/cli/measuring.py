"""`bench` and `check`: measure files, print figures, judge budgets."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd.bench.measure import Effort, Subject
from edgekd.bench.runner import available_providers
from edgekd.card import parse_budget
from edgekd.check.judge import Verdict
from edgekd.check.measure import Measured, measure_for_check, measure_paths
from edgekd.console import out, say
from edgekd.errors import EdgekdError, ExitCode
from edgekd.figures import ModelFigures
from edgekd.report.tables import budget_lines, figure_rows, notes, rich_table
from edgekd.result import model_json
from edgekd.run import write_json
from edgekd.target import Target, load_target

__all__ = ["bench_models", "check_models"]

QUICK = Effort(processes=2, warmup_s=0.1, min_calls=100, max_calls=500, max_s=0.3)


def bench_models(paths: list[Path], targets: list[str], quick: bool, save: Path | None) -> list[int]:
    """A table of figures per target; what cannot be measured is said and the rest is kept."""
    codes: list[int] = []
    content = []
    for name in targets:
        target = load_target(name)
        try:
            target.require_provider(available_providers())
        except EdgekdError as error:
            say(f"edgekd: {error}")
            codes.append(error.exit_code)
            continue
        taken, problems = measure_paths(paths, target, QUICK if quick else Effort(), _estimate)
        for problem in problems:
            say(f"edgekd: {problem}")
            codes.append(problem.exit_code)
        if taken:
            models = [measured.figures for measured in taken]
            header, rows = figure_rows(models)
            out(rich_table(header, rows, f"{target.name}: {target.title}"))
            for remark in [*notes(models), *(f"{m.figures.name}: {m.remark}" for m in taken if m.remark)]:
                out(f"  note: {remark}")
            content += [{"target": target.name, **model_json(model)} for model in models]
    if save:
        write_json(save, {"schema_version": 1, "models": content})
    return codes or [ExitCode.PASS]


def check_models(paths: list[Path], targets: list[str], budget: list[str], allow_estimated: bool) -> Iterator[int]:
    """One verdict per model and target; yields the exit codes."""
    override = parse_budget(budget)
    for name in targets:
        for path in paths:
            try:
                target = load_target(name)
                target.require_provider(available_providers())
                measured, verdict = measure_for_check(path, target, override, allow_estimated, _estimate)
            except EdgekdError as error:
                say(f"edgekd: {error}")
                yield error.exit_code
                continue
            _show_verdict(measured, verdict, target.name)
            yield verdict.exit_code


def _estimate(figures: Sequence[ModelFigures], subjects: Sequence[Subject], target: Target) -> list[ModelFigures]:
    """Estimates where the target has references and torch is here to time their networks; else as they are."""
    if target.measurable or not target.reference:
        return list(figures)
    if importlib.util.find_spec("torchvision") is None:
        say('edgekd: estimating latency needs torch; pip install "edgekd[train,cpu]"')
        return list(figures)
    from edgekd.export.variants import precision_of
    from edgekd.search.estimate import with_estimates

    known = [dataclasses.replace(s, precision=precision_of(s.file)) for s in subjects]
    return with_estimates(figures, known, target)


def _show_verdict(measured: Measured, verdict: Verdict, target: str) -> None:
    out(f"{measured.figures.name} on {target}: {verdict.outcome}")
    for text in budget_lines(verdict):
        out(f"  {text}")
    if measured.remark:
        out(f"  note: {measured.remark}")
