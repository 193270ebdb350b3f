"""Clips of sound: both layouts of folders, files of any kind that soundfile reads, and every kind of bad file."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from edgekd.augmentation import Augment
from edgekd.card import Card
from edgekd.data.clips import (
    examine_clips,
    load_clip_test,
    load_clip_training,
    noise_of,
    read_sound,
    require_clip_test,
)
from edgekd.errors import InputError
from edgekd.nets.spectrogram import Spectrogram
from edgekd.tasks.keyword_spotting import ClipData, front_end
from edgekd.tasks.known import load_card

RATE, LENGTH = 4_000, 2_000


def card(**values: Any) -> Card:
    given: dict[str, Any] = {
        "source": "audio-folder",
        "classes": ("fall", "high", "rise"),
        "rate": RATE,
    }
    base = load_card("speech-commands")
    data = ClipData(**given | {"seconds": 0.5, "mels": 16, "window_ms": 40, "low_hz": 50, "high_hz": 1900} | values)
    return dataclasses.replace(base, file="card.toml", data=data, augment=Augment())


def write(path: Path, values: Any, rate: int = RATE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(values), rate, **options)
    return path


@pytest.fixture
def folder(sounds: ModuleType, tmp_path: Path) -> Path:
    sounds.write_clips(tmp_path / "clips", (("train", 4), ("val", 2), ("test", 3)))
    return tmp_path / "clips"


@pytest.fixture
def google(folder: Path, tmp_path: Path) -> Path:
    """The same clips in the layout of Google's Speech Commands."""
    place = tmp_path / "google"
    for part, name in (("train", ""), ("val", "validation_list.txt"), ("test", "testing_list.txt")):
        listed = []
        for file in sorted((folder / part).rglob("*.*")):
            target = place / file.parent.name / f"{part}_{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
            listed.append(f"{target.parent.name}/{target.name}\n")
        if name:
            (place / name).write_text("".join(listed))
    write(place / "_background_noise_" / "hum.wav", np.full(LENGTH, 0.25))
    write(place / "_background_noise_" / "wind.wav", np.full(LENGTH, -0.5))
    (place / "_background_noise_" / "README.md").write_text("Noise.")
    return place


def test_both_layouts_give_the_same_clips(folder: Path, google: Path) -> None:
    require_clip_test(card(), folder)
    require_clip_test(card(), google)
    parts = [(*examine_clips(card(), place), load_clip_test(card(), place)) for place in (folder, google)]
    assert [len(part) for part in parts[0]] == [12, 6, 9]
    for first, second in zip(*parts, strict=True):
        every = np.arange(len(first))
        assert np.array_equal(first.read(every), second.read(every))
        assert np.array_equal(first.labels, second.labels)
    train = parts[0][0]
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    path = folder / "train" / "high" / "02.flac"
    assert np.array_equal(train.read(np.array([6]))[0], soundfile.read(path, dtype="int16")[0])


def test_without_a_validation_part_a_share_is_set_apart(folder: Path) -> None:
    (folder / "val").rename(folder.parent / "aside")
    train, validation = load_clip_training(card(validation_fraction=0.25), folder)
    assert np.bincount(train.labels).tolist() == [3, 3, 3] and np.bincount(validation.labels).tolist() == [1, 1, 1]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_samples_are_the_nearest_of_16_bits(tmp_path: Path, subtype: str) -> None:
    path = write(tmp_path / "a.wav", [0.0, 0.5, -1.0, 0.25], subtype=subtype)
    assert read_sound(path, card().data).tolist() == [0, 16_384, -32_768, 8_192]
    if subtype == "FLOAT":
        assert read_sound(write(path, [2.0, -2.0], subtype=subtype), card().data).tolist() == [32_767, -32_768]


def test_short_clips_end_with_zeros_and_floats_are_in_minus_1_to_1(folder: Path) -> None:
    write(folder / "train" / "fall" / "00.flac", np.full(100, 0.5))
    whole, _ = load_clip_training(card(), folder)
    (clip,) = whole.read(np.array([0]))
    assert clip.dtype == np.int16 and (clip[:100] == 16_384).all() and not clip[100:].any()
    floats, _ = load_clip_training(card(input="float32"), folder)
    (clip,) = floats.read(np.array([0]))
    assert clip.dtype == np.float32 and (clip[:100] == 0.5).all()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: write(path, np.zeros(10), 8_000), r"is of 8000 Hz, the card's data\.rate is 4000; resample it"),
        (lambda path: write(path, np.zeros((10, 2))), r"has 2 channels; clips are mono"),
        (lambda path: write(path, np.zeros(0)), r"has no samples"),
        (lambda path: write(path, [np.nan, 0.0], subtype="FLOAT"), r"has samples that are no numbers"),
        (lambda path: write(path, np.zeros(2_001)), r"has 2001 samples, and a clip has at most 2000; cut it"),
        (lambda path: path.write_bytes(b"RIFF\0\0\0\0"), r"the clip cannot be read: "),
        (
            lambda path: path.write_bytes(path.read_bytes()[:60]),
            r"is cut off: its header tells of 4044 bytes, it has 60",
        ),
        (lambda path: path.write_bytes(path.with_name("00.flac").read_bytes()[:-90]), r"(is cut off|the clip cannot)"),
        (lambda path: path.write_text("no sound"), r"the clip cannot be read: "),
    ],
)
def test_a_bad_clip_is_one_line_with_its_name(folder: Path, spoil: Callable[[Path], Any], said: str) -> None:
    path = folder / "test" / "high" / "01.wav"
    spoil(path)
    with pytest.raises(InputError, match=rf"^{path}: {said}") as caught:
        examine_clips(card(), folder)
    assert "\n" not in str(caught.value)


def test_all_bad_clips_are_told_at_once(folder: Path) -> None:
    for number in range(4):
        for keyword in ("fall", "high", "rise"):
            next((folder / "train" / keyword).glob(f"0{number}.*")).write_text("no sound")
    with pytest.raises(InputError) as caught:
        load_clip_training(card(), folder)
    assert str(caught.value).count("cannot be read") == 10 and str(caught.value).endswith("; and 2 more")


def test_a_folder_of_another_layout_is_told(folder: Path, google: Path) -> None:
    (google / "testing_list.txt").write_text("high/gone.wav\n")
    with pytest.raises(InputError, match=r"testing_list\.txt: line 1: 'high/gone\.wav': there is no such clip"):
        load_clip_training(card(), google)
    (google / "testing_list.txt").write_text("\n")
    with pytest.raises(InputError, match=r"google: has no clips for the test part"):
        load_clip_test(card(), google)
    (google / "testing_list.txt").unlink()
    with pytest.raises(InputError, match=r"google: has neither a folder 'train' .* nor testing_list\.txt"):
        require_clip_test(card(), google)
    for path in (folder / "train" / "rise").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"train/rise: the card's class 'rise' has no clips there"):
        load_clip_training(card(), folder)


def noisy(augment: Augment = Augment(noise=0.5)) -> Card:  # noqa: B008 - frozen
    return dataclasses.replace(card(), augment=augment)


def test_noise_is_that_of_the_data_or_pink(folder: Path, google: Path) -> None:
    assert len(noise_of(card(), google)) == 0
    assert noise_of(noisy(), google).tolist() == [0.25] * LENGTH + [-0.5] * LENGTH
    assert load_clip_training(noisy(), google)[0].extra.shape == (2 * LENGTH,)
    pink = noise_of(noisy(), folder)
    assert pink.shape == (60 * RATE,) and pink.std() == pytest.approx(0.1, rel=1e-3)
    assert np.array_equal(pink, noise_of(noisy(), folder))
    power = np.abs(np.fft.rfft(pink)) ** 2
    octaves = [power[1000 * 2**k : 2000 * 2**k].sum() for k in range(6)]  # pink: equal power in each octave
    assert max(octaves) / min(octaves) < 1.2
    write(folder / "train" / "_background_noise_" / "short.wav", np.zeros(LENGTH))
    with pytest.raises(InputError, match=r"_background_noise_: holds 2000 samples of noise; more than the 2000"):
        load_clip_training(noisy(), folder)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("numpy.zeros((3, 1999), 'int16'), numpy.arange(3)", r"gave clips int16 \(3, 1999\) and labels .+; int16 or"),
        ("numpy.zeros((3, 2000), 'int32'), numpy.arange(3)", r"gave clips int32 \(3, 2000\)"),
        ("numpy.zeros((3, 2000)), numpy.zeros(3)", r"gave clips .+ labels float64 \(3,\); int16 or float \(3, 2000\)"),
        ("numpy.full((3, 2000), numpy.nan), numpy.arange(3)", r"gave samples that are no numbers"),
        ("numpy.zeros((3, 2000)), numpy.arange(3) + 1", r"clip 2 has label 3; the card names 3 classes"),
        ("None", r"gave a NoneType; a pair of clips and labels is needed"),
    ],
)
def test_the_users_own_function_is_checked(tmp_path: Path, result: str, said: str) -> None:
    (tmp_path / "own_clips.py").write_text(f"import numpy\ndef read(path, part):\n    return {result}\n")
    own = dataclasses.replace(card(source="import", function="own_clips:read"), file=str(tmp_path / "card.toml"))
    with pytest.raises(InputError, match=rf"^own_clips:read: {said}"):
        load_clip_test(own, tmp_path)


def test_the_users_own_function_gives_floats(tmp_path: Path) -> None:
    code = "import numpy\ndef given(path, part):\n    return numpy.full((6, 2000), 0.5), numpy.arange(6) % 3\n"
    (tmp_path / "float_clips.py").write_text(code)
    own = card(source="import", function="float_clips:given", validation_fraction=0.5)
    own = dataclasses.replace(own, file=str(tmp_path / "card.toml"))
    train, validation = load_clip_training(own, tmp_path)
    assert (train.read(np.array([0])) == 16_384).all()
    assert len(train) == len(validation) == 3


@pytest.mark.parametrize("features", ["log-mel", "mfcc"])
def test_the_mean_and_deviation_of_the_features_are_told_if_they_are_far_off(
    folder: Path, capsys: pytest.CaptureFixture[str], features: str
) -> None:
    count = 1 if features == "log-mel" else 10
    first = {"features": features, "mean": (0.0,) * count, "std": (1.0,) * count}
    examine_clips(card(**first), folder)
    told = re.search(r"have mean = \[(.+)\] and std = \[(.+)\]; set data\.mean", capsys.readouterr().err)
    assert told
    mean, std = (tuple(map(float, numbers.split(", "))) for numbers in told.groups())
    assert len(mean) == len(std) == count
    train, _ = examine_clips(card(features=features, mean=mean, std=std), folder)
    assert "set data.mean" not in capsys.readouterr().err
    how = front_end(card(**first).data)
    found = Spectrogram(how)(torch.from_numpy(train.read(np.arange(len(train))))).numpy()
    axes = (0, 1, 3) if count > 1 else None
    np.testing.assert_allclose(found.mean(axis=axes), mean if count > 1 else mean[0], atol=0.01)
    np.testing.assert_allclose(found.std(axis=axes), std if count > 1 else std[0], rtol=0.01, atol=0.01)
