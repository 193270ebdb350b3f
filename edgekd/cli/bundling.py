"""`bundle`: pack what is needed to measure on a device that nothing can reach."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgekd.bench.measure import weights_problem
from edgekd.bench.records import Effort
from edgekd.bench.runner import measure_memory, measure_pair, measure_placement, predict, sampled
from edgekd.check.looks import PAIR_LOOKS
from edgekd.check.measure import pair_effort
from edgekd.check.record import Checked
from edgekd.check.sources import baseline_of, source_of
from edgekd.cli.measuring import BenchOptions
from edgekd.console import out
from edgekd.devices.bundle import Noted, Packing, bundle_words, refuse_other_names, write_bundle
from edgekd.devices.device import Site
from edgekd.errors import ConfigError, ExitCode, InputError
from edgekd.figures import ModelFigures
from edgekd.runs import Inputs, all_subjects, finished, measure_files, measure_run, read_arrays, run_inputs
from edgekd.scratch import require_scratch, scratch
from edgekd.target import load_target

__all__ = ["pack"]


def pack(
    paths: list[Path], target_name: str, asked: BenchOptions, processes: int, path: Path, baseline: Path | None = None
) -> int:
    """Write a bundle for the models, with their inputs; returns the exit code. With a baseline, it also holds what a
    check against it needs.

    A bench runs without measuring, on a device that only notes what it is asked.
    """
    refuse_other_names(path, "--out")
    require_scratch()
    target = load_target(target_name)
    effort = dataclasses.replace(asked.effort, processes=processes, min_processes=processes)
    with scratch() as folder:
        device = Packing(target, folder)
        device.require(target)
        site = Site(dataclasses.replace(target, device="", accuracy_on="device"), device)
        for run_folder in (one for one in paths if one.is_dir()):
            run, _, models = finished(run_folder)
            (folder / run_folder.name).mkdir(exist_ok=True)
            inputs = run_inputs(run, asked.split)
            subjects = all_subjects(run, models)
            measure_run(run, subjects, site, effort, _as_they_are, inputs, folder / run_folder.name)
        files = [one for one in paths if not one.is_dir()]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: no such model file or run folder")
            if problem := weights_problem(file, target):
                raise problem
        if files:
            given = read_arrays(asked.data, folder) if asked.data else None
            measure_files(files, site, effort, _as_they_are, given)
        if baseline is not None:
            given = read_arrays(asked.data, folder) if asked.data else None
            for one in paths:
                _pack_pairs(one, baseline, site, asked.effort, given)
        write_bundle(path, device.orders, target.python)
    out(f"wrote {bundle_words(path, len(device.orders))}")
    return ExitCode.PASS


def _pack_pairs(path: Path, baseline: Path, site: Site, effort: Effort, given: Inputs | None) -> None:
    """Note what a check against a baseline measures: both by turns, the baseline beside itself, and what else is
    compared of the baseline."""
    source, other = source_of(path, site.target, given), baseline_of(baseline, site.target)
    if isinstance(other, Checked):
        raise ConfigError(f"--baseline {baseline}: is a record, which was measured before; name a model or a run")
    data = source.inputs.file if source.inputs else None
    for turn in range(PAIR_LOOKS[-1]):
        measure_pair(source.file, other.file, site, data, pair_effort(effort), turn)
    for turn in range(PAIR_LOOKS[0]):
        measure_pair(other.file, other.file, site, data, pair_effort(effort), turn)
    measure_memory(other.file, site, sampled(effort, data))
    measure_placement(other.file, site, data, effort)
    if data is not None:
        with contextlib.suppress(Noted), scratch() as folder:
            predict(other.file, site, data, folder / "answers.npy", effort)


def _as_they_are(figures: Sequence[ModelFigures], *others: object) -> list[ModelFigures]:
    return list(figures)
