"""`bench`: measure files and print their figures."""

import dataclasses
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artefacts import write_list
from edgekd.bench.feeding import shape_words
from edgekd.bench.records import QUICK, THOROUGH, Effort, Feeding
from edgekd.console import out, progress, say
from edgekd.devices.device import OnProgress, Site
from edgekd.devices.local import connect
from edgekd.errors import ConfigError, EdgekdError, ExitCode, InputError, did_you_mean
from edgekd.figures import ModelFigures
from edgekd.files import read_json, write_json
from edgekd.imports import require
from edgekd.result import model_json, write_bench
from edgekd.run import Run
from edgekd.runs import (
    SPLITS,
    Inputs,
    Measured,
    Split,
    all_subjects,
    finished,
    measure_files,
    measure_run,
    read_arrays,
    run_inputs,
)
from edgekd.scratch import require_scratch
from edgekd.scratch import scratch as new_scratch
from edgekd.search.estimating import estimate
from edgekd.tables import comparison_rows, costly_rows, notes, rich_table, terminal_table
from edgekd.target import Target, load_target

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["BenchOptions", "bench_models", "make_asked", "on_device"]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of `bench`."""

    effort: Effort
    feedings: tuple[Feeding, ...] = (Feeding(),)
    """More than one if several shapes of an input were requested."""
    split: Split = "test"
    data: Path | None = None
    command: str = ""
    device: str = ""
    accuracy_on: str = ""


def make_asked(
    quick: bool,
    thorough: bool,
    profile: bool,
    split: str,
    data: Path | None,
    parallel: int,
    timeout_s: float,
    memory_limit_mb: float | None,
    feedings: Sequence[Feeding] = (Feeding(),),
) -> BenchOptions:
    """Check the options of `bench` and return them."""
    if quick and thorough:
        raise ConfigError("--quick and --thorough: give one of them")
    if split not in SPLITS:
        raise ConfigError(f"--split {split!r}: {did_you_mean(split, SPLITS)}")
    base = QUICK if quick else THOROUGH if thorough else Effort()
    limits: dict[str, Any] = {"timeout_s": timeout_s, "memory_limit_mb": memory_limit_mb}
    effort = dataclasses.replace(base, costliest=10 if profile else 0, sessions=parallel, feeding=feedings[0], **limits)
    return BenchOptions(
        effort=effort, feedings=tuple(feedings), split=split, data=data, command=shlex.join(["edgekd", *sys.argv[1:]])
    )


def on_device(asked: BenchOptions, device: str, accuracy_on: str, sustained_minutes: float) -> BenchOptions:
    """The options with the device on which they are to be carried out, and the minutes of load before timing."""
    effort = dataclasses.replace(asked.effort, sustained_s=60 * sustained_minutes)
    return dataclasses.replace(asked, effort=effort, device=device, accuracy_on=accuracy_on)


def bench_models(paths: list[Path], targets: list[str], asked: BenchOptions, save: Path | None) -> list[int]:
    """Measure and print a table of figures. Models that cannot be measured are reported, and the other figures are
    kept."""
    _refuse_namesakes(targets)
    if asked.split == "val" and (asked.data or not all(path.is_dir() for path in paths)):
        raise ConfigError("--split val: is for run folders, and without --data; leave one of them out")
    require_scratch()
    codes: list[int] = []
    taken: list[tuple[Target, list[Measured]]] = []
    absent: list[tuple[str, str]] = []
    for name in targets:
        try:
            site = connect(load_target(name), asked.device, asked.accuracy_on, cool=not asked.effort.sustained_s)
        except EdgekdError as error:
            say(f"edgekd: {error}")
            codes.append(error.exit_code)
            absent.append((Path(name).stem, str(error)))
            continue
        with closing(site):
            for measured, problems in _bench_on(site, paths, _as_brought(asked, site)):
                for problem in problems:
                    say(f"edgekd: {problem}")
                    codes.append(problem.exit_code)
                if measured:
                    taken.append((site.target, measured))
    _show(taken, absent, asked, several=len(targets) > 1)
    if save:
        models = [{"target": t.name, **model_json(m.figures)} for t, measured in taken for m in measured]
        reasons = [{"target": name, "reason": reason} for name, reason in absent]
        write_json(save, {"schema_version": 1, "command": asked.command, "models": models, "absent": reasons})
    return codes or [ExitCode.PASS]


def _as_brought(asked: BenchOptions, site: Site) -> BenchOptions:
    """The options with as many processes as ran, if the device only answers with results that were brought."""
    from edgekd.devices.bundle import Brought

    if not isinstance(site.device, Brought):
        return asked
    count = site.device.processes
    effort = dataclasses.replace(asked.effort, processes=count, min_processes=count, sustained_s=0.0)
    return dataclasses.replace(asked, effort=effort)


def _refuse_namesakes(targets: Sequence[str]) -> None:
    """Raise ConfigError if two targets have the same name, because figures are stored by the target's name."""
    stems = [Path(name).stem for name in targets]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ConfigError(f"--target: {stem!r} is given more than once; rename one of the files")


def _bench_on(site: Site, paths: list[Path], asked: BenchOptions) -> Iterator[tuple[list[Measured], list[EdgekdError]]]:
    """Measure each run folder, and then all single files together, which are measured by turns."""
    if asked.effort.memory_limit_mb and site.target.provider.name == "wasm":
        say(f"edgekd: target {site.target.name}: --memory-limit does not reach into Node; it is not applied")
    for run in (path for path in paths if path.is_dir()):
        with new_scratch() as scratch:
            try:
                yield _bench_run(run, site, asked, scratch)
            except EdgekdError as error:
                yield [], [error]
    files = [path for path in paths if not path.is_dir()]
    if files:
        with new_scratch() as scratch, progress() as bar:
            try:
                inputs = read_arrays(asked.data, scratch) if asked.data else None
                yield _bench_files(files, site, asked, inputs, _progress_callbacks(bar, site.target))
            except EdgekdError as error:
                yield [], [error]


def _bench_files(
    files: list[Path], site: Site, asked: BenchOptions, inputs: Inputs | None, progress_of: Callable[[str], OnProgress]
) -> tuple[list[Measured], list[EdgekdError]]:
    """Measure all files with each of the requested shapes."""
    measured: list[Measured] = []
    problems: dict[str, EdgekdError] = {}
    for feeding in asked.feedings:
        effort = dataclasses.replace(asked.effort, feeding=feeding)
        taken, failed = measure_files(files, site, effort, estimate, inputs, progress_of)
        measured += [_with_shape(one, feeding, asked) for one in taken]
        problems |= {str(problem): problem for problem in failed}
    return measured, list(problems.values())


def _with_shape(measured: Measured, feeding: Feeding, asked: BenchOptions) -> Measured:
    """The figures under a name that includes the shape if several shapes were requested."""
    if len(asked.feedings) == 1:
        return measured
    name = f"{measured.figures.name} ({shape_words(feeding)})"
    return dataclasses.replace(measured, figures=dataclasses.replace(measured.figures, name=name))


def _progress_callbacks(bar: "Progress", target: Target) -> Callable[[str], OnProgress]:
    """Returns a function that makes, for a model's name, the callback that updates its line of the progress bar."""

    def on_progress_of(name: str) -> OnProgress:
        task = bar.add_task(f"{name} on {target.name}", total=None)
        return lambda done, total: bar.update(task, completed=done, total=total)

    return on_progress_of


def _bench_run(path: Path, site: Site, asked: BenchOptions, scratch: Path) -> tuple[list[Measured], list[EdgekdError]]:
    run, _, models = finished(path)
    if asked.feedings != (Feeding(),):
        raise ConfigError(
            f"{path}: is a run, whose data say its shapes; give --shape, --input and the like with a file"
        )
    inputs = _second_set(asked.data, run, scratch) if asked.data else run_inputs(run, asked.split)
    if not len(inputs.targets):
        raise InputError(f"{inputs.about}: holds no labels, which a run is measured with; add them")
    folder = scratch / site.target.name
    with progress() as bar:
        measured, problems = measure_run(
            run,
            all_subjects(run, models),
            site,
            asked.effort,
            estimate,
            inputs,
            folder,
            _progress_callbacks(bar, site.target),
        )
    remark = f"{models[0].kinds[0].limit_words} on {inputs.about}, {len(inputs.targets)} inputs"
    measured = [dataclasses.replace(model, remark=remark) for model in measured]
    if measured and not asked.data and asked.split == "test":  # the report compares figures of the same data
        about = {"split": asked.split, "examples": len(inputs.targets), "command": asked.command}
        _keep(run, site.target, [model.figures for model in measured], folder, about)
    return measured, problems


def _keep(run: Run, target: Target, models: list[ModelFigures], folder: Path, about: dict[str, Any]) -> None:
    """Write records and figures into the run folder for `edgekd report`. If this is not possible, the command still
    succeeds."""
    write_bench(folder / "bench.json", target, models, **about)
    write_list(folder)
    place = run.bench(target.name)
    try:
        place.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as beside:
            shutil.copytree(folder, Path(beside, "new"))
            if place.exists():
                place.rename(Path(beside, "old"))
            Path(beside, "new").rename(place)
    except OSError as error:
        say(f"edgekd: {place}: the figures cannot be kept there ({error.strerror}); edgekd report will not show them")


def _second_set(path: Path, run: Run, scratch: Path) -> Inputs:
    """Read data other than the run's own: an .npz file, or a folder that the run's card can read."""
    if path.is_file():
        return read_arrays(path, scratch)
    if not path.is_dir():
        raise InputError(f"--data {path}: no such folder or .npz file")
    require("PIL", "train", f"--data {path}: reading image files")
    from edgekd.data.arrays import keep_split
    from edgekd.distill.tasks.known import learning_of
    from edgekd.tasks.known import build_card, task_of

    snapshot = read_json(run.folder / "run.json")["card"]
    plain = {"title": snapshot["name"], "file": str(run.folder), "budgets": {"": {}}}
    card = build_card(snapshot | plain, f"{run.folder / 'run.json'}: card")
    if card.data.source in task_of(card.data).embedded:
        raise InputError(f"--data {path}: the data of card {card.name} are embedded; give an .npz file instead")
    split = learning_of(card.data).load_test(card, path, run.tokenizer)
    return Inputs(keep_split(split, scratch / "second"), split.labels, f"the test data in {path}")


def _show(
    taken: Sequence[tuple[Target, list[Measured]]],
    absent: Sequence[tuple[str, str]],
    asked: BenchOptions,
    several: bool,
) -> None:
    """Print one table for several targets. Print the long tables for a single target, or if more was requested."""
    if several:
        _show_targets([(target, model) for target, measured in taken for model in measured], absent)
    if not several or asked.effort.costliest or asked.effort.sessions > 1:
        for target, measured in taken:
            _show_models(measured, f"{target.name}: {target.title}")


def _show_models(taken: Sequence[Measured], title: str) -> None:
    models = [measured.figures for measured in taken]
    table, lines = terminal_table(models, title)
    for item in (table, *lines):
        out(item)
    for model in models:
        header, rows = costly_rows(model)
        if rows:
            out(rich_table(header, rows, f"{model.name}: the costliest nodes (profiled, not timed)"))
    remarks = dict.fromkeys(measured.remark for measured in taken if measured.remark)
    for remark in [*remarks, *notes(models)]:
        out(f"  note: {remark}")


def _show_targets(taken: Sequence[tuple[Target, Measured]], absent: Sequence[tuple[str, str]]) -> None:
    """Print one table for several targets. A target that cannot run here has a line with the reason."""
    header, rows = comparison_rows([(target.name, measured.figures) for target, measured in taken])
    rows += [[name, "cannot run here", *[""] * (len(header) - 2)] for name, _ in absent]
    out(rich_table(header, rows, "Models on several targets"))
    for name, reason in absent:
        out(f"  {name}: {reason}")
    remarks: dict[str, list[str]] = {}
    for target, measured in taken:
        for remark in [measured.remark, *notes([measured.figures])]:
            if remark and target.name not in (names := remarks.setdefault(remark, [])):
                names.append(target.name)
    for remark, names in remarks.items():
        out(f"  note: {', '.join(names)}: {remark}")
