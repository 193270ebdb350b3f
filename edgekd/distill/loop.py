"""The training loop: a plain `for` over batches of tensors, which writes a checkpoint after every epoch and can resume
with a bit-for-bit identical result.

Everything random is a pure function of (seed, epoch, example), so a resumed training sees exactly the same data as an
uninterrupted one. The identical result needs the same machine, torch build, number of threads and number of processes,
which the checkpoint stores; on a GPU it also needs deterministic kernels.

With several processes, each process computes its share of every batch, and the gradients are averaged, which gives the
gradient of the whole batch. Batch normalisation uses the statistics of each share alone, as it does with `accumulate`
parts in one process. The running statistics that are saved are those of rank 0; in one process, all parts update them
one after the other.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd import units
from edgekd.console import progress, say
from edgekd.data.examples import Examples
from edgekd.data.views import permutation
from edgekd.distill.checkpoint import Progress, begin, keep
from edgekd.distill.distributed import averaged, device, reaches_all, world
from edgekd.distill.objective import Objective
from edgekd.distill.optimise import clip, computes_bf16, has_matrices, learning_rate, make_optimizer, set_rate
from edgekd.distill.step import TrainingStep
from edgekd.distill.tasks.learning import Score
from edgekd.distill.threads import threads_for
from edgekd.distill.tracking import open_trackers
from edgekd.distill.watch import Watch, check_epoch
from edgekd.errors import ConfigError
from edgekd.files import file_sha256
from edgekd.nets.airbench import WhiteningConv
from edgekd.nets.start import Start
from edgekd.recipe import Training
from edgekd.scores import ACCURACY, ScoreKind

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Outputs", "TrainingJob", "batches", "best_score", "parts_of", "train"]

Outputs = Callable[[int, NDArray[np.int64], Tensor], dict[str, Tensor]]
"""(view, indices (B,), inputs (B, …)) -> the teacher's outputs `logits` (B, C), and its features by layer name."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that one training needs: examples, settings, objective, and the path of its checkpoint."""

    name: str
    train: Examples
    validation: Examples
    training: Training
    objective: Objective
    checkpoint: Path
    teacher: Outputs | None = None
    views: int = 1
    """Number of augmented views of the data; epoch e uses view e mod `views`."""
    score: Score
    kind: ScoreKind = ACCURACY
    """What `score` computes: the score that decides for the task."""
    log: Path | None = None
    """Folder of `training.jsonl`; by default the folder of the checkpoint."""
    track: tuple[str, ...] = ()
    """Trackers that get the same values: tensorboard, mlflow, wandb."""
    start: Start | None = None
    """What was loaded into the network before the training; these parameters learn at a lower rate."""
    stop: Callable[[list[dict[str, Any]]], bool] | None = None
    """Called with the history before each further epoch; the training ends if it returns true."""


def train(net: nn.Module, job: TrainingJob) -> list[dict[str, Any]]:
    """Train `net`, which maps inputs to outputs, in place. Returns one entry per epoch: loss, loss terms, the deciding
    score on validation data, temperature, learning rate, number of examples and seconds.

    Raises BudgetError, with epoch, step, term and the last good checkpoint, if the loss becomes infinite or NaN or
    grows tenfold. Raises ConfigError if a batch is too small for its parts, or if the checkpoint was written under
    other conditions.
    """
    parts_of(job.name, job.training, len(job.train))
    with threads_for(job.name, net, job.train, job.training, job.checkpoint):
        return _train(net, job)


def _train(net: nn.Module, job: TrainingJob) -> list[dict[str, Any]]:
    training, where, among = job.training, device(), world()
    parts = parts_of(job.name, training, len(job.train))
    # channels_last makes convolutions 15 % faster on a CPU.
    step_of = TrainingStep(net, job.objective, training).to(where).to(memory_format=torch.channels_last)
    whiten(step_of, net, job.train)
    loaded = frozenset(f"net.net.{name}" for name in job.start.parameters) if job.start else frozenset[str]()
    optimizer = make_optimizer(step_of, training, loaded)
    about = _about(job)
    state = begin(step_of, optimizer, job.name, job.checkpoint, training, about)
    run: nn.Module = step_of
    if among.size > 1:
        run = averaged(step_of, _all_used(step_of.net, job))
    steps = len(list(batches(len(job.train), training.batch_size, np.arange(len(job.train)))))
    if training.preset and not state.history and among.first:
        say(f"{job.name}: preset {training.preset}: {training.words()}")
    muon = training.optimizer == "muon"
    if muon and not has_matrices(optimizer) and not state.history and among.first:
        say(f"{job.name}: muon: the network has no hidden matrices, so that all of it learns as with sgd")
    recipe = {"training": job.name, "seed": training.seed, "epochs": training.epochs, "batch_size": training.batch_size}
    goes_on = not state.finished and len(state.history) < training.epochs
    kinds, log = (job.track, job.log or job.checkpoint.parent) if among.first and goes_on else ((), None)
    with (
        open_trackers(kinds, log, job.name, recipe, len(state.history)) if log else _no_log() as log_values,
        progress() as bar,
    ):
        bf16 = computes_bf16(training.precision)
        task = bar.add_task(job.name, total=steps * training.epochs, completed=steps * len(state.history))
        for epoch in range(len(state.history), training.epochs):
            if state.finished or (job.stop and state.history and job.stop(state.history)):
                break
            started, k = time.perf_counter(), epoch % job.views
            part, first = job.objective.part(epoch)
            if epoch == first and epoch:  # a new part starts with a new optimiser
                optimizer = make_optimizer(step_of, training, loaded)
            torch.manual_seed((training.seed * 1_000_003 + epoch) * 1_009 + among.rank)  # for dropout and the like
            order = permutation(training.seed, epoch, len(job.train))
            watch = Watch(job.name, job.checkpoint, training.learning_rate, epoch, bf16, muon)
            step_of.train()
            for step, indices in enumerate(batches(len(job.train), training.batch_size, order)):
                optimizer.zero_grad()
                pieces = np.array_split(indices, parts)
                mine = pieces[among.rank * training.accumulate : (among.rank + 1) * training.accumulate]
                for number, chosen in enumerate(mine):
                    batch = job.train.batch(chosen, k)
                    inputs, targets = batch.inputs.to(where), batch.targets.to(where)
                    teacher = job.teacher(k, chosen, inputs) if job.teacher else {}
                    last = number == len(mine) - 1
                    with contextlib.nullcontext() if last or among.size == 1 else run.no_sync():  # type: ignore[operator]
                        terms = run(inputs, targets, chosen, teacher, epoch, step / steps, epoch * steps + step)
                        share = len(chosen) * among.size / len(indices)  # DDP takes the mean over processes
                        (torch.stack(list(terms.values())).sum() * share).backward()  # type: ignore[no-untyped-call]
                    watch.add(step, terms, share / among.size)
                clip(step_of, training)
                rate = learning_rate(training, (epoch - first) * steps + step, steps, part.epochs)
                set_rate(optimizer, rate)
                optimizer.step()
                state.average(net)
                bar.advance(task)
            terms_mean = watch.means(steps)
            entry = {
                "epoch": epoch + 1,
                "last_stage": first + part.epochs == training.epochs,
                "loss": sum(terms_mean.values()),
                "terms": terms_mean,
                job.kind.history_key: job.score(state.kept(net, among), job.validation, training.precision, among),
                "learning_rate": rate,
                "temperature": float(torch.as_tensor(job.objective.temperature(epoch + 1)).detach()),
                "examples": steps * min(training.batch_size, len(job.train)),
                "seconds": time.perf_counter() - started,
            }
            check_epoch(job.name, job.checkpoint, step_of, state.history[first:], entry, bf16, muon)
            state.add(entry, net, training.patience, job.kind)
            if among.first:
                # Before the checkpoint: a resumed training removes logged epochs that the checkpoint does not have.
                log_values((epoch + 1) * steps - 1, _flat(entry, job.kind))
                keep(state, step_of, optimizer, job.checkpoint, training, about)
                _say(job, state, bar, task)
                _say_stopped(job, state)
    state.finish(net)
    step_of.release()
    net.to("cpu").to(memory_format=torch.contiguous_format).eval()
    return state.history


def whiten(trained: nn.Module, whole: nn.Module, examples: Examples) -> None:
    """Compute the filters of the whitening layers in `trained` that have none yet, from up to 5,000 training images
    with the preprocessing of `whole`."""
    stems = [module for module in trained.modules() if isinstance(module, WhiteningConv)]
    if stems := [stem for stem in stems if not stem.get_buffer("whitened")]:
        images = examples.batch(np.arange(min(5_000, len(examples))), None).inputs
        normalised = whole.get_submodule("preprocess")(images.to(device()))
        for stem in stems:
            stem.whiten(normalised)


def best_score(training: Training, history: list[dict[str, Any]], kind: ScoreKind) -> float:
    """The score of the final weights on validation data: that of the best epoch with `patience`, else of the last
    epoch."""
    reached = [float(entry[kind.history_key]) for entry in history if entry.get("last_stage", True)]
    return kind.best(reached) if training.patience and reached else float(history[-1][kind.history_key])


def batches(count: int, size: int, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut `order` into batches of `size`; a smaller last batch is dropped unless it is the only one."""
    for start in range(0, count, size):
        if start == 0 or start + size <= count:
            yield order[start : start + size]


def _about(job: TrainingJob) -> dict[str, Any]:
    """Further conditions that must not change when a training is resumed: views, the data, and the weights it starts
    from."""
    keys = {"training data": job.train.key, "validation data": job.validation.key}
    digests = {name: sha256(json.dumps(dict(key), sort_keys=True).encode()) for name, key in keys.items()}
    about = {"views": job.views} | {name: digest.hexdigest()[:12] for name, digest in digests.items()}
    return about | ({"SHA-256 of the weights to start from": file_sha256(job.start.file)[:12]} if job.start else {})


def parts_of(where: str, training: Training, count: int) -> int:
    """The number of parts that each batch is cut into: the number of processes times `accumulate`.

    `count` is the number of training examples. Raises ConfigError, whose message begins with `where`, if a part would
    have fewer than two examples.
    """
    parts = world().size * training.accumulate
    size = min(training.batch_size, count)
    if parts > 1 and size < 2 * parts:
        raise ConfigError(
            f"{where}: a batch of {size} in {parts} parts ({world().size} processes × accumulate "
            f"{training.accumulate}) leaves fewer than 2 examples each; batch_size should be at least {2 * parts}"
        )
    return parts


def _all_used(net: nn.Module, job: TrainingJob) -> bool:
    """Whether every parameter gets a gradient in every step. Some do not if one part of the training does not use a
    module that another part learns, or if no term needs the network's last layers."""
    step_of = TrainingStep(net, job.objective, dataclasses.replace(job.training, compile=False)).eval()
    chosen = np.arange(min(2, len(job.train)))
    batch = job.train.batch(chosen, 0)
    inputs, targets = batch.inputs.to(device()), batch.targets.to(device())
    teacher = job.teacher(0, chosen, inputs) if job.teacher else {}
    begins = [sum(part.epochs for part in job.objective.parts[:place]) for place in range(len(job.objective.parts))]
    try:
        terms = [step_of(inputs, targets, chosen, teacher, epoch, 0.0, 0) for epoch in begins]
    finally:
        step_of.release()
    return all(reaches_all(found.values(), step_of) for found in terms)


@contextlib.contextmanager
def _no_log() -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A log function that does nothing, for all ranks but the first."""
    yield lambda step, values: None


def _flat(entry: dict[str, Any], kind: ScoreKind) -> dict[str, float]:
    """The values of an epoch's entry, under the names that the trackers show."""
    values = {f"epoch/{key}": entry[key] for key in (kind.history_key, "learning_rate", "temperature", "seconds")}
    values["epoch/examples_per_second"] = entry["examples"] / entry["seconds"]
    return (
        {"epoch": entry["epoch"], "loss": entry["loss"]}
        | values
        | {f"loss/{name}": value for name, value in entry["terms"].items()}
    )


def _say_stopped(job: TrainingJob, state: Progress) -> None:
    """Say that `patience` ended the training before its last epoch."""
    training, key = job.training, job.kind.history_key
    if not state.finished or len(state.history) >= training.epochs:
        return
    best = best_score(training, state.history, job.kind)
    last = [entry for entry in state.history if entry.get("last_stage", True)]
    at = next(entry["epoch"] for entry in last if entry[key] == best)
    say(
        f"{job.name}: stopped after epoch {len(state.history)} of {training.epochs}, because {training.patience} "
        f"epochs (patience) brought nothing better than the {job.kind.show(best)} of epoch {at}, whose weights are kept"
    )


def _say(job: TrainingJob, state: Progress, bar: "Bar", task: "TaskID") -> None:
    """Tell the epoch that ended: on the one live line of a terminal, which stays only after the last epoch, or else as
    a line of its own."""
    training = job.training
    last, left = state.history[-1], training.epochs - len(state.history)
    over = not left or state.finished
    shown = max(1, training.epochs // 20)  # otherwise short epochs would fill a log
    told = (
        f"{job.name}: epoch {len(state.history)}/{training.epochs}, loss {last['loss']:.4f}, "
        f"validation {job.kind.show(last[job.kind.history_key])}"
    )
    if not bar.disable and not over:
        bar.update(task, description=told, refresh=True)
        return
    if not over and left % shown and last["seconds"] < 10:
        return
    eta = sum(entry["seconds"] for entry in state.history[-5:]) / len(state.history[-5:]) * left
    rest = f", {units.duration(eta)} left" if left and not over else ""
    say(f"{told}, {last['examples'] / last['seconds']:.0f} examples/s{rest}")
