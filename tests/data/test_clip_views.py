"""Views of clips are pure functions of (seed, i, k), and do what their settings say."""

import dataclasses

import numpy as np
import pytest
import torch

from edgekd.augmentation import Augment
from edgekd.card import Card
from edgekd.data.clip_views import clip_examples, heard, masked
from edgekd.data.images import Split
from edgekd.nets.spectrogram import Spectrogram
from edgekd.tasks.keyword_spotting import front_end
from edgekd.tasks.known import load_card

RATE = 1_000
WAVES = np.random.default_rng(0).standard_normal((6, 400)).astype(np.float32)
NOISE = np.random.default_rng(1).standard_normal(5_000).astype(np.float32)
EVERY = np.arange(6)


def test_a_view_depends_only_on_seed_example_and_number() -> None:
    augment = Augment(time_shift_ms=50, noise=0.7, time_mask=5, frequency_mask=4, masks=2, seed=3)
    whole = heard(WAVES, NOISE, EVERY, 2, augment, RATE)
    some = np.array([4, 1])
    assert np.array_equal(heard(WAVES[some], NOISE, some, 2, augment, RATE), whole[some])
    assert not np.array_equal(heard(WAVES, NOISE, EVERY, 3, augment, RATE), whole)
    other = dataclasses.replace(augment, seed=4)
    assert not np.array_equal(heard(WAVES, NOISE, EVERY, 2, other, RATE), whole)
    features = WAVES.reshape(6, 1, 20, 20)
    hidden = masked(features, EVERY, 2, augment)
    assert np.array_equal(masked(features[some], some, 2, augment), hidden[some])
    assert not np.array_equal(masked(features, EVERY, 3, augment), hidden)
    assert np.array_equal(WAVES.reshape(6, 1, 20, 20), features)  # the arrays given are unchanged


def test_without_settings_a_view_is_the_clip() -> None:
    assert np.array_equal(heard(WAVES, NOISE[:0], EVERY, 0, Augment(), RATE), WAVES)
    features = WAVES.reshape(6, 1, 20, 20)
    assert np.array_equal(masked(features, EVERY, 0, Augment()), features)


def test_shifts_go_both_ways_as_far_as_they_may() -> None:
    many = np.repeat(WAVES[:1], 500, axis=0)
    moved = heard(many, NOISE, np.arange(500), 0, Augment(time_shift_ms=20), RATE)
    shifts = set()
    for row in moved:
        (shift,) = [
            by
            for by in range(-20, 21)
            if np.array_equal(row, np.roll(WAVES[0], by) * (np.roll(np.arange(400), by) - np.arange(400) == -by))
        ]
        shifts.add(shift)
    assert shifts == set(range(-20, 21))


def test_noise_has_the_drawn_ratio_and_share() -> None:
    many = np.repeat(WAVES[:1], 400, axis=0)
    augment = Augment(noise=0.25, noise_snr_db=(6.0, 12.0))
    added = heard(many, NOISE, np.arange(400), 5, augment, RATE) - many
    noisy = added.any(axis=1)
    assert noisy.mean() == pytest.approx(0.25, abs=0.07)
    ratios = 10 * np.log10((WAVES[0] ** 2).mean() / (added[noisy] ** 2).mean(axis=1))
    assert 6 <= ratios.min() < 6.5 and 11.5 < ratios.max() <= 12.0001
    silent = np.zeros_like(many)
    assert not heard(silent, NOISE, np.arange(400), 5, augment, RATE).any()


def test_masks_hide_spans_of_frames_and_bins() -> None:
    ones = np.ones((300, 1, 10, 16), np.float32)
    hidden = masked(ones, np.arange(300), 0, Augment(time_mask=4, frequency_mask=3, masks=1))
    frames, bins = (hidden == 0).all(axis=(1, 2)).sum(axis=1), (hidden == 0).all(axis=(1, 3)).sum(axis=1)
    assert set(frames.tolist()) == set(range(5)) and set(bins.tolist()) == set(range(4))
    kept = 160 - (160 - (16 - frames) * (10 - bins))
    assert np.array_equal((hidden != 0).sum(axis=(1, 2, 3)), kept)
    twice = masked(ones, np.arange(300), 0, Augment(time_mask=4, masks=2))
    assert (twice == 0).all(axis=(1, 2)).sum(axis=1).max() > 4


def spoken() -> Card:
    return dataclasses.replace(load_card("speech-commands"), augment=Augment(time_shift_ms=10, noise=1.0, time_mask=4))


def test_examples_are_raw_samples_or_masked_features() -> None:
    card = spoken()
    clips = np.random.default_rng(2).integers(-3000, 3000, (4, 16_000)).astype(np.int16)
    split = Split(np.arange(4), lambda chosen: clips[chosen], extra=NOISE.repeat(4))  # type: ignore[arg-type,return-value]
    examples = clip_examples(card, split)
    plain = examples.batch(np.array([2, 0]), None)
    assert np.array_equal(plain.inputs.numpy(), clips[[2, 0]]) and plain.targets.tolist() == [2, 0]
    first, again = (examples.batch(np.array([2, 0]), 1).inputs for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2, 1, 40, 49)
    assert not torch.equal(first, examples.batch(np.array([2, 0]), 2).inputs)
    still = dataclasses.replace(card, augment=Augment(time_mask=1))
    features = clip_examples(still, split).batch(np.arange(4), 0).inputs
    whole = Spectrogram(front_end(card.data))(torch.from_numpy(clips))
    assert torch.equal(features[features != 0], whole[features != 0]) and (features != 0).float().mean() > 0.9
    unmasked = dataclasses.replace(card, augment=Augment(time_shift_ms=10, noise=1.0))
    waves = clip_examples(unmasked, split).batch(np.arange(4), 1).inputs
    assert waves.dtype == torch.int16 and waves.shape == (4, 16_000) and not np.array_equal(waves.numpy(), clips)
    other = Split(split.labels, split.read, extra=NOISE)
    keys = [dict(clip_examples(one, of).key) for one, of in ((card, split), (still, split), (card, other))]
    assert keys[0] != keys[1] and keys[0] != keys[2] and keys[0] == dict(examples.key)
