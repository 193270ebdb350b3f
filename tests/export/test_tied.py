"""A table of embeddings that is also the matrix of the output: once in the file, with the numbers of the matrix."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekd.export.quantize import quantize_weights
from edgekd.target import Quantization, load_target

V, C = 50, 16
SCHEME = load_target("cpu-x86").quantization
GEMM = "Gemm<transB=1>(x, table)"
MATMUL = "MatMul(x, turned)"


def table() -> NDArray[np.float32]:
    """Rows (V, C) of different sizes, so that the scales of rows differ."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((V, C)).astype(np.float32) * np.linspace(0.1, 2, V, dtype=np.float32)[:, None]


def model_of(path: Path, product: str = GEMM, ids: str = "n, m", pick: str = "") -> Path:
    """A model that looks rows up, and gives them and the product of x with the table."""
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
        agraph (int64[{ids}] ids, float[k, {C}] x) => (float rows, float[k, {V}] scores) {{
            looked = Gather{pick}(table, ids)
            rows = Neg(looked)
            scores = {product}
        }}"""
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.append(numpy_helper.from_array(table(), "table"))
    if "turned" in product:
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(table().T), "turned"))
    onnx.save(model, path)
    return path


def quantized(file: Path, scheme: Quantization = SCHEME) -> Path:
    path = file.with_name("int8.onnx")
    quantize_weights(file, path, scheme)
    return path


def tables_in(path: Path) -> list[tuple[int, ...]]:
    return [tuple(t.dims) for t in onnx.load(path).graph.initializer if sorted(t.dims) == [C, V]]


def rows_of(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows, _ = session.run(None, {"ids": ids, "x": np.ones((1, C), np.float32)})
    return -np.asarray(rows)


@pytest.mark.parametrize("product", [GEMM, MATMUL])
@pytest.mark.parametrize("size", [(7,), (3, 5), (2, 1, 4)])
def test_the_table_is_stored_once_and_gives_rows_for_any_indices(
    tmp_path: Path, product: str, size: tuple[int, ...]
) -> None:
    free = ", ".join("nml"[: len(size)])
    path = quantized(model_of(tmp_path / "model.onnx", product, free))
    assert tables_in(path) == [(C, V)]
    ids = np.random.default_rng(1).integers(0, V, size)
    # Symmetric int8 with a scale for each row of the table, by the definition.
    scales = np.abs(table()).max(1, keepdims=True) / 127
    np.testing.assert_allclose(rows_of(path, ids), (np.rint(table() / scales) * scales)[ids], rtol=1e-5, atol=1e-6)


def test_one_scale_and_seven_bits_are_those_of_the_matrix(tmp_path: Path) -> None:
    file = model_of(tmp_path / "model.onnx")
    for bits, narrow in ((127, False), (64, True)):
        path = quantized(file, dataclasses.replace(SCHEME, per_channel=False, reduce_range=narrow))
        assert tables_in(path) == [(C, V)]
        error = np.abs(rows_of(path, np.arange(V)[None])[0] - table())
        assert 0 < error.max() <= 0.5 * np.abs(table()).max() / bits * 1.001


def test_the_product_keeps_the_fused_kernel(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the optimized file depends on the machine
    path = quantized(model_of(tmp_path / "model.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("DynamicQuantizeMatMul") == 1 and "MatMulInteger" not in kinds


def test_other_tables_are_quantised_as_before(tmp_path: Path) -> None:
    file = model_of(tmp_path / "model.onnx", "Gemm<transB=1>(x, other)")
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(table() + 1, "other"))
    onnx.save(model, file)
    assert sorted(tables_in(quantized(file))) == [(C, V), (V, C)]
    unsigned = dataclasses.replace(SCHEME, weight="uint8")  # has zero points, which the rows would need, too
    assert len(tables_in(quantized(model_of(file), unsigned))) == 2
    columns = model_of(file, "Gemm<transB=1, alpha=0.5>(x, table)")
    assert rows_of(quantized(columns), np.arange(V)[None]).shape == (1, V, C)
