"""`bundle`: pack what is needed to measure on a device that nothing can reach."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgekd.bench.measure import weights_problem
from edgekd.cli.measuring import BenchOptions
from edgekd.console import out
from edgekd.devices.bundle import Packing, write_bundle
from edgekd.devices.device import Site
from edgekd.errors import ConfigError, ExitCode, InputError
from edgekd.figures import ModelFigures
from edgekd.runs import all_subjects, finished, measure_files, measure_run, read_arrays, run_inputs
from edgekd.scratch import require_scratch, scratch
from edgekd.target import load_target

__all__ = ["pack"]


def pack(paths: list[Path], target_name: str, asked: BenchOptions, processes: int, path: Path) -> int:
    """Write a bundle for the models, with their inputs; returns the exit code.

    A bench runs without measuring, on a device that only notes what it is asked.
    """
    if not path.name.endswith(".tar.gz"):
        raise ConfigError(f"--out {path}: a bundle is a compressed archive; give a name that ends in .tar.gz")
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
        write_bundle(path, device.orders, target.python)
    size = path.stat().st_size / 1e6
    name = path.name.removesuffix(".tar.gz")
    then = f"on the device: tar xzf {path.name} && sh {name}/run.sh"
    out(f"wrote {path}: {len(device.orders)} workers, {size:.1f} MB; {then}")
    return ExitCode.PASS


def _as_they_are(figures: Sequence[ModelFigures], *others: object) -> list[ModelFigures]:
    return list(figures)
