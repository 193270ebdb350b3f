"""Digests: of the weights themselves, every bit of them, and of nothing else; of all files of an ONNX model."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekd.distill.digests import state_digest
from edgekd.external import file_digest


def test_a_state_is_known_by_its_values_and_names() -> None:
    state = {
        "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "batches": torch.tensor(7),
    }
    content = b"batches\0torch.int64 ()\0" + (7).to_bytes(8, "little")
    content += b"half\0torch.bfloat16 (2,)\0" + bytes([0xC0, 0x3F, 0x00, 0xC0])
    content += b"weight\0torch.float32 (2, 3)\0" + np.arange(6, dtype="<f4").tobytes()
    same = state_digest(state)
    assert same == hashlib.sha256(content).hexdigest()
    assert state_digest(dict(reversed(state.items()))) == same
    transposed = state["weight"].t().contiguous().t()  # the same values, another order in memory
    assert state_digest(state | {"weight": transposed}) == same
    others = [
        state | {"weight": state["weight"] + 1e-6},
        state | {"weight": state["weight"].reshape(3, 2)},
        state | {"weight": state["weight"].double()},
        {"w" if name == "weight" else name: tensor for name, tensor in state.items()},
        {name: tensor for name, tensor in state.items() if name != "batches"},
    ]
    assert len({same, *map(state_digest, others)}) == 6


def external(name: str, file: str) -> TensorProto:
    """Four floats that lie in `file`."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, file)
    tensor.ClearField("raw_data")
    return tensor


def branch(file: str) -> onnx.GraphProto:
    constant = helper.make_node("Constant", [], ["c"], value=external("v", file))
    return helper.make_graph([constant], file, [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])])


@pytest.mark.parametrize("changed", ["m.onnx", "weights", "then", "else"])
def test_a_model_is_known_by_every_file_of_it(tmp_path: Path, changed: str) -> None:
    nodes = [
        helper.make_node("If", ["which"], ["some"], then_branch=branch("then"), else_branch=branch("else")),
        helper.make_node("Add", ["some", "w"], ["y"]),
    ]
    given = helper.make_tensor_value_info("which", TensorProto.BOOL, [])
    told = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [given], [told], [external("w", "weights")])), path)
    for name in ("weights", "then", "else"):
        (tmp_path / name).write_bytes(bytes(16))
    before = file_digest(path)
    assert file_digest(path) == before
    file = tmp_path / changed
    if changed == "m.onnx":
        model = onnx.load(path, load_external_data=False)
        model.producer_name = "another"
        file.write_bytes(model.SerializeToString())
    else:
        file.write_bytes(bytes(15) + b"1")
    assert file_digest(path) != before
    if changed != "m.onnx":
        file.unlink()
        assert file_digest(path) != before


@pytest.mark.parametrize("name", ["teacher.safetensors", "broken.onnx", "teacher.bin"])
def test_any_other_file_is_known_by_its_sha_256(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"abc")
    assert file_digest(tmp_path / name) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
