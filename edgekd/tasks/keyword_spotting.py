"""Keyword spotting: a model assigns clips of sound, as raw samples (n, samples), to one of several keywords."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.augmentation import Augment
from edgekd.card import Classes, ImportPath
from edgekd.figures import ModelFigures
from edgekd.ranges import Positive, Seed
from edgekd.tasks.classification import CLASSES
from edgekd.tasks.front_end import FrontEnd
from edgekd.tasks.task import Task

__all__ = ["KEYWORD_SPOTTING", "ClipData", "front_end"]

MOST_SAMPLES = 1_000_000
"""Largest number of samples of a clip: about a minute at 16 kHz."""
MOST_SECONDS = 60
"""Largest length of a clip."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ClipData:
    """Where the clips of sound come from, and how the front end in the file makes features of their samples."""

    source: Literal["audio-folder", "import"]
    """audio-folder: `train/KEYWORD/*.wav` (or .flac), and also `test` and perhaps `val`; or `KEYWORD/*.wav` with
    validation_list.txt and testing_list.txt, as in Google's Speech Commands."""
    path: str = ""
    """Folder of the data, relative to the card; `--data` overrides it."""
    function: ImportPath | None = None
    """import only: `package.module:function`, called with (path, split) -> (clips (n, samples) of int16 or of float in
    −1 … 1, labels)."""
    classes: Classes
    """The keywords in label order; for an audio folder, the names of its subfolders."""
    rate: Annotated[int, Field(ge=1000, le=384_000)] = 16_000
    """Samples per second. A file of another rate is refused."""
    seconds: Annotated[float, Field(gt=0, le=MOST_SECONDS)] = 1.0
    """Length of a clip. Zeros are added to the end of shorter files; longer files are refused."""
    input: Literal["int16", "float32"] = "int16"
    """Type of the samples that the exported file takes; floats are in −1 … 1."""
    features: Literal["log-mel", "mfcc"] = "log-mel"
    mels: Annotated[int, Field(ge=4, le=256)] = 40
    """Number of mel filters."""
    coefficients: Annotated[int, Field(ge=2, le=256)] = 10
    """mfcc only: number of coefficients."""
    window_ms: Annotated[float, Field(gt=0, le=60_000)] = 30.0
    hop_ms: Annotated[float, Field(gt=0, le=60_000)] = 20.0
    """Length of a frame, and distance between the beginnings of two frames."""
    low_hz: Annotated[float, Field(ge=0)] = 20.0
    high_hz: Positive = 4000.0
    """Limits of the mel filters."""
    mean: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0,)
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    """Of the features on the training clips: one number, or one for each filter or coefficient."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the training clips that is used for validation if the data have no validation part, the same for each
    keyword."""
    validation_seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "ClipData":
        if self.source == "import" and self.function is None:
            raise ValueError('must name `function = "package.module:function"` with source = "import"')
        if self.features != "mfcc" and self.coefficients != 10:
            raise ValueError('coefficients: has no effect with features = "log-mel"')
        if self.coefficients > self.mels and self.features == "mfcc":
            raise ValueError(f"coefficients: should be at most mels, {self.mels}, got {self.coefficients}")
        if not self.low_hz < self.high_hz <= self.rate / 2:
            raise ValueError(f"high_hz: should be above low_hz and at most rate / 2, {self.rate / 2:g}")
        _check_frames(front_end(self))
        return self


def _check_frames(how: FrontEnd) -> None:
    """Raise ValueError for frames and filters that cannot be computed."""
    if not 2 <= how.window <= how.samples <= MOST_SAMPLES or how.hop < 1 or how.window % 2:
        raise ValueError(
            f"window_ms: is {how.window} samples with a hop of {how.hop} in a clip of {how.samples}; it should be an "
            f"even number of them, at most the clip, which has at most {MOST_SAMPLES:,}"
        )
    if how.empty:
        raise ValueError(
            f"mels: filter {how.empty[0]} of {how.mels} is narrower than the lines of the spectrum, "
            f"{how.rate / how.window:.3g} Hz apart; give fewer mels or a longer window_ms"
        )
    for key, values in (("mean", how.mean), ("std", how.std)):
        if len(values) not in (1, how.bins):
            raise ValueError(f"{key}: should be one number or {how.bins}, one for each bin, got {len(values)}")


@lru_cache(maxsize=16)
def front_end(data: ClipData) -> FrontEnd:
    """The front end of the card's `[data]`, with its lengths in samples."""
    return FrontEnd(
        samples=round(data.seconds * data.rate),
        rate=data.rate,
        window=round(data.window_ms * data.rate / 1000),
        hop=round(data.hop_ms * data.rate / 1000),
        mels=data.mels,
        low_hz=data.low_hz,
        high_hz=data.high_hz,
        coefficients=data.coefficients if data.features == "mfcc" else 0,
        mean=data.mean,
        std=data.std,
        integer=data.input == "int16",
    )


def _problem(data: ClipData, augment: Augment) -> str:
    how = front_end(data)
    for key, limit, of in (("time_mask", how.frames, "frames"), ("frequency_mask", how.bins, "bins")):
        if getattr(augment, key) >= limit:
            return f"augment.{key}: should be less than the {limit} {of} of a clip, got {getattr(augment, key)}"
    if augment.time_shift_ms >= 1000 * data.seconds:
        return f"augment.time_shift_ms: should be less than the clip, {1000 * data.seconds:g}"
    return ""


def _example(data: ClipData, count: int) -> NDArray[Any]:
    how = front_end(data)
    return np.zeros((count, how.samples), dtype=np.int16 if how.integer else np.float32)


def _describe(data: ClipData) -> dict[str, str]:
    how = front_end(data)
    scale = "" if how.integer else " in -1 to 1"
    kind = f"{how.coefficients} MFCC of {how.mels} mel filters" if how.coefficients else f"{how.mels} log-mel energies"
    return {
        "labels": json.dumps(data.classes),
        "input": f"{data.input} (batch, {how.samples}), mono samples at {how.rate} Hz{scale}",
        "features": f"{kind}, {how.frames} frames of {data.window_ms:g} ms every {data.hop_ms:g} ms, in the graph",
    }


def _real_time(data: ClipData, model: ModelFigures) -> Sequence[str]:
    figure = model.latency_p50_ms
    if figure.value is None:
        return ()
    factor = figure.value / (1000 * data.seconds)
    return (
        f"real-time factor {factor:.2g} ({figure.provenance}): one call takes {figure.value:.3g} ms for a clip of "
        f"{data.seconds:g} s",
    )


KEYWORD_SPOTTING = Task(
    name="keyword-spotting",
    unit="clip",
    units="clips",
    data=ClipData,
    augment=frozenset({"time_shift_ms", "noise", "noise_snr_db", "time_mask", "frequency_mask", "masks"}),
    problem=_problem,
    input="samples",
    free={0: "batch"},
    calibration="static",
    outputs=lambda data: len(data.classes),
    argument="classes",
    targets=lambda data: f"{len(data.classes)} keywords of data",
    example=_example,
    takes=lambda data: f"clips of {front_end(data).samples} samples",
    sizes=lambda data: (front_end(data).bins, front_end(data).frames),
    normalization=front_end,
    describe=_describe,
    calls=lambda samples: [samples],
    remarks=_real_time,
    **CLASSES,
)
