"""Estimate the latency of a target that is not this machine if torch is installed; otherwise it remains unknown."""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekd.console import say
from edgekd.devices.device import Site
from edgekd.errors import InputError, one_line
from edgekd.figures import ModelFigures

if TYPE_CHECKING:
    from edgekd.bench.measure import Subject

__all__ = ["estimate"]


def estimate(figures: Sequence[ModelFigures], subjects: "Sequence[Subject]", site: Site) -> list[ModelFigures]:
    """Add estimates if the target has references and torch is installed to time them; otherwise return the figures
    unchanged.
    """
    if site.measurable or not site.target.reference:
        return list(figures)
    if importlib.util.find_spec("torchvision") is None:
        _say_once('edgekd: estimating latency needs torch; pip install "edgekd[train,cpu]"')
        return list(figures)
    from edgekd.export.variants import precision_of
    from edgekd.search.estimate import with_estimates

    try:
        known = [dataclasses.replace(s, precision=precision_of(s.file)) for s in subjects]
    except Exception as error:  # onnx passes on any exception of protobuf
        raise InputError(f"{subjects[0].file}: cannot be read as ONNX: {one_line(error)}") from error
    return with_estimates(figures, known, site)


@functools.cache
def _say_once(text: str) -> None:
    say(text)
