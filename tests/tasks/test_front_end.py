"""The front end of audio networks, against torchaudio in 64 bits: as a torch module, and in the exported graph."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchaudio
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekd.export.front_end import with_front_end
from edgekd.nets.spectrogram import Spectrogram
from edgekd.tasks.front_end import FrontEnd

SETTINGS: list[dict[str, Any]] = [
    {},
    {"window": 400, "hop": 160, "mels": 32, "low_hz": 60.0, "high_hz": 7800.0, "mean": (-6.0,), "std": (4.0,)},
    {"coefficients": 10, "mean": tuple(range(10)), "std": tuple(range(1, 11))},
    {"integer": False, "rate": 8000, "samples": 4000, "window": 200, "hop": 100, "mels": 20, "high_hz": 3800.0},
]


def front_end(**values: Any) -> FrontEnd:
    given: dict[str, Any] = dict(samples=16_000, rate=16_000, window=480, hop=320, mels=40, low_hz=20.0, high_hz=4000.0)
    return FrontEnd(**given | {"coefficients": 0, "mean": (-5.0,), "std": (5.0,), "integer": True} | values)


def speech_like(how: FrontEnd) -> NDArray[np.float32]:
    """Four clips of harmonics that come and go, from loud to silent, in −1 … 1, as 16-bit recordings have them."""
    rng = np.random.default_rng(0)
    time = np.arange(how.samples) / how.rate
    voice = sum(np.sin(2 * np.pi * 140 * k * time + rng.uniform(0, 6)) / k for k in range(1, 20))
    sound = voice * np.hanning(how.samples) + 0.01 * rng.standard_normal(how.samples)
    clips = np.array([0.3, 0.03, 0.003, 0.0])[:, None] * sound
    return (np.rint(clips * 32_768) / 32_768).astype(np.float32)


def raw(how: FrontEnd, clips: NDArray[np.float32]) -> NDArray[Any]:
    return (clips * 32_768).astype(np.int16) if how.integer else clips


def expected(how: FrontEnd, clips: NDArray[np.float32]) -> NDArray[np.float64]:
    """Normalised features (n, 1, bins, frames) by torchaudio."""
    lengths = {"n_fft": how.window, "hop_length": how.hop, "center": False}
    filters = {"n_mels": how.mels, "f_min": how.low_hz, "f_max": how.high_hz}
    transform = torchaudio.transforms.MelSpectrogram(how.rate, **lengths, **filters).double()
    found = torch.log(transform(torch.from_numpy(clips).double()) + 1e-6)
    if how.coefficients:
        found = torchaudio.functional.create_dct(how.coefficients, how.mels, "ortho").double().T @ found
    mean, std = (np.array(values)[:, None] for values in (how.mean, how.std))
    return np.asarray(((found.numpy() - mean) / std)[:, None])


def alone(how: FrontEnd) -> onnx.ModelProto:
    """A model that only computes the features."""
    shape: list[str | int | None] = ["batch", 1, how.bins, how.frames]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("features", "out")]
    graph = helper.make_graph([helper.make_node("Identity", ["features"], ["out"])], "front", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 18)
    return with_front_end(helper.make_model(graph, opset_imports=[opset], ir_version=8), how, "samples")


@pytest.mark.parametrize("values", SETTINGS)
def test_features_are_those_of_torchaudio(values: dict[str, Any]) -> None:
    how = front_end(**values)
    clips = speech_like(how)
    wanted = expected(how, clips)
    assert wanted.shape == (4, 1, how.bins, how.frames)
    assert np.ptp(wanted) > 1.5  # in units of the standard deviation
    in_torch = Spectrogram(how)(torch.from_numpy(raw(how, clips))).numpy()
    np.testing.assert_allclose(in_torch, wanted, atol=1e-4)
    model = alone(how)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (in_graph,) = session.run(None, {"samples": raw(how, clips)})
    np.testing.assert_allclose(in_graph, wanted, atol=1e-4)


def test_formulas_take_the_place_of_the_large_matrices() -> None:
    how = front_end()
    assert len(alone(how).SerializeToString()) < 7_000
    assert 4 * 2 * len(how.lines) * how.window > 450_000
    assert max(np.prod(tensor.dims) for tensor in alone(how).graph.initializer) <= how.mels


def test_filters_and_cosines_are_those_of_torchaudio() -> None:
    how = front_end(coefficients=13)
    whole = torchaudio.functional.melscale_fbanks(241, 20.0, 4000.0, 40, 16_000).T.numpy()
    np.testing.assert_allclose(how.filters, whole[:, how.lines.start : how.lines.stop], atol=1e-5)
    assert not np.delete(whole, how.lines, axis=1).any()
    np.testing.assert_allclose(how.cosines, torchaudio.functional.create_dct(13, 40, "ortho").T.numpy(), atol=1e-6)
    assert front_end(mels=128).empty and not how.empty


def test_features_pass_unchanged_and_bf16_does_not_touch_samples() -> None:
    how = front_end()
    module, clips = Spectrogram(how), speech_like(how)
    features = torch.randn(2, 1, how.bins, how.frames)
    assert torch.equal(module(features), features)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(module(torch.from_numpy(raw(how, clips))).numpy(), expected(how, clips), atol=1e-4)
