"""Reads clips of sound: mono files of the card's rate, as samples (n, samples) of equal length."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.card import Card
from edgekd.console import say
from edgekd.data.arrays import duplicates
from edgekd.data.folders import class_files, part_folder, validation_folder
from edgekd.data.images import Split, check_labels
from edgekd.data.sources import place_of, require_classes, set_apart
from edgekd.errors import InputError, one_line, shown
from edgekd.imports import import_function, require
from edgekd.nets.spectrogram import Spectrogram
from edgekd.tasks.keyword_spotting import ClipData, front_end

__all__ = [
    "NOISE_FOLDER",
    "examine_clips",
    "load_clip_test",
    "load_clip_training",
    "noise_digest",
    "noise_of",
    "read_sound",
    "require_clip_test",
]

NOISE_FOLDER = "_background_noise_"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
"""Files of Google's Speech Commands; each line is KEYWORD/FILE of a clip of that part."""

NAMED_PROBLEMS = 10
"""A message about several clips that cannot be used names at most this many."""

MEASURED = 256
"""Number of clips whose features are compared with the card's mean and standard deviation."""

NOISE_SECONDS = 60
"""Length of the noise that is made if the data have none."""

LOUDEST = 32_767


def load_clip_training(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation clips of the card. If the data have no validation part, a share of each keyword
    is split off the training part. Raises InputError for anything wrong with the data."""
    train = _load(card, folder, "train")
    train.extra = noise_of(card, folder)
    if not _has_validation(card, folder):
        return set_apart(card, train)
    require_classes(card, train.labels, 1, "one is needed, or drop the class")
    return train, _load(card, folder, "validation")


def examine_clips(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation clips; also reads the test part, so that its errors are reported early, and
    prints a message if the same clips are in several parts."""
    parts = load_clip_training(card, folder)
    if message := _far_off(card, parts[0]):
        say(f"data: {message}")
    if message := duplicates(*parts, _load(card, folder, "test"), "clips"):
        say(f"data: {message}")
    return parts


def _far_off(card: Card, train: Split) -> str:
    """A message if the features of some training clips are far from the card's `mean` and `std`; empty if they are not.
    Far means by more than half a standard deviation, or by a factor of more than 1.5."""
    places = np.linspace(0, len(train) - 1, min(MEASURED, len(train))).astype(np.int64)
    features = Spectrogram(front_end(card.data))(torch.from_numpy(train.read(places)))
    by_bin = features.transpose(0, 2).flatten(1)
    per_bin = len(card.data.mean) > 1 or len(card.data.std) > 1
    mean, std = (by_bin.mean(1), by_bin.std(1)) if per_bin else (by_bin.mean()[None], by_bin.std()[None])
    if bool((mean.abs() <= 0.5).all() and (std > 1 / 1.5).all() and (std < 1.5).all()):
        return ""
    own_mean, own_std = torch.tensor(card.data.mean), torch.tensor(card.data.std)
    true = [[round(float(one), 2) for one in values] for values in (mean * own_std + own_mean, std * own_std)]
    return (
        f"the features of the training clips have mean = {true[0]} and std = {true[1]}; set data.mean and data.std so"
    )


def require_clip_test(card: Card, folder: Path | None) -> None:
    """Raise InputError if the test part does not exist; do not read it."""
    place = place_of(card, folder)
    if card.data.source == "audio-folder" and place and not _listed_place(place):
        _part_root(place, "test")


def load_clip_test(card: Card, folder: Path | None) -> Split:
    """The test clips of the card. Load them only once, for the final figures."""
    return _load(card, folder, "test")


def _has_validation(card: Card, folder: Path | None) -> bool:
    place = place_of(card, folder)
    if card.data.source == "import" or place is None:
        return False
    return (place / LISTS["validation"]).is_file() or validation_folder(place) is not None


def _listed_place(place: Path) -> bool:
    """Whether the folder has the layout of Google's Speech Commands."""
    return (place / LISTS["test"]).is_file()


def _load(card: Card, folder: Path | None, part: str) -> Split:
    place = place_of(card, folder)
    assert place is not None  # no clips come with a package
    if card.data.source == "import":
        samples, labels = _imported(card, place, part)
    else:
        files, labels = _listed(card.data, place, part) if _listed_place(place) else _sorted(card.data, place, part)
        samples = _read_all(files, card.data)
    integer = front_end(card.data).integer

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        return samples[indices] if integer else samples[indices] / np.float32(LOUDEST + 1)

    return Split(labels, read)


def _part_root(place: Path, part: str) -> Path:
    if not (place / "train").is_dir():
        raise InputError(
            f"{place}: has neither a folder 'train' with one folder for each keyword, nor {LISTS['test']} beside the "
            "folders of the keywords, as in Google's Speech Commands"
        )
    root = validation_folder(place) if part == "validation" else part_folder(place, part)
    assert root is not None  # the validation part is only asked for if there is one
    return root


def _sorted(data: ClipData, place: Path, part: str) -> tuple[list[Path], NDArray[np.int64]]:
    """The files of a part below PART/KEYWORD, and their labels."""
    root = _part_root(place, part)
    files, labels = class_files(root, data.classes, "clips", (NOISE_FOLDER,))
    return files, check_labels(np.array(labels, dtype=np.int64), data.classes, str(root), "clip")


def _listed(data: ClipData, place: Path, part: str) -> tuple[list[Path], NDArray[np.int64]]:
    """The files of a part in the layout of Google's Speech Commands, and their labels. Clips that are in no list are
    training data."""
    files, labels = class_files(place, data.classes, "clips", (NOISE_FOLDER,))
    known = {f"{file.parent.name}/{file.name}": number for number, file in enumerate(files)}
    chosen: dict[str, list[int]] = {}
    for name, listed in LISTS.items():
        chosen[name] = _listed_places(place / listed, known)
    rest = sorted(set(range(len(files))) - {place for places in chosen.values() for place in places})
    places = rest if part == "train" else chosen[part]
    if not places:
        raise InputError(f"{place}: has no clips for the {part} part")
    return [files[one] for one in places], np.array([labels[one] for one in places], dtype=np.int64)


def _listed_places(path: Path, known: dict[str, int]) -> list[int]:
    """The places of the clips that a list names. Raises InputError, with file and line, for a clip that is missing."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip() and line.strip() not in known:
            raise InputError(f"{path}: line {number}: {shown(line.strip())}: there is no such clip")
    return sorted({known[line.strip()] for line in lines if line.strip()})


def _read_all(files: Sequence[Path], data: ClipData) -> NDArray[np.int16]:
    """All files as samples (n, samples). Raises one InputError for all files that cannot be used."""
    length = front_end(data).samples
    kept, problems = np.zeros((len(files), length), np.int16), dict[int, str]()

    def attempt(number: int) -> None:
        try:
            sound = read_sound(files[number], data)
            if len(sound) > length:
                raise InputError(
                    f"{files[number]}: has {len(sound)} samples, and a clip has at most {length}; cut it, or set "
                    "data.seconds"
                )
            kept[number, : len(sound)] = sound
        except InputError as error:
            problems[number] = str(error)

    with ThreadPoolExecutor() as pool:  # libsndfile is called without the interpreter lock
        list(pool.map(attempt, range(len(files))))
    if problems:
        texts = [problems[number] for number in sorted(problems)]
        more = f"; and {len(texts) - NAMED_PROBLEMS} more" if len(texts) > NAMED_PROBLEMS else ""
        raise InputError("; ".join(texts[:NAMED_PROBLEMS]) + more)
    return kept


def read_sound(path: Path, data: ClipData) -> NDArray[np.int16]:
    """The samples (n,) of a mono file of the card's rate.

    Raises InputError, which names the file, for a file that cannot be decoded, that has another rate or several
    channels, no samples, or samples that are no numbers.
    """
    soundfile = require("soundfile", "train", "reading clips of sound")
    try:
        _refuse_cut(path)
        with soundfile.SoundFile(str(path)) as file:
            rate, count = file.samplerate, file.frames
            sound = file.read(dtype="float32", always_2d=True)
    except InputError:
        raise
    except Exception as error:  # libsndfile's errors, and those of reading the file
        raise InputError(f"{path}: the clip cannot be read: {one_line(error, 120)}") from error
    if len(sound) < count:
        raise InputError(f"{path}: is cut off: its header tells of {count} samples, it has {len(sound)}")
    if rate != data.rate:
        raise InputError(f"{path}: is of {rate} Hz, the card's data.rate is {data.rate}; resample it")
    if sound.shape[1] != 1:
        raise InputError(f"{path}: has {sound.shape[1]} channels; clips are mono")
    if not len(sound):
        raise InputError(f"{path}: has no samples")
    if not np.isfinite(sound).all():
        raise InputError(f"{path}: has samples that are no numbers")
    return _as_int16(sound[:, 0])


def _as_int16(sound: NDArray[Any]) -> NDArray[np.int16]:
    """The nearest whole numbers of samples in −1 … 1; louder ones are cut off."""
    return np.asarray(np.clip(np.rint(sound * (LOUDEST + 1.0)), -LOUDEST - 1, LOUDEST), np.int16)


def _refuse_cut(path: Path) -> None:
    """Raise InputError for a WAV file that is shorter than its header says; libsndfile reads such a file silently."""
    with path.open("rb") as file:
        kind, told = file.read(4), int.from_bytes(file.read(4), "little")
    size = path.stat().st_size
    if kind == b"RIFF" and size < told + 8 < 2**32 - 8:  # a program that writes a stream leaves the largest number
        raise InputError(f"{path}: is cut off: its header tells of {told + 8} bytes, it has {size}")


def noise_of(card: Card, folder: Path | None) -> NDArray[np.float32]:
    """The noise (n,) that views add to clips, in −1 … 1: the files of `_background_noise_` one after the other, or pink
    noise, always the same, if there is no such folder; nothing if the card adds none."""
    if not card.augment.noise:
        return np.zeros(0, np.float32)
    place = place_of(card, folder)
    length = front_end(card.data).samples
    folders = [place / NOISE_FOLDER, place / "train" / NOISE_FOLDER] if place else []
    found = next((one for one in folders if one.is_dir()), None)
    if found is None:
        return _pink(NOISE_SECONDS * card.data.rate)
    files = [path for path in sorted(found.iterdir()) if path.suffix.lower() in (".wav", ".flac")]
    parts = [read_sound(path, card.data) for path in files]
    count = sum(map(len, parts))
    if count <= length:
        raise InputError(f"{found}: holds {count} samples of noise; more than the {length} of a clip are needed")
    return np.asarray(np.concatenate(parts) / np.float32(LOUDEST + 1), np.float32)


def _pink(count: int) -> NDArray[np.float32]:
    """Noise (count,) whose power falls with the frequency, of standard deviation 0.1."""
    rng = np.random.Generator(np.random.Philox(key=0))
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, count)
    return np.asarray(0.1 * noise / noise.std(), np.float32)


def _imported(card: Card, folder: Path, part: str) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """The clips that the user's own function gives."""
    data = card.data
    given = import_function(card, data.function)(folder, part)
    try:
        clips, labels = (np.asarray(one) for one in given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{data.function}: gave a {type(given).__name__}; a pair of clips and labels is needed"
        ) from error
    wanted = (len(labels) if labels.ndim else 0, front_end(data).samples)
    if clips.shape != wanted or (clips.dtype != np.int16 and clips.dtype.kind != "f") or labels.dtype.kind not in "iu":
        raise InputError(
            f"{data.function}: gave clips {clips.dtype} {clips.shape} and labels {labels.dtype} {labels.shape}; int16 "
            f"or float {wanted}, and one whole number a clip, are needed"
        )
    if clips.dtype.kind == "f":
        if not np.isfinite(clips).all():
            raise InputError(f"{data.function}: gave samples that are no numbers")
        clips = _as_int16(clips)
    return clips, check_labels(labels, data.classes, data.function, "clip")


def noise_digest(noise: NDArray[np.float32]) -> str:
    """SHA-256 of the noise, as hex."""
    return hashlib.sha256(noise.data).hexdigest()
