"""Clips of sound for tests: three keywords that are told apart by how the pitch of a tone moves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE, LENGTH = 4_000, 2_000
PITCHES = {"fall": (1200.0, 400.0), "high": (1200.0, 1200.0), "rise": (400.0, 1200.0)}
"""First and last frequency in Hz of the tone of each keyword."""

DATA = f"""
source = "audio-folder"
path = "data"
classes = ["fall", "high", "rise"]
rate = {RATE}
seconds = 0.5
mels = 16
window_ms = 40
hop_ms = 20
low_hz = 50
high_hz = 1900
mean = [-5]
std = [3]
"""


def tone(keyword: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Samples in −1 … 1 of a tone that begins somewhere in the first quarter, of any loudness, with a little noise."""
    first, last = (pitch * rng.uniform(0.9, 1.1) for pitch in PITCHES[keyword])
    length, begin = LENGTH * 5 // 8, int(rng.integers(0, LENGTH // 4))
    phase = 2 * np.pi / RATE * np.cumsum(np.linspace(first, last, length))
    sound = 0.003 * rng.standard_normal(LENGTH)
    sound[begin : begin + length] += 10 ** rng.uniform(-1.3, -0.3) * np.sin(phase) * np.hanning(length)
    return np.clip(sound, -1, 0.999)


def write_clips(folder: Path, counts: Sequence[tuple[str, int]] = (("train", 24), ("val", 8), ("test", 10))) -> None:
    """Write so many clips of each keyword for each part, as PART/KEYWORD/NUMBER, in FLAC and WAV by turns."""
    rng = np.random.default_rng(0)
    for part, count in counts:
        for keyword in PITCHES:
            (folder / part / keyword).mkdir(parents=True)
            for number in range(count):
                ending = ("flac", "wav")[number % 2]
                path = folder / part / keyword / f"{number:02d}.{ending}"
                soundfile.write(path, tone(keyword, rng), RATE, subtype="PCM_16")
