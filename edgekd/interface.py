"""The functions that `import edgekd` offers to Python programs. The command line offers the same functions."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.budget import Budget, read_budget, refuse_others
from edgekd.card import Card, is_published
from edgekd.devices.device import Site
from edgekd.devices.local import connect, connect_all
from edgekd.devices.shared import Shared
from edgekd.distill.cache.files import require_cache
from edgekd.errors import ConfigError, EdgekdError, InputError
from edgekd.external import file_digest
from edgekd.figures import ModelFigures
from edgekd.imports import require
from edgekd.judge import Judged
from edgekd.nets.published import weights_file
from edgekd.result import Result, read_result
from edgekd.run import Run, open_run
from edgekd.scratch import require_scratch, scratch
from edgekd.target import Target, load_target
from edgekd.tasks.known import deciding, load_card, task_of
from edgekd.trials import Crew, crew_of

if TYPE_CHECKING:
    from edgekd.candidate import Candidate
    from edgekd.planning import Request
    from edgekd.search.found import Found

__all__ = [
    "TRAINING",
    "DistillRequest",
    "Distilled",
    "bench",
    "check",
    "digests_of_more",
    "distill",
    "distill_each",
    "load_card",
    "load_result",
    "load_target",
    "pack_search",
    "search_candidates",
]

Name = str | Path

TRAINING = ("torch", "torchvision", "onnx", "onnxscript", "safetensors")
"""Modules that training needs and the base installation lacks."""


def distill(
    card: Card | str,
    target: Target | str,
    *,
    data: Name | None = None,
    teacher: Name | None = None,
    out: Name | None = None,
    budget: Mapping[str, float] | None = None,
    device: str | Sequence[str] = "",
    allow_estimated: bool = False,
    fresh: bool = False,
    online: bool = False,
) -> Result:
    """Distil a teacher into a judged ONNX file, as `edgekd distill` does. If the run is already finished, its result is
    only read.

    `card` and `target` may be names of bundled ones or paths of files. `data` and `teacher` replace the card's own;
    `budget` maps budget keys to limits that replace the card's limits. The run folder is `out`, by default
    `runs/CARD@TARGET`. `device` is where figures are measured, such as `ssh://pi@board`; several devices share the
    candidates, and the first one measures the rest. `allow_estimated` lets an estimated latency decide the verdict,
    which is otherwise inconclusive. `online` runs the teacher at every step instead of reading its outputs from the
    cache.

    Raises EdgekdError, whose text is one line, for any problem that the caller can correct, and BudgetError if no
    candidate fits the budget. A failed or inconclusive verdict raises no error: see `Result.verdict`.
    """
    limits = read_budget(budget or {}, "budget", deciding())
    request = DistillRequest(
        data=_path(data),
        teacher=_path(teacher),
        out=_path(out),
        budget=limits,
        devices=tuple(filter(None, [device] if isinstance(device, str) else device)),
        allow_estimated=allow_estimated,
        fresh=fresh,
        online=online,
    )
    (done,) = distill_each(
        load_card(card) if isinstance(card, str) else card,
        [load_target(target) if isinstance(target, str) else target],
        request,
    )
    if isinstance(done.outcome, EdgekdError):
        raise done.outcome
    return done.outcome


def _path(name: Name | None) -> Path | None:
    return Path(name) if name is not None else None


@dataclass(frozen=True, kw_only=True)
class DistillRequest:
    """The settings of a distillation, apart from card and targets."""

    data: Path | None = None
    teacher: Path | None = None
    out: Path | None = None
    """The run folder; with several targets the folder that contains the run folders."""
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    devices: tuple[str, ...] = ()
    """Where figures are measured; if there are several, all of them share the candidates, and the first one measures
    everything else."""
    accuracy_on: str = ""
    allow_estimated: bool = False
    """Whether an estimated latency may decide the verdict."""
    fresh: bool = False
    online: bool = False
    track: tuple[str, ...] = ()
    jobs: int | None = None
    ray: str = ""
    """How many short distillations that rank candidates run at the same time, and the Ray cluster on which they run."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """The outcome for one target."""

    run: Run
    outcome: Result | EdgekdError
    before: bool = False
    """Whether the run was finished before this call."""


def distill_each(card: Card, targets: Sequence[Target], asked: DistillRequest) -> list[Distilled]:
    """Distil for each target; runs that are finished are only read.

    An error that concerns only one target is its outcome. Raises EdgekdError for what concerns all of them, before
    any target is measured.
    """
    asked = dataclasses.replace(asked, budget=refuse_others(asked.budget, task_of(card.data).scores[0], "--budget"))
    _crew(card, asked)
    with contextlib.ExitStack() as stack:
        shared: dict[str, Shared] = {}
        sites = [
            stack.enter_context(contextlib.closing(connect_all(target, asked.devices, asked.accuracy_on, shared)))
            for target in targets
        ]
        _require_training(asked.track)
        from edgekd.distill.identity import refuse_changes
        from edgekd.distill.teacher import teacher_start

        files = named_files(card, asked.teacher, asked.data)
        done: list[Distilled | None] = []
        waiting: list[tuple[Site, Run]] = []
        for site in sites:
            folder, limits = _folder(card, site.target, asked, len(sites)), card.budget(site.target.name, asked.budget)
            run = stack.enter_context(open_run(folder, card, site.target, limits, files, asked.fresh))
            if run.result.exists() and run.model.exists():
                given = weights_of(card, asked.teacher) is not None and teacher_start(card, asked.teacher) is None
                outcome = read_result(run.result)
                refuse_changes(card, run, asked.data, given, outcome.shape)
                done.append(Distilled(run=run, outcome=outcome, before=True))
            else:
                waiting.append((site, run))
                done.append(None)
        made = iter(_distill_waiting(card, waiting, asked) if waiting else [])
        return [one or next(made) for one in done]


def search_candidates(
    card: Card, target: Target, asked: DistillRequest
) -> "tuple[Path, Found, Budget, Candidate | None]":
    """Measure and rank the card's candidates on the target, in the run folder of `distill`, which goes on with them;
    return the folder, the candidates, the limits and the candidate that `distill` would train.

    Raises EdgekdError for whatever prevents the search.
    """
    with contextlib.ExitStack() as stack:
        _require_training(asked.track)
        from edgekd.devices.bundle import Brought
        from edgekd.planning import survey

        site = stack.enter_context(contextlib.closing(connect_all(target, asked.devices, asked.accuracy_on)))
        brought = isinstance(site.device, Brought)
        if brought:  # the results hold the candidates alone, so `distill` goes on without this device
            site = dataclasses.replace(site, target=target)
        run, request = stack.enter_context(_searching(card, site.target, asked))
        if brought and run.student_weights.parent.exists():
            raise ConfigError(
                f"{run.folder}: its student was chosen by other times and has been trained; name another folder with "
                "--out, or use --fresh to start this run again"
            )
        return run.folder, *survey(request, site, run)


def pack_search(card: Card, target: Target, asked: DistillRequest, path: Path) -> tuple[int, int]:
    """Write a bundle (.tar.gz) of all candidates of the card, to be timed on a device that nothing can reach; return
    the numbers of candidates and of workers.

    Raises EdgekdError for whatever prevents it.
    """
    _require_training(asked.track)
    from edgekd.devices.bundle import Packing
    from edgekd.devices.emulated import companion_of
    from edgekd.planning import pack

    with contextlib.ExitStack() as stack:
        device = Packing(target, stack.enter_context(scratch()))
        device.require(target)
        site = Site(target, device, companion_of(target))
        run, request = stack.enter_context(_searching(card, target, asked))
        return pack(request, site, device, run, path), len(device.orders)


@contextlib.contextmanager
def _searching(card: Card, target: Target, asked: DistillRequest) -> "Iterator[tuple[Run, Request]]":
    """Open the run folder of a search; yields it and the request."""
    from edgekd.distill.student import TrainingOptions
    from edgekd.planning import Request

    own = refuse_others(asked.budget, task_of(card.data).scores[0], "--budget")
    limits, files = card.budget(target.name, own), named_files(card, asked.teacher, asked.data)
    with open_run(_folder(card, target, asked, 1), card, target, limits, files, asked.fresh) as run:
        require_scratch()
        require_cache(", or use --online")
        options = TrainingOptions(online=asked.online, track=asked.track)
        crew = _crew(card, asked)
        yield run, Request(card=card, crew=crew, data=asked.data, teacher=asked.teacher, budget=own, options=options)


def _distill_waiting(card: Card, waiting: Sequence[tuple[Site, Run]], asked: DistillRequest) -> list[Distilled]:
    require_scratch()
    if not asked.online:
        require_cache(", or use --online")
    from edgekd.distill.student import TrainingOptions
    from edgekd.pipeline import distill_all
    from edgekd.planning import Request

    options = TrainingOptions(online=asked.online, track=asked.track)
    request = Request(
        card=card,
        data=asked.data,
        teacher=asked.teacher,
        budget=asked.budget,
        allow_estimated=asked.allow_estimated,
        options=options,
        crew=_crew(card, asked),
    )
    outcomes = distill_all(request, waiting)
    return [Distilled(run=run, outcome=outcome) for (_, run), outcome in zip(waiting, outcomes, strict=True)]


def _crew(card: Card, asked: DistillRequest) -> Crew:
    """How the short distillations of the ranking run. Raises ConfigError if there are none."""
    crew = crew_of(asked.jobs, asked.ray, card.trials.cpus, card.trials.gpus)
    if not crew.alone and card.student.rank != "learning":
        option = f"--ray {asked.ray}" if asked.ray else f"--jobs {asked.jobs}"
        raise ConfigError(f"{option}: has no effect, because no candidates are ranked by learning; add --rank learning")
    return crew


def _require_training(track: tuple[str, ...]) -> None:
    for module in TRAINING:
        require(module, "train,cpu", "training")
    from edgekd.distill.tracking import check_trackers

    check_trackers(track)


def named_files(card: Card, teacher: Path | None, data: Path | None) -> dict[str, str]:
    """SHA-256 of the teachers' files that the card or the user (`teacher`) names, by their key in run.json.

    Raises InputError if a file or data folder that the user named does not exist.
    """
    if teacher and not teacher.is_file():
        raise InputError(f"--teacher {teacher}: no such weights file")
    if data and not data.exists() and not getattr(card.data, "download", False):
        raise InputError(f"{data}: no such data folder; give the folder with --data DIR")
    weights = weights_of(card, teacher)
    files = {"teacher_sha256": file_digest(weights) if weights and weights.is_file() else ""}
    return files | {f"{name}_sha256": content for name, content in digests_of_more(card).items()}


def weights_of(card: Card, teacher: Path | None) -> Path | None:
    """The file of the teacher that the user or else the card names; None if neither names a file."""
    return teacher or weights_file(card, card.teacher, card.teacher.shape)


def digests_of_more(card: Card) -> dict[str, str]:
    """SHA-256 of the weights of each of the card's further teachers, and of those from which the student starts, if the
    card names any. It is empty for a missing file, because the code that loads the file reports the problem."""
    paths = {
        f"more_teachers[{number}]": weights_file(card, further, further.shape)
        for number, further in enumerate(card.more_teachers)
    }
    if card.student.weights:
        models = card.student.knobs.get("model", [""]) if is_published(card.student.weights) else [""]
        several = len(models) > 1
        paths |= {
            f"student {model}" if several else "student": weights_file(card, card.student, {"model": model})
            for model in models
        }
    return {name: file_digest(path) if path and path.is_file() else "" for name, path in paths.items()}


def _folder(card: Card, target: Target, asked: DistillRequest, targets: int) -> Path:
    own = f"{card.name}@{target.name}"
    if asked.out is None:
        return Path("runs", own)
    return asked.out / own if targets > 1 else asked.out


def bench(models: Sequence[Name], target: Target | str, *, quick: bool = False, device: str = "") -> list[ModelFigures]:
    """Measure latency, size, memory and placement of model files on the target, as `edgekd bench` does. The models are
    measured by turns.

    If models cannot be measured, raises the first EdgekdError; InputError for a file that does not exist.
    """
    from edgekd.bench.records import QUICK, Effort
    from edgekd.runs import measure_files
    from edgekd.search.estimating import estimate

    target = load_target(target) if isinstance(target, str) else target
    with contextlib.closing(connect(target, device)) as site:
        measured, problems = measure_files(
            [Path(model) for model in models], site, QUICK if quick else Effort(), estimate
        )
    if problems:
        raise problems[0]
    return [model.figures for model in measured]


def check(
    model: Name,
    target: Target | str,
    *,
    baseline: Name | None = None,
    budget: Mapping[str, float] | None = None,
    tolerance: Mapping[str, float | str] | None = None,
    data: Name | None = None,
    device: str = "",
) -> Judged:
    """Judge a model file, a run folder or a record by `budget` and against `baseline`, as `edgekd check` does.

    A problem with the model or the baseline raises no error; `Judged.problem` describes it.
    """
    from edgekd.check.asked import CheckJob, JobOptions
    from edgekd.check.jobs import run_job
    from edgekd.check.tolerance import read_tolerance
    from edgekd.search.estimating import estimate

    job = CheckJob(
        path=Path(model),
        target=target if isinstance(target, str) else target.option,
        budget=read_budget(budget or {}, "budget", deciding()),
        tolerance=read_tolerance(tolerance or {}, "tolerance", deciding()),
        baseline=Path(baseline) if baseline is not None else None,
        data=Path(data) if data is not None else None,
    )
    judged, _ = run_job(job, JobOptions(device=device), estimate, lambda text: None)
    return judged


def load_result(run: Name) -> Result:
    """Read the result of a finished run from its folder. Raises InputError if there is no result or it cannot be
    read."""
    from edgekd.runs import finished

    finished(Path(run))  # raises an error that says what is wrong with the folder
    return read_result(Run(Path(run)).result)
