"""Look at a folder of sound: one folder of clips for each keyword, below `train`, or with lists of the parts."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from edgekd.data.clips import LISTS, NOISE_FOLDER, read_sound
from edgekd.data.folders import class_files, class_names, part_folder, validation_folder
from edgekd.draft.facts import DataFacts, Proposal
from edgekd.draft.images import some_of
from edgekd.errors import InputError, one_line
from edgekd.imports import require
from edgekd.nets.spectrogram import Spectrogram
from edgekd.tasks.keyword_spotting import MOST_SAMPLES, MOST_SECONDS, ClipData, front_end
from edgekd.units import natural

__all__ = ["SOUND", "look_at_clips"]

SOUND = (".wav", ".flac")
SAMPLE = 256
"""This many training clips are decoded to measure their features."""
SAMPLES = 16_000_000
"""Fewer, if the clips are long: they have at most this many samples together."""
HIGHEST = 4000
"""Hz up to which features are proposed: most of what tells words apart lies below."""
MELS = (40, 32, 24, 16, 12, 8, 4)
"""Numbers of mel filters, of which the first one is taken for which every filter has a line of the spectrum."""


def look_at_clips(folder: Path) -> DataFacts:
    """Facts of a folder of clips of sound. Raises InputError if it has no folder for each of at least two keywords, or
    for a clip that cannot be read."""
    listed = (folder / LISTS["test"]).is_file()
    if not listed and not (folder / "train").is_dir():
        raise InputError(
            f"--data {folder}: holds clips of sound, but neither a folder 'train' with one folder for each keyword, "
            f"nor {LISTS['test']} beside the folders of the keywords, as in Google's Speech Commands"
        )
    root = part_folder(folder, "train") if not listed else folder
    classes = tuple(sorted((name for name in class_names(root) if name != NOISE_FOLDER), key=natural))
    if len(classes) < 2:
        raise InputError(
            f"{root}: has {len(classes) or 'no'} folder{'s'[: len(classes) != 1]} of clips; it should hold one for "
            "each of at least two keywords"
        )
    files, labels = class_files(root, classes, "clips", (NOISE_FOLDER,))
    tests = _tests(folder, classes, listed)
    rate, seconds, said = _lengths(files)
    keys, more = _measured(files, rate, seconds)
    held = _lines(folder / LISTS["validation"]) if listed else 0
    return DataFacts(
        task="keyword-spotting",
        keys={"source": "audio-folder", **keys},
        classes=classes,
        examples=len(files) - (tests + held if listed else 0),
        tests=tests,
        labels=tuple(labels),
        proposal=_proposal(keys),
        guesses=(f"source: audio-folder, because {root} holds a folder of clips for each of {len(classes)} keywords",
                 _parts(folder, listed), *said, *more),
    )  # fmt: skip


def _tests(folder: Path, classes: Sequence[str], listed: bool) -> int:
    """The number of test clips."""
    if listed:
        return _lines(folder / LISTS["test"])
    return len(class_files(part_folder(folder, "test"), classes, "clips", (NOISE_FOLDER,))[0])


def _lines(file: Path) -> int:
    return sum(bool(line.strip()) for line in file.read_text(errors="replace").splitlines()) if file.is_file() else 0


def _parts(folder: Path, listed: bool) -> str:
    """The sentence about the parts of the data."""
    if listed:
        return f"split: {LISTS['test']} names the test clips" + (
            f" and {LISTS['validation']} those for validation" if (folder / LISTS["validation"]).is_file() else ""
        )
    if validation_folder(folder) is None:
        return "split: a tenth of the training clips is set apart for validation, without regard to who speaks"
    return "split: the folder has its own parts for training, validation and test"


def _lengths(files: Sequence[Path]) -> tuple[int, float, list[str]]:
    """Rate in Hz and length in seconds for a card, and what was guessed, from the heads of all files."""
    soundfile = require("soundfile", "train", "reading clips of sound")
    rates, lengths = Counter[int](), list[float]()
    for file in files:
        try:
            about = soundfile.info(str(file))
        except Exception as error:  # libsndfile's errors
            raise InputError(f"{file}: the clip cannot be read: {one_line(error, 120)}") from error
        rates[about.samplerate] += 1
        lengths.append(about.frames / about.samplerate)
    if len(rates) > 1:
        told = ", ".join(f"{count} of {rate} Hz" for rate, count in rates.most_common(4))
        raise InputError(f"{files[0].parent.parent}: holds clips of different rates ({told}); resample them to one")
    rate, longest = next(iter(rates)), max(lengths)
    most = min(MOST_SECONDS, MOST_SAMPLES / rate)
    if longest > most:
        raise InputError(
            f"{files[int(np.argmax(lengths))]}: lasts {longest:.4g} s, and a clip of {rate} Hz lasts {most:.4g} s at "
            "most; cut it into shorter clips"
        )
    seconds = round(longest, 4)
    if not math.isclose(seconds * rate, longest * rate, abs_tol=0.4):
        seconds = math.ceil(longest * 100) / 100
    said = f"seconds: {seconds:g}, the length of the longest training clip; the median is {np.median(lengths):.2g}"
    return rate, seconds, [f"rate: {rate} Hz, as in the files", said]


def _measured(files: Sequence[Path], rate: int, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """The keys of the front end with mean and deviation of the features of some clips, and what was guessed."""
    high = min(HIGHEST, rate // 2)
    samples = round(seconds * rate)
    window = min(2 * round(0.015 * rate), samples // 4 * 2)
    keys: dict[str, Any] = {
        "rate": rate,
        "seconds": seconds,
        "window_ms": round(1000 * window / rate, 4),
        "hop_ms": round(1000 * min(round(0.02 * rate), window) / rate, 4),
        "low_hz": min(20, high // 4),
        "high_hz": high,
    }
    data = _with_mels(keys, files[0])
    some = some_of(files, min(SAMPLE, max(1, SAMPLES // samples)))
    clips = np.zeros((len(some), samples), np.int16)
    for place, file in enumerate(some):
        sound = read_sound(file, data)[:samples]
        clips[place, : len(sound)] = sound
    features = Spectrogram(front_end(data))(torch.from_numpy(clips))
    keys |= {"mels": data.mels, "mean": [round(float(features.mean()), 2)], "std": [_deviation(features)]}
    how = front_end(data)
    return keys, [
        f"features: log-mel, {data.mels} filters up to {high} Hz, which suits speech; {how.frames} frames",
        f"mean, std: those of the features of {len(some)} training clips",
    ]


def _deviation(features: torch.Tensor) -> float:
    return max(0.01, round(float(features.std()), 2))


def _with_mels(keys: dict[str, Any], file: Path) -> ClipData:
    """The card's `[data]` with as many mel filters as its spectrum allows."""
    for mels in MELS:
        try:
            return ClipData(source="audio-folder", classes=("a", "b"), mels=mels, **keys)
        except (ValidationError, ValueError) as error:
            reason = error
    told = str(reason).splitlines()
    raise InputError(f"{file.parent.parent}: its clips are too short, or too few samples a second: {told[-2:][0]}")


def _proposal(keys: dict[str, Any]) -> Proposal:
    how = front_end(ClipData(source="audio-folder", classes=("a", "b"), **keys))
    halvings = int(math.log2(min(how.bins, how.frames)))
    stages = max(1, min(3, halvings))
    shift = min(100, round(100 * keys["seconds"]))
    widths = [[8, 16, 32], [16, 24, 32], [16, 32, 48]]
    training = {"learning_rate": 0.05, "weight_decay": 0.001}
    return Proposal(
        augment={
            "time_shift_ms": shift,
            "noise": 0.5,
            "noise_snr_db": [10, 30],
            "time_mask": min(6, how.frames // 8),
            "frequency_mask": min(4, how.bins // 8),
        },
        teacher={"family": "keyword-cnn", "shape": {"channels": [32, 64, 128][:stages], "layers": 2}},
        student="keyword-cnn",
        knobs={"channels": [list(one) for one, _ in itertools.groupby(w[:stages] for w in widths)], "layers": [1, 2]},
        training=training,
        recipe=training | {"temperature": 4.0, "alpha": 0.9, "views": 6},
        guesses=(
            f"augment: shifts of up to {shift} ms, noise on half of the clips, and masks over time and frequencies",
            "student: keyword-cnn, plain 3×3 convolutions, which int8 suits; ds-cnn has fewer operations",
        ),
    )
