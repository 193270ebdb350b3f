"""A device that hangs on a gateway of a Ray cluster: one command at a time, and nothing of Ray on the board."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.bench.runner import make_plan, predict
from edgekd.devices.device import Site
from edgekd.devices.gateway import Gateway
from edgekd.devices.local import Local
from edgekd.errors import ConfigError, InputError, UnavailableError
from edgekd.target import load_target

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own warnings


@pytest.fixture
def gateway(board: Any, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of one node, whose resource `device:board` is the board."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster(**{"device:board": 1}).address)


@pytest.mark.slow
def test_one_command_at_a_time_measures_through_the_gateway(
    gateway: None, board: Any, tmp_path: Path, tiny_model: Callable[[Path, int], Path]
) -> None:
    import ray

    model, rows = tiny_model(tmp_path / "m.onnx", 1), tmp_path / "rows.npy"
    np.save(rows, np.random.Generator(np.random.PCG64(2)).standard_normal((300, 8)).astype(np.float32))
    target = load_target("cpu-x86" if Local().facts().architecture == "x86_64" else "cpu-arm")
    device = Gateway("ray://board", board.python)
    site = Site(target, device)
    try:
        assert device.facts().features == Local().facts().features
        predict(model, site, rows, tmp_path / "there.npy")
        predict(model, Site(target, Local()), rows, tmp_path / "here.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), np.load(tmp_path / "here.npy"))
        plan = make_plan(site, mode="latency", inputs=str(rows), warmup_s=0.0, min_calls=20, max_calls=20, max_s=0.0)
        assert len(device.run(plan, model, target, 60).latency_s) == 20
        assert ray.available_resources().get("device:board", 0) == 0  # nobody else measures there
        assert not any("ray" in line.split()[0] for line in board.processes())
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"no model")
        with pytest.raises(InputError) as caught:
            device.run(plan, broken, target, 60)
        assert str(caught.value).startswith(f"{broken}: onnxruntime cannot load it")
        with pytest.raises(UnavailableError, match=r"has the resource device:pi9 \(there are device:board\); start"):
            Gateway("ray://pi9").facts()
    finally:
        device.close()
    assert (board.cache / "files").is_dir() and not board.processes()


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match=r"^device 'ray://a b': it should be like ray://pi4, for the resource dev"):
        Gateway("ray://a b")


def test_a_closed_device_is_not_held_again() -> None:
    device = Gateway("ray://pi4")
    device.close()
    with pytest.raises(UnavailableError, match=r"^device ray://pi4: is closed$"):
        device.facts()
