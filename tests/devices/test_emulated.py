"""An emulated Arm board; the tests that start it are skipped where qemu or its system is not installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.bench.instructions import count_instructions
from edgekd.bench.kept import Subject
from edgekd.bench.records import Effort
from edgekd.bench.runner import make_plan, predict
from edgekd.devices.counter import COUNTER
from edgekd.devices.device import Site
from edgekd.devices.emulated import CPUS, ENVIRONMENT, Emulated
from edgekd.devices.environments import environment_folder
from edgekd.devices.local import Local, connect
from edgekd.errors import ConfigError, EdgekdError, UnavailableError
from edgekd.target import load_target

TARGETS = {"cortex-a72": "cpu-arm", "cortex-a76": "cpu-arm-dotprod"}


def test_an_emulated_core_is_the_target_that_it_plays() -> None:
    for name, target in TARGETS.items():
        board = Emulated(f"qemu://{name}")
        assert load_target(target).differences(board.facts()) == []
        assert Site(load_target(target), board).provenance == "emulated"
        assert not Site(load_target(target), board).measurable
    assert set(TARGETS) == set(CPUS)


def test_an_unknown_core_is_told() -> None:
    with pytest.raises(ConfigError, match=r"^device 'qemu://cortex-a27': did you mean 'cortex-a76' or 'cortex-a72'\?"):
        Emulated("qemu://cortex-a27")


def test_without_the_system_the_command_that_makes_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"needs qemu-user; `apt-get install qemu-user`"):
        connect(load_target("cpu-arm"), "qemu://cortex-a72")
    (tmp_path / "qemu-aarch64").write_text("#!/bin/sh\n")
    (tmp_path / "qemu-aarch64").chmod(0o755)
    with pytest.raises(UnavailableError, match=r"needs an aarch64 system; edgekd doctor --install qemu-aarch64$"):
        connect(load_target("cpu-arm"), "qemu://cortex-a72")


@pytest.fixture(params=sorted(CPUS))
def emulated(request: pytest.FixtureRequest) -> Site:
    """A target on the emulated core that it describes."""
    try:
        return connect(load_target(TARGETS[request.param]), f"qemu://{request.param}")
    except EdgekdError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_a_float_model_answers_as_here(emulated: Site, tmp_path: Path, tiny_model: Callable[[Path, int], Path]) -> None:
    model = tiny_model(tmp_path / "m.onnx", 1)
    rows = np.random.Generator(np.random.PCG64(4)).standard_normal((20, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    record = predict(model, emulated, tmp_path / "rows.npy", tmp_path / "arm.npy")
    predict(model, Site(load_target("cpu-x86"), Local()), tmp_path / "rows.npy", tmp_path / "here.npy")
    np.testing.assert_allclose(np.load(tmp_path / "arm.npy"), np.load(tmp_path / "here.npy"), atol=1e-5)
    assert record.fingerprint["architecture"] == "aarch64"


@pytest.mark.slow
def test_instructions_are_those_of_the_products(emulated: Site, tmp_path: Path) -> None:
    """Two networks of one matrix product each: what the larger one needs more are its further multiplications, of which
    an instruction of these cores does four, with a load for each and what else the loop needs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if not (environment_folder(ENVIRONMENT) / COUNTER).is_file():
        pytest.skip("qemu's plugin is missing; `edgekd doctor --install qemu-aarch64` says what it needs")
    found = []
    for size in (64, 512):
        weights = np.ones((size, size), np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])],
            [numpy_helper.from_array(weights, "w")],
        )
        file = tmp_path / f"{size}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
        subject = Subject(name=str(size), file=file, precision="fp32")
        found.append(count_instructions(subject, emulated, None, None, Effort()))
    assert {figure.provenance for figure in found} == {"emulated"}, found[0].why
    more = (512**2 - 64**2) / 1e6
    assert more / 4 < (found[1].value or 0) - (found[0].value or 0) < 2 * more
    assert found[0].low is not None and found[0].value is not None
    assert found[0].low <= found[0].value


@pytest.mark.slow
def test_by_ssh_a_board_of_another_architecture_is_measured(
    emulated_board: Any, tmp_path: Path, tiny_model: Callable[[Path, int], Path]
) -> None:
    device = emulated_board.device()
    site = Site(load_target("cpu-arm"), device)
    assert (device.facts().architecture, site.differences) == ("aarch64", [])
    device.require(site.target)
    model = tiny_model(tmp_path / "m.onnx", 1)
    plan = make_plan(site, mode="latency", warmup_s=0.0, min_calls=20, max_calls=20, max_s=0.0)
    record = device.run(plan, model, site.target, 300)
    assert len(record.latency_s) == 20
    assert (record.fingerprint["architecture"], record.fingerprint["system"]) == ("aarch64", "Linux")
